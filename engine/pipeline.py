"""The wiring of one sync: actors joined by bounded channels in one task group.

    Share ─► FilterActor ─► spool ═► Feed ─► MapperActor ─► Lanes ─┬► UserUpserter ─► EventSender
                                                                  └► … (one pair a lane, on demand)

The pipeline closes what is read; actors close what they write to.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.actor import describe
from amplitude_intercom.engine.actors.event_sender import EventSender
from amplitude_intercom.engine.actors.filter import FilterActor, only_project
from amplitude_intercom.engine.actors.mapper import MapperActor
from amplitude_intercom.engine.actors.source import Share
from amplitude_intercom.engine.actors.user_upserter import UserUpserter
from amplitude_intercom.engine.attributes import Attributes
from amplitude_intercom.engine.contacts import Contacts
from amplitude_intercom.engine.envelope import Envelope, Record
from amplitude_intercom.engine.event_names import EventNames
from amplitude_intercom.engine.gate import Gate
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Drop, Keep
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterQuery, Row
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES, decode_head
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

INTAKE_BATCHES = 16
"""Batches between a source and the filter: enough to keep both busy."""

FEED_BATCHES = 2
"""Batches of records between the feed and the mapper; the feed bounds what is loaded."""


class Pipeline:
    """One sync, running: its intake and, where the sync is enabled, its delivery."""

    def __init__(
        self,
        sync: Sync,
        spool: Spool,
        gate: Gate | None,
        now_ms: Callable[[], int],
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        """Wire a sync; without a gate nothing is delivered (a sync that is disabled)."""
        self.sync = sync
        self.spool = spool
        self.gate = gate
        self.rules = SyncRules(sync)
        self._max_event_bytes = max_event_bytes
        self.adjusted = spool.feed.adjusted
        """What was changed on the way to Intercom, by reason, since the start."""
        self.names = EventNames(spool, now_ms)
        self.contacts = self._contacts(gate) if gate else None
        self.inbox, self._shares = anyio.create_memory_object_stream[Share](INTAKE_BATCHES)
        self._intake = Supervisor(self._take_in, sync=sync.name, part="intake")
        self._delivery = Supervisor(self._deliver, sync=sync.name, part="delivery")

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
        """Run until the inbox is closed and drained, and the feed is stopped.

        A fault that belongs to no record stops delivery, or intake; it starts again by itself.
        """
        structlog.contextvars.bind_contextvars(sync=self.sync.name)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._intake.run)
            if self.gate is not None:
                tasks.start_soon(self._delivery.run)

    def drain(self) -> None:
        """Send nothing new; what is under way is finished."""
        self.spool.feed.stop()
        self._intake.end()
        self._delivery.end()

    @property
    def stopped(self) -> str:
        """The fault of this program that keeps the sync from running now; empty: none does."""
        return self._intake.stopped or self._delivery.stopped

    @property
    def intake_stopped(self) -> str:
        """The fault of this program that keeps the sync from taking events in; empty: none does."""
        return self._intake.stopped

    @property
    def unready(self) -> str:
        """The reason for which events are refused now; empty: they are taken."""
        trouble = self.spool.trouble
        return trouble.reason if trouble else "internal" if self.intake_stopped else ""

    @property
    def faults(self) -> int:
        """How often a fault that belongs to no record has stopped this sync."""
        return self._intake.faults + self._delivery.faults

    async def replay(self, query: DeadLetterQuery) -> Counter[str]:
        """Send dead letters through today's filter again; return how many went where.

        ``replayed``, ``dropped:REASON`` where today's selection drops one, or ``still dead`` where
        one still is no event, or is damaged. A replayed record goes behind all that its user has
        waiting.
        """
        counts = await self.spool.do(
            lambda store: Counter(
                self._replay_one(store, letter) for letter in store.letters.find(query, limit=-1)
            )
        )
        self.spool.feed.notify()
        return counts

    def _replay_one(self, store: Store, letter: DeadLetter) -> str:
        if letter.reason == DeadReason.CORRUPT:
            return "still dead"  # what it says now is not what was accepted
        match self.rules.admission.judge(decode_head(letter.raw), letter.raw):
            case Keep(admitted):
                store.replay(letter, Row(*admitted, letter.raw, None))
                return "replayed"
            case Drop(reason):
                store.discard(letter, reason)
                return f"dropped:{reason}"
        return "still dead"

    async def _take_in(self) -> None:
        actor = FilterActor(
            self.rules.admission,
            self.spool,
            project=only_project(self.sync),
            max_event_bytes=self._max_event_bytes,
        )
        try:
            await actor.run(self._shares)
        except Exception as fault:
            self._refuse_waiting(Refused(RefusalReason.INTERNAL, describe(fault)))
            raise

    def _refuse_waiting(self, refused: Refused) -> None:
        """Refuse what waits for the filter: it may stand for a minute, and senders wait with it."""
        with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                self._shares.receive_nowait().tally.refuse(refused)

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
                    tasks, ends, self.sync, self.spool, self.gate, self.contacts, self.names
                )
                tasks.start_soon(self.spool.feed.run, records)
                mapper = MapperActor(self.rules, self.spool, self.names, lanes)
                await mapper.run(loaded)
                lanes.close()

    def close(self) -> None:
        """Close the intake's channel, whether it ever ran or not."""
        self.inbox.close()
        self._refuse_waiting(Refused(RefusalReason.DRAINING))
        self._shares.close()


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
        spool: Spool,
        gate: Gate,
        contacts: Contacts,
        names: EventNames,
    ) -> None:
        """Start lanes in ``tasks``, and have their channels closed with ``ends``."""
        self._tasks = tasks
        self._ends = ends
        self._sync = sync
        self._spool = spool
        self._gate = gate
        self._contacts = contacts
        self._names = names
        self._inboxes: dict[int, MemoryObjectSendStream[list[Envelope]]] = {}

    def put(self, envelopes: Sequence[Envelope]) -> None:
        """Put envelopes at the end of their users' lanes; there is always space."""
        by_lane: defaultdict[int, list[Envelope]] = defaultdict(list)
        lanes = self._sync.delivery.lanes
        for envelope in envelopes:
            by_lane[zlib.crc32(envelope.record.user_key.encode()) % lanes].append(envelope)
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
