"""What the tables need of a database: the small part that SQLite and PostgreSQL have in common.

Statements are written once, with ``?`` for values, in the SQL that both know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

MOST_ROWS = 512
"""Rows of one statement. More would not be any faster."""


class Damaged(Exception):
    """What was read is not as it was written: the file is damaged."""


class Rows(Protocol):
    """What a statement found."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """An open database, in the hands of one thread."""

    @property
    def Error(self) -> type[Exception]:
        """What the database raises: its trouble, and no fault of what it was given."""
        ...

    @property
    def IntegrityError(self) -> type[Exception]:
        """What it raises of a row that is there already: damage of one of the two."""
        ...

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        """Run one statement."""
        ...


def holes(count: int) -> str:
    """Return so many placeholders, in brackets."""
    return f"({', '.join('?' * count)})"


def insert_many(
    db: Connection, insert: str, width: int, rows: Sequence[Sequence[Any]], then: str = ""
) -> int:
    """Insert rows of ``width`` values, many a statement; return how many were inserted.

    ``then`` ends each statement: what is to be done where a row is there already.

    ``executemany`` gives the interpreter's lock away for every row, and waits for it after every
    row: with a busy event loop in another thread that costs more than the database does.
    """
    inserted, start = 0, 0
    while start < len(rows):
        count = min(MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        places = ", ".join([holes(width)] * count)
        inserted += db.execute(f"{insert} VALUES {places} {then}", values).rowcount
        start += count
    return inserted


def in_slices(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield values in slices that fit one statement."""
    for start in range(0, len(values), MOST_ROWS):
        yield values[start : start + MOST_ROWS]


def find_in(
    db: Connection, query: str, values: Sequence[Any], before: Sequence[Any] = ()
) -> Iterator[Any]:
    """Yield what a query finds whose last condition is ``… IN``, for any number of values.

    ``before``: the values of the conditions ahead of it.
    """
    for some in in_slices(values):
        yield from db.execute(f"{query} {holes(len(some))}", [*before, *some])


def change_in(
    db: Connection, statement: str, values: Sequence[Any], before: Sequence[Any] = ()
) -> int:
    """Run a statement whose last condition is ``… IN``; return how many rows it has changed."""
    changed = 0
    for some in in_slices(values):
        changed += db.execute(f"{statement} {holes(len(some))}", [*before, *some]).rowcount
    return changed


def check_order(after: Any, keys: Iterable[Any]) -> None:
    """Check that keys were read in ascending order: a damaged tree can lead round in a circle.

    Raises:
        Damaged: they were not.
    """
    for key in keys:
        if not key > after:
            raise Damaged("rows are out of order: the file is damaged")
        after = key
