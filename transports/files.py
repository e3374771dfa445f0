"""Files that hold events: found, opened whatever they are packed in, and cut into lines.

Plain text, gzip, and ZIP archives of either (an Export API answer is a ZIP of ``.json.gz``) are
told apart by their first bytes, for their names lie: pieces of an Export are sometimes saved as a
ZIP called ``.json.gz``. A text whose first character is ``[`` is one JSON array; any other is read
line by line. All of it is streamed: memory does not grow with the file.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from transports.errors import Damaged
from transports.inflate import Inflate

CHUNK_BYTES: Final = 256 * 1024
KEPT_BYTES: Final = 4096
"""How much of a line that is too long is kept, for whoever looks for it."""

SUFFIXES: Final = frozenset({".json", ".jsonl", ".ndjson", ".gz", ".zip"})
"""Of what is read in a folder; a file that is named itself is always read."""

GZIP_MAGIC: Final = b"\x1f\x8b"
ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")
BOM: Final = b"\xef\xbb\xbf"
DAMAGE: Final = (zlib.error, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)


class Position(msgspec.Struct, frozen=True):
    """How far a file has been read: the next line is the one after ``line``.

    ``offset`` is in bytes of the text, unpacked; ``member`` a ZIP's. ``done``: all of it was read.
    """

    member: str = ""
    line: int = 0
    offset: int = 0
    done: bool = False


class Chunk(NamedTuple):
    """Some text of a file, or (empty) the end of one member."""

    member: str
    text: bytes
    read_bytes: int
    """Bytes of the file itself that this took."""


class Line(NamedTuple):
    """A line, stripped; cut to its beginning where it is not ``whole``, being too long."""

    number: int
    text: bytes
    whole: bool
    end: int
    """Offset of what follows it."""


# --- finding ------------------------------------------------------------------------------


def find(paths: Iterable[str]) -> list[str]:
    """Return the files that these paths mean: folders are searched, ``-`` stays as it is.

    In natural order, as Amplitude numbers the hours of an Export without zeros in front.
    """
    found: list[str] = []
    for path in paths:
        if path != "-" and os.path.isdir(path):
            inside = [str(p) for p in Path(path).rglob("*") if _is_wanted(p)]
            found.extend(sorted(inside, key=_natural))
        else:
            found.append(path)
    return found


def _is_wanted(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not _is_aside(path.name) and path.is_file()


def _is_aside(name: str) -> bool:
    """Whether a file is no file of events: hidden, or S3's list of merged users (``-…``)."""
    return name.startswith((".", "-"))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


_DIGITS: Final = re.compile(r"(\d+)", re.ASCII)


def size(paths: Sequence[str]) -> int | None:
    """Return the bytes of all these files, or None where one of them is a pipe."""
    found = [os.stat(path) for path in paths if path != "-"]
    if len(found) < len(paths) or not all(stat.S_ISREG(one.st_mode) for one in found):
        return None
    return sum(one.st_size for one in found)


def identity(path: str) -> str:
    """Return what a file is known by again, as long as nothing changes it."""
    found = os.stat(path)
    return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}"


# --- reading ------------------------------------------------------------------------------


def read(path: str, start: Position | None = None) -> Iterator[Chunk]:
    """Yield a file's text from a position on; blocks, so it belongs into a thread.

    Raises:
        OSError: it cannot be read.
        Damaged: it is not whole; what was before the damage has been yielded.
    """
    start = start or Position()
    with open(path, "rb") as file:
        try:
            magic = file.peek(4)[:4]
            if magic in ZIP_MAGIC and file.seekable():
                yield from _read_zip(file, start)
                return
            skip = start.offset
            if skip and not magic.startswith(GZIP_MAGIC):
                file.seek(skip)
                skip = 0
            yield from _unpack("", _blocks(file, passed=start.offset - skip), skip)
        except DAMAGE as error:
            raise Damaged(path, str(error) or type(error).__name__) from None


