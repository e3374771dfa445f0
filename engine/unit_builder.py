"""Builds the units that deliver: a pipeline for each access token, and the relays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial

from amplitude_intercom.engine.clients import (
    Token,
    amplitude_client_of,
    gate_settings_of,
    token_key,
)
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes
from amplitude_intercom.engine.delivery.workspaces import Workspaces
from amplitude_intercom.engine.feeds import Ready
from amplitude_intercom.engine.gates import Clocks, Gates
from amplitude_intercom.engine.pipeline import Pipeline
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.running_takers import RunningPipeline, RunningRelay
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.token_facts import counts_before, keep_limit, known_limit
from amplitude_intercom.engine.units import Unit
from amplitude_intercom.transports.amplitude_client import AmplitudeWire

RelayWireFactory = Callable[[RelaySettings], AmplitudeWire]
"""Makes the client of a relay; the sandbox's in-process wire stands in for HTTPS."""


class UnitBuilder:
    """Builds units; none of them runs before it is told to."""

    def __init__(
        self,
        spool: Spool,
        gates: Gates,
        clocks: Clocks,
        relay_wire: RelayWireFactory | None,
        ready: Ready,
    ) -> None:
        """``ready`` waits until a sync may deliver."""
        self._spool = spool
        self._gates = gates
        self._clocks = clocks
        self._relay_wire = relay_wire
        self._ready = ready
        self._budget = LoadedBytes()
        self._workspaces = Workspaces(now_ms=clocks.now_ms, jitter=clocks.jitter)

    def name_tokens(self, syncs: Iterable[Sync]) -> None:
        """Give a name to each access token of these syncs that has none."""
        self._gates.name_tokens(syncs)

    def forget_others(self, syncs: Iterable[Sync]) -> None:
        """Forget the access tokens that none of these syncs has."""
        self._gates.forget_others(syncs)

    async def pipeline(self, token: Token, sync: Sync, part: SpoolPart) -> RunningPipeline:
        """Build the pipeline of an access token by the settings of its first sync.

        Raises:
            SettingsError: its client cannot be built.
            SpoolError: the spool cannot be read.
        """
        clients, clocks = AsyncExitStack(), self._clocks
        limit = await known_limit(self._spool, token)
        is_before = await counts_before(self._spool, token)
        gate = await self._gates.build(token, sync, clients, limit, counts_before=is_before)
        key = token_key("workspace", token)
        pipeline = Pipeline(
            gate,
            self._budget,
            now_ms=clocks.now_ms,
            jitter=clocks.jitter,
            ready=self._ready,
            keep_limit=partial(keep_limit, self._spool, token),
            find_workspace=partial(self._workspaces.find, key, token[0], gate, part),
        )
        unit = Unit(pipeline.run, pipeline.drain, clients)
        return RunningPipeline(pipeline, gate_settings_of(sync), unit)

    async def relay(
        self, settings: RelaySettings, part: SpoolPart, calls: Counter[int] | None
    ) -> RunningRelay:
        """Build a relay's sender. ``calls``: those of an earlier one, to be counted on."""
        clients, clocks = AsyncExitStack(), self._clocks
        if self._relay_wire is not None:
            wire = self._relay_wire(settings)
        else:
            wire = await clients.enter_async_context(amplitude_client_of(settings))
        sender = RelaySender(
            settings, part, wire, now_ms=clocks.now_ms, jitter=clocks.jitter, calls=calls
        )
        supervisor = Supervisor(sender.run, relay=settings.name, part="relay")

        def drain() -> None:
            sender.drain()
            supervisor.end()

        return RunningRelay(sender, supervisor, Unit(supervisor.run, drain, clients))
