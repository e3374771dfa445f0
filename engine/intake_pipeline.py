"""The wiring of intake: the source actor and the filter actor, joined by a bounded channel.

    sources ─► SourceActor ─► Offer ─► FilterActor ═► spool

One intake serves all syncs and relays. A fault that belongs to no batch stops the filter for a
while: waiting batches are refused, and a supervisor starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import anyio

from amplitude_intercom.engine.actors.filter import FilterActor
from amplitude_intercom.engine.actors.offers import (
    Offer,
    RelayFilter,
    Routes,
    SyncFilter,
    only_project,
)
from amplitude_intercom.engine.actors.source import SourceActor
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.internal_faults import describe
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

INTAKE_BATCHES = 16
"""Batches between the sources and the filter: enough to keep both busy."""

SENDERS_TURNS = 5
"""Turns of the loop until a source that was about to send has its batch in the channel."""


class IntakePipeline:
    """Takes events in for all syncs and relays, while ``run`` runs."""

    def __init__(self, spool: Spool, max_event_bytes: int) -> None:
        """``follow`` says which takers there are; before that nobody takes anything."""
        self._spool = spool
        self._max_event_bytes = max_event_bytes
        self._draining = False
        self._fault = ""
        self._actor: FilterActor | None = None
        inbox, self._offers = anyio.create_memory_object_stream[Offer](INTAKE_BATCHES)
        self.source = SourceActor(inbox, lambda: self.stopped)
        self._supervisor = Supervisor(self._take_in, part="intake")

    async def follow(self, settings: Settings, streams: Mapping[str, Stream]) -> None:
        """Use the rules of these syncs and relays for every batch that comes from now on.

        Returns when the batches that came before are on disk, or refused.
        """
        self.source.routes = routes_of(settings, streams)
        if self._actor is not None:
            await self.source.catch_up()

    async def run(self) -> None:
        """Run until ``drain`` was called and the channel is empty; start again after a fault."""
        await self._supervisor.run()
        # The supervisor may have ended within a pause, in which nobody reads the channel.
        self._refuse_waiting(Refused(RefusalReason.DRAINING))

    def drain(self) -> None:
        """Take no more batches; those in the channel are still handled."""
        self._draining = True
        self.source.close()
        if self._actor is not None:
            self._actor.draining = True
        self._supervisor.end()

    @property
    def stopped(self) -> str:
        """The fault of this program that stops intake now; empty: none."""
        return self._fault or self._supervisor.stopped

    @property
    def faults(self) -> int:
        """The number of faults that have stopped intake."""
        return self._supervisor.faults

    async def _take_in(self) -> None:
        self._actor = FilterActor(self._spool, max_event_bytes=self._max_event_bytes)
        self._actor.draining = self._draining
        self._fault = ""
        try:
            await self._actor.run(self._offers)
        except Exception as fault:
            self._fault = describe(fault)
            # A sender that waits for a free slot offers its batch as soon as one is free.
            for _ in range(SENDERS_TURNS):
                self._refuse_waiting(Refused(RefusalReason.INTERNAL, self._fault))
                await asyncio.sleep(0)
            raise

    def _refuse_waiting(self, refused: Refused) -> None:
        """Refuse the batches in the channel: the filter may pause for a minute."""
        with suppress(anyio.WouldBlock, anyio.EndOfStream, anyio.ClosedResourceError):
            while True:
                self._offers.receive_nowait().ticket.refuse(refused)

    def close(self) -> None:
        """Close the channel from both sides."""
        self.source.close()
        self._refuse_waiting(Refused(RefusalReason.DRAINING))
        self._offers.close()


def routes_of(settings: Settings, streams: Mapping[str, Stream]) -> Routes:
    """Return who takes the events of which keys; ``streams`` by name of the sync."""
    filters = {sync.name: filter_of(streams[sync.name]) for sync in settings.sync}
    syncs_by_key: dict[str, list[SyncFilter]] = {}
    relays_by_key: dict[str, list[RelayFilter]] = {}
    for sync in settings.sync:
        for key in sync.amplitude_api_keys:
            syncs_by_key.setdefault(key.reveal(), []).append(filters[sync.name])
    for relay in settings.relay:
        for key in settings.keys_of(relay) if relay.enabled else ():
            relay_filter = RelayFilter(relay.taker, relay.drops_oldest)
            relays_by_key.setdefault(key.reveal(), []).append(relay_filter)
    return Routes(filters, syncs_by_key, relays_by_key)


def filter_of(stream: Stream) -> SyncFilter:
    """Return a sync as intake knows it."""
    return SyncFilter(stream.sync.name, stream.admission, only_project(stream.sync))
