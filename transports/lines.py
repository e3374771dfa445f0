"""Text, cut into lines: the fast path, for one event a line. Pure, and streamed.

Also the values of every shape (``transports.shapes``): a cut line, and a position in a file.
"""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from typing import Any, Final, NamedTuple

import msgspec

KEPT_BYTES: Final = 4_096
"""Leading bytes of an event that is too large: its dead letter keeps them."""


class FilePosition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A position up to which a file has been read; the next line is ``line`` + 1.

    ``offset`` is in bytes of the unpacked text, of ``member`` in an archive. ``done``: all of the
    file was read. ``problems``: pairs of a member and its problem.
    """

    member: str = ""
    line: int = 0
    offset: int = 0
    done: bool = False
    problems: list[tuple[str, str]] = []


class Line(NamedTuple):
    """A line or a value, stripped. Where it is too large, not ``whole``, only its beginning."""

    number: int
    text: bytes
    whole: bool
    end: int
    """Offset behind it; 0 where reading cannot begin there."""
    digest: bytes = b""
    """Of the complete text, where it is not whole."""


class PlainLines(NamedTuple):
    """Lines of one read that are all whole and not empty, as nearly all lines are.

    ``first`` is the number of the first, ``begin`` its offset. ``pieces`` are the lines as read,
    ``texts`` are stripped.
    """

    first: int
    begin: int
    pieces: list[bytes]
    texts: list[bytes]

    def length(self, part: slice) -> int:
        """Return the bytes of some of the lines, line breaks included."""
        pieces = self.pieces[part]
        return sum(map(len, pieces)) + len(pieces)


class UnfinishedEvent:
    """The bytes of one event so far: all, or, over ``max_bytes``, the beginning and a digest."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._hash: Any = None
        self.text = b""
        self.length = 0

    @property
    def whole(self) -> bool:
        """Whether all bytes are held."""
        return self._hash is None

    def add(self, piece: bytes) -> None:
        """Append a piece."""
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
        """Return the held bytes and the digest, empty for a whole event, and hold nothing."""
        text, digest = self.text, self._hash.digest() if self._hash else b""
        self._hash, self.text, self.length = None, b"", 0
        return text, digest


_BEGINS: Final = re.compile(rb"\[\s*+\{|[\[{]\Z")
"""Matches the first line of an array of events, or of an event over several lines."""


class LineCutter:
    """Cuts text into numbered lines; holds only the line that is not finished yet.

    It stops at the first line of an array of events, or of an event over several lines. ``rest`` is
    the text from there on, for a ``ValueCutter``.
    """

    def __init__(self, max_bytes: int, start: FilePosition | None = None) -> None:
        start = start or FilePosition()
        self._max = max_bytes
        self.rest = b""
        self._number = start.line
        self._end = start.offset
        self._held = UnfinishedEvent(max_bytes)

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines that end in this text, without empty ones."""
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

    def cut_plain(self, text: bytes) -> PlainLines | None:
        """Return all lines that end in this text at once, or None where ``cut`` is needed.

        That is so for a first line, which may have a byte order mark, and where a line is empty,
        too large or the beginning of another shape. Then nothing is changed.
        """
        held = self._held
        if not self._number or not held.whole:
            return None
        *pieces, last = text.split(b"\n")
        if not pieces:
            return None
        pieces[0] = held.text + pieces[0]
        texts = [piece.strip() for piece in pieces]
        first = min(texts)  # empty lines, arrays and lone brackets sort before all events
        if first[:1] != b"{" or len(first) == 1:
            return None
        if max(map(len, pieces)) > self._max or len(last) > self._max:
            return None
        plain = PlainLines(self._number + 1, self._end, pieces, texts)
        self._number += len(texts)
        self._end += held.length + len(text) - len(last)
        held.take()
        held.add(last)
        return plain

    def finish(self) -> list[Line]:
        """Return a last line without a line break, unless it becomes the ``rest``."""
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
