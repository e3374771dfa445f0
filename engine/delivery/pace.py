"""When the next call may leave: as fast as Intercom allows, and no faster.

Rules
=====
Bucket. Calls leave through a token bucket. One of size *b* that fills at rate *r* passes fewer than
b + 10·r calls in any 10 s; b and r are such that this is less than ``Limit`` + 1. A bucket begins
*empty*: what a process sends is then never more than r times its age, so that a window that spans
the end of one process and the start of the next, or of several, is not over the limit either.

First answer. The configured limit is a guess. Until an answer has come, one call a second leaves;
then ``X-RateLimit-Limit`` is followed. The departures of the last 10 s are kept: they count when
the limit turns out to be lower than it was believed to be.

Others. Where ``X-RateLimit-Remaining`` shows that somebody else calls with the token, what is left
is spread over the rest of the server's window (``delivery.window``).

429. Departures pause, and then begin again with one call at once (``delivery.ramp``).

Who calls ``turn`` heeds ``slots``, ``most_out`` and ``paused_until_s``; ``turn`` waits for none of
them. Instants are seconds of the running loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from email.utils import parsedate_to_datetime
from typing import Final

import anyio
from aiolimiter import AsyncLimiter

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.ramp import LONGEST_PAUSE_S, Ramp
from amplitude_intercom.engine.delivery.window import WINDOW_S, Window
from amplitude_intercom.transports.intercom import Answer, RateHeaders, parse_rate

SANE_LIMIT: Final = range(1, 1_000_000)
"""Limits beyond these are absurd, and are passed over."""

ROUNDED_LIMIT: Final = 1_000
"""From here on a limit that rises by one is 10,000 / 6, rounded the other way."""

CATCH_UP_S: Final = 0.03
"""How late a call may be woken without loss: the bucket holds the tokens of this time."""

JITTER_S: Final = 0.03
"""How much less time than another a call may take to the server; a window counts as that longer."""

GUESSING_PER_S: Final = 1.0
"""Calls a second until the first answer has come."""

SPARE_SLOTS: Final = 1.5
FEWEST_SLOTS: Final = 2
"""Slots beyond what the mean latency asks for: as a factor, and as a number."""

AHEAD_S: Final = 0.2
FEWEST_AHEAD: Final = 2
"""How much of the allowance may wait for its departure, in seconds of it, and as turns."""

SOONEST_WEIGHT: Final = 1 / 8
LATEST_WEIGHT: Final = 1 / 32
"""Bounds of the newest latency's weight in the mean."""

LONGEST_NAP_S: Final = 0.1
"""Between looks at what others take."""

CLOCK_GRAIN_S: Final = 0.001
"""A call leaves this much after the window that had no token for it: clocks round."""


class Latency:
    """The mean latency of answered calls, in seconds; 0 before the first."""

    def __init__(self) -> None:
        self.mean_s = 0.0

    def add(self, took_s: float, slots: int) -> None:
        """Take in a latency, with the weight of one in ``slots`` answers.

        About as many answers as there are slots come in one latency's time: so few calls a window
        find a new latency as soon as many do, and many do not jump at each answer.
        """
        weight = min(SOONEST_WEIGHT, max(LATEST_WEIGHT, 1 / slots))
        self.mean_s += (took_s - self.mean_s) * weight if self.mean_s else took_s


