"""Requests that relays have still to send on to Amplitude, in the order of acceptance."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.engine.spool.checksums import holds
from amplitude_intercom.engine.spool.connection import Connection, insert_many
from amplitude_intercom.engine.spool.relay_requests import Relayed, WaitingRequest
from amplitude_intercom.transports.contract import Original


class Gone(msgspec.Struct, frozen=True):
    """A request that was deleted: how many of its events were still to be sent, and its size."""

    waiting: int
    size_bytes: int


_ints = msgspec.json.Decoder(list[int])
_COLUMNS: Final = "id, accepted_at_ms, api_key, count, devices, remaining, waiting, crc"


class RelayedRequests:
    """The table ``relayed``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def append(self, taker: int, rows: Sequence[tuple[int, Relayed]], at_ms: int) -> None:
        """Keep requests, under these ids."""
        values = []
        for id_, new in rows:
            devices, since_ms = _text(new.devices), new.accepted_at_ms or at_ms
            crc = head_checksum(id_, since_ms, new.api_key, new.count, devices, "")
            head = (id_, taker, since_ms, new.api_key, new.count, devices, "", new.count)
            body = new.original.body
            request = msgspec.json.encode(msgspec.structs.replace(new.original, body=b"")).decode()
            body_crc = body_checksum(request, body)
            values.append((*head, new.size_bytes, crc, request, body_crc, body))
        insert = (
            "INSERT INTO relayed (id, taker, accepted_at_ms, api_key, count, devices, remaining,"
            " waiting, size_bytes, crc, request, body_crc, body)"
        )
        insert_many(self._db, insert, 13, values)

    def next(self, taker: int, after: int, limit: int) -> list[WaitingRequest]:
        """Return a relay's requests behind an id."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM relayed WHERE taker = ? AND id > ? ORDER BY id LIMIT ?",
            (taker, after, limit),
        )
        return [_checked(row) for row in rows]

    def get(self, id_: int) -> WaitingRequest | None:
        """Return a request; None: it is gone."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM relayed WHERE id = ?", (id_,)).fetchone()
        return None if row is None else _checked(row)

    def original(self, id_: int) -> Original | None:
        """Return a request itself; None: it is gone.

        Raises:
            ValueError: it is damaged.
        """
        row = self._db.execute(
            "SELECT request, body, body_crc FROM relayed WHERE id = ?", (id_,)
        ).fetchone()
        if row is None:
            return None
        request, body, crc = row
        if not holds(crc, body_checksum, request, body):
            raise ValueError("its checksum does not match")
        return msgspec.structs.replace(msgspec.json.decode(request, type=Original), body=body)

    def keep(self, request: WaitingRequest, remaining: Sequence[int]) -> None:
        """Say which events of a request are still to be sent."""
        text, devices = _text(remaining), _text(request.devices)
        head = (request.id, request.accepted_at_ms, request.api_key, request.count, devices)
        self._db.execute(
            "UPDATE relayed SET remaining = ?, waiting = ?, crc = ? WHERE id = ?",
            (text, len(remaining), head_checksum(*head, text), request.id),
        )

    def delete(self, id_: int) -> Gone | None:
        """Delete a request; None: it is gone already."""
        row = self._db.execute(
            "DELETE FROM relayed WHERE id = ? RETURNING waiting, size_bytes", (id_,)
        ).fetchone()
        return None if row is None else Gone(*row)

    def first(self, taker: int) -> int | None:
        """Return a relay's oldest request; None: it has none."""
        row = self._db.execute(
            "SELECT id FROM relayed WHERE taker = ? ORDER BY id LIMIT 1", (taker,)
        ).fetchone()
        return None if row is None else int(row[0])

    def first_ms(self, taker: int) -> int | None:
        """Return when the first request was accepted that waits; None: none does."""
        row = self._db.execute(
            "SELECT accepted_at_ms FROM relayed WHERE taker = ? ORDER BY id LIMIT 1", (taker,)
        ).fetchone()
        return int(row[0]) if row and isinstance(row[0], int) else None

    def bytes_of(self, taker: int) -> int:
        """Return what a relay's requests take up."""
        (held,) = self._db.execute(
            "SELECT sum(size_bytes) FROM relayed WHERE taker = ?", (taker,)
        ).fetchone()
        return int(held or 0)

    def waiting_of(self, taker: int) -> int:
        """Return how many events of a relay are still to be sent, counted in the rows."""
        (count,) = self._db.execute(
            "SELECT sum(waiting) FROM relayed WHERE taker = ?", (taker,)
        ).fetchone()
        return int(count or 0)


MOST_EVENTS: Final = 2_000
"""Events of one request."""


def _checked(row: Sequence[Any]) -> WaitingRequest:
    id_, at_ms, api_key, count, devices, remaining, waiting, crc = row
    try:
        is_whole = head_checksum(id_, at_ms, api_key, count, devices, remaining) == crc
        numbers = _ints.decode(devices)
        left = _ints.decode(remaining) if remaining else list(range(count))
        is_whole = is_whole and len(numbers) in (1, count) and set(left) <= set(range(count))
    except (msgspec.MsgspecError, TypeError, AttributeError, ValueError):
        is_whole, numbers, left = False, [], []
    if is_whole:
        return WaitingRequest(id_, at_ms, api_key, count, numbers, left)
    # By ``waiting`` it is counted, so by that it is buried.
    number = waiting if isinstance(waiting, int) and 0 < waiting <= MOST_EVENTS else 1
    at_ms = at_ms if isinstance(at_ms, int) else 0
    return WaitingRequest(id_, at_ms, "", number, [0], list(range(number)), is_damaged=True)


def body_checksum(request: str, body: bytes) -> int:
    """Return the CRC32 of a request itself."""
    return zlib.crc32(body, zlib.crc32(request.encode()))


def head_checksum(
    id_: int, at_ms: int, api_key: str, count: int, devices: str, remaining: str
) -> int:
    """Return the CRC32 of what it is decided by."""
    return zlib.crc32(f"{id_} {at_ms} {count} {api_key} {devices} {remaining}".encode())


def _text(numbers: Sequence[int]) -> str:
    return msgspec.json.encode(numbers).decode()
