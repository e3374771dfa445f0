"""The lag of the event loop is found, and forgotten after some minutes."""

from __future__ import annotations

import asyncio

import anyio

from amplitude_intercom.engine.loop_lag import EVERY_S, LoopLag
from support import virtual
from support.virtual import in_virtual_time


async def measured(lag: LoopLag, for_s: float) -> None:
    with anyio.move_on_after(for_s):
        await lag.run()


@in_virtual_time
async def test_a_loop_that_is_on_time_has_no_lag() -> None:
    lag = LoopLag()
    await measured(lag, 100 * EVERY_S + 0.1)
    assert sum(lag.value.counts) == lag.value.counts[0] == 100
    assert lag.longest_s < 0.001


@in_virtual_time
async def test_a_step_that_takes_long_is_a_lag_of_its_length() -> None:
    lag = LoopLag()
    loop = virtual.current()

    def hold() -> None:
        loop.now_s += 3.0

    asyncio.get_running_loop().call_later(10.1, hold)
    await measured(lag, 30)
    assert 2.7 < lag.longest_s < 3.0
    assert lag.value.counts[-2:] == (1, 0)
    assert 2.7 < lag.value.sum_s < 3.0


@in_virtual_time
async def test_the_longest_lag_is_that_of_the_last_minutes() -> None:
    lag = LoopLag()
    lag.note(2.0, 0.0)
    lag.note(0.5, 30.0)
    assert lag.longest_s == 2.0
    lag.note(0.1, 61.0)
    assert lag.longest_s == 2.0
    lag.note(0.2, 122.0)
    assert lag.longest_s == 0.2
    assert sum(lag.value.counts) == 4
