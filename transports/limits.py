"""Limits of the HTTP source: bytes of bodies held at once, and the rate of one API key.

``ByteBudget`` gives memory to request bodies as they arrive:

- The request that has waited longest is considered first; the next ones get bytes if it does not
  fit, so that a large one at the head does not stop small ones.
- Large requests leave a half of the budget to small ones.
- All requests of one address together get a half at most.
- The oldest request is always granted its bytes, even beyond the budget. Otherwise requests that
  are all half read could wait for each other for ever; each becomes the oldest in time.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Final, Self

from aiolimiter import AsyncLimiter

from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.upload_answers import TOO_LARGE, BadUpload

LEAST_COST_BYTES: Final = 16_384
"""Least charge of a request, so that the number of small requests is bounded too."""

BURST_S: Final = 10.0
"""Seconds of allowance that may come at once: clients collect events and send them together."""

MAX_KEYS: Final = 1_024
"""API keys with a remembered rate: keys that strangers make up must not fill memory."""

SMALL_BYTES: Final = 262_144
"""A request up to this size may use the whole budget. Usual ones have a quarter of it."""


class HeldBody:
    """Bytes that one request holds of a ``ByteBudget``, until its context ends."""

    def __init__(self, budget: ByteBudget, address: str) -> None:
        self._budget = budget
        self.address = address
        self.size = 0
        self.waits = False
        """Whether it waits for bytes that others hold, or did when it was cancelled."""

    async def grow(self, size: int) -> bool:
        """Hold ``size`` bytes, once they are free; return whether that took a wait."""
        turn = self._budget.take(self, size - self.size)
        if turn is None:
            return False
        self.waits = True
        await turn
        self.waits = False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._budget.give_back(self)


class ByteBudget:
    """Bytes of request bodies that may be held at once; the module's docstring has the rules."""

    def __init__(self, max_bytes: int, small_bytes: int = SMALL_BYTES) -> None:
        self._free = max_bytes
        self._half = max_bytes // 2
        self._small_bytes = small_bytes
        self._held_by: Counter[str] = Counter()
        self._bodies: dict[HeldBody, None] = {}  # in the order of entering
        self._waiting: deque[tuple[asyncio.Future[None], HeldBody, int]] = deque()

    @property
    def held_bytes(self) -> int:
        """Bytes that requests hold now."""
        return self._held_by.total()

    def hold(self, address: str = "") -> HeldBody:
        """Return the share of a request from an address, empty yet."""
        return HeldBody(self, address)

    def take(self, held: HeldBody, size: int) -> asyncio.Future[None] | None:
        """Add ``size`` bytes to a share, or return the future of their grant."""
        # While others wait, a newcomer goes behind them even if its bytes are free.
        if not self._waiting and self._grant(held, size):
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, held, size))
        self._call_in()
        return turn

    def _grant(self, held: HeldBody, size: int) -> bool:
        # The first in the dictionary is the oldest: never refused, or nothing might move on.
        if next(iter(self._bodies), held) is not held and not self._fits(held, size):
            return False
        self._free -= size
        self._held_by[held.address] += size
        held.size += size
        self._bodies.setdefault(held)
        return True

    def _fits(self, held: HeldBody, size: int) -> bool:
        # Judged by the size so far: a slow large upload keeps its bytes long, so it leaves a half.
        kept_free = 0 if held.size + size <= self._small_bytes else self._half
        return size + kept_free <= self._free and self._held_by[held.address] + size <= self._half

    def give_back(self, held: HeldBody) -> None:
        """Return the bytes of a share, and grant them to waiting requests."""
        self._bodies.pop(held, None)
        self._free += held.size
        self._held_by[held.address] -= held.size
        if not self._held_by[held.address]:
            del self._held_by[held.address]
        self._call_in()

    def _call_in(self) -> None:
        """Grant bytes to the waiting requests that fit, the longest wait first."""
        kept: deque[tuple[asyncio.Future[None], HeldBody, int]] = deque()
        for turn, held, size in self._waiting:
            if turn.cancelled():  # its client has gone, or its time is over
                continue
            if self._grant(held, size):
                turn.set_result(None)
            else:
                kept.append((turn, held, size))
        self._waiting = kept


class KeyLimits:
    """Rates of requests and events that one API key may send, each a second; None: any."""

    def __init__(self, requests_per_s: float | None, events_per_s: float | None) -> None:
        self._requests_per_s = requests_per_s
        self._events_per_s = events_per_s
        self._keys: OrderedDict[str, tuple[AsyncLimiter | None, AsyncLimiter | None]] = (
            OrderedDict()
        )

    async def refuse(self, api_key: str, heads: Sequence[Head | BadEvent]) -> BadUpload | None:
        """Charge a request to its key and return None, or return a refusal without a charge.

        Events that still fit are not listed as throttled: the Python SDK holds the listed ones back
        for 30 s and sends the rest at once, the Node SDK holds back all. A request that can never
        fit is too large: then both SDKs send smaller ones.
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
        # Both have capacity, so neither call waits, and no other request can come in between.
        if requests is not None:
            await requests.acquire()
        if events is not None:
            await events.acquire(len(heads))
        return None

    def _limits_of(self, api_key: str) -> tuple[AsyncLimiter | None, AsyncLimiter | None]:
        if api_key not in self._keys:
            self._keys[api_key] = (_limiter(self._requests_per_s), _limiter(self._events_per_s))
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)  # the key that was idle longest
        self._keys.move_to_end(api_key)
        return self._keys[api_key]


def _limiter(per_s: float | None) -> AsyncLimiter | None:
    return None if per_s is None else AsyncLimiter(max(1.0, per_s * BURST_S), BURST_S)


def _throttled(heads: Sequence[Head | BadEvent], fitting: int, per_s: float | None) -> BadUpload:
    """Return the 429 that lists the events from ``fitting`` on, their devices and users."""
    surplus = [head for head in heads[fitting:] if isinstance(head, Head)]
    return BadUpload(
        429,
        "Too many requests for some devices and users",
        eps_threshold=max(1, int(per_s or 0)),
        throttled_devices=Counter(head.device_id for head in surplus if head.device_id),
        throttled_users=Counter(head.user_id for head in surplus if head.user_id),
        throttled_events=list(range(fitting, len(heads))),
    )
