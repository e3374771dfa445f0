"""Which events were accepted before: their insert ids, as hashes, for the de-duplication window.

A key is its taker's number and the hash of an insert id. Windows compare the times of acceptance,
so it does not matter how long a batch waited to be unpacked.
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
"""What a key takes on disk, its entry in the index included: measured at a million."""


def key_of(taker: int, hashed: bytes) -> bytes:
    """Return the key of an event of a taker."""
    return taker.to_bytes(4, "big") + hashed


class InsertIds:
    """The table ``insert_ids``, inside somebody's transaction; in the order of arrival by its ids.

    ``added`` is by how many this transaction has changed them: the caller counts.
    """

    def __init__(self, db: Connection, window_ms: int) -> None:
        self._db = db
        self._window_ms = window_ms
        self.is_short = False
        """Whether the disk is full: keys that come take what the oldest had."""
        self.added = 0
        """Keys that were added, less those that were forgotten, since somebody took the number."""

    def add(self, keys: Mapping[int, bytes], at_ms: Mapping[int, int]) -> Collection[int]:
        """Remember keys by the ids of their records; return the ids of those that are new.

        ``at_ms``: when each was accepted. The usual case, all of them new, is one statement; only
        else is looked at each.
        """
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
            if key not in held:  # its own id is another's: damage, and no duplicate
                new.add(id_)
                continue
            holder, before_ms = held[key]
            if holder == id_:
                new.add(id_)
            elif before_ms <= at_ms[id_] - self._window_ms:  # outlived: at the end again
                self._db.execute("DELETE FROM insert_ids WHERE key = ?", (key,))
                self._db.execute(
                    "INSERT INTO insert_ids (id, key, at_ms) VALUES (?, ?, ?)",
                    (id_, key, at_ms[id_]),
                )
                held[key] = (id_, at_ms[id_])
                new.add(id_)
        return new

    def move(self, old: int, new: int, limit: int) -> int:
        """Let up to ``limit`` keys of a taker be another's; return how many there were.

        One that the other has too is forgotten.
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
        """Forget the first ``rows`` that are outlived; return how many were.

        In the order of arrival, up to the first that is not: one that a clock behind its time has
        stamped waits for those before it. What one ahead has left is outlived a window from now.
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
        """Forget the first ``rows``, outlived or not; return how many there were."""
        oldest: Sequence[tuple[int]] = self._db.execute(
            "SELECT id FROM insert_ids ORDER BY id LIMIT ?", (rows,)
        ).fetchall()
        return self._forget_to(oldest[-1][0]) if oldest else 0

    def _forget_to(self, last: int) -> int:
        gone = self._db.execute("DELETE FROM insert_ids WHERE id <= ?", (last,)).rowcount
        self.added -= gone
        return gone
