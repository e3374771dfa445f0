"""The source actor: takes batches from a transport, and finds the takers of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.setting_types import ANY_KEY
from amplitude_intercom.transports.contract import Batch, Ticket
from amplitude_intercom.transports.errors import Refused, UnknownApiKey, UnknownSync
from amplitude_intercom.transports.reasons import RefusalReason


class Offer(msgspec.Struct):
    """A batch, the takers that it is for, and where to say that all of them have it."""

    batch: Batch
    takers: Sequence[str]
    ticket: Ticket


class SourceActor:
    """The engine's intake, as its sources see it (``transports.contract.Intake``)."""

    def __init__(
        self,
        outbox: MemoryObjectSendStream[Offer],
        syncs: Sequence[str],
        syncs_by_key: Mapping[str, Sequence[str]],
        stopped: Callable[[], str],
        relays_by_key: Mapping[str, Sequence[str]] = {},
    ) -> None:
        """``stopped`` returns the fault that keeps the engine from taking events in, or nothing."""
        self._outbox = outbox
        self._syncs = syncs
        self._syncs_by_key = syncs_by_key
        self._relays_by_key = relays_by_key
        self._stopped = stopped
        self._draining = False

    def drain(self) -> None:
        """Refuse everything from now on."""
        self._draining = True

    def close(self) -> None:
        """End the filter's inbox: earlier batches are still worked through."""
        self.drain()
        self._outbox.close()

    async def send(self, batch: Batch) -> Ticket:
        """Queue a batch for those that take it; waits while too many are on their way.

        Raises:
            Refused: the engine is draining, or a fault has stopped its intake.
            UnknownApiKey: no sync takes this key's events.
            UnknownSync: the batch is for a sync that is not there.
        """
        if self._draining:
            raise Refused(RefusalReason.DRAINING)
        takers = self._takers(batch)
        if fault := self._stopped():
            raise Refused(RefusalReason.INTERNAL, fault)
        offer = Offer(batch, takers, Ticket())
        try:
            self._outbox.send_nowait(offer)
        except anyio.WouldBlock:
            await self._wait_to_send(offer)
        return offer.ticket

    async def _wait_to_send(self, offer: Offer) -> None:
        """Send to a full channel; if the engine begins to drain meanwhile, the offer is refused."""
        try:
            await self._outbox.send(offer)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise Refused(RefusalReason.DRAINING) from None

    def takes(self, api_key: str) -> bool:
        """Whether any sync or relay takes this key's events."""
        by_key = (self._syncs_by_key, self._relays_by_key)
        return any(api_key in takers or ANY_KEY in takers for takers in by_key)

    def _takers(self, batch: Batch) -> Sequence[str]:
        if batch.sync is not None:
            if batch.sync not in self._syncs:
                known = ", ".join(self._syncs)
                raise UnknownSync(f"there is no sync `{batch.sync}`; there is {known}")
            return (batch.sync,)
        key = batch.api_key or ""
        names = [*self._syncs_by_key.get(key, ()), *self._syncs_by_key.get(ANY_KEY, ())]
        if batch.original is not None:
            relays = self._relays_by_key
            names += [*relays.get(key, ()), *relays.get(ANY_KEY, ())]
        if not names:
            raise UnknownApiKey(key)
        return tuple(dict.fromkeys(names))
