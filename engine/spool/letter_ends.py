"""How dead letters leave their table: taken out for a replay, or dropped and counted."""

from __future__ import annotations

from collections.abc import Sequence

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery
from amplitude_intercom.engine.spool.tables import Tables


def take_out(tables: Tables, taker: int, ids: Sequence[int]) -> set[int]:
    """Delete dead letters; return the ids of those that were there."""
    gone = tables.letters.remove(taker, ids)
    # Counted by what was there: another request may have settled some of them meanwhile.
    for reason in gone.values():
        tables.accounts.count_dead(taker, reason, -1)
    return set(gone)


def discard(
    tables: Tables,
    taker: int,
    letters: Sequence[DeadLetter],
    reason: str = DropReason.DISCARDED,
) -> int:
    """Settle dead letters as dropped; return how many were still there."""
    gone = take_out(tables, taker, [letter.id for letter in letters])
    tables.accounts.add(taker, f"dropped:{reason}", len(gone))
    # The log must not tell a second time of a letter that was settled meanwhile.
    for letter in letters:
        if letter.id in gone:
            tables.lines.dropped(tables.takers.name_of(taker), letter, reason)
    return len(gone)


def forget(tables: Tables, taker: int, ids: Sequence[int], reason: str) -> int:
    """Settle dead letters as dropped, by their ids; return how many were still there."""
    # The letters themselves can be megabytes: they are read for the log's lines alone.
    if logs.debugging():
        for letter in tables.letters.find(taker, DeadLetterQuery(ids=list(ids))):
            tables.lines.dropped(tables.takers.name_of(taker), letter, reason)
    gone = take_out(tables, taker, ids)
    tables.accounts.add(taker, f"dropped:{reason}", len(gone))
    return len(gone)
