"""The lag of the event loop: how much later than due it runs a timer.

While it lags, no request is answered and no call leaves. A step of the program that takes long, a
machine with too little CPU, and a suspended process all show as lag.
"""

from __future__ import annotations

from typing import Final

import anyio

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.histograms import Histogram

LAG_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Upper bounds of the buckets, in seconds."""

EVERY_S: Final = 0.25
"""Between two timers. Lag that begins and ends between them is not seen."""

RECENT_S: Final = 60.0
"""``longest_s`` looks back at least as far, and at most twice."""


class LoopLag(Histogram):
    """The lags of a timer of 0.25 s, while ``run`` runs; none before."""

    def __init__(self) -> None:
        super().__init__(LAG_BOUNDS_S)
        self._longest_s = 0.0
        self._before_s = 0.0
        """The longest lag of the span before the present one."""
        self._span_began_s = float("-inf")

    @property
    def longest_s(self) -> float:
        """The longest lag of the last minute or two, in seconds."""
        return max(self._longest_s, self._before_s)

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            due_s = loop_time_s() + EVERY_S
            await anyio.sleep(EVERY_S)
            now_s = loop_time_s()
            self.note(max(0.0, now_s - due_s), now_s)

    def note(self, lag_s: float, now_s: float) -> None:
        """Record a lag that was found at ``now_s``, by a clock that does not jump."""
        self.add(lag_s)
        if now_s - self._span_began_s >= RECENT_S:
            self._before_s, self._longest_s = self._longest_s, 0.0
            self._span_began_s = now_s
        self._longest_s = max(self._longest_s, lag_s)
