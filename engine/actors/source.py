"""The source actor: takes batches from a transport, and finds the takers of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.actors.offers import Offer, RelayFilter, Routes, SyncFilter
from amplitude_intercom.engine.setting_types import ANY_KEY
from amplitude_intercom.transports.contract import Batch, Ticket
from amplitude_intercom.transports.errors import Refused, UnknownApiKey, UnknownSync
from amplitude_intercom.transports.reasons import RefusalReason


class SourceActor:
    """The engine's intake, as its sources see it (``transports.contract.Intake``)."""

    def __init__(self, outbox: MemoryObjectSendStream[Offer], stopped: Callable[[], str]) -> None:
        """``stopped`` returns the fault that keeps the engine from taking events in, or nothing."""
        self._outbox = outbox
        self._stopped = stopped
        self._draining = False
        self.routes = Routes()
        """Another value from one batch to the next where the settings change."""

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
        return await self._offer(Offer(batch, takers, Ticket()))

    async def catch_up(self) -> None:
        """Wait until the batches that were sent so far are on disk, or refused."""
        if self._stopped():  # all that was sent is refused by then, and nobody reads the channel
            return
        with suppress(Refused):
            ticket = await self._offer(Offer(Batch(None, []), (), Ticket()))
            await ticket.wait()

    async def _offer(self, offer: Offer) -> Ticket:
        try:
            self._outbox.send_nowait(offer)
        except anyio.WouldBlock:
            await self._wait_to_send(offer)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise Refused(RefusalReason.DRAINING) from None
        return offer.ticket

    async def _wait_to_send(self, offer: Offer) -> None:
        """Send to a full channel; if the engine begins to drain meanwhile, the offer is refused."""
        try:
            await self._outbox.send(offer)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise Refused(RefusalReason.DRAINING) from None

    def takes(self, api_key: str) -> bool:
        """Whether any sync or relay takes this key's events."""
        by_key = (self.routes.syncs_by_key, self.routes.relays_by_key)
        return any(api_key in takers or ANY_KEY in takers for takers in by_key)

    def _takers(self, batch: Batch) -> Sequence[SyncFilter | RelayFilter]:
        routes = self.routes
        if batch.sync is not None:
            found = routes.syncs.get(batch.sync)
            if found is None:
                there = f"there is {', '.join(routes.syncs)}" if routes.syncs else "there is none"
                raise UnknownSync(f"there is no sync `{batch.sync}`; {there}")
            return (found,)
        key = batch.api_key or ""
        takers: list[SyncFilter | RelayFilter] = [*_of_key(routes.syncs_by_key, key)]
        if batch.original is not None:
            takers += _of_key(routes.relays_by_key, key)
        if not takers:
            raise UnknownApiKey(key)
        return takers


def _of_key(by_key: Mapping[str, Sequence[Any]], key: str) -> list[Any]:
    """Return the takers of a key's events, each once."""
    return list({taker.name: taker for k in (key, ANY_KEY) for taker in by_key.get(k, ())}.values())
