"""The state of a running engine for people and monitors: readiness, faults, the accounting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from amplitude_intercom.engine.clients import address_of
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.sources import RunningSource
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart
from amplitude_intercom.engine.spool.sqlite.snapshots import disk_bytes
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.status import (
    RefusalCount,
    RelayStatus,
    SourceStatus,
    SpoolStatus,
    Status,
    SyncFacts,
    SyncStatus,
    TakerFacts,
    gate_status,
    read_relay_facts,
    read_sync_facts,
    relay_status,
    spool_status,
    sync_status,
)
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.engine.token_facts import workspace_of
from amplitude_intercom.transports.reasons import RefusalReason


class Deliveries(Protocol):
    """The faults of a pipeline (``engine.pipeline.Pipeline``)."""

    def stopped(self, sync: str) -> str:
        """Return the fault of this program that stops a sync; empty: none."""
        ...

    def faults(self, sync: str) -> int:
        """Return how often such a fault has stopped a sync."""
        ...


class EngineParts(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a running engine that an overview looks at.

    ``spools`` by taker; ``deliveries`` by sync; ``relays`` and ``relay_supervisors`` by taker;
    ``sources`` by name. ``gate_name``: returns the name of a sync's access token, without secrets.
    ``state``: returns the engine's. ``intake_stopped``: returns the fault of
    this program that stops intake, or an empty text.
    """

    settings: Settings
    spool: Spool
    spools: Mapping[str, SpoolPart]
    streams: Mapping[str, Stream]
    deliveries: Mapping[str, Deliveries]
    relays: Mapping[str, RelaySender]
    relay_supervisors: Mapping[str, Supervisor]
    sources: Mapping[str, RunningSource]
    jobs: JobRunner
    gate_name: Callable[[Sync], str]
    now_ms: Callable[[], int]
    state: Callable[[], str]
    intake_stopped: Callable[[], str]

    @property
    def takers(self) -> list[str]:
        """The syncs and relays of the settings, by name of the taker."""
        return list(self.spools)


class _Tables(msgspec.Struct, frozen=True):
    """Facts from the spool's tables; ``syncs`` and ``relays`` by taker, empty if unreadable."""

    spool: SpoolStatus
    syncs: Mapping[str, SyncFacts] = {}
    relays: Mapping[str, TakerFacts] = {}


class Overview:
    """Reads the state of a running engine; changes nothing."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts

    @property
    def state(self) -> str:
        """The state of the engine."""
        return self._parts.state()

    @property
    def syncs(self) -> Collection[str]:
        """The names of the syncs."""
        return self._parts.streams.keys()

    @property
    def takers(self) -> list[str]:
        """The syncs and relays of the settings, by name of the taker."""
        return self._parts.takers

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
        """Whether at least one sync takes events: a full one closes no other's intake."""
        unready = self.unready
        return not unready or len(unready) < len(self._parts.streams)

    @property
    def stopped(self) -> dict[str, str]:
        """The faults of this program that stop syncs now, by sync."""
        parts = self._parts
        if fault := parts.intake_stopped():
            return dict.fromkeys(parts.streams, fault)
        stopped = {name: deliveries.stopped(name) for name, deliveries in parts.deliveries.items()}
        return {name: fault for name, fault in (stopped | parts.jobs.stopped).items() if fault}

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
        stopped = self.stopped
        return Status(
            parts.state(),
            parts.settings.data_path,
            [self._sync_status(s, tables.syncs, stopped) for s in parts.streams.values()],
            tables.spool,
            [RefusalCount(*kind, count) for kind, count in sorted(refusals.items())],
            dict(refused_keys),
            [SourceStatus(n, s.stopped, s.faults) for n, (_, s) in parts.sources.items()],
            [self._relay_status(relay, tables.relays) for relay in parts.settings.relay],
        )

    def _relay_status(self, relay: RelaySettings, facts: Mapping[str, TakerFacts]) -> RelayStatus:
        parts, taker = self._parts, relay.taker
        spool = parts.spools[taker]
        return relay_status(
            relay,
            spool.counters,
            facts.get(taker, TakerFacts()),
            address=address_of(relay),
            now_ms=parts.now_ms(),
            sender=parts.relays.get(taker),
            trouble=spool.trouble or parts.spool.damage,
            supervisor=parts.relay_supervisors.get(taker),
        )

    def _sync_status(
        self, stream: Stream, facts: Mapping[str, SyncFacts], stopped: Mapping[str, str]
    ) -> SyncStatus:
        parts, name, delivery = self._parts, stream.sync.name, stream.delivery
        faulty, gate = parts.deliveries.get(name), stream.gate
        return sync_status(
            stream.sync,
            stream.spool.counters,
            facts.get(name, SyncFacts()),
            now_ms=parts.now_ms(),
            trouble=stream.spool.trouble or parts.spool.damage,
            latency_s=delivery.settlement.latency_s if delivery else (),
            unknown_attributes=delivery.unknown_attributes if delivery else {},
            adjusted=stream.spool.adjustments.total,
            gate=None if gate is None else gate_status(gate, parts.gate_name(stream.sync)),
            stopped=stopped.get(name, ""),
            rekeying=parts.jobs.rekeying.get(name, 0),
            faults=faulty.faults(name) if faulty else 0,
        )

    async def _tables(self) -> _Tables:
        """Read the facts of all tables in one look."""
        parts = self._parts
        trouble = parts.spool.trouble or parts.spool.damage
        text = "" if trouble is None else str(trouble)
        size_bytes = disk_bytes(parts.spool.path)

        def look(store: Store) -> _Tables:
            found = spool_status(
                store, parts.takers, parts.settings.spool.max_bytes, parts.now_ms()
            )
            used_bytes = parts.spool.used_bytes(store)
            return _Tables(
                msgspec.structs.replace(
                    found, disk_bytes=size_bytes, used_bytes=used_bytes, trouble=text
                ),
                {
                    name: read_sync_facts(
                        store, stream.spool.taker, workspace_of(store, stream.sync)
                    )
                    for name, stream in parts.streams.items()
                },
                {
                    relay.taker: read_relay_facts(store, store.takers.known_id(relay.taker))
                    for relay in parts.settings.relay
                },
            )

        with suppress(SpoolError):  # ``trouble`` tells of it
            return await parts.spool.look(look)
        return _Tables(SpoolStatus(size_bytes, trouble=text))
