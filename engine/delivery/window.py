"""What `X-RateLimit-*` tell of the server's present window, and so how much of it others take.

Rules
=====
- A window is 10 s and is known by its ``Reset``, which is otherwise opaque: it is compared with
  other resets only, never with a clock of ours.
- ``Remaining`` after our call number *n* says which of our calls is the last that fits, and what is
  missing beside our own calls others have taken. Whether it counts the call that it answers is
  learned: only a server that counts *before* ever says ``Remaining == Limit``. Until that is seen,
  or known from before, one call a window is nobody's, so that an offset of one is never taken for
  somebody else.
- The next window is expected 10 s after this one and its calls are counted from there, before its
  first answer is back. Its answers move its start: the start lies between the last call of the old
  window and the first one of the new.
- The answer to the latest call is believed, not the one with the lowest count: a call that was held
  up on its way to the server is counted after younger ones. A ``Remaining`` that does not fall with
  our own calls is none.
- While nobody else calls, nothing is held back here; the token bucket is enough. Otherwise the rest
  of the window, less what others will take of it, is spread over the time that is left.

Pure: instants are seconds of the caller's clock, calls are numbered as they leave.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from amplitude_intercom.transports.intercom import RateHeaders

WINDOW_S: Final = 10.0
"""Length of Intercom's rate windows (rate limiting page)."""

START_ERROR_S: Final = 1.0
"""How far an expected start may be moved; an answer that says more contradicts itself."""

MEMORY_S: Final = 10.0
LEAST_MEMORY_S: Final = 0.5
"""How far back others' calls are looked at, and how much of that has to have been seen."""

NOISE: Final = 0.005
FEWEST: Final = 2
"""Fewer foreign calls than this share of the limit, or this number, are a mistake in counting."""

MARGIN: Final = 0.005
"""Share of the limit, and one call at least, that is kept clear while others call."""

USUAL_MARGIN: Final = 1.05
"""Others may have taken this much more of the window than they usually do without being seen."""

FALSE: Final = 0.05
FEWEST_FALSE: Final = 8
DISTRUST_S: Final = 60.0
"""A count of foreign calls that falls by more than this share of the limit, and this number, within
a window is of a server that does not count; for how long nothing is concluded then."""

TAPER_S: Final = 3.0
"""At its end a window is no longer kept for others who may not come."""

FLOOR: Final = 0.25
"""Share of what is left that is ours whatever others are expected to take: they may have gone, and
only the answers to our calls tell so."""


