"""The pace's decisions one by one: slots, pauses and ramp, the limit that is followed, turns."""

from __future__ import annotations

import anyio
import pytest

from amplitude_intercom.engine.delivery.pace import Departures, Pace, pause_s
from amplitude_intercom.engine.delivery.ramp import Ramp
from amplitude_intercom.transports.intercom import Answer, RateHeaders
from support import virtual
from support.virtual import in_virtual_time

NOTHING = RateHeaders(None, None, None)
PLENTY = 1_000


def ramp_after(*waits_s: float) -> Ramp:
    """Return a ramp after answers 429 in a row, each to a call that left when it might."""
    ramp, now_s = Ramp(), 100.0
    for wait_s in waits_s:
        ramp.throttled(wait_s, now_s, now_s)
        now_s = ramp.paused_until_s
    return ramp


@in_virtual_time
async def test_slots_follow_the_latency_and_are_never_under_two() -> None:
    pace = Pace(1_000)
    assert (pace.slots, pace.mean_latency_s) == (2, 0.0)

    pace.learn(NOTHING, 1, 0.0, 0.3)
    assert pace.mean_latency_s == pytest.approx(0.3)
    assert pace.slots == int(100 * 0.3 * 1.5) + 2
    for number in range(100):
        pace.learn(NOTHING, number, 0.0, 20.0)
    assert pace.mean_latency_s > 18


@pytest.mark.parametrize(("limit", "ahead"), [(7, 2), (83, 2), (167, 3), (1_667, 33)])
def test_a_fifth_of_a_second_may_wait_for_the_pace(limit: int, ahead: int) -> None:
    assert Pace(limit).ahead == ahead


def test_a_single_429_pauses_as_long_as_the_server_says() -> None:
    assert ramp_after(0.7).paused_until_s == pytest.approx(100.7)


def test_pauses_in_a_row_double_from_2_s_to_60_and_are_never_shorter_than_the_servers() -> None:
    lengths = [
        ramp_after(*[0.5] * n).paused_until_s - ramp_after(*[0.5] * (n - 1)).paused_until_s
        for n in range(2, 9)
    ]
    assert lengths == pytest.approx([2, 4, 8, 16, 32, 60, 60])
    assert ramp_after(0.5, 9.0).paused_until_s == pytest.approx(109.5)


def test_the_crowd_that_was_out_when_a_pause_began_counts_as_one() -> None:
    ramp = Ramp()
    for n in range(50):
        ramp.throttled(5.0, 99.0, 100.0 + n / 100)
    assert ramp.paused_until_s == pytest.approx(105.49)
    ramp.throttled(10.0, 99.0, 106.0)  # it comes when the pause is over
    assert ramp.paused_until_s == pytest.approx(105.49)
    ramp.throttled(1.0, 106.0, 106.5)
    assert ramp.paused_until_s == pytest.approx(108.5)  # the second in a row


def test_the_ramp_doubles_when_as_many_as_may_be_out_were_answered() -> None:
    ramp = ramp_after(1.0)
    steps = []
    while ramp.step is not None:
        steps.append(ramp.step)
        ramp.answered(101.0, PLENTY)
    assert steps == [step for step in (1, 2, 4, 8, 16, 32, 64) for _ in range(step)]


def test_answers_to_calls_that_left_before_the_pause_do_not_move_the_ramp() -> None:
    ramp = ramp_after(1.0)
    ramp.answered(100.9, PLENTY)
    assert ramp.step == 1


def test_the_ramp_ends_where_it_allows_as_many_calls_as_are_needed() -> None:
    ramp = ramp_after(1.0)
    for _ in range(7):
        ramp.answered(101.0, enough=4)
    assert ramp.step is None


def test_an_answer_after_a_pause_ends_the_row() -> None:
    ramp = ramp_after(1.0, 1.0, 1.0)
    now_s = ramp.paused_until_s
    ramp.answered(now_s, PLENTY)
    ramp.throttled(0.5, now_s, now_s)
    assert ramp.paused_until_s == pytest.approx(now_s + 0.5)


