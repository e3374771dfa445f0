"""The part that was sent, its answer, and the events that the answer settles. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.relay.answers import AnswerKind, Verdict
from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.spool.relay_requests import LostEvent
from amplitude_intercom.transports.contract import Original

MOST_REFUSED: Final = 20
"""Requests in a row that are refused whole, with none taken between, before the next ones wait."""


class SentPart(msgspec.Struct):
    """A part that was sent, or could not be.

    ``original`` is its request; None: the request was dropped meanwhile, or cannot be read.
    ``failure`` is a reason of ours for which no event of it can be sent.
    """

    part: RequestPart
    verdict: Verdict
    original: Original | None = None
    failure: Failure | None = None

    @property
    def was_sent(self) -> bool:
        """Whether the verdict is about an answer of Amplitude, or about the lack of one."""
        return self.original is not None and self.failure is None


class PartEnding(msgspec.Struct):
    """The events of a part that its answer settles: delivered by index, and lost."""

    delivered: Sequence[int] = ()
    lost: Sequence[LostEvent] = ()

    @property
    def settled(self) -> set[int]:
        """The indexes of both."""
        return {*self.delivered, *(event.index for event in self.lost)}


class RefusalStreak:
    """Requests in a row that Amplitude has refused whole.

    So many are no fault of each of them but one of the settings, or of Amplitude: then they wait
    instead of becoming dead letters.
    """

    def __init__(self) -> None:
        self._length = 0

    def judge(self, sent: SentPart) -> Verdict:
        """Return the verdict on a part, which is ``NO_ANSWER`` within a long streak."""
        verdict = sent.verdict
        # A request that was dropped meanwhile passes for taken, but Amplitude has not seen it.
        if verdict.kind in (AnswerKind.TAKEN, AnswerKind.SORTED) and sent.original is not None:
            self._length = 0
        # A failure of ours says nothing about Amplitude.
        elif verdict.kind is AnswerKind.REFUSED and sent.failure is None:
            self._length += 1
            if self._length > MOST_REFUSED:
                # It waits as in an outage, and `status` says why.
                said = f"refuses everything: {verdict.said}"
                return Verdict(AnswerKind.NO_ANSWER, verdict.status, said)
        return verdict


def losses(sent: SentPart, *, gives_up: bool) -> dict[int, Failure]:
    """Return the events of a part that will never be taken, by index.

    ``gives_up``: its events get no further try, after a refused key or without an answer.
    """
    part, verdict = sent.part, sent.verdict
    if sent.failure is not None:
        return dict.fromkeys(part.indexes, sent.failure)

    def failure(reason: DeadReason, said: str = verdict.said) -> Failure:
        return Failure(reason, verdict.status, message=said)

    match verdict.kind:
        case AnswerKind.SORTED:
            refused = DeadReason.AMPLITUDE_REFUSED
            # Amplitude counts within what was sent, and that is the part.
            return {part.indexes[i]: failure(refused, said) for i, said in verdict.refused.items()}
        case AnswerKind.REFUSED:
            return dict.fromkeys(part.indexes, failure(DeadReason.AMPLITUDE_REFUSED))
        # Several are halved, until the one that is too large is alone.
        case AnswerKind.TOO_LARGE if len(part.indexes) == 1:
            return dict.fromkeys(part.indexes, failure(DeadReason.TOO_LARGE))
        # Until then the key is held, and its requests wait on disk.
        case AnswerKind.BAD_KEY if gives_up:
            return dict.fromkeys(part.indexes, failure(DeadReason.INVALID_API_KEY))
        case AnswerKind.NO_ANSWER if gives_up:
            return dict.fromkeys(part.indexes, failure(DeadReason.AMPLITUDE_FAILING))
    return {}
