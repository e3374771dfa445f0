"""Histograms count by bucket, and their percentiles are those of the latest durations."""

from __future__ import annotations

import random

import pytest

from amplitude_intercom.engine.histograms import LATEST, Durations, Histogram


def test_a_duration_counts_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for duration_s in (0.0, 0.1, 0.100001, 1.0, 7.0):
        histogram.add(duration_s)
    assert histogram.value.counts == (2, 2, 1)
    assert histogram.value.sum_s == pytest.approx(8.200001)


def test_a_clock_that_was_set_back_does_not_shrink_the_sum() -> None:
    durations = Durations((0.1,))
    durations.add(2.0)
    durations.add(-5.0)
    assert durations.value.sum_s == 2.0
    assert durations.value.counts == (1, 1)
    assert durations.percentiles()["p50"] == pytest.approx(2.0, rel=0.05)


def test_a_value_does_not_change_with_what_is_recorded_later() -> None:
    histogram = Histogram((0.1,))
    before = histogram.value
    histogram.add(0.05)
    assert (before.counts, histogram.value.counts) == ((0, 0), (1, 0))


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_sorted_durations_within_three_percent(seed: int) -> None:
    chance = random.Random(seed)
    durations, kept = Durations((1.0,)), []
    for _ in range(LATEST + 500):
        kept.append(chance.lognormvariate(0, 2))
        durations.add(kept[-1])
    ordered = sorted(kept[-LATEST:])
    found = durations.percentiles()
    assert found["p50"] == pytest.approx(ordered[LATEST * 50 // 100], rel=0.03)
    assert found["p95"] == pytest.approx(ordered[LATEST * 95 // 100], rel=0.03)


def test_percentiles_forget_what_is_not_among_the_latest() -> None:
    durations = Durations((1.0,))
    for duration_s in [100.0] * 50 + [0.01] * LATEST:
        durations.add(duration_s)
    assert durations.percentiles() == pytest.approx({"p50": 0.01, "p95": 0.01}, rel=0.03)
    assert sum(durations.value.counts) == LATEST + 50


def test_durations_beyond_all_steps_are_taken() -> None:
    durations = Durations((1.0,))
    assert durations.percentiles() == {}
    durations.add(0.0)
    assert durations.percentiles() == {"p50": 0.0, "p95": 0.0}
    durations.add(1e12)
    assert durations.percentiles()["p95"] > 1e6
