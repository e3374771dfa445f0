"""Figures of a server's requests: counted by endpoint and answer, and timed.

A status of 0 is a request that ended without an answer: its client has gone, or the server ends.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Upper bounds of the buckets of durations, in seconds."""


class Timing:
    """One request; its ``status`` is set once it is answered."""

    def __init__(self) -> None:
        self.status = 0


class HttpFigures:
    """Figures of all requests since the start; they only grow."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        """``now_s``: a clock that does not jump."""
        self._now_s = now_s
        self.requests: Counter[tuple[str, int]] = Counter()
        """By endpoint and status."""
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        """Requests by duration, with one more entry than ``BOUNDS_S`` for all longer ones."""
        self.sum_s = 0.0
        """The sum of all durations, in seconds."""

    @contextmanager
    def request(self, endpoint: str) -> Iterator[Timing]:
        """Count a request when the context ends."""
        timing, began_s = Timing(), self._now_s()
        try:
            yield timing
        finally:
            took_s = self._now_s() - began_s
            self.requests[endpoint, timing.status] += 1
            self.buckets[bisect_left(BOUNDS_S, took_s)] += 1
            self.sum_s += took_s
