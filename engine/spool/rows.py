"""Batches on their way into the spool, by taker, and the dead letters that records become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DropReason, Failure
from amplitude_intercom.engine.spool.batches import Pack
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadRow
from amplitude_intercom.engine.spool.relay_requests import Relayed
from amplitude_intercom.transports.amplitude_heads import decode_types


class Part(msgspec.Struct):
    """The part of one batch that belongs to one taker.

    ``checkpoints``: positions of the sources that can be read again, by source. ``relayed``: the
    request of the batch, if the taker is a relay; a relay keeps nothing else.
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
        """Whether it only counts dropped events."""
        return not self.packs and not self.dead and self.relayed is None

    @property
    def needs_free_bytes(self) -> bool:
        """Whether it is refused if the spool is full."""
        return bool(self.packs) or (self.relayed is not None and not self.relayed.drops_oldest)


class Append(msgspec.Struct):
    """The parts of one batch: stored together, or not at all.

    ``number``: counts the batches that only count; 0 for all others.
    """

    parts: list[Part]
    number: int = 0


class Appended(msgspec.Struct, frozen=True):
    """The result of an ``Append``: sums over its takers."""

    accepted: int
    dropped: int
    dead: int
    dead_by_reason: Mapping[str, int] = {}


LONGEST_TYPE: Final = 128
"""Characters of an event type by which dead letters are grouped."""


def event_type_of(raw: bytes) -> str:
    """Return the type of an event; empty if it cannot be read."""
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
