"""The contents and the integrity of a spool's file, read beside its writer.

The connection neither writes nor checkpoints, and reads a little at a time. So the writer is never
delayed; but its log grows while the structure of the file is checked.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.accounts import PARKED, is_settled, under
from amplitude_intercom.engine.spool.batches import SLOTS, batch_checksum, entries_of
from amplitude_intercom.engine.spool.checksums import contact_checksum, holds, letter_checksum
from amplitude_intercom.engine.spool.connection import Damaged, check_order
from amplitude_intercom.engine.spool.records import COLUMNS, DamagedRecord, checked
from amplitude_intercom.engine.spool.relayed import body_checksum, head_checksum
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION
from amplitude_intercom.engine.spool.sqlite.snapshots import look_at, size_of
from amplitude_intercom.engine.spool.sqlite.spool_file import migrate, tables_of
from amplitude_intercom.engine.spool.takers import taker_checksum

CHUNK_ROWS = 2_000
CHUNK_BATCHES = 50
"""Rows of one read: of most tables, and of tables with large rows."""

MOST_FINDINGS = 100


class SpoolState(msgspec.Struct, frozen=True):
    """The contents of a spool's file. ``log_bytes`` is the size of the write-ahead log beside it.

    By table: ``rows``, ``table_bytes`` (pages, with those of indexes; empty if this SQLite cannot
    tell), ``oldest_ms`` (Unix milliseconds, for tables with a time). ``syncs`` has the counters of
    each sync.
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
    syncs: dict[str, dict[str, int]]
    last_trouble: str


class Damage(msgspec.Struct, frozen=True):
    """Damage in the file. ``key`` is the key of a row of ``table``."""

    table: str
    key: str
    problem: str


def state_of(path: Path) -> SpoolState:
    """Return the contents of a spool's file.

    Raises:
        SpoolError: the file is missing, or cannot be read.
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
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for (table,) in tables.fetchall()
        },
        table_bytes=_table_bytes(db),
        oldest_ms=_oldest_ms(db),
        syncs=_counters(db),
        last_trouble=last[0] if last else "",
    )


def _table_bytes(db: sqlite3.Connection) -> dict[str, int]:
    """Return the bytes of each table's pages; empty if this SQLite has no ``dbstat``."""
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
    "inbox": "SELECT accepted_at_ms FROM inbox ORDER BY id LIMIT 1",
    "records": "SELECT accepted_at_ms FROM records ORDER BY id LIMIT 1",
    "relayed": "SELECT accepted_at_ms FROM relayed ORDER BY id LIMIT 1",
    "dead_letters": "SELECT last_failed_at_ms FROM dead_letters ORDER BY id LIMIT 1",
    "users": "SELECT min(since_ms) FROM users",
    "insert_ids": "SELECT at_ms FROM insert_ids ORDER BY id LIMIT 1",
    "created_at_claims": "SELECT at_ms FROM created_at_claims ORDER BY id LIMIT 1",
    "contacts": "SELECT (min(day) + 1) * 86400000 FROM"  # by the day
    " (SELECT min(used_day) AS day FROM contacts WHERE unsure = 0 UNION ALL"
    " SELECT min(used_day) FROM contacts WHERE unsure = 1)",
}


