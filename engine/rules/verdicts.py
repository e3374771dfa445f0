"""The verdict of a rule on an event: kept, dropped or rejected."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar, final

import msgspec

from amplitude_intercom.engine.reasons import DeadReason, DropReason

Kept = TypeVar("Kept")


@final
class Keep(msgspec.Struct, Generic[Kept], frozen=True, gc=False):
    """The event is kept, as ``value``."""

    value: Kept


@final
class Drop(msgspec.Struct, frozen=True, gc=False):
    """A setting excludes the event: it is counted, and not sent."""

    reason: DropReason


@final
class Reject(msgspec.Struct, frozen=True, gc=False):
    """The event cannot be sent, and becomes a dead letter."""

    reason: DeadReason
    message: str = ""


Verdict: TypeAlias = Keep[Kept] | Drop | Reject
