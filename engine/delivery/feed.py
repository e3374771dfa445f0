"""One sync's way between the spool and the scheduler: what is loaded, and how turns are settled.

Rules
=====
1. One transaction at a time: it settles what has come since the last one, and loads what is wanted.
   So nothing is loaded of a user while that is put aside, and what is in memory of a user and what
   is on disk agree whenever neither is under way.
2. A turn is over when what came of it is on disk. So a user's next turn is never ahead of its last,
   and what a kill repeats is bounded by the calls of the turns that are at work.
3. Deliveries wait a moment for others: every commit costs an fsync. Whatever somebody waits for
   takes them along at once.
4. What cannot be settled together is settled each by itself: one must not keep the others. What
   cannot even be settled by itself stops the sync's feed, which begins anew from the disk.
5. What is loaded is bounded, in records and in bytes, whatever waits on disk. Users that cannot
   have a turn now, since a circuit is open, are put aside where they are too many.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
import structlog

from amplitude_intercom.engine.delivery import waiting
from amplitude_intercom.engine.delivery.calls import NotAnswered
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    Failing,
    GoOn,
    PutBack,
    Unknown,
)
from amplitude_intercom.engine.delivery.health import Blame
from amplitude_intercom.engine.delivery.loading import Loading
from amplitude_intercom.engine.delivery.pace import loop_time_s
from amplitude_intercom.engine.delivery.scheduler import Scheduler
from amplitude_intercom.engine.delivery.settlement import Batch, Outcomes, Step, Work, write
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import Retries
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.settings import MAX_SHIFT_S
from amplitude_intercom.engine.spool import recovery
from amplitude_intercom.engine.spool.queue import Wanted
from amplitude_intercom.engine.spool.rows import Contact, Loaded
from amplitude_intercom.engine.spool.settled import log_delivered, log_dropped
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.engine.spool.store import Store

_log = structlog.get_logger(__name__)

MOST_CHARGES: Final = 10_000
"""Charges that wait to be confirmed."""


class Feed:
    """Loads for one sync, and settles; see the module's docstring."""

    def __init__(
        self,
        spool: TakerSpool,
        scheduler: Scheduler,
        loading: Loading,
        retries: Retries,
        *,
        many: int,
        now_ms: Callable[[], int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``many`` deliveries are settled at once. ``changed`` is called when more users may have a
        turn than before."""
        self._spool = spool
        self._scheduler = scheduler
        self.loading = loading
        self._retries = retries
        self._now_ms = now_ms
        self._told = changed
        self._outcomes = Outcomes(many)
        self._charges: dict[str, tuple[Record, NotAnswered]] = {}
        """Failures whose charge is not confirmed, by user."""
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self._has_run = False
        self._stopping = False
        self.latency_s: deque[float] = deque(maxlen=4096)
        """From accepted to answered, of the latest deliveries."""
        spool.appended = self.notify

    def __repr__(self) -> str:
        return f"Feed({self._spool.name}, {self.loading})"

    # --- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        """Load and settle until stopped and nothing is at work. After a fault, begin anew."""
        if self._has_run:
            await self._begin_anew()
        self._has_run = True
        try:
            while not self._is_done:
                await self._wait()
                await self._step()
        except asyncio.CancelledError:
            await self._settle_answered()
            raise

    @property
    def _is_done(self) -> bool:
        at_work = self._scheduler.at_work(self._spool.name)
        return self._stopping and self._outcomes.is_empty and not at_work

    async def _wait(self) -> None:
        """Wait until something is to be written, or loaded."""
        while (wait_s := self._due_in_s()) > 0:
            self._changed.clear()
            self._tell_progress()
            with anyio.move_on_after(None if math.isinf(wait_s) else wait_s):
                await self._changed.wait()

    def _due_in_s(self) -> float:
        if self._is_done:
            return 0.0
        settle_s = self._outcomes.due_s - loop_time_s()
        return settle_s if self._stopping else min(settle_s, self.loading.due_in_s())

    async def _step(self) -> None:
        """Write what has come, load what is wanted, and let that be known."""
        batch = self._outcomes.take()
        wanted = None if self._stopping else self.loading.wanted_now()
        if batch.delivered:
            batch.adjusted = self._spool.adjustments.take()
        ending_steps = [self._step_of(turn, ending) for turn, ending in batch.endings]
        # What is found out of a failure later is written behind it.
        steps = [*(step for step in ending_steps if step is not None), *batch.steps]
        if wanted is not None:
            steps += self._withdrawals()
        try:
            loaded = await self._write(batch, steps, wanted)
            self._settled(batch)
            if loaded is not None and wanted is not None:
                self.loading.take(loaded, wanted)
        except BaseException as fault:
            self._let_be(batch, fault)
            raise
        self._told()

    async def _write(
        self, batch: Batch, steps: Sequence[Step], wanted: Wanted | None
    ) -> Loaded | None:
        if batch.is_empty and not steps and wanted is None:
            return None
        taker, now_ms = self._spool.taker, self._now_ms()

        def job(store: Store) -> Loaded | None:
            write(store, taker, batch, steps, now_ms)
            return None if wanted is None else self.loading.load(store, wanted)

        try:
            loaded = await self._spool.persist(job, tries=1)
        except Exception as fault:
            if batch.is_empty and not steps:
                raise
            _log.error("what came of turns cannot be written together", exc_info=fault)
            await self._write_each(batch, steps, now_ms)
            return None
        for step in steps:
            step.tell()
        return loaded

    def _withdrawals(self) -> list[Step]:
        """Put users aside that cannot have a turn, where they are too many."""
        taker, now_ms = self._spool.taker, self._now_ms()
        steps = []
        for endpoint, user, records in self.loading.withdraw():
            work = partial(_withdraw, taker, user, records, endpoint, now_ms)
            steps.append(Step(work, then=partial(self.loading.let_go, records)))
        return steps

    async def _write_each(self, batch: Batch, steps: Sequence[Step], now_ms: int) -> None:
        """Write what came, each by itself."""
        taker = self._spool.taker
        alone = [
            *(Step(partial(_deliver_one, taker, r.id, now_ms)) for r in batch.delivered),
            Step(lambda store: store.count_adjusted(taker, batch.adjusted)),
            *steps,
        ]
        faults: list[Exception] = []
        for step in alone:
            try:
                await self._spool.persist(step.run)
            except Exception as fault:
                step.tell(fault)
                if step.done is None:
                    faults.append(fault)
            else:
                step.tell()
        if faults:
            raise faults[0]

    def _let_be(self, batch: Batch, fault: BaseException) -> None:
        """Let go what could not be written, or (cancelled) may still be: it is on disk as it is."""
        if not isinstance(fault, Exception):
            for record in batch.delivered:
                self._outcomes.deliver(record)
            return
        for step in batch.steps:
            step.tell(fault)
        for turn, _ in batch.endings:
            self._scheduler.abandon(turn)

    async def _begin_anew(self) -> None:
        """Let delivery begin as after a restart: from what is on disk."""
        name = self._spool.name
        self._scheduler.hold(name)
        while self._scheduler.at_work(name) or not self._outcomes.is_empty:
            if self._outcomes.is_empty:
                self._changed.clear()
                await self._changed.wait()
            batch = self._outcomes.take()
            steps = [self._step_of(turn, ending) for turn, ending in batch.endings]
            try:
                await self._write(batch, [*(s for s in steps if s), *batch.steps], None)
            except Exception as fault:
                self._let_be(batch, fault)
                internal_failure(fault, sync=name)
            else:
                self._settled(batch)
        taker = self._spool.taker
        await self._spool.persist(lambda store: recovery.recover_taker(store, taker))
        self._scheduler.forget(name)
        if self._stopping:
            self._scheduler.hold(name)
        self.loading.begin_anew()

    async def _settle_answered(self) -> None:
        """Settle what is answered: a start would send it again."""
        batch = self._outcomes.take()
        endings = [self._step_of(turn, ending) for turn, ending in batch.endings]
        steps = [*(step for step in endings if step is not None), *batch.steps]
        taker, now_ms = self._spool.taker, self._now_ms()
        with anyio.CancelScope(shield=True), suppress(Exception):  # then it is sent again
            await self._spool.spool.do(lambda store: write(store, taker, batch, steps, now_ms))

    # --- what comes of turns --------------------------------------------------------------

    def notify(self) -> None:
        """Say that something was appended, or woken."""
        self.loading.more_is_queued()
        self._changed.set()

    def forget_turns(self) -> None:
        """Take in that no turn is at work any more: what has become of them is not known."""
        self._outcomes.forget_turns()

    def look(self) -> None:
        """Say that users were chosen, or circuits have turned: more may be wanted."""
        self._changed.set()

    def stop(self) -> None:
        """Load no more; what is loaded and not yet sent is left to the next start."""
        self._stopping = True
        self._scheduler.hold(self._spool.name)
        self._changed.set()

    @property
    def held_bytes(self) -> int:
        """Bytes of the events that are loaded."""
        return self.loading.held_bytes

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is sent."""
        return self._stopping

    def tell_the_end(self) -> None:
        """Wake whoever waits for progress: there will be none."""
        self._tell_progress()

    async def progress(self) -> None:
        """Wait until a record is settled, or a user waits."""
        await self._progress.wait()

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    def deliver(self, record: Record, reasons: Iterable[str] = ()) -> None:
        """Settle as delivered, a little later, together with what else is answered by then.

        ``reasons``: of what was changed on the way.
        """
        self.latency_s.append((self._now_ms() - record.accepted_at_ms) / 1000)
        self._spool.adjustments.count(reasons)
        if self._outcomes.deliver(record):
            self._changed.set()

    async def settle(self, work: Work) -> Any:
        """Write something together with what else there is; return when it is durable."""
        step = Step(work, asyncio.get_running_loop().create_future())
        self._add(step)
        assert step.done is not None
        return await step.done

    def end(self, turn: Turn, ending: Ending) -> None:
        """End a turn, as soon as what came of it is durable."""
        self._note_charge(turn, ending)
        if self._outcomes.end(turn, ending):
            self._changed.set()

    def drop(self, record: Record, reason: str) -> None:
        """Settle as dropped by a rule, soon."""
        taker = self._spool.taker

        def then() -> None:
            log_dropped(record, reason)
            self.loading.let_go([record])

        self._add(Step(lambda store: store.settling(taker).drop([record.id], reason), then=then))

    def bury(self, record: Record, failure: Failure) -> None:
        """Settle as a dead letter, soon."""
        taker, now_ms = self._spool.taker, self._now_ms()
        self._add(
            Step(
                lambda store: store.settling(taker).bury(record, failure, now_ms),
                then=lambda: self.loading.let_go([record]),
            )
        )

    def _add(self, step: Step) -> None:
        self._outcomes.add(step)
        self._changed.set()

    async def settle_update(
        self,
        records: Sequence[Record],
        contact: Contact,
        *,
        delivered: bool,
        reasons: Iterable[str] = (),
    ) -> None:
        """Settle the updates of one user, and keep what is known of its contact, in one commit.

        Not ``delivered``: there was nothing to write, so they are dropped as ``unchanged``.
        """
        taker, user, now_ms = self._spool.taker, records[0].user_key, self._now_ms()
        ids = [record.id for record in records]
        self._spool.adjustments.count(reasons)
        adjusted = self._spool.adjustments.take()

        def work(store: Store) -> None:
            store.count_adjusted(taker, adjusted)
            store.contacts.remember(taker, user, contact, now_ms)
            if delivered:
                store.settling(taker).deliver(ids, now_ms)
            else:
                store.settling(taker).drop(ids, DropReason.UNCHANGED)

        try:
            await self.settle(work)
        except Exception:
            self._spool.adjustments.give_back(adjusted)
            raise
        for record in records:
            self.latency_s.append((self._now_ms() - record.accepted_at_ms) / 1000)
            log_delivered(record) if delivered else log_dropped(record, DropReason.UNCHANGED)
        self.loading.let_go(records)

    def is_due(self, at_ms: int) -> bool:
        """Return whether an instant has come by the wall clock.

        One that is further away than any event is moved has come too: the clock was set back since,
        or the event's own time is ahead of it, and its user must not wait for that.
        """
        return not 0 < at_ms - self._now_ms() <= MAX_SHIFT_S * 1000

    # --- how turns end --------------------------------------------------------------------

    def _step_of(self, turn: Turn, ending: Ending) -> Step | None:
        """Return what is to be written of a turn's end, if anything."""
        others = [record.id for record in self._scheduler.loaded_of(turn.sync, turn.user)]
        taker, now_ms = self._spool.taker, self._now_ms()
        match ending:
            case GoOn(succeeded=True) if turn.is_probe or turn.failed_before:
                return Step(lambda store: store.settling(taker).forgive(turn.user))
            case GoOn() | PutBack():
                return None
            case Deferred(back, until_ms):
                ids = [*(record.id for record in back), *others]
                return Step(lambda store: store.settling(taker).defer(turn.user, ids, until_ms))
            case Failing(back, evidence):
                return Step(partial(self._fail, back, others, evidence, now_ms))
            case Unknown(back, failure):
                return Step(partial(self._find_unknown, back, others, failure, now_ms))

    def _fail(
        self,
        back: Sequence[Record],
        others: Sequence[int],
        evidence: NotAnswered,
        now_ms: int,
        store: Store,
    ) -> None:
        ids = [*(record.id for record in back[1:]), *others]
        taker = self._spool.taker
        waiting.fail(store, taker, back[0], ids, evidence, self._retries, now_ms)

    def _find_unknown(
        self,
        back: Sequence[Record],
        others: Sequence[int],
        failure: Failure,
        now_ms: int,
        store: Store,
    ) -> None:
        ids = [*(record.id for record in back[1:]), *others]
        taker = self._spool.taker
        if waiting.find_unknown(store, taker, back[0], ids, failure, self._retries, now_ms):
            self._spool.spool.job_added()

    def _settled(self, batch: Batch) -> None:
        """Take in that a batch is durable: its turns are over."""
        for record in batch.delivered:
            log_delivered(record)
        self.loading.let_go(batch.delivered)
        for turn, ending in batch.endings:
            match ending:
                case GoOn(back, succeeded):
                    self._scheduler.go_on(turn, back, succeeded=succeeded)
                case PutBack(back, needs):
                    self._scheduler.put_back(turn, back, needs)
                case Deferred(back) | Failing(back) | Unknown(back):
                    self.loading.let_go(back)
                    self.loading.let_go(self._scheduler.loaded_of(turn.sync, turn.user))
                    self._scheduler.set_aside(turn)
                    self.loading.look_at_table()
        self._tell_progress()

    # --- what is found out later ----------------------------------------------------------

    def _note_charge(self, turn: Turn, ending: Ending) -> None:
        if isinstance(ending, Failing) and ending.evidence.blame is Blame.OWN:
            if len(self._charges) >= MOST_CHARGES:
                del self._charges[next(iter(self._charges))]
            self._charges[turn.user] = ending.back[0], ending.evidence

    def charge(self, user: str, *, stands: bool) -> None:
        """Take in that a user's failure is its own after all, or (not ``stands``) is not."""
        found = self._charges.pop(user, None)
        if found is None or not stands:
            return
        record, evidence = found
        taker, now_ms = self._spool.taker, self._now_ms()
        work = partial(_charge, taker, record, evidence, self._retries, now_ms)
        self._add(Step(work, then=self.loading.look_at_table))

    def hasten(self, user: str, in_s: float) -> None:
        """Let a user whose fault is not known be tried earlier: others are well."""
        taker, at_ms = self._spool.taker, self._now_ms() + int(in_s * 1000)
        self._add(
            Step(
                lambda store: store.settling(taker).wake(user, at_ms),
                then=self.loading.look_at_table,
            )
        )


def _withdraw(
    taker: int, user: str, records: Sequence[Record], endpoint: str, now_ms: int, store: Store
) -> None:
    ids = [record.id for record in records]
    store.settling(taker).defer(user, ids, now_ms, endpoint)


def _deliver_one(taker: int, id_: int, now_ms: int, store: Store) -> None:
    store.settling(taker).deliver([id_], now_ms)


def _charge(
    taker: int,
    record: Record,
    evidence: NotAnswered,
    retries: Retries,
    now_ms: int,
    store: Store,
) -> None:
    waiting.charge(store, taker, record, evidence, retries, now_ms)
