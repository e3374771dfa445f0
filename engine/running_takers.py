"""The syncs and relays that run, and the units that deliver them.

Rules
=====
1. This is the only place that knows which of them run.
2. ``open`` builds all that can fail for new settings, and changes nothing that runs. ``stop`` ends
   those that are gone or changed; ``adopt`` makes the settings those of today; ``start`` starts
   the new ones.
3. Unchanged syncs are not touched, but where the gate of their access token has to be another.
4. A fault at the end of one costs that one alone: a sync of which something may be left is not
   started again before the settings change once more, and its end is made up for then.
5. Figures that only grow go on through changes: they are of the sync, the relay or the token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup

from amplitude_intercom.engine.clients import GateSettings, Token, gate_settings_of, token_of
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.internal_faults import describe, internal_failure
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.settings import Relay, Settings, Sync
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.units import Unit


class TokenPipeline(Protocol):
    """The pipeline of an access token, as its syncs come and go (``engine.pipeline.Pipeline``)."""

    def add(self, stream: Stream) -> None:
        """Deliver a sync, too, from now on."""
        ...

    async def remove(self, name: str) -> None:
        """Deliver a sync no more; return when its turns under way are settled."""
        ...

    def stopped(self, sync: str) -> str:
        """Return the fault of this program that stops a sync now; empty: none."""
        ...

    def faults(self, sync: str) -> int:
        """Return the number of faults that have stopped a sync."""
        ...


class RunningPipeline(NamedTuple):
    """The pipeline of an access token, with the settings that its gate was built by."""

    pipeline: TokenPipeline
    settings: GateSettings
    unit: Unit


class RunningRelay(NamedTuple):
    """A relay that sends."""

    sender: RelaySender
    supervisor: Supervisor
    unit: Unit


class Builder(Protocol):
    """Builds units, none of which runs yet (``engine.app``)."""

    def name_tokens(self, syncs: Iterable[Sync]) -> None:
        """Give a name to each access token of these syncs that has none."""
        ...

    def forget_others(self, syncs: Iterable[Sync]) -> None:
        """Forget the access tokens that none of these syncs has."""
        ...

    async def pipeline(self, token: Token, sync: Sync, part: SpoolPart) -> RunningPipeline:
        """Build the pipeline of an access token by the settings of its first sync.

        Raises:
            SettingsError: its client cannot be built.
            SpoolError: the spool cannot be read.
        """
        ...

    async def relay(
        self, settings: Relay, part: SpoolPart, earlier: RelaySender | None
    ) -> RunningRelay:
        """Build a relay's sender. ``earlier``: the one that it is to follow."""
        ...


class Opened(msgspec.Struct):
    """What was built for new settings: ``streams`` by sync, the new and changed ones; ``pipelines``
    by token and ``relays`` by taker, those that are to run instead of others or beside them."""

    settings: Settings
    parts: Mapping[str, SpoolPart]
    streams: dict[str, Stream] = {}
    pipelines: dict[Token, RunningPipeline] = {}
    relays: dict[str, RunningRelay] = {}

    async def close(self) -> None:
        """Close the clients: nothing of it will run."""
        for unit in _units_of(self.pipelines, self.relays):
            await unit.close()


