"""The ends of one sync's turns: written to the spool, then followed in memory.

Rules
=====
1. A turn's user is free for its next turn when the end of this one is durable: before that, a kill
   would repeat the turn behind the next one.
2. A parked or deferred user has a row in the table of users, and nothing in memory. So an end that
   writes such a row drops all loaded records of the user.
3. A turn with an end that cannot be written is abandoned: its user is on disk as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from amplitude_intercom.engine.delivery import waiting
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    Failing,
    GoOn,
    PutBack,
    Unknown,
)
from amplitude_intercom.engine.delivery.loaded_bytes import SyncBytes
from amplitude_intercom.engine.delivery.outcomes import PendingWrite
from amplitude_intercom.engine.delivery.scheduler import Scheduler
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import Retries
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction

Ended = tuple[Turn, Ending]


class TurnEnds:
    """Writes the ends of turns, and tells the scheduler; see the module's docstring."""

    def __init__(
        self,
        spool: TakerSpool,
        scheduler: Scheduler,
        loaded: SyncBytes,
        retries: Retries,
        *,
        now_ms: Callable[[], int],
        look_at_table: Callable[[], None],
    ) -> None:
        """``look_at_table`` is called when users may be due that were not."""
        self._spool = spool
        self._scheduler = scheduler
        self._loaded = loaded
        self._retries = retries
        self._now_ms = now_ms
        self._look_at_table = look_at_table

    def __repr__(self) -> str:
        return f"TurnEnds({self._spool.name})"

    def writes(self, ended: Iterable[Ended]) -> list[PendingWrite]:
        """Return the writes for some ends."""
        return [
            self._write_of(turn, ending)
            for turn, ending in ended
            if waiting.is_written(turn, ending)
        ]

    def _write_of(self, turn: Turn, ending: Ending) -> PendingWrite:
        # Read before the transaction: in the spool's thread the scheduler's state may change.
        others = [record.id for record in self._scheduler.of(turn.sync).loaded_of(turn.user)]
        return PendingWrite(partial(self._write, turn, ending, others, self._now_ms()))

    def _write(
        self, turn: Turn, ending: Ending, others: Sequence[int], now_ms: int, store: Transaction
    ) -> None:
        taker = self._spool.taker
        if waiting.write_end(store, taker, turn, ending, others, self._retries, now_ms):
            self._spool.job_added()

    def note_durable(self, ended: Iterable[Ended]) -> None:
        """Let the users of turns go on, or wait."""
        for turn, ending in ended:
            match ending:
                case GoOn(back, succeeded):
                    self._scheduler.go_on(turn, back, succeeded=succeeded)
                case PutBack(back, needs):
                    self._scheduler.put_back(turn, back, needs)
                case Deferred(back) | Failing(back) | Unknown(back):
                    self._loaded.let_go(back)
                    self._loaded.let_go(self._scheduler.of(turn.sync).loaded_of(turn.user))
                    self._scheduler.set_aside(turn)
                    # A wait may be shorter than the time until the next look.
                    self._look_at_table()

    def abandon(self, ended: Iterable[Ended]) -> None:
        """Let turns go if their ends cannot be written."""
        for turn, _ in ended:
            self._scheduler.abandon(turn)
