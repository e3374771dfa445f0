"""The wiring: actors joined by bounded channels, each group of them in a task group.

    Offer ─► FilterActor ─► spool ═► Feed ─► MapperActor ─► Lanes ─┬► UserUpserter ─► EventSender
    (one, for all syncs)             (one pipeline a sync)         └► … (one pair a lane, on demand)

The pipeline closes what is read; actors close what they write to.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.actors.event_sender import EventSender
from amplitude_intercom.engine.actors.filter import Door, FilterActor, only_project
from amplitude_intercom.engine.actors.mapper import MapperActor
from amplitude_intercom.engine.actors.source import Offer
from amplitude_intercom.engine.actors.user_upserter import UserUpserter
from amplitude_intercom.engine.attributes import Attributes
from amplitude_intercom.engine.contacts import Contacts
from amplitude_intercom.engine.envelope import Envelope, Record
from amplitude_intercom.engine.event_names import EventNames
from amplitude_intercom.engine.faults import describe
from amplitude_intercom.engine.gate import Gate
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.spool import Spool, TakerSpool
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

INTAKE_BATCHES = 16
"""Batches between the sources and the filter: enough to keep both busy."""

FEED_BATCHES = 2
"""Batches of records between the feed and the mapper; the feed bounds what is loaded."""

SENDERS_TURNS = 5
"""Turns of the loop until whoever was about to send when a fault came is in the channel."""


class IntakePipeline:
    """What takes events in for all syncs, running."""

    def __init__(
        self,
        doors: Iterable[Door],
        spool: Spool,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        self._doors = list(doors)
        self._spool = spool
        self._max_event_bytes = max_event_bytes
        self._draining = False
        self._fault = ""
        self._actor: FilterActor | None = None
        self.inbox, self._offers = anyio.create_memory_object_stream[Offer](INTAKE_BATCHES)
        self._supervisor = Supervisor(self._take_in, part="intake")

    async def run(self) -> None:
        """Run until the inbox is closed and drained; after a fault it starts again by itself."""
        await self._supervisor.run()

    def drain(self) -> None:
        """Do not start again after a fault."""
        self._draining = True
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
        self._actor = FilterActor(self._doors, self._spool, max_event_bytes=self._max_event_bytes)
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
        self.inbox.close()
        self._refuse_waiting(Refused(RefusalReason.DRAINING))
        self._offers.close()


class Pipeline:
    """One sync, running: its rules, its part of the spool and, where enabled, its delivery."""

    def __init__(
        self,
        sync: Sync,
        spool: TakerSpool,
        gate: Gate | None,
        now_ms: Callable[[], int],
        *,
        most_lanes: int = 8_192,
    ) -> None:
        """Wire a sync; without a gate nothing is delivered (a sync that is disabled)."""
        self.sync = sync
        self.spool = spool
        self.gate = gate
        self.rules = SyncRules(sync)
        self._now_ms = now_ms
        self._lanes = min(sync.delivery.lanes, most_lanes)
        self.adjusted = spool.feed.adjusted
        """What was changed on the way to Intercom, by reason, since the start."""
        self.names = EventNames(spool, now_ms)
        self.contacts = self._contacts(gate) if gate else None
        self._delivery = Supervisor(self._deliver, sync=sync.name, part="delivery")

    @property
    def door(self) -> Door:
        """The sync's side of the filter."""
        return Door(self.sync.name, self.rules.admission, only_project(self.sync))

    def _contacts(self, gate: Gate) -> Contacts:
        users = self.sync.users
        attributes = Attributes(
            gate,
            create_missing=users.create_missing_attributes,
            refresh_s=users.refresh_attributes_s,
        )
        return Contacts(
            gate,
            self.spool,
            self.rules.contacts,
            attributes=attributes,
            archived=users.archived,
            adjusted=self.adjusted,
        )

    async def run(self) -> None:
        """Run until the feed is stopped, and what was loaded is settled.

        A fault that belongs to no record stops delivery; it starts again by itself.
        """
        structlog.contextvars.bind_contextvars(sync=self.sync.name)
        if self.gate is not None:
            await self._delivery.run()

    def drain(self) -> None:
        """Send nothing new; what is under way is finished."""
        self.spool.feed.stop()
        self._delivery.end()

    @property
    def stopped(self) -> str:
        """The fault of this program that keeps the sync from delivering now; empty: none does."""
        return self._delivery.stopped

    @property
    def faults(self) -> int:
        """How often a fault that belongs to no record has stopped this sync."""
        return self._delivery.faults

    async def _deliver(self) -> None:
        assert self.gate is not None
        assert self.contacts is not None
        if self._delivery.faults:
            await self.spool.begin_anew()
        records, loaded = anyio.create_memory_object_stream[list[Record]](FEED_BATCHES)
        with ExitStack() as ends:
            ends.enter_context(records)
            ends.enter_context(loaded)
            async with anyio.create_task_group() as tasks:
                lanes = Lanes(
                    tasks,
                    ends,
                    self.sync,
                    self.spool,
                    self.gate,
                    self.contacts,
                    self.names,
                    self._lanes,
                )
                tasks.start_soon(self.spool.feed.run, records)
                mapper = MapperActor(self.rules, self.spool, self.names, lanes)
                await mapper.run(loaded)
                lanes.close()


class Lanes:
    """The users in slices, each strictly in order: lane = hash of the user's key modulo lanes.

    A lane is a user-upserter and an event-sender, started when its first envelope comes. Its
    channel can hold all that the feed may load, so a lane that is slow never stops the mapper.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        ends: ExitStack,
        sync: Sync,
        spool: TakerSpool,
        gate: Gate,
        contacts: Contacts,
        names: EventNames,
        lanes: int,
    ) -> None:
        """Start up to ``lanes`` in ``tasks``, and have their channels closed with ``ends``."""
        self._tasks = tasks
        self._ends = ends
        self._sync = sync
        self._spool = spool
        self._gate = gate
        self._contacts = contacts
        self._names = names
        self._lanes = lanes
        self._inboxes: dict[int, MemoryObjectSendStream[list[Envelope]]] = {}

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """Put envelopes at the end of their users' lanes; there is always space."""
        by_lane: defaultdict[int, list[Envelope]] = defaultdict(list)
        for envelope in envelopes:
            number = zlib.crc32(envelope.record.user_key.encode()) % self._lanes
            by_lane[number].append(envelope)
        for number, some in by_lane.items():
            if number not in self._inboxes:
                self._inboxes[number] = self._start()
            self._inboxes[number].send_nowait(some)

    def close(self) -> None:
        """End the lanes once they have worked through what they hold."""
        for inbox in self._inboxes.values():
            inbox.close()

    def _start(self) -> MemoryObjectSendStream[list[Envelope]]:
        inbox, envelopes = anyio.create_memory_object_stream[list[Envelope]](
            self._sync.delivery.read_ahead
        )
        handover, received = anyio.create_memory_object_stream[list[Envelope]](0)
        for end in (inbox, envelopes, handover, received):
            self._ends.enter_context(end)
        unknown_user = self._sync.events.unknown_user
        upserter = UserUpserter(self._contacts, self._spool, handover)
        sender = EventSender(self._gate, self._contacts, self._spool, unknown_user, self._names)
        self._tasks.start_soon(upserter.run, envelopes)
        self._tasks.start_soon(sender.run, received)
        return inbox
