"""What a spool stands on: its folder, the lock in it, its file. Each has to stay the one it was.

A folder that was removed or unmounted, or a file that was replaced, goes unnoticed by whoever has
it open: what is written then is gone at the next start. So they are compared by inode.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

Inode = tuple[int, int]

LOCK_NAME: Final = "lock"


class Ground:
    """The folder, the lock and the file of a spool, as they were when it was opened."""

    def __init__(self, file: Path) -> None:
        folder = file.parent
        self._file = file.name
        self._log = Path(f"{file}-wal")
        there = (("the folder", folder), ("the lock", folder / LOCK_NAME), ("the file", file))
        self._known = [(what, path, found) for what, path in there if (found := _inode(path))]
        self.renew_log()

    def renew_log(self) -> None:
        """Take the log that is there for the one that has to stay: each opening makes a new one."""
        others = [known for known in self._known if known[1] != self._log]
        found = _inode(self._log)
        self._known = [*others, ("its log", self._log, found)] if found else others

    @property
    def has_lost_lock(self) -> bool:
        """Whether the file is still there, and the lock is not: another process may have both."""
        changed = {path.name for _, path, before in self._known if _inode(path) != before}
        return LOCK_NAME in changed and self._file not in changed

    @property
    def has_lost_only_log(self) -> bool:
        """Whether everything is as it was but for the log."""
        return {path for _, path, before in self._known if _inode(path) != before} == {self._log}

    def problem(self) -> str:
        """Return what is not as it was; empty: all is."""
        for what, path, before in self._known:
            now = _inode(path)
            if now != before:
                happened = "is gone" if now is None else "was replaced"
                return f"{what} {path} {happened}: restart, once it is as it should be"
        return ""


def _inode(path: Path) -> Inode | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
