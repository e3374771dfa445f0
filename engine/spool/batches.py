"""The format of a batch in the inbox: the events as they came, and an index.

A row of the inbox has one taker's part of a batch: up to ``MOST_EVENTS`` events and ``MOST_BYTES``,
or one larger event. A record's id is its batch's id times ``SLOTS`` plus its slot, so ids are in
order of acceptance and give the position of the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

SLOTS: Final = 512
"""Ids of records in one batch."""

MOST_EVENTS: Final = 500
MOST_BYTES: Final = 1 << 20
"""The most events, and bytes of events, in one row."""

OVERHEAD_BYTES: Final = 100
"""Bytes of a record beside its event, in the reckoning of a spool's fullness."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The index entry of one event. ``checksum`` is the CRC32 of its ``length`` bytes.

    ``insert_key`` is without the taker, which is added later; None if the event has no duplicates.
    ``claim_id`` and ``accepted_at_ms`` are those of a record that was accepted before; otherwise 0.
    """

    kind: int
    user_key: str
    insert_key: bytes | None
    length: int
    checksum: int
    claim_id: int = 0
    accepted_at_ms: int = 0
    is_updated: bool = False


class Pack(msgspec.Struct, frozen=True, gc=False):
    """A future row of the inbox. ``index`` is JSON, ``events`` are separated by line ends."""

    count: int
    index: bytes
    events: bytes

    @property
    def size_bytes(self) -> int:
        """The bytes of the row in the reckoning of a spool's fullness."""
        return len(self.events) + len(self.index) + OVERHEAD_BYTES * self.count


_encoder = msgspec.json.Encoder()
_decode = msgspec.json.Decoder(list[Entry]).decode


class Kept(NamedTuple):
    """An event that a taker keeps."""

    kind: int
    user_key: str
    raw: bytes
    insert_key: bytes | None = None
    claim_id: int = 0
    accepted_at_ms: int = 0
    is_updated: bool = False


def entry_of(kept: Kept) -> Entry:
    """Return the index entry of an event."""
    kind, user_key, raw, insert_key, claim_id, accepted_at_ms, is_updated = kept
    checksum = zlib.crc32(raw)
    return Entry(
        int(kind),
        user_key,
        insert_key,
        len(raw),
        checksum,
        claim_id,
        accepted_at_ms,
        is_updated,
    )


def packs(entries: Sequence[Entry], raws: Sequence[bytes]) -> list[Pack]:
    """Return events, with their index entries, as rows of the inbox."""
    total = sum(map(len, raws))
    if len(raws) <= MOST_EVENTS and total <= MOST_BYTES:
        return [_pack(entries, raws)] if raws else []
    return [_pack(entries[r.start : r.stop], raws[r.start : r.stop]) for r in _runs(raws)]


def _pack(entries: Sequence[Entry], raws: Sequence[bytes]) -> Pack:
    return Pack(len(raws), encode_entries(entries), b"\n".join(raws))


def _runs(raws: Sequence[bytes]) -> Iterator[range]:
    start, held = 0, 0
    for index, raw in enumerate(raws):
        if index > start and (index - start == MOST_EVENTS or held + len(raw) > MOST_BYTES):
            yield range(start, index)
            start, held = index, 0
        held += len(raw)
    yield range(start, len(raws))


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """Return an index as JSON."""
    return _encoder.encode(entries)


def entries_of(index: bytes) -> list[Entry]:
    """Return the entries of an index.

    Raises:
        ValueError: the index is damaged.
    """
    try:
        return _decode(index)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def batch_checksum(id_: int, taker: int, accepted_at_ms: int, count: int, index: bytes) -> int:
    """Return the CRC32 of a row of the inbox, except its events, which have their own."""
    return zlib.crc32(index, zlib.crc32(b"%d %d %d %d" % (id_, taker, accepted_at_ms, count)))


def record_checksum(id_: int, kind: int, user_key: str, accepted_at_ms: int, of_event: int) -> int:
    """Return the CRC32 of a record, from that of its event's bytes.

    SQLite itself does not notice a flipped byte.
    """
    return zlib.crc32(b"%d %d %d %s" % (id_, kind, accepted_at_ms, user_key.encode()), of_event)
