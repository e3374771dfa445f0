"""Records, plans and envelopes: the values that travel through a delivery.

An envelope is a record with its plan. The record is the event, byte for byte as it was accepted.
The mapper makes the plan after the spool, anew at every turn, so that a changed setting holds for
waiting records too. Under the same settings it is the same, byte for byte.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.reasons import AdjustmentReason


class Kind(enum.IntEnum):
    """The kind of a record. The numbers are stored."""

    EVENT = 1
    IDENTIFY = 2
    EVENT_WITH_UPDATE = 3
    """An event with user properties: it makes an unknown user known, as an identify does."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """An accepted event in the spool. Ids are in the order of acceptance."""

    id: int
    kind: Kind
    user_key: str
    accepted_at_ms: int
    raw: bytes
    attempts: int = 0
    """Failed attempts so far, over all restarts."""
    first_failed_at_ms: int = 0
    """Unix ms of the first of them; 0: none."""
    claim_id: int = 0
    """The first id of the record: a replayed dead letter has a new id, and keeps its claims."""
    is_updated: bool = False
    """Whether its contact update is done."""
    may_create: bool = False
    """Whether its user may be created for it: an update of that user waits behind it."""


class Adjustment(msgspec.Struct, frozen=True, gc=False):
    """One change to a value on its way to Intercom: reason, place and description."""

    reason: AdjustmentReason
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


Adjusted = tuple[dict[str, Any], Sequence[Adjustment]]
"""Fields of a request, with the adjustments made to them."""


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The identifier of a contact in Intercom: ``field`` is ``external_id`` or ``email``."""

    field: str
    value: str


class ContactUpdate(msgspec.Struct, frozen=True, gc=False):
    """User property operations for one contact, in Amplitude's spelling.

    ``operations``: by operator (``$set``, ``$unset``, …) the selected properties.
    """

    identity: Identity
    operations: dict[str, Any]
    claim_id: int = 0
    """``Record.claim_id`` of its record: an ``$add`` must not be applied twice."""
    at_ms: int = 0
    """The time of the event (Unix ms)."""
    by_time: bool = False
    """Whether the event's time, not its arrival, decides which update is newer."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """The calls that one record needs: a contact write, an event, or both in this order.

    ``event``: the fields of ``POST /events``, with the event's own second as ``created_at``.
    """

    identity: Identity
    contact: ContactUpdate | None = None
    event: dict[str, Any] | None = None
    adjustments: tuple[Adjustment, ...] = ()


class Envelope(msgspec.Struct, frozen=True):
    """A record on its way through delivery, with its plan.

    ``event``: the body of ``POST /events``, the same bytes at every attempt by the same settings.
    ``not_before_ms``: the instant (Unix ms) before which an event with a moved ``created_at`` must
    not leave; else 0.
    """

    record: Record
    plan: Plan
    event: bytes | None = None
    not_before_ms: int = 0

    @property
    def reasons(self) -> list[str]:
        """The reasons of its adjustments, counted at delivery."""
        return [adjustment.reason for adjustment in self.plan.adjustments]
