"""The server's rate window, read from ``X-RateLimit-*``, and other clients' share of it.

Rules
=====
- A window is 10 s. Its ``Reset`` identifies it and is otherwise opaque: it is compared with other
  resets only, never with a clock.
- ``Remaining`` in the answer to our call *n* gives the last of our calls that fits into the window.
  Calls that are missing and not our own were made by other clients.
- ``Remaining`` may or may not count the call that it answers. Only a server that does *not* count
  it ever says ``Remaining == Limit``. Until that is seen, or known from before, one call a window
  is left out, so that an offset of one is never taken for another client.
- The next window is expected 10 s after this one, and its calls are counted from there before its
  first answer. Its answers move its start, which lies between the last call of the old window and
  the first of the new one.
- The answer to the latest call counts, not the lowest ``Remaining``, because a call that was
  delayed on its way is counted after younger ones. A ``Remaining`` that does not fall with our own
  calls is ignored.
- Without other clients nothing is held back here; the token bucket is enough. With other clients
  the rest of the window, less their expected calls, is spread over the time that is left.

Pure: instants are seconds of the caller's clock, calls are numbered in order of departure.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from amplitude_intercom.transports.intercom import RateHeaders

WINDOW_S: Final = 10.0
"""Length of Intercom's rate windows (rate limiting page)."""

START_ERROR_S: Final = 1.0
"""Seconds that an expected start may be moved. An answer that asks for more is wrong."""

MEMORY_S: Final = 10.0
LEAST_MEMORY_S: Final = 0.5
"""Seconds of other clients' calls that count, and the least seconds for a rate."""

NOISE: Final = 0.005
FEWEST: Final = 2
"""Fewer foreign calls than this share of the limit, or this number, are a counting error."""

MARGIN: Final = 0.005
"""Share of the limit, and at least one call, that is left unused beside other clients."""

USUAL_MARGIN: Final = 1.05
"""Factor by which other clients may exceed their usual calls before an answer shows it."""

FALSE: Final = 0.05
FEWEST_FALSE: Final = 8
DISTRUST_S: Final = 60.0
"""Foreign calls never decrease within a window. If their count falls by more than ``FALSE`` of the
limit, and by more than ``FEWEST_FALSE``, the headers are ignored for ``DISTRUST_S`` seconds."""

TAPER_S: Final = 3.0
"""The last seconds of a window, in which fewer and fewer calls are left for other clients."""

FLOOR: Final = 0.25
"""Share of the remaining calls that is ours in any case. Other clients may have stopped, and only
answers to our own calls can show that."""


class Flow:
    """The recent rate of other clients' calls."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, int]] = deque()
        self._calls = 0

    def add(self, since_s: float, at_s: float, calls: int) -> None:
        """Note that ``calls`` were made between two instants.

        A negative number corrects an earlier one, when a call of ours proves to be of an older
        window.
        """
        self._samples.append((since_s, at_s, calls))
        self._calls += calls
        while at_s - self._samples[0][1] > MEMORY_S:
            self._calls -= self._samples.popleft()[2]

    def per_s(self, limit: int) -> float:
        """Return the mean calls a second, at most the limit's; 0 without enough evidence."""
        if self._calls < max(FEWEST, limit * NOISE):
            return 0.0
        seen_s = self._samples[-1][1] - self._samples[0][0]
        return 0.0 if seen_s < LEAST_MEMORY_S else min(self._calls / seen_s, limit / WINDOW_S)


class Tally:
    """Other clients' calls in one window, as far as our answers show them."""

    def __init__(self, first: int, since_s: float) -> None:
        """``first`` is our first call in it, ``since_s`` its start; infinite if it is not known."""
        self.reset: int | None = None
        self.first = first
        self.latest = 0  # our latest call with an answer
        self.taken = 0
        self.most = 0
        self.at_s = since_s

    def take(self, taken: int, number: int, at_s: float, flow: Flow) -> None:
        """Note the calls that other clients had made when call ``number`` left."""
        if not math.isinf(self.at_s):
            flow.add(self.at_s, at_s, taken - self.taken)
        self.latest, self.taken, self.at_s = number, taken, at_s
        self.most = max(self.most, taken)


