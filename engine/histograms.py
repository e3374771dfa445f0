"""Histograms of durations: recorded at the cost of two additions, read without sorting.

Rules
=====
1. Counts only grow, so that a monitor can take the difference of two readings.
2. One thread adds; others may read, and find each count as it was at some instant.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgspec

ANSWER_BOUNDS_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets for requests and calls, in seconds."""

DELIVERY_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3_600.0, 21_600.0)
"""Upper bounds of the buckets from accepted to answered, in seconds: an outage takes hours."""

COMMIT_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
"""Upper bounds of the buckets for commits of the spool, in seconds."""

LATEST: Final = 4_096
"""Durations that percentiles are taken of."""

_STEPS: Final = 16
"""Steps of a doubling, so that a percentile is true to about 2 %."""

_SHORTEST_LOG: Final = -14
_LONGEST_LOG: Final = 20
"""Powers of two, in seconds: from 61 µs to 12 days. Durations outside count as these."""

_EDGES_S: Final = [
    2.0 ** (_SHORTEST_LOG + step / _STEPS)
    for step in range((_LONGEST_LOG - _SHORTEST_LOG) * _STEPS + 1)
]
"""The upper ends of all steps but the last, in seconds."""


class HistogramValue(msgspec.Struct, frozen=True):
    """Durations by bucket: ``counts`` has one more entry than ``bounds_s``, for all longer ones."""

    bounds_s: Sequence[float]
    counts: Sequence[int]
    sum_s: float


class Histogram:
    """Durations since it was made, by bucket."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """``bounds_s``: the upper bounds of the buckets, rising."""
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Record a duration."""
        self._counts[bisect_left(self._bounds_s, duration_s)] += 1
        # A wall clock may have been set back meanwhile, and the sum must only grow.
        if duration_s > 0:
            self._sum_s += duration_s

    @property
    def value(self) -> HistogramValue:
        """The counts as of now."""
        return HistogramValue(self._bounds_s, tuple(self._counts), round(self._sum_s, 6))


class Durations(Histogram):
    """A histogram that knows percentiles of the latest 4,096 durations too."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        super().__init__(bounds_s)
        self._latest: deque[int] = deque(maxlen=LATEST)
        self._steps = [0] * (len(_EDGES_S) + 1)
        """The number of the latest durations, by step."""

    def add(self, duration_s: float) -> None:
        """Record a duration."""
        # Written out: it is done for every call and every delivery.
        self._counts[bisect_left(self._bounds_s, duration_s)] += 1
        if duration_s > 0:
            self._sum_s += duration_s
        step, latest, steps = bisect_left(_EDGES_S, duration_s), self._latest, self._steps
        if len(latest) == LATEST:
            steps[latest[0]] -= 1
        latest.append(step)
        steps[step] += 1

    def percentiles(self) -> dict[str, float]:
        """Return p50 and p95 of the latest durations, in seconds; empty before the first."""
        # Sorting them would take half a millisecond, for each of a thousand syncs.
        count = len(self._latest)
        if not count:
            return {}
        up_to = list(accumulate(self._steps))
        return {
            f"p{p}": _middle_s(bisect_left(up_to, min(count - 1, count * p // 100) + 1))
            for p in (50, 95)
        }


def _middle_s(step: int) -> float:
    """Return the middle of a step, in seconds; 0 for the first, which has all that is shorter."""
    return float(f"{2 ** (_SHORTEST_LOG + (step - 0.5) / _STEPS):.3g}") if step else 0.0
