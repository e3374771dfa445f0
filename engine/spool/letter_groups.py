"""The groups of dead letters: those of one reason, status, code and event type.

They are counted in the commits that change their letters, so that a list of them costs no count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.letters import DeadLetter, Matching


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


_FIELDS: Final = Group.__struct_fields__
MOST_GROUPS: Final = 10_000

GroupPosition = tuple[int, str, int, str, str]
"""The size of a group, negative, and its names: the order of a list."""


def position_of_group(group: Group) -> GroupPosition:
    """Return where a group is in the list, the largest first."""
    return -group.count, group.reason, group.status, group.code, group.event_type


class GroupPage(NamedTuple):
    """Some groups. ``has_more``: there are groups behind them. ``is_cut``: of very many groups not
    all were looked at."""

    groups: list[Group]
    has_more: bool
    is_cut: bool


class LetterGroups:
    """The table ``dead_letter_groups``, in the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def of(self, taker: int) -> list[Group]:
        """Return the largest groups of a taker's letters."""
        return self.page(taker, None, 1_000).groups

    def page(self, taker: int, after: GroupPosition | None, limit: int) -> GroupPage:
        """Return groups of a taker's letters, the largest first, behind a position.

        Of more than ``MOST_GROUPS`` only the first by reason are looked at.
        """
        rows = self._db.execute(
            f"SELECT {', '.join(_FIELDS)} FROM (SELECT * FROM dead_letter_groups WHERE taker = ?"
            " ORDER BY reason, status, code, event_type LIMIT ?) AS some"
            " ORDER BY count DESC, reason, status, code, event_type",
            (taker, MOST_GROUPS),
        ).fetchall()
        every = [Group(*row) for row in rows]
        behind = [one for one in every if after is None or position_of_group(one) > after]
        return GroupPage(
            behind[:limit], has_more=len(behind) > limit, is_cut=len(every) == MOST_GROUPS
        )

    def count(self, taker: int, reason: str | None, of_group: Mapping[str, str | int]) -> Matching:
        """Return the number of letters in the groups that have these values.

        Of more than ``MOST_GROUPS`` of a reason only the first are looked at.
        """
        first = {"taker": taker, **({} if reason is None else {"reason": reason})}
        where = " AND ".join(f"{name} = ?" for name in first)
        meant = " AND ".join(f"{name} = ?" for name in of_group)
        number, looked_at = self._db.execute(
            f"SELECT sum(number), count(*) FROM (SELECT CASE WHEN {meant} THEN count ELSE 0 END"
            f" AS number FROM dead_letter_groups WHERE {where} LIMIT ?) AS some",
            (*of_group.values(), *first.values(), MOST_GROUPS + 1),
        ).fetchone()
        return Matching(int(number or 0), looked_at > MOST_GROUPS)

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
