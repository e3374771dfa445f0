"""The lock that gives a data directory to one process."""

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
    """The folder of the spools, locked by this process until ``close`` or the process's end.

    The operating system releases the lock with the process, so no stale lock remains.

    Raises:
        DataDirInUse: another process holds the lock; the message names its process id.
        SettingsError: the folder cannot be created or written, or every user can write to it.
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
        text, refused = rights_of_others(self.path)
        if refused:
            raise SettingsError(f"data_dir: {text}")
        if text:
            _log.info("others have rights in data_dir", rights=text)

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
        with suppress(OSError):  # on a full disk the lock holds without a process id in it
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def rights_of_others(path: Path) -> tuple[str, bool]:
    """Return a sentence about others' rights in a data directory, and whether it is refused.

    It is refused if every user can write, because any of them could put another spool there. The
    rights of the group are the owner's choice.
    """
    state = path.stat()
    mode = stat.S_IMODE(state.st_mode)
    of_all, of_group = "every user of this machine", "its group"
    if mode & stat.S_IWOTH:
        shared = mode & stat.S_ISVTX or state.st_uid != os.geteuid()
        advice = "choose a folder of its own" + ("" if shared else ", or chmod 700 this one")
        return f"{path} can be written by {of_all} (mode {mode:04o}): {advice}", True
    rights = [f"written by {of_group}"] if mode & stat.S_IWGRP else []
    if mode & stat.S_IRWXO:
        rights.append(f"read by {of_all}")
    elif mode & stat.S_IRWXG and not rights:
        rights.append(f"read by {of_group}")
    said = f"{path} can be {' and '.join(rights)} (mode {mode:04o})"
    return (said if rights else ""), False


def holder(data_dir: Path) -> int | None:
    """Return the id of the process that holds a data directory, if any, without taking the lock."""
    try:
        with open(data_dir / "lock", "rb", opener=_without_waiting) as file:
            number = int(file.read(32))
            inode = os.fstat(file.fileno()).st_ino
        if number <= 0:
            return None
        os.kill(number, 0)
    except PermissionError as error:
        if error.filename:
            return None  # about the lock file, not about the signal
    except (OSError, ValueError, OverflowError):
        return None
    return number if _may_hold(number, inode) else None


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _may_hold(number: int, inode: int) -> bool:
    """Return whether a live process holds a lock: another process may have its id by now.

    A system without a list of locks, as macOS, cannot tell; the result is True there.
    """
    try:
        held = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return True
    return any(
        " FLOCK " in line and f" {number} " in line and f":{inode} " in line for line in held
    )
