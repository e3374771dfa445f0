"""Compressed streams, inflated piece by piece, so that no bomb ever fills memory."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

GZIP: Final = 31
ANY: Final = 47
RAW: Final = -15
"""zlib's window bits: a gzip stream; gzip or zlib by the header; no header."""

PIECE_BYTES: Final = 262_144


class Members(ABC):
    """A packed stream of any number of members, each unpacked by a decompressor of its own."""

    def __init__(self, decompressor: Callable[[], Any]) -> None:
        """``decompressor`` makes one with the interface of the standard library's."""
        self._decompressor = decompressor
        self._member = decompressor()
        self._begun = False

    @property
    def whole(self) -> bool:
        """Whether the stream ended where a member does."""
        return self._member.eof or not self._begun

    @abstractmethod
    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of a chunk, in pieces of bounded size."""


class Inflate(Members):
    """A gzip or zlib stream."""

    def __init__(
        self,
        window_bits: int = GZIP,
        max_members: float = float("inf"),
        piece_bytes: int = PIECE_BYTES,
        *,
        rescues: bool = False,
    ) -> None:
        """``max_members``: many empty members cost work that no other bound limits.

        ``rescues``: yield all bytes before a damage, to the last one.
        """
        super().__init__(partial(zlib.decompressobj, window_bits))
        self._piece_bytes = piece_bytes
        self._rescues = rescues
        self._members_left = max_members - 1

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the inflated bytes of a chunk, in pieces of bounded size.

        Raises:
            zlib.error: it is damaged, or has too many members; all before that has been yielded.
        """
        if self._member.eof:
            chunk = chunk.lstrip(b"\0")
        while chunk:
            if self._member.eof:
                self._next_member()
            self._begun = True
            before = self._member.copy() if self._rescues else None
            try:
                piece = self._member.decompress(chunk, self._piece_bytes)
            except zlib.error:
                if before is not None:
                    yield from rescue(before, chunk)
                raise
            if piece:
                yield piece
            # Tapes and tar leave zeros behind a member: they are padding.
            if self._member.eof:  # the unconsumed tail would be the same, zeros included
                chunk = self._member.unused_data.lstrip(b"\0")
            else:
                chunk = self._member.unconsumed_tail

    def _next_member(self) -> None:
        if self._members_left <= 0:
            raise zlib.error("too many members")
        self._members_left -= 1
        self._member = self._decompressor()


def rescue(member: Any, chunk: bytes) -> Iterator[bytes]:
    """Yield the inflated bytes of a chunk before its damage; zlib itself drops them on an error.

    It tries ever smaller steps of input, and in the end ever smaller outputs of the damaged byte.
    """
    take, most = len(chunk), PIECE_BYTES
    while chunk and most and not member.eof:
        attempt = member.copy()
        try:
            piece = attempt.decompress(chunk[:take], most)
        except zlib.error:
            take, most = (take // 2, most) if take > 1 else (1, most // 2)
        else:
            member, chunk = attempt, attempt.unconsumed_tail + chunk[take:]
            if piece:
                yield piece
