"""Packed texts, unpacked as they come, also where packings are nested.

gzip, bzip2, xz and (with a library) Zstandard are unpacked piece by piece. A ZIP can only be read
from its end, so a ZIP in a stream is collected in a temporary file first.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

from amplitude_intercom.transports import kinds
from amplitude_intercom.transports.inflate import PIECE_BYTES, Inflate, Members
from amplitude_intercom.transports.kinds import NotEvents

MAX_LAYERS: Final = 4
"""Packings inside one another. An Export is gzip in a ZIP; that in a ZIP is three."""

MAX_MEMORY: Final = 134_217_728
"""Memory for unpacking. ``xz -9`` takes half of it (xz(1)); a file that needs more was made to."""

MAX_ZIP_BYTES: Final = 1_073_741_824
"""Largest ZIP that is collected on disk; a larger one has to be a file of its own."""

IN_MEMORY_BYTES: Final = 4_194_304
"""Of that, how much may be in memory."""


STEP_BYTES: Final = 256
"""Most bytes lost before a damage, where a library drops them and cannot be copied."""


class Bounded(Members):
    """A stream that a standard library's decompressor reads piece by piece."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of a chunk, in pieces of bounded size.

        Raises:
            Exception: it is damaged, in the library's words; all before that has been yielded,
                except for less than ``STEP_BYTES``.
        """
        piece = bytearray()
        try:
            for step in self._steps(chunk):
                piece += step
                if len(piece) > PIECE_BYTES - STEP_BYTES:
                    yield bytes(piece)
                    piece.clear()
        except Exception:  # each library has errors of its own
            yield bytes(piece)
            raise
        if piece:
            yield bytes(piece)

    def _steps(self, chunk: bytes) -> Iterator[bytes]:
        if self._member.eof:
            chunk = chunk.lstrip(b"\0")  # padding between members (xz file format)
        while chunk or not (self._member.needs_input or self._member.eof):
            if self._member.eof:
                self._member = self._decompressor()
            self._begun = True
            yield self._member.decompress(chunk, STEP_BYTES)
            chunk = self._member.unused_data.lstrip(b"\0") if self._member.eof else b""


class Sliced(Members):
    """A Zstandard stream, read by the library ``zstandard``.

    The library unpacks a chunk at once, so chunks are cut into slices: 64 bytes can hold 16 blocks,
    each of at most 128 KiB (RFC 8878).
    """

    SLICE: Final = 64

    def __init__(self, library: Any) -> None:
        super().__init__(library.ZstdDecompressor(max_window_size=MAX_MEMORY).decompressobj)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of a chunk, in pieces of bounded size."""
        for at in range(0, len(chunk), self.SLICE):
            rest = chunk[at : at + self.SLICE]
            while rest:
                if self._member.eof:
                    self._member = self._decompressor()
                self._begun = True
                piece = self._member.decompress(rest)
                rest = self._member.unused_data if self._member.eof else b""
                if piece:
                    yield piece


def _zstd() -> Members:
    for name in ("compression.zstd", "backports.zstd"):
        library = _imported(name)
        if library:
            return Bounded(library.ZstdDecompressor)
    library = _imported("zstandard")
    if library is None:
        raise NotEvents("packed with Zstandard: install `zstandard` beside this, or unpack it")
    return Sliced(library)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_UNPACKERS: Final[dict[str, Callable[[], Members]]] = {
    kinds.GZIP: lambda: Inflate(rescues=True),
    kinds.BZIP2: lambda: Bounded(bz2.BZ2Decompressor),
    kinds.XZ: lambda: Bounded(lambda: lzma.LZMADecompressor(memlimit=MAX_MEMORY)),
    kinds.ZSTD: _zstd,
}


class PackedText:
    """A text that arrives in blocks, packed or not; its first bytes decide, at every layer.

    ``layers``: number of packings outside of this one. ``plain``: it is known to be text.
    ``max_zip_bytes``: largest ZIP that is collected.
    """

    def __init__(
        self, layers: int = 0, *, plain: bool = False, max_zip_bytes: int = MAX_ZIP_BYTES
    ) -> None:
        self._layers = layers
        self._max_zip_bytes = max_zip_bytes
        self._first: bytes | None = None if plain else b""
        self._unpacker: Members | None = None
        self._inner: PackedText | None = None
        self._archive: IO[bytes] | None = None

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Yield the text up to this block. The first bytes are held back until they decide.

        Raises:
            NotEvents: it is no text, and no format that can be unpacked.
            Exception: it is damaged, in the words of the unpacking library; all before the damage
                has been yielded.
        """
        if self._first is None:
            yield from self._pass(block)
            return
        self._first += block
        if kinds.tells(self._first):
            yield from self._begin(self._first)

    def finish(self) -> Iterator[bytes]:
        """Yield the text that was held back, at the end of input.

        Raises:
            EOFError: it is not whole.
            Exception: as ``feed``.
        """
        if self._first:
            yield from self._begin(self._first)
        if self._inner is not None and self._unpacker is not None:
            yield from self._inner.finish()
            if not self._unpacker.whole:
                raise EOFError("it ends too early")

    @property
    def archive(self) -> IO[bytes] | None:
        """The collected ZIP, to be read and closed by the caller."""
        return self._inner.archive if self._inner else self._archive

    @property
    def layers(self) -> int:
        """Number of packings around the innermost text, or archive."""
        return self._inner.layers if self._inner else self._layers

    def _begin(self, first: bytes) -> Iterator[bytes]:
        self._first = None
        packing = kinds.packing_of(first)
        foreign = None if packing else kinds.foreign(first)
        if foreign:
            raise NotEvents(f"not JSON: {foreign}")
        if packing and self._layers >= MAX_LAYERS:
            raise NotEvents(f"packed more than {MAX_LAYERS} times")
        if packing == kinds.ZIP:
            self._archive = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - files.py closes it
        elif packing:
            self._unpacker = _UNPACKERS[packing]()
            self._inner = PackedText(self._layers + 1, max_zip_bytes=self._max_zip_bytes)
        yield from self._pass(first)

    def _pass(self, block: bytes) -> Iterator[bytes]:
        if self._archive is not None:
            self._collect(self._archive, block)
        elif self._inner is not None and self._unpacker is not None:
            for piece in self._unpacker.feed(block):
                yield from self._inner.feed(piece)
        elif block:
            yield block

    def _collect(self, archive: IO[bytes], block: bytes) -> None:
        most = self._max_zip_bytes
        if archive.tell() + len(block) > most:
            raise NotEvents(f"a ZIP of over {most} bytes that is no file of its own")
        archive.write(block)
