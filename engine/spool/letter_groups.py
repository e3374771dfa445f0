"""The groups of dead letters: those of one reason, status, code and event type.

They are counted in the commits that change their letters, so that a list of them costs no count.
"""

from __future__ import annotations

import msgspec

from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.letters import DeadLetter


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


class LetterGroups:
    """The table ``dead_letter_groups``, in the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def of(self, taker: int) -> list[Group]:
        """Return the groups of a taker's letters, the largest first."""
        rows = self._db.execute(
            "SELECT reason, status, code, event_type, count, first_ms, last_ms, sample_id"
            " FROM dead_letter_groups WHERE taker = ? ORDER BY count DESC, reason, event_type"
            " LIMIT 1000",
            (taker,),
        )
        return [Group(*row) for row in rows]

    def join(self, taker: int, letter: DeadLetter) -> None:
        """Count one more letter in its group."""
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

    def leave(self, *group: object) -> None:
        """Take one letter out of its group, and the group away where that was its last."""
        where = "taker = ? AND reason = ? AND status = ? AND code = ? AND event_type = ?"
        self._db.execute(f"UPDATE dead_letter_groups SET count = count - 1 WHERE {where}", group)
        self._db.execute(f"DELETE FROM dead_letter_groups WHERE {where} AND count <= 0", group)
