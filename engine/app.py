"""The composition root: joins the parts of an engine, and builds those that no other part builds.

As a library:

    async with Engine(settings) as engine:
        receipt = await engine.submit(events, api_key="…")     # returns when they are on disk
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
import msgspec

from amplitude_intercom.engine.actors.source import SourceActor
from amplitude_intercom.engine.clients import Token, amplitude_client_of, token_key, token_of
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.delivery.workspaces import Workspaces
from amplitude_intercom.engine.gates import Clocks, Gates, WireFactory
from amplitude_intercom.engine.intake_pipeline import IntakePipeline
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.job_slices import JobSync
from amplitude_intercom.engine.overview import EngineParts, Overview
from amplitude_intercom.engine.pipeline import Pipeline
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.sources import RunningSource
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.sqlite.spool_file import refuse_former_spools
from amplitude_intercom.engine.spool.store import Store, wall_clock_ms
from amplitude_intercom.engine.status import Status
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.token_facts import keep_limit
from amplitude_intercom.engine.upkeep import Upkeep
from amplitude_intercom.transports.amplitude import Head
from amplitude_intercom.transports.amplitude_client import AmplitudeWire
from amplitude_intercom.transports.contract import Batch, Receipt
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason
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


class _Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of an engine beside its settings; see ``Engine``."""

    wire: WireFactory | None
    relay_wire: RelayWireFactory | None
    clocks: Clocks
    inline: bool
    delivers: bool
    store_type: type[Store]


class Engine:
    """All syncs and relays of one settings file, running while the context is open.

    ``streams``: the syncs, by name. ``relays``: those that send, by name of the taker.
    ``sources``: those that run, by name; noted here by the code that starts them.
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
        self.settings = settings
        clocks = Clocks(now_ms, now_s, jitter)
        self._arguments = _Arguments(
            wire=wire,
            relay_wire=relay_wire,
            clocks=clocks,
            inline=inline,
            delivers=deliver,
            store_type=store_type,
        )
        self.streams: dict[str, Stream] = {}
        self._pipelines: dict[str, Pipeline] = {}
        self.relays: dict[str, RelaySender] = {}
        self.relay_supervisors: dict[str, Supervisor] = {}
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
            for stream in self.streams.values():
                stream.tell_the_end()

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
        for pipeline in set(self._pipelines.values()):
            pipeline.drain()
        for name, relay in self.relays.items():
            relay.drain()
            self.relay_supervisors[name].end()

    async def _run(self) -> None:
        async with anyio.create_task_group() as forever:
            forever.start_soon(self.spool.keep_tidy)
            forever.start_soon(self.jobs.run)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._taking_in.run)
                for pipeline in set(self._pipelines.values()):
                    tasks.start_soon(pipeline.run, self.jobs.keyed)
                for supervisor in self.relay_supervisors.values():
                    tasks.start_soon(supervisor.run)
            forever.cancel_scope.cancel()
        self._finished.set()

    # --- building -------------------------------------------------------------------------

    async def _build(self, stack: AsyncExitStack) -> None:
        """Build all parts, in the order in which they need each other."""
        settings, arguments = self.settings, self._arguments
        clocks, now_ms = arguments.clocks, arguments.clocks.now_ms
        self.spool, spools = await _open_spool(settings, arguments, stack)
        self.streams |= {sync.name: Stream(sync, spools[sync.name]) for sync in settings.sync}
        streams = list(self.streams.values())
        await _follow_selections(self.spool, streams, now_ms())
        gates = Gates(settings, arguments.wire, clocks)
        if arguments.delivers:
            self._pipelines |= await _pipelines(streams, self.spool, gates, clocks, stack)
            self.relays |= await _relays(settings, arguments, spools, stack)
        self.relay_supervisors |= {
            taker: Supervisor(relay.run, relay=relay.settings.name, part="relay")
            for taker, relay in self.relays.items()
        }
        self.jobs = JobRunner(self.spool, _job_syncs(streams), now_ms, settings.relay)
        self.upkeep = Upkeep(self.spool, self.streams, list(spools), self.jobs, now_ms)
        await self.jobs.follow_mappings()
        await self.upkeep.log_left()
        self._taking_in = IntakePipeline(settings, streams, self.spool)
        stack.callback(self._taking_in.close)
        self.overview = _overview(self, spools, gates)

    # --- using it -------------------------------------------------------------------------

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
        for stream in self.streams.values():
            while stream.delivery is not None and stream.spool.counters["pending"]:
                if self.state == "ended":
                    raise Refused(RefusalReason.DRAINING)
                await stream.delivery.feed.progress()

    async def relayed(self) -> None:
        """Wait until no request waits for Amplitude."""
        for relay in self.relays.values():
            await relay.settled()

    async def status(self) -> Status:
        """Return the accounting of all syncs and relays; see ``Overview.status``."""
        return await self.overview.status()


def _overview(engine: Engine, spools: Mapping[str, SpoolPart], gates: Gates) -> Overview:
    """Return the overview of an engine; state and stopped intake are read at each look."""
    return Overview(
        EngineParts(
            settings=engine.settings,
            spool=engine.spool,
            spools=spools,
            streams=engine.streams,
            deliveries=engine._pipelines,
            relays=engine.relays,
            relay_supervisors=engine.relay_supervisors,
            sources=engine.sources,
            jobs=engine.jobs,
            gate_name=gates.name_of,
            now_ms=engine._arguments.clocks.now_ms,
            state=lambda: engine.state,
            intake_stopped=lambda: engine._taking_in.stopped,
        )
    )


def _job_syncs(streams: Sequence[Stream]) -> dict[str, JobSync]:
    """Return the syncs as jobs see them, by name."""
    return {s.sync.name: JobSync(s.sync, s.rules.admission) for s in streams}


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


async def _open_spool(
    settings: Settings, arguments: _Arguments, stack: AsyncExitStack
) -> tuple[Spool, Mapping[str, SpoolPart]]:
    """Lock the data directory and open the spool; return it, and each taker's part of it."""
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
    syncs = [sync.name for sync in settings.sync]
    return spool, await spool.open_for([*syncs, *(relay.taker for relay in settings.relay)])