class Flow:
    """How many calls a second others made lately."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, int]] = deque()
        self._calls = 0

    def add(self, since_s: float, at_s: float, calls: int) -> None:
        """Take in that ``calls`` were made between two instants.

        ``calls`` is negative where a call of ours turned out to be of an older window than thought.
        """
        self._samples.append((since_s, at_s, calls))
        self._calls += calls
        while at_s - self._samples[0][1] > MEMORY_S:
            self._calls -= self._samples.popleft()[2]

    def per_s(self, limit: int) -> float:
        """Return the mean, at most the whole limit; 0 where there is too little to tell."""
        if self._calls < max(FEWEST, limit * NOISE):
            return 0.0
        seen_s = self._samples[-1][1] - self._samples[0][0]
        return 0.0 if seen_s < LEAST_MEMORY_S else min(self._calls / seen_s, limit / WINDOW_S)


class Tally:
    """What others took of one window, as far as our answers tell."""

    def __init__(self, first: int, since_s: float) -> None:
        """``first``: our first call in it. ``since_s``: its start, infinite where unknown."""
        self.reset: int | None = None
        self.first = first
        self.latest = 0  # the call whose answer told the most recent news
        self.taken = 0
        self.most = 0
        self.at_s = since_s

    def take(self, taken: int, number: int, at_s: float, flow: Flow) -> None:
        """Take in how many calls others had made when call ``number`` left."""
        if not math.isinf(self.at_s):
            flow.add(self.at_s, at_s, taken - self.taken)
        self.latest, self.taken, self.at_s = number, taken, at_s
        self.most = max(self.most, taken)


class Window:
    """The present window, as far as the headers tell; see the module's rules."""

    def __init__(self, *, counts_before: bool = False) -> None:
        """``counts_before``: ``Remaining`` is known to be the value before its call is charged."""
        self._limit = 0
        self._reset: int | None = None
        self._seen = False  # whether the latest reset is the present window's
        self._start_s = 0.0
        self._fits = math.inf
        self._tally = Tally(1, math.inf)
        self._old_tally = self._tally
        self._distrusted_until_s = -math.inf
        self._counts_before = counts_before
        self._flow = Flow()

    def advance(self, sent: int, now_s: float) -> None:
        """Expect the next window where this one's time is over; ``sent`` calls have left."""
        over_s = now_s - self._start_s
        if over_s >= WINDOW_S:
            self._start_s += over_s // WINDOW_S * WINDOW_S
            self._replace_tally(sent + 1, self._start_s)
            self._seen = False

    def _replace_tally(self, first: int, since_s: float) -> None:
        self._old_tally, self._tally = self._tally, Tally(first, since_s)
        self._fits = math.inf

    def see(self, rate: RateHeaders, number: int, left_at_s: float) -> None:
        """Take in the headers of the answer to call ``number``, which left at ``left_at_s``."""
        limit, remaining, reset = rate.limit, rate.remaining, rate.reset_at_s
        if limit is None or remaining is None or reset is None or not 0 < remaining <= limit:
            return
        self._counts_before = self._counts_before or remaining == limit
        own = 0 if self._counts_before else 1
        used = limit - remaining - own - number
        if self._belongs(limit, reset, number, left_at_s):
            if number > self._tally.latest:
                self._fits = number + remaining - 1 + own
                self._take(self._tally, used, number, left_at_s)
        elif reset == self._old_tally.reset and self._old_tally.latest < number:
            self._take(self._old_tally, used, number, left_at_s)

    def _belongs(self, limit: int, reset: int, number: int, left_at_s: float) -> bool:
        """Return whether an answer is of the present window; begin another where it is newer."""
        if self._reset is None or reset > self._reset or limit != self._limit:
            self._begin(limit, reset, number, left_at_s)
        elif reset < self._reset or not self._seen:
            self._begin_after(number, left_at_s)
            return False
        elif left_at_s < self._start_s:
            self._extend(number, left_at_s)
        return True

    def _begin(self, limit: int, reset: int, number: int, left_at_s: float) -> None:
        is_expected = (
            not self._seen
            and limit == self._limit
            and -START_ERROR_S < left_at_s - self._start_s < WINDOW_S
        )
        if not is_expected:
            self._start_s = left_at_s
            self._replace_tally(number, math.inf)  # what was taken before tells no rate
        elif left_at_s < self._start_s:
            self._extend(number, left_at_s)
            self._tally.at_s = left_at_s
        self._limit, self._reset, self._seen = limit, reset, True
        self._tally.reset = reset

    def _extend(self, number: int, left_at_s: float) -> None:
        """Move the start before a call that turned out to be of this window."""
        self._start_s, self._tally.first = left_at_s, min(self._tally.first, number)

    def _begin_after(self, number: int, left_at_s: float) -> None:
        """Move the start behind a call that turned out to be of the window before."""
        if 0 <= left_at_s - self._start_s < START_ERROR_S and number >= self._tally.first:
            self._start_s, self._tally.first = math.nextafter(left_at_s, math.inf), number + 1

    def _take(self, tally: Tally, used: int, number: int, at_s: float) -> None:
        """Count the calls that were used beside our own, where they are a count at all."""
        taken = max(0, used + tally.first)
        if taken < tally.most - max(FEWEST_FALSE, self._limit * FALSE):
            self._distrusted_until_s = at_s + DISTRUST_S
            self._flow = Flow()
        tally.take(taken, number, at_s, self._flow)

    @property
    def foreign_per_s(self) -> float:
        """How many calls a second others make, lately; 0 below what is noise."""
        return self._flow.per_s(self._limit)

    def wait_s(self, sent: int, last_left_s: float, now_s: float) -> float:
        """Return how long the next call has to wait for others' sake; 0 where nobody is seen.

        ``sent`` calls have left, the latest at ``last_left_s``.
        """
        if self._reset is None or now_s < self._distrusted_until_s:
            return 0.0
        left_s = self._start_s + WINDOW_S - now_s
        left = min(self._fits, self._tally.first - 1 + self._limit) - sent
        if left <= 0:
            return left_s
        foreign = self.foreign_per_s
        if not foreign:
            return 0.0
        ours = self._share(left, left_s, foreign, now_s)
        if ours <= 0:
            return left_s
        return max(0.0, min(left_s, last_left_s + left_s / ours - now_s))

    def _share(self, left: float, left_s: float, foreign: float, now_s: float) -> float:
        """Return how many of the calls that are left, as far as was seen, are ours to make.

        Others have made some since, and will make more; no more than they usually make in a window,
        though: who takes his whole share at once is not expected again.
        """
        usual = foreign * WINDOW_S
        unseen = foreign * (now_s - min(now_s, self._tally.at_s))
        unseen = min(unseen, max(0.0, usual * USUAL_MARGIN - self._tally.taken))
        certain = left - unseen - max(1.0, self._limit * MARGIN)
        coming = foreign * left_s * min(1.0, left_s / TAPER_S)
        coming = min(coming, max(0.0, usual - self._tally.taken))
        return max(certain - coming, certain * FLOOR)
