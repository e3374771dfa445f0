"""The composition root: the only place that builds things.

As a library:

    async with Engine(settings) as engine:
        receipt = await engine.submit(events, api_key="…")     # returns when they are on disk
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import anyio
import msgspec
import structlog

from amplitude_intercom.engine.actors.source import SourceActor
from amplitude_intercom.engine.clients import (
    address_of,
    amplitude_client_of,
    client_of,
    most_calls,
    token_key,
    token_of,
)
from amplitude_intercom.engine.delivery.contacts.selection import Selection, follow_selection
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.loading import LoadedBytes
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.delivery.workspace import Workspaces
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.jobs import JobRunner
from amplitude_intercom.engine.pipeline import IntakePipeline, Pipeline, door_of
from amplitude_intercom.engine.relay.relay import Relay
from amplitude_intercom.engine.settings import Http, Intercom, Settings, Sync
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.spool.spool import Spool, TakerSpool
from amplitude_intercom.engine.spool.sqlite.files import former_spools
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.sqlite.reading import disk_bytes
from amplitude_intercom.engine.spool.store import Store, wall_clock_ms
from amplitude_intercom.engine.status import (
    GateStatus,
    RefusalCount,
    RelayStatus,
    SourceStatus,
    SpoolStatus,
    Status,
    SyncFacts,
    SyncStatus,
    TakerFacts,
    gate_status,
    read_left,
    read_relay_facts,
    read_sync_facts,
    relay_status,
    spool_status,
    sync_status,
)
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.token_facts import (
    counts_before,
    keep_limit,
    known_limit,
    workspace_of,
)
from amplitude_intercom.engine.upkeep import Upkeep
from amplitude_intercom.transports.amplitude_client import (
    AmplitudeWire,
)
from amplitude_intercom.transports.contract import Batch, Receipt, Source
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.intercom import Wire
from amplitude_intercom.transports.reasons import RefusalReason
from amplitude_intercom.transports.uploads import BadUpload, decode_events

_log = structlog.get_logger(__name__)

WireFactory = Callable[[Intercom], Wire]
RelayWireFactory = Callable[[RelaySettings], AmplitudeWire]


class BadEvents(ValueError):
    """Events handed to ``submit`` that Amplitude itself would refuse; none of them is stored.

    ``refusal`` lists every bad index under its field.
    """

    def __init__(self, refusal: BadUpload) -> None:
        super().__init__(msgspec.json.encode(refusal).decode())
        self.refusal = refusal


class Engine:
    """All syncs of one settings file, running while the context is open.

    Raises (on entering):
        SettingsError: the data directory cannot be used, or a sync is wired wrongly.
        DataDirInUse: another process has it.
        SpoolError: a spool cannot be opened.
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
    ) -> None:
        """Take checked settings. Nothing is opened before the context is entered.

        ``wire`` replaces the HTTPS client (the sandbox's in-process face has its shape),
        ``relay_wire`` that of relays; ``inline`` runs the spool in the loop's own thread; without
        ``deliver`` no call is made at all.
        """
        self.settings = settings
        self._wire = wire
        self._relay_wire = relay_wire
        self._now_ms = now_ms
        self._now_s = now_s
        self._jitter = jitter
        self._inline = inline
        self._delivers = deliver
        self._max_event_bytes = (settings.http or Http()).max_event_bytes
        self._syncs_of = _syncs_by_token(settings)
        self._data_dir = settings.data_path
        self._gate_names = _gate_names(self._syncs_of)
        self.streams: dict[str, Stream] = {}
        """The syncs, by name."""
        self._pipelines: dict[str, Pipeline] = {}
        """Those that deliver, by name of the sync; of one access token the same."""
        self.relays: dict[str, Relay] = {}
        """Those that send, by name of the taker."""
        self.relay_supervisors: dict[str, Supervisor] = {}
        self.sources: dict[str, Source] = {}
        """Sources that run, by name: whoever starts one notes it here, for ``status``."""
        self.supervisors: dict[str, Supervisor] = {}
        """What starts the sources again after a fault, by name of the source; noted likewise."""
        self.state = "starting"
        self._finished = anyio.Event()

    # --- lifetime -------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(DataDir(Path(self.settings.data_dir)))
            _refuse_former_spools(Path(self.settings.data_dir))
            self.spool = Spool(
                Path(self.settings.data_dir),
                self.settings,
                now_ms=self._now_ms,
                inline=self._inline,
            )
            stack.push_async_callback(self.spool.close)
            names = [sync.name for sync in self.settings.sync]
            relays = [relay.taker for relay in self.settings.relay]
            self._spools = spools = await self.spool.open_for([*names, *relays])
            self.streams = {s.name: Stream(s, spools[s.name]) for s in self.settings.sync}
            await self._follow_selections()
            await self._wire_pipelines(stack)
            await self._wire_relays(spools, stack)
            of_relays = {relay.taker: relay for relay in self.settings.relay}
            self.jobs = JobRunner(self.spool, self.streams, self._now_ms, of_relays)
            self.upkeep = Upkeep(self.spool, self.streams, self.takers, self.jobs, self._now_ms)
            await self.jobs.follow_mappings()
            await self._tell_left()
            doors = [door_of(stream) for stream in self.streams.values()]
            drop_oldest = {taker: relay.drops_oldest for taker, relay in of_relays.items()}
            self._taking_in = IntakePipeline(
                doors, self.spool, self._max_event_bytes, relays=drop_oldest
            )
            stack.callback(self._taking_in.close)
            self.intake = SourceActor(
                self._taking_in.inbox,
                list(self.streams),
                _syncs_by_key(self.settings),
                lambda: self._taking_in.stopped,
                _relays_by_key(self.settings),
            )
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._tasks.start_soon(self._run)
            self._stack = stack.pop_all()
        self.state = "running" if self._delivers else "offline"
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        self.drain()
        if exc[0] is not None:
            self._tasks.cancel_scope.cancel()
        try:
            if isinstance(exc[1], Exception):  # the caller's own, not to come out as a group
                await self._stack.__aexit__(None, None, None)
                return False
            return await self._stack.__aexit__(*exc)
        finally:
            self.state = "ended"
            for stream in self.streams.values():
                if stream.delivery is not None:
                    stream.delivery.feed.tell_the_end()

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

    async def finish(self, deadline_s: float) -> bool:
        """Drain, and cancel what is not done by the deadline; return whether all was done.

        Whatever is cancelled is still in the spool.
        """
        self.drain()
        with anyio.move_on_after(deadline_s):
            await self._finished.wait()
        self.cancel()
        return self._finished.is_set()

    def cancel(self) -> None:
        """Stop now. Whatever was under way is still in the spool."""
        self._tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Take nothing in, send nothing new; what is under way is finished.

        Leaving the context does this too, and waits; cancelling the wait loses nothing.
        """
        self.state = "draining"
        self._taking_in.drain()
        self.intake.close()
        self.jobs.end()
        for pipeline in set(self._pipelines.values()):
            pipeline.drain()
        for name, relay in self.relays.items():
            relay.drain()
            self.relay_supervisors[name].end()

    async def _tell_left(self) -> None:
        """Log what there is of syncs that have left the settings."""
        left = await self.spool.do(lambda store: read_left(store, self.takers))
        for name, there in left.items():
            _log.warning(
                "events wait of a sync or relay that is not in the settings: put it back, or"
                " `spool move OLD NEW` (not of a relay), or `spool drop OLD --yes`",
                sync=name,
                waiting=there.pending,
                dead_letters=there.dead,
            )

    def _delivers_to(self, sync: Sync) -> bool:
        return sync.enabled and self._delivers

    async def _follow_selections(self) -> None:
        """Take in which properties each sync brings to contacts from now on."""

        def work(store: Store) -> list[Selection]:
            return [
                follow_selection(
                    store, stream.spool.taker, stream.selected, stream.found_by, self._now_ms()
                )
                for stream in self.streams.values()
            ]

        selections = await self.spool.do(work)
        for stream, selection in zip(self.streams.values(), selections, strict=True):
            stream.selection = selection

    async def _wire_pipelines(self, stack: AsyncExitStack) -> None:
        """Wire the syncs that deliver: those that share an access token share gate and pipeline."""
        budget = LoadedBytes()
        workspaces = Workspaces(now_ms=self._now_ms, jitter=self._jitter)
        by_token: dict[tuple[str, str], list[Stream]] = {}
        for stream in self.streams.values():
            if self._delivers_to(stream.sync):
                by_token.setdefault(token_of(stream.sync), []).append(stream)
        for token, streams in by_token.items():
            gate = await self._gate(token, streams[0].sync, stack)
            pipeline = Pipeline(
                gate,
                streams,
                budget,
                now_ms=self._now_ms,
                jitter=self._jitter,
                keep_limit=partial(keep_limit, self.spool, token),
                find_workspace=partial(
                    workspaces.find, token_key("workspace", token), token[0], gate, streams[0].spool
                ),
            )
            self._pipelines |= {stream.sync.name: pipeline for stream in streams}

    async def _wire_relays(self, spools: Mapping[str, TakerSpool], stack: AsyncExitStack) -> None:
        """Wire the relays that send."""
        for relay in self.settings.relay if self._delivers else ():
            wire = await self._relay_wire_of(relay, stack)
            sender = Relay(
                relay, spools[relay.taker], wire, now_ms=self._now_ms, jitter=self._jitter
            )
            self.relays[relay.taker] = sender
            supervisor = Supervisor(sender.run, relay=relay.name, part="relay")
            self.relay_supervisors[relay.taker] = supervisor

    async def _relay_wire_of(self, relay: RelaySettings, stack: AsyncExitStack) -> AmplitudeWire:
        if self._relay_wire is not None:
            return self._relay_wire(relay)
        return await stack.enter_async_context(amplitude_client_of(relay))

    @property
    def takers(self) -> list[str]:
        """All that the settings name who keep something of a batch."""
        return [*self.streams, *(relay.taker for relay in self.settings.relay)]

    async def _gate(self, token: tuple[str, str], sync: Sync, stack: AsyncExitStack) -> Gate:
        """Return the gate of an access token, as its first sync says."""
        return Gate(
            await self._wire_of(sync, stack),
            requests_per_minute=sync.intercom.requests_per_minute,
            max_in_flight=most_calls(sync.intercom, len(self._syncs_of)),
            probe_first_s=sync.delivery.probe_first_s,
            probe_most_s=sync.delivery.probe_most_s,
            now_s=self._now_s,
            jitter=self._jitter,
            name=self._name_of(token),
            known_limit=await known_limit(self.spool, token),
            counts_before=await counts_before(self.spool, token),
        )

    async def _wire_of(self, sync: Sync, stack: AsyncExitStack) -> Wire:
        """Build the client of a sync.

        Raises:
            SettingsError: it cannot be built; an error's own text could quote the token.
        """
        try:
            if self._wire:
                return self._wire(sync.intercom)
            return await stack.enter_async_context(client_of(sync.intercom, len(self._syncs_of)))
        except Exception as fault:
            raise SettingsError(
                f"sync `{sync.name}`: sync.intercom makes no client: {type(fault).__name__}"
            ) from fault

    def _name_of(self, token: tuple[str, str]) -> str:
        """Return the host that an access token is for, and the syncs that use it, for logs."""
        syncs = self._syncs_of[token]
        host = token[0].partition("://")[2]
        return f"{host} ({', '.join(syncs[:3])}{', …' if len(syncs) > 3 else ''})"

    # --- taking events in -----------------------------------------------------------------

    async def submit(
        self,
        events: Sequence[Mapping[str, Any] | bytes],
        *,
        api_key: str | None = None,
        sync: str | None = None,
    ) -> Receipt:
        """Take events in, as HTTP V2 spells them; return when they are on disk.

        ``api_key`` names the Amplitude project, or ``sync`` the sync itself.

        Raises:
            BadEvents: some are not what Amplitude takes; none is stored.
            Refused: not now (the spool is full or failing, or the engine drains).
            UnknownApiKey: no sync takes this key.
            UnknownSync: there is no sync of this name.
        """
        decoded = decode_events(
            (e if isinstance(e, bytes) else msgspec.json.encode(e) for e in events),
            max_event_bytes=self._max_event_bytes,
        )
        if isinstance(decoded, BadUpload):
            raise BadEvents(decoded)
        heads, raws = decoded
        ticket = await self.intake.send(
            Batch(heads, raws, api_key=api_key, sync=sync, origin="submit")
        )
        return await ticket.wait()

    async def settled(self) -> None:
        """Wait until nothing is pending in any sync that delivers.

        Raises:
            Refused: the engine has ended before that; what is pending is kept.
        """
        for stream in self.streams.values():
            while stream.delivery is not None and stream.spool.counters["pending"]:
                if self.state == "ended":
                    raise Refused(RefusalReason.DRAINING)
                await stream.delivery.feed.progress()

    async def relayed(self) -> None:
        """Wait until nothing waits for Amplitude."""
        for relay in self.relays.values():
            await relay.settled()

    @property
    def unready(self) -> dict[str, str]:
        """Why events are not taken now, by sync; empty when they are. ``status`` says more."""
        if self.state != "running":
            return dict.fromkeys(self.streams, self.state)
        if self._taking_in.stopped:
            return dict.fromkeys(self.streams, str(RefusalReason.INTERNAL))
        troubles = {name: stream.spool.trouble for name, stream in self.streams.items()}
        return {name: trouble.reason for name, trouble in troubles.items() if trouble}

    @property
    def stopped(self) -> dict[str, str]:
        """Which fault of this program keeps a sync from running now, by sync."""
        if self._taking_in.stopped:
            return dict.fromkeys(self.streams, self._taking_in.stopped)
        stopped = {name: pipeline.stopped(name) for name, pipeline in self._pipelines.items()}
        return {n: fault for n, fault in (stopped | self.jobs.stopped).items() if fault}

    @property
    def stopped_sources(self) -> dict[str, str]:
        """Which fault of this program keeps a source from running now, by source."""
        return {name: fault for name, s in self.supervisors.items() if (fault := s.stopped)}

    @property
    def ready(self) -> bool:
        """Whether events are taken now, of one sync at least: a full one closes no other's door."""
        unready = self.unready
        return not unready or len(unready) < len(self.streams)

    # --- looking at it --------------------------------------------------------------------

    async def status(self) -> Status:
        """Return the accounting of all syncs."""
        facts, spool, relays = await self._facts()
        syncs = [
            self._sync_status(stream, facts.get(name, SyncFacts()))
            for name, stream in self.streams.items()
        ]
        refusals: Counter[tuple[str, str]] = Counter()
        refused_keys: Counter[str] = Counter()
        for source in self.sources.values():
            refusals.update(getattr(source, "refusals", {}))
            refused_keys.update(getattr(source, "refused_keys", {}))
        counted = [RefusalCount(*kind, count) for kind, count in sorted(refusals.items())]
        sources = [SourceStatus(n, s.stopped, s.faults) for n, s in self.supervisors.items()]
        return Status(
            self.state,
            self._data_dir,
            syncs,
            spool,
            counted,
            dict(refused_keys),
            sources,
            [self._relay_status(relay, relays) for relay in self.settings.relay],
        )

    def _relay_status(self, relay: RelaySettings, facts: Mapping[str, TakerFacts]) -> RelayStatus:
        taker = relay.taker
        spool = self._spools[taker]
        return relay_status(
            relay,
            spool.counters,
            facts.get(taker, TakerFacts()),
            address=address_of(relay),
            now_ms=self._now_ms(),
            sender=self.relays.get(taker),
            trouble=spool.trouble or self.spool.damage,
            supervisor=self.relay_supervisors.get(taker),
        )

    def _sync_status(self, stream: Stream, facts: SyncFacts) -> SyncStatus:
        name, spool, delivery = stream.sync.name, stream.spool, stream.delivery
        pipeline = self._pipelines.get(name)
        return sync_status(
            stream.sync,
            spool.counters,
            facts,
            now_ms=self._now_ms(),
            trouble=spool.trouble or self.spool.damage,
            latency_s=delivery.settlement.latency_s if delivery else (),
            unknown_attributes=delivery.unknown_attributes if delivery else {},
            adjusted=spool.adjustments.total,
            gate=self._gate_status(stream),
            stopped=self.stopped.get(name, ""),
            rekeying=self.jobs.rekeying.get(name, 0),
            faults=pipeline.faults(name) if pipeline else 0,
        )

    async def _facts(self) -> tuple[dict[str, SyncFacts], SpoolStatus, dict[str, TakerFacts]]:
        """Return what the tables say of each sync, of the spool as a whole, and of each relay.

        Nothing where the file cannot be read now.
        """
        takers = {name: stream.spool.taker for name, stream in self.streams.items()}
        syncs = {name: stream.sync for name, stream in self.streams.items()}
        trouble = self.spool.trouble or self.spool.damage
        said = "" if trouble is None else str(trouble)
        size_bytes = disk_bytes(self.spool.path)

        def job(store: Store) -> tuple[dict[str, SyncFacts], SpoolStatus, dict[str, TakerFacts]]:
            facts = {
                name: read_sync_facts(store, taker, workspace_of(store, syncs[name]))
                for name, taker in takers.items()
            }
            used_bytes = self.spool.used_bytes(store)
            max_bytes = self.settings.spool.max_bytes
            status = spool_status(store, self.takers, max_bytes, self._now_ms())
            status = msgspec.structs.replace(
                status, disk_bytes=size_bytes, used_bytes=used_bytes, trouble=said
            )
            names = [relay.taker for relay in self.settings.relay]
            relays = {n: read_relay_facts(store, store.known_taker(n)) for n in names}
            return facts, status, relays

        with suppress(SpoolError):  # which ``trouble`` says
            return await self.spool.look(job)
        return {}, SpoolStatus(size_bytes, trouble=said), {}

    def _gate_status(self, stream: Stream) -> GateStatus | None:
        if stream.gate is None:
            return None
        return gate_status(stream.gate, self._gate_names[token_of(stream.sync)])