@in_virtual_time
async def test_nothing_may_be_out_in_a_pause_and_one_call_after_it() -> None:
    pace = Pace(100)
    assert (pace.most_out, pace.is_ramping) == (None, False)
    pace.throttled(3.0, 0.0)
    assert (pace.most_out, pace.is_ramping, pace.paused_until_s) == (0, True, 3.0)
    await anyio.sleep(3.1)
    assert (pace.most_out, pace.is_ramping) == (1, True)


def test_calls_that_left_count_against_a_limit_that_falls() -> None:
    departures = Departures()
    for n in range(100):
        departures.add(n / 10)
    assert departures.wait_s(101, 10.0) == 0.0
    assert departures.wait_s(100, 9.95) == pytest.approx(0.051)
    assert departures.wait_s(10, 9.95) == pytest.approx(9.051)


@pytest.mark.parametrize("absurd", [None, 0, -1, 10**6, 10**15])
@in_virtual_time
async def test_absurd_limits_are_passed_over(absurd: int | None) -> None:
    pace = Pace(1_000)
    pace.follow(absurd)
    assert pace.limit == 1_000


@pytest.mark.parametrize(
    ("was", "named", "then"), [(1_667, 1_666, 1_666), (1_666, 1_667, 1_666), (7, 8, 8)]
)
@in_virtual_time
async def test_of_two_roundings_the_lower_limit_counts(was: int, named: int, then: int) -> None:
    pace = Pace(was)
    pace.follow(named)
    assert pace.limit == then


@in_virtual_time
async def test_a_closed_pace_lets_everybody_return_and_counts_no_call() -> None:
    pace = Pace(7)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(pace.turn)
        await anyio.sleep(0.1)
        pace.close()
    await pace.turn()
    assert pace.sent == 0
    assert virtual.current().now_s == pytest.approx(0.1, abs=1e-3)


@in_virtual_time
async def test_a_turn_that_is_cancelled_is_no_departure_and_holds_nobody_up() -> None:
    pace = Pace(100)
    with anyio.move_on_after(0.5):
        await pace.turn()
    assert pace.sent == 0
    await pace.turn()
    assert pace.sent == 1
    assert virtual.current().now_s == pytest.approx(1.0, abs=0.01)


@in_virtual_time
async def test_the_first_answer_wakes_a_turn_that_waits_for_its_second() -> None:
    loop = virtual.current()
    pace = Pace(50_000)
    await pace.turn()
    left_at_s = loop.now_s
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pace.turn)
        await anyio.sleep(0.2)
        pace.learn(RateHeaders(1_667, 1_667, 1), 1, left_at_s, loop.now_s)
    assert loop.now_s - left_at_s < 0.21
    assert (pace.sent, pace.limit) == (2, 1_667)


@in_virtual_time
async def test_a_turn_returns_at_once_where_nothing_is_waited_for() -> None:
    loop = virtual.current()
    pace = Pace(7)
    await pace.turn()
    pace.learn(RateHeaders(100, 100, 1), 1, loop.now_s, loop.now_s)
    await anyio.sleep(60)
    began_s = loop.now_s
    await pace.turn()
    assert loop.now_s == began_s


def test_a_pause_lasts_until_the_reset_by_the_servers_own_clock() -> None:
    headers = {"x-ratelimit-reset": "1800000007", "date": "Fri, 15 Jan 2027 08:00:00 GMT"}
    assert pause_s(Answer(429, headers, b""), 5.0) == 7.0


@pytest.mark.parametrize("reset", ["", "x", "0", "1800000000", "1900000000"])
def test_a_pause_without_a_sane_reset_is_a_window(reset: str) -> None:
    answer = Answer(429, {"x-ratelimit-reset": reset}, b"")
    assert pause_s(answer, virtual.EPOCH_S) == 10.0
