"""Which second of a user an event has: twins must not swallow each other.

Intercom takes two events of one contact, with one name, in one second for the same one (API
description, ``POST /events``). So the later of two *different* events is moved to the next free
second, and which second belongs to which event is kept on disk: a retry has the same, after a crash
too.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence

import msgspec

from engine.spool.rows import MOST_ROWS, insert_many

PRUNE_ROWS = 2_000
PRUNE_EVERY_MS = 60_000

_FORGET = """
DELETE FROM seconds WHERE id = ?1
    AND NOT EXISTS (SELECT 1 FROM records WHERE id = ?1)
    AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE id = ?1)
    AND NOT EXISTS (SELECT 1 FROM records WHERE claim_id = ?1 AND claim_id <> id)
    AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE claim_id = ?1 AND claim_id <> id)
"""


class Claim(msgspec.Struct, frozen=True, gc=False):
    """An event that wants ``second``; ``claim_id`` stays the same through retries and replays."""

    claim_id: int
    user_key: str
    name: str
    second: int


class Seconds:
    """The table ``seconds``, inside somebody's transaction."""

    def __init__(self, connection: sqlite3.Connection, window_ms: int) -> None:
        self._db = connection
        self._window_ms = window_ms
        self._pruned_to = 0
        self._pruned_at_ms = 0

    def claim(self, claims: Sequence[Claim], now_ms: int) -> list[int]:
        """Return the second that each event has, its own or the first free one after it.

        A window of 0 turns this off: every event keeps its own second.
        """
        if not self._window_ms:
            return [claim.second for claim in claims]
        self._prune(now_ms)
        kept = self._kept(claims)
        new = [one for one in claims if one.claim_id not in kept]
        if new and not self._take_own(new, now_ms):
            tried: dict[tuple[str, str, int], int] = {}
            kept |= {one.claim_id: self._take_free(one, tried, now_ms) for one in new}
        return [kept.get(one.claim_id, one.second) for one in claims]

    def foresee(self, one: Claim, promised: set[bytes]) -> int:
        """Return the second that an event has, or would be given now; nothing is changed.

        ``promised``: keys of seconds that were foreseen for others; this one's is added.
        """
        kept = self._kept([one])
        if one.claim_id in kept:
            return kept[one.claim_id]
        second = one.second
        while (key := _key(one, second)) in promised or self._is_taken(key):
            second += 1
        promised.add(key)
        return second

    def _is_taken(self, key: bytes) -> bool:
        row = self._db.execute("SELECT TRUE FROM seconds WHERE key = ?", (key,)).fetchone()
        return row is not None

    def _kept(self, claims: Sequence[Claim]) -> dict[int, int]:
        """Return the seconds that events have had before."""
        kept: dict[int, int] = {}
        for start in range(0, len(claims), MOST_ROWS):
            ids = [one.claim_id for one in claims[start : start + MOST_ROWS]]
            holes = ", ".join("?" * len(ids))
            kept.update(
                self._db.execute(f"SELECT id, second FROM seconds WHERE id IN ({holes})", ids)  # noqa: S608 - placeholders
            )
        return kept

    def _take_own(self, new: Sequence[Claim], now_ms: int) -> bool:
        """Give each event its own second; where one of them is taken, nothing is done."""
        rows = [(one.claim_id, _key(one, one.second), one.second, now_ms) for one in new]
        if len({row[1] for row in rows}) < len(rows):
            return False
        insert = "INSERT OR IGNORE INTO seconds (id, key, second, at_ms)"
        if insert_many(self._db, insert, 4, rows) == len(rows):
            return True
        self._db.executemany("DELETE FROM seconds WHERE id = ?", [(one.claim_id,) for one in new])
        return False

    def _take_free(self, one: Claim, tried: dict[tuple[str, str, int], int], now_ms: int) -> int:
        """Try second after second; ``tried`` skips those that this call has found taken."""
        start = (one.user_key, one.name, one.second)
        second = tried.get(start, one.second)
        while not self._take(one, second, now_ms):
            second += 1
        tried[start] = second + 1
        return second

    def _take(self, one: Claim, second: int, now_ms: int) -> bool:
        cursor = self._db.execute(
            "INSERT INTO seconds (id, key, second, at_ms) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (key) DO NOTHING",
            (one.claim_id, _key(one, second), second, now_ms),
        )
        return cursor.rowcount == 1

    def _prune(self, now_ms: int) -> None:
        """Forget outlived seconds, bit by bit, but none whose event may still be sent."""
        if now_ms - self._pruned_at_ms < PRUNE_EVERY_MS:
            return
        rows = self._db.execute(
            "SELECT id, at_ms FROM seconds WHERE id > ? ORDER BY id LIMIT ?",
            (self._pruned_to, PRUNE_ROWS),
        ).fetchall()
        cutoff = now_ms - self._window_ms
        outlived = [(id_,) for id_, at_ms in rows if at_ms <= cutoff]
        self._db.executemany(_FORGET, outlived)
        self._pruned_to = rows[-1][0] if len(outlived) == PRUNE_ROWS else 0
        if len(outlived) < PRUNE_ROWS:
            self._pruned_at_ms = now_ms


def _key(one: Claim, second: int) -> bytes:
    text = f"{one.user_key}\x00{one.name.lower()}\x00{second}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
