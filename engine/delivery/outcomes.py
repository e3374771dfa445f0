"""The outcomes of a sync's turns since its last transaction, and their writing."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.endings import Ending
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.spool.contract import Transaction

TOGETHER_S: Final = 0.025
"""The most seconds that a delivery waits to be settled together with others. The waits of all syncs
end at the same instants, so that they share commits."""

Work = Callable[[Transaction], Any]
"""Writes an outcome, in a transaction."""


def next_tick_s(now_s: float) -> float:
    """Return the next instant at which deliveries are settled, by the loop's clock."""
    return (now_s // TOGETHER_S + 1) * TOGETHER_S


class PendingWrite:
    """An outcome to write. After the commit ``then`` is called, and then ``done`` resolves."""

    __slots__ = ("done", "result", "then", "work")

    def __init__(
        self,
        work: Work,
        done: asyncio.Future[Any] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        self.work = work
        self.done = done
        self.then = then
        self.result: Any = None

    def run(self, store: Transaction) -> None:
        self.result = self.work(store)

    def tell(self, fault: Exception | None = None) -> None:
        """Call ``then`` and resolve ``done``; or have ``done`` raise the transaction's fault."""
        if self.then is not None and fault is None:
            self.then()
        if self.done is None or self.done.done():
            return
        if fault is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(fault)


class Collected:
    """Outcomes of one transaction: ``delivered`` is written first, then ``writes`` in order."""

    def __init__(self) -> None:
        self.delivered: list[Record] = []
        self.writes: list[PendingWrite] = []
        self.endings: list[tuple[Turn, Ending]] = []
        self.tally: Counter[str] = Counter()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.delivered or self.writes or self.tally)


class Outcomes:
    """Collects outcomes. They are to be written at ``due_s``, an instant of the loop's clock."""

    def __init__(self, many: int) -> None:
        """``many`` deliveries are written at once."""
        self._many = many
        self._collected = Collected()
        self.due_s = math.inf

    @property
    def is_empty(self) -> bool:
        found = self._collected
        return not (found.delivered or found.writes or found.endings)

    def deliver(self, record: Record) -> bool:
        """Add a delivery; return whether ``due_s`` is earlier now."""
        before_s = self.due_s
        delivered = self._collected.delivered
        delivered.append(record)
        # Half of all turns wait for this commit: waiting longer would leave calls unused.
        if len(delivered) >= self._many:
            self.due_s = 0.0
        elif len(delivered) == 1:
            self.due_s = min(before_s, next_tick_s(loop_time_s()))
        return self.due_s < before_s

    def add(self, pending: PendingWrite) -> None:
        """Add a step that is to be written at once."""
        self._collected.writes.append(pending)
        self.due_s = 0.0

    def end(self, turn: Turn, ending: Ending) -> bool:
        """Add the end of a turn; return whether ``due_s`` is earlier now."""
        before_s = self.due_s
        self._collected.endings.append((turn, ending))
        # The end of a turn that has delivered waits for its delivery's commit. A retry's does not:
        # only so many retries are at work, and the next one waits for its end.
        if not self._collected.delivered or turn.is_retry:
            self.due_s = 0.0
        return self.due_s < before_s

    def forget_turns(self) -> None:
        """Drop the ends of turns, when no turn is at work any more."""
        self._collected.endings.clear()

    def take(self) -> Collected:
        """Return the collected outcomes, for the caller to write, and begin anew."""
        taken, self._collected, self.due_s = self._collected, Collected(), math.inf
        return taken


def write(store: Transaction, taker: int, outcomes: Collected, now_ms: int) -> None:
    """Write collected outcomes."""
    if outcomes.delivered:
        store.settling(taker).deliver(outcomes.delivered, now_ms)
    store.count_tally(taker, outcomes.tally)
    for pending in outcomes.writes:
        pending.run(store)
