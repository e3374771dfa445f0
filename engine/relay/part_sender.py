"""One part's way to Amplitude: read its request, cut the part out, send it, judge the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DAMAGED
from amplitude_intercom.engine.relay.answers import AnswerKind, Verdict, judge
from amplitude_intercom.engine.relay.part_endings import SentPart
from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.spool.contract import TakerSpool
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.originals import as_sent

HEAVY_BYTES: Final = 262_144
"""Size of a body beyond which it is taken apart in a thread, so that the loop does not stop."""


class PartSender:
    """Sends parts; several at once. It decides nothing, and keeps nothing but counts."""

    def __init__(
        self,
        spool: TakerSpool,
        wire: AmplitudeWire,
        now_ms: Callable[[], int],
        calls: Counter[int] | None = None,
    ) -> None:
        """``calls``: those of an earlier sender, to be counted on."""
        self._spool = spool
        self._wire = wire
        self._now_ms = now_ms
        self.calls = Counter() if calls is None else calls
        """Requests that were sent, by status; 0: no answer."""

    async def send(self, part: RequestPart) -> SentPart:
        """Send a part; never fails: an unforeseen error costs the events of this part alone."""
        sent = SentPart(part, Verdict(AnswerKind.REFUSED))
        try:
            await self._exchange(sent)
        except Exception as fault:
            sent.failure = internal_failure(fault, request=part.request.id)
        return sent

    async def _exchange(self, sent: SentPart) -> None:
        request = sent.part.request
        try:
            sent.original = await self._spool.persist(
                lambda store: store.relayed.original(request.id)
            )
        except ValueError:
            sent.failure = DAMAGED
        if request.is_damaged:
            sent.failure = DAMAGED
        if sent.failure is not None:
            return
        if sent.original is None:
            # The relay's share was full, and this request the oldest: the spool has dropped it.
            sent.verdict = Verdict(AnswerKind.TAKEN)
            return
        shortened = await self._cut(sent.part, sent.original)
        try:
            answer = await self._wire.send(shortened)
        except NoAnswer as error:
            self.calls[0] += 1
            sent.verdict = Verdict(AnswerKind.NO_ANSWER, said=str(error))
            return
        self.calls[answer.status] += 1
        sent.verdict = judge(answer, shortened, len(sent.part.indexes))

    async def _cut(self, part: RequestPart, original: Original) -> Original:
        """Return the request with the events of a part alone, and its time of sending."""
        request = part.request
        only = part.indexes if len(part.indexes) < request.count else None
        waited_ms = self._now_ms() - request.accepted_at_ms
        if len(original.body) > HEAVY_BYTES:
            return await asyncio.to_thread(as_sent, original, only, waited_ms)
        return as_sent(original, only, waited_ms)
