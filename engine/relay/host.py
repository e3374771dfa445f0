"""Whether Amplitude takes requests now: pure, fed with outcomes as they come.

Rules
=====
- ``OPEN``: requests leave. Failures in a row without a success between, of ``MANY`` requests, are
  Amplitude's own, or the way to it: ``OUTAGE``.
- ``OUTAGE``: one request at a time finds out whether it is well again, after pauses that double up
  to ``LONGEST_PAUSE_S``; by turns it is the oldest that may go, and the newest that has not failed
  yet, for the oldest may fail by themselves, by the hundred. Any word of Amplitude opens.
- A plain 429 stops everybody until the time that it names: ``BUSY``. Where the same request has
  had one before, and others were taken since, it is its own, and nobody else waits.
- A failure is charged to its request only where others were taken since that failed last: an outage
  costs nobody an attempt, however long it is.
"""

from __future__ import annotations

from typing import Final

from amplitude_intercom.engine.backoff import probe_delay_s

MANY: Final = 5
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0

OPEN, OUTAGE, BUSY = "open", "outage", "busy"


class Host:
    """See the module's docstring. Times are seconds of any clock that does not jump."""

    def __init__(self) -> None:
        self._failures = 0
        self._until_s = float("-inf")
        self._busy_until_s = float("-inf")
        self.last_taken_s = float("-inf")
        self.said = ""
        """What the last failure was."""

    def state(self, now_s: float) -> str:
        """Return ``OPEN``, ``OUTAGE`` or ``BUSY``."""
        if now_s < self._busy_until_s:
            return BUSY
        return OUTAGE if self._failures >= MANY else OPEN

    def slots(self, most: int, in_flight: int, now_s: float) -> int:
        """Return how many requests may leave now, of which ``in_flight`` are out."""
        state = self.state(now_s)
        if state == BUSY or (state == OUTAGE and now_s < self._until_s):
            return 0
        return max(0, (1 if state == OUTAGE else most) - in_flight)

    def next_look_s(self, now_s: float) -> float | None:
        """Return when it is worth another look; None: whenever something else changes."""
        if now_s < self._busy_until_s:
            return self._busy_until_s
        return self._until_s if self._failures >= MANY and now_s < self._until_s else None

    def spoke(self, now_s: float, *, took: bool) -> None:
        """Take in that Amplitude has spoken; ``took``: and has taken a request."""
        self._failures = 0
        self.said = ""
        if took:
            self.last_taken_s = now_s

    def failed(self, said: str, now_s: float, jitter: float) -> None:
        """Take in that a request had no answer of Amplitude's."""
        self._failures += 1
        self.said = said
        beyond = self._failures - MANY + 1
        if beyond > 0:
            pause_s = probe_delay_s(beyond, FIRST_PAUSE_S, LONGEST_PAUSE_S, jitter)
            self._until_s = now_s + pause_s

    def be_busy(self, said: str, until_s: float) -> None:
        """Take in that Amplitude takes nothing until then."""
        self.said = said
        self._busy_until_s = max(self._busy_until_s, until_s)
