"""The interface of a database to the tables: the part that SQLite and PostgreSQL share.

Statements are written once, in the SQL of both, with ``?`` for values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

MOST_ROWS = 512
"""Rows of one statement. More rows are not faster."""


class Damaged(Exception):
    """The file is damaged: data that was read cannot be the data that was written."""


class Rows(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """An open database, used by one thread."""

    @property
    def Error(self) -> type[Exception]:
        """The base of the database's exceptions."""
        ...

    @property
    def IntegrityError(self) -> type[Exception]:
        """The exception for a row whose key exists, which only damage can cause."""
        ...

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Rows:
        """Run one statement."""
        ...


def holes(count: int) -> str:
    """Return ``count`` placeholders in brackets."""
    return f"({', '.join('?' * count)})"


def insert_many(
    db: Connection, insert: str, width: int, rows: Sequence[Sequence[Any]], then: str = ""
) -> int:
    """Insert rows of ``width`` values, many a statement; return the number of inserted rows.

    ``then`` ends each statement, as ``ON CONFLICT DO NOTHING``.
    """
    # Not `executemany`: it releases the interpreter's lock for every row and waits for it again,
    # which beside a busy event loop costs more than the database does.
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
    """Yield the rows of a query that ends in ``… IN``, for any number of values.

    ``before`` has the values of the conditions before that.
    """
    for some in in_slices(values):
        yield from db.execute(f"{query} {holes(len(some))}", [*before, *some])


def change_in(
    db: Connection, statement: str, values: Sequence[Any], before: Sequence[Any] = ()
) -> int:
    """Run a statement that ends in ``… IN``; return the number of changed rows."""
    changed = 0
    for some in in_slices(values):
        changed += db.execute(f"{statement} {holes(len(some))}", [*before, *some]).rowcount
    return changed


def check_order(after: Any, keys: Iterable[Any]) -> None:
    """Check that keys ascend, because a damaged tree can lead round in a circle.

    Raises:
        Damaged: they do not.
    """
    for key in keys:
        if not key > after:
            raise Damaged("rows are out of order: the file is damaged")
        after = key
