"""What goes into a spool and comes out of it: plain values, and how they are checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DropReason, Failure
from amplitude_intercom.engine.spool.batches import Pack
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadRow
from amplitude_intercom.engine.spool.requests import Relayed
from amplitude_intercom.transports.amplitude_heads import decode_types


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
