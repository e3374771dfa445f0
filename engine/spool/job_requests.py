"""Jobs are asked for about everything that a taker has now, and nothing that comes later."""

from __future__ import annotations

from typing import NamedTuple

from amplitude_intercom.engine.errors import SelectionEnded
from amplitude_intercom.engine.spool.asked_once import Once, asked_before, keep_asked
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind, JobRow, NewMapping
from amplitude_intercom.engine.spool.letters import END, MOST, START, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.tables import Tables


class Chosen(NamedTuple):
    """The dead letters that somebody has seen: those of a query that failed no later than the one
    with the id ``up_to_id``, and their number."""

    query: DeadLetterQuery
    up_to_id: int
    expected: int


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
    end: Position = END,
) -> JobRow:
    """Keep a job about what a taker has now, up to an ``end``: ``expected`` records or letters."""
    sync = tables.takers.name_of(taker)
    highest_id = (tables.accounts.last_batch() + 1) * SLOTS - 1
    now = Position(tables.letters.last_failed_ms(taker), highest_id)
    # Of both the earlier time: a job never goes beyond what is there now.
    up_to = str(Position(min(now.at_ms, end.at_ms), min(now.id, end.id)))
    return tables.jobs.add(
        lambda id_: JobRow(id_, kind, sync, query, up_to, expected, who, why, now_ms)
    )


def ask_once(
    tables: Tables,
    kind: JobKind,
    taker: int,
    chosen: Chosen,
    once: Once | None,
    *,
    who: str,
    why: str,
    now_ms: int,
) -> tuple[JobRow | None, bool]:
    """Keep a job about dead letters that were seen, unless it was asked before.

    Returns the job, and whether it is new; None: the key was used for another request, or its job
    is forgotten.

    Raises:
        SelectionEnded: the last letter that was seen has gone.
    """
    if once is not None and (before := asked_before(tables.meta, once, now_ms)):
        is_same = before.content == once.content
        return (tables.jobs.get(before.job) if is_same else None), False
    query, up_to_id, expected = chosen
    end = end_of_selection(tables, taker, up_to_id)
    if end == START:
        query, end = DeadLetterQuery(ids=[]), END
    made = ask_job(tables, kind, taker, query, expected, who=who, why=why, now_ms=now_ms, end=end)
    if once is not None:
        keep_asked(tables.meta, once, made.id, now_ms)
    return made, True


def end_of_selection(tables: Tables, taker: int, up_to_id: int) -> Position:
    """Return where a selection ends whose last letter has this id; 0: ahead of all letters.

    Ids are in order of acceptance: a letter with a higher id may have failed earlier. So the id
    stands for the time when its letter failed.

    Raises:
        SelectionEnded: the taker has no such letter.
    """
    if not up_to_id:
        return START
    failed_ms = tables.letters.failed_ms(taker, up_to_id)
    if failed_ms is None:
        raise SelectionEnded(f"dead letter {up_to_id}, the last that was seen, has gone")
    return Position(failed_ms, MOST)
