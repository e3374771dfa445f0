"""Figures of the calls of one access token, since the start of the process."""

from __future__ import annotations

from collections import Counter

from amplitude_intercom.engine.histograms import ANSWER_BOUNDS_S, Durations


class CallFigures:
    """Numbers that only grow, and the durations of calls."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, int]] = Counter()
        """Calls made, by endpoint and status (0: no answer)."""
        self.took = Durations(ANSWER_BOUNDS_S)
        """The durations of answered calls."""
        self.pauses = 0
        """Pauses for which a 429 has asked."""

    def note_pause(self) -> None:
        """Count a pause."""
        self.pauses += 1
