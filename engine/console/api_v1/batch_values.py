"""Batches as a command hands them to a running daemon, and its answers: values of both sides."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from amplitude_intercom.engine.spool.letters import Id

MOST_EVENTS: Final = 10_000
"""Events of one batch."""

MOST_CHECKPOINTS: Final = 1_000
"""Checkpoints of one request."""

Positions = Annotated[dict[str, str], msgspec.Meta(max_length=MOST_CHECKPOINTS)]


class CutEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event of which only the beginning is sent, for it is too large. ``digest``: of all."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=MOST_EVENTS)]
    digest: bytes
    why: Annotated[str, msgspec.Meta(max_length=200)]


class HandedBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events in their order, each as it came, in Base64. ``lines``: their numbers in ``origin``.

    ``checkpoints``: positions by name; kept in the same commit.
    """

    events: Annotated[list[bytes], msgspec.Meta(max_length=MOST_EVENTS)]
    lines: Annotated[list[Id], msgspec.Meta(max_length=MOST_EVENTS)] | None = None
    cut: Annotated[list[CutEvent], msgspec.Meta(max_length=MOST_EVENTS)] = []
    origin: Annotated[str, msgspec.Meta(max_length=4_096)] = ""
    checkpoints: Positions = {}


class BatchReceipt(msgspec.Struct, frozen=True):
    """What has become of a batch that is on disk now; ``dropped`` and ``dead`` by reason.

    ``batch``: the number up to which its events are in the spool.
    """

    accepted: int
    dropped: dict[str, int]
    dead: dict[str, int]
    batch: int


class Checkpoint(msgspec.Struct, frozen=True):
    """How far a source that can be read again has come."""

    source: str
    position: str


class CheckpointChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Checkpoints to forget, and others to keep in their place, in one commit."""

    forget: Annotated[list[str], msgspec.Meta(max_length=MOST_CHECKPOINTS)] = []
    keep: Positions = {}


class CheckpointsLeft(msgspec.Struct, frozen=True):
    """The number of checkpoints of the sync now."""

    checkpoints: int


class PendingFacts(msgspec.Struct, frozen=True):
    """What waits of a sync. ``waits``: whether anything of the batches that were asked about does.

    ``received`` and ``pending`` are of the whole sync; ``parked`` are the events of parked users,
    where that was asked. ``batch``: the last one so far. ``trouble``: why it takes nothing now.
    """

    waits: bool
    batch: int
    received: int
    pending: int
    parked: int | None
    delivers: bool
    health: str
    trouble: str
