"""The composition root: joins the parts of an engine, and builds those that no other part builds.

As a library:

    async with Engine(settings) as engine:
        receipt = await engine.submit(events, api_key="…")     # returns when they are on disk
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
import msgspec

from amplitude_intercom.engine.actors.source import SourceActor
from amplitude_intercom.engine.clients import (
    Token,
    amplitude_client_of,
    gate_settings_of,
    token_key,
    token_of,
)
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.delivery.workspaces import Workspaces
from amplitude_intercom.engine.feeds import Ready
from amplitude_intercom.engine.gates import Clocks, Gates, WireFactory
from amplitude_intercom.engine.intake_pipeline import IntakePipeline
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.overview import EngineParts, Overview
from amplitude_intercom.engine.pipeline import Pipeline
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.reload import Reload
from amplitude_intercom.engine.running_takers import RunningPipeline, RunningRelay, RunningTakers
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.settings_effects import Effects
from amplitude_intercom.engine.sources import RunningSource
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.sqlite.spool_file import refuse_former_spools
from amplitude_intercom.engine.spool.store import Store, wall_clock_ms
from amplitude_intercom.engine.status import Status
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.token_facts import counts_before, keep_limit, known_limit
from amplitude_intercom.engine.units import Unit
from amplitude_intercom.engine.upkeep import Upkeep
from amplitude_intercom.engine.waits import until_relayed, until_settled
from amplitude_intercom.transports.amplitude import Head
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.contract import Batch, Receipt
from amplitude_intercom.transports.upload_answers import BadUpload
from amplitude_intercom.transports.upload_events import decode_events

RelayWireFactory = Callable[[RelaySettings], AmplitudeWire]
"""Makes the client of a relay; the sandbox's in-process wire stands in for HTTPS."""


class BadEvents(ValueError):
    """Events handed to ``submit`` that Amplitude itself would refuse; none of them is stored.

    ``refusal`` lists every bad index under its field.
    """

    def __init__(self, refusal: BadUpload) -> None:
        super().__init__(msgspec.json.encode(refusal).decode())
        self.refusal = refusal


class _Arguments(msgspec.Struct, frozen=True):
    """The arguments of an engine beside its settings; see ``Engine``."""

    wire: WireFactory | None
    relay_wire: RelayWireFactory | None
    clocks: Clocks
    inline: bool
    delivers: bool
    store_type: type[Store]


