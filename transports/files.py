"""Files that hold events: found, opened whatever they are packed in, and cut into lines.

Plain text, gzip, and ZIP archives of either (an Export API answer is a ZIP of ``.json.gz``) are
told apart by their first bytes, for their names lie: pieces of an Export are sometimes saved as a
ZIP called ``.json.gz``. A text whose first character is ``[`` is one JSON array; any other is read
line by line. All of it is streamed: memory does not grow with the file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from transports.amplitude import BOM
from transports.errors import Damaged
from transports.inflate import Inflate

CHUNK_BYTES: Final = 1024 * 1024
KEPT_BYTES: Final = 4096
"""How much of a line that is too long is kept, for whoever looks for it."""

SUFFIXES: Final = frozenset({".json", ".jsonl", ".ndjson", ".gz", ".zip"})
"""Of what is read in a folder; a file that is named itself is always read."""

GZIP_MAGIC: Final = b"\x1f\x8b"
ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")
UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")


class Position(msgspec.Struct, frozen=True):
    """How far a file has been read: the next line is the one after ``line``.

    ``offset`` is in bytes of the text, unpacked; ``member`` a ZIP's. ``done``: all of it was read.
    """

    member: str = ""
    line: int = 0
    offset: int = 0
    done: bool = False


class Chunk(NamedTuple):
    """Some text of a file, or (empty) the end of one member, and why it is not a good one."""

    member: str
    text: bytes
    read_bytes: int
    """Bytes of the file itself that this took."""
    damage: str = ""


class Line(NamedTuple):
    """A line, stripped; cut to its beginning where it is not ``whole``, being too long."""

    number: int
    text: bytes
    whole: bool
    end: int
    """Offset of what follows it."""
    digest: bytes = b""
    """Of all of it, where only its beginning is kept: lines that begin alike are different ones."""


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


# --- finding ------------------------------------------------------------------------------


def find(paths: Iterable[str]) -> list[str]:
    """Return the files that these paths mean: folders are searched, ``-`` stays as it is.

    In natural order, as Amplitude numbers the hours of an Export without zeros in front.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[str] = []
    for path in paths:
        if path != "-" and os.path.isdir(path):
            found.extend(sorted(_inside(path), key=_natural))
        else:
            found.append(path)
    return found


def _inside(folder: str) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # of links that lead back up
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_fail):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not _is_aside(name):
                yield os.path.join(place, name)


def _fail(error: OSError) -> None:
    raise error


def _is_aside(name: str) -> bool:
    """Whether a file is no file of events: hidden, or S3's list of merged users (``-…``)."""
    return name.startswith((".", "-"))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _DIGITS.split(name)]


_DIGITS: Final = re.compile(r"(\d{1,18})", re.ASCII)


