"""Requests are counted and timed, also those without an answer."""

from __future__ import annotations

import pytest

from amplitude_intercom.transports.http_figures import BOUNDS_S, HttpFigures


def test_each_request_is_counted_by_its_answer_and_duration() -> None:
    clock = iter([0.0, 0.003, 10.0, 70.0])
    figures = HttpFigures(lambda: next(clock))
    for status in (200, 503):
        with figures.request("/batch") as timing:
            timing.status = status
    assert figures.requests == {("/batch", 200): 1, ("/batch", 503): 1}
    assert figures.buckets == [0, 1, *[0] * (len(BOUNDS_S) - 2), 1]
    assert figures.sum_s == pytest.approx(60.003)


def test_a_request_that_ends_without_an_answer_is_counted_too() -> None:
    figures = HttpFigures()
    with pytest.raises(ConnectionError), figures.request("/batch"):
        raise ConnectionError
    assert figures.requests == {("/batch", 0): 1}
    assert sum(figures.buckets) == 1
