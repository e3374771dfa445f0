"""Unique ``created_at`` per user and event name, because Intercom drops the second of two events
that share them (API description, ``POST /events``).

The second of each event is kept on disk, so that a retry has the same one, after a crash too.

Rules
=====
1. An event keeps a second that it was given before, under any settings. If the event was moved to
   another sync or has another name now, and another event holds that second there, rules 2 to 4
   apply from that second on.
2. An event with the same content as another shares its second, so that Intercom drops the copy.
3. Any other event gets its own second or, if that is taken, the next free one, up to ``shift_s``
   ahead.
4. If none of these is free, the event shares its own second, and is counted as ``same_second``.
5. A claim is forgotten when its window is over and its event is settled; on a full disk as soon as
   its event is settled, so that new claims fit.

Every event has a row in ``created_at_claims``. ``key`` (user, name, second) is in the row of the
one event that holds the second, ``content`` (user, name, own second, bytes) in the row of the first
event with that content. An event that shares another's second has neither.
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
"""Claims that are examined on a full disk, for some that can be forgotten."""

_GIVEN = "SELECT id, second, key IS NULL AND content IS NOT NULL, key FROM created_at_claims"
"""The third column is true for an event that shares its second with a different one (rule 4)."""


_Row = tuple[int, bytes | None, bytes | None, int, int]


class Claims:
    """One taker's rows of the table ``created_at_claims``, inside the caller's transaction."""

    def __init__(
        self,
        db: Connection,
        taker: int,
        window_ms: int,
        shift_s: int,
        *,
        is_short: bool = False,
    ) -> None:
        """``is_short``: the disk is full, so new claims need the space of settled ones."""
        self._db = db
        self._is_short = is_short
        self._taker = taker
        self._window_ms = window_ms
        self._shift_s = shift_s

    def claim(self, claims: Sequence[Claim], now_ms: int) -> list[Given]:
        """Return the second of each event, by the rules above.

        A window of 0 turns this off: an event without a claim keeps its own second.
        """
        # First, so that a retry is byte-identical whatever has changed since (rule 1).
        given = self._held(claims)
        new = [claim for claim in claims if claim.claim_id not in given] if self._window_ms else []
        if new and self._is_short:
            # Twice as many as needed: some of the oldest claims belong to events that still wait.
            forget_outlived(self._db, 0, max(LEAST_LOOKED_AT, 2 * len(new)), now_ms, now_ms)
        # Nearly always every own second is free, and one statement is enough.
        if new and not self._take_own(new, now_ms):
            # Without `passed`, events of one user, name and second would each search all the taken
            # seconds again, in quadratic time.
            passed: dict[tuple[str, str, int], int] = {}
            for claim in new:
                given[claim.claim_id] = self._share(claim, now_ms) or self._take(
                    claim, passed, now_ms
                )
        return [given.get(claim.claim_id) or Given(claim.second) for claim in claims]

    def foresee(self, claim: Claim, promised: dict[bytes, int], shift_s: int) -> int:
        """Return the second that an event has, or would be given now, without a change.

        ``promised`` has the seconds foreseen for other events, by key and by content; this event's
        are added to it.
        """
        # The order of rules 1 to 4, as in `claim`, so that a preview shows the later request.
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
        """Return the second of the first event with this content, if any."""
        query = "SELECT second FROM created_at_claims WHERE content = ?"
        found = self._db.execute(query, (content,)).fetchone()
        return None if found is None else int(found[0])

    def _kept(self, claims: Sequence[Claim]) -> dict[int, Given]:
        """Return the seconds that events were given before."""
        return {id_: given for id_, (given, _) in self._found(claims).items()}

    def _held(self, claims: Sequence[Claim]) -> dict[int, Given]:
        """Return the seconds that events were given before, claimed anew after a move (rule 1)."""
        found = self._found(claims)
        held = {}
        for claim in claims:
            if claim.claim_id in found:
                given, key = found[claim.claim_id]
                # The key has taker and name in it, so after a move or a renaming it is stale.
                if key is not None and bytes(key) != self._key(claim, given.second):
                    given = self._hold(claim, given.second)
                held[claim.claim_id] = given
        return held

    def _found(self, claims: Sequence[Claim]) -> dict[int, tuple[Given, bytes | None]]:
        rows = find_in(self._db, f"{_GIVEN} WHERE id IN", [claim.claim_id for claim in claims])
        return {id_: (Given(second, bool(crowded)), key) for id_, second, crowded, key in rows}

    def _hold(self, claim: Claim, first: int) -> Given:
        """Claim a second for this taker and name, from ``first`` on; change the event's row."""
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
        # The content stays, so that a copy of the event still shares its second (rule 2).
        self._change(claim.claim_id, None, content, first)
        return Given(first, crowded=True)

    def _change(self, claim_id: int, key: bytes | None, content: bytes | None, second: int) -> None:
        self._db.execute(
            "UPDATE created_at_claims SET key = ?, content = ?, second = ? WHERE id = ?",
            (key, content, second, claim_id),
        )

    def _take_own(self, new: Sequence[Claim], now_ms: int) -> bool:
        """Give every event its own second; return False, without a change, if one is taken."""
        rows = [self._row(claim, claim.second, now_ms) for claim in new]
        if len({key for _, key, *_ in rows}) < len(rows):
            return False  # two of these events want one second
        insert = "INSERT INTO created_at_claims (id, key, content, second, at_ms)"
        if insert_many(self._db, insert, 5, rows, "ON CONFLICT DO NOTHING") == len(rows):
            return True
        # Undo the rows that did fit: each event is decided in its turn, by all the rules.
        change_in(
            self._db,
            "DELETE FROM created_at_claims WHERE id IN",
            [claim.claim_id for claim in new],
        )
        return False

    def _share(self, claim: Claim, now_ms: int) -> Given | None:
        """Give an event the second of one with the same content, if any."""
        second = self._second_of(self._content(claim))
        if second is None:
            return None
        # Neither key nor content, because both are unique and in the first event's row.
        self._insert((claim.claim_id, None, None, second, now_ms))
        return Given(second)

    def _take(self, claim: Claim, passed: dict[tuple[str, str, int], int], now_ms: int) -> Given:
        """Give an event the first free second; ``passed`` has the next to try for each start."""
        start = (claim.user_key, claim.name, claim.second)
        last = claim.second + self._shift_s
        for second in range(passed.get(start, claim.second), last + 1):
            if self._insert(self._row(claim, second, now_ms)):
                passed[start] = second + 1
                return Given(second)
        passed[start] = last + 1
        # No key, because another event holds the second; the content, for its copies (rule 2).
        self._insert((claim.claim_id, None, self._content(claim), claim.second, now_ms))
        return Given(claim.second, crowded=True)

    def _insert(self, row: _Row) -> bool:
        """Insert a row; return False if its second or content is taken."""
        insert = (
            "INSERT INTO created_at_claims (id, key, content, second, at_ms) VALUES (?, ?, ?, ?, ?)"
        )
        return self._db.execute(f"{insert} ON CONFLICT DO NOTHING", row).rowcount == 1

    def _row(self, claim: Claim, second: int, now_ms: int) -> _Row:
        """Return the row of an event that holds a second, the first with its content."""
        return claim.claim_id, self._key(claim, second), self._content(claim), second, now_ms

    def _key(self, claim: Claim, second: int) -> bytes:
        return self._hash(claim, second).digest()

    def _content(self, claim: Claim) -> bytes:
        content = self._hash(claim, claim.second)
        content.update(claim.raw)
        return content.digest()

    def _hash(self, claim: Claim, second: int) -> hashlib.blake2b:
        # Names that differ only in case are one name to Intercom.
        text = f"{self._taker} {claim.user_key}\x00{claim.name.lower()}\x00{second}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


def renew(db: Connection, claim_ids: Sequence[int], now_ms: int) -> None:
    """Keep claims for one more window from now, because their events may be sent again."""
    change_in(db, "UPDATE created_at_claims SET at_ms = ? WHERE id IN", claim_ids, [now_ms])


def forget_outlived(
    db: Connection, after_id: int, rows: int, cutoff_ms: int, now_ms: int
) -> tuple[int, int]:
    """Examine up to ``rows`` claims after an id, and forget those older than ``cutoff_ms``.

    A claim stays while its event is a record or a dead letter; events of packed batches are not
    seen here. Returns the last id examined, or 0 at the end, and the number of claims forgotten.
    """
    found = db.execute(
        "SELECT id, at_ms FROM created_at_claims WHERE id > ? ORDER BY id LIMIT ?", (after_id, rows)
    ).fetchall()
    gone = 0
    for id_, at_ms in found:
        if at_ms <= cutoff_ms:
            gone += db.execute(_FORGET, (id_,)).rowcount
    # A clock that was ahead has stamped these; without this they would stay until then.
    renew(db, [id_ for id_, at_ms in found if at_ms > now_ms], now_ms)
    return (found[-1][0] if len(found) == rows else 0), gone
