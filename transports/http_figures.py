"""Figures of a server's requests: counted by endpoint and answer, and timed.

A status of 0 is a request that ended without an answer: its client has gone, or the server ends.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Final, Self

BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Upper bounds of the buckets of durations, in seconds."""


class HttpFigures:
    """Figures of all requests since the start; they only grow."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        """``now_s``: a clock that does not jump."""
        self.now_s = now_s
        self.requests: Counter[tuple[str, int]] = Counter()
        """By endpoint and status."""
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        """Requests by duration, with one more entry than ``BOUNDS_S`` for all longer ones."""
        self.sum_s = 0.0
        """The sum of all durations, in seconds."""

    def request(self, endpoint: str) -> Timing:
        """Return a context; the request is counted when it ends."""
        return Timing(self, endpoint)

    def count(self, endpoint: str, status: int, took_s: float) -> None:
        """Count a request."""
        self.requests[endpoint, status] += 1
        self.buckets[bisect_left(BOUNDS_S, took_s)] += 1
        self.sum_s += took_s


class Timing:
    """The context of one request; its ``status`` is set once it is answered."""

    # A class, not a generator: it is made for every request.
    __slots__ = ("_began_s", "_endpoint", "_figures", "status")

    def __init__(self, figures: HttpFigures, endpoint: str) -> None:
        self._figures = figures
        self._endpoint = endpoint
        self.status = 0

    def __enter__(self) -> Self:
        self._began_s = self._figures.now_s()
        return self

    def __exit__(self, *error: object) -> None:
        took_s = self._figures.now_s() - self._began_s
        self._figures.count(self._endpoint, self.status, took_s)