def _blocks(
    file: IO[bytes], *, share: float = 1.0, passed: float = 0.0
) -> Iterator[tuple[bytes, int]]:
    """Yield blocks, and what each stands for on disk; ``passed`` was passed over before."""
    yield b"", int(passed)
    while block := file.read(CHUNK_BYTES):
        yield block, int(len(block) * share)


def _read_zip(file: IO[bytes], start: Position) -> Iterator[Chunk]:
    with zipfile.ZipFile(file) as archive:
        members = [m for m in archive.infolist() if _is_member(m)]
        members.sort(key=lambda member: _natural(member.filename))
        names = [member.filename for member in members]
        first = names.index(start.member) if start.member in names else 0
        passed = sum(member.compress_size for member in members[:first])
        for member in members[first:]:
            skip = start.offset if member.filename == start.member else 0
            share = member.compress_size / (member.file_size or 1)
            with archive.open(member) as packed:
                blocks = _blocks(packed, share=share, passed=passed)
                yield from _unpack(member.filename, blocks, skip)
            passed = 0


def _is_member(member: zipfile.ZipInfo) -> bool:
    parts = Path(member.filename).parts
    return not member.is_dir() and not _is_aside(parts[-1]) and "__MACOSX" not in parts


def _unpack(member: str, blocks: Iterator[tuple[bytes, int]], skip: int) -> Iterator[Chunk]:
    """Yield the text of a stream that may be gzip, without its first ``skip`` bytes."""
    stream = Stream()
    took = 0
    for block, read_bytes in blocks:
        took += read_bytes
        for piece in stream.feed(block):
            text = piece[skip:]
            skip -= len(piece) - len(text)
            if text:
                yield Chunk(member, text, took)
                took = 0
    stream.finish()
    yield Chunk(member, b"", took)


class Stream:
    """A text on its way, packed with gzip or not: its first bytes tell."""

    def __init__(self) -> None:
        self._inflate: Inflate | None = None
        self._begun = False

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Yield the text that a block holds.

        Raises:
            zlib.error: it is damaged; what was before the damage has been yielded.
            zipfile.BadZipFile: it is a ZIP, whose table of contents is at its end.
        """
        if not block:
            return
        if not self._begun:
            self._begun = True
            if block[:4] in ZIP_MAGIC:
                raise zipfile.BadZipFile("a ZIP can only be read as a file of its own")
            self._inflate = Inflate() if block.startswith(GZIP_MAGIC) else None
        yield from self._inflate.feed(block) if self._inflate else (block,)

    def finish(self) -> None:
        """Say that nothing more comes.

        Raises:
            EOFError: it is not whole.
        """
        if self._inflate and not self._inflate.whole:
            raise EOFError("it ends too early")


def read_lines(path: str, max_line_bytes: int) -> Iterator[tuple[str, Line]]:
    """Yield a file's lines with their member; blocks.

    Raises:
        OSError: it cannot be read.
        Damaged: it is not whole; what was before the damage has been yielded.
    """
    cut: Lines | Elements | None = None
    for member, text, _ in read(path):
        cut = cut or cutter(text, max_line_bytes)
        for line in cut.cut(text) if text else cut.finish():
            yield member, line
        cut = cut if text else None


# --- cutting ------------------------------------------------------------------------------


class Lines:
    """Cuts text into numbered lines; remembers only the line that is not finished yet."""

    def __init__(self, max_line_bytes: int, start: Position | None = None) -> None:
        start = start or Position()
        self._max = max_line_bytes
        self._number = start.line
        self._end = start.offset
        self._rest = b""
        self._whole = True
        self._lost = 0

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines that end in this text, but empty ones."""
        *pieces, last = text.split(b"\n")
        found = [line for piece in pieces if (line := self._finish(piece, 1)) is not None]
        self._keep(last)
        return found

    def finish(self) -> list[Line]:
        """Return what is left when the text ends without a line break."""
        line = self._finish(b"", 0) if self._rest else None
        return [line] if line else []

    def _finish(self, piece: bytes, breaks: int) -> Line | None:
        if self._rest or len(piece) > self._max:
            self._keep(piece)
            piece, self._rest = self._rest, b""
        self._number += 1
        self._end += len(piece) + self._lost + breaks
        whole, self._whole, self._lost = self._whole, True, 0
        if self._number == 1:
            piece = piece.removeprefix(BOM)
        line = piece.strip()
        return Line(self._number, line, whole, self._end) if line else None

    def _keep(self, piece: bytes) -> None:
        self._rest += piece
        self._whole = self._whole and len(self._rest) <= self._max
        if not self._whole and len(self._rest) > KEPT_BYTES:
            self._lost += len(self._rest) - KEPT_BYTES
            self._rest = self._rest[:KEPT_BYTES]


