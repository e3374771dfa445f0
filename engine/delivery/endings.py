"""The ways in which turns end, and so what is next for their users. ``waiting`` writes them.

``back``: records of the turn that are not settled, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import Failure


class GoOn(msgspec.Struct, frozen=True):
    """The user goes on. ``succeeded``: a call of it has, so that its failures are forgiven."""

    back: Sequence[Record] = ()
    succeeded: bool = False


class PutBack(msgspec.Struct, frozen=True):
    """The turn could not be had: the user is where it was, or waits for an endpoint that is out."""

    back: Sequence[Record]
    needs: str | None = None


class Deferred(msgspec.Struct, frozen=True):
    """The first of ``back`` may not leave before an instant (Unix ms)."""

    back: Sequence[Record]
    until_ms: int


class Failing(msgspec.Struct, frozen=True):
    """The call of the first of ``back`` has failed."""

    back: Sequence[Record]
    evidence: NotAnswered


class Unknown(msgspec.Struct, frozen=True):
    """Intercom does not know the user of the first of ``back``."""

    back: Sequence[Record]
    failure: Failure


Ending = GoOn | PutBack | Deferred | Failing | Unknown


def ending_of(evidence: NotAnswered, back: Sequence[Record]) -> Ending:
    """Return how a turn ends of which a call was not answered."""
    if evidence.cause is Cause.FAILED:
        return Failing(back, evidence)
    needs = evidence.endpoint if evidence.cause is Cause.CIRCUIT_OPEN else None
    return PutBack(back, needs)
