"""A spool's file in SQLite: how it is opened, and what it takes up.

One file for all syncs, in WAL mode with ``synchronous=FULL``: a commit that returned is on disk.
Exactly one connection writes and checkpoints, which also keeps clear of the WAL-reset bug that
SQLite had before 3.51.3 (it takes two connections). A person can read all of it with ``sqlite3``.
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
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION, STEPS, statements
from amplitude_intercom.transports.reasons import RefusalReason

FILE_NAME: Final = "spool.db"
APPLICATION_ID: Final = 0x416D4932  # "AmI2"
FORMER_APPLICATION_ID: Final = (
    0x416D4963  # "AmIc": a spool of 0.1.0, which had a file for each sync
)
PAGE_BYTES: Final = 8192
GIVE_BACK_PAGES: Final = 128
LEAST_FREE_PAGES: Final = 2048
"""Free pages that are given back at once, and up to how many are kept for what comes."""


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
        PRAGMA cache_size = -4096;
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
    steps = [
        statements(
            step,
            int_="INTEGER",
            bytes_="BLOB",
            table=" STRICT",
            clustered=" STRICT, WITHOUT ROWID",
        )
        for step in STEPS[version:]
    ]
    connection.executescript(
        f"BEGIN; {''.join(steps)} PRAGMA application_id = {APPLICATION_ID};"
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def former_spools(data_dir: Path) -> list[Path]:
    """Return the files of spools of version 0.1.0 in a data directory."""
    return [path for path in sorted(data_dir.glob("*.db")) if _is_former(path)]


def _is_former(path: Path) -> bool:
    """Look at the application id in the file's header (SQLite's file format, offset 68)."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return False
    return header[68:72] == FORMER_APPLICATION_ID.to_bytes(4, "big")


class SpoolFile:
    """What a spool's open file takes up, and how it gives some of that back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def fold(self) -> None:
        """Move what the WAL holds into the file, and empty the WAL.

        Raises:
            sqlite3.Error: it cannot be done now.
        """
        if not fold(self._db):
            raise sqlite3.OperationalError("the write-ahead log is being read by somebody")

    def claim_pages(self) -> None:
        """Let the file have what its newest pages need while they are in the WAL.

        The WAL is then written from its beginning again, and need not grow.
        """
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def has_much_free(self, *, short: bool) -> bool:
        """Whether free pages should go back to the disk.

        Pages are moved for it, so it waits until more of the file is free than used, or until
        the disk is ``short``.
        """
        free = self._free_pages()
        if short:
            return free > 0
        return free > max(LEAST_FREE_PAGES, self.used_bytes() // PAGE_BYTES)

    def give_back(self) -> int:
        """Give some free pages back to the disk; return how many. In a transaction."""
        pages = min(GIVE_BACK_PAGES, self._free_pages())
        for _ in range(pages):  # Python's module stops after one, whatever number it is given
            self._db.execute("PRAGMA incremental_vacuum(1)")
        return pages

    def is_longer_than_needed(self) -> bool:
        """Whether the file on disk has not been cut yet behind its last page."""
        _, _, path = self._db.execute("PRAGMA database_list").fetchone()
        return os.stat(path).st_size > self.size_bytes()

    def size_bytes(self) -> int:
        """Return the size of the file, once its log is folded into it."""
        return int(self._db.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES

    def used_bytes(self) -> int:
        """Return the bytes of the file that hold something."""
        return self.size_bytes() - self._free_pages() * PAGE_BYTES

    def _free_pages(self) -> int:
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0])
