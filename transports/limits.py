"""What the HTTP source takes at once, and from one API key."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Final, Self

from aiolimiter import AsyncLimiter

from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.uploads import TOO_LARGE, BadUpload

LEAST_COST_BYTES: Final = 16_384
"""What a request costs at least, so that the number of small ones is bounded too."""

BURST_S: Final = 10.0
"""Seconds whose allowance may come at once: clients collect events and send them together."""

MAX_KEYS: Final = 1_024
"""API keys whose use is remembered: what a stranger makes up must not fill memory."""


SMALL_BYTES: Final = 262_144
"""A request that is no larger may have the whole budget; a usual one has a quarter of this."""


class Hold:
    """What one request of a client holds of a ``ByteBudget``, until its context ends."""

    def __init__(self, budget: ByteBudget, address: str) -> None:
        self._budget = budget
        self.address = address
        self.size = 0
        self.waits = False
        """Whether it waits, or was waiting when it was given up, for bytes that others hold."""

    async def grow(self, size: int) -> bool:
        """Hold ``size`` bytes from now on; waits until they are free. Returns whether it did."""
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
    """Bytes of request bodies that are held at once, as they come in.

    - Whoever waits longest is asked first whether he fits.
    - Large requests leave a half to small ones: a few that are slow must not keep the others out.
    - One address has a half at most: it must not keep the others out either.
    - The oldest request may always go on, even beyond all that: so that requests which are all half
      there do not wait for one another. Each becomes the oldest in time.
    """

    def __init__(self, max_bytes: int, small_bytes: int = SMALL_BYTES) -> None:
        self._free = max_bytes
        self._half = max_bytes // 2
        self._small_bytes = small_bytes
        self._held_by: Counter[str] = Counter()
        self._holds: dict[Hold, None] = {}  # in the order of entering
        self._waiting: deque[tuple[asyncio.Future[None], Hold, int]] = deque()

    def hold(self, address: str = "") -> Hold:
        """Return what a request of an address holds: nothing yet."""
        return Hold(self, address)

    def take(self, hold: Hold, size: int) -> asyncio.Future[None] | None:
        """Add ``size`` bytes to what is held, or return the turn to be waited for."""
        if not self._waiting and self._grant(hold, size):
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, hold, size))
        self._call_in()
        return turn

    def _grant(self, hold: Hold, size: int) -> bool:
        if next(iter(self._holds), hold) is not hold and not self._fits(hold, size):
            return False
        self._free -= size
        self._held_by[hold.address] += size
        hold.size += size
        self._holds.setdefault(hold)
        return True

    def _fits(self, hold: Hold, size: int) -> bool:
        kept_free = 0 if hold.size + size <= self._small_bytes else self._half
        return size + kept_free <= self._free and self._held_by[hold.address] + size <= self._half

    def give_back(self, hold: Hold) -> None:
        """Let others have what is held."""
        self._holds.pop(hold, None)
        self._free += hold.size
        self._held_by[hold.address] -= hold.size
        if not self._held_by[hold.address]:
            del self._held_by[hold.address]
        self._call_in()

    def _call_in(self) -> None:
        """Let in whoever fits, those first that have waited longest."""
        kept: deque[tuple[asyncio.Future[None], Hold, int]] = deque()
        for turn, hold, size in self._waiting:
            if turn.cancelled():
                continue
            if self._grant(hold, size):
                turn.set_result(None)
            else:
                kept.append((turn, hold, size))
        self._waiting = kept


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
        # Bytes are free, so neither of these waits: nobody else can take it in between.
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
