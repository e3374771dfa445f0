"""Writing the outcomes of a sync's turns: together, and if that fails each by itself.

Rules
=====
1. All outcomes that are collected are one transaction: every commit costs an fsync.
2. If that fails, each of them is written alone, because one that cannot be written must not keep
   the others. An outcome with a waiting caller tells the caller; any other fault is raised at the
   end.
3. At a cancel they are tried once. A call with a lost outcome is made again after the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.delivery.outcomes import Collected, PendingWrite, write
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.spool.contract import Loaded, TakerSpool, Transaction

_log = structlog.get_logger(__name__)

LAST_WRITE_S: Final = 2.0
"""Seconds for which a cancelled feed waits that the answered calls are on disk."""

Load = Callable[[Transaction], Loaded]
"""Loads records in the transaction that writes."""


class OutcomeWriter:
    """Writes outcomes of one sync; see the module's docstring."""

    def __init__(self, spool: TakerSpool, now_ms: Callable[[], int]) -> None:
        self._spool = spool
        self._now_ms = now_ms

    async def write(self, outcomes: Collected, load: Load | None = None) -> Loaded | None:
        """Write outcomes until they are durable; return the records that were loaded with them.

        Raises:
            Exception: some cannot be written; or there are none, and nothing can be loaded.
        """
        # A commit of nothing would cost an fsync.
        if outcomes.is_empty and load is None:
            return None
        taker, now_ms = self._spool.taker, self._now_ms()

        def work(store: Transaction) -> Loaded | None:
            write(store, taker, outcomes, now_ms)
            return None if load is None else load(store)

        try:
            # One try on damaged rows: the parts are tried alone right after it.
            loaded = await self._spool.persist(work, tries=1)
        except Exception as fault:
            # The load alone has failed: there is nothing that could be written alone.
            if outcomes.is_empty:
                raise
            _log.error("what came of turns cannot be written together", exc_info=fault)
            # Without the load, which may be what failed. The next round loads.
            await self._write_each(outcomes, now_ms)
            return None
        for pending in outcomes.writes:
            pending.tell()
        return loaded

    async def _write_each(self, outcomes: Collected, now_ms: int) -> None:
        taker = self._spool.taker
        # In the order of `write`: the end of a turn comes after its deliveries.
        alone = [
            *(PendingWrite(partial(_deliver_one, taker, r, now_ms)) for r in outcomes.delivered),
            PendingWrite(lambda store: store.count_tally(taker, outcomes.tally)),
            *outcomes.writes,
        ]
        faults: list[Exception] = []
        for pending in alone:
            try:
                await self._spool.persist(pending.run)
            except Exception as fault:
                pending.tell(fault)
                # Nobody waits for it. It is raised after the others, because it ends the run of the
                # feed.
                if pending.done is None:
                    faults.append(fault)
            else:
                pending.tell()
        if faults:
            raise faults[0]

    async def write_once(self, outcomes: Collected) -> None:
        """Try once to write outcomes, though the task is being cancelled; a hanging disk is waited
        for no longer than ``LAST_WRITE_S``."""
        taker, now_ms = self._spool.taker, self._now_ms()
        # Shielded, or the cancel would end the wait for the commit as well.
        with anyio.move_on_after(LAST_WRITE_S, shield=True), suppress(Exception):
            await self._spool.attempt(lambda store: write(store, taker, outcomes, now_ms))


def _deliver_one(taker: int, record: Record, now_ms: int, store: Transaction) -> None:
    store.settling(taker).deliver([record], now_ms)
