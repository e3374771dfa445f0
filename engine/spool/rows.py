"""What goes into a spool and comes out of it: plain values, and how they are checked."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Final, TypeVar

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DropReason


class Row(msgspec.Struct, frozen=True, gc=False):
    """An event to append. ``insert_key``: what it is known by again, or None for never."""

    kind: Kind
    user_key: str
    raw: bytes
    insert_key: bytes | None


class DeadRow(msgspec.Struct, frozen=True, gc=False):
    """Something a source brought that is no event; kept as a dead letter at once.

    ``user_key``: whose it is, as far as it can be read.
    """

    reason: str
    message: str
    raw: bytes
    insert_key: bytes | None
    origin: str
    line: int | None
    user_key: str = ""


Keyed = TypeVar("Keyed", Row, DeadRow)


class Append(msgspec.Struct):
    """What one sync keeps of one batch: rows, dead letters, and how much of it was dropped.

    ``checkpoints``: how far the sources that can be read again have come.
    """

    received: int
    rows: list[Row]
    dead: list[DeadRow]
    dropped: Counter[DropReason]
    checkpoints: Mapping[str, str] = {}


class Appended(msgspec.Struct, frozen=True):
    """What became of an ``Append``."""

    accepted: int
    duplicates: int
    dead: int


class Loaded(msgspec.Struct, frozen=True):
    """Records for delivery, in order per user.

    ``last_id``: up to where the queue has been read. ``draining``: users of whom more waits than
    was loaded. ``next_wake_ms``: when the next parked user is due, if any is parked.
    """

    records: list[Record]
    last_id: int
    draining: list[str]
    next_wake_ms: int | None
    more: bool


class Contact(msgspec.Struct, frozen=True):
    """What the directory knows of a user's contact.

    ``properties``: the selected Amplitude properties as last worked out. ``written``: the contact's
    fields as last written. ``applied_id``: the record whose operations were applied last.
    ``contact_id`` is empty where Intercom turned out not to have it any more.
    ``complete``: all selected properties are known, because we created the contact or have read it.
    """

    contact_id: str
    properties: dict[str, Any]
    written: dict[str, Any]
    applied_id: int = 0
    complete: bool = False


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter, whole."""

    id: int
    reason: str
    status: int
    code: str
    message: str
    request_id: str
    attempts: int
    first_failed_at_ms: int
    last_failed_at_ms: int
    accepted_at_ms: int
    user_key: str
    origin: str
    line: int | None
    claim_id: int
    raw: bytes


def dead_letter(record: Record, failure: Failure, now_ms: int) -> DeadLetter:
    """Return the dead letter that a record becomes."""
    return DeadLetter(
        record.id,
        failure.reason,
        failure.status,
        failure.code,
        failure.message,
        failure.request_id,
        record.attempts,
        record.first_failed_at_ms or now_ms,
        now_ms,
        record.accepted_at_ms,
        record.user_key,
        "",
        None,
        record.claim_id or record.id,
        record.raw,
    )


MOST: Final = (1 << 63) - 1
"""The largest number that SQLite can be asked for."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
TimeMs = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]


class DeadLetterQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: all conditions that are given must hold."""

    ids: list[Id] = []
    reason: str | None = None
    user: str | None = None
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None


def is_counted(query: DeadLetterQuery) -> bool:
    """Return whether a query has no condition but a reason, by which dead letters are counted."""
    return not query.ids and (query.user, query.since_ms, query.until_ms) == (None, None, None)


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some dead letters of those that a query means, by id.

    ``matching``: how many it means in all. ``more``: whether there are any behind these.
    """

    dead_letters: list[DeadLetter]
    matching: int
    more: bool


def checksum(id_: int, kind: int, user_key: str, accepted_at_ms: int, raw: bytes) -> int:
    """Return the CRC32 that a record is kept with: SQLite does not notice a flipped byte."""
    head = b"%d %d %d %s" % (id_, kind, accepted_at_ms, user_key.encode())
    return zlib.crc32(raw, zlib.crc32(head))


def holds(crc: Any, checksum_of: Callable[..., int], *fields: Any) -> bool:
    """Return whether a checksum holds; damaged, a field may not even be of its column's type."""
    try:
        return bool(checksum_of(*fields) == crc)
    except (TypeError, AttributeError, ValueError):
        return False


def letter_checksum(id_: int, reason: str, user_key: str, accepted_at_ms: int, raw: bytes) -> int:
    """Return the CRC32 that a dead letter is kept with."""
    head = b"%d %d %s %s" % (id_, accepted_at_ms, reason.encode(), user_key.encode())
    return zlib.crc32(raw, zlib.crc32(head))


def contact_checksum(user_key: str, contact_id: str, properties: str, written: str) -> int:
    """Return the CRC32 that a known contact is kept with."""
    return zlib.crc32("\0".join((user_key, contact_id, properties, written)).encode())


def row_checksum(id_: int, row: Row, at_ms: int) -> int:
    """Return the checksum of a row that gets the place ``id_``."""
    return checksum(id_, row.kind, row.user_key, at_ms, row.raw)


MOST_ROWS = 512
"""Rows of one statement. More would not be any faster."""


def insert_many(
    db: sqlite3.Connection, insert: str, width: int, rows: Sequence[Sequence[Any]]
) -> int:
    """Insert rows of ``width`` values, many a statement; return how many were inserted.

    ``executemany`` gives the interpreter's lock away for every row, and waits for it after every
    row: with a busy event loop in another thread that costs more than SQLite does.
    """
    inserted, start = 0, 0
    while start < len(rows):
        count = min(MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        hole = f"({', '.join('?' * width)})"
        inserted += db.execute(f"{insert} VALUES {', '.join([hole] * count)}", values).rowcount
        start += count
    return inserted


def check_order(after: Any, keys: Iterable[Any]) -> None:
    """Check that keys were read in ascending order: a damaged tree can lead round in a circle.

    Raises:
        sqlite3.DatabaseError: they were not.
    """
    for key in keys:
        if not key > after:
            raise sqlite3.DatabaseError("rows are out of order: the file is damaged")
        after = key


def cut(rows: Iterable[Any], limit_bytes: int) -> tuple[list[Any], bool]:
    """Return the rows up to the one that reaches a number of bytes, and whether one did."""
    taken: list[Any] = []
    for row in rows:
        taken.append(row)
        limit_bytes -= len(row[8]) if isinstance(row[8], bytes) else 0
        if limit_bytes <= 0:
            return taken, True
    return taken, False
