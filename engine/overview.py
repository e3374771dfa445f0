"""The state of a running engine for people and monitors: readiness, faults, the accounting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from amplitude_intercom.engine.clients import address_of
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.loop_lag import LoopLag
from amplitude_intercom.engine.running_takers import RunningTakers
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.sources import RunningSource
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.sqlite.snapshots import disk_bytes, disk_free_bytes
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.status import (
    GateStatus,
    LoopStatus,
    RefusalCount,
    RelayStatus,
    SourceStatus,
    SpoolStatus,
    Status,
    SyncStatus,
)
from amplitude_intercom.engine.status_reading import (
    SyncFacts,
    TakerFacts,
    gate_status,
    http_status,
    read_relay_facts,
    read_shared_facts,
    read_sync_facts,
    relay_status,
    spool_status,
    sync_status,
)
from amplitude_intercom.engine.token_facts import workspace_of
from amplitude_intercom.transports.reasons import RefusalReason

LOOK_WITHIN_S: Final = 5.0
"""Seconds that a status waits for the disk; then it is given without what is there."""

DISK_HANGS: Final = "the disk does not answer: it cannot be read"

SYNCS_AT_ONCE: Final = 50
"""Syncs whose status is put together in one step of the event loop: a millisecond or two."""


class EngineParts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running engine that an overview looks at.

    ``sources`` by name. ``gate_name``: returns the name of a sync's access token, without secrets.
    ``state``: returns the engine's.
    ``intake_stopped``: returns the fault of this program that stops intake, or an empty text.
    """

    spool: Spool
    takers: RunningTakers
    sources: Mapping[str, RunningSource]
    jobs: JobRunner
    gate_name: Callable[[Sync], str]
    now_ms: Callable[[], int]
    state: Callable[[], str]
    intake_stopped: Callable[[], str]

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The syncs, by name."""
        return self.takers.streams


class _Tables(msgspec.Struct, frozen=True):
    """Facts from the spool's tables; ``syncs`` and ``relays`` by taker, empty if unreadable."""

    spool: SpoolStatus
    syncs: Mapping[str, SyncFacts] = {}
    relays: Mapping[str, TakerFacts] = {}


