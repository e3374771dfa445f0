"""Unpacking: the batches of the inbox as records. Pure.

Damage costs only the events that it concerns: an event with damaged bytes is one dead letter, a
batch with a damaged index is as many as it has events.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.spool.batches import SLOTS, Entry
from amplitude_intercom.engine.spool.inbox import PackedBatch
from amplitude_intercom.engine.spool.records import KINDS, DamagedRecord


class Unpacked(msgspec.Struct):
    """The contents of some batches.

    ``rows`` has records, each with the start of its bytes in the batch and their checksum. ``keys``
    has insert keys by a record's id.
    """

    rows: list[tuple[Record, int, int]] = []
    keys: dict[int, bytes] = {}
    damaged: list[DamagedRecord] = []


def unpack(batches: Sequence[PackedBatch]) -> Unpacked:
    """Return the records of batches, in order."""
    found = Unpacked()
    for batch in batches:
        if batch.entries is None:
            found.damaged += _lost(batch)
        else:
            _unpack(batch, batch.entries, found)
    return found


def _unpack(batch: PackedBatch, entries: Sequence[Entry], into: Unpacked) -> None:
    # Local names: this loop runs for each event of a backlog.
    events, crc32, keys, add = batch.events, zlib.crc32, into.keys, into.rows.append
    start, id_ = 0, batch.id * SLOTS
    for entry in entries:
        length = entry.length
        raw = events[start : start + length]
        # A replayed event keeps the instant of its first acceptance.
        at_ms = entry.accepted_at_ms or batch.accepted_at_ms
        # The length too: beyond the end a slice is empty, and has the checksum of a zeroed index.
        if crc32(raw) == entry.checksum and entry.kind in KINDS and len(raw) == length:
            record = Record(
                id_,
                Kind(entry.kind),
                entry.user_key,
                at_ms,
                raw,
                claim_id=entry.claim_id or id_,
                is_updated=entry.is_updated,
            )
            add((record, start, entry.checksum))
            if entry.insert_key is not None:
                keys[id_] = entry.insert_key
        else:
            into.damaged.append(DamagedRecord(id_, entry.user_key, at_ms, raw))
        start += length + 1
        id_ += 1


def _lost(batch: PackedBatch) -> list[DamagedRecord]:
    """Return the events of a batch with a damaged index: its lines, if their number is right."""
    count = batch.count
    lines = batch.events.split(b"\n")
    # Only line ends tell events apart without the index. If they do not fit, one letter has all.
    raws = lines if len(lines) == count else [batch.events] + [b""] * (count - 1)
    first = batch.id * SLOTS
    return [DamagedRecord(first + n, "", batch.accepted_at_ms, raw) for n, raw in enumerate(raws)]
