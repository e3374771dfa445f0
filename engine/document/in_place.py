"""A file that is written in place, because no other file can be renamed over it.

Rules
=====
1. Before the write, both texts are stored in another folder; after it, they are removed there.
2. The new text is filled up with newlines to the length of the old one before the file is
   shortened: between the two steps the file is whole.
3. Where the write fails, the old text is given back. Where the process dies, ``mend`` does so
   later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.disk import (
    DISK,
    DiskCalls,
    private_folder,
    read_regular,
    write_all,
    write_whole,
)
from amplitude_intercom.engine.document.refusals import NotSaved

UNFINISHED: Final = "unfinished.json"
"""The file with both texts, while one is being written."""


class InPlace:
    """Writes files in place; ``kept_in`` is a folder of the owner's alone."""

    def __init__(self, kept_in: Path, disk: DiskCalls = DISK) -> None:
        self._unfinished = kept_in / UNFINISHED
        self._disk = disk

    def write(self, target: Path, old: bytes, new: bytes) -> None:
        """Replace the content of a file.

        Raises:
            OSError: the file cannot be opened for writing, or both texts cannot be stored before;
                it is as it was.
            NotSaved: the disk failed; the message says where the texts are.
        """
        descriptor = self._disk.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._keep(target, old, new)
            try:
                self._overwrite(descriptor, old, new)
            except OSError as error:
                self._give_back(descriptor, old, error)
                raise
        finally:
            os.close(descriptor)
        self._unfinished.unlink(missing_ok=True)

    def mend(self, path: Path) -> bool:
        """Return whether the file was half its new text; now it has its old one.

        A file with any other text is left alone: somebody has changed it since.

        Raises:
            NotSaved: the disk fails, or the stored texts are damaged.
        """
        if not self._unfinished.exists():
            return False
        try:
            target, old, new = self._kept()
            is_half = str(target) == os.path.realpath(path) and _is_half(target, old, new)
            if is_half:
                descriptor = self._disk.open(target, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    self._overwrite(descriptor, b"", old)
                finally:
                    os.close(descriptor)
            self._unfinished.unlink()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise NotSaved(f"{self._unfinished}: cannot be used: {error}") from error
        return is_half

    def _keep(self, target: Path, old: bytes, new: bytes) -> None:
        private_folder(self._unfinished.parent)
        texts = {"path": str(target), "old": old.decode("latin-1"), "new": new.decode("latin-1")}
        write_whole(self._unfinished, json.dumps(texts).encode(), disk=self._disk)

    def _kept(self) -> tuple[Path, bytes, bytes]:
        content, _ = read_regular(self._unfinished, 16 * MAX_FILE_BYTES)
        texts: dict[str, Any] = json.loads(content)
        return Path(texts["path"]), texts["old"].encode("latin-1"), texts["new"].encode("latin-1")

    def _overwrite(self, descriptor: int, old: bytes, new: bytes) -> None:
        write_all(descriptor, new + b"\n" * (len(old) - len(new)), self._disk)
        self._disk.truncate(descriptor, len(new))
        self._disk.sync(descriptor)

    def _give_back(self, descriptor: int, old: bytes, cause: OSError) -> None:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            self._overwrite(descriptor, b"", old)
        except OSError:
            raise NotSaved(f"{cause.strerror}; both texts are in {self._unfinished}") from cause
        self._unfinished.unlink(missing_ok=True)


def _is_half(path: Path, old: bytes, new: bytes) -> bool:
    """Whether a file begins as the new text does, and goes on as the old one did."""
    present, _ = read_regular(path, 2 * MAX_FILE_BYTES)
    if present in (old, new):
        return False
    filled = new + b"\n" * (len(old) - len(new))
    pairs = enumerate(zip(present, filled, strict=False))
    begun = next((n for n, (a, b) in pairs if a != b), min(len(present), len(filled)))
    return present == filled or present[begun:] == old[begun:]
