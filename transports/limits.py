"""What the HTTP source takes at once, and from one API key."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiolimiter import AsyncLimiter

from transports.amplitude import BadEvent, Head
from transports.uploads import TOO_LARGE, BadUpload

LEAST_COST_BYTES: Final = 16_384
"""What a request costs at least, so that the number of small ones is bounded too."""

BURST_S: Final = 10.0
"""Seconds whose allowance may come at once: clients collect events and send them together."""

MAX_KEYS: Final = 1_024
"""API keys whose use is remembered: what a stranger makes up must not fill memory."""


class Room:
    """Bytes of request bodies that may be held at once. Who comes first gets in first."""

    def __init__(self, max_bytes: int) -> None:
        self._free = self._max = max_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold room for a body of ``size`` bytes; waits until there is some."""
        cost = min(max(size, LEAST_COST_BYTES), self._max)
        await self._take(cost)
        try:
            yield
        finally:
            self._give_back(cost)

    async def _take(self, cost: int) -> None:
        if not self._waiting and cost <= self._free:
            self._free -= cost
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, cost))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it became our turn in the same moment
                self._give_back(cost)
            self._call_in()
            raise

    def _give_back(self, cost: int) -> None:
        self._free += cost
        self._call_in()

    def _call_in(self) -> None:
        while self._waiting:
            turn, cost = self._waiting[0]
            if not turn.cancelled():
                if cost > self._free:
                    return
                self._free -= cost
                turn.set_result(None)
            self._waiting.popleft()


class KeyLimits:
    """Requests and events that are taken from one API key, a second; None: any number."""

    def __init__(self, requests_per_s: float | None, events_per_s: float | None) -> None:
        self._requests_per_s = requests_per_s
        self._events_per_s = events_per_s
        self._keys: OrderedDict[str, tuple[AsyncLimiter | None, AsyncLimiter | None]] = (
            OrderedDict()
        )

    async def refuse(self, api_key: str, heads: Sequence[Head | BadEvent]) -> BadUpload | None:
        """Charge a request to its key; return the refusal where it is too much, at no charge.

        The Python SDK holds back what is listed as throttled for 30 s and sends the rest at once,
        the Node SDK holds all of it back; so what would still fit is not listed. A request that
        could never fit is too large: both SDKs then send smaller ones.
        """
        if self._requests_per_s is None and self._events_per_s is None:
            return None
        requests, events = self._limits_of(api_key)
        if events is not None and len(heads) > events.max_rate:
            return TOO_LARGE
        if requests is not None and not requests.has_capacity():
            return _throttled(heads, 0, self._requests_per_s)
        if events is not None and not events.has_capacity(len(heads)):
            fitting = next(n for n in range(len(heads), -1, -1) if not n or events.has_capacity(n))
            return _throttled(heads, fitting, self._events_per_s)
        # There is room, so neither of these waits: nobody else can take it in between.
        if requests is not None:
            await requests.acquire()
        if events is not None:
            await events.acquire(len(heads))
        return None

    def _limits_of(self, api_key: str) -> tuple[AsyncLimiter | None, AsyncLimiter | None]:
        if api_key not in self._keys:
            self._keys[api_key] = (_limiter(self._requests_per_s), _limiter(self._events_per_s))
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(api_key)
        return self._keys[api_key]


def _limiter(per_s: float | None) -> AsyncLimiter | None:
    return None if per_s is None else AsyncLimiter(max(1.0, per_s * BURST_S), BURST_S)


def _throttled(heads: Sequence[Head | BadEvent], fitting: int, per_s: float | None) -> BadUpload:
    """Return the 429 that lists the events from ``fitting`` on, and whose they are."""
    surplus = [head for head in heads[fitting:] if isinstance(head, Head)]
    return BadUpload(
        429,
        "Too many requests for some devices and users",
        eps_threshold=max(1, int(per_s or 0)),
        throttled_devices=Counter(head.device_id for head in surplus if head.device_id),
        throttled_users=Counter(head.user_id for head in surplus if head.user_id),
        throttled_events=list(range(fitting, len(heads))),
    )
