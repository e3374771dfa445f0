"""Looking at a spool's file from outside, whoever is writing it: what is in it, and is it whole?

Reads with a connection of its own that neither writes nor checkpoints, a little at a time. The one
that does is not held up; but its log grows while the structure of the file is checked.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.reading import look_at, size_of
from amplitude_intercom.engine.spool.rows import (
    check_order,
    checksum,
    contact_checksum,
    holds,
    letter_checksum,
)
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION, migrate, tables_of
from amplitude_intercom.engine.spool.store import is_settled

CHUNK_ROWS = 2_000
MOST_FINDINGS = 100


class SpoolState(msgspec.Struct, frozen=True):
    """What a spool's file holds. ``log_bytes``: of the write-ahead log beside it.

    ``rows``, ``table_bytes`` (pages, those of indexes included; empty where SQLite cannot tell) and
    ``oldest_ms`` (Unix milliseconds, of tables whose rows have a time) are by table.
    """

    path: str
    schema_version: int
    sqlite: str
    file_bytes: int
    free_bytes: int
    log_bytes: int
    reserve_bytes: int
    rows: dict[str, int]
    table_bytes: dict[str, int]
    oldest_ms: dict[str, int]
    counters: dict[str, int]
    last_trouble: str


class Damage(msgspec.Struct, frozen=True):
    """Something that is not as it was written. ``key``: the row's, in ``table``."""

    table: str
    key: str
    problem: str


def state_of(path: Path) -> SpoolState:
    """Return what a spool's file holds.

    Raises:
        SpoolError: it is not there, or cannot be read.
    """
    return look_at(path, lambda db: _state(db, path))


def _state(db: sqlite3.Connection, path: Path) -> SpoolState:
    db.execute("BEGIN")
    (page_bytes,), (free,) = db.execute("PRAGMA page_size"), db.execute("PRAGMA freelist_count")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    last = db.execute("SELECT value FROM meta WHERE key = 'last_trouble'").fetchone()
    return SpoolState(
        path=str(path),
        schema_version=version,
        sqlite=sqlite3.sqlite_version,
        file_bytes=size_of(str(path)),
        free_bytes=free[0] * page_bytes[0],
        log_bytes=size_of(f"{path}-wal"),
        reserve_bytes=size_of(f"{path}-reserve"),
        rows={
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - the schema's
            for (table,) in tables.fetchall()
        },
        table_bytes=_table_bytes(db),
        oldest_ms=_oldest_ms(db),
        counters=dict(db.execute("SELECT name, value FROM counters ORDER BY name").fetchall()),
        last_trouble=last[0] if last else "",
    )


def _table_bytes(db: sqlite3.Connection) -> dict[str, int]:
    """Return the bytes of each table's pages; nothing where this SQLite has no ``dbstat``."""
    try:
        return dict(
            db.execute(
                "SELECT s.tbl_name, sum(d.pgsize) FROM dbstat('main', 1) d"
                " JOIN sqlite_schema s ON s.name = d.name GROUP BY s.tbl_name ORDER BY 2 DESC"
            ).fetchall()
        )
    except sqlite3.OperationalError:
        return {}


_FIRST_TIMES = {
    "records": "SELECT accepted_at_ms FROM records ORDER BY id LIMIT 1",
    "dead_letters": "SELECT min(last_failed_at_ms) FROM dead_letters",
    "users_aside": "SELECT min(since_ms) FROM users_aside",
    "seen": "SELECT at_ms FROM seen ORDER BY id LIMIT 1",
    "contacts": "SELECT min(at_ms) FROM contacts",
}


def _oldest_ms(db: sqlite3.Connection) -> dict[str, int]:
    found = {table: db.execute(query).fetchone() for table, query in _FIRST_TIMES.items()}
    return {table: row[0] for table, row in found.items() if row and row[0] is not None}


def findings(path: Path) -> list[Damage]:
    """Return what is damaged in a spool's file, the first hundred of it; nothing: it is whole.

    Raises:
        SpoolError: it is not there, or cannot be read at all.
    """
    return look_at(path, lambda db: list(islice(_findings(db), MOST_FINDINGS)))


def _findings(db: sqlite3.Connection) -> Iterator[Damage]:
    checks = [_structure, _tables, _records, _accounting]
    # Those of dead letters and contacts came later than the first version.
    if db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        checks += [_dead_letters, _contacts]
    for check in checks:
        yield from _until_unreadable(db, check)


def _until_unreadable(
    db: sqlite3.Connection, check: Callable[[sqlite3.Connection], Iterator[Damage]]
) -> Iterator[Damage]:
    try:
        yield from check(db)
    except (sqlite3.Error, ValueError, TypeError) as error:
        yield Damage(check.__name__.strip("_"), "", f"cannot be read to its end: {error}")


def _structure(db: sqlite3.Connection) -> Iterator[Damage]:
    for (line,) in db.execute(f"PRAGMA integrity_check({MOST_FINDINGS})"):
        if line != "ok":
            yield Damage("file", "", line)


def _tables(db: sqlite3.Connection) -> Iterator[Damage]:
    """Compare the tables with those of a new spool, where this one is of the same version."""
    if db.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
        return
    with closing(sqlite3.connect(":memory:")) as new:
        migrate(new)
        found, expected = tables_of(db), tables_of(new)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield Damage("file", name, "is not as this program makes it")


def _walk(
    db: sqlite3.Connection, table: str, key: str, columns: str, start: Any
) -> Iterator[tuple[Any, ...]]:
    """Yield all rows in the order of their key, a chunk a read."""
    while True:
        rows = db.execute(
            f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?",  # noqa: S608 - constants
            (start, CHUNK_ROWS),
        ).fetchall()
        check_order(start, (row[0] for row in rows))
        yield from rows
        if len(rows) < CHUNK_ROWS:
            return
        start = rows[-1][0]


def _checked(
    db: sqlite3.Connection, table: str, columns: str, checksum_of: Callable[..., int], start: Any
) -> Iterator[Damage]:
    """Check the rows of a table, whose key is the first column and whose checksum the last."""
    for key, *fields, crc in _walk(db, table, columns.partition(",")[0], columns, start):
        if not holds(crc, checksum_of, key, *fields):
            yield Damage(table, str(key), "its checksum does not match")


def _records(db: sqlite3.Connection) -> Iterator[Damage]:
    columns = "id, kind, user_key, accepted_at_ms, raw, crc"
    return _checked(db, "records", columns, checksum, -1)


def _dead_letters(db: sqlite3.Connection) -> Iterator[Damage]:
    columns = "id, reason, user_key, accepted_at_ms, raw, crc"
    return _checked(db, "dead_letters", columns, letter_checksum, -1)


def _contacts(db: sqlite3.Connection) -> Iterator[Damage]:
    columns = "user_key, contact_id, properties, written, crc"
    return _checked(db, "contacts", columns, contact_checksum, "")


def _accounting(db: sqlite3.Connection) -> Iterator[Damage]:
    db.execute("BEGIN")
    counters = dict(db.execute("SELECT name, value FROM counters").fetchall())
    for table, name in (("records", "pending"), ("dead_letters", "dead")):
        (rows,) = db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - constants
        if rows != counters.get(name, 0):
            yield Damage("counters", name, f"says {counters.get(name, 0)}, there are {rows}")
    db.execute("COMMIT")
    settled = sum(n for name, n in counters.items() if is_settled(name))
    settled += counters.get("pending", 0)
    if settled != counters.get("received", 0):
        said = f"says {counters.get('received', 0)}, accounted for are {settled}"
        yield Damage("counters", "received", said)
