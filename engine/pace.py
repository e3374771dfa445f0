"""When the next call may leave: as fast as Intercom allows, and no faster.

Rules
=====
Calls leave through a token bucket of ``Limit`` per 10 s. A bucket of size *b* that fills at rate
*r* passes b + 10·r in some window of 10 s, so r = (Limit - b) / 10 and no window, wherever it
starts, gets more; b is half a percent of ``Limit``. ``X-RateLimit-Limit`` replaces the first guess
as soon as it is seen. Where ``X-RateLimit-Remaining`` shows that somebody else calls with the
token, what is left is spread over the rest of the server's window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from email.utils import parsedate_to_datetime
from typing import Final

import anyio
from aiolimiter import AsyncLimiter

from amplitude_intercom.transports.intercom import Answer, RateHeaders, parse_rate

WINDOW_S: Final = 10.0
"""Length of Intercom's rate windows (rate limiting page)."""

SANE_LIMIT: Final = range(1, 1_000_000)
LONGEST_PAUSE_S: Final = 60.0
"""Limits and pauses beyond these are absurd, and are passed over."""

FOREIGN_MEMORY_S: Final = 2.0
FOREIGN_NOISE: Final = 0.02
FOREIGN_MARGIN: Final = 0.01
"""How far back others' calls are looked at; shares of a limit that are noise, and kept clear."""

LATENCY_WEIGHT: Final = 1 / 32
SPARE_SLOTS: Final = 1.5
FEWEST_SLOTS: Final = 16
"""Weight of the newest latency in the mean; calls in flight beyond what the mean asks for."""

LONGEST_NAP_S: Final = 0.1
"""Between looks at what others take."""

CLOCK_GRAIN_S: Final = 0.001
"""A call leaves this much after the window that had no room for it: clocks round."""


def loop_time_s() -> float:
    """Return the running loop's clock; ``anyio.current_time`` first finds out whose loop it is."""
    return asyncio.get_running_loop().time()


class Window:
    """What the headers tell of the server's current window, and so how much others take of it.

    ``Remaining`` is the value before the call that it answers was charged (seen on 525 recorded
    answers). So after the answer to call *n* our calls up to number n + Remaining - 1 still fit, if
    nobody else called meanwhile; and what is missing beside our own calls, others have taken.
    Instants are seconds of the loop's clock. Headers that are absent or make no sense tell nothing.
    """

    def __init__(self) -> None:
        self._reset: int | None = None
        self._limit = 0
        self._began_s = 0.0
        self._first = 0
        self._last_fitting = 0
        self._foreign = 0
        self._foreign_before = 0
        self._samples: deque[tuple[float, int]] = deque()

    def see(self, rate: RateHeaders, number: int, left_at_s: float, settled_s: float) -> None:
        """Take in the headers of the answer to call ``number``, which left at ``left_at_s``.

        Answers overtake each other: for ``settled_s`` after a window began, its first call may
        still be unknown, and nothing is concluded about others.
        """
        limit, remaining, reset = rate.limit, rate.remaining, rate.reset_at_s
        if limit is None or remaining is None or reset is None or not 0 < remaining <= limit:
            return
        if self._is_over(left_at_s) or self._reset is None or reset > self._reset:
            self._begin(reset, number, left_at_s)
        elif reset < self._reset:
            return  # a late answer of an earlier window
        self._limit = limit
        self._first = min(self._first, number)
        self._began_s = min(self._began_s, left_at_s)
        fitting = number + remaining - 1
        self._last_fitting = min(self._last_fitting or fitting, fitting)
        self._foreign = max(0, limit - remaining - (number - self._first))
        if left_at_s - self._began_s >= settled_s:
            self._sample(left_at_s)

    def _begin(self, reset: int, number: int, at_s: float) -> None:
        self._foreign_before += self._foreign
        self._reset, self._first, self._began_s = reset, number, at_s
        self._last_fitting = self._foreign = 0

    def _sample(self, at_s: float) -> None:
        self._samples.append((at_s, self._foreign_before + self._foreign))
        while self._samples[-1][0] - self._samples[0][0] > FOREIGN_MEMORY_S:
            self._samples.popleft()

    def _is_over(self, now_s: float) -> bool:
        return now_s >= self._began_s + WINDOW_S

    def foreign_per_s(self) -> float:
        """Return how many calls a second others make, lately; 0 below what is noise."""
        if len(self._samples) < 2:
            return 0.0
        (first_s, before), (last_s, after) = self._samples[0], self._samples[-1]
        if last_s - first_s < FOREIGN_MEMORY_S / 4:
            return 0.0
        per_s = (after - before) / (last_s - first_s)
        return per_s if per_s * WINDOW_S > self._limit * FOREIGN_NOISE else 0.0

    def wait_s(self, sent: int, now_s: float, lag_s: float) -> float:
        """Return how long the next call has to wait for others' sake; 0 where nobody is seen.

        What is left is spread over what is left of the window, less what others will take of it;
        ``lag_s`` is how old the latest news are.
        """
        left_s = self._began_s + WINDOW_S - now_s
        if self._reset is None or not self._last_fitting or left_s <= 0:
            return 0.0
        foreign = self.foreign_per_s()
        left = self._last_fitting - sent
        if left <= 0:
            return left_s
        if not foreign:
            return 0.0
        ours = left - foreign * (left_s + lag_s) - self._limit * FOREIGN_MARGIN
        return min(left_s, left_s / ours if ours > 0 else left_s)


