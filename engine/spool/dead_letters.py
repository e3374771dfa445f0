"""The dead letters of a spool: events that are not sent, with why, until somebody decides.

Letters of one reason, status, code and event type are a group; groups are counted in the commits
that change their letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.connection import (
    Connection,
    change_in,
    find_in,
    holes,
    in_slices,
)
from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterQuery, holds, letter_checksum

_FIELDS = DeadLetter.__struct_fields__
_COLUMNS = ", ".join(_FIELDS)
PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of events that one page may hold, but for the last of them: memory is bounded."""

MOST_COUNTED = 10_000
"""Letters of a query that are counted one by one; of more it is said that there are more."""

OVERHEAD_BYTES = 500
"""What a letter takes beside its event, with its entries in the indexes."""


class Group(msgspec.Struct, frozen=True):
    """Dead letters of one kind: how many, since when, and the id of the last that came."""

    reason: str
    status: int
    code: str
    event_type: str
    count: int
    first_ms: int
    last_ms: int
    sample_id: int


class Moved(msgspec.Struct, frozen=True):
    """Letters that another taker has now: how many of each reason, and what they take up."""

    by_reason: dict[str, int]
    size_bytes: int


class DeadLetters:
    """The tables ``dead_letters`` and ``dead_letter_groups``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.bytes_added: dict[int, int] = {}
        """By how many bytes a taker's letters have grown since somebody took the number."""

    # --- reading --------------------------------------------------------------------------

    def find(
        self, taker: int, query: DeadLetterQuery, *, after_id: int = 0, limit: int = 1000
    ) -> list[DeadLetter]:
        """Return the dead letters that a query means, by id.

        One that was damaged on disk has the reason ``corrupt`` from then on.
        """
        return self.page(taker, query, after_id, limit, 1 << 40)[0]

    def page(
        self,
        taker: int,
        query: DeadLetterQuery,
        after_id: int,
        limit: int,
        limit_bytes: int = PAGE_BYTES,
    ) -> tuple[list[DeadLetter], bool]:
        """Return up to ``limit`` dead letters behind an id, and whether there are more.

        Fewer where they hold more than ``limit_bytes``; one at least, where there is one.
        """
        found: list[DeadLetter] = []
        held_bytes = 0
        for *row, crc in self._rows(taker, query, after_id, limit + 1):
            if len(found) == limit or held_bytes > limit_bytes:
                return found, True
            found.append(_checked(DeadLetter(*row), crc))
            held_bytes += len(found[-1].raw)
        return found, False

    def count(self, taker: int, query: DeadLetterQuery) -> tuple[int, bool]:
        """Return how many dead letters a query means, and whether there are more than that."""
        total = 0
        for where, values in _conditions(query):
            (count,) = self._db.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM dead_letters WHERE taker = ? AND {where}"
                " LIMIT ?) AS found",
                (taker, *values, MOST_COUNTED + 1),
            ).fetchone()
            total += int(count)
            if total > MOST_COUNTED:
                return MOST_COUNTED, True
        return total, False

    def _rows(self, taker: int, query: DeadLetterQuery, after_id: int, limit: int) -> Iterator[Any]:
        """Yield the rows that a query means behind an id, by id: at most ``limit`` a statement."""
        for where, values in _conditions(query):
            yield from self._db.execute(
                f"SELECT {_COLUMNS}, crc FROM dead_letters WHERE taker = ? AND id > ? AND {where}"
                " ORDER BY id LIMIT ?",
                (taker, after_id, *values, limit),
            )

    def groups(self, taker: int) -> list[Group]:
        """Return the groups of a taker's letters, the largest first."""
        rows = self._db.execute(
            "SELECT reason, status, code, event_type, count, first_ms, last_ms, sample_id"
            " FROM dead_letter_groups WHERE taker = ? ORDER BY count DESC, reason, event_type"
            " LIMIT 1000",
            (taker,),
        )
        return [Group(*row) for row in rows]

    def last_id(self, taker: int) -> int:
        """Return the highest id of a taker's letters; 0: it has none."""
        (last,) = self._db.execute(
            "SELECT max(id) FROM dead_letters WHERE taker = ?", (taker,)
        ).fetchone()
        return int(last or 0)

    def ids(self, taker: int, limit: int) -> list[int]:
        """Return the first of a taker's letters."""
        query = "SELECT id FROM dead_letters WHERE taker = ? ORDER BY id LIMIT ?"
        return [id_ for (id_,) in self._db.execute(query, (taker, limit))]

    def has(self, id_: int) -> bool:
        """Return whether there is one with this id."""
        found = self._db.execute("SELECT 1 FROM dead_letters WHERE id = ?", (id_,)).fetchone()
        return found is not None

    def oldest(self, limit: int) -> list[tuple[int, int, int, int]]:
        """Return the first letters of all takers: taker, id, when it failed last, and bytes."""
        rows = self._db.execute(
            "SELECT taker, id, last_failed_at_ms, length(raw) FROM dead_letters"
            " ORDER BY id LIMIT ?",
            (limit,),
        )
        return [(taker, id_, at_ms, size + OVERHEAD_BYTES) for taker, id_, at_ms, size in rows]

    def make_younger(self, ids: Sequence[int], now_ms: int) -> None:
        """Say of letters that a clock ahead of its time has stamped that they failed now."""
        change_in(
            self._db, "UPDATE dead_letters SET last_failed_at_ms = ? WHERE id IN", ids, [now_ms]
        )

    # --- changing -------------------------------------------------------------------------

    def insert(self, taker: int, letter: DeadLetter) -> None:
        """Keep one more."""
        self._db.execute(
            f"INSERT INTO dead_letters (taker, {_COLUMNS}, crc) VALUES {holes(len(_FIELDS) + 2)}",
            (taker, *msgspec.structs.astuple(letter), _checksum(letter)),
        )
        self._join_group(taker, letter)
        self._resize(taker, len(letter.raw) + OVERHEAD_BYTES)

    def remove(self, taker: int, ids: Sequence[int]) -> dict[int, str]:
        """Take letters away; return of those that were there the reason each was kept for."""
        gone: dict[int, str] = {}
        for id_, reason, status, code, event_type, size in list(
            find_in(
                self._db,
                "SELECT id, reason, status, code, event_type, length(raw) FROM dead_letters"
                " WHERE taker = ? AND id IN",
                ids,
                [taker],
            )
        ):
            self._db.execute("DELETE FROM dead_letters WHERE id = ?", (id_,))
            self._leave(taker, reason, status, code, event_type)
            self._resize(taker, -(size or 0) - OVERHEAD_BYTES)
            gone[id_] = str(reason)
        return gone

    def _join_group(self, taker: int, letter: DeadLetter) -> None:
        self._db.execute(
            "INSERT INTO dead_letter_groups"
            " (taker, reason, status, code, event_type, count, first_ms, last_ms, sample_id)"
            " VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)"
            " ON CONFLICT (taker, reason, status, code, event_type) DO UPDATE SET"
            " count = dead_letter_groups.count + 1, last_ms = excluded.last_ms,"
            " sample_id = excluded.sample_id",
            (
                taker,
                letter.reason,
                letter.status,
                letter.code,
                letter.event_type,
                letter.last_failed_at_ms,
                letter.last_failed_at_ms,
                letter.id,
            ),
        )

    def _leave(self, *group: object) -> None:
        """Take one letter out of its group, and the group away where that was its last."""
        where = "taker = ? AND reason = ? AND status = ? AND code = ? AND event_type = ?"
        self._db.execute(f"UPDATE dead_letter_groups SET count = count - 1 WHERE {where}", group)
        self._db.execute(f"DELETE FROM dead_letter_groups WHERE {where} AND count <= 0", group)

    def move(self, old: int, new: int, limit: int) -> Moved:
        """Give the first of a taker's letters to another one."""
        found = self._db.execute(
            f"SELECT {_COLUMNS} FROM dead_letters WHERE taker = ? ORDER BY id LIMIT ?", (old, limit)
        ).fetchall()
        by_reason: Counter[str] = Counter()
        size_bytes = 0
        for letter in [DeadLetter(*row) for row in found]:
            by_reason[letter.reason] += 1
            size_bytes += len(letter.raw) + OVERHEAD_BYTES
            self._leave(old, letter.reason, letter.status, letter.code, letter.event_type)
            self._join_group(new, letter)
        ids = [row[0] for row in found]
        change_in(self._db, "UPDATE dead_letters SET taker = ? WHERE id IN", ids, [new])
        return Moved(by_reason, size_bytes)

    def _resize(self, taker: int, by: int) -> None:
        self.bytes_added[taker] = self.bytes_added.get(taker, 0) + by


def _checksum(letter: DeadLetter) -> int:
    return letter_checksum(
        letter.id, letter.reason, letter.user_key, letter.accepted_at_ms, letter.raw
    )


def _checked(letter: DeadLetter, crc: Any) -> DeadLetter:
    if holds(crc, _checksum, letter):
        return letter
    raw = letter.raw if isinstance(letter.raw, bytes) else str(letter.raw).encode()
    return msgspec.structs.replace(letter, reason="corrupt", raw=raw)


def _conditions(query: DeadLetterQuery) -> Iterator[tuple[str, list[Any]]]:
    """Yield the conditions of a query with their values; many ids are several, in order."""
    parts: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("reason = ?", query.reason),
        ("user_key = ?", query.user),
        ("last_failed_at_ms >= ?", query.since_ms),
        ("last_failed_at_ms < ?", query.until_ms),
    ):
        if value is not None:
            parts.append(condition)
            values.append(value)
    if query.ids is None:
        yield " AND ".join(parts) or "1 = 1", values
        return
    for some in in_slices(sorted(set(query.ids))):
        yield " AND ".join([*parts, f"id IN {holes(len(some))}"]), [*values, *some]
