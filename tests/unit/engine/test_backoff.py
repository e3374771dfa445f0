"""Waits before another try."""

from __future__ import annotations

import itertools

import pytest

from amplitude_intercom.engine.backoff import FIRST_WAIT_S, probe_delay_s, retry_delay_s

HOURS_4 = 4 * 3600.0


@pytest.mark.parametrize("attempts", [2, 3, 10, 20])
def test_the_waits_between_all_attempts_fill_the_window(attempts: int) -> None:
    waits = [retry_delay_s(n, attempts, HOURS_4, 0.5) for n in range(1, attempts)]
    assert sum(waits) == pytest.approx(HOURS_4)
    assert all(longer > wait for wait, longer in itertools.pairwise(waits))


def test_ten_attempts_in_four_hours_start_seconds_apart_and_end_hours_apart() -> None:
    assert 5 < retry_delay_s(1, 10, HOURS_4, 0.5) < 7
    assert 2.3 < retry_delay_s(9, 10, HOURS_4, 0.5) / 3600 < 2.5


@pytest.mark.parametrize("failures", [1, 5, 9])
def test_jitter_moves_a_retry_by_a_tenth_either_way(failures: int) -> None:
    middle = retry_delay_s(failures, 10, HOURS_4, 0.5)
    assert retry_delay_s(failures, 10, HOURS_4, 0.0) == pytest.approx(0.9 * middle)
    assert retry_delay_s(failures, 10, HOURS_4, 1.0) == pytest.approx(1.1 * middle)


def test_more_failures_than_attempts_wait_as_long_as_the_last() -> None:
    assert retry_delay_s(50, 10, 600.0, 0.5) == retry_delay_s(9, 10, 600.0, 0.5)


def test_a_single_attempt_waits_for_the_whole_window() -> None:
    assert retry_delay_s(1, 1, 60.0, 0.5) == pytest.approx(60.0)


@pytest.mark.parametrize("attempts", [11, 14, 20, 30, 1_000, 2_400])
def test_many_attempts_do_not_make_the_first_waits_short(attempts: int) -> None:
    """Thirty attempts once began a hundred nanoseconds apart: 40 calls a second."""
    assert retry_delay_s(1, attempts, HOURS_4, 0.5) == pytest.approx(FIRST_WAIT_S, rel=1e-3)


@pytest.mark.parametrize(("attempts", "window_s"), [(10, 20.0), (30, 170.0), (1_000_000, HOURS_4)])
def test_where_the_window_is_too_short_for_that_all_waits_are_the_same(
    attempts: int, window_s: float
) -> None:
    waits = [retry_delay_s(n, attempts, window_s, 0.5) for n in (1, 2, attempts - 1, attempts)]
    assert waits == pytest.approx([window_s / (attempts - 1)] * 4)


def test_probes_double_up_to_the_longest_wait_and_stay_there() -> None:
    waits = [probe_delay_s(n, 0.5, 10.0, 1.0) for n in (1, 2, 3, 4, 5, 6, 7, 10**6)]
    assert waits == [0.5, 1, 2, 4, 8, 10, 10, 10]


@pytest.mark.parametrize("failures", [1, 3, 100])
def test_a_probe_waits_between_half_and_all_of_the_doubled_pause(failures: int) -> None:
    whole = probe_delay_s(failures, 0.5, 10.0, 1.0)
    assert probe_delay_s(failures, 0.5, 10.0, 0.0) == whole / 2
    assert whole / 2 < probe_delay_s(failures, 0.5, 10.0, 0.4) < whole
