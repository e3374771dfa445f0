"""The exchange of one sync between the spool and the scheduler: loads records, settles turns.

Rules
=====
1. One transaction at a time: it settles all outcomes since the last one, and loads records. So no
   user is loaded while it is put aside, and memory and disk agree between two transactions.
2. A turn is over when its outcome is on disk. So a user's next turn is never ahead of its last, and
   a kill repeats at most the calls of the turns that are at work.
3. Every commit costs an fsync: it waits until something has to be written, or loaded.
4. If outcomes cannot be settled together, each is settled by itself: one must not keep the others.
   One that cannot be settled at all stops the sync's feed, as any other fault does: no user is
   chosen any more, turns at work are settled, and then the feed begins anew from the disk.
5. The loaded records are bounded, in number and in bytes, whatever waits on disk. Users that cannot
   have a turn now, since a circuit is open, are put aside where they are too many.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio
import structlog

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.loading import Loading
from amplitude_intercom.engine.delivery.outcome_writer import OutcomeWriter
from amplitude_intercom.engine.delivery.outcomes import Collected, PendingWrite
from amplitude_intercom.engine.delivery.scheduler import Scheduler
from amplitude_intercom.engine.delivery.settlement import Settlement
from amplitude_intercom.engine.delivery.turn_ends import TurnEnds
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction, Wanted

_log = structlog.get_logger(__name__)


class Feed:
    """Loads for one sync, and settles; see the module's docstring."""

    def __init__(
        self,
        spool: TakerSpool,
        scheduler: Scheduler,
        loading: Loading,
        settlement: Settlement,
        turn_ends: TurnEnds,
        *,
        now_ms: Callable[[], int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called when more users may have a turn than before."""
        self._spool = spool
        self._scheduler = scheduler
        self._loading = loading
        self._settlement = settlement
        self._turn_ends = turn_ends
        self._writer = OutcomeWriter(spool, now_ms)
        self._now_ms = now_ms
        self._told = changed
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self._stopping = False
        spool.appended = self.notify
        settlement.changed = self._changed.set

    def __repr__(self) -> str:
        return f"Feed({self._spool.name}, {self._loading})"

    # --- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        """Load and settle until stopped and nothing is at work; run again, begin anew.

        A fault is raised when nothing is at work any more: turns that are never over would have
        all calls of the token.
        """
        try:
            await self._run()
        except asyncio.CancelledError:
            await self._settle_answered()
            raise

    async def _run(self) -> None:
        try:
            # Memory is not trusted after a fault: it may have been between two of its changes. And
            # another feed, which has ended since, may have put users into the tables as loaded.
            if self._spool.has_been_fed:
                await self._begin_anew()
            self._spool.has_been_fed = True
            while not self._is_done:
                await self._wait()
                await self._step()
        except Exception:
            await self._wind_down()
            raise

    @property
    def _is_done(self) -> bool:
        at_work = self._scheduler.of(self._spool.name).at_work
        return self._stopping and self._settlement.is_empty and not at_work

    async def _wait(self) -> None:
        """Wait until something is to be written, or loaded."""
        while (wait_s := self._due_in_s()) > 0:
            # Nothing runs between the look at what is due and this, so no news is lost.
            self._changed.clear()
            self._tell_progress()
            with anyio.move_on_after(None if math.isinf(wait_s) else wait_s):
                await self._changed.wait()

    def _due_in_s(self) -> float:
        if self._is_done:
            return 0.0
        settle_s = self._settlement.due_s - loop_time_s()
        # A feed that stops loads nothing: what is left on disk is for the next start.
        return settle_s if self._stopping else min(settle_s, self._loading.due_in_s())

    async def _step(self) -> None:
        """Write the outcomes, load records, and tell the pipeline."""
        outcomes = self._settlement.take()
        try:
            self._prepare(outcomes)
            wanted = self._want(outcomes)
            load = None if wanted is None else partial(self._loading.load, wanted=wanted)
            loaded = await self._writer.write(outcomes, load)
            self._note_durable(outcomes)
            if loaded is not None and wanted is not None:
                self._loading.take(loaded, wanted)
            elif wanted is not None:
                self._loading.more_is_queued()  # nothing was loaded: it is wanted still
        except BaseException as fault:
            self._give_up(outcomes, fault)
            raise
        self._tell_progress()
        self._told()

    def _want(self, outcomes: Collected) -> Wanted | None:
        """Return the records to load; add the writes that put users aside to the outcomes."""
        if self._stopping:
            return None
        wanted = self._loading.want()
        outcomes.writes += _withdrawals(self._loading, self._spool.taker, self._now_ms())
        return wanted

    def _prepare(self, outcomes: Collected) -> None:
        """Add the ends of turns to outcomes, and then what was counted."""
        # They go first: a charge that was found out later is written behind its failure.
        outcomes.writes[:0] = self._turn_ends.writes(outcomes.endings)
        # In an outage turns only end: what they have counted goes with them.
        self._settlement.add_tally(outcomes)

    def _note_durable(self, outcomes: Collected) -> None:
        self._settlement.note_delivered(outcomes)
        self._turn_ends.note_durable(outcomes.endings)

    def _give_up(self, outcomes: Collected, fault: BaseException) -> None:
        """Let go outcomes that cannot be written, or (cancelled) may still be."""
        # The transaction of cancelled outcomes may be under way still. What was delivered is
        # settled once more (`_settle_answered`), or a start would send it again.
        if not isinstance(fault, Exception):
            self._settlement.take_back(outcomes)
            return
        for pending in outcomes.writes:
            pending.tell(fault)
        self._turn_ends.abandon(outcomes.endings)

    async def _wind_down(self) -> None:
        """Choose no user any more, and settle the turns at work."""
        name = self._spool.name
        self._scheduler.hold(name)
        # Turns that are never over would keep calls of the token from its other syncs.
        while self._scheduler.of(name).at_work or not self._settlement.is_empty:
            # What is at work ends by itself, and says so by `settlement.changed`.
            if self._settlement.is_empty:
                self._changed.clear()
                await self._changed.wait()
            outcomes = self._settlement.take()
            try:
                self._prepare(outcomes)
                await self._writer.write(outcomes)
                self._note_durable(outcomes)
            except BaseException as fault:
                self._give_up(outcomes, fault)
                if not isinstance(fault, Exception):
                    raise
                internal_failure(fault, sync=name)

    async def _begin_anew(self) -> None:
        """Let delivery begin as after a restart: from the disk."""
        name = self._spool.name
        await self._spool.recover()
        self._scheduler.forget(name)
        # Forgetting a sync also ends that it is held.
        if self._stopping:
            self._scheduler.hold(name)
        self._loading.begin_anew()

    async def _settle_answered(self) -> None:
        """Settle answered calls: a start would make them again."""
        outcomes = self._settlement.take()
        with suppress(Exception):  # the cancel goes on, whatever comes of this
            self._prepare(outcomes)
            await self._writer.write_once(outcomes)

    # --- news -----------------------------------------------------------------------------

    def notify(self) -> None:
        """Say that something was appended, or woken."""
        self._loading.more_is_queued()
        self._changed.set()

    def more_may_be_wanted(self) -> None:
        """Say that users were chosen, or circuits have turned: more may be wanted."""
        self._changed.set()

    def stop(self) -> None:
        """Load no more; records that are loaded and not yet sent are left to the next start."""
        self._stopping = True
        self._scheduler.hold(self._spool.name)
        self._changed.set()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is sent."""
        return self._stopping

    def tell_the_end(self) -> None:
        """End all waits for progress: there will be none."""
        self._tell_progress()

    async def progress(self) -> None:
        """Wait until a record is settled, or a user waits."""
        await self._progress.wait()

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()


def _withdrawals(loading: Loading, taker: int, now_ms: int) -> list[PendingWrite]:
    """Take users out of memory that cannot have a turn, where they are too many.

    Returns the writes that put them aside.
    """
    return [
        PendingWrite(
            partial(_withdraw, taker, user, records, endpoint, now_ms),
            then=partial(loading.note_withdrawn, records),
        )
        for endpoint, user, records in loading.withdraw()
    ]


def _withdraw(
    taker: int, user: str, records: Sequence[Record], endpoint: str, now_ms: int, store: Transaction
) -> None:
    ids = [record.id for record in records]
    store.settling(taker).defer(user, ids, now_ms, endpoint)