def shown(path: str) -> str:
    """Return a path as text that can be stored: a name may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def size(paths: Sequence[str]) -> int | None:
    """Return the bytes of all these files, or None where one of them is a pipe."""
    found = [os.stat(path) for path in paths if path != "-"]
    if len(found) < len(paths) or not all(stat.S_ISREG(one.st_mode) for one in found):
        return None
    return sum(one.st_size for one in found)


def identity(path: str) -> str:
    """Return what a file is known by again, as long as nothing changes it."""
    found = os.stat(path)
    return f"{shown(os.path.abspath(path))} {found.st_size} {found.st_mtime_ns}"


# --- reading ------------------------------------------------------------------------------


def read(path: str, start: Position | None = None) -> Iterator[Chunk]:
    """Yield a file's text from a position on; blocks, so it belongs into a thread.

    What is damaged says so in the chunk that ends it; what was before the damage has been yielded,
    and what other members an archive has comes behind it.

    Raises:
        OSError: it cannot be read.
    """
    start = start or Position()
    try:
        with open(path, "rb") as file:
            magic = file.peek(4)[:4]
            if magic in ZIP_MAGIC and file.seekable():
                yield from _read_zip(file, start)
                return
            skip = start.offset
            if skip and not magic.startswith(GZIP_MAGIC):
                file.seek(skip)
                skip = 0
            yield from _unpack("", _blocks(file, passed=start.offset - skip), skip)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None


def _blocks(
    file: IO[bytes], *, share: float = 1.0, passed: float = 0.0
) -> Iterator[tuple[bytes, int]]:
    """Yield blocks, and what each stands for on disk; ``passed`` was passed over before."""
    yield b"", int(passed)
    while block := file.read(CHUNK_BYTES):
        yield block, int(len(block) * share)


def _read_zip(file: IO[bytes], start: Position) -> Iterator[Chunk]:
    try:
        archive = zipfile.ZipFile(file)
        members = [member for member in archive.infolist() if _is_member(member)]
    except Exception as error:  # the library raises almost anything for what is damaged
        yield Chunk("", b"", 0, _damage(error))
        return
    with archive:
        members.sort(key=lambda member: _natural(member.filename))
        names = [member.filename for member in members]
        first = names.index(start.member) if start.member in names else 0
        passed = sum(member.compress_size for member in members[:first])
        skip = start.offset if start.member in names else 0
        for member in members[first:]:
            yield from _unpack(member.filename, _member_blocks(archive, member, passed), skip)
            passed = skip = 0


def _is_member(member: zipfile.ZipInfo) -> bool:
    parts = Path(member.filename).parts
    return bool(parts) and not (member.is_dir() or _is_aside(parts[-1]) or "__MACOSX" in parts[:-1])


def _member_blocks(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, passed: int
) -> Iterator[tuple[bytes, int]]:
    share = member.compress_size / (member.file_size or 1)
    with archive.open(member) as packed:
        yield from _blocks(packed, share=share, passed=passed)


def _unpack(member: str, blocks: Iterator[tuple[bytes, int]], skip: int) -> Iterator[Chunk]:
    """Yield the text of a stream that may be gzip, without its first ``skip`` bytes."""
    stream, took, damage = Stream(), 0, ""
    try:
        for block, read_bytes in blocks:
            took += read_bytes
            for piece in stream.feed(block):
                text = piece[skip:]
                skip -= len(piece) - len(text)
                if text:
                    yield Chunk(member, text, took)
                    took = 0
        for piece in stream.finish():
            yield Chunk(member, piece[skip:], took)
            took = 0
    except Exception as error:  # as above; a disk that fails is another matter
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        damage = _damage(error)
    yield Chunk(member, b"", took, damage)


def _damage(error: Exception) -> str:
    return str(error) or type(error).__name__


class Stream:
    """A text on its way, packed with gzip or not: its first bytes tell."""

    def __init__(self) -> None:
        self._inflate: Inflate | None = None
        self._first: bytes | None = b""

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Yield the text that is there with this block; what comes first is held back a little.

        Raises:
            zlib.error: it is damaged; what was before the damage has been yielded.
            ValueError: it is no text, and nothing that can be unpacked on the way.
        """
        if self._first is not None:
            self._first += block
            if len(self._first) < 4:
                return
            block = self._begin(self._first)
        yield from self._texts(block)

    def finish(self) -> Iterator[bytes]:
        """Yield what was held back: nothing more comes.

        Raises:
            EOFError: it is not whole.
            ValueError: as ``feed``.
        """
        if self._first:
            yield from self._texts(self._begin(self._first))
        if self._inflate and not self._inflate.whole:
            raise EOFError("it ends too early")

    def _begin(self, first: bytes) -> bytes:
        self._first = None
        if first[:4] in ZIP_MAGIC:
            raise ValueError("a ZIP can only be read as a file of its own")
        if first.startswith(UTF_16):
            raise ValueError("it is UTF-16, save it as UTF-8")
        self._inflate = Inflate() if first.startswith(GZIP_MAGIC) else None
        return first

    def _texts(self, block: bytes) -> Iterator[bytes]:
        if self._inflate:
            yield from self._inflate.feed(block)
        elif block:
            yield block


def read_lines(path: str, max_line_bytes: int) -> Iterator[Line]:
    """Yield a file's lines; blocks.

    Raises:
        OSError: it cannot be read.
        Damaged: some of it is not whole; everything that is has been yielded.
    """
    damaged: Damaged | None = None
    cutter = Cutter(max_line_bytes)
    for member, text, _, damage in read(path):
        yield from cutter.cut(text) if text else cutter.finish()
        if damage:
            damaged = damaged or Damaged(":".join(filter(None, (path, member))), damage)
        cutter = cutter if text else Cutter(max_line_bytes)
    if damaged:
        raise damaged


