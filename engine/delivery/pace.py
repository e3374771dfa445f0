"""The pace of departures: as fast as Intercom allows, and no faster.

Rules
=====
Bucket. Calls leave through a token bucket. A bucket of size *b* that fills at rate *r* passes fewer
than b + 10·r calls in any 10 s; b and r are chosen so that this is less than ``Limit`` + 1. A
bucket begins *empty*, so a process never sends more than r times its age. Therefore a window that
spans the end of one process and the start of the next, or of several, keeps the limit too.

First answer. The configured limit is a guess. Until the first answer one call a second leaves. Then
``X-RateLimit-Limit`` is followed. The departures of the last 10 s are kept, and count if the limit
proves to be lower than the guess.

Other clients. If ``X-RateLimit-Remaining`` shows other clients with the same token, the remaining
calls are spread over the rest of the server's window (``delivery.window``).

429. Departures pause, and begin again with one call at a time (``delivery.ramp``).

The caller of ``turn`` must respect ``slots``, ``most_out`` and ``paused_until_s``; ``turn`` waits
for none of them. Instants are seconds of the running loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

import anyio
from aiolimiter import AsyncLimiter

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.ramp import LONGEST_PAUSE_S, Ramp
from amplitude_intercom.engine.delivery.window import WINDOW_S, Window
from amplitude_intercom.transports.intercom import Answer, RateHeaders, parse_rate

SANE_LIMIT: Final = range(1, 1_000_000)
"""Limits outside this range are ignored."""

ROUNDED_LIMIT: Final = 1_000
"""From this limit on, a rise by one is rounding: 10,000 / 6 is 1,666 or 1,667."""

CATCH_UP_S: Final = 0.03
"""Seconds that a call may wake late without loss: the bucket holds the tokens of this time."""

JITTER_S: Final = 0.03
"""Seconds by which a call may reach the server faster than another. A window counts as longer."""

GUESSING_PER_S: Final = 1.0
"""Calls a second until the first answer."""

SPARE_SLOTS: Final = 1.5
FEWEST_SLOTS: Final = 2
"""Slots beyond the need of the mean latency, as a factor and as a number."""

AHEAD_S: Final = 0.2
FEWEST_AHEAD: Final = 2
"""The turns that may wait for the pace: seconds of the allowance, and the least number."""

SOONEST_WEIGHT: Final = 1 / 8
LATEST_WEIGHT: Final = 1 / 32
"""Bounds of the weight of a new latency in the mean."""

LONGEST_NAP_S: Final = 0.1
"""Seconds between two looks at the window, for news of other clients."""

CLOCK_GRAIN_S: Final = 0.001
"""Safety margin after a full window; clocks round."""


class Latency:
    """The mean latency of answered calls, in seconds; 0 before the first."""

    def __init__(self) -> None:
        self.mean_s = 0.0

    def add(self, took_s: float, slots: int) -> None:
        """Note a latency, with the weight of one in ``slots`` answers."""
        # About `slots` answers arrive within one latency. So the mean follows a change within the
        # same time at a small limit and at a large one, where a fixed weight would jump.
        weight = min(SOONEST_WEIGHT, max(LATEST_WEIGHT, 1 / slots))
        self.mean_s += (took_s - self.mean_s) * weight if self.mean_s else took_s


class Departures:
    """The instants of the departures in the last 10 s."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque()
        self.last_s = -math.inf

    def add(self, now_s: float) -> None:
        self.last_s = now_s
        self._at_s.append(now_s)
        while now_s - self._at_s[0] > WINDOW_S + CLOCK_GRAIN_S:
            self._at_s.popleft()

    def wait_s(self, limit: float, now_s: float) -> float:
        """Return the seconds until the last 10 s have fewer calls than the limit."""
        surplus = len(self._at_s) - max(1, int(limit))
        if surplus < 0:
            return 0.0
        return max(0.0, self._at_s[surplus] + WINDOW_S + CLOCK_GRAIN_S - now_s)


