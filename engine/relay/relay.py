"""One relay: sends requests on to Amplitude as they came, until Amplitude has taken them.

    spool ═► RequestQueue ─► up to ``relay.connections`` at once ─► Amplitude
      ▲                                                                 │
      └──────────── settle, and requeue the events that are left ◄──────┘

Rules
=====
1. One task changes all state: it settles the answers of a round and reads the next requests, both
   in one transaction. Workers make calls only.
2. An event leaves the spool only with the commit that settles it. A cancelled relay has lost
   nothing, and begins again with all that is not settled. One that was drained hands on what it
   knows: another sender of the relay to the same host goes on as it would have.
3. Answers take their consequences (``dispatch``) after that commit, so that no request goes again
   on the ground of an ending that was rolled back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.relay.answers import AnswerKind
from amplitude_intercom.engine.relay.dispatch import Dispatch
from amplitude_intercom.engine.relay.host import RelayState
from amplitude_intercom.engine.relay.part_endings import PartEnding, SentPart
from amplitude_intercom.engine.relay.part_sender import HEAVY_BYTES, PartSender
from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.relay.relayed_form import lost_events
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.relay_requests import WaitingRequest
from amplitude_intercom.transports.amplitude_client import AmplitudeWire

READ: Final = 64
"""Requests that are read at once."""

Requests = Sequence[WaitingRequest]


class RelaySender:
    """See the module's docstring."""

    def __init__(
        self,
        settings: RelaySettings,
        spool: TakerSpool,
        wire: AmplitudeWire,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        earlier: RelaySender | None = None,
    ) -> None:
        """``earlier``: the sender of this relay before; it ends before this one runs."""
        self.settings = settings
        self.spool = spool
        self._now_ms = now_ms
        self._jitter = jitter
        self._parts = PartSender(spool, wire, now_ms, earlier.calls if earlier else None)
        self._news = anyio.Event()
        self._progress = anyio.Event()
        self._ending = self._is_settled = False
        self._earlier = earlier
        self._reset()

    def _reset(self) -> None:
        self._dispatch = Dispatch(self.settings.connections, self._jitter)
        self._answered: list[SentPart] = []
        self._out = 0
        self._may_read = True

    # --- status ---------------------------------------------------------------------------

    @property
    def calls(self) -> Counter[int]:
        """Requests that were sent, by status; 0: no answer."""
        return self._parts.calls

    @property
    def refused_keys(self) -> Mapping[str, str]:
        """API keys that Amplitude refuses now, with its answers."""
        return self._dispatch.keys.said

    @property
    def health(self) -> RelayState:
        """How Amplitude fares, as far as requests have shown."""
        return self._dispatch.health(loop_time_s())

    @property
    def said(self) -> str:
        """The last failure, while it matters."""
        return self._dispatch.said

    @property
    def held(self) -> int:
        """The number of devices and keys that have to wait."""
        return self._dispatch.queue.held

    # --- from outside ---------------------------------------------------------------------

    def _appended(self) -> None:
        self._may_read = True
        self._news.set()

    def drain(self) -> None:
        """Send nothing new; finish the calls that are out."""
        self._ending = True
        self._news.set()
        self._progress.set()

    async def settled(self) -> None:
        """Wait until nothing waits for Amplitude, or the relay drains."""
        # The counters, not the queue: most requests that wait are on disk alone.
        while self.spool.counters["pending"] and not self._ending:
            await self._progress.wait()

    # --- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        """Send until ``drain`` was called and the calls that were out are settled."""
        structlog.contextvars.bind_contextvars(relay=self.settings.name)
        # Not earlier: an earlier sender of this relay may have run until now.
        self.spool.appended = self._appended
        # A supervisor runs this again after a fault of ours: then no memory can be trusted.
        self._reset()
        self._take_over()
        try:
            async with anyio.create_task_group() as calls:
                while not self._ending or self._out:
                    # Before the work, not after it: news that arrives meanwhile must not be lost.
                    self._news = anyio.Event()
                    await self._settle_and_read()
                    self._send_next(calls)
                    await self._rest()
                await self._settle_and_read()
            self._is_settled = True
        finally:
            self.spool.appended = lambda: None

    def _take_over(self) -> None:
        """Go on with what the sender before knows of the host, and of what waits."""
        earlier, self._earlier = self._earlier, None
        if earlier and earlier._is_settled and earlier.settings.host == self.settings.host:
            self._dispatch = earlier._dispatch
            self._dispatch.connections = self.settings.connections

    async def _rest(self) -> None:
        """Wait until something has changed or is due."""
        if self._answered or (self._ending and not self._out):
            return
        if not self._ending and (self._reads_front or self._dispatch.queue.reads_again):
            return
        now_s = loop_time_s()
        next_s = self._dispatch.next_look_s(now_s)
        with anyio.move_on_after(None if next_s is None else max(0.0, next_s - now_s)):
            await self._news.wait()

    def _send_next(self, calls: TaskGroup) -> None:
        now_s = loop_time_s()
        for _ in range(0 if self._ending else self._dispatch.slots(self._out, now_s)):
            part = self._dispatch.next(now_s)
            if part is None:
                return
            # Counted until its answer is settled: the request is first in its devices that long.
            self._out += 1
            calls.start_soon(self._send, part)

    async def _send(self, part: RequestPart) -> None:
        sent = await self._parts.send(part)
        # Looked up only now: each round takes the list away and leaves a new one.
        self._answered.append(sent)
        self._news.set()

    # --- settling and reading -------------------------------------------------------------

    @property
    def _reads_front(self) -> bool:
        return self._may_read and self._dispatch.queue.reads_front

    async def _settle_and_read(self) -> None:
        """Settle the answers that have come, and read the next requests."""
        queue, now_s = self._dispatch.queue, loop_time_s()
        answered, self._answered = self._answered, []
        endings = [await self._ending_of(sent, now_s) for sent in answered]
        queue.wake(now_s)
        reads_front = self._reads_front and not self._ending
        again = queue.again if queue.reads_again and not self._ending else None
        if not reads_front and again is None and not answered:
            return
        # Cleared before the transaction: an append that commits during it must set it again.
        self._may_read = self._may_read and not reads_front
        left, passed_over, new = await self._transact(
            list(zip(answered, endings, strict=True)), again, reads_front=reads_front
        )
        self._progress.set()
        self._progress = anyio.Event()
        self._out -= len(answered)
        for sent, ending, events_left in zip(answered, endings, left, strict=True):
            self._dispatch.follow(sent, ending, events_left, now_s, loop_time_s())
        self._dispatch.add(passed_over)
        if again is not None and len(passed_over) < READ:
            self._dispatch.end_pass()
        # Behind those of the pass, which are older: the end of the pass frees their devices for
        # new requests.
        self._dispatch.add(new)
        self._may_read = self._may_read or len(new) == READ

    async def _transact(
        self, ended: Sequence[tuple[SentPart, PartEnding]], again: int | None, *, reads_front: bool
    ) -> tuple[list[int], Requests, Requests]:
        """Settle and read in one transaction.

        Returns the number of events that are left of each request, the requests behind ``again``
        up to the front, and new ones.
        """
        now_ms, taker, front = self._now_ms(), self.spool.taker, self._dispatch.queue.front

        def work(store: Transaction) -> tuple[list[int], Requests, Requests]:
            left = [
                store.relaying.settle(
                    taker, sent.part.request.id, ending.delivered, ending.lost, now_ms
                )
                for sent, ending in ended
            ]
            passed_over = [] if again is None else store.relayed.next(taker, again, READ)
            new = store.relayed.next(taker, front, READ) if reads_front else []
            return left, [row for row in passed_over if row.id <= front], new

        return await self.spool.persist(work)

    async def _ending_of(self, sent: SentPart, now_s: float) -> PartEnding:
        """Return the events that it settles."""
        lost = self._dispatch.judge(sent, now_s, self._now_ms())
        if sent.verdict.kind is AnswerKind.TAKEN:
            return PartEnding(delivered=sent.part.indexes)
        if not lost:
            return PartEnding()
        if sent.original is not None and len(sent.original.body) > HEAVY_BYTES:
            return PartEnding(lost=await asyncio.to_thread(lost_events, sent.original, lost))
        return PartEnding(lost=lost_events(sent.original, lost))
