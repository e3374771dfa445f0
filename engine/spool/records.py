"""Records: unpacked events that wait for delivery, or are being delivered."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.spool.batches import SLOTS, record_checksum
from amplitude_intercom.engine.spool.connection import (
    Connection,
    change_in,
    check_order,
    find_in,
    insert_many,
)

COLUMNS = (
    "r.id, r.kind, r.user_key, r.accepted_at_ms, r.attempts, r.first_failed_at_ms, r.claim_id,"
    " r.updated, r.crc, r.start, r.length, r.raw"
)
_WITH_BYTES = (
    f"SELECT {COLUMNS}, CASE WHEN r.raw IS NULL THEN substr(b.events, r.start + 1, r.length) END"
    f" FROM records r LEFT JOIN inbox b ON b.id = r.id / {SLOTS} WHERE r.taker = ?"
)
"""Reads a batch's events up to the record's (``substr``), so it is for a few records at a time."""

KINDS = frozenset(map(int, Kind))
"""Kinds of records that this version knows."""

Row = Sequence[Any]


class DamagedRecord:
    """A damaged record. Any field may have any value."""

    __slots__ = ("at_ms", "id", "raw", "user")

    def __init__(self, id_: int, user: Any, at_ms: Any, raw: Any) -> None:
        self.id = id_
        self.user = str(user)
        self.at_ms = at_ms if isinstance(at_ms, int) else 0
        self.raw = raw if isinstance(raw, bytes) else str(raw or "").encode()


class Records:
    """The table ``records``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def insert(
        self, taker: int, rows: Sequence[tuple[Record, int, int]], aside: AbstractSet[int]
    ) -> None:
        """Insert records, each with the start of its bytes and the checksum of its event.

        ``aside`` has the ids of records that wait behind their user's other records.
        """
        insert_many(
            self._db,
            "INSERT INTO records (id, taker, kind, user_key, accepted_at_ms, set_aside, claim_id,"
            " updated, start, length, crc)",
            11,
            [
                (
                    record.id,
                    taker,
                    int(record.kind),  # for an enum, sqlite3 would look for an adapter each time
                    record.user_key,
                    record.accepted_at_ms,
                    1 if record.id in aside else 0,
                    record.claim_id,
                    int(record.is_updated),
                    start,
                    len(record.raw),
                    record_checksum(
                        record.id,
                        record.kind,
                        record.user_key,
                        record.accepted_at_ms,
                        of_event,
                    ),
                )
                for record, start, of_event in rows
            ],
        )

    def queued(self, taker: int, batch: int, after_id: int, limit: int) -> list[Row]:
        """Return the waiting records of a batch after an id, without the events' bytes."""
        rows = self._db.execute(
            f"SELECT {COLUMNS} FROM records r WHERE r.id > ? AND r.id < ? AND r.set_aside = 0"
            " AND r.taker = ? ORDER BY r.id LIMIT ?",
            (max(after_id, batch * SLOTS - 1), (batch + 1) * SLOTS, taker, limit),
        ).fetchall()
        check_order(after_id, (row[0] for row in rows))
        return rows

    def any_of(self, batch: int) -> bool:
        """Return whether any record points into a batch."""
        found = self._db.execute(
            "SELECT 1 FROM records WHERE id >= ? AND id < ? AND raw IS NULL LIMIT 1",
            (batch * SLOTS, (batch + 1) * SLOTS),
        )
        return found.fetchone() is not None

    def aside(
        self, taker: int, user: str, limit: int, limit_bytes: int, also: str = ""
    ) -> list[Record | DamagedRecord]:
        """Return a user's next records set aside, up to the one that reaches ``limit_bytes``."""
        cursor = self._db.execute(
            f"{_WITH_BYTES} AND r.set_aside = 1 AND r.user_key = ? {also} ORDER BY r.id LIMIT ?",
            (taker, user, limit),
        )
        taken = []
        for *row, pointed in cursor:
            taken.append(checked(row, pointed))
            limit_bytes -= len(taken[-1].raw)
            if limit_bytes <= 0:
                break
        return taken

    def first(self, taker: int, limit: int, after_id: int = 0) -> list[Record | DamagedRecord]:
        """Return a taker's first records after an id, set aside or not, without an index."""
        cursor = self._db.execute(
            f"{_WITH_BYTES} AND r.id > ? ORDER BY r.id LIMIT ?", (taker, after_id, limit)
        )
        return [checked(row, pointed) for *row, pointed in cursor]

    def strays(self, taker: int, limit: int) -> list[Record | DamagedRecord]:
        """Return records that are set aside although their user does not wait."""
        cursor = self._db.execute(
            f"{_WITH_BYTES} AND r.set_aside = 1 AND NOT EXISTS (SELECT 1 FROM users u"
            " WHERE u.taker = r.taker AND u.user_key = r.user_key) LIMIT ?",
            (taker, limit),
        )
        return [checked(row, pointed) for *row, pointed in cursor]

    def set_aside(self, ids: Iterable[int]) -> None:
        """Have records wait behind their user's other records."""
        change_in(self._db, "UPDATE records SET set_aside = 1 WHERE id IN", list(ids))

    def rekey(self, record: Record, user: str) -> None:
        """Give a record to another user, behind that user's other records."""
        crc = record_checksum(
            record.id, record.kind, user, record.accepted_at_ms, zlib.crc32(record.raw)
        )
        self._db.execute(
            "UPDATE records SET user_key = ?, crc = ?, set_aside = 1 WHERE id = ?",
            (user, crc, record.id),
        )

    def charge(self, id_: int, now_ms: int) -> int:
        """Charge a failed attempt to a record; return its number of attempts, 0 if it is gone."""
        row = self._db.execute(
            "UPDATE records SET attempts = attempts + 1, first_failed_at_ms ="
            " CASE WHEN first_failed_at_ms = 0 THEN ? ELSE first_failed_at_ms END WHERE id = ?"
            " RETURNING attempts",
            (now_ms, id_),
        ).fetchone()
        return 0 if row is None else int(row[0])

    def attempts(self, id_: int) -> int:
        """Return a record's number of failed attempts."""
        row = self._db.execute("SELECT attempts FROM records WHERE id = ?", (id_,)).fetchone()
        return 0 if row is None else int(row[0])

    def note_updated(self, taker: int, claim_ids: Sequence[int]) -> None:
        """Note that the contact updates of these records are done."""
        for claim_id in claim_ids:
            self._db.execute(
                "UPDATE records SET updated = 1 WHERE taker = ? AND (id = ? OR"
                " (claim_id = ? AND claim_id <> id))",
                (taker, claim_id, claim_id),
            )

    def updated(self, taker: int, claim_ids: Sequence[int]) -> set[int]:
        """Return the claim ids, of those given, with a contact update that is done."""
        found = set()
        for claim_id in claim_ids:
            row = self._db.execute(
                "SELECT 1 FROM records WHERE taker = ? AND updated = 1 AND (id = ? OR"
                " (claim_id = ? AND claim_id <> id))",
                (taker, claim_id, claim_id),
            ).fetchone()
            if row is not None:
                found.add(claim_id)
        return found

    def get(self, taker: int, id_: int) -> list[Record | DamagedRecord]:
        """Return a record; empty without one."""
        cursor = self._db.execute(f"{_WITH_BYTES} AND r.id = ?", (taker, id_))
        return [checked(row, pointed) for *row, pointed in cursor]

    def delete(self, ids: Sequence[int]) -> int:
        """Delete records; return their number."""
        return change_in(self._db, "DELETE FROM records WHERE id IN", ids)

    def own_bytes(self, ids: Sequence[int]) -> int:
        """Return the bytes that these records have taken along."""
        sums = find_in(self._db, "SELECT sum(length(raw)) FROM records WHERE id IN", ids)
        return sum(found or 0 for (found,) in sums)

    def pointing_aside(self, batch: int, limit: int) -> list[tuple[int, bytes]]:
        """Return the records of a batch that are set aside and point into it, with their bytes."""
        rows = self._db.execute(
            f"SELECT r.id, substr(b.events, r.start + 1, r.length) FROM records r"
            f" JOIN inbox b ON b.id = r.id / {SLOTS}"
            " WHERE r.id >= ? AND r.id < ? AND r.set_aside = 1 AND r.raw IS NULL LIMIT ?",
            (batch * SLOTS, (batch + 1) * SLOTS, limit),
        )
        return [(id_, raw) for id_, raw in rows if isinstance(raw, bytes)]

    def take_along(self, id_: int, raw: bytes) -> None:
        """Give a record its own bytes, so that it no longer points into its batch."""
        self._db.execute("UPDATE records SET raw = ? WHERE id = ?", (raw, id_))


def checked(row: Row, pointed: Any) -> Record | DamagedRecord:
    """Return a row as a record, or as damage if its checksum does not hold.

    ``pointed`` has the record's bytes in its batch.
    """
    id_, kind, user, at_ms, attempts, failed_at_ms, claim_id, updated, crc, _, length, own = row
    raw = pointed if own is None else own
    if length == 0 and raw is None:  # SQLite's `substr` of an empty batch
        raw = b""
    try:
        typed = type(attempts) is type(failed_at_ms) is type(claim_id) is int
        of_event = zlib.crc32(raw)
        if typed and kind in KINDS and record_checksum(id_, kind, user, at_ms, of_event) == crc:
            return Record(
                id_, Kind(kind), user, at_ms, raw, attempts, failed_at_ms, claim_id, bool(updated)
            )
    except (AttributeError, TypeError, ValueError):
        pass
    return DamagedRecord(id_, user, at_ms, raw)


def sliced(rows: Iterable[Row], events: bytes) -> Iterator[Record | DamagedRecord]:
    """Yield the records of rows of one batch, from the batch's events."""
    for row in rows:
        start, length = row[9], row[10]
        try:
            pointed = events[start : start + length]
        except TypeError:
            pointed = b""
        yield checked(row, pointed)
