"""A copy of a spool, consistent as of one moment, while somebody may be writing it.

It is written under a name with the number of the writing process (``NAME.4711.part``), so that two
backups to one target never write to one file, and linked to its own name when it is whole: the
first gets the name, the other is refused. What a killed backup has left goes with the next one.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.sqlite import examine
from amplitude_intercom.engine.spool.sqlite.files import primary_code
from amplitude_intercom.engine.spool.sqlite.reading import look_at
from amplitude_intercom.transports.reasons import RefusalReason


def backup(spool: Path, target: Path) -> int:
    """Write a spool to a file that is not there yet; return its size in bytes.

    The copy is checked before it has its name, and it is on disk when this returns.

    Raises:
        SpoolError: the spool cannot be read, or is damaged.
        OSError: the copy cannot be written, or is there already.
    """
    if target.exists():
        raise _is_there(target)
    for leftover in _leftovers(target):
        leftover.unlink(missing_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        look_at(spool, lambda db: _copy(db, part, target))
        if damage := examine.findings(part):
            first = f"{damage[0].table} {damage[0].key}: {damage[0].problem}"
            raise SpoolError(RefusalReason.SPOOL_FAILING, f"{spool}: {first}")
        _sync(part)
        _name(part, target)
        _sync(target.parent)
    finally:
        _remove(part)
    return target.stat().st_size


def _leftovers(target: Path) -> Iterator[Path]:
    """Yield the unfinished copies of processes that are no more.

    One with this process's own number is of an earlier one that had it, as all have in a container.
    """
    pattern = re.compile(re.escape(target.name) + r"\.([1-9]\d*)\.part(-journal)?")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        if found and not _is_another_alive(int(found[1])):
            yield target.with_name(name)


def _is_another_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return number != os.getpid()


def _remove(part: Path) -> None:
    """Remove an unfinished copy; SQLite leaves its journal where a write fails."""
    for path in (part, Path(f"{part}-journal")):
        path.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, part: Path, target: Path) -> None:
    """Write the copy, from its beginning: a spool that somebody opened meanwhile is read twice."""
    _remove(part)
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db.execute("VACUUM INTO ?", (str(part),)).fetchall()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    except sqlite3.OperationalError as error:
        # It says so of the copy's disk, and of a spool in which a number of pages is damaged.
        if primary_code(error) == sqlite3.SQLITE_FULL and not _is_damaged(db):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None
        raise


def _is_damaged(db: sqlite3.Connection) -> bool:
    found: tuple[str] = db.execute("PRAGMA quick_check(1)").fetchone()
    return found != ("ok",)


def _name(part: Path, target: Path) -> None:
    """Give the copy its name, unless something has it by now."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise _is_there(target) from None
    except OSError:  # a file system without hard links, as on a memory stick
        if target.exists():
            raise _is_there(target) from None
        part.rename(target)


def _is_there(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "it is there already", str(target))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
