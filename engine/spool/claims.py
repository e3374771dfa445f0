"""The second that an event has: two different events must not swallow each other.

Intercom takes two events of one contact, with one name, in one second for the same one (API
description, ``POST /events``). Which second belongs to which event is kept on disk, so that a retry
has the same, after a crash too.

Rules
=====
1. An event that had a second before keeps it, whatever the settings say now; but where it is held
   by another one now, since the event was moved to another sync or has another name, rules 2 to 4
   are for it as for a new one, from that second on.
2. One with the same content as another shares its second: Intercom is to take them for the same.
3. Every other one gets its own second, or else the next free one, up to ``shift_s`` ahead.
4. Where none of these is free it gets its own nevertheless, and that is said.
5. A claim is forgotten when its window is over and its event is settled; on a full disk as soon as
   its event is settled, so that those that wait have theirs.

In the table ``created_at_claims`` every event has a row. ``key`` (user, name, second) is in the
row of the one event that holds the second, ``content`` (user, name, own second, bytes) in that of
the first event with it; events that share the second of another have neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from amplitude_intercom.engine.spool.connection import (
    Connection,
    change_in,
    find_in,
    insert_many,
)
from amplitude_intercom.engine.spool.contract import Claim, Given

_FORGET = """
DELETE FROM created_at_claims WHERE id = ?
    AND NOT EXISTS (SELECT 1 FROM records WHERE id = created_at_claims.id)
    AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE id = created_at_claims.id)
    AND NOT EXISTS (SELECT 1 FROM records WHERE claim_id = created_at_claims.id AND claim_id <> id)
    AND NOT EXISTS
        (SELECT 1 FROM dead_letters WHERE claim_id = created_at_claims.id AND claim_id <> id)
