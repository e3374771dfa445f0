"""Walks through the dead letters of a query, in the order of their last failure.

Rules
=====
1. The conditions of a query beside a time are the first columns of an index that goes on in the
   order of the walk. So a page costs its own letters, however many there are.
2. The letters of a user are one range for each reason, merged: one index less to be written.
3. Named letters are walked by id.
4. Positions are those of the index. They come in order even where a letter itself is damaged, so a
   walk from one to the next ends.
5. The other conditions of a group (status, code, event type) are in no index. Of the letters that
   the rest of the query means, ``MOST_EXAMINED`` are looked at, and the walk goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from amplitude_intercom.engine.spool.connection import Connection, holes, in_slices
from amplitude_intercom.engine.spool.letters import (
    END,
    MOST,
    START,
    DeadLetterQuery,
    Matching,
    Position,
)

MOST_EXAMINED: Final = 2_000


class Walked(NamedTuple):
    """Where the first letters of a query are, in order. ``examined``: up to where there was a look;
    None: behind the last of them nothing is left."""

    found: list[Position]
    examined: Position | None = None


def positions(
    db: Connection,
    taker: int,
    query: DeadLetterQuery,
    after: Position,
    up_to: Position,
    limit: int,
) -> Walked:
    """Return where the first letters behind a position are that a query means.

    They are those of the index, which come in order even where a letter itself is damaged: a
    walk from one to the next ends.
    """
    if query.ids is not None:
        return Walked(named(db, taker, query, after, up_to, limit))
    most = MOST_EXAMINED if query.of_group else limit
    found: list[Position] = []
    examined: Position | None = None
    for narrow in ranges(db, taker, query):
        where, values = _walk(taker, narrow, after, up_to)
        meant, held = _of_group(query)
        rows = db.execute(
            f"SELECT last_failed_at_ms, id, {meant} FROM dead_letters WHERE {where}"
            " ORDER BY last_failed_at_ms, id LIMIT ?",
            (*held, *values, most),
        ).fetchall()
        found += [Position(at_ms, id_) for at_ms, id_, is_meant in rows if is_meant]
        if query.of_group and len(rows) == most:
            examined = min(Position(*rows[-1][:2]), examined or END)
    return Walked(sorted(one for one in found if one <= (examined or END))[:limit], examined)


def _of_group(query: DeadLetterQuery) -> tuple[str, list[Any]]:
    """Return the condition of a query's group, which is in no index, with its values."""
    held = query.of_group
    return " AND ".join(f"{name} = ?" for name in held) or "1", list(held.values())


def ranges(db: Connection, taker: int, query: DeadLetterQuery) -> Iterator[DeadLetterQuery]:
    """Yield queries that mean the same together, each of them one range of an index."""
    if query.user is None or query.reason is not None:
        yield query
        return
    for reason in _reasons(db, taker, query.user):
        yield msgspec.structs.replace(query, reason=reason)


def _reasons(db: Connection, taker: int, user: str) -> list[str]:
    """Return which reasons a user's letters have: one step in the index for each.

    In a damaged index the steps may lead round in a circle.
    """
    found = [""]
    while True:
        (reason,) = db.execute(
            "SELECT min(reason) FROM dead_letters WHERE taker = ? AND user_key = ? AND reason > ?",
            (taker, user, found[-1]),
        ).fetchone()
        if reason is None or reason in found:
            return found[1:]
        found.append(reason)


def named(
    db: Connection,
    taker: int,
    query: DeadLetterQuery,
    after: Position,
    up_to: Position,
    limit: int,
) -> list[Position]:
    """Return where the first named letters behind an id are, by id.

    Of the many that a job may name, each slice of it looks at its own. The other conditions are
    not SQLite's matter: it would take their index, and look at all that they mean.
    """
    found: list[Position] = []
    first, last = _span(query, START, up_to)
    meant, held = _of_group(query)
    for some in in_slices(sorted(id_ for id_ in set(query.ids or ()) if id_ > after.id)):
        if len(found) >= limit:
            break
        rows = db.execute(
            f"SELECT last_failed_at_ms, id, taker, reason, user_key, {meant} FROM dead_letters"
            f" WHERE id IN {holes(len(some))} ORDER BY id",
            [*held, *some],
        )
        found += [
            position
            for at_ms, id_, holder, reason, user, is_meant in rows
            if holder == taker
            and is_meant
            and query.reason in (None, reason)
            and query.user in (None, user)
            and first < (position := Position(at_ms, id_)) <= last
        ]
    return found[:limit]


def count_up_to(
    db: Connection,
    taker: int,
    query: DeadLetterQuery,
    most: int,
    after: Position = START,
    up_to: Position = END,
) -> Matching:
    """Return the number of letters in one range of an index; ``most`` are looked at."""
    where, values = _walk(taker, query, after, up_to)
    meant, held = _of_group(query)
    number, looked_at = db.execute(
        f"SELECT sum(meant), count(*) FROM (SELECT {meant} AS meant FROM dead_letters"
        f" WHERE {where} LIMIT ?) AS found",
        (*held, *values, most + 1),
    ).fetchone()
    return Matching(min(int(number or 0), most), looked_at > most)


def count_all(
    db: Connection, taker: int, query: DeadLetterQuery, after: Position, up_to: Position
) -> int:
    """Return the number of letters behind a position, up to another one; each is counted."""
    if query.ids is not None:
        return len(named(db, taker, query, after, up_to, len(query.ids)))
    total = 0
    for narrow in ranges(db, taker, query):
        where, values = _walk(taker, narrow, after, up_to)
        meant, held = _of_group(query)
        (count,) = db.execute(
            f"SELECT count(*) FROM dead_letters WHERE {where} AND {meant}", (*values, *held)
        ).fetchone()
        total += int(count)
    return total


def _span(query: DeadLetterQuery, after: Position, up_to: Position) -> tuple[Position, Position]:
    """Return behind which position a query's letters begin, and with which they end at the latest.

    ``since_ms`` and ``until_ms`` are positions too: a walk is one range of an index.
    """
    since = START if query.since_ms is None else Position(query.since_ms - 1, MOST)
    until = END if query.until_ms is None else Position(query.until_ms - 1, MOST)
    return max(after, since), min(up_to, until)


def _walk(
    taker: int, query: DeadLetterQuery, after: Position, up_to: Position
) -> tuple[str, list[Any]]:
    """Return the conditions of a walk with their values; the index of the first has the others."""
    names = {"taker": taker, "user_key": query.user, "reason": query.reason}
    given = {name: value for name, value in names.items() if value is not None}
    first, last = _span(query, after, up_to)
    parts = [
        *(f"{name} = ?" for name in given),
        "(last_failed_at_ms, id) > (?, ?)",
        "(last_failed_at_ms, id) <= (?, ?)",
    ]
    return " AND ".join(parts), [*given.values(), *first, *last]
