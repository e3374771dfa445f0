"""Reading a spool's file beside its writer, without a write and without delaying the writer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.connection import Damaged
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION
from amplitude_intercom.engine.spool.sqlite.spool_file import connect_to_read, failing, has_log
from amplitude_intercom.transports.reasons import RefusalReason

S = TypeVar("S")
T = TypeVar("T")


def look_at(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do work that only reads on a connection of its own.

    A file without a log is read without locks. If a writer has opened it by the end, the work
    is done again.

    Raises:
        SpoolError: the file is missing, or cannot be read.
    """
    at_rest = not has_log(path)
    try:
        with closing(connect_to_read(path)) as db:
            found = work(db)
    except (sqlite3.Error, UnicodeDecodeError, Damaged, SpoolError) as error:
        if at_rest and has_log(path):
            return look_at(path, work)
        if isinstance(error, SpoolError):
            raise
        raise failing(path, error) from error
    return look_at(path, work) if at_rest and has_log(path) else found


def look(path: Path, opened: Callable[[sqlite3.Connection], S], work: Callable[[S], T]) -> T:
    """Do work that only reads on one snapshot of a spool's tables.

    ``opened`` returns the tables on a connection.

    Raises:
        SpoolError: the file is missing, cannot be read, or is of an earlier version.
    """
    return look_at(path, lambda db: work(opened(_in_snapshot(db, path))))


def _in_snapshot(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version < SCHEMA_VERSION:
        text = f"of schema {version}; the next start of the daemon brings it up to date"
        raise SpoolError(RefusalReason.SPOOL_FAILING, f"{path}: {text}")
    db.execute("BEGIN")
    return db


def disk_bytes(path: Path) -> int:
    """Return the bytes of a spool's files on disk, with its log and reserve."""
    return sum(size_of(f"{path}{end}") for end in ("", "-wal", "-shm", "-reserve"))


def disk_free_bytes(path: Path) -> int | None:
    """Return the bytes that the disk of a file has left; None where it does not say."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def size_of(path: str) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