class Engine:
    """All syncs and relays of one settings file, running while the context is open.

    ``takers``: the syncs and relays that run. ``sources``: those that run, by name; noted here by
    the code that starts them.
    ``state``: ``starting``, ``running`` (``offline`` without deliveries), ``draining``, ``ended``.

    Raises (on entering):
        SettingsError: the data directory cannot be used, or a sync is wired wrongly.
        DataDirInUse: another process has it.
        SpoolError: the spool cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        wire: WireFactory | None = None,
        relay_wire: RelayWireFactory | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        now_s: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        inline: bool = False,
        deliver: bool = True,
        store_type: type[Store] = Store,
    ) -> None:
        """Take checked settings; nothing is opened before the context is entered.

        ``wire`` and ``relay_wire`` replace the HTTPS clients, ``store_type`` the spool's tables.
        ``inline`` runs the spool in the loop's thread. Without ``deliver`` no call is made.
        """
        self._first_settings = settings
        clocks = Clocks(now_ms, now_s, jitter)
        self._arguments = _Arguments(wire, relay_wire, clocks, inline, deliver, store_type)
        self.sources: dict[str, RunningSource] = {}
        self.state = "starting"
        self._finished = anyio.Event()

    # --- lifetime -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._build(stack)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._tasks.start_soon(self._run)
            self._stack = stack.pop_all()
        self.state = "running" if self._arguments.delivers else "offline"
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        self.drain()
        if exc[0] is not None:
            self.cancel()
        try:
            if isinstance(exc[1], Exception):  # the caller's own, not to come out as a group
                await self._stack.__aexit__(None, None, None)
                return False
            return await self._stack.__aexit__(*exc)
        finally:
            self.state = "ended"
            self.takers.tell_the_end()

    async def finish(self, deadline_s: float) -> bool:
        """Drain, and cancel at the deadline; return whether everything under way was finished.

        Cancelled work is still in the spool.
        """
        self.drain()
        with anyio.move_on_after(deadline_s):
            await self._finished.wait()
        self.cancel()
        return self._finished.is_set()

    def cancel(self) -> None:
        """Stop now. Work under way is still in the spool."""
        self._tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Take nothing in and send nothing new; calls under way are finished.

        Leaving the context does this too, and waits; cancelling the wait loses nothing.
        """
        self.state = "draining"
        self._taking_in.drain()
        self.jobs.end()
        self.takers.drain()

    async def _run(self) -> None:
        async with anyio.create_task_group() as forever:
            forever.start_soon(self.spool.keep_tidy)
            forever.start_soon(self.jobs.run)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._taking_in.run)
                tasks.start_soon(self.takers.run)
            forever.cancel_scope.cancel()
        self._finished.set()

    # --- building -------------------------------------------------------------------------

    async def _build(self, stack: AsyncExitStack) -> None:
        """Build all parts, in the order in which they need each other."""
        settings, arguments = self._first_settings, self._arguments
        clocks, now_ms = arguments.clocks, arguments.clocks.now_ms
        self.spool = await _open_spool(settings, arguments, stack)
        gates = Gates(arguments.wire, clocks)
        builder = _UnitBuilder(
            self.spool, gates, clocks, arguments.relay_wire, lambda sync: self.jobs.keyed(sync)
        )
        self.takers = RunningTakers(self.spool, builder, delivers=arguments.delivers)
        stack.push_async_callback(self.takers.close)
        self.jobs = JobRunner(self.spool, self.takers, now_ms)
        self.upkeep = Upkeep(self.spool, self.takers, self.jobs, now_ms)
        self._taking_in = IntakePipeline(self.spool, settings.max_event_bytes)
        stack.callback(self._taking_in.close)
        self._reload = Reload(
            self.spool, self.takers, self._taking_in, self.jobs, self.upkeep.log_left
        )
        await self._reload.begin(settings)
        self.overview = _overview(self, gates)

    # --- using it -------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings by which it runs."""
        return self.takers.settings

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The syncs, by name."""
        return self.takers.streams

    @property
    def relays(self) -> Mapping[str, RelaySender]:
        """The relays that send, by name of the taker."""
        return {taker: running.sender for taker, running in self.takers.relays.items()}

    async def reload(self, settings: Settings) -> Effects:
        """Run by other settings from now on; return what that has changed. A change that is under
        way goes on where the wait for it is cancelled.

        Raises:
            SettingsError: a client cannot be built; nothing has changed.
            SpoolError: the disk fails; nothing has changed.
            Refused: the engine drains, or has ended.
        """
        return await self._reload.follow_apart(settings, self._tasks)

    @property
    def intake(self) -> SourceActor:
        """The intake for sources (``transports.contract.Intake``)."""
        return self._taking_in.source

    async def submit(
        self,
        events: Sequence[Mapping[str, Any] | bytes],
        *,
        api_key: str | None = None,
        sync: str | None = None,
    ) -> Receipt:
        """Take events in, in the form of Amplitude's HTTP V2 API; return when they are on disk.

        ``api_key`` names the Amplitude project, or ``sync`` the sync itself.

        Raises:
            BadEvents: some are malformed; none is stored.
            Refused: not now (the spool is full or failing, or the engine drains).
            UnknownApiKey: no sync takes this key.
            UnknownSync: there is no sync of this name.
        """
        heads, raws = _decoded(events, self.settings.max_event_bytes)
        batch = Batch(heads, raws, api_key=api_key, sync=sync, origin="submit")
        ticket = await self.intake.send(batch)
        return await ticket.wait()

    async def settled(self) -> None:
        """Wait until nothing is pending in any sync that delivers.

        Raises:
            Refused: the engine ended before that; pending events are kept.
        """
        await until_settled(self.takers, self._reload.over, lambda: self.state == "ended")

    async def relayed(self) -> None:
        """Wait until no request waits for Amplitude.

        Raises:
            Refused: the engine drains before that; what waits is kept.
        """
        await until_relayed(self.takers, self._reload.over)

    async def status(self) -> Status:
        """Return the accounting of all syncs and relays; see ``Overview.status``."""
        return await self.overview.status()


def _overview(engine: Engine, gates: Gates) -> Overview:
    """Return the overview of an engine; state and stopped intake are read at each look."""
    return Overview(
        EngineParts(
            spool=engine.spool,
            takers=engine.takers,
            sources=engine.sources,
            jobs=engine.jobs,
            gate_name=gates.name_of,
            now_ms=engine._arguments.clocks.now_ms,
            state=lambda: engine.state,
            intake_stopped=lambda: engine._taking_in.stopped,
        )
    )


def _decoded(
    events: Sequence[Mapping[str, Any] | bytes], max_event_bytes: int
) -> tuple[list[Head], list[bytes]]:
    """Return the heads and the bytes of events that are handed to ``submit``.

    Raises:
        BadEvents: some are malformed.
    """
    raws = (e if isinstance(e, bytes) else msgspec.json.encode(e) for e in events)
    decoded = decode_events(raws, max_event_bytes=max_event_bytes)
    if isinstance(decoded, BadUpload):
        raise BadEvents(decoded)
    return decoded


async def _open_spool(settings: Settings, arguments: _Arguments, stack: AsyncExitStack) -> Spool:
    """Lock the data directory and open the spool."""
    data_dir = Path(settings.data_dir)
    stack.enter_context(DataDir(data_dir))
    refuse_former_spools(data_dir)
    spool = Spool(
        data_dir,
        settings,
        now_ms=arguments.clocks.now_ms,
        inline=arguments.inline,
        store_type=arguments.store_type,
    )
    stack.push_async_callback(spool.close)
    return spool


def _workspace_key(token: Token) -> str:
    """Return the key under which the spool keeps a token's workspace."""
    return token_key("workspace", token)


class _UnitBuilder:
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
        syncs = list(syncs)
        self._gates.forget_others(syncs)
        self._workspaces.forget_others({_workspace_key(token_of(sync)) for sync in syncs})

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
        key = _workspace_key(token)
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
        self, settings: RelaySettings, part: SpoolPart, earlier: RelaySender | None
    ) -> RunningRelay:
        """Build a relay's sender. ``earlier``: the one that it is to follow."""
        clients, clocks = AsyncExitStack(), self._clocks
        if self._relay_wire is not None:
            wire = self._relay_wire(settings)
        else:
            wire = await clients.enter_async_context(amplitude_client_of(settings))
        sender = RelaySender(
            settings, part, wire, now_ms=clocks.now_ms, jitter=clocks.jitter, earlier=earlier
        )
        supervisor = Supervisor(sender.run, relay=settings.name, part="relay")

        def drain() -> None:
            sender.drain()
            supervisor.end()

        return RunningRelay(sender, supervisor, Unit(supervisor.run, drain, clients))
