"""The pace with a backlog: the whole allowance, and not a call more. In virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Literal

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.delivery.pace import Pace
from amplitude_intercom.transports.intercom import RateHeaders
from support import virtual
from support.pacing import Caller, Latency, Share, Stranger, intercom, share_used, spread
from support.virtual import in_virtual_time

Counted = Literal["before", "after"]
LIMITS = [7, 83, 100, 167, 1_667]
EVEN = (0.2, 0.4)


def at_least(limit: int, seconds: float) -> float:
    """Return 99 %, or what whole calls allow: one less than that."""
    return min(0.99, 0.995 - 1 / (limit * seconds / 10))


# alone


@pytest.mark.parametrize("remaining", ["before", "after"])
@pytest.mark.parametrize("limit", LIMITS)
@in_virtual_time
async def test_alone_at_least_99_percent_are_used_and_nothing_is_refused(
    limit: int, remaining: Counted
) -> None:
    local = intercom(limit, remaining=remaining, window_offset_s=3.7)
    await Caller(local, limit, spread(*EVEN)).run(130)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= limit
    assert share_used(local, 10, 130) >= at_least(limit, 120)


@pytest.mark.parametrize("offset_s", [0.0, 3.7])
@pytest.mark.parametrize("latency", [(0.02, 0.02), (0.05, 1.5), (2.0, 2.0)])
@pytest.mark.parametrize("limit", [83, 1_667])
@in_virtual_time
async def test_latency_and_answers_that_overtake_each_other_change_nothing(
    limit: int, latency: tuple[float, float], offset_s: float
) -> None:
    local = intercom(limit, window_offset_s=offset_s)
    caller = Caller(local, limit, spread(*latency), max_in_flight=600)
    await caller.run(100)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= limit
    assert share_used(local, 20, 100) >= 0.99
    assert max(caller.slots_seen) <= limit / 10 * latency[1] * 1.5 + 2


@pytest.mark.parametrize("limit", [83, 167])
@in_virtual_time
async def test_a_latency_that_goes_to_20_seconds_and_back_costs_little(limit: int) -> None:
    loop = virtual.current()
    fast, slow = spread(0.2, 0.4), spread(16, 24)
    local = intercom(limit)

    def latency() -> float:
        return slow() if 60 <= loop.now_s < 240 else fast()

    await Caller(local, limit, latency).run(360)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= limit
    assert share_used(local, 10, 360) >= 0.95


@in_virtual_time
async def test_after_an_hour_without_calls_the_pace_is_full_at_once_and_nothing_is_refused() -> (
    None
):
    local = intercom(1_667, window_offset_s=3.7)
    caller = Caller(local, 1_667, spread(*EVEN))
    await caller.run(30)
    await anyio.sleep(3_600)
    await caller.run(30)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= local.limit
    assert share_used(local, 3_630, 3_660) >= 0.99


@in_virtual_time
async def test_callers_that_share_a_pace_share_one_budget() -> None:
    local = intercom(100)
    pace = Pace(100)
    callers = [Caller(local, 100, spread(*EVEN, seed=n), pace=pace) for n in range(3)]
    async with anyio.create_task_group() as tasks:
        for caller in callers:
            tasks.start_soon(caller.run, 60)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= 100
    assert share_used(local, 10, 60) >= 0.99


# headers that tell nothing, or nonsense


def nonsense(**fields: int | None) -> Callable[[RateHeaders], RateHeaders]:
    return lambda rate: msgspec.structs.replace(rate, **fields)


NONSENSE = {
    "absent": nonsense(limit=None, remaining=None, reset_at_s=None),
    "only limit": nonsense(remaining=None, reset_at_s=None),
    "zero": nonsense(limit=0, remaining=0, reset_at_s=0),
    "nothing remains": nonsense(remaining=0),
    "negative": nonsense(limit=-5, remaining=-5, reset_at_s=-5),
    "huge": nonsense(limit=10**15, remaining=10**15, reset_at_s=10**15),
    "remaining over limit": nonsense(remaining=5_000),
    "reset in the past": nonsense(reset_at_s=1),
    "reset far ahead": nonsense(reset_at_s=10**12),
    "remaining stuck": nonsense(remaining=90),
}


@pytest.mark.parametrize("limit", [100, 1_667])
@pytest.mark.parametrize("name", NONSENSE)
@in_virtual_time
async def test_nonsense_in_headers_changes_nothing(name: str, limit: int) -> None:
    local = intercom(limit, window_offset_s=3.7)
    await Caller(local, limit, spread(*EVEN), distort=NONSENSE[name]).run(70)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= limit
    assert share_used(local, 20, 70) >= 0.99


@pytest.mark.parametrize("remaining", ["before", "after"])
@in_virtual_time
async def test_headers_that_never_change_change_nothing(remaining: Counted) -> None:
    local = intercom(1_667, headers="constant", remaining=remaining)
    await Caller(local, 1_667, spread(*EVEN)).run(70)
    assert local.throttled == 0
    assert share_used(local, 10, 70) >= 0.99


# restarts, and the first answer


@pytest.mark.parametrize(("limit", "configured"), [(7, 7), (83, 83), (83, 1_667), (1_667, 1_667)])
@pytest.mark.parametrize("longest_s", [0.3, 1.2, 4.0, 8.0])
@in_virtual_time
async def test_processes_that_end_and_start_again_stay_within_the_limit_together(
    limit: int, configured: int, longest_s: float
) -> None:
    dice = random.Random(f"{limit} {longest_s}")
    loop = virtual.current()
    local = intercom(limit, window_offset_s=dice.uniform(0, 10))
    await Caller(local, configured, spread(0.05, 0.4)).run(25)
    while loop.now_s < 60:
        await Caller(local, configured, spread(0.05, 0.4)).run(dice.uniform(0.01, longest_s))
        await anyio.sleep(dice.choice([0.0, 0.3]) * dice.random())
    start_s = loop.now_s
    await Caller(local, configured, spread(0.05, 0.4)).run(60)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= limit
    assert share_used(local, start_s + 2, start_s + 60) >= at_least(limit, 58)


@pytest.mark.parametrize("configured", [1, 83, 1_667, 50_000])
@in_virtual_time
async def test_until_the_first_answer_one_call_a_second_leaves(configured: int) -> None:
    local = intercom(1_667)
    caller = Caller(local, configured, lambda: 4.2, max_in_flight=600)
    caller.slots_at_least = 600
    await caller.run(5.5 if configured > 1 else 12)
    at_s = [entry.at_s - virtual.EPOCH_S for entry in local.journal]
    first_s = max(1.0, 10.06 / configured)
    assert at_s[0] == pytest.approx(first_s, abs=1e-3)
    assert sum(t < first_s + 4.1 for t in at_s) == (5 if configured > 1 else 1)


# a limit that changes


@pytest.mark.parametrize("remaining", ["before", "after"])
@in_virtual_time
async def test_a_limit_that_falls_and_rises_while_calls_are_made_is_followed(
    remaining: Counted,
) -> None:
    local = intercom(1_667, remaining=remaining, window_offset_s=3.7)
    caller = Caller(local, 1_667, spread(*EVEN))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run, 150)
        await anyio.sleep(33.5)  # a new window is just about to begin
        local.change_limit(83 * 6)
        await anyio.sleep(60)
        assert share_used(local, 53.7, 93.5) >= 0.985
        local.change_limit(1_667 * 6)
    assert share_used(local, 94, 150) >= 0.98
    assert local.throttled <= 3 + 167 * 0.4  # what was out or not told yet when the limit fell
    assert local.most_calls_in(10.0) <= 1_667


# somebody else


FOREIGN: dict[str, tuple[Share, float]] = {
    "2 %": (lambda at_s: 0.02, 0.1),
    "30 %": (lambda at_s: 0.3, 0.1),
    "60 %": (lambda at_s: 0.6, 0.1),
    "60 % in a lump a second": (lambda at_s: 0.6, 1.0),
    "10 % in a lump each window": (lambda at_s: 0.1, 10.0),
    "30 % in a lump each window": (lambda at_s: 0.3, 10.0),
    "steps": (lambda at_s: (0.0, 0.6, 0.2, 0.4)[int(at_s // 45) % 4], 0.1),
    "waves": (lambda at_s: 0.3 + 0.3 * math.sin(at_s / 20), 0.1),
    "comes and goes": (lambda at_s: 0.6 if at_s % 120 > 60 else 0.0, 0.1),
    "bursts of 2 s": (lambda at_s: 0.6 if at_s % 4 > 2 else 0.0, 0.1),
    "bursts of 5 s": (lambda at_s: 0.6 if at_s % 10 > 5 else 0.0, 0.1),
}


@pytest.mark.parametrize(
    ("limit", "remaining"), [(83, "after"), (100, "after"), (167, "before"), (1_667, "before")]
)
@pytest.mark.parametrize("name", FOREIGN)
@in_virtual_time
async def test_beside_another_client_95_percent_of_the_rest_are_used(
    name: str, limit: int, remaining: Counted
) -> None:
    share, every_s = FOREIGN[name]
    end_s = 190 if limit < 1_000 or name in ("steps", "comes and goes") else 100

    local = intercom(limit, remaining=remaining, window_offset_s=3.7)
    stranger = Stranger(local, share, every_s)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stranger.run)
        await Caller(local, limit, spread(*EVEN)).run(end_s)
        tasks.cancel_scope.cancel()
    assert share_used(local, 10, end_s, stranger) >= 0.95
    assert local.throttled <= 0.02 * len(local.journal)


@pytest.mark.parametrize("share", [0.1, 0.6])
@in_virtual_time
async def test_news_that_are_one_and_a_half_seconds_old_are_enough(share: float) -> None:
    local = intercom(1_667, remaining="after", window_offset_s=3.7)
    stranger = Stranger(local, lambda at_s: share)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stranger.run)
        await Caller(local, 1_667, spread(1.5, 1.5)).run(90)
        tasks.cancel_scope.cancel()
    assert share_used(local, 10, 90, stranger) >= 0.95
    assert local.throttled <= 0.02 * len(local.journal)


# mixtures


@pytest.mark.parametrize("remaining", ["before", "after"])
@in_virtual_time
async def test_restarts_beside_another_client(remaining: Counted) -> None:
    local = intercom(1_667, remaining=remaining, window_offset_s=3.7)
    stranger = Stranger(local, lambda at_s: 0.5)
    dice = random.Random(5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stranger.run)
        while virtual.current().now_s < 120:
            await Caller(local, 1_667, spread(0.05, 0.4)).run(dice.uniform(4, 25))
        tasks.cancel_scope.cancel()
    assert local.throttled <= 0.02 * len(local.journal)


@in_virtual_time
async def crowded(latency: Latency, out_s: float) -> int:
    """Return how many calls are answered 429 when a stranger takes a whole window at once."""
    count = 0

    local = intercom(1_667, window_offset_s=3.7)
    caller = Caller(local, 1_667, latency)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run, 90)
        await anyio.sleep(38)
        local.foreign_calls(1_667)
        await anyio.sleep(out_s + 0.05)
        count = local.throttled
        sent = len(local.journal)
        assert caller.pace.is_ramping
        await anyio.sleep(5.0)
        assert len(local.journal) == sent  # until the reset, 43.7 s and two
    assert local.throttled == count
    assert share_used(local, 60, 90) >= 0.99
    return count


def test_a_429_costs_the_calls_in_flight_and_no_more() -> None:
    assert crowded(spread(0.2, 0.4), 0.4) <= 167 * 0.4
    assert crowded(lambda: 1.0, 1.0) <= 167 * 1.0 + 2


@in_virtual_time
async def test_a_limit_that_falls_in_the_middle_of_a_pause_is_kept_after_it() -> None:
    local = intercom(1_667, window_offset_s=3.7)
    caller = Caller(local, 1_667, spread(*EVEN))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run, 120)
        await anyio.sleep(38)
        local.foreign_calls(1_667)
        await anyio.sleep(2)
        local.change_limit(83 * 6)
        before = local.throttled
    assert local.throttled == before
    times = [entry.at_s - virtual.EPOCH_S for entry in local.journal]
    after = [t for t in times if t >= 45]
    assert max(sum(s <= t < s + 10 for t in after) for s in after) <= 83
    assert share_used(local, 60, 120) >= 0.985
