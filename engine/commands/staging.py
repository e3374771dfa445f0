"""Files that are written all or none: the files that were there stay until all new ones are.

Each new file is staged: written beside its target under another name, and forced to the disk. Then
the staged files are renamed. An error before the end of the block puts the old files back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from amplitude_intercom.engine.disk import sync_folder

MARK = ".amplitude-intercom-"
"""Begins the names of staged files; with a target's own name in it, one could be too long."""


class NewFile(msgspec.Struct, frozen=True):
    """A file to write. ``mode``: its rights; 0o600 where only its owner may read it."""

    path: Path
    text: str
    mode: int = 0o644


@contextmanager
def written(files: Sequence[NewFile]) -> Iterator[None]:
    """Write files; if the block or a write fails, all files are as they were before.

    Folders that are missing are made for their owner alone.

    Raises:
        OSError: a file cannot be written; the error names it.
    """
    with ExitStack() as leftovers, ExitStack() as undo:
        staged = []
        for file in files:
            with _named(file.path):
                _make_folders(file.path.absolute().parent, leftovers)
                staged.append(_staged(file))
            leftovers.callback(_remove, staged[-1])
        for file, name in zip(files, staged, strict=True):
            with _named(file.path):
                old = _kept(file.path, f"{name}-old")
                undo.callback(_put_back, file.path, old)
                leftovers.callback(_remove, old)
                os.replace(name, file.path)
        for folder in {file.path.absolute().parent for file in files}:
            with suppress(OSError):  # a file system that cannot
                sync_folder(folder)
        yield
        undo.pop_all()


def refuse_folder(folder: Path) -> None:
    """Refuse a folder that takes no file, by making one without a name.

    Raises:
        OSError: it takes none; the error names the folder.
    """
    with _named(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name a path in an error: a write's names none, and a rename's a staged file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _make_folders(folder: Path, leftovers: ExitStack) -> None:
    """Make a folder and those above it; one with nothing in it at the end goes again."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(mode=0o700)
        leftovers.callback(_remove_folder, missing)


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # there is a file in it
        folder.rmdir()


def _staged(file: NewFile) -> str:
    """Return the name of a file beside the target, whole and on the disk."""
    descriptor, name = tempfile.mkstemp(dir=file.path.absolute().parent, prefix=MARK)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as staged:
            staged.write(file.text)
            staged.flush()
            os.fchmod(descriptor, file.mode)
            os.fsync(descriptor)
    except BaseException:
        os.unlink(name)
        raise
    return name


def _kept(path: Path, name: str) -> str | None:
    """Give a file that is there a second name, and return it; None: there is none."""
    if not os.path.lexists(path):
        return None
    try:
        os.link(path, name, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(path, name, follow_symlinks=False)
    return name


def _put_back(path: Path, old: str | None) -> None:
    if old is None:
        path.unlink(missing_ok=True)
    else:
        os.replace(old, path)


def _remove(name: str | None) -> None:
    if name is not None:
        with suppress(FileNotFoundError):
            os.unlink(name)
