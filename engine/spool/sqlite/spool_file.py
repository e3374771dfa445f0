"""A spool's SQLite file: opening, migration and size.

One file for all syncs, in WAL mode with ``synchronous=FULL``: a commit is durable when it returns.
Exactly one connection writes and checkpoints. That also avoids the WAL-reset bug of SQLite before
3.51.3, which needs two such connections. Every table can be read with the ``sqlite3`` command.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from amplitude_intercom.engine.disk import sync_folder
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION, STEPS, statements
from amplitude_intercom.transports.reasons import RefusalReason

FILE_NAME: Final = "spool.db"
APPLICATION_ID: Final = 0x416D4932  # "AmI2"
FORMER_APPLICATION_ID: Final = 0x416D4963  # "AmIc"
"""Of a spool of an earlier build, which had one file for each sync."""

PAGE_BYTES: Final = 8192
GIVE_BACK_PAGES: Final = 128
"""Free pages that one transaction returns to the disk."""

LEAST_FREE_PAGES: Final = 2048
"""Free pages that the file keeps for new rows."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a spool for writing; create it, readable by its owner only, if there is none.

    The log of a process that died is folded into the file at once, unless another process is
    reading it. If the last fsync had failed, the end of that log may be in memory only, and new
    transactions must not follow it.

    Raises:
        SpoolError: the file is no spool, is of a later version, or cannot be opened.
    """
    try:
        _create_private(path)
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except (sqlite3.Error, OSError) as error:
        raise failing(path, error) from error
    with _closed_on_failure(connection, path):
        connection.text_factory = tolerant
        _check(connection, path)
        _configure(connection)
        migrate(connection)
        fold(connection)
    return connection


def has_log(path: Path) -> bool:
    """Return whether a spool has a log: a process is writing, or ended without folding it."""
    return os.path.exists(f"{path}-wal") and os.path.exists(f"{path}-shm")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a spool for reading only, while another process may be writing to it.

    Nothing is written. A reader of a log shares its index (``-shm``) with the writer; SQLite would
    create and change the index for a reader too, but not with ``readonly_shm``. A file without a
    log does not change (``immutable``). The caller must check with ``has_log`` that this was still
    so at the end.

    Raises:
        SpoolError: the file is missing, is no spool, or cannot be read.
    """
    how = "readonly_shm=1" if has_log(path) else "immutable=1"
    try:
        path.stat()
        _check_log(path)
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&{how}", uri=True)
        connection.isolation_level = None
        connection.text_factory = tolerant
    except (sqlite3.Error, OSError) as error:
        raise failing(path, error) from error
    with _closed_on_failure(connection, path):
        _check(connection, path)
    return connection


def _check_log(path: Path) -> None:
    """Refuse a log that was copied without its index, because SQLite would have to write one."""
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size and not has_log(path):
        text = "its log has no index (-shm); the next start of the daemon makes one"
        raise SpoolError(RefusalReason.SPOOL_FAILING, f"{path}: {text}")


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a message quotes damaged bytes
        connection.close()
        raise failing(path, error) from error
    except SpoolError:
        connection.close()
        raise


def failing(path: Path, error: Exception) -> SpoolError:
    """Return the error of a file that cannot be used: its path, and what the database said."""
    return SpoolError(reason_of(error), f"{path}: {error}")


def reason_of(error: Exception) -> RefusalReason:
    """Return the ``SpoolError`` reason of an error of the database."""
    is_full = primary_code(error) == sqlite3.SQLITE_FULL
    return RefusalReason.DISK_FULL if is_full else RefusalReason.SPOOL_FAILING


def primary_code(error: Exception) -> int:
    """Return SQLite's primary result code of an error; 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


tolerant = partial(str, encoding="utf-8", errors="replace")
"""Decodes texts. A damaged one must fail its checksum, not the whole transaction."""


def fold(connection: sqlite3.Connection) -> bool:
    """Move all pages of the log into the file, and empty the log.

    Returns False, and leaves the log, while another connection is reading it.

    Raises:
        sqlite3.Error: it is not possible now; nothing has changed.
    """
    (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _create_private(path: Path) -> None:
    """Create the file, readable by its owner only, and make its name durable."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    sync_folder(path.parent)


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
    """Refuse a file that is no spool, or is of a later version, before it is changed."""
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
    """Return the tables and indexes of a spool, each with its SQL."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
    return dict(rows.fetchall())


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the steps of the schema that the file lacks, all or none."""
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
    """Return the spools of earlier builds in a data directory."""
    return [path for path in sorted(data_dir.glob("*.db")) if _is_former(path)]


def refuse_former_spools(data_dir: Path) -> None:
    """Refuse a data directory that holds spools of an earlier build, one file for each sync.

    Raises:
        SettingsError: it does.
    """
    found = former_spools(data_dir)
    if found:
        names = ", ".join(path.name for path in found[:3])
        raise SettingsError(
            f"data_dir: {data_dir} holds spools of an earlier build ({names}), which are not read"
            " any more: deliver what waits in them with that build first, then move them away"
        )


def _is_former(path: Path) -> bool:
    """Read the application id in the file's header (SQLite's file format, offset 68)."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError:
        return False
    return header[68:72] == FORMER_APPLICATION_ID.to_bytes(4, "big")


class SpoolFile:
    """The size of a spool's open file, and the return of free pages to the disk."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def fold(self) -> None:
        """Move all pages of the log into the file, and empty the log.

        Raises:
            sqlite3.Error: it is not possible now.
        """
        if not fold(self._db):
            raise sqlite3.OperationalError("the write-ahead log is being read by somebody")

    def claim_pages(self) -> None:
        """Checkpoint, so that the file already has space for pages that are only in the log.

        The log is then written from its beginning again, and need not grow.
        """
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def has_much_free(self, *, short: bool) -> bool:
        """Return whether free pages should go back to the disk.

        Returning them moves pages, so the file first becomes more free than used, unless the disk
        is ``short``.
        """
        free = self._free_pages()
        if short:
            return free > 0
        return free > max(LEAST_FREE_PAGES, self.used_bytes() // PAGE_BYTES)

    def give_back(self) -> int:
        """Return some free pages to the disk, in a transaction; return their number."""
        pages = min(GIVE_BACK_PAGES, self._free_pages())
        for _ in range(pages):  # Python's `execute` frees one page, however many are asked for
            self._db.execute("PRAGMA incremental_vacuum(1)")
        return pages

    def is_longer_than_needed(self) -> bool:
        """Return whether the file on disk is longer than its pages, before it is truncated."""
        _, _, path = self._db.execute("PRAGMA database_list").fetchone()
        return os.stat(path).st_size > self.size_bytes()

    def size_bytes(self) -> int:
        """Return the size of the file with the log folded into it."""
        return int(self._db.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES

    def used_bytes(self) -> int:
        """Return the bytes of the file except free pages."""
        return self.size_bytes() - self._free_pages() * PAGE_BYTES

    def _free_pages(self) -> int:
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0])