"""


LEAST_LOOKED_AT = 512
"""Claims that are looked at on a full disk, whether they can be forgotten."""

_GIVEN = "SELECT id, second, key IS NULL AND content IS NOT NULL, key FROM created_at_claims"
"""The third column is true of an event that shares its second with a different one (rule 4)."""


_Row = tuple[int, bytes | None, bytes | None, int, int]


class Claims:
    """One taker's rows of the table ``created_at_claims``, inside somebody's transaction."""

    def __init__(
        self,
        db: Connection,
        taker: int,
        window_ms: int,
        shift_s: int,
        *,
        is_short: bool = False,
    ) -> None:
        """``is_short``: the disk is full, and claims take what those of settled events had."""
        self._db = db
        self._is_short = is_short
        self._taker = taker
        self._window_ms = window_ms
        self._shift_s = shift_s

    def claim(self, claims: Sequence[Claim], now_ms: int) -> list[Given]:
        """Return the second that each event has, by the rules above.

        A window of 0 turns this off: an event that has no second yet keeps its own.
        """
        given = self._held(claims)
        new = [claim for claim in claims if claim.claim_id not in given] if self._window_ms else []
        if new and self._is_short:
            forget_outlived(self._db, 0, max(LEAST_LOOKED_AT, 2 * len(new)), now_ms, now_ms)
        if new and not self._take_own(new, now_ms):
            passed: dict[tuple[str, str, int], int] = {}
            for claim in new:
                given[claim.claim_id] = self._share(claim, now_ms) or self._take(
                    claim, passed, now_ms
                )
        return [given.get(claim.claim_id) or Given(claim.second) for claim in claims]

    def foresee(self, claim: Claim, promised: dict[bytes, int], shift_s: int) -> int:
        """Return the second that an event has, or would be given now; nothing is changed.

        ``promised``: seconds that were foreseen for others, by key and by content; this one's are
        added.
        """
        if claim.claim_id in (kept := self._kept([claim])):
            return kept[claim.claim_id].second
        content = self._content(claim)
        if (shared := promised.get(content, self._second_of(content))) is not None:
            return shared
        last = claim.second + shift_s
        free = (
            s for s in range(claim.second, last + 1) if self._is_free(self._key(claim, s), promised)
        )
        second = next(free, claim.second)
        promised[content] = promised[self._key(claim, second)] = second
        return second

    def _is_free(self, key: bytes, promised: dict[bytes, int]) -> bool:
        row = self._db.execute(
            "SELECT TRUE FROM created_at_claims WHERE key = ?", (key,)
        ).fetchone()
        return row is None and key not in promised

    def _second_of(self, content: bytes) -> int | None:
        """Return the second of an event with this content, if there is one."""
        query = "SELECT second FROM created_at_claims WHERE content = ?"
        found = self._db.execute(query, (content,)).fetchone()
        return None if found is None else int(found[0])

    def _kept(self, claims: Sequence[Claim]) -> dict[int, Given]:
        """Return the seconds that events have had before."""
        return {id_: given for id_, (given, _) in self._found(claims).items()}

    def _held(self, claims: Sequence[Claim]) -> dict[int, Given]:
        """Return the seconds that events have had before, and see that they are theirs (rule 1)."""
        found = self._found(claims)
        held = {}
        for claim in claims:
            if claim.claim_id in found:
                given, key = found[claim.claim_id]
                if key is not None and bytes(key) != self._key(claim, given.second):
                    given = self._hold(claim, given.second)
                held[claim.claim_id] = given
        return held

    def _found(self, claims: Sequence[Claim]) -> dict[int, tuple[Given, bytes | None]]:
        rows = find_in(self._db, f"{_GIVEN} WHERE id IN", [claim.claim_id for claim in claims])
        return {id_: (Given(second, bool(crowded)), key) for id_, second, crowded, key in rows}

    def _hold(self, claim: Claim, first: int) -> Given:
        """Let an event's claim be of this taker and of its name; it begins at ``first``."""
        content = self._content(claim)
        shared = self._second_of(content)
        if shared is not None:
            self._change(claim.claim_id, None, None, shared)
            return Given(shared)
        for second in range(first, first + self._shift_s + 1):
            key = self._key(claim, second)
            if self._is_free(key, {}):
                self._change(claim.claim_id, key, content, second)
                return Given(second)
        self._change(claim.claim_id, None, content, first)
        return Given(first, crowded=True)

    def _change(self, claim_id: int, key: bytes | None, content: bytes | None, second: int) -> None:
        self._db.execute(
            "UPDATE created_at_claims SET key = ?, content = ?, second = ? WHERE id = ?",
            (key, content, second, claim_id),
        )

    def _take_own(self, new: Sequence[Claim], now_ms: int) -> bool:
        """Give each event its own second; where one of them is taken, nothing is done."""
        rows = [self._row(claim, claim.second, now_ms) for claim in new]
        if len({key for _, key, *_ in rows}) < len(rows):
            return False
        insert = "INSERT INTO created_at_claims (id, key, content, second, at_ms)"
        if insert_many(self._db, insert, 5, rows, "ON CONFLICT DO NOTHING") == len(rows):
            return True
        change_in(
            self._db,
            "DELETE FROM created_at_claims WHERE id IN",
            [claim.claim_id for claim in new],
        )
        return False

    def _share(self, claim: Claim, now_ms: int) -> Given | None:
        """Give an event the second of one with the same content, if there is one."""
        second = self._second_of(self._content(claim))
        if second is None:
            return None
        self._insert((claim.claim_id, None, None, second, now_ms))
        return Given(second)

    def _take(self, claim: Claim, passed: dict[tuple[str, str, int], int], now_ms: int) -> Given:
        """Try second after second; ``passed`` skips those that this call has found taken."""
        start = (claim.user_key, claim.name, claim.second)
        last = claim.second + self._shift_s
        for second in range(passed.get(start, claim.second), last + 1):
            if self._insert(self._row(claim, second, now_ms)):
                passed[start] = second + 1
                return Given(second)
        passed[start] = last + 1
        self._insert((claim.claim_id, None, self._content(claim), claim.second, now_ms))
        return Given(claim.second, crowded=True)

    def _insert(self, row: _Row) -> bool:
        """Insert a row; False where its second is taken."""
        insert = (
            "INSERT INTO created_at_claims (id, key, content, second, at_ms) VALUES (?, ?, ?, ?, ?)"
        )
        return self._db.execute(f"{insert} ON CONFLICT DO NOTHING", row).rowcount == 1

    def _row(self, claim: Claim, second: int, now_ms: int) -> _Row:
        """Return the row of the first event with this content, which holds a second."""
        return claim.claim_id, self._key(claim, second), self._content(claim), second, now_ms

    def _key(self, claim: Claim, second: int) -> bytes:
        return self._hash(claim, second).digest()

    def _content(self, claim: Claim) -> bytes:
        content = self._hash(claim, claim.second)
        content.update(claim.raw)
        return content.digest()

    def _hash(self, claim: Claim, second: int) -> hashlib.blake2b:
        text = f"{self._taker} {claim.user_key}\x00{claim.name.lower()}\x00{second}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


def renew(db: Connection, claim_ids: Sequence[int], now_ms: int) -> None:
    """Keep claims as long as if they were made now: their events are to be sent again."""
    change_in(db, "UPDATE created_at_claims SET at_ms = ? WHERE id IN", claim_ids, [now_ms])


def forget_outlived(
    db: Connection, after_id: int, rows: int, cutoff_ms: int, now_ms: int
) -> tuple[int, int]:
    """Look at ``rows`` claims behind one, and forget those that are outlived.

    None is forgotten whose event is a record or a dead letter; of those that are packed nothing is
    known here. Returns the last that was looked at, or 0 at
    the end, and how many were forgotten. What a clock ahead of its time has left is made younger.
    """
    found = db.execute(
        "SELECT id, at_ms FROM created_at_claims WHERE id > ? ORDER BY id LIMIT ?", (after_id, rows)
    ).fetchall()
    gone = 0
    for id_, at_ms in found:
        if at_ms <= cutoff_ms:
            gone += db.execute(_FORGET, (id_,)).rowcount
    renew(db, [id_ for id_, at_ms in found if at_ms > now_ms], now_ms)
    return (found[-1][0] if len(found) == rows else 0), gone
