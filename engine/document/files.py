"""The settings file: read with its version, written so that a crash leaves the old or the new text.

Rules
=====
1. A version is the SHA-256 of the file's bytes. A write names the version that it replaces.
2. A write is a new file of the same owner and mode, renamed over the old one. A symbolic link is
   followed: its target is written.
3. Where a rename is impossible (a mounted file, a folder that cannot be written), or would cost the
   file its owner, its other names or its access list, the text is written in place.
4. Anybody else may write the file at any time. The version is compared again directly before the
   rename; nothing can be compared between that and the rename.
"""

from __future__ import annotations

import errno
import os
import threading
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.disk import DISK, DiskCalls, read_regular, write_whole
from amplitude_intercom.engine.document.in_place import InPlace
from amplitude_intercom.engine.document.refusals import (
    CannotRead,
    NotSaved,
    NotWritable,
    TextTooLarge,
    VersionDiffers,
)
from amplitude_intercom.engine.document.tables import digest

_NO_RENAME: Final = {errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EROFS}
_READ_ONLY: Final = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ETXTBSY}
_OF_THE_FOLDER: Final = "security."
"""Extended attributes that a new file gets by itself."""


class Document(NamedTuple):
    """The text of a settings file, and its version: the SHA-256 of its bytes, in hexadecimal."""

    text: str
    version: str

    def __repr__(self) -> str:
        return f"Document({self.version})"


class SettingsFile:
    """One settings file. All methods block; ``write`` may be called by several threads."""

    def __init__(self, path: Path, kept_in: Path, disk: DiskCalls = DISK) -> None:
        """``kept_in``: a folder of the owner's alone, for both texts of a write in place."""
        self.path = path
        self._in_place = InPlace(kept_in, disk)
        self._disk = disk
        self._writing = threading.Lock()

    def read(self) -> Document:
        """Return the present text.

        Raises:
            CannotRead: it is no regular file in UTF-8 of at most ``MAX_FILE_BYTES``.
        """
        return _document(self._content()[0], self.path)

    def is_writable(self) -> bool:
        """Return whether a write may succeed, as far as the file's and the folder's modes tell."""
        target = os.path.realpath(self.path)
        folder = os.path.dirname(target)
        return os.access(target, os.W_OK) or os.access(folder, os.W_OK | os.X_OK)

    def mend(self) -> bool:
        """Return whether a crash had left the file half its new text; now it has its old one.

        To be called before the settings are read for the first time, where ``kept_in`` is known.

        Raises:
            NotSaved: the disk fails, or the stored texts are damaged.
        """
        return self._in_place.mend(self.path)

    def write(self, text: str, expected_version: str) -> Document:
        """Replace the text of the version that is expected; return the new document.

        Raises:
            CannotRead: there is no file to replace.
            VersionDiffers: the file has another version; it is as it was.
            NotWritable: the file can only be read; it is as it was.
            TextTooLarge: no settings file may be as large.
            NotSaved: the text cannot be stored, or the disk failed; the message says what is there.
        """
        try:
            new = text.encode()
        except UnicodeEncodeError:
            raise NotSaved(f"{self.path}: the text has characters that UTF-8 has not") from None
        if len(new) > MAX_FILE_BYTES:
            raise TextTooLarge(f"{self.path}: the text is larger than {MAX_FILE_BYTES} bytes")
        with self._writing:
            self._replace(new, expected_version)
        return _document(new, self.path)

    def _replace(self, new: bytes, expected_version: str) -> None:
        old, facts = self._expected(expected_version)
        if old == new:
            return
        target = Path(os.path.realpath(self.path))
        try:
            if _is_plain(target, facts) and self._renamed_over(
                target, new, facts, expected_version
            ):
                return
            self._expected(expected_version)
            self._in_place.write(target, old, new)
        except NotSaved as error:
            raise NotSaved(f"{self.path}: {error}") from error.__cause__
        except OSError as error:
            if error.errno in _READ_ONLY:
                raise NotWritable(self.path, str(error.strerror)) from error
            raise NotSaved(f"{self.path}: {error.strerror}; {self._left(old)}") from error

    def _renamed_over(
        self, target: Path, new: bytes, facts: os.stat_result, expected_version: str
    ) -> bool:
        """Write a new file over the old one; False: that is impossible, nothing has changed."""
        check = partial(self._expected, expected_version)
        try:
            write_whole(target, new, like=facts, before_rename=check, disk=self._disk)
        except OSError as error:
            if error.errno in _NO_RENAME:
                return False
            raise
        return True

    def _left(self, old: bytes) -> str:
        """Return in words which text a failed write has left."""
        if self._content()[0] == old:
            return "it is as it was"
        return "the new text is there, and a power cut may take it back"

    def _expected(self, version: str) -> tuple[bytes, os.stat_result]:
        """Return the file's content and facts.

        Raises:
            CannotRead: there is no such file.
            VersionDiffers: it has another version.
        """
        content, facts = self._content()
        present = digest(content)
        if present != version:
            raise VersionDiffers(present)
        return content, facts

    def _content(self) -> tuple[bytes, os.stat_result]:
        try:
            return read_regular(self.path, MAX_FILE_BYTES)
        except OSError as error:
            raise CannotRead(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValueError as error:  # NUL in the path too
            raise CannotRead(f"{self.path}: cannot be edited: {error}") from None


def _is_plain(target: Path, facts: os.stat_result) -> bool:
    """Whether a new file can be all that this one is: it has one name, and no access list."""
    try:
        extra = [name for name in os.listxattr(target) if not name.startswith(_OF_THE_FOLDER)]
    except OSError:  # a file system without such attributes
        extra = []
    return facts.st_nlink == 1 and not extra


def _document(content: bytes, path: Path) -> Document:
    try:
        return Document(content.decode(), digest(content))
    except UnicodeDecodeError as error:
        raise CannotRead(f"{path}: not UTF-8: {error}") from None
