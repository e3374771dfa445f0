"""What rate headers tell of the server's window, answer by answer."""

from __future__ import annotations

from amplitude_intercom.engine.delivery.window import Window
from amplitude_intercom.transports.intercom import RateHeaders

LIMIT = 100


def see(window: Window, number: int, remaining: int, at_s: float, reset: int = 1_010) -> None:
    window.advance(number - 1, at_s)
    window.see(RateHeaders(LIMIT, remaining, reset), number, at_s)


def calls(window: Window, *, first_remaining: int, foreign_each: int = 0, count: int = 80) -> None:
    """Show the answers to a window of calls, ten a second."""
    for n in range(count):
        see(window, n + 1, first_remaining - n * (1 + foreign_each), n / 10)


def test_alone_nobody_is_seen_whether_the_call_itself_is_counted_or_not() -> None:
    for first_remaining in (LIMIT, LIMIT - 1):
        window = Window()
        calls(window, first_remaining=first_remaining)
        assert window.foreign_per_s == 0.0
        assert window.wait_s(80, 7.9, 8.0) == 0.0


def test_the_calls_of_others_are_counted() -> None:
    window = Window()
    calls(window, first_remaining=LIMIT, foreign_each=1, count=45)
    assert 9.5 <= window.foreign_per_s <= 10.0


def test_a_window_that_is_used_up_is_waited_for() -> None:
    window = Window()
    see(window, 1, LIMIT, 0.0)
    see(window, 2, 1, 4.0)  # somebody took 98 at once
    assert window.wait_s(2, 4.0, 4.5) == 5.5
    window.advance(2, 10.0)
    assert window.wait_s(2, 4.0, 10.0) == 0.0


def test_the_next_window_is_counted_before_its_first_answer_is_back() -> None:
    window = Window()
    calls(window, first_remaining=LIMIT)
    window.advance(80, 10.0)
    assert window.wait_s(179, 19.0, 19.5) == 0.0
    assert window.wait_s(180, 19.0, 19.5) == 0.5


def test_a_call_that_was_held_up_on_its_way_does_not_stop_the_younger_ones() -> None:
    window = Window()
    see(window, 1, LIMIT, 0.0)
    for n in range(2, 60):
        if n != 10:
            see(window, n, LIMIT + 1 - n + (n > 10), n / 10)
    window.see(RateHeaders(LIMIT, 42, 1_010), 10, 1.0)
    assert window.wait_s(60, 6.0, 6.1) == 0.0


def test_a_remaining_that_does_not_fall_with_our_calls_is_none() -> None:
    window = Window()
    for n in range(80):
        see(window, n + 1, 50, n / 10)
    assert window.foreign_per_s == 0.0
    assert window.wait_s(200, 8.0, 8.1) == 0.0


def test_a_late_answer_of_an_earlier_window_changes_nothing() -> None:
    window = Window()
    see(window, 1, LIMIT, 0.0)
    see(window, 2, LIMIT, 10.1, reset=1_020)
    window.see(RateHeaders(LIMIT, 1, 1_010), 1, 0.0)
    assert window.wait_s(2, 10.1, 10.2) == 0.0


def test_a_known_way_of_counting_holds_from_the_first_answer() -> None:
    """The first answer of all: five of this window are gone, or four and the call itself."""
    for counts_before, taken in ((True, 5), (False, 4)):
        window = Window(counts_before=counts_before)
        see(window, 1, LIMIT - 5, 0.0)
        assert window._tally.taken == taken


def test_answers_correct_the_remembered_way_of_counting() -> None:
    window = Window(counts_before=False)
    calls(window, first_remaining=LIMIT)
    assert window._counts_before
    changed = Window(counts_before=True)  # and the server counts after by now
    calls(changed, first_remaining=LIMIT - 1)
    assert changed.foreign_per_s == 0.0
