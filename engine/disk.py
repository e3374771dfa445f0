"""Files written whole: under another name first, on the disk, then renamed.

Rules
=====
1. A crash leaves the old file or the new one. It may leave another file beside it, with a name that
   begins with ``.`` and ends with ``.new``.
2. The name is durable too: the folder is synced after the rename.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600


class DiskCalls(NamedTuple):
    """The calls of the system that change a disk; a test passes others that fail."""

    open: Callable[..., int] = os.open
    write: Callable[[int, bytes], int] = os.write
    truncate: Callable[[int, int], None] = os.ftruncate
    sync: Callable[[int], None] = os.fsync
    own: Callable[[int, int, int], None] = os.fchown
    set_mode: Callable[[int, int], None] = os.fchmod
    rename: Callable[[Path, Path], None] = os.replace


DISK: Final = DiskCalls()


def write_whole(
    path: Path,
    content: bytes,
    *,
    like: os.stat_result | None = None,
    before_rename: Callable[[], object] = lambda: None,
    disk: DiskCalls = DISK,
) -> None:
    """Write a file in its folder, which is there; an old one of this name gives way.

    It is the owner's alone, or has the owner and mode of ``like``. ``before_rename`` may raise.

    Raises:
        OSError: it cannot be written, and the old file is as it was; or it is written, and the disk
            may forget its name.
    """
    new = path.parent / f".{path.name}.{secrets.token_hex(4)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = disk.open(new, flags, FILE_MODE)
    try:
        try:
            _make_like(descriptor, like, disk)
            write_all(descriptor, content, disk)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        before_rename()
        disk.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    sync_folder(path.parent, disk)


def _make_like(descriptor: int, like: os.stat_result | None, disk: DiskCalls) -> None:
    if like is None:
        return
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) != (like.st_uid, like.st_gid):
        disk.own(descriptor, like.st_uid, like.st_gid)
    disk.set_mode(descriptor, like.st_mode & 0o7777)  # after the owner, which clears some bits


def write_all(descriptor: int, content: bytes, disk: DiskCalls = DISK) -> None:
    """Write all bytes; the system may take them in pieces.

    Raises:
        OSError: it cannot be written; a part of it may be.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[disk.write(descriptor, bytes(rest)) :]


def sync_folder(folder: Path, disk: DiskCalls = DISK) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the disk fails.
    """
    descriptor = disk.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> None:
    """Create a folder of the owner alone; a folder that is there becomes one.

    Raises:
        OSError: it cannot be created, or belongs to somebody else.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    if folder.stat().st_mode & 0o077:
        os.chmod(folder, FOLDER_MODE)


def read_regular(path: Path, most_bytes: int, flags: int = 0) -> tuple[bytes, os.stat_result]:
    """Return the content of a regular file and its facts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or a larger one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("not a regular file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes} bytes")
    return content, facts
