"""The wiring: actors joined by bounded channels, each group of them in a task group.

    Offer ─► FilterActor ─► spool ═► Feed ─► scheduler ─► Mapper ─► UserUpserter ─► EventSender
    (one, for all syncs)     (one a sync)    (one of each for an access token, the last two with
                                              as many workers as have something to do)

The pipeline closes what is read; actors close what they write to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

import anyio
import structlog
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.actor import Workers
from amplitude_intercom.engine.actors.event_sender import EventSender
from amplitude_intercom.engine.actors.filter import Door, FilterActor, only_project
from amplitude_intercom.engine.actors.mapper import Mapper
from amplitude_intercom.engine.actors.source import Offer, SourceActor
from amplitude_intercom.engine.actors.user_upserter import UserUpserter
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.health import Hasten
from amplitude_intercom.engine.delivery.loading import LoadedBytes
from amplitude_intercom.engine.delivery.scheduler import Scheduler, View
from amplitude_intercom.engine.delivery.stream import Delivery, Stream
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.workspace import ME, Workspace
from amplitude_intercom.engine.faults import describe
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

INTAKE_BATCHES = 16
"""Batches between the sources and the filter: enough to keep both busy."""

CHOSEN_LISTS = 64
"""Lists of turns between the scheduler and the mapper, which takes all that waits."""

SENDERS_TURNS = 5
"""Turns of the loop until whoever was about to send when a fault came is in the channel."""


class IntakePipeline:
    """What takes events in for all syncs, running."""

    def __init__(
        self,
        settings: Settings,
        streams: Iterable[Stream],
        spool: Spool,
    ) -> None:
        """``streams``: one for each sync of the settings."""
        self._doors = [door_of(stream) for stream in streams]
        self._drops_oldest = {relay.taker: relay.drops_oldest for relay in settings.relay}
        self._spool = spool
        self._max_event_bytes = settings.max_event_bytes
        self._draining = False
        self._fault = ""
        self._actor: FilterActor | None = None
        inbox, self._offers = anyio.create_memory_object_stream[Offer](INTAKE_BATCHES)
        self.source = SourceActor(
            inbox,
            [sync.name for sync in settings.sync],
            _syncs_by_key(settings),
            lambda: self.stopped,
            _relays_by_key(settings),
        )
        self._supervisor = Supervisor(self._take_in, part="intake")

    async def run(self) -> None:
        """Run until the inbox is closed and drained; after a fault it starts again by itself."""
        await self._supervisor.run()

    def drain(self) -> None:
        """Take nothing more in: what was offered before is worked through."""
        self._draining = True
        self.source.close()
        if self._actor is not None:
            self._actor.draining = True
        self._supervisor.end()

    @property
    def stopped(self) -> str:
        """The fault of this program that keeps events from being taken in; empty: none does."""
        return self._fault or self._supervisor.stopped

    @property
    def faults(self) -> int:
        """How often a fault that belongs to no record has stopped the intake."""
        return self._supervisor.faults

    async def _take_in(self) -> None:
        self._actor = FilterActor(
            self._doors,
            self._spool,
            max_event_bytes=self._max_event_bytes,
            relays=self._drops_oldest,
        )
        self._actor.draining = self._draining
        self._fault = ""
        try:
            await self._actor.run(self._offers)
        except Exception as fault:
            self._fault = describe(fault)
            for _ in range(SENDERS_TURNS):
                self._refuse_waiting(Refused(RefusalReason.INTERNAL, self._fault))
                await asyncio.sleep(0)
            raise

    def _refuse_waiting(self, refused: Refused) -> None:
        """Refuse what waits for the filter: it may stand for a minute, and senders wait with it."""
        with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                self._offers.receive_nowait().ticket.refuse(refused)

    def close(self) -> None:
        """Close the channel, whether it was ever read or not."""
        self.source.close()
        self._refuse_waiting(Refused(RefusalReason.DRAINING))
        self._offers.close()


def _syncs_by_key(settings: Settings) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for sync in settings.sync:
        for key in sync.amplitude_api_keys:
            keys.setdefault(key.reveal(), []).append(sync.name)
    return keys


def _relays_by_key(settings: Settings) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for relay in settings.relay:
        for key in settings.keys_of(relay) if relay.enabled else ():
            keys.setdefault(key.reveal(), []).append(relay.taker)
    return keys


def door_of(stream: Stream) -> Door:
    """Return a sync's side of the filter."""
    return Door(stream.sync.name, stream.rules.admission, only_project(stream.sync))


