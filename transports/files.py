"""Reading files of events piece by piece, unpacked.

- Plain text, gzip, bzip2, xz, Zstandard, and ZIP archives of any of these (an Export API answer is
  a ZIP of ``.json.gz``) are told apart by their first bytes (``transports.kinds``).
- Everything is streamed: memory does not grow with the file.
- A damage costs as little as possible. The text before it is yielded, other members of an archive
  are read, and an archive without its list of members is read by the headers of the members.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from amplitude_intercom.transports import kinds, zips
from amplitude_intercom.transports.errors import BadFile
from amplitude_intercom.transports.finding import is_hidden, natural_order, shown
from amplitude_intercom.transports.kinds import NotEvents
from amplitude_intercom.transports.lines import FilePosition
from amplitude_intercom.transports.packing import PackedText

CHUNK_BYTES: Final = 1024 * 1024

MAX_DIRECTORY_BYTES: Final = 16_777_216
"""Largest list of members of a ZIP: 150,000 of an Export's. It is read into memory."""


class Chunk(NamedTuple):
    """Some text of a file, or (empty) the end of one member, with its problem."""

    member: str
    text: bytes
    read_bytes: int
    """Bytes of the file itself that this took."""
    problem: str = ""


# --- reading ------------------------------------------------------------------------------


def read(path: str, start: FilePosition | None = None) -> Iterator[Chunk]:
    """Yield the text of a file, or of standard input (``-``), from a position on.

    It blocks, so it belongs into a thread.

    The chunk that ends a file, or a member of an archive, has its problem. The text before a damage
    has been yielded by then, and the other members follow.

    Raises:
        OSError: it cannot be read.
    """
    start = start or FilePosition()
    try:
        with _opened(path) as file:
            packing = kinds.packing_of(file.peek(kinds.SNIFF_BYTES)[: kinds.SNIFF_BYTES])
            if packing == kinds.ZIP and file.seekable():
                yield from read_archive(file, start)
                return
            passed = 0
            if start.offset and not packing and not start.member:
                passed = file.seek(start.offset)
            yield from _unpack("", _blocks(file, passed=passed), start, passed=passed)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), _named(path)) from None


def _opened(path: str) -> BufferedReader:
    if path != "-":
        return open(path, "rb")
    if sys.stdin is None:  # then descriptor 0 may be any file that was opened later
        raise OSError(errno.EBADF, "it is closed")
    return BufferedReader(BlockingFile(0, closefd=False))  # a socket has no path to open


class BlockingFile(FileIO):
    """A file that waits for bytes even if another process has set it to non-blocking."""

    def readinto(self, buffer: Any, /) -> int:
        while (count := super().readinto(buffer)) is None:
            select.select([self], [], [])
        return count


def _named(path: str) -> str:
    return "stdin" if path == "-" else path


def _blocks(
    file: IO[bytes], *, share: float = 1.0, passed: float = 0.0
) -> Iterator[tuple[bytes, int]]:
    """Yield blocks with their share of bytes on disk, after the bytes ``passed`` over before."""
    yield b"", int(passed)
    while block := file.read(CHUNK_BYTES):
        yield block, int(len(block) * share)


def _unpack(
    member: str,
    blocks: Iterator[tuple[bytes, int]],
    start: FilePosition,
    *,
    passed: int = 0,
    layers: int = 0,
) -> Iterator[Chunk]:
    """Yield the text of blocks that may be packed; ``passed`` bytes were skipped already."""
    # A packed text cannot be entered in its middle: the part before the position is unpacked again
    # and skipped.
    stream, took, problem = PackedText(layers, plain=passed > 0), 0, ""
    skip = start.offset - passed if start.member == member else 0
    try:
        for block, read_bytes in _and_end(blocks):
            took += read_bytes
            for piece in stream.finish() if block is None else stream.feed(block):
                text = piece[skip:]
                skip -= len(piece) - len(text)
                if text:
                    yield Chunk(member, text, took)
                    took = 0
        if stream.archive is not None:
            yield from read_archive(stream.archive, start, member, stream.layers, counts=False)
    except Exception as error:  # the libraries raise errors of any class for damaged input
        problem = problem_of(error)
    finally:
        if stream.archive is not None:
            stream.archive.close()
    yield Chunk(member, b"", took, problem)


def _and_end(blocks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes | None, int]]:
    yield from blocks
    yield None, 0


