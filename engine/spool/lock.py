"""One process for one data directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from engine.errors import DataDirInUse, SettingsError


class DataDir:
    """The folder of the spools, held by this process until closed or dead.

    The operating system releases the lock with the process, so none is ever left behind.

    Raises:
        DataDirInUse: another process holds it; the message names its number.
        SettingsError: it cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise SettingsError(f"data_dir: {path} cannot be used: {error.strerror}") from None
        self._take()

    def _take(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise DataDirInUse(
                f"data_dir: {self.path} is in use by process {holder or 'unknown'}"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def spool_path(self, sync: str) -> Path:
        """Return where a sync's spool is."""
        return self.path / f"{sync}.db"

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def holder_is_alive(data_dir: Path) -> bool:
    """Return whether the process that took a data directory last is still there; takes no lock."""
    try:
        os.kill(int((data_dir / "lock").read_text()), 0)
    except PermissionError:
        return True  # somebody else's
    except (OSError, ValueError, OverflowError):
        return False
    return True