Ready = Callable[[str], Awaitable[bool]]
"""Waits until a sync may deliver; returns False where it is not to."""


KeepLimit = Callable[[float], Awaitable[None]]
"""Keeps how many calls a window has, as Intercom has said."""

FindWorkspace = Callable[[anyio.Event], Awaitable[Workspace | None]]
"""Returns what the token writes to, as soon as that is known; None: an event was set before."""


class Pipeline:
    """The delivery of all syncs with one access token, running.

    A fault that belongs to no record stops what it happened in, a sync's feed or all of the
    pipeline; that starts again by itself.
    """

    def __init__(
        self,
        gate: Gate,
        streams: Sequence[Stream],
        budget: LoadedBytes,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        keep_limit: KeepLimit,
        find_workspace: FindWorkspace,
    ) -> None:
        """Wire syncs to their gate. ``budget``: of the bytes that all pipelines have loaded.

        ``keep_limit`` keeps the limit that Intercom has named, for the next process.
        """
        self._keep_limit = keep_limit
        self._find_workspace = find_workspace
        self._ending = anyio.Event()
        self._gate = gate
        self._news = asyncio.Event()
        self._scheduler = Scheduler()
        self._deliveries: dict[str, Delivery] = {}
        self._feeds: dict[str, Supervisor] = {}
        for stream in streams:
            name = stream.sync.name
            delivery = Delivery(
                stream,
                gate,
                self._scheduler,
                budget,
                now_ms=now_ms,
                jitter=jitter,
                changed=self._news.set,
            )
            stream.delivery = self._deliveries[name] = delivery
            self._feeds[name] = Supervisor(delivery.feed.run, sync=name, part="delivery")
        self._supervisor = Supervisor(
            self._deliver, syncs=list(self._deliveries)[:3], part="delivery"
        )
        self._circuits: list[str] = []
        gate.changed = self._news.set

    async def run(self, ready: Ready) -> None:
        """Run until all feeds are stopped, and what was under way is settled."""
        self._ready = ready
        await self._supervisor.run()

    def drain(self) -> None:
        """Send nothing new; what is under way is finished."""
        self._ending.set()
        for name, delivery in self._deliveries.items():
            delivery.feed.stop()
            self._feeds[name].end()
        self._supervisor.end()
        self._gate.close()

    def stopped(self, sync: str) -> str:
        """Return the fault of this program that keeps a sync from delivering; empty: none does."""
        return self._supervisor.stopped or self._feeds[sync].stopped

    def faults(self, sync: str) -> int:
        """Return how often a fault that belongs to no record has stopped a sync."""
        return self._supervisor.faults + self._feeds[sync].faults

    # --- delivery -------------------------------------------------------------------------

    async def _deliver(self) -> None:
        if self._supervisor.faults:
            self._forget_turns()
        with ExitStack() as ends:
            async with anyio.create_task_group() as tasks:
                most = self._gate.max_in_flight
                senders = Workers(tasks, EventSender(self._deliveries), most)
                upserters = Workers(tasks, UserUpserter(self._deliveries, senders), most)
                chosen, turns = anyio.create_memory_object_stream[list[Turn]](CHOSEN_LISTS)
                for abandon in (senders.abandon, upserters.abandon, turns.close, chosen.close):
                    ends.callback(abandon)
                tasks.start_soon(Mapper(self._deliveries, upserters, senders).run, turns)
                await self._feed_all(chosen)
                chosen.close()

    async def _feed_all(self, chosen: MemoryObjectSendStream[list[Turn]]) -> None:
        """Run the feeds, and choose turns of what they load, until all of them have ended."""
        async with anyio.create_task_group() as forever:
            forever.start_soon(self._gate.watch_token)
            forever.start_soon(self._keep_limits)
            forever.start_soon(self._enter_workspace)
            forever.start_soon(self._choose, chosen)
            async with anyio.create_task_group() as feeds:
                for name in self._deliveries:
                    feeds.start_soon(self._feed, name)
            forever.cancel_scope.cancel()

    async def _enter_workspace(self) -> None:
        """Let deliveries make calls as soon as it is known what the token writes to."""
        self._gate.health.awaited.add(ME)
        workspace = await self._find_workspace(self._ending)
        if workspace is None:
            return
        for delivery in self._deliveries.values():
            delivery.enter(workspace)
        self._gate.health.awaited.discard(ME)
        self._news.set()
        try:
            await anyio.sleep_forever()
        finally:
            workspace.attributes.stop()

    def _forget_turns(self) -> None:
        """Take in that all actors were stopped: what was under way is on disk as it was."""
        self._scheduler.forget_all()
        self._gate.health.end_probes()
        for delivery in self._deliveries.values():
            delivery.settlement.forget_turns()

    async def _keep_limits(self) -> None:
        while True:
            await self._keep_limit(await self._gate.next_limit())

    async def _feed(self, name: str) -> None:
        structlog.contextvars.bind_contextvars(sync=name)
        if await self._ready(name):
            await self._feeds[name].run()

    async def _choose(self, chosen: MemoryObjectSendStream[list[Turn]]) -> None:
        """Choose turns as calls may leave, for ever."""
        while True:
            self._news.clear()
            now_s = loop_time_s()
            self._pass_news_on(now_s)
            turns = [*self._probes(now_s), *self._next(now_s)]
            if turns:
                await chosen.send(turns)
                for sync in {turn.sync for turn in turns}:
                    self._deliveries[sync].feed.look()
            else:
                await self._rest(now_s)

    def _pass_news_on(self, now_s: float) -> None:
        for news in self._gate.take_news(now_s):
            settlement = self._deliveries[news.who[0]].settlement
            if isinstance(news, Hasten):
                settlement.hasten(news.who[1], news.at_s - now_s)
            else:
                settlement.charge(news.who[1], news.endpoint, stands=news.stands)
        circuits = self._gate.health.open_circuits
        if circuits != self._circuits or self._gate.health.wanting_probe(now_s):
            self._circuits = circuits
            for delivery in self._deliveries.values():
                delivery.feed.look()

    def _probes(self, now_s: float) -> list[Turn]:
        """Choose who finds out whether endpoints are well whose circuits are open."""
        health, turns = self._gate.health, []
        for endpoint in [] if self._gate.is_standing else health.wanting_probe(now_s):
            found = health.of(endpoint)
            turn = self._scheduler.choose_probe(endpoint, found.has_served)
            if turn is not None:
                found.circuit.probing = turn.who
                turns.append(turn)
        return turns

    def _next(self, now_s: float) -> list[Turn]:
        """Choose as many turns as calls may leave soon."""
        gate, scheduler = self._gate, self._scheduler
        most = gate.max_in_flight - scheduler.calls_at_work
        free = min(gate.free(scheduler.undeparted, now_s), most)
        if free <= 0:
            return []
        most_probes = max(1, gate.slots() // 2)
        view = View(gate.health.open_circuits, most_probes, not gate.pace.is_ramping)
        turns: list[Turn] = []
        while len(turns) < free and (turn := scheduler.choose(view)) is not None:
            turns.append(turn)
        return turns

    async def _rest(self, now_s: float) -> None:
        """Wait until something has changed, or is due."""
        due_s = [self._gate.look_again_s(now_s), self._gate.health.next_look_s()]
        next_s = min((at_s for at_s in due_s if at_s is not None), default=None)
        with anyio.move_on_after(None if next_s is None else max(0.0, next_s - now_s)):
            await self._news.wait()
