"""The spool's delivery side: what is loaded, in which order, and how it is settled.

Rules
=====
1. Records go out in the order of their ids, per user. The queue is read once from front to back;
   what cannot go out when it is met goes *aside* (a mark on the row) with its user.
2. A user is aside because it is **parked** (its call failed; it wakes at a set time), **deferred**
   (its next event has a second that is still to come; it wakes then, and nothing has failed) or
   **crowded** (more of it waits than may be loaded at once). All later records of a user that is
   aside go aside as well, so none overtakes.
3. A parked or deferred user wakes with *one* record, a probe. When a user's loaded records are all
   settled, the next of its records are loaded; when none is left it is free again.
4. Parking or deferring a user **halts** it: its records that are loaded already come back unsent
   (``release``), and it is not woken before the last of them is back.
5. What is loaded is bounded, in records and in bytes, whatever waits on disk.

6. Delivered events are settled a little later, many in one commit. A crash brings them again, so
   each keeps its place among the calls in flight until then; and before a contact is written or a
   user parked, all that the user was delivered is settled (``caught_up``).

Only ``run`` loads. Lanes call the settling methods; all but ``deliver`` return when the change is
durable, so a lane's next call cannot overtake the settling of its last one.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.backoff import retry_delay_s
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import Failure, SpoolError
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.settings import MAX_SHIFT_S
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind
from amplitude_intercom.engine.spool.queue import Queue
from amplitude_intercom.engine.spool.rows import Contact, Loaded
from amplitude_intercom.engine.spool.settled import log_delivered, log_dropped
from amplitude_intercom.engine.spool.sqlite.database import Job
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.writer import Writer

_log = structlog.get_logger(__name__)

T = TypeVar("T")

PER_USER = 32
"""Records of one user that are loaded at once: one busy user must not fill the read-ahead."""

READ_AHEAD_BYTES = 16 * 1024 * 1024
"""Bytes of events that all syncs together may have loaded."""

LEAST_BYTES = 128 * 1024
"""Bytes that one sync may have loaded, whatever the others have."""

LOAD_ROWS = 256
LONGEST_NAP_S = 5.0
"""Between looks at the wall clock while a user is parked: it may be set while we wait."""

FAILING_DISK_NAP_S = 1.0

TOGETHER_S = 0.025
"""How long a delivery waits for others, to be settled with them: every commit costs an fsync."""

CLOCK_STEP_MS = 1_000
"""A clock that is behind by more was set back; parked users must not wait for it to catch up."""


class LoadedBytes:
    """How many bytes of events are loaded, of all syncs: they have one budget."""

    def __init__(self) -> None:
        self.total = 0

    def free_for(self, held: int) -> int:
        """Return how many more a sync may load that holds so many."""
        return max(READ_AHEAD_BYTES - self.total, LEAST_BYTES - held)


class Feed:
    """Loads records, and settles them; see the module's docstring."""

    def __init__(
        self,
        writer: Writer,
        taker: int,
        *,
        read_ahead: int,
        max_in_flight: int,
        attempts: int,
        window_s: float,
        now_ms: Callable[[], int],
        loaded_bytes: LoadedBytes,
        job_added: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``max_in_flight``: events that may be sent and not settled, which a kill repeats."""
        self._writer = writer
        self._taker = taker
        self._all_loaded_bytes = loaded_bytes
        self._read_ahead = read_ahead
        self._attempts = attempts
        self._window_s = window_s
        self._now_ms = now_ms
        self._job_added = job_added
        self._jitter = jitter
        self._loaded: Counter[str] = Counter()
        self._loaded_bytes = 0
        self._draining: set[str] = set()
        self._refills: deque[str] = deque()
        self._refilled = False
        self._halted: set[str] = set()
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self._last_id = 0
        self.places = asyncio.Semaphore(max_in_flight)
        """One for each event that is out, or answered and not settled."""
        self._many = (max_in_flight + 1) // 2
        self._answered: list[Record] = []
        self._unsettled: Counter[str] = Counter()
        self._to_settle = asyncio.Event()
        self._are_many = asyncio.Event()
        self._full = True
        self._looked_at_ms: int | None = None
        self._looked_at_s = 0.0
        self._nap_s = LONGEST_NAP_S
        self._stopping = False
        self.latency_s: deque[float] = deque(maxlen=4096)
        """From accepted to answered, of the latest deliveries."""
        self.adjusted: Counter[str] = Counter()
        """What was changed on the way to Intercom, by reason, since the start."""
        self._adjusted_on_disk: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (
            f"Feed(loaded={self._loaded.total()}, draining={len(self._draining)},"
            f" halted={len(self._halted)}, read up to {self._last_id})"
        )

    @property
    def loaded(self) -> int:
        """Records that are loaded and not settled."""
        return self._loaded.total()

    async def progress(self) -> None:
        """Wait until a record is settled or parked."""
        await self._progress.wait()

    def notify(self) -> None:
        """Say that something was appended, or woken."""
        self._changed.set()

    def stop(self) -> None:
        """Load no more; what is loaded and not yet sent is left to the next start."""
        self._stopping = True
        self._changed.set()
        self._to_settle.set()

    def end(self) -> None:
        """Wake whoever waits for progress: there will be none."""
        self._tell_progress()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def succeed(self, old: Feed) -> None:
        """Take the place of a feed that a fault has stopped."""
        self.latency_s = old.latency_s
        self.adjusted, self._adjusted_on_disk = old.adjusted, old._adjusted_on_disk
        self._stopping = old.stopping
        self._all_loaded_bytes.total -= old._loaded_bytes
        old._tell_progress()

    # --- loading --------------------------------------------------------------------------

    async def run(self, outbox: MemoryObjectSendStream[list[Record]]) -> None:
        """Send batches of records to ``outbox`` until stopped; closes it at the end.

        Returns when all that was loaded is settled.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._settle_answered, tasks)
            async with outbox:
                while not self._stopping:
                    self._changed = asyncio.Event()
                    if not await self._load_some(outbox):
                        await self._rest()

    async def _load_some(self, outbox: MemoryObjectSendStream[list[Record]]) -> bool:
        """Load once where something may be loaded; return whether to look again at once.

        Users that are worked off and the queue take turns: neither can have all of it.
        """
        free = self._read_ahead - self.loaded
        self._full = free < (min(LOAD_ROWS, self._read_ahead) + 1) // 2 or self._free_bytes <= 0
        if self._full:
            self._nap_s = LONGEST_NAP_S
            return False
        self._refilled = bool(self._refills) and not self._refilled
        if self._refilled:
            await self._refill(self._refills.popleft(), min(free, PER_USER), outbox)
            return True
        found = await self._load(min(free, LOAD_ROWS))
        self._last_id = found.last_id
        self._nap_s = self._until(found.next_wake_ms)
        # All of it is noted before the first of it is sent: answers may come while that waits.
        self._count(found.records)
        self._drain(found.draining)
        await self._hand_out(found.records, outbox)
        return bool(found.records or found.more or self._refills)

    @property
    def _free_bytes(self) -> int:
        return self._all_loaded_bytes.free_for(self._loaded_bytes)

    def _set_back_ms(self) -> int:
        """Return by how much the wall clock was set back since the last look at it."""
        now_ms, now_s = self._now_ms(), anyio.current_time()
        expected_ms = self._looked_at_ms or 0
        if self._looked_at_ms is not None:
            expected_ms += int((now_s - self._looked_at_s) * 1000)
        self._looked_at_ms, self._looked_at_s = now_ms, now_s
        return expected_ms - now_ms if expected_ms - now_ms > CLOCK_STEP_MS else 0

    async def _load(self, limit: int) -> Loaded:
        set_back_ms = self._set_back_ms()
        if set_back_ms:
            await self.persist(lambda store: self._queue(store).wake_earlier(set_back_ms))
        crowded = {user for user, count in self._loaded.items() if count >= PER_USER}
        halted = set(self._halted)
        free_bytes = self._free_bytes
        return await self.persist(
            lambda store: self._queue(store).load(
                self._last_id,
                limit=limit,
                limit_bytes=free_bytes,
                per_user=PER_USER,
                crowded=crowded,
                halted=halted,
                now_ms=self._now_ms(),
            )
        )

    async def _refill(
        self, user: str, limit: int, outbox: MemoryObjectSendStream[list[Record]]
    ) -> None:
        free_bytes = self._free_bytes
        records = await self.persist(
            lambda store: self._queue(store).refill(user, limit, free_bytes)
        )
        if not records:
            self._draining.discard(user)
        self._count(records)
        await self._hand_out(records, outbox)

    def _count(self, records: list[Record]) -> None:
        for record in records:
            self._loaded[record.user_key] += 1
            self._loaded_bytes += len(record.raw)
            self._all_loaded_bytes.total += len(record.raw)

    @staticmethod
    async def _hand_out(
        records: list[Record], outbox: MemoryObjectSendStream[list[Record]]
    ) -> None:
        if records:
            await outbox.send(records)

    def _drain(self, users: list[str]) -> None:
        """Work users off from now on; one that has nothing loaded any more is due at once."""
        for user in users:
            self._draining.add(user)
            if not self._loaded[user]:
                self._refills.append(user)

    async def _rest(self) -> None:
        self._tell_progress()  # loading settles records as well: those that are damaged
        with anyio.move_on_after(self._nap_s):
            await self._changed.wait()

    def _until(self, wake_ms: int | None) -> float:
        if wake_ms is None:
            return math.inf
        return min(LONGEST_NAP_S, max(0.001, (wake_ms - self._now_ms()) / 1000))

    # --- settling -------------------------------------------------------------------------

    def is_halted(self, user: str) -> bool:
        """Return whether this user's loaded records must come back unsent."""
        return user in self._halted or self._stopping

    def deliver(self, record: Record) -> None:
        """Settle as delivered, a little later, together with what else is answered by then.

        The record has one of ``places``, which is free again when it is settled.
        """
        self._note_latency(record)
        self._answered.append(record)
        self._unsettled[record.user_key] += 1
        self._to_settle.set()
        if len(self._answered) >= self._many:
            self._are_many.set()

    async def caught_up(self, user: str) -> None:
        """Wait until all that this user was delivered is settled.

        What is on disk of a user must not be ahead of that: after a crash it would come again, and
        undo what came later.
        """
        while user in self._unsettled:
            self._are_many.set()
            await self._progress.wait()

    async def _settle_answered(self, tasks: TaskGroup) -> None:
        """Settle what is answered, until nothing is left to be; cancelled, what is answered.

        Where they cannot be settled together, each is by itself: one must not keep the others.
        """
        try:
            while self._answered or self._loaded or not self._stopping:
                self._to_settle.clear()
                if not self._answered:
                    await self._to_settle.wait()
                    continue
                with anyio.move_on_after(TOGETHER_S):
                    await self._are_many.wait()
                self._are_many.clear()
                await self._settle_together(tasks)
        finally:
            if self._answered:
                self._writer.submit(self._delivery_of(self._answered))

    async def _settle_together(self, tasks: TaskGroup) -> None:
        records, self._answered = self._answered, []
        adjusted = self.take_adjusted()
        try:
            await self._writer.submit(self._delivery_of(records, adjusted))
        except Exception as error:
            self._adjusted_on_disk.subtract(adjusted)
            if not isinstance(error, SpoolError):
                _log.error("deliveries cannot be settled together", exc_info=error)
            await anyio.sleep(FAILING_DISK_NAP_S)
            for record in records:
                tasks.start_soon(self._settle_alone, record)
        else:
            self._let_go_delivered(records)

    async def _settle_alone(self, record: Record) -> None:
        await self.persist(self._delivery_of([record]))
        self._let_go_delivered([record])

    def _let_go_delivered(self, records: Sequence[Record]) -> None:
        for record in records:
            log_delivered(record)
            self.places.release()
            self._unsettled[record.user_key] -= 1
            if not self._unsettled[record.user_key]:
                del self._unsettled[record.user_key]
        self._let_go(*records)

    async def settle_update(
        self, records: Sequence[Record], contact: Contact, *, delivered: bool
    ) -> None:
        """Settle the updates of one user, and keep what is known of its contact, in one commit.

        Not ``delivered``: there was nothing to write, so they are dropped as ``unchanged``.
        """

        adjusted = self.take_adjusted()

        def job(store: Store) -> None:
            now_ms = self._now_ms()
            store.count_adjusted(self._taker, adjusted)
            store.contacts.remember(self._taker, records[0].user_key, contact, now_ms)
            ids = [record.id for record in records]
            if delivered:
                self._queue(store).deliver(ids, now_ms)
            else:
                self._queue(store).drop(ids, DropReason.UNCHANGED)

        await self.persist(job)
        for record in records:
            self._note_latency(record)
            log_delivered(record) if delivered else log_dropped(record, DropReason.UNCHANGED)
        self._let_go(*records)

    def take_adjusted(self) -> Counter[str]:
        """Return what was changed and is not counted on disk yet, to be counted now."""
        taken = self.adjusted - self._adjusted_on_disk
        self._adjusted_on_disk.update(taken)
        return taken

    def _delivery_of(
        self, records: Sequence[Record], adjusted: Mapping[str, int] | None = None
    ) -> Job[None]:
        ids, now_ms = [record.id for record in records], self._now_ms()

        def job(store: Store) -> None:
            self._queue(store).deliver(ids, now_ms)
            if adjusted:
                store.count_adjusted(self._taker, adjusted)

        return job

    def _note_latency(self, record: Record) -> None:
        self.latency_s.append((self._now_ms() - record.accepted_at_ms) / 1000)

    async def drop(self, record: Record, reason: str) -> None:
        """Settle as dropped by a rule."""
        await self.persist(lambda store: self._queue(store).drop([record.id], reason))
        log_dropped(record, reason)
        self._let_go(record)

    async def bury(self, record: Record, failure: Failure) -> None:
        """Settle as a dead letter."""
        await self.persist(lambda store: self._queue(store).bury(record, failure, self._now_ms()))
        self._let_go(record)

    def is_due(self, at_ms: int) -> bool:
        """Return whether an instant has come by the wall clock.

        One that is further away than any event is moved has come too: the clock was set back since,
        or the event's own time is ahead of it, and its user must not wait for that.
        """
        return not 0 < at_ms - self._now_ms() <= MAX_SHIFT_S * 1000

    async def defer(self, records: Sequence[Record], until_ms: int) -> None:
        """Put records of one user back until an instant has come. No attempt is charged.

        The user is halted, as when it is parked: what else of it is loaded comes back too.
        """
        self._halted.add(records[0].user_key)
        await self.persist(
            lambda store: self._queue(store).defer(records, until_ms, self._now_ms())
        )
        self._let_go(*records)

    async def release(self, record: Record) -> None:
        """Put a record of a halted user back."""
        if not self._stopping:
            await self.persist(lambda store: self._queue(store).release(record, self._now_ms()))
        self._let_go(record)

    async def park(self, record: Record, failure: Failure) -> bool:
        """Charge a failed attempt and let the user wait, or bury a record that had its chances.

        Returns whether the record is still waiting.
        """
        self._halted.add(record.user_key)
        last = record.attempts + 1 >= self._attempts
        if last and failure.reason != DeadReason.USER_NOT_FOUND:
            self._halted.discard(record.user_key)
            await self.bury(record, failure)
            return False
        await self.caught_up(record.user_key)
        if await self.persist(lambda store: self._park(store, record, failure, last)):
            self._job_added()
        self._let_go(record)
        return not last

    def _park(self, store: Store, record: Record, failure: Failure, last: bool) -> bool:
        """Park in a transaction. An unknown user stays parked though one of its events expires.

        So what waits behind costs a probe per back-off, and expires when its own window is over.
        Returns whether that is too much for this transaction, and a job of its own now.
        """
        queue, now_ms = self._queue(store), self._now_ms()
        window_ms = int(self._window_s * 1000)
        if last:
            queue.bury(record, failure, now_ms)
            queue.park_user(
                record.user_key, failure.reason, now_ms + window_ms // self._attempts, now_ms
            )
        else:
            wait_s = retry_delay_s(
                queue.failures(record.user_key) + 1, self._attempts, self._window_s, self._jitter()
            )
            queue.park(record, failure, now_ms + int(wait_s * 1000), now_ms)
        if (
            failure.reason == DeadReason.USER_NOT_FOUND
            and queue.failures(record.user_key) >= self._attempts
        ):
            expiry = Expiry(record.user_key, now_ms - window_ms, failure)
            return self._expire(store, expiry, now_ms)
        return False

    def _expire(self, store: Store, expiry: Expiry, now_ms: int) -> bool:
        """Bury what is too old of a user; return whether the rest is left to a job."""
        _, more = self._queue(store).expire(
            expiry.user, expiry.failure, expiry.accepted_until_ms, now_ms
        )
        if more:
            store.ask_job(JobKind.EXPIRE, self._taker, expiry, 0, who="delivery", now_ms=now_ms)
        return more

    def _let_go(self, *records: Record) -> None:
        for record in records:
            user = record.user_key
            self._loaded_bytes -= len(record.raw)
            self._all_loaded_bytes.total -= len(record.raw)
            self._loaded[user] -= 1
            if self._loaded[user] <= 0:
                del self._loaded[user]
                self._nothing_loaded(user)
        if self._full:
            self._changed.set()
        if self._stopping:
            self._to_settle.set()
        self._tell_progress()

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def _nothing_loaded(self, user: str) -> None:
        if user in self._halted:
            self._halted.discard(user)
            self._draining.discard(user)
            self._changed.set()
        elif user in self._draining:
            self._refills.append(user)
            self._changed.set()

    def _queue(self, store: Store) -> Queue:
        return store.queue(self._taker)

    async def persist(self, job: Job[T]) -> T:
        """Run a job until it is durable: a disk that fails holds deliveries up, and loses none."""
        while True:
            try:
                return await self._writer.submit(job)
            except SpoolError:
                await anyio.sleep(FAILING_DISK_NAP_S)