class Pace:
    """The pace of one access token. The module's docstring has the rules.

    One turn at a time waits at the bucket, and the others queue behind it. So a replaced bucket
    cannot let its own waiters through beside the new one.
    """

    def __init__(
        self, limit: float, *, is_known: bool = False, counts_before: bool = False
    ) -> None:
        """``is_known``: an answer has named the limit before, so it is no guess.

        ``counts_before``: ``Remaining`` is known not to count the call that it answers.
        """
        self.limit = limit
        """Calls allowed in any 10 s."""
        self.sent = 0
        """Calls that have left, which is also the number of the latest."""
        self.is_guess = not is_known
        """Whether no answer has named the limit yet."""
        self._is_named = is_known
        self._bucket = _bucket(_tokens_per_s(limit, is_guess=self.is_guess))
        self._bucket_since_s: float | None = None
        self._is_emptied = False
        self._at_bucket: anyio.CancelScope | None = None
        self._queue = asyncio.Lock()
        self._waiting: set[anyio.CancelScope] = set()
        self._departures = Departures()
        self._window = Window(counts_before=counts_before)
        self._latency = Latency()
        self._ramp = Ramp()
        self.paused: Callable[[], None] = lambda: None
        """Called when a pause begins."""
        self.is_closed = False
        """Whether no further call leaves."""

    # how many calls at once

    @property
    def mean_latency_s(self) -> float:
        """The mean latency of answered calls, in seconds; 0 before the first."""
        return self._latency.mean_s

    @property
    def slots(self) -> int:
        """Calls that must be out at once to use the whole limit at the mean latency."""
        return int(self.limit / WINDOW_S * self.mean_latency_s * SPARE_SLOTS) + FEWEST_SLOTS

    @property
    def ahead(self) -> int:
        """Turns that may wait for the pace."""
        # Few, because a turn that is chosen now would go before a better one that comes later.
        return max(FEWEST_AHEAD, int(self.limit / WINDOW_S * AHEAD_S))

    @property
    def most_out(self) -> int | None:
        """Calls that may be out after a 429; None for any number."""
        if self._ramp.step is None:
            return None
        return 0 if loop_time_s() < self._ramp.paused_until_s else self._ramp.step

    @property
    def paused_until_s(self) -> float:
        """The end of the pause after a 429; an instant in the past without one."""
        return self._ramp.paused_until_s

    @property
    def is_paused(self) -> bool:
        """Whether departures pause after a 429."""
        return 0 < self._ramp.paused_until_s > loop_time_s()

    @property
    def is_ramping(self) -> bool:
        """Whether there is a pause or the ramp after one, in which parked users are not retried."""
        return self._ramp.step is not None

    # what answers tell

    def guess(self, limit: float) -> None:
        """Follow the limit of the settings, as long as no answer has named one."""
        if not self._is_named and limit != self.limit:
            self._set_limit(limit)

    def follow(self, limit: int | None) -> None:
        """Follow a limit from a header; ignore an absent or absurd one."""
        if limit is None or limit not in SANE_LIMIT:
            return
        self._is_named = True
        # Two windows of a minute may round differently (rate limiting page): the lower one counts.
        if limit != self.limit and (limit != self.limit + 1 or limit < ROUNDED_LIMIT):
            self._set_limit(limit)

    def learn(self, rate: RateHeaders, number: int, left_at_s: float, now_s: float) -> None:
        """Note the headers and the latency of the answer to call ``number``."""
        self._latency.add(now_s - left_at_s, self.slots)
        self._window.see(rate, number, left_at_s)
        # Any answer ends the guess, also one without headers: the configured limit holds then.
        if self.is_guess:
            self.is_guess = False
            self._replace_bucket()
        self.follow(rate.limit)

    def throttled(self, wait_s: float, now_s: float, left_at_s: float | None = None) -> None:
        """Note an answer 429 that asks for a pause of ``wait_s`` seconds (``pause_s``). Without
        the departure of its call (``left_at_s``), a 429 during a pause belongs to the calls that
        were out at its begin, and a 429 after the pause is the next in a row."""
        if self._ramp.throttled(wait_s, now_s if left_at_s is None else left_at_s, now_s):
            self.paused()

    def answered(self, left_at_s: float) -> None:
        """Note an answer other than a 429 to a call that left at ``left_at_s``."""
        self._ramp.answered(left_at_s, self.slots)

    # turns

    async def turn(self) -> None:
        """Wait until one more call may leave, and count its departure.

        Returns at once if no token and no other turn has to be waited for. Cancelled, no call has
        left.
        """
        if self.is_closed:
            return
        # The usual case has no lock and no cancel scope. It must not overtake waiting turns.
        if not self._queue.locked() and await self._take_token_now():
            self._depart()
            return
        with anyio.CancelScope() as waiting:
            self._waiting.add(waiting)
            try:
                async with self._queue:
                    await self._take_token()
                    await self._wait_until_clear()
                    self._depart()
            finally:
                self._waiting.discard(waiting)

    def close(self) -> None:
        """Have ``turn`` return at once from now on, for waiting callers too. No call leaves."""
        self.is_closed = True
        for waiting in list(self._waiting):
            waiting.cancel()

    def _depart(self) -> None:
        self._departures.add(loop_time_s())
        self.sent += 1

    async def _take_token_now(self) -> bool:
        """Take a token, if a call may leave at once; return whether it was taken."""
        await self._empty_new_bucket()
        if not self._bucket.has_capacity() or self._wait_s(loop_time_s()) > 0:
            return False
        await self._bucket.acquire()
        return True

    async def _take_token(self) -> None:
        """Wait for a token, of the new bucket if the bucket is replaced meanwhile."""
        taken_from = None
        # A token of the old bucket is worth nothing at the new rate.
        while taken_from is not self._bucket:
            taken_from = self._bucket
            with anyio.CancelScope() as self._at_bucket:
                await self._empty_new_bucket()
                await taken_from.acquire()

    async def _wait_until_clear(self) -> None:
        """Wait until the window and the last departures allow a call."""
        while (wait_s := self._wait_s(loop_time_s())) > 0:  # noqa: ASYNC110 - news are no event
            # Not the whole wait at once: an answer may show that the other clients have stopped.
            await anyio.sleep(min(wait_s, LONGEST_NAP_S))

    def _wait_s(self, now_s: float) -> float:
        self._window.advance(self.sent, now_s)
        return max(
            self._window.wait_s(self.sent, self._departures.last_s, now_s),
            self._departures.wait_s(self.limit, now_s),
        )

    # the bucket

    def _set_limit(self, limit: float) -> None:
        self.limit = limit
        self._replace_bucket()

    def _replace_bucket(self) -> None:
        per_s = _tokens_per_s(self.limit, is_guess=self.is_guess)
        self._bucket, self._bucket_since_s = _bucket(per_s), loop_time_s()
        self._is_emptied = False
        if self._at_bucket is not None:
            self._at_bucket.cancel()

    async def _empty_new_bucket(self) -> None:
        """Remove the tokens that a limiter begins with, but for those earned since; never waits."""
        if self._is_emptied:
            return
        # A full bucket would pass a burst beside the calls that the last process has just sent.
        self._is_emptied = True
        since_s = loop_time_s() if self._bucket_since_s is None else self._bucket_since_s
        earned = (loop_time_s() - since_s) * _tokens_per_s(self.limit, is_guess=self.is_guess)
        await self._bucket.acquire(max(0.0, self._bucket.max_rate - earned))


def _tokens_per_s(limit: float, *, is_guess: bool) -> float:
    # A bucket that is full at the beginning of a window passes CATCH_UP_S more than the rate, and
    # calls reach the server up to JITTER_S closer together than they left.
    per_s = limit / (WINDOW_S + CATCH_UP_S + JITTER_S)
    return min(per_s, GUESSING_PER_S) if is_guess else per_s


def _bucket(per_s: float) -> AsyncLimiter:
    size = 1.0 + CATCH_UP_S * per_s
    return AsyncLimiter(size, size / per_s)


def pause_s(answer: Answer, now_s: float) -> float:
    """Return the seconds of the pause that a 429 asks for.

    A whole window if ``X-RateLimit-Reset`` is absent, past, or over ``LONGEST_PAUSE_S`` away.
    """
    # By the server's own clock if the answer has a `Date`: ours may be wrong.
    reset = parse_rate(answer.headers).reset_at_s
    wait = WINDOW_S if reset is None else reset - _server_time_s(answer, now_s)
    return wait if 0 < wait <= LONGEST_PAUSE_S else WINDOW_S


def _server_time_s(answer: Answer, now_s: float) -> float:
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return now_s  # absent, or not a date: a header can have any bytes
