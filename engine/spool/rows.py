"""What goes into a spool and comes out of it: plain values, and how they are checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

import msgspec

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DropReason, Failure
from amplitude_intercom.engine.spool.batches import Pack
from amplitude_intercom.engine.spool.requests import Relayed
from amplitude_intercom.transports.amplitude_heads import decode_types


class DeadRow(msgspec.Struct, frozen=True, gc=False):
    """Something a source brought that is no event; kept as a dead letter at once.

    ``user_key``: whose it is, as far as it can be read.
    """

    reason: str
    message: str
    raw: bytes
    insert_key: bytes | None
    origin: str
    line: int | None
    user_key: str = ""


class Part(msgspec.Struct):
    """What one taker keeps of one batch, and how much of it was dropped.

    ``checkpoints``: how far the sources that can be read again have come. ``relayed``: the request
    that they came in, of a relay, which keeps nothing else.
    """

    taker: str
    received: int
    packs: list[Pack]
    dead: list[DeadRow]
    dropped: Counter[DropReason]
    checkpoints: Mapping[str, str] = {}
    relayed: Relayed | None = None

    @property
    def keeps_nothing(self) -> bool:
        """Whether there is nothing but a count of what was dropped."""
        return not self.packs and not self.dead and self.relayed is None

    @property
    def needs_free_bytes(self) -> bool:
        """Whether it can be refused for want of them."""
        return bool(self.packs) or (self.relayed is not None and not self.relayed.drops_oldest)


class Append(msgspec.Struct):
    """What the takers of one batch keep of it: all of them, or none.

    ``number``: which it is of those that are only counted; 0 of all others.
    """

    parts: list[Part]
    number: int = 0


class Appended(msgspec.Struct, frozen=True):
    """What became of an ``Append``: a sum over its takers."""

    accepted: int
    dropped: int
    dead: int


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter, whole."""

    id: int
    reason: str
    status: int
    code: str
    message: str
    request_id: str
    attempts: int
    first_failed_at_ms: int
    last_failed_at_ms: int
    accepted_at_ms: int
    user_key: str
    event_type: str
    origin: str
    line: int | None
    claim_id: int
    updated: int
    """Whether what it brings to its user's contact is there already."""
    raw: bytes


LONGEST_TYPE: Final = 128
"""Characters of an event type that a dead letter is grouped by."""


def event_type_of(raw: bytes) -> str:
    """Return the type of an event, as far as it can be read; else nothing."""
    found = (decode_types([raw]) or [None])[0] or ""
    return found[:LONGEST_TYPE].encode(errors="replace").decode()


def dead_letter(record: Record, failure: Failure, now_ms: int) -> DeadLetter:
    """Return the dead letter that a record becomes."""
    return DeadLetter(
        record.id,
        failure.reason,
        failure.status,
        failure.code,
        failure.message,
        failure.request_id,
        record.attempts,
        record.first_failed_at_ms or now_ms,
        now_ms,
        record.accepted_at_ms,
        record.user_key,
        event_type_of(record.raw),
        "",
        None,
        record.claim_id or record.id,
        int(record.is_updated),
        record.raw,
    )


MOST: Final = (1 << 63) - 1
"""The largest number that SQLite can be asked for."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
TimeMs = Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)]


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

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition, and it is not said that all are meant either."""
        conditions = (self.ids, self.reason, self.user, self.since_ms, self.until_ms)
        return not self.every and conditions == (None,) * len(conditions)


def is_counted(query: DeadLetterQuery) -> bool:
    """Return whether a query has no condition but a reason, by which dead letters are counted."""
    return query.ids is None and (query.user, query.since_ms, query.until_ms) == (None, None, None)


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
        if position is None or max(-position.at_ms, *position) > MOST:
            example = "1700000000000-512"
            raise ValueError(f"{text[:40]!r} is no position that a list has said, like {example}")
        return position


_POSITION: Final = re.compile(r"(-?[0-9]{1,19})-([0-9]{1,19})")
START: Final = Position(-MOST - 1, 0)
END: Final = Position(MOST, MOST)


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Some dead letters of those that a query means, by when they failed last.

    ``matching``: how many it means in all. ``after``: what to ask with for those behind these;
    empty: there are none.
    """

    dead_letters: list[DeadLetter]
    matching: int
    after: str = ""