# --- cutting ------------------------------------------------------------------------------


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


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
        self._digest = _digest()

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines that end in this text, but empty ones."""
        *pieces, last = text.split(b"\n")
        found = [line for piece in pieces if (line := self._finish(piece, 1)) is not None]
        self._keep(last)
        return found

    def cut_plain(self, text: bytes) -> Plain | None:
        """Do what ``cut`` does, all lines at once; do nothing where one of them needs a look.

        The first line of all may have a byte order mark, so that one is looked at.
        """
        if not self._number or not self._whole:
            return None
        *pieces, last = text.split(b"\n")
        if not pieces:
            return None
        pieces[0] = self._rest + pieces[0]
        texts = [piece.strip() for piece in pieces]
        if not all(texts) or max(map(len, pieces)) > self._max or len(last) > self._max:
            return None
        plain = Plain(self._number + 1, self._end, pieces, texts)
        self._number += len(texts)
        self._end += len(self._rest) + len(text) - len(last)
        self._rest = last
        return plain

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
        if whole:
            return Line(self._number, line, True, self._end) if line else None
        digest, self._digest = self._digest.digest(), _digest()
        return Line(self._number, line, False, self._end, digest) if line else None

    def _keep(self, piece: bytes) -> None:
        self._rest += piece
        if not self._whole:
            self._digest.update(piece)
        elif len(self._rest) > self._max:
            self._digest.update(self._rest)
            self._whole = False
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
        self._digest = _digest()
        self._behind: Lines | None = None

    def cut(self, text: bytes) -> list[Line]:
        """Return the elements that end in this text."""
        if self._behind is not None:
            return self._behind.cut(text)
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
            if self._depth == 0:
                return found + self._leave(self._buffer[begin:])
        self._forget(begin)
        return found

    def finish(self) -> list[Line]:
        """Return what stands behind the last whole element: nothing, where the array is whole."""
        return self._behind.finish() if self._behind else self._element(self._buffer)

    def _leave(self, rest: bytes) -> list[Line]:
        """Go on by lines behind the array's end: there should be nothing."""
        self._behind = Lines(self._max, Position(line=self._number))
        self._buffer = b""
        return [line._replace(end=0) for line in self._behind.cut(rest)]

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
        all_of_it, passed = text, KEPT_BYTES if self._lost else 0
        text = text.removeprefix(BOM).strip() if self._number == 0 else text.strip()
        whole = not self._lost and len(text) <= self._max
        self._lost = False
        if not text:
            self._digest = _digest()
            return []
        self._number += 1
        if whole:
            return [Line(self._number, text, True, 0)]
        self._digest.update(all_of_it[passed:])
        digest, self._digest = self._digest.digest(), _digest()
        return [Line(self._number, text[:KEPT_BYTES], False, 0, digest)]

    def _forget(self, count: int) -> None:
        """Drop what has been cut off, and of an element that is too long all but its beginning."""
        if not self._in_string:
            self._scanned = len(self._buffer)
        rest = self._buffer[count:]
        self._scanned -= count
        if len(rest) > self._max and self._scanned > KEPT_BYTES:
            self._digest.update(rest[KEPT_BYTES if self._lost else 0 : self._scanned])
            rest = rest[:KEPT_BYTES] + rest[self._scanned :]
            self._scanned = KEPT_BYTES
            self._lost = True
        self._buffer = rest


class Cutter:
    """Cuts a text into lines, or into elements where it is a JSON array; its beginning tells."""

    def __init__(self, max_line_bytes: int, start: Position | None = None) -> None:
        self._max = max_line_bytes
        self._start = start
        self._begun = b""
        self._cutter: Lines | Elements | None = None
        if start and start.offset:
            self._cutter = Lines(max_line_bytes, start)  # arrays are not entered in the middle

    def cut(self, text: bytes) -> list[Line]:
        """Return the lines or elements that end in this text."""
        if self._cutter is not None:
            return self._cutter.cut(text)
        self._begun += text
        begins = _BEGINNING.match(self._begun)
        if begins and not begins[2] and begins.end() == len(self._begun) <= self._max:
            return []  # it may still become an array
        return self._decide(is_array=bool(begins and begins[1] and begins[2]))

    def cut_plain(self, text: bytes) -> Plain | None:
        """Return the lines that end in this text at once, where that is possible; see ``Lines``."""
        return self._cutter.cut_plain(text) if isinstance(self._cutter, Lines) else None

    def finish(self) -> list[Line]:
        """Return what is left when the text ends."""
        found = [] if self._cutter else self._decide(is_array=False)
        return found + (self._cutter.finish() if self._cutter else [])

    def _decide(self, *, is_array: bool) -> list[Line]:
        self._cutter = Elements(self._max) if is_array else Lines(self._max, self._start)
        return self._cutter.cut(self._begun)


_BEGINNING: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:(\[)\s*([{\]])?)?")
"""How an array of events begins; a log line may begin with a bracket too."""
