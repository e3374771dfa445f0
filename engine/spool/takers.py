"""Who keeps something of a batch: each taker has a number, which stays its own under any name."""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from amplitude_intercom.engine.spool.connection import Connection


class Taker(msgspec.Struct, frozen=True):
    """A row of ``takers``.

    ``unpacked_to``: the last of its batches whose records are rows. ``delivered_at_ms``: when
    something of it was delivered last; 0: never.
    """

    id: int
    name: str
    unpacked_to: int
    delivered_at_ms: int


def taker_checksum(name: str) -> int:
    """Return the CRC32 that a taker is kept with."""
    return zlib.crc32(name.encode())


RELAY: Final = "relay:"
"""How names of takers begin that are relays; no sync's can."""


def spoken(taker: str) -> str:
    """Return a taker's name as it is said to people: ``sync `production```."""
    if taker.startswith(RELAY):
        return f"relay `{taker.removeprefix(RELAY)}`"
    return f"sync `{taker}`"


class Takers:
    """The table ``takers``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._delivered: dict[int, int] = {}
        """When something of a taker was delivered in this transaction (Unix ms)."""

    def all(self) -> list[Taker]:
        """Return all that the spool knows, whether they are in the settings or not."""
        rows = self._db.execute(
            "SELECT id, name, unpacked_to, delivered_at_ms FROM takers ORDER BY id"
        )
        return [Taker(*row) for row in rows]

    def id_of(self, name: str) -> int | None:
        """Return a taker's number; None where it never was one."""
        row = self._db.execute("SELECT id FROM takers WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def add(self, name: str) -> int:
        """Return a taker's number, a new one where it has none yet."""
        known = self.id_of(name)
        if known is not None:
            return known
        row = self._db.execute(
            "INSERT INTO takers (id, name, crc) SELECT coalesce(max(id), 0) + 1, ?, ? FROM takers"
            " RETURNING id",
            (name, taker_checksum(name)),
        ).fetchone()
        return int(row[0])

    def name_of(self, taker: int) -> str:
        """Return what a taker is called; empty where there is none of this number."""
        row = self._db.execute("SELECT name FROM takers WHERE id = ?", (taker,)).fetchone()
        return str(row[0]) if row else ""

    def unpacked_to(self, taker: int) -> int:
        """Return the last of a taker's batches whose records are rows."""
        row = self._db.execute("SELECT unpacked_to FROM takers WHERE id = ?", (taker,)).fetchone()
        return int(row[0]) if row else 0

    def set_unpacked_to(self, taker: int, batch: int) -> None:
        """Say that the records of all batches up to this one are rows."""
        self._db.execute("UPDATE takers SET unpacked_to = ? WHERE id = ?", (batch, taker))

    def delivered_at_ms(self, taker: int) -> int | None:
        """Return when something of a taker was delivered last; None: never."""
        row = self._db.execute(
            "SELECT delivered_at_ms FROM takers WHERE id = ? AND delivered_at_ms > 0", (taker,)
        ).fetchone()
        return None if row is None else int(row[0])

    def note_delivery(self, taker: int, now_ms: int) -> None:
        """Keep the time of a taker's last delivery, at the transaction's end."""
        self._delivered[taker] = now_ms

    def write_deliveries(self) -> None:
        """Write what was noted."""
        for taker, at_ms in self._delivered.items():
            query = "UPDATE takers SET delivered_at_ms = ? WHERE id = ?"
            self._db.execute(query, (at_ms, taker))
        self.forget_deliveries()

    def forget_deliveries(self) -> None:
        """Take in that the transaction has come to nothing."""
        self._delivered.clear()
