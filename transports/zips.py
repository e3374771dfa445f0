"""Members of a damaged ZIP, read by the headers in front of them.

The list of members stands at an archive's end, so a cut-off archive has none. The standard library
also drops unpacked bytes when the checksum behind them is wrong. Format: APPNOTE.TXT.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from amplitude_intercom.transports.inflate import PIECE_BYTES, RAW, rescue

_HEADER: Final = struct.Struct("<4s5H3L2H")  # 4.3.7
_SIGNED: Final = b"PK\x07\x08"
_UNSIGNED_LENGTHS: Final = (12, 20)
_HAS_DESCRIPTOR, _IS_UTF_8, _ENCRYPTED = 0x8, 0x800, 0x1
_ZIP64: Final = 0xFFFFFFFF


class Member:
    """A member at an offset. ``end``: the offset of the next one, known once this one is read."""

    def __init__(self, file: IO[bytes], at: int, packed_bytes: int | None = None) -> None:
        """``packed_bytes``: from the list of members, where there is one.

        Raises:
            zipfile.BadZipFile: no member begins there.
        """
        self._file = file
        file.seek(at)
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile("no member begins here")
        _, _, self._flags, self._method, _, _, self._crc, said, _, *lengths = _HEADER.unpack(head)
        name, extra = file.read(lengths[0]), file.read(lengths[1])
        self.name = name.decode("utf-8" if self._flags & _IS_UTF_8 else "cp437", "replace")
        if said == _ZIP64 and extra[:2] == b"\1\0":  # 4.5.3: the size as it is, then packed
            said = int.from_bytes(extra[12:20], "little")
        is_said = said or not self._flags & _HAS_DESCRIPTOR
        self._packed_bytes = packed_bytes or (said if is_said else None)
        self._begin = self._at = at + _HEADER.size + sum(lengths)
        self.end: int | None = None
        if self._packed_bytes is not None:
            self.end = self._begin + self._packed_bytes

    @property
    def taken_bytes(self) -> int:
        """Bytes of it that were read so far."""
        taken: int = self._at - self._begin
        return taken

    def read(self) -> Iterator[bytes]:
        """Yield its unpacked bytes, in pieces of bounded size.

        Raises:
            EOFError, zipfile.BadZipFile, zlib.error: it is damaged; all before that has been
                yielded.
        """
        if self._flags & _ENCRYPTED or self._method not in (0, 8):
            raise zipfile.BadZipFile("it can be read in an archive that is whole only")
        if self._method == 0 and self._packed_bytes is None:
            raise zipfile.BadZipFile("nothing tells where it ends")
        crc = 0
        for piece in self._raw() if self._method == 0 else self._inflated():
            crc = zlib.crc32(piece, crc)
            yield piece
        if self._flags & _HAS_DESCRIPTOR:
            self._read_descriptor()
        if crc != self._crc:
            raise zipfile.BadZipFile("Bad CRC-32")

    def _raw(self) -> Iterator[bytes]:
        while self._packed_bytes is None or self._at < self._begin + self._packed_bytes:
            left = PIECE_BYTES
            if self._packed_bytes is not None:
                left = min(left, self._begin + self._packed_bytes - self._at)
            self._file.seek(self._at)
            piece = self._file.read(left)
            if not piece:
                raise EOFError("it ends too early")
            self._at += len(piece)
            yield piece

    def _inflated(self) -> Iterator[bytes]:
        member = zlib.decompressobj(RAW)
        for chunk in self._raw():
            while chunk and not member.eof:
                before = member.copy()
                try:
                    piece = member.decompress(chunk, PIECE_BYTES)
                except zlib.error:
                    yield from rescue(before, chunk)
                    raise
                chunk = member.unconsumed_tail
                yield piece
            if member.eof:
                self._at -= len(member.unused_data)
                return
        raise EOFError("it ends too early")

    def _read_descriptor(self) -> None:
        """Read the checksum behind the member, with or without a mark (4.3.9)."""
        self._file.seek(self._at)
        found = self._file.read(24)
        is_signed = found.startswith(_SIGNED)
        self._crc = int.from_bytes(found[4:8] if is_signed else found[:4], "little")
        lengths = [length + 4 * is_signed for length in _UNSIGNED_LENGTHS]
        behind = (self._at + length for length in lengths)
        self.end = next((at for at in behind if self._begins(at)), self._at + lengths[0])

    def _begins(self, at: int) -> bool:
        self._file.seek(at)
        return self._file.read(2) == b"PK"
