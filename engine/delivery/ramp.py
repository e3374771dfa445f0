"""Pauses after answers 429, and how many calls may be out after them.

Rules
=====
- Departures pause until the server's reset. From the second 429 in a row on a pause is 2, 4 … 60 s
  at least: the server's own reset did not help.
- Then one call may be out; once that is answered two, once those are four … up to 64, or as many as
  are needed at the latency that is seen. Then there is no bound.
- Only calls that left after the pause count, on either side. What became of earlier ones tells of a
  window that is past: their 429 is not the second in a row, their 200 does not move the ramp.

Pure: instants are seconds of the caller's clock.
"""

from __future__ import annotations

from typing import Final

LONGEST_PAUSE_S: Final = 60.0
"""A reset that is further away is absurd; nor do pauses in a row grow beyond this."""

SECOND_PAUSE_S: Final = 2.0
MOST_OUT: Final = 64
"""The least length of the second pause in a row; where the ramp ends."""


class Ramp:
    """The present pause and the ramp after it; see the module's rules."""

    def __init__(self) -> None:
        self.paused_until_s = 0.0
        self.step: int | None = None
        """Calls that may be out once the pause is over; None: any number."""
        self._answered = 0
        self._in_a_row = 0
        self._paused_since_s = 0.0

    def throttled(self, wait_s: float, left_at_s: float, now_s: float) -> None:
        """Take in a 429 to a call that left at ``left_at_s``, which asks for a pause.

        One of the crowd that was out when the pause began makes it longer at most; one that comes
        when the pause is over tells nothing.
        """
        if left_at_s < self.paused_until_s:
            if now_s < self.paused_until_s:
                self.paused_until_s = max(self.paused_until_s, now_s + wait_s)
            return
        least_s = SECOND_PAUSE_S * 2 ** (self._in_a_row - 1) if self._in_a_row else 0.0
        self._in_a_row += 1
        self.paused_until_s = now_s + max(wait_s, min(least_s, LONGEST_PAUSE_S))
        self.step, self._answered = 1, 0

    def answered(self, left_at_s: float, enough: int) -> None:
        """Take in another answer; the ramp ends where it allows ``enough`` calls."""
        if self.step is None or left_at_s < self.paused_until_s:
            return
        self._in_a_row = 0
        self._answered += 1
        if self._answered < self.step:
            return
        is_over = self.step >= min(MOST_OUT, enough)
        self.step, self._answered = None if is_over else self.step * 2, 0