class Departures:
    """The instants at which the calls of the last window left."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque()
        self.last_s = -math.inf

    def add(self, now_s: float) -> None:
        self.last_s = now_s
        self._at_s.append(now_s)
        while now_s - self._at_s[0] > WINDOW_S + CLOCK_GRAIN_S:
            self._at_s.popleft()

    def wait_s(self, limit: float, now_s: float) -> float:
        """Return how long until the last 10 s have had fewer calls than the limit."""
        surplus = len(self._at_s) - max(1, int(limit))
        if surplus < 0:
            return 0.0
        return max(0.0, self._at_s[surplus] + WINDOW_S + CLOCK_GRAIN_S - now_s)


class Pace:
    """The pace of one access token: how fast, and how many calls at once. See the module's rules.

    One turn at a time waits at the bucket and the others behind it in a queue, so that a bucket
    that is replaced does not go on letting its own waiters through beside the new one.
    """

    def __init__(
        self, limit: float, *, is_known: bool = False, counts_before: bool = False
    ) -> None:
        """``is_known``: the limit is what an answer has named before, and no guess.

        ``counts_before``: ``Remaining`` is known to be the value before its call is charged.
        """
        self.limit = limit
        """Calls that a window of 10 s may have."""
        self.sent = 0
        """Calls that have left: the number of the latest."""
        self.is_guess = not is_known
        """Whether no answer has named the limit yet."""
        self._bucket = self._new_bucket()
        self._bucket_since_s: float | None = None
        self._is_emptied = False
        self._at_bucket: anyio.CancelScope | None = None
        self._queue = asyncio.Lock()
        self._waiting: set[anyio.CancelScope] = set()
        self._departures = Departures()
        self._window = Window(counts_before=counts_before)
        self._latency = Latency()
        self._ramp = Ramp()
        self.is_closed = False
        """Whether no call leaves any more."""

    def __repr__(self) -> str:
        return f"Pace({self.limit:g} per 10 s, {self.sent} sent, {self.slots} slots)"

    # how many calls at once

    @property
    def mean_latency_s(self) -> float:
        """The mean latency of answered calls, in seconds; 0 before the first."""
        return self._latency.mean_s

    @property
    def slots(self) -> int:
        """Calls that have to be out at once to use the whole limit at the latency that is seen."""
        return int(self.limit / WINDOW_S * self.mean_latency_s * SPARE_SLOTS) + FEWEST_SLOTS

    @property
    def ahead(self) -> int:
        """How many turns may wait for the pace."""
        return max(FEWEST_AHEAD, int(self.limit / WINDOW_S * AHEAD_S))

    @property
    def most_out(self) -> int | None:
        """How many calls may be out on account of answers 429; None: any number."""
        if self._ramp.step is None:
            return None
        return 0 if loop_time_s() < self._ramp.paused_until_s else self._ramp.step

    @property
    def paused_until_s(self) -> float:
        """Until when no call may leave; an instant that is past where there is no pause."""
        return self._ramp.paused_until_s

    @property
    def is_paused(self) -> bool:
        """Whether nothing leaves, as a 429 has asked for."""
        until_s = self._ramp.paused_until_s
        return until_s > 0 and loop_time_s() < until_s

    @property
    def is_ramping(self) -> bool:
        """Whether there is a pause, or the ramp after one: parked users are not probed."""
        return self._ramp.step is not None

    # what answers tell

    def follow(self, limit: int | None) -> None:
        """Take over a limit from a header; absent and absurd ones are passed over.

        So is one that rises by one where that is rounding (rate limiting page): the lower counts.
        """
        if limit is None or limit not in SANE_LIMIT or limit == self.limit:
            return
        if limit != self.limit + 1 or limit < ROUNDED_LIMIT:
            self.limit = limit
            self._replace_bucket()

    def learn(self, rate: RateHeaders, number: int, left_at_s: float, now_s: float) -> None:
        """Take in an answer to call ``number``: its headers, and how long it took."""
        self._latency.add(now_s - left_at_s, self.slots)
        self._window.see(rate, number, left_at_s)
        if self.is_guess:
            self.is_guess = False
            self._replace_bucket()
        self.follow(rate.limit)

    def throttled(self, wait_s: float, now_s: float, left_at_s: float | None = None) -> None:
        """Take in an answer 429 that asks for a pause of ``wait_s``; see ``pause_s``.

        ``left_at_s``: when its call left. Without it, a 429 during a pause counts to the crowd that
        was out when it began, and one after the pause is the next in a row.
        """
        self._ramp.throttled(wait_s, now_s if left_at_s is None else left_at_s, now_s)

    def answered(self, left_at_s: float) -> None:
        """Take in that a call which left at ``left_at_s`` was answered, other than by a 429."""
        self._ramp.answered(left_at_s, self.slots)

    # turns

    async def turn(self) -> None:
        """Wait until one more call may leave, and note that it does.

        Returns at once where nobody and nothing is waited for. Cancelled, no call has left.
        """
        if self.is_closed:
            return
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
        """Let ``turn`` return at once from now on, also to those who wait: no call leaves."""
        self.is_closed = True
        for waiting in list(self._waiting):
            waiting.cancel()

    def _depart(self) -> None:
        self._departures.add(loop_time_s())
        self.sent += 1

    async def _take_token_now(self) -> bool:
        """Take a token where that takes no time and the call may leave at once."""
        await self._empty_new_bucket()
        if not self._bucket.has_capacity() or self._wait_s(loop_time_s()) > 0:
            return False
        await self._bucket.acquire()
        return True

    async def _take_token(self) -> None:
        """Wait for a token; for one of the new bucket where the bucket is replaced meanwhile."""
        taken_from = None
        while taken_from is not self._bucket:
            taken_from = self._bucket
            with anyio.CancelScope() as self._at_bucket:
                await self._empty_new_bucket()
                await taken_from.acquire()

    async def _wait_until_clear(self) -> None:
        """Leave others of the token what they take; news of that may come while we wait."""
        while (wait_s := self._wait_s(loop_time_s())) > 0:  # noqa: ASYNC110 - news are no event
            await anyio.sleep(min(wait_s, LONGEST_NAP_S))

    def _wait_s(self, now_s: float) -> float:
        self._window.advance(self.sent, now_s)
        return max(
            self._window.wait_s(self.sent, self._departures.last_s, now_s),
            self._departures.wait_s(self.limit, now_s),
        )

    # the bucket

    def _per_s(self) -> float:
        per_s = self.limit / (WINDOW_S + CATCH_UP_S + JITTER_S)
        return min(per_s, GUESSING_PER_S) if self.is_guess else per_s

    def _new_bucket(self) -> AsyncLimiter:
        per_s = self._per_s()
        size = 1.0 + CATCH_UP_S * per_s
        return AsyncLimiter(size, size / per_s)

    def _replace_bucket(self) -> None:
        self._bucket, self._bucket_since_s = self._new_bucket(), loop_time_s()
        self._is_emptied = False
        if self._at_bucket is not None:
            self._at_bucket.cancel()

    async def _empty_new_bucket(self) -> None:
        """Take out what a limiter begins with, less what has come in since the bucket is there.

        Does not wait, since nobody has taken any before.
        """
        if self._is_emptied:
            return
        self._is_emptied = True
        since_s = loop_time_s() if self._bucket_since_s is None else self._bucket_since_s
        come_in = (loop_time_s() - since_s) * self._per_s()
        await self._bucket.acquire(max(0.0, self._bucket.max_rate - come_in))


def pause_s(answer: Answer, now_s: float) -> float:
    """Return how long a 429 asks everybody to wait, in seconds.

    Measured on the server's own clock where the answer has a ``Date``; a whole window where
    ``X-RateLimit-Reset`` is absent or absurd.
    """
    reset = parse_rate(answer.headers).reset_at_s
    wait = WINDOW_S if reset is None else reset - _server_time_s(answer, now_s)
    return wait if 0 < wait <= LONGEST_PAUSE_S else WINDOW_S


def _server_time_s(answer: Answer, now_s: float) -> float:
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return now_s  # absent, or no date: it can be any bytes
