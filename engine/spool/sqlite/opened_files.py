"""The folder, the lock and the files of an open spool, which must stay the same.

A process does not notice that a folder was removed or unmounted, or a file replaced, while it has
the old one open. Its writes are lost at the next start. So the inodes are compared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

Inode = tuple[int, int]

LOCK_NAME: Final = "lock"


class OpenedFiles:
    """The folder, the lock and the file of a spool, as they were when it was opened."""

    def __init__(self, file: Path) -> None:
        folder = file.parent
        self._file = file.name
        self._log = Path(f"{file}-wal")
        there = (("the folder", folder), ("the lock", folder / LOCK_NAME), ("the file", file))
        self._known = [(what, path, found) for what, path in there if (found := _inode(path))]
        self.renew_log()

    def renew_log(self) -> None:
        """Take the present log as the one to compare with, because each opening makes a new one."""
        others = [known for known in self._known if known[1] != self._log]
        found = _inode(self._log)
        self._known = [*others, ("its log", self._log, found)] if found else others

    @property
    def has_lost_lock(self) -> bool:
        """Whether the lock has changed and the file has not: another process may have both."""
        changed = {path.name for _, path, before in self._known if _inode(path) != before}
        return LOCK_NAME in changed and self._file not in changed

    @property
    def has_lost_only_log(self) -> bool:
        """Whether the log has changed and all else has not."""
        return {path for _, path, before in self._known if _inode(path) != before} == {self._log}

    def problem(self) -> str:
        """Return a sentence about the first change; empty if there is none."""
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
