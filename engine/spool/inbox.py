"""The intake side of a spool: the takers' parts of batches, in order of acceptance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.spool.batches import (
    SLOTS,
    Entry,
    Pack,
    batch_checksum,
    encode_entries,
    entries_of,
)
from amplitude_intercom.engine.spool.connection import Connection, insert_many

MOST_OPEN: Final = 16
"""Partly read batches that are kept in memory, of all takers: up to a megabyte each."""


class PackedBatch(msgspec.Struct, frozen=True):
    """A row of the inbox. ``entries`` is None if the row is damaged.

    Then ``count`` is the number on which two of column, index and lines agree.
    """

    id: int
    taker: int
    accepted_at_ms: int
    count: int
    entries: list[Entry] | None
    events: bytes


_COLUMNS = "id, taker, accepted_at_ms, count, crc, entries, events"


class Inbox:
    """The table ``inbox``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._open: dict[int, bytes] = {}
        """Events of partly read batches, the least recently used first."""

    def append(self, first: int, packs: Sequence[tuple[int, Pack]], at_ms: int) -> None:
        """Append packs of takers, with ids from ``first`` on."""
        rows = [
            (
                id_,
                taker,
                at_ms,
                pack.count,
                pack.size_bytes,
                batch_checksum(id_, taker, at_ms, pack.count, pack.index),
                pack.index.decode(),
                pack.events,
            )
            for id_, (taker, pack) in enumerate(packs, first)
        ]
        insert = (
            "INSERT INTO inbox (id, taker, accepted_at_ms, count, size_bytes, crc, entries, events)"
        )
        insert_many(self._db, insert, 8, rows)

    def next(self, taker: int, after: int, limit: int, limit_bytes: int) -> list[PackedBatch]:
        """Return a taker's batches after an id: up to ``limit`` events, but at least one batch."""
        found: list[PackedBatch] = []
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM inbox WHERE taker = ? AND id > ? ORDER BY id LIMIT ?",
            (taker, after, limit),
        )
        for row in rows:
            batch = _checked(row)
            limit -= batch.count
            limit_bytes -= len(batch.events)
            if found and (limit < 0 or limit_bytes < 0):
                break
            found.append(batch)
            if limit <= 0 or limit_bytes <= 0:
                break
        return found

    def reindex(self, batch: PackedBatch, entries: Sequence[Entry]) -> int:
        """Rewrite the index of a batch; return the change of its size in bytes."""
        index = encode_entries(entries)
        crc = batch_checksum(batch.id, batch.taker, batch.accepted_at_ms, batch.count, index)
        pack = Pack(batch.count, index, batch.events)
        (before,) = self._db.execute(
            "SELECT size_bytes FROM inbox WHERE id = ?", (batch.id,)
        ).fetchone()
        self._db.execute(
            "UPDATE inbox SET entries = ?, crc = ?, size_bytes = ? WHERE id = ?",
            (index.decode(), crc, pack.size_bytes, batch.id),
        )
        return pack.size_bytes - int(before)

    def next_id(self, taker: int, after: int) -> int | None:
        """Return the id of a taker's first batch after an id; None without one."""
        row = self._db.execute(
            "SELECT id FROM inbox WHERE taker = ? AND id > ? ORDER BY id LIMIT 1", (taker, after)
        ).fetchone()
        return None if row is None else int(row[0])

    def ids(self, taker: int, up_to: int, limit: int) -> list[int]:
        """Return the ids of a taker's first batches, none above ``up_to``."""
        rows = self._db.execute(
            "SELECT id FROM inbox WHERE taker = ? AND id <= ? ORDER BY id LIMIT ?",
            (taker, up_to, limit),
        )
        return [id_ for (id_,) in rows]

    def bytes_of(self, taker: int) -> int:
        """Return the bytes of a taker's batches."""
        (held,) = self._db.execute(
            "SELECT sum(size_bytes) FROM inbox WHERE taker = ?", (taker,)
        ).fetchone()
        return int(held or 0)

    def first_packed(self, taker: int, unpacked_to: int) -> tuple[int, int] | None:
        """Return the id and the time of acceptance of a taker's first packed batch."""
        row = self._db.execute(
            "SELECT id, accepted_at_ms FROM inbox WHERE taker = ? AND id > ? ORDER BY id LIMIT 1",
            (taker, unpacked_to),
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def events_of(self, id_: int) -> bytes:
        """Return the events of a batch; empty if it is gone or damaged.

        They stay in memory until ``close``, or until ``MOST_OPEN`` other batches were read since.
        """
        events = self._open.pop(id_, None)
        if events is None:
            row = self._db.execute("SELECT events FROM inbox WHERE id = ?", (id_,)).fetchone()
            events = row[0] if row and isinstance(row[0], bytes) else b""
        self._open[id_] = events
        if len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]
        return events

    def close(self, id_: int) -> None:
        """Drop the events of a batch from memory."""
        self._open.pop(id_, None)

    def close_all(self) -> None:
        """Drop the events of all batches from memory."""
        self._open.clear()

    def let_go(self, batches: Iterable[int]) -> list[tuple[int, int]]:
        """Delete batches without pointing records; return taker and size of each deleted one.

        A packed batch stays, because a damaged record's id may name it.
        """
        gone = []
        for id_ in batches:
            row = self._db.execute(
                "DELETE FROM inbox WHERE id = ? AND NOT EXISTS (SELECT 1 FROM records"
                " WHERE records.id >= ? AND records.id < ? AND raw IS NULL)"
                " AND id <= (SELECT unpacked_to FROM takers WHERE takers.id = inbox.taker)"
                " RETURNING taker, size_bytes",
                (id_, id_ * SLOTS, (id_ + 1) * SLOTS),
            ).fetchone()
            if row:
                gone.append((row[0], row[1]))
                self.close(id_)
        return gone


def _checked(row: Sequence[Any]) -> PackedBatch:
    id_, taker, at_ms, count, crc, text, events = row
    held = events if isinstance(events, bytes) else b""
    at_ms = at_ms if isinstance(at_ms, int) else 0
    by_lines = held.count(b"\n") + 1
    try:
        index = text.encode()
        entries = entries_of(index)
        if batch_checksum(id_, taker, at_ms, count, index) == crc and len(entries) == count:
            return PackedBatch(id_, taker, at_ms, count, entries, held)
        by_index = len(entries)
    except (AttributeError, TypeError, ValueError):
        by_index = by_lines
    # The number on which two of the three agree: only one of them is damaged.
    number = count if count == by_index else by_lines
    return PackedBatch(id_, taker, at_ms, min(number, SLOTS), None, held)
