"""The dead letters of a spool: events that are not sent, each with its reason, until a decision.

``letter_walk`` has the order in which a query reads them, ``letter_groups`` their counts by kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.checksums import holds, letter_checksum
from amplitude_intercom.engine.spool.connection import (
    Connection,
    change_in,
    find_in,
    holes,
)
from amplitude_intercom.engine.spool.letter_groups import LetterGroups
from amplitude_intercom.engine.spool.letter_walk import (
    count_all,
    count_up_to,
    named,
    positions,
    ranges,
)
from amplitude_intercom.engine.spool.letters import (
    END,
    START,
    DeadLetter,
    DeadLetterQuery,
    Matching,
    Position,
)

_FIELDS = DeadLetter.__struct_fields__
_COLUMNS = ", ".join(_FIELDS)
PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of events that one page may hold, but for the last of them: memory is bounded."""

MOST_COUNTED = 10_000
"""Letters of a query that are counted one by one; of more it is said that there are more."""

OVERHEAD_BYTES = 500
"""What a letter takes beside its event, with its entries in the indexes."""


class Moved(msgspec.Struct, frozen=True):
    """Letters that another taker has now: how many of each reason, and what they take up."""

    by_reason: dict[str, int]
    size_bytes: int


class DeadLetters:
    """The tables ``dead_letters`` and ``dead_letter_groups``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.groups = LetterGroups(db)
        self.bytes_added: dict[int, int] = {}
        """By how many bytes a taker's letters have grown since somebody took the number."""

    # --- reading --------------------------------------------------------------------------

    def find(
        self, taker: int, query: DeadLetterQuery, *, after: Position = START, limit: int = 1000
    ) -> list[DeadLetter]:
        """Return the dead letters that a query means, by when they failed last.

        One that is damaged on disk is returned with the reason ``corrupt``.
        """
        return self.page(taker, query, after, limit, limit_bytes=1 << 40)[0]

    def page(
        self,
        taker: int,
        query: DeadLetterQuery,
        after: Position,
        limit: int,
        *,
        up_to: Position = END,
        limit_bytes: int = PAGE_BYTES,
    ) -> tuple[list[DeadLetter], Position | None]:
        """Return up to ``limit`` dead letters behind a position, and from which to go on.

        That is None where nothing is behind these. Fewer where they hold more than ``limit_bytes``;
        one at least, where there is one.
        """
        found, examined = positions(self._db, taker, query, after, up_to, limit + 1)
        taken = self._fitting(found[:limit], limit_bytes)
        return self._letters(taken), taken[-1] if len(taken) < len(found) else examined

    def count(
        self, taker: int, query: DeadLetterQuery, after: Position = START, up_to: Position = END
    ) -> Matching:
        """Count the dead letters that a query means behind a position, up to another one."""
        if query.ids is not None:
            total = len(named(self._db, taker, query, after, up_to, MOST_COUNTED + 1))
            return Matching(min(total, MOST_COUNTED), total > MOST_COUNTED)
        counts = [
            count_up_to(self._db, taker, narrow, MOST_COUNTED, after, up_to)
            for narrow in ranges(self._db, taker, query)
        ]
        total = sum(found.number for found in counts)
        more = total > MOST_COUNTED or any(found.more for found in counts)
        return Matching(min(total, MOST_COUNTED), more)

    def newest(self, taker: int) -> Position | None:
        """Return where the letter of a taker is that failed last; None: it has none."""
        row = self._db.execute(
            "SELECT last_failed_at_ms, id FROM dead_letters WHERE taker = ?"
            " ORDER BY last_failed_at_ms DESC, id DESC LIMIT 1",
            (taker,),
        ).fetchone()
        return Position(*row) if row else None

    def failed_ms(self, taker: int, id_: int) -> int | None:
        """Return when a letter of a taker failed last; None: it has none with this id."""
        row = self._db.execute(
            "SELECT taker, last_failed_at_ms FROM dead_letters WHERE id = ?", (id_,)
        ).fetchone()
        return row[1] if row and row[0] == taker else None

    def count_all(
        self, taker: int, query: DeadLetterQuery, after: Position, up_to: Position
    ) -> int:
        """As ``count``, but all are counted; takes a while where they are very many."""
        return count_all(self._db, taker, query, after, up_to)

    def _fitting(self, positions: list[Position], limit_bytes: int) -> list[Position]:
        """Return the first of some letters: up to the one with which they exceed the bytes."""
        ids = [position.id for position in positions]
        sizes: dict[int, int] = dict(
            find_in(self._db, "SELECT id, length(raw) FROM dead_letters WHERE id IN", ids)
        )
        held_bytes = 0
        for count, id_ in enumerate(ids):
            if held_bytes > limit_bytes:
                return positions[:count]
            held_bytes += sizes.get(id_, 0)
        return positions

    def _letters(self, positions: list[Position]) -> list[DeadLetter]:
        """Return the letters that are there, in this order."""
        ids = [position.id for position in positions]
        query = f"SELECT {_COLUMNS}, crc FROM dead_letters WHERE id IN"
        found = {
            row[0]: _checked(DeadLetter(*row), crc) for *row, crc in find_in(self._db, query, ids)
        }
        return [found[id_] for id_ in ids if id_ in found]

    def last_failed_ms(self, taker: int) -> int:
        """Return when the last of a taker's letters failed; 0: it has none."""
        (last,) = self._db.execute(
            "SELECT max(last_failed_at_ms) FROM dead_letters WHERE taker = ?", (taker,)
        ).fetchone()
        return int(last or 0)

    def ids(self, taker: int, limit: int) -> list[int]:
        """Return the first of a taker's letters."""
        every = DeadLetterQuery()
        walked = positions(self._db, taker, every, START, END, limit)
        return [position.id for position in walked.found]

    def has(self, id_: int) -> bool:
        """Return whether there is one with this id."""
        found = self._db.execute("SELECT 1 FROM dead_letters WHERE id = ?", (id_,)).fetchone()
        return found is not None

    def oldest(self, limit: int) -> list[tuple[int, int, int]]:
        """Return the first letters of all takers, in the order of arrival: taker, id and bytes."""
        rows = self._db.execute(
            "SELECT taker, id, length(raw) FROM dead_letters ORDER BY id LIMIT ?", (limit,)
        )
        return [(taker, id_, size + OVERHEAD_BYTES) for taker, id_, size in rows]

    def failed_until(self, taker: int, until_ms: int, limit: int) -> list[int]:
        """Return the ids of a taker's letters that failed last up to an instant, the first ones."""
        rows = self._db.execute(
            "SELECT id FROM dead_letters WHERE taker = ? AND last_failed_at_ms <= ?"
            " ORDER BY last_failed_at_ms, id LIMIT ?",
            (taker, until_ms, limit),
        )
        return [id_ for (id_,) in rows]

    def make_younger(self, taker: int, now_ms: int, limit: int) -> int:
        """Say of letters that a clock ahead of its time has stamped that they failed now.

        Returns how many there were.
        """
        rows = self._db.execute(
            "SELECT id FROM dead_letters WHERE taker = ? AND last_failed_at_ms > ?"
            " ORDER BY last_failed_at_ms LIMIT ?",
            (taker, now_ms, limit),
        )
        ids = [id_ for (id_,) in rows]
        return change_in(
            self._db, "UPDATE dead_letters SET last_failed_at_ms = ? WHERE id IN", ids, [now_ms]
        )

    # --- changing -------------------------------------------------------------------------

    def insert(self, taker: int, letter: DeadLetter) -> None:
        """Keep one more."""
        self._db.execute(
            f"INSERT INTO dead_letters (taker, {_COLUMNS}, crc) VALUES {holes(len(_FIELDS) + 2)}",
            (taker, *msgspec.structs.astuple(letter), _checksum(letter)),
        )
        self.groups.join(taker, letter)
        self._resize(taker, len(letter.raw) + OVERHEAD_BYTES)

    def remove(self, taker: int, ids: Sequence[int]) -> dict[int, str]:
        """Take letters away; return of those that were there the reason each was kept for."""
        gone: dict[int, str] = {}
        query = (  # with a condition of the taker, SQLite would look at all that it has
            "SELECT taker, id, reason, status, code, event_type, length(raw) FROM dead_letters"
            " WHERE id IN"
        )
        for holder, id_, reason, status, code, event_type, size in list(
            find_in(self._db, query, ids)
        ):
            if holder != taker:
                continue
            self._db.execute("DELETE FROM dead_letters WHERE id = ?", (id_,))
            self.groups.leave(taker, reason, status, code, event_type)
            self._resize(taker, -(size or 0) - OVERHEAD_BYTES)
            gone[id_] = str(reason)
        return gone

    def move(self, old: int, new: int, limit: int) -> Moved:
        """Give the first of a taker's letters to another one."""
        ids = self.ids(old, limit)
        query = f"SELECT {_COLUMNS} FROM dead_letters WHERE id IN"
        by_reason: Counter[str] = Counter()
        size_bytes = 0
        for letter in [DeadLetter(*row) for row in find_in(self._db, query, ids)]:
            by_reason[letter.reason] += 1
            size_bytes += len(letter.raw) + OVERHEAD_BYTES
            self.groups.leave(old, letter.reason, letter.status, letter.code, letter.event_type)
            self.groups.join(new, letter)
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
