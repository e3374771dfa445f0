"""Reads over several tables, for the accounting and for people."""

from __future__ import annotations

from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.letters import (
    END,
    START,
    DeadLetterQuery,
    Matching,
    Position,
    is_counted,
)
from amplitude_intercom.engine.spool.tables import Tables


def matching(tables: Tables, taker: int, query: DeadLetterQuery) -> Matching:
    """Return how many dead letters a query means; many are not all counted."""
    if is_counted(query):
        return _counted(tables, taker, query)
    return tables.letters.count(taker, query)


def _counted(tables: Tables, taker: int, query: DeadLetterQuery) -> Matching:
    """Return the count that is kept of the letters that a query means."""
    if query.of_group:
        return tables.letters.groups.count(taker, query.reason, query.of_group)
    name = f"dead:{query.reason}" if query.reason else "dead"
    return Matching(tables.accounts.value(taker, name))


def matching_up_to(tables: Tables, taker: int, query: DeadLetterQuery, up_to: Position) -> int:
    """Return how many dead letters a query means up to a position, exactly.

    Takes a while where there are very many that are not counted anyway.
    """
    kept = _counted(tables, taker, query) if is_counted(query) else None
    if up_to == START or kept is None or kept.more:
        return tables.letters.count_all(taker, query, START, up_to)
    # From the end: those that came since somebody looked are few, and all may be a million.
    return max(0, kept.number - tables.letters.count_all(taker, query, up_to, END))


def waiting_records(tables: Tables, taker: int, user: str, most: int) -> int:
    """Return how many records of a user wait on disk; ``most`` are counted."""
    (count,) = tables.db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM records WHERE set_aside = 1 AND taker = ?"
        " AND user_key = ? LIMIT ?) AS found",
        (taker, user, most),
    ).fetchone()
    return int(count)


def parked(tables: Tables, taker: int) -> int:
    """Return how many records wait with a parked user. Takes a while where there are many."""
    (count,) = tables.db.execute(
        "SELECT count(*) FROM records r JOIN users u"
        " ON u.taker = r.taker AND u.user_key = r.user_key"
        " WHERE r.set_aside = 1 AND r.taker = ? AND u.wake_at_ms IS NOT NULL",
        (taker,),
    ).fetchone()
    return int(count)


def waits_up_to(tables: Tables, taker: int, last: int) -> bool:
    """Whether a record of a taker waits that came with the batch ``last`` or before."""
    # A record that is not set aside points into its batch, so two indexes know all of them.
    row = tables.db.execute(
        "SELECT 1 FROM inbox WHERE taker = ? AND id <= ? LIMIT 1", (taker, last)
    ).fetchone()
    # `+id`: else the rows of all takers are passed through, in the order of their ids.
    row = (
        row
        or tables.db.execute(
            "SELECT 1 FROM records WHERE set_aside = 1 AND taker = ? AND +id < ? LIMIT 1",
            (taker, (last + 1) * SLOTS),
        ).fetchone()
    )
    return row is not None


def first_waiting_ms(tables: Tables, taker: int) -> int | None:
    """Return when the first record was accepted that waits, those of parked users left out."""
    unpacked_to = tables.takers.unpacked_to(taker)
    times = [
        tables.db.execute(
            "SELECT r.accepted_at_ms FROM inbox b JOIN records r"
            f" ON r.id >= b.id * {SLOTS} AND r.id < (b.id + 1) * {SLOTS}"
            " WHERE b.taker = ? AND b.id <= ? AND r.set_aside = 0 ORDER BY r.id LIMIT 1",
            (taker, unpacked_to),
        ).fetchone(),
        tables.db.execute(
            "SELECT min((SELECT accepted_at_ms FROM records r WHERE r.set_aside = 1"
            " AND r.taker = u.taker AND r.user_key = u.user_key ORDER BY r.id LIMIT 1))"
            " FROM users u WHERE u.taker = ? AND u.reason = ''",
            (taker,),
        ).fetchone(),
    ]
    packed = tables.inbox.first_packed(taker, unpacked_to)
    found = [row[0] for row in times if row and isinstance(row[0], int)]
    return min([*found, *([packed[1]] if packed else [])], default=None)