class Window:
    """The present window, as far as the headers show it. The module's docstring has the rules."""

    def __init__(self, *, counts_before: bool = False) -> None:
        """``counts_before``: ``Remaining`` is known not to count the call that it answers."""
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
        """Begin the expected next window if this one is over; ``sent`` calls have left."""
        over_s = now_s - self._start_s
        if over_s >= WINDOW_S:
            # Not at its first answer: calls that leave until then are of the new window already.
            self._start_s += over_s // WINDOW_S * WINDOW_S
            self._replace_tally(sent + 1, self._start_s)
            self._seen = False

    def _replace_tally(self, first: int, since_s: float) -> None:
        self._old_tally, self._tally = self._tally, Tally(first, since_s)
        self._fits = math.inf

    def see(self, rate: RateHeaders, number: int, left_at_s: float) -> None:
        """Note the headers of the answer to call ``number``, which left at ``left_at_s``."""
        limit, remaining, reset = rate.limit, rate.remaining, rate.reset_at_s
        if limit is None or remaining is None or reset is None or not 0 < remaining <= limit:
            return
        self._counts_before = self._counts_before or remaining == limit
        # Until that is known, one foreign call may be missed, but none is seen that is not there.
        own = 0 if self._counts_before else 1
        used = limit - remaining - own - number
        if self._belongs(limit, reset, number, left_at_s):
            # Answers overtake each other: an older call's answer is out of date.
            if number > self._tally.latest:
                self._fits = number + remaining - 1 + own
                self._take(self._tally, used, number, left_at_s)
        # A late answer about the last window still tells of other clients' rate.
        elif reset == self._old_tally.reset and self._old_tally.latest < number:
            self._take(self._old_tally, used, number, left_at_s)

    def _belongs(self, limit: int, reset: int, number: int, left_at_s: float) -> bool:
        """Return whether an answer is of the present window; begin a newer one if it shows that."""
        if self._reset is None or reset > self._reset or limit != self._limit:
            self._begin(limit, reset, number, left_at_s)
        # `not _seen`: the known reset is that of the window before the expected one.
        elif reset < self._reset or not self._seen:
            self._begin_after(number, left_at_s)
            return False
        elif left_at_s < self._start_s:
            self._extend(number, left_at_s)
        return True

    def _begin(self, limit: int, reset: int, number: int, left_at_s: float) -> None:
        # The expected window keeps the calls that were counted since its start.
        is_expected = (
            not self._seen
            and limit == self._limit
            and -START_ERROR_S < left_at_s - self._start_s < WINDOW_S
        )
        if not is_expected:
            self._start_s = left_at_s
            self._replace_tally(number, math.inf)  # no start, so earlier foreign calls give no rate
        elif left_at_s < self._start_s:
            self._extend(number, left_at_s)
            self._tally.at_s = left_at_s
        self._limit, self._reset, self._seen = limit, reset, True
        self._tally.reset = reset

    def _extend(self, number: int, left_at_s: float) -> None:
        """Move the start back to a call that proved to be of this window."""
        self._start_s, self._tally.first = left_at_s, min(self._tally.first, number)

    def _begin_after(self, number: int, left_at_s: float) -> None:
        """Move the start behind a call that proved to be of the window before."""
        # Further than `START_ERROR_S` the answer contradicts the length of a window.
        if 0 <= left_at_s - self._start_s < START_ERROR_S and number >= self._tally.first:
            self._start_s, self._tally.first = math.nextafter(left_at_s, math.inf), number + 1

    def _take(self, tally: Tally, used: int, number: int, at_s: float) -> None:
        """Note the calls used beside our own, unless the header proves to be no count."""
        taken = max(0, used + tally.first)
        # Within a window the number can only grow; small steps back come from delayed calls.
        if taken < tally.most - max(FEWEST_FALSE, self._limit * FALSE):
            self._distrusted_until_s = at_s + DISTRUST_S
            self._flow = Flow()
        tally.take(taken, number, at_s, self._flow)

    @property
    def foreign_per_s(self) -> float:
        """Other clients' calls a second, lately; 0 below the noise."""
        return self._flow.per_s(self._limit)

    def wait_s(self, sent: int, last_left_s: float, now_s: float) -> float:
        """Return the seconds that the next call waits because of other clients; 0 without any.

        ``sent`` calls have left, the latest at ``last_left_s``.
        """
        if self._reset is None or now_s < self._distrusted_until_s:
            return 0.0
        left_s = self._start_s + WINDOW_S - now_s
        left = min(self._fits, self._tally.first - 1 + self._limit) - sent
        if left <= 0:
            return left_s  # even without other clients a further call would get a 429
        foreign = self.foreign_per_s
        if not foreign:
            return 0.0
        ours = self._share(left, left_s, foreign, now_s)
        if ours <= 0:
            return left_s
        return max(0.0, min(left_s, last_left_s + left_s / ours - now_s))

    def _share(self, left: float, left_s: float, foreign: float, now_s: float) -> float:
        """Return our share of the ``left`` calls of the window.

        Other clients have made calls since the last answer, and will make more until the end, but
        in all no more than they usually make in a window.
        """
        # Without that bound, a client that makes all its calls at the start of a window would be
        # expected to go on at that rate.
        usual = foreign * WINDOW_S
        unseen = foreign * (now_s - min(now_s, self._tally.at_s))
        unseen = min(unseen, max(0.0, usual * USUAL_MARGIN - self._tally.taken))
        certain = left - unseen - max(1.0, self._limit * MARGIN)
        coming = foreign * left_s * min(1.0, left_s / TAPER_S)
        coming = min(coming, max(0.0, usual - self._tally.taken))
        return max(certain - coming, certain * FLOOR)
