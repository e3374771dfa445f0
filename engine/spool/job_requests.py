"""Jobs are asked for about everything that a taker has now, and nothing that comes later."""

from __future__ import annotations

from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind, JobRow, NewMapping
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, Position
from amplitude_intercom.engine.spool.tables import Tables


def ask_job(
    tables: Tables,
    kind: JobKind,
    taker: int,
    query: DeadLetterQuery | Expiry | NewMapping,
    expected: int,
    *,
    who: str,
    why: str = "",
    now_ms: int,
) -> JobRow:
    """Keep a job about what a taker has now: ``expected`` records or letters."""
    sync = tables.takers.name_of(taker)
    highest_id = (tables.accounts.last_batch() + 1) * SLOTS - 1
    up_to = str(Position(tables.letters.last_failed_ms(taker), highest_id))
    return tables.jobs.add(
        lambda id_: JobRow(id_, kind, sync, query, up_to, expected, who, why, now_ms)
    )