class RunningTakers:
    """See the module's docstring. ``parts`` and ``relays`` by taker; ``pipelines`` by sync that is
    delivered; ``streams`` by sync."""

    def __init__(self, spool: Spool, builder: Builder, *, delivers: bool) -> None:
        """Without ``delivers`` no call is made."""
        self._spool = spool
        self._builder = builder
        self._delivers = delivers
        self._by_token: dict[Token, RunningPipeline] = {}
        self._tasks: TaskGroup | None = None
        self._ending = anyio.Event()
        self.settings = Settings(sync=[])
        self.parts: dict[str, SpoolPart] = {}
        self.streams: dict[str, Stream] = {}
        self.pipelines: dict[str, TokenPipeline] = {}
        self.relays: dict[str, RunningRelay] = {}
        self._unended: dict[str, tuple[TokenPipeline, str]] = {}
        """Syncs of which something may still be delivered, with the fault at their end."""
        self.unstarted: dict[str, str] = {}
        """Syncs that are not delivered for a fault of this program, with the fault."""

    async def run(self) -> None:
        """Run all units, those that are started meanwhile too, until drained and all are over."""
        async with anyio.create_task_group() as self._tasks:
            for unit in self._units():
                self._tasks.start_soon(unit.run)
            await self._ending.wait()

    def delivers(self, name: str) -> bool:
        """Whether a sync is delivered, or will be again after a change that is under way."""
        stream = self.streams.get(name)
        is_wanted = stream is not None and stream.sync.enabled and name not in self.unstarted
        return self._delivers and is_wanted

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is started."""
        return self._ending.is_set()

    def drain(self) -> None:
        """Send nothing new; calls under way are finished."""
        self._ending.set()
        for unit in self._units():
            unit.drain()

    def tell_the_end(self) -> None:
        """Wake all that wait for progress of a delivery: there will be none."""
        for stream in self.streams.values():
            stream.tell_the_end()

    async def close(self) -> None:
        """Close the clients of units that were never run."""
        if self._tasks is None:
            for unit in self._units():
                await unit.close()

    def _units(self) -> list[Unit]:
        return _units_of(self._by_token, self.relays)

    # --- following settings ---------------------------------------------------------------

    async def open(self, settings: Settings) -> Opened:
        """Build what new settings need beside what runs.

        Raises:
            SettingsError: a client cannot be built.
            SpoolError: the spool cannot be read, or written.
        """
        names = [sync.name for sync in settings.sync] + [relay.taker for relay in settings.relay]
        opened = Opened(settings, await self._spool.open_for(names))
        await self._open_streams(opened)
        try:
            self._builder.name_tokens(settings.sync)
            if self._delivers:
                await self._open_units(opened)
        except BaseException:
            await opened.close()
            self._builder.forget_others(self.settings.sync)
            raise
        return opened

    async def _open_streams(self, opened: Opened) -> None:
        for sync in opened.settings.sync:
            await anyio.lowlevel.checkpoint()  # a thousand take half a second of the loop's thread
            before = self.streams.get(sync.name)
            if before is None or before.sync != sync or sync.name in self.unstarted:
                figures = before.figures if before else None
                opened.streams[sync.name] = Stream(sync, opened.parts[sync.name], figures)

    async def _open_units(self, opened: Opened) -> None:
        for token, sync in _first_syncs(opened.settings.sync).items():
            running = self._by_token.get(token)
            if running is None or running.settings != gate_settings_of(sync):
                opened.pipelines[token] = await self._builder.pipeline(
                    token, sync, opened.parts[sync.name]
                )
        for relay in opened.settings.relay:
            before = self.relays.get(relay.taker)
            if before is None or before.sender.settings != relay:
                sender = await self._builder.relay(
                    relay, opened.parts[relay.taker], before.sender if before else None
                )
                sender.supervisor.faults = before.supervisor.faults if before else 0
                opened.relays[relay.taker] = sender

    async def stop(self, opened: Opened) -> None:
        """End the deliveries that are gone or changed; return when their calls are settled."""
        kept = _first_syncs(opened.settings.sync).keys() - opened.pipelines.keys()
        unchanged = {sync.name for sync in opened.settings.sync} - opened.streams.keys()
        leaving = [
            name
            for name in self.pipelines
            if name not in unchanged or token_of(self.streams[name].sync) not in kept
        ]
        relays = {relay.taker for relay in opened.settings.relay} - opened.relays.keys()
        async with anyio.create_task_group() as ends:
            for taker in self.relays.keys() - relays:
                ends.start_soon(_end_apart, self.relays[taker].unit.end, "a relay", taker)
            for name in [*leaving, *self._unended]:
                ends.start_soon(self._stop_sync, name)
        for token in self._by_token.keys() - kept:
            await _end_apart(self._by_token.pop(token).unit.end, "a pipeline", token[0])
        for taker in self.relays.keys() - relays:
            del self.relays[taker]

    async def _stop_sync(self, name: str) -> None:
        if name in self._unended:
            pipeline, _ = self._unended.pop(name)
        else:
            pipeline, stream = self.pipelines.pop(name), self.streams[name]
            stream.figures.faults += pipeline.faults(name)
            stream.delivery = None
        fault = await _end_apart(partial(pipeline.remove, name), "a sync", name)
        if fault:
            self._unended[name] = pipeline, fault

    def adopt(self, opened: Opened) -> None:
        """Let the new settings be those of today; the deliveries that they end are stopped."""
        self.settings = opened.settings
        self.parts = dict(opened.parts)
        self.streams = {
            sync.name: opened.streams.get(sync.name) or self.streams[sync.name]
            for sync in opened.settings.sync
        }
        ended_ill = self._unended.items()
        self.unstarted = {name: fault for name, (_, fault) in ended_ill if name in self.streams}
        self._builder.forget_others(opened.settings.sync)

    def start(self, opened: Opened) -> None:
        """Run what was built, but for syncs that are ``unstarted``."""
        self._by_token |= opened.pipelines
        self.relays |= opened.relays
        for name, stream in self.streams.items():
            is_new = name not in self.pipelines and name not in self.unstarted
            if self._delivers and stream.sync.enabled and is_new:
                pipeline = self.pipelines[name] = self._by_token[token_of(stream.sync)].pipeline
                pipeline.add(stream)
                # The faults of a pipeline count for each of its syncs, but each once.
                stream.figures.faults -= pipeline.faults(name)
        for unit in _units_of(opened.pipelines, opened.relays):
            if self._tasks is not None:
                self._tasks.start_soon(unit.run)


async def _end_apart(end: Callable[[], Awaitable[None]], what: str, name: str) -> str:
    """End something; return the fault of this program at that, which is logged, or nothing."""
    try:
        await end()
    except Exception as fault:
        internal_failure(fault, ending=what, name=name)
        return describe(fault)
    return ""


def _units_of(
    pipelines: Mapping[Token, RunningPipeline], relays: Mapping[str, RunningRelay]
) -> list[Unit]:
    return [p.unit for p in pipelines.values()] + [r.unit for r in relays.values()]


def _first_syncs(syncs: Iterable[Sync]) -> dict[Token, Sync]:
    """Return the first enabled sync of each access token."""
    found: dict[Token, Sync] = {}
    for sync in syncs:
        if sync.enabled:
            found.setdefault(token_of(sync), sync)
    return found
