"""Which events were accepted before: their insert ids, as hashes, for the de-duplication window."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from amplitude_intercom.engine.spool.rows import Append, DeadRow, Keyed, Row, insert_many

PRUNE_FACTOR = 2
"""Outlived ids that a transaction clears away for each that it adds."""


class Seen:
    """The table ``seen``, inside somebody's transaction; in the order of arrival by its ids."""

    def __init__(self, connection: sqlite3.Connection, window_ms: int) -> None:
        self._db = connection
        self._window_ms = window_ms
        self._added = 0
        self._now_ms = 0

    def new_of(
        self, batches: Sequence[Append], now_ms: int
    ) -> Sequence[tuple[Sequence[Row], Sequence[DeadRow]]]:
        """Return what of each batch is new within the window, by insert keys; remember these.

        The usual case, all of them new, is one statement; only else are they looked at singly.
        """
        keys = [
            (row.insert_key, now_ms)
            for batch in batches
            for rows in (batch.rows, batch.dead)
            for row in rows
            if row.insert_key is not None
        ]
        everything = [(batch.rows, batch.dead) for batch in batches]
        if not keys:
            return everything
        self._added, self._now_ms = self._added + len(keys), now_ms
        (last,) = self._db.execute("SELECT max(id) FROM seen").fetchone()
        if insert_many(self._db, "INSERT OR IGNORE INTO seen (key, at_ms)", 2, keys) == len(keys):
            return everything
        found = self._db.execute("SELECT key FROM seen WHERE id > ?", (last or 0,))
        new = {key for (key,) in found}
        return [
            (self._new(rows, new, now_ms), self._new(dead, new, now_ms))
            for rows, dead in everything
        ]

    def _new(self, rows: Sequence[Keyed], new: set[bytes], now_ms: int) -> Sequence[Keyed]:
        return [row for row in rows if self._is_new(row.insert_key, new, now_ms)]

    def _is_new(self, key: bytes | None, new: set[bytes], now_ms: int) -> bool:
        if key is None:
            return True
        if key in new:
            new.discard(key)  # a second one in the same batch is a duplicate
            return True
        outlived = self._db.execute(
            "DELETE FROM seen WHERE key = ? AND at_ms <= ?", (key, now_ms - self._window_ms)
        ).rowcount
        if outlived:  # at the end again: pruning relies on the order of arrival
            self._db.execute("INSERT INTO seen (key, at_ms) VALUES (?, ?)", (key, now_ms))
        return bool(outlived)

    def prune(self) -> None:
        """Forget outlived keys, some for each that was added since the last time."""
        rows, self._added = self._added * PRUNE_FACTOR, 0
        if not rows:
            return
        cutoff = self._now_ms - self._window_ms
        oldest = self._db.execute("SELECT id, at_ms FROM seen ORDER BY id LIMIT 1").fetchone()
        if oldest and oldest[1] <= cutoff:
            self._db.execute(
                "DELETE FROM seen WHERE id < ? AND at_ms <= ?", (oldest[0] + rows, cutoff)
            )
