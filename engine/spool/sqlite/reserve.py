"""Disk space that is kept back, so that deliveries can be settled when others fill the disk.

Deleting a row needs room as well: the write-ahead log has to grow by the pages that change. Half of
the reserve is allocated to the log from the start, as far as SQLite lets it grow before it begins
anew; the other half is a file of ballast that is removed when the disk is full, for the pages that
are in the log and not yet in the spool's own file.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK = bytes(1 << 20)


class Reserve:
    """The reserve beside one spool; ``size_bytes`` 0: none is kept."""

    def __init__(self, spool: Path, size_bytes: int) -> None:
        self._ballast = Path(f"{spool}-reserve")
        self._log = Path(f"{spool}-wal")
        self._half_bytes = size_bytes // 2

    def take(self) -> bool:
        """Keep the space back (again); return False where the disk does not have it.

        It has to have as much again: what was let go a moment ago is not room enough to go on.
        """
        if not self._half_bytes:
            return True
        held = os.path.exists(self._ballast)
        try:
            _allocate(self._ballast, self._half_bytes)
            if os.path.exists(self._log):
                _allocate(self._log, self._half_bytes)
            enough = _free_bytes(self._ballast) >= 2 * self._half_bytes
        except OSError:
            enough = False
        if not enough and not held:
            self.release()
        return enough

    def is_short(self) -> bool:
        """Return whether so little of the disk is free that what there is should be used with care.

        That is noticed while there still is some, however fast others fill the disk.
        """
        try:
            return bool(self._half_bytes) and _free_bytes(self._ballast.parent) < self._half_bytes
        except OSError:
            return False

    def release(self) -> bool:
        """Let the ballast go; return whether there was any."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        return True


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _allocate(path: Path, size_bytes: int) -> None:
    """Make a file at least so long, of blocks that are its own.

    Raises:
        OSError: the disk has not so much room.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        missing = size_bytes - os.fstat(descriptor).st_size
        if missing <= 0:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, size_bytes - missing, missing)
            return
        os.lseek(descriptor, 0, os.SEEK_END)
        while missing > 0:
            missing -= os.write(descriptor, _CHUNK[:missing])
    finally:
        os.close(descriptor)
