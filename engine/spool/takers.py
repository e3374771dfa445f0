"""Takers, the syncs and relays that keep parts of batches. A taker's id outlives its name."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Final

import msgspec

from amplitude_intercom.engine.spool.connection import Connection


class Taker(msgspec.Struct, frozen=True):
    """A row of ``takers``.

    ``unpacked_to`` is the id of its last batch with records as rows. ``delivered_at_ms`` is the
    time of its last delivery; 0 before the first.
    """

    id: int
    name: str
    unpacked_to: int
    delivered_at_ms: int


def taker_checksum(name: str) -> int:
    """Return the checksum of a taker's row."""
    return zlib.crc32(name.encode())


RELAY: Final = "relay:"
"""The prefix of relays' names, which no sync's name can have."""


def spoken(taker: str) -> str:
    """Return a taker's name for a sentence: ``sync `production```."""
    if taker.startswith(RELAY):
        return f"relay `{taker.removeprefix(RELAY)}`"
    return f"sync `{taker}`"


class Takers:
    """The table ``takers``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._delivered: dict[int, int] = {}
        """The time of each taker's last delivery in this transaction (Unix ms)."""
        self._ids: dict[str, int] = {}
        self.read_ids()

    def all(self) -> list[Taker]:
        """Return all takers of the spool, also those that are no longer in the settings."""
        rows = self._db.execute(
            "SELECT id, name, unpacked_to, delivered_at_ms FROM takers ORDER BY id"
        )
        return [Taker(*row) for row in rows]

    def read_ids(self) -> None:
        """Read the ids of all takers anew: those of a rolled back transaction are no longer so."""
        # Emptied first: if the read fails, no id is better than one that was rolled back.
        self._ids = {}
        self._ids = {taker.name: taker.id for taker in self.all()}

    @property
    def ids(self) -> Collection[int]:
        """The ids of all takers."""
        return self._ids.values()

    def id_for(self, name: str) -> int:
        """Return the id of a taker by name, from memory; a new one if there is none."""
        if name not in self._ids:
            self._ids[name] = self.add(name)
        return self._ids[name]

    def known_id(self, name: str) -> int:
        """Return the id of a taker by name, from memory; -1 if there is none."""
        # No row has it, so whoever reads by it finds nothing.
        return self._ids.get(name, -1)

    def id_of(self, name: str) -> int | None:
        """Return the id of a taker by name; None if there is none."""
        row = self._db.execute("SELECT id FROM takers WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def add(self, name: str) -> int:
        """Return the id of a taker by name, a new one if there is none."""
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
        """Return the name of a taker; empty if there is none."""
        row = self._db.execute("SELECT name FROM takers WHERE id = ?", (taker,)).fetchone()
        return str(row[0]) if row else ""

    def unpacked_to(self, taker: int) -> int:
        """Return the id of a taker's last batch with records as rows."""
        row = self._db.execute("SELECT unpacked_to FROM takers WHERE id = ?", (taker,)).fetchone()
        return int(row[0]) if row else 0

    def set_unpacked_to(self, taker: int, batch: int) -> None:
        """Note that all batches up to ``batch`` have records as rows."""
        self._db.execute("UPDATE takers SET unpacked_to = ? WHERE id = ?", (batch, taker))

    def deliveries(self) -> dict[int, int]:
        """Return the time of the last delivery of each taker that has one."""
        rows = self._db.execute("SELECT id, delivered_at_ms FROM takers WHERE delivered_at_ms > 0")
        return dict(rows.fetchall())

    def note_delivery(self, taker: int, now_ms: int) -> None:
        """Note a delivery, to be written at the transaction's end."""
        self._delivered[taker] = now_ms

    def write_deliveries(self) -> None:
        """Write the noted deliveries."""
        for taker, at_ms in self._delivered.items():
            query = "UPDATE takers SET delivered_at_ms = ? WHERE id = ?"
            self._db.execute(query, (at_ms, taker))
        self.forget_deliveries()

    def forget_deliveries(self) -> None:
        """Drop the noted deliveries, after a rollback."""
        self._delivered.clear()
