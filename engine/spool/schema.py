"""The tables of a spool and how its file is opened.

One SQLite file per sync, in WAL mode with ``synchronous=FULL``: a commit that returned is on disk.
Exactly one connection writes and checkpoints, which also keeps clear of the WAL-reset bug that
SQLite had before 3.51.3 (it takes two connections). A person can read all of it with ``sqlite3``.

The tables are the sum of ``STEPS``: a spool of version *n* has had the first *n* of them. A step
that was released is never changed; what is new is a step of its own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.rows import contact_checksum, letter_checksum
from amplitude_intercom.transports.reasons import RefusalReason

APPLICATION_ID: Final = 0x416D4963  # "AmIc"
PAGE_BYTES: Final = 8192

_FIRST: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- Accepted and not settled, in the order of acceptance. kind: 1 event, 2 identify,
-- 3 event that updates its user too.
-- set_aside: its user has a row in users_aside, and the record waits there.
-- claim_id: the id it had first; a replayed dead letter gets a new place and keeps its claims.
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    user_key TEXT NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    first_failed_at_ms INTEGER NOT NULL DEFAULT 0,
    set_aside INTEGER NOT NULL DEFAULT 0,
    claim_id INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;
CREATE INDEX records_set_aside ON records (user_key, id) WHERE set_aside = 1;
CREATE INDEX records_replayed ON records (claim_id) WHERE claim_id <> id;

-- Users whose records wait: parked until wake_at_ms, or (NULL) being worked off bit by bit.
-- since_ms: of the first of its failures in a row.
CREATE TABLE users_aside (
    user_key TEXT PRIMARY KEY,
    wake_at_ms INTEGER,
    failures INTEGER NOT NULL,
    reason TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX users_aside_by_wake ON users_aside (wake_at_ms) WHERE wake_at_ms IS NOT NULL;

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,
    status INTEGER NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_failed_at_ms INTEGER NOT NULL,
    last_failed_at_ms INTEGER NOT NULL,
    accepted_at_ms INTEGER NOT NULL,
    user_key TEXT NOT NULL,
    origin TEXT NOT NULL,
    line INTEGER,
    claim_id INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;
CREATE INDEX dead_letters_replayed ON dead_letters (claim_id) WHERE claim_id <> id;

-- Insert ids of the de-duplication window, as hashes; ordered by arrival through id.
CREATE TABLE seen (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at_ms INTEGER NOT NULL) STRICT;

-- The second that an event (id: its claim_id) was given; key: hash of user, name and second.
CREATE TABLE seconds (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    second INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

-- Contacts that are known: what they are called in Intercom, the Amplitude properties as last
-- worked out, and the fields as last written (both JSON objects). applied_id: the last record
-- whose operations are in them.
CREATE TABLE contacts (
    user_key TEXT PRIMARY KEY,
    contact_id TEXT NOT NULL,
    properties TEXT NOT NULL,
    written TEXT NOT NULL,
    applied_id INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

_CHECKSUMS_FOR_ALL: Final = """
ALTER TABLE dead_letters ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
UPDATE dead_letters SET crc =
    letter_checksum(id, CAST(reason AS BLOB), CAST(user_key AS BLOB), accepted_at_ms, raw);
ALTER TABLE contacts ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
UPDATE contacts SET crc = contact_checksum(CAST(user_key AS BLOB), CAST(contact_id AS BLOB),
    CAST(properties AS BLOB), CAST(written AS BLOB));
"""

_SECONDS_ARE_SHARED: Final = """
ALTER TABLE seconds RENAME TO seconds_before;

