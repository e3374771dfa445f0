"""The calls by which actors settle a sync's records: deliver, drop, bury, and the end of a turn.

Rules
=====
1. Outcomes are only collected here. The feed writes all of them in one transaction.
2. Deliveries wait a moment for others; any other outcome is written at once, and they with it.
3. A record leaves memory when its outcome is durable.
4. A charge waits until it is known that the failure is the user's own, or is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from amplitude_intercom.engine.delivery import waiting
from amplitude_intercom.engine.delivery.calls import NotAnswered
from amplitude_intercom.engine.delivery.endings import (
    Ending,
    Failing,
)
from amplitude_intercom.engine.delivery.health import Blame
from amplitude_intercom.engine.delivery.loaded_bytes import SyncBytes
from amplitude_intercom.engine.delivery.outcomes import Collected, Outcomes, PendingWrite, Work
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import Retries
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.histograms import DELIVERY_BOUNDS_S, Histogram
from amplitude_intercom.engine.reasons import DropReason, Failure
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.settled_lines import log_delivered, log_dropped


class Settlement:
    """One sync's; see the module's docstring."""

    def __init__(
        self,
        spool: TakerSpool,
        loaded: SyncBytes,
        retries: Retries,
        *,
        many: int,
        now_ms: Callable[[], int],
        look_at_table: Callable[[], None],
        latency: Histogram | None = None,
    ) -> None:
        """``many`` deliveries wait for no others. ``look_at_table`` is called when users may be
        due that were not. ``latency`` takes the times from accepted to answered."""
        self._spool = spool
        self._loaded = loaded
        self._retries = retries
        self._now_ms = now_ms
        self._look_at_table = look_at_table
        self._outcomes = Outcomes(many)
        self._charges: dict[tuple[str, str], tuple[int, NotAnswered]] = {}
        """Failures whose charge is not confirmed, by user and endpoint: the record's id, and the
        evidence. ``health`` confirms or cancels each."""
        self.latency = latency or Histogram(DELIVERY_BOUNDS_S)
        self.changed: Callable[[], None] = lambda: None
        """Called when it is to be written earlier than before."""

    def __repr__(self) -> str:
        return f"Settlement({self._spool.name}, {self._outcomes})"

    # --- outcomes -------------------------------------------------------------------------

    def deliver(self, record: Record, reasons: Iterable[str] = ()) -> None:
        """Settle as delivered, a little later, together with others that are answered by then.

        ``reasons``: of the adjustments on the way.
        """
        self._note_latency(record)
        self._spool.tally.adjust(reasons)
        # Telling the feed of each delivery would wake it a thousand times a second for nothing.
        if self._outcomes.deliver(record):
            self.changed()

    def _note_latency(self, record: Record) -> None:
        self.latency.add((self._now_ms() - record.accepted_at_ms) / 1000)

    def drop(self, record: Record, reason: str) -> None:
        """Settle as dropped by a rule, soon."""
        taker = self._spool.taker

        def then() -> None:
            log_dropped(record, reason)
            self._loaded.let_go([record])

        self._add(lambda store: store.settling(taker).drop([record.id], reason), then)

    def bury(self, record: Record, failure: Failure) -> None:
        """Settle as a dead letter, soon."""
        taker, now_ms = self._spool.taker, self._now_ms()

        def work(store: Transaction) -> None:
            store.settling(taker).bury(record, failure, now_ms)

        self._add(work, partial(self._loaded.let_go, [record]))

    async def write(self, work: Work) -> Any:
        """Write something together with the other outcomes; return when it is durable."""
        pending = PendingWrite(work, asyncio.get_running_loop().create_future())
        self._outcomes.add(pending)
        self.changed()
        assert pending.done is not None
        return await pending.done

    async def settle_update(
        self,
        records: Sequence[Record],
        keep: Work,
        *,
        delivered: bool,
        reasons: Iterable[str] = (),
    ) -> None:
        """Settle the updates of one user in one commit; ``keep`` writes the facts of its contact.

        Not ``delivered``: there was nothing to write, so they are dropped as ``unchanged``.
        """
        # The instant is taken here and not in the transaction, which may be made again.
        taker, now_ms = self._spool.taker, self._now_ms()
        ids = [record.id for record in records]
        self._spool.tally.adjust(reasons)
        # In the same commit as their records: counted apart, adjustments would be lost or count
        # twice at a kill.
        tally = self._spool.tally.take()

        def work(store: Transaction) -> None:
            store.count_tally(taker, tally)
            keep(store)
            if delivered:
                store.settling(taker).deliver(records, now_ms)
            else:
                store.settling(taker).drop(ids, DropReason.UNCHANGED)

        # The caller must know whether it is durable: the event behind an update may only go out
        # after it.
        try:
            await self.write(work)
        except Exception:
            self._spool.tally.give_back(tally)
            raise
        for record in records:
            self._note_latency(record)
            log_delivered(record) if delivered else log_dropped(record, DropReason.UNCHANGED)
        self._loaded.let_go(records)

    def end(self, turn: Turn, ending: Ending) -> None:
        """End a turn, as soon as its outcome is durable."""
        # The success of another user that confirms the charge comes later, or never (`health`).
        # Until then the record must not lose one of its attempts.
        if isinstance(ending, Failing) and ending.evidence.blame is Blame.OWN:
            evidence = ending.evidence
            self._charges[turn.user, evidence.endpoint] = ending.back[0].id, evidence
        if self._outcomes.end(turn, ending):
            self.changed()

    def _add(self, work: Work, then: Callable[[], None]) -> None:
        self._outcomes.add(PendingWrite(work, then=then))
        self.changed()

    # --- later findings -------------------------------------------------------------------

    def charge(self, user: str, endpoint: str, *, stands: bool) -> None:
        """Take in that a user's failure is its own after all, or (not ``stands``) is not."""
        found = self._charges.pop((user, endpoint), None)
        # None, if a fault has stopped the turn before its end came here: the record keeps its
        # attempt.
        if found is None or not stands:
            return
        id_, evidence = found
        taker, now_ms = self._spool.taker, self._now_ms()

        def work(store: Transaction) -> None:
            waiting.charge(store, taker, id_, evidence, self._retries, now_ms)

        # The last attempt ends the record, and the user's next one may be due at once.
        self._add(work, self._look_at_table)

    def hasten(self, user: str, in_s: float) -> None:
        """Try a user earlier whose failure has no known cause: other users succeed."""
        taker, at_ms = self._spool.taker, self._now_ms() + int(in_s * 1000)
        self._add(
            lambda store: store.settling(taker).wake_deferred(user, at_ms),
            self._look_at_table,
        )

    # --- for the feed ---------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """When the outcomes are to be written, by the loop's clock."""
        return self._outcomes.due_s

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come since it was taken."""
        return self._outcomes.is_empty

    def forget_turns(self) -> None:
        """Forget the ends of turns: all turns were stopped."""
        self._outcomes.forget_turns()

    def take(self) -> Collected:
        """Return the outcomes so far, to be prepared and written now."""
        return self._outcomes.take()

    def add_tally(self, outcomes: Collected) -> None:
        """Add to outcomes what was counted since the last ones."""
        tally = self._spool.tally
        if outcomes.delivered:
            outcomes.tally = tally.take()
        elif not outcomes.is_empty:
            outcomes.tally = tally.take_calls()

    def note_delivered(self, outcomes: Collected) -> None:
        """Note that it is durable that outcomes were written."""
        for record in outcomes.delivered:
            log_delivered(record)
        self._loaded.let_go(outcomes.delivered)

    def take_back(self, outcomes: Collected) -> None:
        """Collect the deliveries of cancelled outcomes again: they may or may not be durable."""
        for record in outcomes.delivered:
            self._outcomes.deliver(record)
