"""A backup of a spool: a copy as of one moment, while a daemon may be writing to the spool.

The copy is written under a name with the process id of the backup (``NAME.4711.part``), so that two
backups to one target never write to one file. A complete copy is linked to its final name: the
first backup gets the name, the other is refused. The next backup removes the rest of a killed one.
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
from amplitude_intercom.engine.spool.sqlite.snapshots import look_at
from amplitude_intercom.engine.spool.sqlite.spool_file import primary_code
from amplitude_intercom.transports.reasons import RefusalReason


def backup(spool: Path, target: Path) -> int:
    """Copy a spool to a new file; return the copy's size in bytes.

    The copy is checked before it gets its name, and durable when this returns.

    Raises:
        SpoolError: the spool cannot be read, or is damaged.
        OSError: the copy cannot be written, or ``target`` exists.
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
    """Yield the unfinished copies of dead processes.

    A copy with this process's own id is an earlier process's, because ids repeat in a container.
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
    """Remove an unfinished copy, and the journal that SQLite leaves after a failed write."""
    for path in (part, Path(f"{part}-journal")):
        path.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, part: Path, target: Path) -> None:
    """Write the copy from its beginning: ``look_at`` may run this twice."""
    _remove(part)
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        db.execute("VACUUM INTO ?", (str(part),)).fetchall()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    except sqlite3.OperationalError as error:
        # SQLITE_FULL also comes from a spool whose header has a damaged number of pages.
        if primary_code(error) == sqlite3.SQLITE_FULL and not _is_damaged(db):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None
        raise


def _is_damaged(db: sqlite3.Connection) -> bool:
    found: tuple[str] = db.execute("PRAGMA quick_check(1)").fetchone()
    return found != ("ok",)


def _name(part: Path, target: Path) -> None:
    """Give the copy its final name.

    Raises:
        FileExistsError: another file has the name by now.
    """
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