-- The second that an event (id: its claim_id) was given. key: hash of user, name and second, in the
-- row of the event that holds it; content: hash of user, name, own second and bytes, in the row of
-- the first event with these. Events that share a second have neither.
CREATE TABLE seconds (
    id INTEGER PRIMARY KEY,
    key BLOB UNIQUE,
    content BLOB UNIQUE,
    second INTEGER NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO seconds (id, key, second, at_ms)
    SELECT id, key, second, at_ms FROM seconds_before WHERE typeof(key) = 'blob'
    AND typeof(second) = 'integer' AND typeof(at_ms) = 'integer';
DROP TABLE seconds_before;
"""

STEPS: Final = (_FIRST, _CHECKSUMS_FOR_ALL, _SECONDS_ARE_SHARED)
SCHEMA_VERSION: Final = len(STEPS)


def connect(path: Path) -> sqlite3.Connection:
    """Open a spool for writing, creating it where there is none (readable by its owner only).

    What a process that died left in the WAL is folded into the file at once, unless somebody is
    looking at it. The last of it may be in memory only, where its fsync had failed: then it should
    not lie before what comes now.

    Raises:
        SpoolError: not a spool, written by a later version, or not to be opened at all.
    """
    try:
        _create_private(path)
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except (sqlite3.Error, OSError) as error:
        raise _failing(path, error) from error
    with _closed_on_failure(connection, path):
        connection.text_factory = tolerant
        _check(connection, path)
        _configure(connection)
        migrate(connection)
        fold(connection)
    return connection


def has_log(path: Path) -> bool:
    """Return whether a spool has a log beside it: somebody writes, or ended without folding it."""
    return os.path.exists(f"{path}-wal") and os.path.exists(f"{path}-shm")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a spool that somebody else may be writing, to look at it. Nothing at all is written.

    A reader of a log shares an index of it with the writer (``-shm``), which SQLite would create
    and change for the reader too: not with ``readonly_shm``. Without a log the file changes no
    more (``immutable``); the caller sees by ``has_log`` whether that was still so at the end.

    Raises:
        SpoolError: it is not there, not a spool, or cannot be read.
    """
    how = "readonly_shm=1" if has_log(path) else "immutable=1"
    try:
        path.stat()
        _check_log(path)
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&{how}", uri=True)
        connection.isolation_level = None
        connection.text_factory = tolerant
    except (sqlite3.Error, OSError) as error:
        raise _failing(path, error) from error
    with _closed_on_failure(connection, path):
        _check(connection, path)
    return connection


def _check_log(path: Path) -> None:
    """Refuse a log that was copied without its index: SQLite would write one to read it."""
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size and not has_log(path):
        text = "its log has no index (-shm); the next start of the daemon makes one"
        raise SpoolError(RefusalReason.SPOOL_FAILING, f"{path}: {text}")


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # its messages quote what is damaged
        connection.close()
        raise _failing(path, error) from error
    except SpoolError:
        connection.close()
        raise


def _failing(path: Path, error: Exception) -> SpoolError:
    return SpoolError(reason_of(error), f"{path}: {error}")


def reason_of(error: Exception) -> RefusalReason:
    """Return the ``SpoolError`` reason that an error of the database has."""
    is_full = primary_code(error) == sqlite3.SQLITE_FULL
    return RefusalReason.DISK_FULL if is_full else RefusalReason.SPOOL_FAILING


def primary_code(error: Exception) -> int:
    """Return SQLite's primary result code of an error; 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


tolerant = partial(str, encoding="utf-8", errors="replace")
"""A text that is not UTF-8 any more must fail its checksum, not the transaction it is in."""


def fold(connection: sqlite3.Connection) -> bool:
    """Move all that the WAL holds into the file, and empty the WAL; False: somebody is reading it.

    Raises:
        sqlite3.Error: not possible now; nothing has changed.
    """
    (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _create_private(path: Path) -> None:
    """Create the file with its owner's rights alone, and make its name durable."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _configure(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"""
        PRAGMA page_size = {PAGE_BYTES};
        PRAGMA auto_vacuum = INCREMENTAL;
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = FULL;
        PRAGMA journal_size_limit = 67108864;
        PRAGMA cache_size = -16384;
        PRAGMA temp_store = MEMORY;
        """
    )
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    if (mode, synchronous) != ("wal", 2):
        raise sqlite3.OperationalError(
            f"cannot be made durable here: journal_mode={mode}, synchronous={synchronous}"
        )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours before anything in it is changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise SpoolError(RefusalReason.SPOOL_FAILING, f"{path}: an SQLite file, but not a spool")
    if version > SCHEMA_VERSION:
        raise SpoolError(
            RefusalReason.SPOOL_FAILING,
            f"{path}: written by a later version (schema {version}, this one reads "
            f"up to {SCHEMA_VERSION})",
        )


def tables_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the tables and indexes of a spool, and how each was made."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return dict(rows.fetchall())


def migrate(connection: sqlite3.Connection) -> None:
    """Take the steps that the file has not had yet, all or none."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    connection.create_function("letter_checksum", 5, _checksum_of_letter)
    connection.create_function("contact_checksum", 4, _checksum_of_contact)
    connection.executescript(
        f"BEGIN; {''.join(STEPS[version:])} PRAGMA application_id = {APPLICATION_ID};"
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


NO_CHECKSUM: Final = -1
"""For a row that is damaged already: no checksum is negative, so this one never holds."""


def _checksum_of_letter(id_: int, reason: bytes, user: bytes, at_ms: int, raw: bytes) -> int:
    try:
        return letter_checksum(id_, tolerant(reason), tolerant(user), at_ms, raw)
    except (TypeError, AttributeError, ValueError):
        return NO_CHECKSUM


def _checksum_of_contact(*texts: bytes) -> int:
    try:
        return contact_checksum(*map(tolerant, texts))
    except (TypeError, AttributeError, ValueError):
        return NO_CHECKSUM