async def _follow_selections(spool: Spool, streams: Sequence[Stream], now_ms: int) -> None:
    """Let every sync know the properties that it brings to contacts from now on."""
    selections = await spool.do(
        lambda store: [stream.follow_selection(store, now_ms) for stream in streams]
    )
    for stream, selection in zip(streams, selections, strict=True):
        stream.selection = selection


async def _pipelines(
    streams: Sequence[Stream], spool: Spool, gates: Gates, clocks: Clocks, stack: AsyncExitStack
) -> dict[str, Pipeline]:
    """Build a gate and a pipeline for each access token; return the pipelines by enabled sync."""
    budget = LoadedBytes()
    workspaces = Workspaces(now_ms=clocks.now_ms, jitter=clocks.jitter)
    by_token: dict[Token, list[Stream]] = {}
    for stream in streams:
        if stream.sync.enabled:
            by_token.setdefault(token_of(stream.sync), []).append(stream)
    found: dict[str, Pipeline] = {}
    for token, of_token in by_token.items():
        gate = await gates.build(token, of_token[0].sync, spool, stack)
        key = token_key("workspace", token)
        pipeline = Pipeline(
            gate,
            of_token,
            budget,
            now_ms=clocks.now_ms,
            jitter=clocks.jitter,
            keep_limit=partial(keep_limit, spool, token),
            find_workspace=partial(workspaces.find, key, token[0], gate, of_token[0].spool),
        )
        found |= {stream.sync.name: pipeline for stream in of_token}
    return found


async def _relays(
    settings: Settings,
    arguments: _Arguments,
    spools: Mapping[str, SpoolPart],
    stack: AsyncExitStack,
) -> dict[str, RelaySender]:
    """Build a sender for each relay; return them by taker."""
    found = {}
    for relay in settings.relay:
        if arguments.relay_wire is not None:
            wire = arguments.relay_wire(relay)
        else:
            wire = await stack.enter_async_context(amplitude_client_of(relay))
        clocks = arguments.clocks
        found[relay.taker] = RelaySender(
            relay, spools[relay.taker], wire, now_ms=clocks.now_ms, jitter=clocks.jitter
        )
    return found
