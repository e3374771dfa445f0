"""Pauses after answers 429, and the ramp of calls after a pause.

Rules
=====
- Departures pause until the server's reset. From the second 429 in a row on, a pause is at least
  2, 4 … 60 s, because the server's own reset did not help.
- After the pause one call may be out. After its answer two may, after theirs four … up to 64, or
  the number that the mean latency needs. Then there is no bound.
- Only calls that left after the pause count. Answers to earlier calls tell of a past window: their
  429 is not the second in a row, and their 200 does not move the ramp.

Pure: instants are seconds of the caller's clock.
"""

from __future__ import annotations

from typing import Final

LONGEST_PAUSE_S: Final = 60.0
"""The longest pause in a row. A reset further away is absurd."""

SECOND_PAUSE_S: Final = 2.0
"""The least length of the second pause in a row."""

MOST_OUT: Final = 64
"""Calls at the end of the ramp, at most."""


class Ramp:
    """The present pause and the ramp after it. The module's docstring has the rules."""

    def __init__(self) -> None:
        self.paused_until_s = 0.0
        self.step: int | None = None
        """Calls that may be out after the pause; None for any number."""
        self._answered = 0
        self._in_a_row = 0
        self._paused_since_s = 0.0

    def throttled(self, wait_s: float, left_at_s: float, now_s: float) -> bool:
        """Note a 429 that asks for a pause of ``wait_s``, to a call that left at ``left_at_s``.

        Returns whether a pause begins.
        """
        # A call that was out when the pause began can at most make it longer.
        if left_at_s < self.paused_until_s:
            if now_s < self.paused_until_s:
                self.paused_until_s = max(self.paused_until_s, now_s + wait_s)
            return False
        least_s = SECOND_PAUSE_S * 2 ** (self._in_a_row - 1) if self._in_a_row else 0.0
        self._in_a_row += 1
        self.paused_until_s = now_s + max(wait_s, min(least_s, LONGEST_PAUSE_S))
        self.step, self._answered = 1, 0
        return True

    def answered(self, left_at_s: float, enough: int) -> None:
        """Note an answer other than a 429. The ramp ends when it allows ``enough`` calls."""
        if self.step is None or left_at_s < self.paused_until_s:
            return
        self._in_a_row = 0
        self._answered += 1
        if self._answered < self.step:
            return
        is_over = self.step >= min(MOST_OUT, enough)
        self.step, self._answered = None if is_over else self.step * 2, 0