def _refuse_former_spools(data_dir: Path) -> None:
    """Refuse a folder that holds spools of 0.1.0, which had one for each sync.

    Raises:
        SettingsError: it does.
    """
    found = former_spools(data_dir)
    if found:
        names = ", ".join(path.name for path in found[:3])
        raise SettingsError(
            f"data_dir: {data_dir} holds spools of 0.1.0 ({names}), which are not read any more:"
            " deliver what waits in them with 0.1.0 first, then move them away"
        )


def _syncs_by_token(settings: Settings) -> dict[tuple[str, str], list[str]]:
    """Return the names of the syncs that use each access token."""
    found: dict[tuple[str, str], list[str]] = {}
    for sync in settings.sync:
        found.setdefault(token_of(sync), []).append(sync.name)
    return found


def _gate_names(tokens: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return a name without secrets for each access token: ``HOST#N``."""
    return {
        token: f"{urlsplit(token[0]).netloc}#{number}"
        for number, token in enumerate(tokens, start=1)
    }


def _syncs_by_key(settings: Settings) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for sync in settings.sync:
        for key in sync.amplitude_api_keys:
            keys.setdefault(key.reveal(), []).append(sync.name)
    return keys


def _relays_by_key(settings: Settings) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for relay in settings.relay:
        for key in settings.keys_of(relay) if relay.enabled else ():
            keys.setdefault(key.reveal(), []).append(relay.taker)
    return keys
