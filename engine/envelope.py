"""What travels through the engine: a row of the spool, and what the mapper made of it.

An envelope is a record and its plan. The record is the event exactly as it was accepted; what is to
be done for it (``Plan``) is worked out after the spool, each time anew.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.reasons import AdjustmentReason


class Kind(enum.IntEnum):
    """What a record is to Amplitude. The numbers are stored."""

    EVENT = 1
    IDENTIFY = 2
    EVENT_WITH_UPDATE = 3
    """An event that changes its user too: it makes an unknown user known, as an identify does."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """An accepted event, in the spool. Ids are in the order of acceptance."""

    id: int
    kind: Kind
    user_key: str
    accepted_at_ms: int
    raw: bytes
    attempts: int = 0
    """Failed attempts of this record so far, over all restarts."""
    first_failed_at_ms: int = 0
    """When the first of them failed; 0 when none has."""
    claim_id: int = 0
    """The id it had first: a replayed dead letter has a new one, and keeps its claims."""
    is_updated: bool = False
    """Whether what it brings to its user's contact is there already."""
    may_create: bool = False
    """Whether its user may be created for it, because something waits that makes it known."""


class Adjustment(msgspec.Struct, frozen=True, gc=False):
    """One change: its reason, where, and what was done, for people."""

    reason: AdjustmentReason
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


Adjusted = tuple[dict[str, Any], Sequence[Adjustment]]
"""Some fields of a request, and what was changed in them."""


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Who it is to Intercom: ``field`` is ``external_id`` or ``email``."""

    field: str
    value: str


class ContactUpdate(msgspec.Struct, frozen=True, gc=False):
    """User property operations to bring to a contact, as Amplitude spells them.

    ``operations`` maps ``$set``, ``$unset``, … to properties; only selected properties are in it.
    """

    identity: Identity
    operations: dict[str, Any]
    claim_id: int = 0
    """The id that the record which brings them had first: ``$add`` must not be applied twice."""
    at_ms: int = 0
    """The event's own time (Unix ms)."""
    by_time: bool = False
    """Whether its time, rather than when it comes, says what is newer than it."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What delivering one record takes: a contact write, an event, or both in this order.

    ``event`` is what goes into ``POST /events``, its ``created_at`` being the event's own second.
    ``adjustments`` says what was changed.
    """

    identity: Identity
    contact: ContactUpdate | None = None
    event: dict[str, Any] | None = None
    adjustments: tuple[Adjustment, ...] = ()


class Envelope(msgspec.Struct, frozen=True):
    """A record on its way through delivery, with its plan.

    ``event`` is the body of ``POST /events``, the same bytes at every attempt. ``not_before_ms``:
    when it may leave, where its ``created_at`` was moved ahead; else 0.
    """

    record: Record
    plan: Plan
    event: bytes | None = None
    not_before_ms: int = 0

    @property
    def reasons(self) -> list[str]:
        """The reasons of what was changed on the way, to be counted when it has arrived."""
        return [adjustment.reason for adjustment in self.plan.adjustments]