def _counters(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    rows = db.execute(
        "SELECT t.name, c.name, c.value FROM counters c JOIN takers t ON t.id = c.taker"
        " ORDER BY t.id, c.name"
    )
    for sync, name, value in rows:
        found.setdefault(sync, {})[name] = value
    return found


def _oldest_ms(db: sqlite3.Connection) -> dict[str, int]:
    found = {table: db.execute(query).fetchone() for table, query in _FIRST_TIMES.items()}
    return {table: row[0] for table, row in found.items() if row and row[0] is not None}


def findings(path: Path) -> list[Damage]:
    """Return the damage in a spool's file, at most ``MOST_FINDINGS``; empty if there is none.

    Raises:
        SpoolError: the file is missing, or cannot be read at all.
    """
    return look_at(path, lambda db: list(islice(_findings(db), MOST_FINDINGS)))


def _findings(db: sqlite3.Connection) -> Iterator[Damage]:
    of_rows = (_takers, _inbox, _records, _relayed, _dead_letters, _contacts)
    for check in (_structure, _tables, *of_rows, _accounting):
        yield from _until_unreadable(db, check)


def _until_unreadable(
    db: sqlite3.Connection, check: Callable[[sqlite3.Connection], Iterator[Damage]]
) -> Iterator[Damage]:
    try:
        yield from check(db)
    except (sqlite3.Error, Damaged, ValueError, TypeError) as error:
        yield Damage(check.__name__.strip("_"), "", f"cannot be read to its end: {error}")


def _structure(db: sqlite3.Connection) -> Iterator[Damage]:
    for (line,) in db.execute(f"PRAGMA integrity_check({MOST_FINDINGS})"):
        if line != "ok":
            yield Damage("file", "", line)


def _tables(db: sqlite3.Connection) -> Iterator[Damage]:
    """Compare the tables with those of a new spool, if this one has the same version."""
    if db.execute("PRAGMA user_version").fetchone() != (SCHEMA_VERSION,):
        return
    with closing(sqlite3.connect(":memory:")) as new:
        migrate(new)
        found, expected = tables_of(db), tables_of(new)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            yield Damage("file", name, "is not as this program makes it")


def _walk(
    db: sqlite3.Connection, query: str, key: str, start: Any, chunk: int = CHUNK_ROWS
) -> Iterator[tuple[Any, ...]]:
    """Yield all rows of a query by their key, its first column; read ``chunk`` rows at a time."""
    while True:
        rows = db.execute(f"{query} WHERE {key} > ? ORDER BY {key} LIMIT ?", (start, chunk))
        found = rows.fetchall()
        check_order(start, (row[0] for row in found))
        yield from found
        if len(found) < chunk:
            return
        start = found[-1][0]


def _checked(
    db: sqlite3.Connection, table: str, columns: str, checksum_of: Callable[..., int], start: Any
) -> Iterator[Damage]:
    """Check the rows of a table. The first column is the key, the last the checksum."""
    key_column = columns.partition(",")[0]
    query = f"SELECT {columns} FROM {table}"
    for key, *fields, crc in _walk(db, query, key_column, start):
        if not holds(crc, checksum_of, key, *fields):
            yield Damage(table, str(key), WRONG)


WRONG = "its checksum does not match"


def _takers(db: sqlite3.Connection) -> Iterator[Damage]:
    for id_, name, crc in db.execute("SELECT id, name, crc FROM takers ORDER BY id").fetchall():
        if not holds(crc, taker_checksum, name):
            yield Damage("takers", str(id_), WRONG)


def _inbox(db: sqlite3.Connection) -> Iterator[Damage]:
    """Check the index of each batch, and the events of packed ones."""
    unpacked = dict(db.execute("SELECT id, unpacked_to FROM takers").fetchall())
    query = "SELECT id, taker, accepted_at_ms, count, crc, entries, events FROM inbox"
    for id_, taker, at_ms, count, crc, text, events in _walk(db, query, "id", -1, CHUNK_BATCHES):
        try:
            index = text.encode()
            whole = batch_checksum(id_, taker, at_ms, count, index) == crc
            entries = entries_of(index) if whole else []
        except (AttributeError, TypeError, ValueError):
            whole, entries = False, []
        if not whole:
            yield Damage("inbox", str(id_), WRONG)
        if id_ > unpacked.get(taker, 0):
            start = 0
            for slot, entry in enumerate(entries):
                if zlib.crc32(events[start : start + entry.length]) != entry.checksum:
                    yield Damage("inbox", str(id_ * SLOTS + slot), WRONG)
                start += entry.length + 1


def _records(db: sqlite3.Connection) -> Iterator[Damage]:
    query = (
        f"SELECT {COLUMNS}, CASE WHEN r.raw IS NULL THEN substr(b.events, r.start + 1, r.length)"
        f" END FROM records r LEFT JOIN inbox b ON b.id = r.id / {SLOTS}"
    )
    for *row, pointed in _walk(db, query, "r.id", -1):
        if isinstance(checked(row, pointed), DamagedRecord):
            yield Damage("records", str(row[0]), WRONG)


def _relayed(db: sqlite3.Connection) -> Iterator[Damage]:
    query = (
        "SELECT id, accepted_at_ms, api_key, count, devices, remaining, crc, request, body,"
        " body_crc FROM relayed"
    )
    for id_, *head, crc, request, body, body_crc in _walk(db, query, "id", -1, CHUNK_BATCHES):
        is_whole = holds(crc, head_checksum, id_, *head)
        if not is_whole or not holds(body_crc, body_checksum, request, body):
            yield Damage("relayed", str(id_), WRONG)


def _dead_letters(db: sqlite3.Connection) -> Iterator[Damage]:
    columns = "id, reason, user_key, accepted_at_ms, raw, crc"
    return _checked(db, "dead_letters", columns, letter_checksum, -1)


def _contacts(db: sqlite3.Connection) -> Iterator[Damage]:
    kinds = db.execute("SELECT DISTINCT workspace, field FROM contacts").fetchall()
    for workspace, field in kinds:
        quoted = str(field).replace("'", "''")
        query = (
            "SELECT value, workspace, field, known, crc FROM (SELECT * FROM contacts"
            f" WHERE workspace = {int(workspace)} AND field = '{quoted}')"
        )
        for value, *rest, known, crc in _walk(db, query, "value", ""):
            if not holds(crc, contact_checksum, *rest, value, known):
                yield Damage("contacts", str(value), WRONG)


def _accounting(db: sqlite3.Connection) -> Iterator[Damage]:
    """Compare the counters with the rows that they count, and with each other."""
    db.execute("BEGIN")
    counted = _counters(db)
    for taker, sync in db.execute("SELECT id, name FROM takers ORDER BY id").fetchall():
        counters = counted.get(sync, {})
        for name, query in _COUNTS.items():
            (rows,) = db.execute(query, (taker,) * query.count("?")).fetchone()
            if (rows or 0) != counters.get(name, 0):
                said = f"says {counters.get(name, 0)}, there are {rows or 0}"
                yield Damage("counters", f"{sync} {name}", said)
        parked = dict(db.execute(_PARKED_USERS, (taker,)).fetchall())
        if parked != (said_parked := under(counters, PARKED)):
            yield Damage("counters", f"{sync} parked", f"says {said_parked}, there are {parked}")
        settled = sum(n for name, n in counters.items() if is_settled(name))
        settled += counters.get("pending", 0)
        if settled != counters.get("received", 0):
            said = f"says {counters.get('received', 0)}, accounted for are {settled}"
            yield Damage("counters", f"{sync} received", said)
    db.execute("COMMIT")


_PARKED_USERS = (
    "SELECT reason, count(*) FROM users WHERE taker = ? AND reason <> '' GROUP BY reason"
)

_COUNTS = {
    "pending": "SELECT (SELECT count(*) FROM records WHERE taker = ?) + (SELECT"
    " coalesce(sum(b.count), 0) FROM inbox b JOIN takers t ON t.id = b.taker"
    " WHERE b.taker = ? AND b.id > t.unpacked_to) + (SELECT coalesce(sum(waiting), 0)"
    " FROM relayed WHERE taker = ?)",
    "dead": "SELECT count(*) FROM dead_letters WHERE taker = ?",
    "bytes:inbox": "SELECT (SELECT coalesce(sum(size_bytes), 0) FROM inbox WHERE taker = ?)"
    " + (SELECT coalesce(sum(size_bytes), 0) FROM relayed WHERE taker = ?)",
    "bytes:along": "SELECT sum(length(raw)) FROM records WHERE taker = ?",
}