class Overview:
    """Reads the state of a running engine; changes nothing."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._looking: asyncio.Task[_Tables] | None = None
        self.loop_lag = LoopLag()
        """Measured by the daemon; empty where the loop is another program's."""

    @property
    def state(self) -> str:
        """The state of the engine."""
        return self._parts.state()

    @property
    def takers(self) -> list[str]:
        """The syncs and relays of the settings, by name of the taker."""
        return list(self._parts.takers.parts)

    # --- readiness ------------------------------------------------------------------------

    @property
    def unready(self) -> dict[str, str]:
        """The reasons for which events are refused now, by sync; empty: none is refused."""
        parts = self._parts
        if parts.state() != "running":
            return dict.fromkeys(parts.streams, parts.state())
        if parts.intake_stopped():
            return dict.fromkeys(parts.streams, str(RefusalReason.INTERNAL))
        troubles = {name: stream.spool.trouble for name, stream in parts.streams.items()}
        return {name: trouble.reason for name, trouble in troubles.items() if trouble}

    @property
    def ready(self) -> bool:
        """Whether at least one sync takes events: a full one closes no other's door."""
        unready = self.unready
        return not unready or len(unready) < len(self._parts.streams)

    @property
    def stopped(self) -> dict[str, str]:
        """The faults of this program that stop syncs now, by sync."""
        parts = self._parts
        if fault := parts.intake_stopped():
            return dict.fromkeys(parts.streams, fault)
        stopped = {name: line.stopped(name) for name, line in parts.takers.pipelines.items()}
        every = stopped | parts.jobs.stopped | parts.takers.unstarted
        return {name: fault for name, fault in every.items() if fault}

    @property
    def stopped_sources(self) -> dict[str, str]:
        """The faults of this program that stop sources now, by source."""
        sources = self._parts.sources.items()
        return {name: fault for name, s in sources if (fault := s.supervisor.stopped)}

    # --- the accounting -------------------------------------------------------------------

    async def status(self) -> Status:
        """Return the accounting of all syncs, relays and sources, and of the spool.

        Facts of a spool that cannot be read now are left out; its ``trouble`` tells why.
        """
        parts, tables = self._parts, await self._tables()
        refusals: Counter[tuple[str, str]] = Counter()
        refused_keys: Counter[str] = Counter()
        for source, _ in parts.sources.values():
            refusals.update(getattr(source, "refusals", {}))
            refused_keys.update(getattr(source, "refused_keys", {}))
        return Status(
            parts.state(),
            parts.takers.settings.data_path,
            await self._sync_statuses(tables.syncs),
            tables.spool,
            [RefusalCount(*kind, count) for kind, count in sorted(refusals.items())],
            dict(refused_keys),
            [
                SourceStatus(name, s.stopped, s.faults, http_status(source))
                for name, (source, s) in parts.sources.items()
            ],
            [self._relay_status(relay, tables.relays) for relay in parts.takers.settings.relay],
            LoopStatus(self.loop_lag.value, self.loop_lag.longest_s),
        )

    async def _sync_statuses(self, facts: Mapping[str, SyncFacts]) -> list[SyncStatus]:
        """Return the status of each sync. Each is of one instant, and others work in between."""
        streams, stopped, found = self._parts.streams, self.stopped, []
        gates: dict[Gate, GateStatus] = {}
        for n, name in enumerate(list(streams), 1):
            if name in streams:  # a reload may have taken it away meanwhile
                found.append(self._sync_status(streams[name], facts, stopped, gates))
            if n % SYNCS_AT_ONCE == 0:
                await checkpoint()
        return found

    def _relay_status(self, relay: RelaySettings, facts: Mapping[str, TakerFacts]) -> RelayStatus:
        parts, taker = self._parts, relay.taker
        spool, running = parts.takers.parts[taker], parts.takers.relays.get(taker)
        return relay_status(
            relay,
            spool.counters,
            facts.get(taker, TakerFacts()),
            address=address_of(relay),
            now_ms=parts.now_ms(),
            sender=running.sender if running else None,
            trouble=spool.trouble or parts.spool.damage,
            supervisor=running.supervisor if running else None,
        )

    def _sync_status(
        self,
        stream: Stream,
        facts: Mapping[str, SyncFacts],
        stopped: Mapping[str, str],
        gates: dict[Gate, GateStatus],
    ) -> SyncStatus:
        """Return the status of a sync. ``gates``: of the syncs so far, since many share one."""
        parts, name = self._parts, stream.sync.name
        pipeline, gate = parts.takers.pipelines.get(name), stream.gate
        if gate is not None and gate not in gates:
            gates[gate] = gate_status(gate, parts.gate_name(stream.sync))
        return sync_status(
            stream.sync,
            stream.spool.counters,
            facts.get(name, SyncFacts()),
            now_ms=parts.now_ms(),
            trouble=stream.spool.trouble or parts.spool.damage,
            figures=stream.figures,
            adjusted=stream.spool.tally.adjusted,
            gate=None if gate is None else gates[gate],
            stopped=stopped.get(name, ""),
            rekeying=parts.jobs.rekeying.get(name, 0),
            faults=stream.figures.faults + (pipeline.faults(name) if pipeline else 0),
        )

    async def _tables(self) -> _Tables:
        """Read the facts of all tables in one look, one look at a time."""
        # Each look has a thread of its own while it lasts: at a disk that hangs they would be used
        # up, by the monitors alone.
        with anyio.move_on_after(LOOK_WITHIN_S):
            while self._looking is not None and not self._looking.done():
                await asyncio.wait([self._looking])
            self._looking = asyncio.create_task(self._look())
            return await asyncio.shield(self._looking)
        return _Tables(SpoolStatus(trouble=DISK_HANGS))

    async def _look(self) -> _Tables:
        parts = self._parts
        trouble = parts.spool.trouble or parts.spool.damage
        text = "" if trouble is None else str(trouble)
        size_bytes = await parts.spool.off_loop(lambda: disk_bytes(parts.spool.path))

        def look(store: Store) -> _Tables:
            found = spool_status(
                store, parts.takers.parts, parts.takers.settings.spool.max_bytes, parts.now_ms()
            )
            used_bytes = parts.spool.used_bytes(store)
            shared = read_shared_facts(store, parts.now_ms())
            return _Tables(
                msgspec.structs.replace(
                    found,
                    disk_bytes=size_bytes,
                    used_bytes=used_bytes,
                    trouble=text,
                    disk_free_bytes=disk_free_bytes(parts.spool.path),
                    commits=parts.spool.writer.commits.value,
                ),
                {
                    name: read_sync_facts(
                        store,
                        stream.spool.taker,
                        stream.spool.workspace or workspace_of(store, stream.sync),
                        shared,
                    )
                    for name, stream in parts.streams.items()
                },
                {
                    relay.taker: read_relay_facts(store, store.takers.known_id(relay.taker), shared)
                    for relay in parts.takers.settings.relay
                },
            )

        with suppress(SpoolError):  # ``trouble`` tells of it
            return await parts.spool.look(look)
        return _Tables(SpoolStatus(size_bytes, trouble=text))
