"""Insert ids of accepted events, as hashes, for the de-duplication window.

A key is the taker's id and the hash of an insert id. The window compares times of acceptance, so
the time that a batch waits to be unpacked does not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

from amplitude_intercom.engine.spool.connection import (
    Connection,
    change_in,
    find_in,
    insert_many,
)

ROW_BYTES = 100
"""Bytes of a key on disk, with its entry in the index: measured at a million keys."""


def key_of(taker: int, hashed: bytes) -> bytes:
    """Return the key of a taker's event."""
    return taker.to_bytes(4, "big") + hashed


class InsertIds:
    """The table ``insert_ids``, inside the caller's transaction. Ids are in order of arrival."""

    def __init__(self, db: Connection, window_ms: int) -> None:
        self._db = db
        self._window_ms = window_ms
        self.is_short = False
        """Whether the disk is full, so that new keys need the space of the oldest."""
        self.added = 0
        """Keys added less keys forgotten, since the caller last took this number to count them."""

    def add(self, keys: Mapping[int, bytes], at_ms: Mapping[int, int]) -> Collection[int]:
        """Remember keys by the ids of their records; return the ids of those that are new.

        ``at_ms`` has the time of acceptance of each record.
        """
        # The usual case, every key new, is one statement. Only otherwise is each key looked up.
        rows = [(id_, key, at_ms[id_]) for id_, key in keys.items()]
        if self.is_short:
            self.forget_first(len(rows))
        insert = "INSERT INTO insert_ids (id, key, at_ms)"
        inserted = insert_many(self._db, insert, 3, rows, "ON CONFLICT DO NOTHING")
        self.added += inserted
        if inserted == len(rows):
            return keys.keys()
        new = set()
        found = find_in(
            self._db, "SELECT key, id, at_ms FROM insert_ids WHERE key IN", list(keys.values())
        )
        held = {key: (id_, at) for key, id_, at in found}
        for id_, key in keys.items():
            if key not in held:  # its id is taken: damage, and no duplicate
                new.add(id_)
                continue
            holder, before_ms = held[key]
            if holder == id_:
                new.add(id_)
            elif before_ms <= at_ms[id_] - self._window_ms:  # outlived: now the newest
                self._db.execute("DELETE FROM insert_ids WHERE key = ?", (key,))
                self._db.execute(
                    "INSERT INTO insert_ids (id, key, at_ms) VALUES (?, ?, ?)",
                    (id_, key, at_ms[id_]),
                )
                held[key] = (id_, at_ms[id_])
                new.add(id_)
        return new

    def move(self, old: int, new: int, limit: int) -> int:
        """Move up to ``limit`` keys of a taker to another; return their number.

        A key that the other taker has too is forgotten.
        """
        first, behind = key_of(old, b""), key_of(old + 1, b"")
        found: list[tuple[int, bytes]] = self._db.execute(
            "SELECT id, key FROM insert_ids WHERE key >= ? AND key < ? LIMIT ?",
            (first, behind, limit),
        ).fetchall()
        moved = {id_: key_of(new, bytes(key)[len(first) :]) for id_, key in found}
        held = find_in(self._db, "SELECT key FROM insert_ids WHERE key IN", list(moved.values()))
        there = {bytes(key) for (key,) in held}
        both = [id_ for id_, key in moved.items() if key in there]
        self.added -= change_in(self._db, "DELETE FROM insert_ids WHERE id IN", both)
        for id_, key in moved.items():
            if key not in there:
                self._db.execute("UPDATE insert_ids SET key = ? WHERE id = ?", (key, id_))
        return len(found)

    def forget_oldest(self, rows: int, cutoff_ms: int, now_ms: int) -> int:
        """Forget up to ``rows`` of the oldest keys that are outlived; return their number.

        This stops at the first key that is not, so a key that a slow clock has stamped waits for
        those before it. A key stamped by a clock ahead of time is outlived one window from now.
        """
        oldest = self._db.execute(
            "SELECT id, at_ms FROM insert_ids ORDER BY id LIMIT ?", (rows,)
        ).fetchall()
        outlived = list(takewhile(lambda row: row[1] <= cutoff_ms, oldest))
        last = outlived[-1][0] if outlived else None
        if last is None:
            if oldest and oldest[0][1] > now_ms:
                self._db.execute(
                    "UPDATE insert_ids SET at_ms = ? WHERE id <= ? AND at_ms > ?",
                    (now_ms, oldest[-1][0], now_ms),
                )
            return 0
        return self._forget_to(last)

    def forget_first(self, rows: int) -> int:
        """Forget up to ``rows`` of the oldest keys, outlived or not; return their number."""
        oldest: Sequence[tuple[int]] = self._db.execute(
            "SELECT id FROM insert_ids ORDER BY id LIMIT ?", (rows,)
        ).fetchall()
        return self._forget_to(oldest[-1][0]) if oldest else 0

    def _forget_to(self, last: int) -> int:
        gone = self._db.execute("DELETE FROM insert_ids WHERE id <= ?", (last,)).rowcount
        self.added -= gone
        return gone
