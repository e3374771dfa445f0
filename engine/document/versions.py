"""The kept versions of the settings: each saved text with the person, the time and a note.

Rules
=====
1. A version is one file, ``NUMBER-DIGEST.toml``: a first line ``# {…}`` with its facts, then the
   text as it was. It may hold secrets: the file is the owner's alone, and so is the folder.
2. Numbers only grow, whatever the clock does. The newest ``MOST_VERSIONS`` are kept.
3. A file that is damaged, or is no version, costs nothing but itself. It is left alone until its
   number is among the oldest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.disk import (
    FILE_MODE,
    private_folder,
    read_regular,
    sync_folder,
    write_all,
)
from amplitude_intercom.engine.document.refusals import NoSuchVersion, NotSaved
from amplitude_intercom.engine.document.tables import digest

MOST_VERSIONS: Final = 50
MOST_CHARACTERS: Final = 500
"""Of a person's name and of a note; more are cut off."""

_MOST_HEAD_BYTES: Final = 16_384
_FILE: Final = re.compile(r"(?P<number>[0-9]{6,12})-(?P<digest>[0-9a-f]{12})\.toml")
_HEAD: Final = b"# "


class KeptVersion(msgspec.Struct, frozen=True):
    """The facts of a version. ``id`` names it; ``version`` is the SHA-256 of its text's bytes.

    ``when_ms``: milliseconds since 1970. ``bytes``: the length of its text in UTF-8.
    """

    id: str
    version: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    when_ms: int
    who: str
    note: str
    bytes: int


class Versions:
    """The versions in a folder. All methods block."""

    def __init__(
        self,
        folder: Path,
        *,
        now_s: Callable[[], float] = time.time,
        remove: Callable[[Path], None] = os.unlink,
    ) -> None:
        self._folder = folder
        self._now_s = now_s
        self._remove = remove

    def keep(self, text: str, *, who: str, note: str = "") -> KeptVersion:
        """Keep a text, unless the newest version is the same; return its version.

        Raises:
            NotSaved: the disk fails; the versions are as they were.
        """
        content = text.encode()
        newest = next(iter(self.kept()), None)
        if newest is not None and newest.version == digest(content):
            return newest
        try:
            kept = self._written(content, _short(who), _short(note))
        except OSError as error:
            raise NotSaved(f"{self._folder}: {error.strerror}") from error
        self._forget()
        return kept

    def kept(self) -> list[KeptVersion]:
        """Return the versions, the newest first. A damaged one is missing."""
        found = (self._facts(name) for name in self._names())
        return [facts for facts in found if facts is not None]

    def text(self, version_id: str) -> str:
        """Return the text of a version, with its secrets.

        Raises:
            NoSuchVersion: none of this name is kept, or it is damaged.
        """
        if _FILE.fullmatch(f"{version_id}.toml") is None:
            raise NoSuchVersion("no version of this name is kept")
        name = f"{version_id}.toml"
        facts = self._facts(name)
        try:
            content, _ = read_regular(self._folder / name, MAX_FILE_BYTES + _MOST_HEAD_BYTES, _OWN)
            text = content.partition(b"\n")[2]
        except (OSError, ValueError):
            raise NoSuchVersion(f"no version `{version_id}` is kept") from None
        if facts is None or digest(text) != facts.version:
            raise NoSuchVersion(f"version `{version_id}` is damaged")
        return text.decode()

    def _written(self, content: bytes, who: str, note: str) -> KeptVersion:
        private_folder(self._folder)
        number = max(map(_number, self._names()), default=0)
        for _ in range(MOST_VERSIONS):  # another process may take a number
            number += 1
            version = digest(content)
            kept = KeptVersion(
                f"{number:06d}-{version[:12]}",
                version,
                int(self._now_s() * 1000),
                who,
                note,
                len(content),
            )
            head = _HEAD + json.dumps(msgspec.to_builtins(kept)).encode() + b"\n"
            with contextlib.suppress(FileExistsError):
                self._create(f"{kept.id}.toml", head + content)
                return kept
        raise FileExistsError(0, "too many writers")

    def _create(self, name: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._folder / name, flags, FILE_MODE)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                self._remove(self._folder / name)
            raise
        finally:
            os.close(descriptor)
        sync_folder(self._folder)

    def _forget(self) -> None:
        for name in self._names()[MOST_VERSIONS:]:
            with contextlib.suppress(OSError):  # the version is kept: the rest can wait
                self._remove(self._folder / name)

    def _names(self) -> list[str]:
        """Return the names of the files of versions, the newest first."""
        try:
            names = [name for name in os.listdir(self._folder) if _FILE.fullmatch(name)]
        except OSError:
            return []
        return sorted(names, key=_number, reverse=True)

    def _facts(self, name: str) -> KeptVersion | None:
        return next(self._read_facts(name), None)

    def _read_facts(self, name: str) -> Iterator[KeptVersion]:
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            head, length = _read_head(self._folder / name)
            kept = msgspec.json.decode(head.removeprefix(_HEAD), type=KeptVersion)
            if f"{kept.id}.toml" == name and length == len(head) + 1 + kept.bytes:
                yield kept


_OWN: Final = os.O_NOFOLLOW


def _short(text: str) -> str:
    """Return the beginning of a text, in characters that UTF-8 has."""
    return text[:MOST_CHARACTERS].encode(errors="replace").decode()


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _read_head(path: Path) -> tuple[bytes, int]:
    """Return the first line of a regular file, without its end, and the file's length."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | _OWN)
    with os.fdopen(descriptor, "rb") as file:
        head = file.read(_MOST_HEAD_BYTES).partition(b"\n")[0]
        return head, os.fstat(descriptor).st_size