_INSIDE: Final = rb'(?:[^"\\]|\\.)*+(")?'
_TOKEN: Final = re.compile(rb'[\[{\]},]|"' + _INSIDE, re.DOTALL)
_STRING_GOES_ON: Final = re.compile(_INSIDE, re.DOTALL)


class Elements:
    """Cuts the text of one JSON array into its elements; their numbers take the lines' place.

    An array cannot be entered in the middle, so its elements say 0 for the offset behind them.
    """

    def __init__(self, max_element_bytes: int) -> None:
        self._max = max_element_bytes
        self._number = 0
        self._buffer = b""
        self._scanned = 0
        self._depth = 0
        self._in_string = False
        self._lost = False

    def cut(self, text: bytes) -> list[Line]:
        """Return the elements that end in this text."""
        self._buffer += text
        if self._in_string:
            self._passed(_STRING_GOES_ON.match(self._buffer, self._scanned))
        found: list[Line] = []
        begin = 0
        while not self._in_string and (token := _TOKEN.search(self._buffer, self._scanned)):
            self._passed(token)
            if self._ends_element(token[0]):
                found += self._element(self._buffer[begin : token.start()])
                begin = token.end()
        self._forget(begin)
        return found

    def finish(self) -> list[Line]:
        """Return what stands behind the last whole element: nothing, where the array is whole."""
        return self._element(self._buffer)

    def _passed(self, token: re.Match[bytes] | None) -> None:
        assert token is not None
        self._scanned = token.end()
        self._in_string = token[1] is None and (self._in_string or token[0][:1] == b'"')

    def _ends_element(self, token: bytes) -> bool:
        """Follow the nesting; the array's own bracket ends what stands before it: nothing."""
        if token in (b"[", b"{"):
            self._depth += 1
            return self._depth == 1
        self._depth -= token in (b"]", b"}")
        return self._depth == 0 or (self._depth == 1 and token == b",")

    def _element(self, text: bytes) -> list[Line]:
        text = text.removeprefix(BOM).strip() if self._number == 0 else text.strip()
        whole = not self._lost and len(text) <= self._max
        self._lost = False
        if not text:
            return []
        self._number += 1
        return [Line(self._number, text if whole else text[:KEPT_BYTES], whole, 0)]

    def _forget(self, count: int) -> None:
        """Drop what has been cut off, and of an element that is too long all but its beginning."""
        if not self._in_string and not _TOKEN.search(self._buffer, self._scanned):
            self._scanned = len(self._buffer)
        rest = self._buffer[count:]
        self._scanned -= count
        if len(rest) > self._max and self._scanned > KEPT_BYTES:
            rest = rest[:KEPT_BYTES] + rest[self._scanned :]
            self._scanned = KEPT_BYTES
            self._lost = True
        self._buffer = rest


def cutter(first: bytes, max_line_bytes: int, start: Position | None = None) -> Lines | Elements:
    """Return what cuts a text that begins so; one that was begun before goes on as lines."""
    begins = first.removeprefix(BOM).lstrip()[:1]
    is_array = begins == b"[" and not (start and start.offset)
    return Elements(max_line_bytes) if is_array else Lines(max_line_bytes, start)
