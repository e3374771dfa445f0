"""Which calls have a slot, which have given theirs back, and which is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from amplitude_intercom.engine.delivery.calls_in_flight import (
    GIVEN_UP_S,
    OVERTAKEN_BY,
    SLOW_AT_LEAST_S,
    SLOW_FACTOR,
    CallInFlight,
    CallsInFlight,
)

MOST = 8
EVENTS = "POST /events"
CONTACTS = "PUT /contacts/{id}"
SEARCH = "POST /contacts/search"
FAST_S = 0.1
"""A mean latency at which a call is slow after ``SLOW_AT_LEAST_S``."""


class Rig:
    """Calls that are out, with instants that a test names."""

    def __init__(self, most: int = MOST) -> None:
        self.in_flight = CallsInFlight(most)
        self.given_up: list[int] = []

    def departs(self, endpoint: str = EVENTS, at_s: float = 0.0) -> CallInFlight:
        calls: list[CallInFlight] = []
        calls.append(self.in_flight.depart(endpoint, at_s, lambda: self._give_up(calls[0])))
        return calls[0]

    def _give_up(self, call: CallInFlight) -> None:
        self.given_up.append(call.number)

    def depart(self, count: int, endpoint: str = EVENTS, at_s: float = 0.0) -> list[CallInFlight]:
        return [self.departs(endpoint, at_s) for _ in range(count)]

    def overtake(self, count: int, at_s: float = 0.0) -> None:
        """Let so many calls leave and be answered."""
        for call in self.depart(count, SEARCH, at_s):
            self.in_flight.end(call)

    def counted(self, now_s: float, mean_s: float = FAST_S) -> int:
        return self.in_flight.count(now_s, mean_s)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_call_has_a_slot_from_its_departure_to_its_end(rig: Rig) -> None:
    first, second = rig.depart(2)
    assert rig.counted(0.0) == len(rig.in_flight) == 2
    rig.in_flight.end(first)
    assert rig.counted(0.0) == len(rig.in_flight) == 1
    rig.in_flight.end(second)
    assert rig.counted(0.0) == len(rig.in_flight) == 0


def test_a_call_gives_its_slot_back_after_four_times_the_mean_latency(rig: Rig) -> None:
    rig.departs(at_s=10.0)
    mean_s = 2 * SLOW_AT_LEAST_S
    slow_s = SLOW_FACTOR * mean_s
    assert rig.counted(10.0 + slow_s, mean_s) == 1
    assert rig.counted(10.01 + slow_s, mean_s) == 0
    assert len(rig.in_flight) == 1


def test_however_small_the_mean_latency_is_a_call_keeps_its_slot_for_a_second(rig: Rig) -> None:
    rig.departs()
    assert rig.counted(SLOW_AT_LEAST_S, 0.0) == 1
    assert rig.counted(SLOW_AT_LEAST_S + 0.01, 0.0) == 0


def test_a_slow_call_that_ends_gives_back_no_second_slot(rig: Rig) -> None:
    slow = rig.departs()
    rig.depart(3, at_s=5.0)
    assert rig.counted(5.0) == 3
    rig.in_flight.end(slow)
    assert rig.counted(5.0) == 3


def test_at_one_endpoint_half_of_most_give_their_slots_back(rig: Rig) -> None:
    rig.depart(MOST)
    assert rig.counted(2.0) == MOST // 2
    assert rig.counted(1_000.0) == MOST // 2


def test_in_all_three_quarters_of_most_give_their_slots_back(rig: Rig) -> None:
    for endpoint in (EVENTS, CONTACTS, SEARCH):
        rig.depart(3, endpoint)
    assert rig.counted(2.0) == 9 - MOST * 3 // 4


def test_once_one_of_those_that_gave_theirs_back_has_ended_the_next_one_may(rig: Rig) -> None:
    calls = rig.depart(MOST)
    assert rig.counted(2.0) == MOST // 2
    rig.in_flight.end(calls[0])
    assert rig.counted(2.0) == MOST // 2 - 1
    assert len(rig.in_flight) == MOST - 1


def test_the_oldest_is_given_up_where_no_more_may_give_their_slots_back(rig: Rig) -> None:
    first, *_ = rig.depart(MOST // 2 + 1)
    rig.overtake(OVERTAKEN_BY)
    rig.counted(GIVEN_UP_S)
    assert rig.given_up == [first.number]
    assert first.is_given_up


def test_nothing_is_given_up_while_calls_may_give_their_slots_back(rig: Rig) -> None:
    rig.depart(MOST // 2)
    rig.overtake(100)
    assert rig.counted(1_000.0) == 0
    assert rig.given_up == []


def test_a_call_that_is_out_for_less_than_five_seconds_is_not_given_up(rig: Rig) -> None:
    rig.depart(MOST // 2 + 1)
    rig.overtake(100)
    rig.counted(GIVEN_UP_S - 0.01)
    assert rig.given_up == []


def test_where_nobody_is_answered_nothing_is_given_up(rig: Rig) -> None:
    """An outage is no reason: who is given up would be sent again, and hang again."""
    rig.depart(3 * MOST)
    rig.counted(1_000.0)
    assert rig.given_up == []
    rig.overtake(OVERTAKEN_BY - 1)
    rig.counted(1_000.0)
    assert rig.given_up == []
    rig.overtake(1)
    rig.counted(1_000.0)
    assert rig.given_up == [1]


def test_a_call_is_given_up_once_and_the_next_one_when_it_has_ended(rig: Rig) -> None:
    calls = rig.depart(MOST // 2 + 3)
    rig.overtake(OVERTAKEN_BY)
    for _ in range(3):
        rig.counted(GIVEN_UP_S)
    assert rig.given_up == [calls[0].number]
    rig.in_flight.end(calls[0])
    rig.counted(GIVEN_UP_S)
    assert rig.given_up == [calls[0].number, calls[1].number]


def test_calls_that_hang_at_one_endpoint_leave_slots_to_those_of_others(rig: Rig) -> None:
    """However many there are: each that gets a slot and is slow gives it back or is given up."""
    now_s = 0.0
    hanging: dict[int, CallInFlight] = {}
    for _ in range(500):
        now_s += 1.5
        if rig.counted(now_s) < MOST:
            call = rig.departs(EVENTS, now_s)
            hanging[call.number] = call
        if rig.counted(now_s) < MOST:
            rig.in_flight.end(rig.departs(CONTACTS, now_s))
        while rig.given_up:
            rig.in_flight.end(hanging.pop(rig.given_up.pop()))
    assert len(rig.in_flight) <= MOST + MOST // 2
    assert rig.counted(now_s) <= MOST


def _gave_back_to_young(rig: Rig) -> None:
    rig.counted(2.0)


def _ended(rig: Rig) -> None:
    rig.in_flight.end(rig.in_flight._out[1])


@pytest.mark.parametrize("passed", [_gave_back_to_young, _ended])
def test_the_next_that_may_give_its_slot_back_is_the_oldest_that_has_not(
    passed: Callable[[Rig], None], rig: Rig
) -> None:
    assert rig.in_flight.next_slow_s(FAST_S) is None
    rig.departs(at_s=0.0)
    rig.departs(at_s=1.5)
    assert rig.in_flight.next_slow_s(FAST_S) == SLOW_AT_LEAST_S
    assert rig.in_flight.next_slow_s(1.0) == SLOW_FACTOR * 1.0
    passed(rig)
    assert rig.in_flight.next_slow_s(FAST_S) == 1.5 + SLOW_AT_LEAST_S


def test_memory_of_ended_calls_is_bounded_by_the_window_that_is_read(rig: Rig) -> None:
    rig.overtake(10_000)
    rig.departs()
    rig.counted(0.0)
    assert len(rig.in_flight._young) == 1
