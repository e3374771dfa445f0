"""What a rule decides about an event: it is kept, dropped or rejected."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar, final

import msgspec

from amplitude_intercom.engine.reasons import DeadReason, DropReason

Kept = TypeVar("Kept")


@final
class Keep(msgspec.Struct, Generic[Kept], frozen=True, gc=False):
    """It is kept, as this."""

    value: Kept


@final
class Drop(msgspec.Struct, frozen=True, gc=False):
    """A rule says that it is not sent: that is counted, and all."""

    reason: DropReason


@final
class Reject(msgspec.Struct, frozen=True, gc=False):
    """It cannot be sent: it becomes a dead letter."""

    reason: DeadReason
    message: str = ""


Verdict: TypeAlias = Keep[Kept] | Drop | Reject
