"""Work that faults is started again, later each time; in virtual time."""

from __future__ import annotations

import anyio
import pytest

from amplitude_intercom.engine.supervision import LONGEST_PAUSE_S, Supervisor
from support import virtual
from support.virtual import in_virtual_time


class Work:
    """Runs for ``well_s`` each time, then faults, the first ``faults`` times."""

    def __init__(self, faults: int, well_s: float = 0.0) -> None:
        self._left = faults
        self._well_s = well_s
        self.began_s: list[float] = []

    async def __call__(self) -> None:
        self.began_s.append(virtual.current().now_s)
        await anyio.sleep(self._well_s)
        if self._left:
            self._left -= 1
            raise TypeError(f"{self._left} left")

    def pauses(self) -> list[int]:
        times = zip(self.began_s, self.began_s[1:], strict=False)
        return [round(then - now - self._well_s) for now, then in times]


@in_virtual_time
async def test_pauses_grow_from_a_second_to_a_minute_and_the_work_then_ends_well() -> None:
    work = Work(9)
    supervisor = Supervisor(work, sync="a")
    await supervisor.run()
    assert work.pauses() == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (supervisor.faults, supervisor.stopped) == (9, "")


@in_virtual_time
async def test_work_that_ran_well_for_a_while_starts_at_a_second_again() -> None:
    work = Work(4, well_s=LONGEST_PAUSE_S)
    await Supervisor(work).run()
    assert work.pauses() == [1, 1, 1, 1]


@in_virtual_time
async def test_why_it_stands_can_be_seen_until_it_runs_again() -> None:
    supervisor = Supervisor(Work(1, well_s=5.0), sync="a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        await anyio.sleep(1)
        assert supervisor.stopped == ""
        await anyio.sleep(4.5)
        assert supervisor.stopped == "TypeError: 0 left"
        await anyio.sleep(1)
        assert supervisor.stopped == ""


@in_virtual_time
async def test_told_to_end_it_does_not_start_again() -> None:
    work = Work(1_000)
    supervisor = Supervisor(work)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run)
        await anyio.sleep(5)
        supervisor.end()
    assert virtual.current().now_s == pytest.approx(5, abs=0.1)


@in_virtual_time
async def test_final_errors_are_raised() -> None:
    with pytest.raises(TypeError):
        await Supervisor(Work(1), final=(TypeError,)).run()


@in_virtual_time
async def test_a_fault_with_an_unprintable_text_is_a_fault_like_others() -> None:
    async def work() -> None:
        raise ValueError(10**5_000, "\ud800")

    supervisor = Supervisor(work)
    supervisor.end()
    await supervisor.run()
    assert supervisor.stopped == "ValueError"
