"""Text, cut into lines: the fast path, of one event a line. Pure, and streamed.

Also what is cut off a text, whatever its shape (``transports.shapes``), and how far that has come.
"""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from typing import Any, Final, NamedTuple

import msgspec

KEPT_BYTES: Final = 4_096
"""Leading bytes of an event that is too large: its dead letter keeps them."""


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a file has been read: the next line is the one after ``line``.

    ``offset`` is in bytes of the text, unpacked; ``member`` an archive's. ``done``: all of it was
    read. ``problems``: what was not as it should be, by member.
    """

    member: str = ""
    line: int = 0
    offset: int = 0
    done: bool = False
    problems: list[tuple[str, str]] = []


class Line(NamedTuple):
    """A line or a value, stripped; cut to its beginning where it is not ``whole``: too large."""

    number: int
    text: bytes
    whole: bool
    end: int
    """Offset of what follows it; 0 where reading cannot begin there."""
    digest: bytes = b""
    """Of all of it, where it is not whole."""


class Plain(NamedTuple):
    """Lines that came together and are as nearly all lines are: whole, and none of them empty.

    ``first`` is the number of the first, ``begin`` its offset; ``pieces`` are as they were read,
    ``texts`` stripped.
    """

    first: int
    begin: int
    pieces: list[bytes]
    texts: list[bytes]

    def length(self, part: slice) -> int:
        """Return how many bytes some of the lines took, with their line breaks."""
        pieces = self.pieces[part]
        return sum(map(len, pieces)) + len(pieces)


class Held:
    """The bytes of one event as they come: all, or the beginning and a digest of what is more."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._hash: Any = None
        self.text = b""
        self.length = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self._hash is None

    def add(self, piece: bytes) -> None:
        """Take a piece along, or its beginning."""
        self.length += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
            if len(self.text) == KEPT_BYTES:
                return
        self.text += piece
        if self.length > self._max:
            self._hash = self._hash or hashlib.blake2b(self.text, digest_size=16)
            self.text = self.text[:KEPT_BYTES]

    def take(self) -> tuple[bytes, bytes]:
        """Return what is held and the digest, empty where it is whole; and hold nothing."""
        text, digest = self.text, self._hash.digest() if self._hash else b""
        self._hash, self.text, self.length = None, b"", 0
        return text, digest


_BEGINS: Final = re.compile(rb"\[\s*+\{|[\[{]\Z")
"""A line with which an array of events, or an event over several lines, begins."""


class Lines:
    """Cuts text into numbered lines; remembers only the line that is not finished yet.

    At a line with which something else than an event of one line begins it stops: ``rest`` is the
    text from there on, to be cut otherwise.
    """

    def __init__(self, max_bytes: int, start: Position | None = None) -> None:
        start = start or Position()
        self._max = max_bytes
        self.rest = b""
        self._number = start.line
        self._end = start.offset
        self._held = Held(max_bytes)

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines that end in this text, but empty ones."""
        *pieces, last = text.split(b"\n")
        found: list[Line] = []
        for at, piece in enumerate(pieces, 1):
            line = self._finish(piece, 1)
            if line is not None and line.whole and _BEGINS.match(line.text):
                self._number -= 1
                self.rest = b"\n".join([line.text, *pieces[at:], last])
                return found
            if line is not None:
                found.append(line)
        if last:
            self._held.add(last)
        return found

    @property
    def number(self) -> int:
        """The number of the last line."""
        return self._number

    def cut_plain(self, text: bytes) -> Plain | None:
        """Do what ``cut`` does, all lines at once; do nothing where one of them needs a look.

        The first line of all may have a byte order mark, so that one is looked at.
        """
        held = self._held
        if not self._number or not held.whole:
            return None
        *pieces, last = text.split(b"\n")
        if not pieces:
            return None
        pieces[0] = held.text + pieces[0]
        texts = [piece.strip() for piece in pieces]
        first = min(texts)  # an empty one, an array and a lone bracket come before all events
        if first[:1] != b"{" or len(first) == 1:
            return None
        if max(map(len, pieces)) > self._max or len(last) > self._max:
            return None
        plain = Plain(self._number + 1, self._end, pieces, texts)
        self._number += len(texts)
        self._end += held.length + len(text) - len(last)
        held.take()
        held.add(last)
        return plain

    def finish(self) -> list[Line]:
        """Return what is left when the text ends without a line break; or it is the ``rest``."""
        line = self._finish(b"", 0) if self._held.length else None
        if line is not None and line.whole and _BEGINS.match(line.text):
            self._number -= 1
            self.rest = line.text
            return []
        return [line] if line else []

    def _finish(self, piece: bytes, breaks: int) -> Line | None:
        length, digest = len(piece), b""
        if self._held.length or length > self._max:
            self._held.add(piece)
            length = self._held.length
            piece, digest = self._held.take()
        self._number += 1
        self._end += length + breaks
        if self._number == 1:
            piece = piece.removeprefix(BOM_UTF8)
        line = piece.strip()
        return Line(self._number, line, not digest, self._end, digest) if line else None
