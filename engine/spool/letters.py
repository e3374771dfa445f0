"""Dead letters as plain values: the letter, the query for letters, and the order of a walk."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple

import msgspec


class DeadRow(msgspec.Struct, frozen=True, gc=False):
    """Input of a source that is no event; kept as a dead letter at once.

    ``user_key``: the user that it names, as far as it can be read.
    """

    reason: str
    message: str
    raw: bytes
    insert_key: bytes | None
    origin: str
    line: int | None
    user_key: str = ""


class FailedEvent(msgspec.Struct, frozen=True):
    """The id of an event, and its last failure."""

    id: int
    reason: str
    status: int
    code: str
    message: str
    request_id: str
    attempts: int
    first_failed_at_ms: int
    last_failed_at_ms: int


class DeadLetter(FailedEvent, frozen=True):
    """A dead letter: a failed event, with the event itself. The fields are the table's columns."""

    accepted_at_ms: int
    user_key: str
    event_type: str
    origin: str
    line: int | None
    claim_id: int
    updated: int
    """Whether its contact update is done."""
    raw: bytes


MOST: Final = (1 << 63) - 1
"""The largest number that SQLite can be asked for."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
TimeMs = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]


# Tagged, because the query of a job is one of several structs.
class DeadLetterQuery(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="of", tag="dead_letters"
):
    """Which dead letters: all conditions that are given must hold.

    Without a condition it means all of them, where they are only looked at; what changes them wants
    ``every`` to be said.
    """

    ids: list[Id] | None = None
    reason: str | None = None
    user: str | None = None
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None
    every: bool = False
    status: Id | None = None
    code: str | None = None
    event_type: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition, and it is not said that all are meant either."""
        # An empty list of ids is a condition, which no letter meets: only None is none.
        conditions = (self.ids, self.reason, self.user, self.since_ms, self.until_ms)
        has_none = conditions == (None,) * len(conditions)
        return not self.every and has_none and not self.of_group

    @property
    def of_group(self) -> dict[str, str | int]:
        """The conditions beside the reason that a group of letters has, and no index."""
        held = {"status": self.status, "code": self.code, "event_type": self.event_type}
        return {name: value for name, value in held.items() if value is not None}


def is_counted(query: DeadLetterQuery) -> bool:
    """Return whether a query has no condition but those by which dead letters are counted."""
    # They are counted by group: any other condition needs a walk over the letters.
    return query.ids is None and (query.user, query.since_ms, query.until_ms) == (None, None, None)


class Matching(NamedTuple):
    """How many dead letters a query means. ``more``: there are more, that were not counted."""

    number: int
    more: bool = False


class Position(NamedTuple):
    """Where a dead letter is in the order they are walked in: by when they failed last, then by id.

    Of letters that are named by their ids, and of records, only the ``id`` counts. As text
    (``1700000000000-512``) people and programs are told it, and say it to go on from there.
    """

    at_ms: int
    id: int

    def __str__(self) -> str:
        return f"{self.at_ms}-{self.id}"

    @classmethod
    def read(cls, text: str) -> Position:
        """Return the position that a text says; the one ahead of all letters where it is empty.

        Raises:
            ValueError: it says none.
        """
        if not text:
            return START
        found = _POSITION.fullmatch(text)
        position = cls(int(found[1]), int(found[2])) if found else None
        # A number that SQLite cannot be asked for would be an error of the database.
        if position is None or max(-position.at_ms, *position) > MOST:
            example = "1700000000000-512"
            # Cut: it comes from outside, and goes into a message.
            raise ValueError(f"{text[:40]!r} is no position that a list has said, like {example}")
        return position


# At most 19 digits: to read a number takes time with the square of its length.
_POSITION: Final = re.compile(r"(-?[0-9]{1,19})-([0-9]{1,19})")
# A wrong clock, or a damaged row, can have made times negative.
START: Final = Position(-MOST - 1, 0)
END: Final = Position(MOST, MOST)