class Pace:
    """The token bucket, following the limit that the server names (calls a window).

    One call at a time waits at the bucket and the others behind it in a queue, so that a bucket
    that is replaced does not go on letting its own waiters through beside the new one. The instants
    of the latest departures are kept, so that no window gets more than the limit either when the
    limit turns out to be lower than it was believed to be.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._bucket = _bucket(limit)
        self._queue = asyncio.Lock()
        self._departures: deque[float] = deque(maxlen=int(limit))
        self._window = Window()
        self.sent = 0
        """Calls that have left: the number of the latest."""
        self._latency_s = 0.0
        self._slowest_s = 0.0
        self._waiting: set[anyio.CancelScope] = set()
        self._closed = False

    def follow(self, limit: int | None) -> None:
        """Take over a limit from a header; absent and absurd ones are passed over.

        So is a difference of one: a sixth of 10,000 is rounded either way (rate limiting page).
        """
        if limit is not None and limit in SANE_LIMIT and abs(limit - self.limit) > 1:
            self.limit = limit
            self._bucket = _bucket(limit)
            self._departures = deque(self._departures, maxlen=limit)

    def learn(self, rate: RateHeaders, number: int, left_at_s: float, now_s: float) -> None:
        """Take in an answer to call ``number``: its headers, and how long it took."""
        took_s = now_s - left_at_s
        self._latency_s += (
            (took_s - self._latency_s) * LATENCY_WEIGHT if self._latency_s else took_s
        )
        self._slowest_s = max(took_s, self._slowest_s * (1 - LATENCY_WEIGHT))
        self.follow(rate.limit)
        self._window.see(rate, number, left_at_s, self._slowest_s)

    @property
    def in_flight(self) -> int:
        """Calls that have to be out at once to use the whole limit at the latency that is seen."""
        return int(self.limit / WINDOW_S * self._latency_s * SPARE_SLOTS) + FEWEST_SLOTS

    async def turn(self) -> None:
        """Wait until one more call may leave; at once where nobody and nothing is waited for."""
        if self._closed:
            return
        if not self._queue.locked() and self._bucket.has_capacity() and self._may_leave():
            await self._bucket.acquire()
            self._departures.append(loop_time_s())
            return
        with anyio.CancelScope() as waiting:
            self._waiting.add(waiting)
            try:
                await self._wait()
            finally:
                self._waiting.discard(waiting)

    async def _wait(self) -> None:
        async with self._queue:
            await self._bucket.acquire()
            await self._wait_for_others()
            await self._wait_for_room()
            self._departures.append(loop_time_s())

    def close(self) -> None:
        """Let ``turn`` return at once from now on, also to those who wait: no call leaves."""
        self._closed = True
        for waiting in list(self._waiting):
            waiting.cancel()

    def _may_leave(self) -> bool:
        now_s = loop_time_s()
        return self._wait_s(now_s) <= 0 and self._until_room_s(now_s) <= 0

    async def _wait_for_others(self) -> None:
        """Leave others of the token what they take; news may come while we wait."""
        while (wait_s := self._wait_s(loop_time_s())) > LONGEST_NAP_S:  # noqa: ASYNC110 - news are no event
            await anyio.sleep(LONGEST_NAP_S)
        if wait_s > 0:
            await anyio.sleep(wait_s)

    async def _wait_for_room(self) -> None:
        """Wait until the window that ends now has had fewer calls than the limit."""
        while (wait_s := self._until_room_s(loop_time_s())) > 0:  # noqa: ASYNC110 - nor is time
            await anyio.sleep(wait_s)

    def _wait_s(self, now_s: float) -> float:
        return self._window.wait_s(self.sent, now_s, self._latency_s)

    def _until_room_s(self, now_s: float) -> float:
        if len(self._departures) < int(self.limit):
            return 0.0
        return self._departures[0] + WINDOW_S + CLOCK_GRAIN_S - now_s


def _bucket(limit: float) -> AsyncLimiter:
    size = max(1.0, limit / 200)
    burst = size if size > 1.0 else 0.0  # the departures that are kept guard small limits alone
    per_s = (limit - burst) / WINDOW_S
    return AsyncLimiter(size, size / per_s)


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