def problem_of(error: Exception) -> str:
    """Return the message for a file that cannot be unpacked.

    Raises:
        OSError: the disk fails.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    said = str(error) or type(error).__name__
    return said if isinstance(error, NotEvents) else f"damaged: {said}"


# --- archives -----------------------------------------------------------------------------


def read_archive(
    file: IO[bytes],
    start: FilePosition,
    inside: str = "",
    layers: int = 0,
    *,
    counts: bool = True,
) -> Iterator[Chunk]:
    """Yield the text of a ZIP's members; blocks. ``inside``: the member of another ZIP it was in.

    ``counts``: its bytes are those of the file itself.

    Raises:
        OSError: it cannot be read.
    """
    try:
        archive = open_archive(file)
    except Exception as error:  # damaged input, as in ``_unpack``
        problem = problem_of(error)
        if isinstance(error, zipfile.BadZipFile):
            for chunk in _read_cut_off(file, start, inside, layers, counts=counts):
                yield chunk
                problem = "damaged: a ZIP that ends too early"
        yield Chunk(inside, b"", 0, problem)
        return
    with archive:
        listed = (status for status in archive.infolist() if _is_member(status.filename))
        members = sorted(listed, key=lambda member: natural_order(member.filename))
        names = [f"{inside}:{m.filename}" if inside else m.filename for m in members]
        first = _index(names, start.member)
        passed = sum(member.compress_size for member in members[:first]) * counts
        for name, member in list(zip(names, members, strict=True))[first:]:
            blocks = _member_blocks(archive, member, passed, counts=counts)
            yield from _unpack(name, blocks, start, layers=layers + 1)
            passed, start = 0, FilePosition()


def _index(names: Sequence[str], wanted: str) -> int:
    """Return the index of a member, or of the archive that it is in, or 0."""
    found = (n for n, name in enumerate(names) if wanted == name or wanted.startswith(f"{name}:"))
    return next(found, 0)


def open_archive(file: IO[bytes]) -> zipfile.ZipFile:
    """Return a ZIP after reading its list of members.

    Raises:
        zipfile.BadZipFile: it is no ZIP, or not whole.
        NotEvents: its list is too long to be held in memory.
    """
    if _directory_bytes(file) > MAX_DIRECTORY_BYTES:
        raise NotEvents(f"a ZIP of which the list of members is over {MAX_DIRECTORY_BYTES} bytes")
    return zipfile.ZipFile(file)


def _directory_bytes(file: IO[bytes]) -> int:
    """Return the length of a ZIP's list of members, by APPNOTE.TXT, 4.3.14 and 4.3.16."""
    file.seek(-min(file.seek(0, os.SEEK_END), 65_536 + 22 + 76), os.SEEK_END)
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        return 0
    is_large = end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07"
    at = slice(end - 36, end - 28) if is_large else slice(end + 12, end + 16)
    return int.from_bytes(tail[at], "little")


def _is_member(name: str) -> bool:
    parts = Path(name).parts
    is_passed_over = name.endswith("/") or is_hidden(parts[-1]) if parts else True
    return not (is_passed_over or "__MACOSX" in parts[:-1])


def _member_blocks(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, passed: int, *, counts: bool
) -> Iterator[tuple[bytes, int]]:
    share = counts * member.compress_size / (member.file_size or 1)
    unpacked = 0
    with archive.open(member) as packed:
        try:
            for block, read_bytes in _blocks(packed, share=share, passed=passed):
                unpacked += len(block)
                yield block, read_bytes
        except (EOFError, zipfile.BadZipFile, zlib.error):
            # The library has dropped bytes before the damage: they are read again, by the header.
            assert archive.fp is not None
            found = zips.Member(archive.fp, member.header_offset, member.compress_size)
            yield from _behind(unpacked, found)
            raise


def _behind(unpacked: int, member: zips.Member) -> Iterator[tuple[bytes, int]]:
    """Yield the readable bytes of a damaged member, without those that were yielded before."""
    with suppress(EOFError, zipfile.BadZipFile, zlib.error):
        for block in member.read():
            yield block[unpacked:], 0
            unpacked -= min(unpacked, len(block))


def _read_cut_off(
    file: IO[bytes], start: FilePosition, inside: str, layers: int, *, counts: bool
) -> Iterator[Chunk]:
    """Yield the text of an archive without a list of members, in the order of the members."""
    at: int | None = 0
    while at is not None:
        try:
            member = zips.Member(file, at)
        except zipfile.BadZipFile:
            return
        blocks = _counted_blocks(member, counts=counts)
        if _is_member(member.name):
            name = f"{inside}:{member.name}" if inside else member.name
            yield from _unpack(name, blocks, start, layers=layers + 1)
        with suppress(EOFError, zipfile.BadZipFile, zlib.error):
            for _ in blocks:  # its end, and so the next member, is known only then
                pass
        at = member.end


def _counted_blocks(member: zips.Member, *, counts: bool) -> Iterator[tuple[bytes, int]]:
    """Yield the unpacked blocks of a member with their bytes in the archive."""
    taken = member.taken_bytes
    for block in member.read():
        yield block, (member.taken_bytes - taken) * counts
        taken = member.taken_bytes


def bad_file(path: str, member: str, problem: str) -> BadFile:
    """Return the error for a problem of a file, or of a member of it."""
    return BadFile(":".join(map(shown, filter(None, (_named(path), member)))), problem)
