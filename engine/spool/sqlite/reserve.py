"""The reserve of disk space, with which deliveries are settled when other programs fill the disk.

Deleting a row needs space too, because the write-ahead log grows by the pages that change. Half of
the reserve is allocated to the log from the start, as far as SQLite lets it grow before it begins
anew. The other half is a ballast file that is removed when the disk is full, for pages that are in
the log and not yet in the spool's own file.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK = bytes(1 << 20)


class Reserve:
    """The reserve beside one spool. ``size_bytes`` 0 is no reserve."""

    def __init__(self, spool: Path, size_bytes: int) -> None:
        self._ballast = Path(f"{spool}-reserve")
        self._log = Path(f"{spool}-wal")
        self._half_bytes = size_bytes // 2

    def take(self) -> bool:
        """Allocate the reserve, or what is missing of it; return whether the disk has enough.

        Enough is the reserve and as much free space again: with less, the space just released
        would be taken as the end of the shortage.
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
        """Return whether the disk has less free space than half of the reserve.

        So a shortage is noticed before the disk is full.
        """
        try:
            return bool(self._half_bytes) and _free_bytes(self._ballast.parent) < self._half_bytes
        except OSError:
            return False

    def release(self) -> bool:
        """Remove the ballast; return whether there was any."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        return True


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _allocate(path: Path, size_bytes: int) -> None:
    """Extend a file to at least ``size_bytes``, with blocks of its own.

    Raises:
        OSError: the disk does not have the space.
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
