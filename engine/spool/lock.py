"""One process for one data directory."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from amplitude_intercom.engine.errors import DataDirInUse, SettingsError

_log = structlog.get_logger(__name__)


class DataDir:
    """The folder of the spools, held by this process until closed or dead.

    The operating system releases the lock with the process, so none is ever left behind.

    Raises:
        DataDirInUse: another process holds it; the message names its number.
        SettingsError: it cannot be created or written, or any user of the machine can write in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._refuse_strangers()
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
            self._descriptor = os.open(path / "lock", flags, 0o600)
        except OSError as error:
            raise SettingsError(f"data_dir: {path} cannot be used: {error.strerror}") from None
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _refuse_strangers(self) -> None:
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & stat.S_IWOTH:
            raise SettingsError(
                f"data_dir: {self.path} can be written by every user of this machine"
                f" (mode {mode:04o}): chmod 700 it"
            )
        if mode & 0o077:
            _log.info("others may look into data_dir", data_dir=str(self.path), mode=f"{mode:04o}")

    def _take(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            raise DataDirInUse(
                f"data_dir: {self.path} is in use by process {holder or 'unknown'}"
            ) from None
        except OSError as error:
            raise SettingsError(
                f"data_dir: {self.path} cannot be locked: {error.strerror}"
            ) from None
        with suppress(OSError):  # a full disk: the lock holds without a name in it
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
