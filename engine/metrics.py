"""The accounting, for people (``status``) and for Prometheus (``/metrics``): one set of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engine.config import Sync
from engine.errors import SpoolError
from engine.gate import Gate
from engine.spool.store import Store

PREFIX = "amplitude_intercom_"

METRICS = {
    "events_received_total": "Events that sources brought.",
    "events_delivered_total": "Events and identifies that Intercom took.",
    "events_dropped_total": "Events dropped by a rule, by reason.",
    "dead_letters": "Dead letters, by reason.",
    "adjustments_total": "Values changed on the way to Intercom since the start, by reason.",
    "event_names": "Event names that have a place in the workspace; there are 120.",
    "pending": "Events accepted and not settled.",
    "parked_users": "Users whose events wait for a retry, by reason.",
    "oldest_pending_seconds": "Age of the first event that waits.",
    "spool_bytes": "Bytes that the spool uses.",
    "spool_trouble": "1 while the spool's disk is full or failing, or its file is damaged.",
    "calls_total": "Calls to Intercom, by endpoint and status (0: no answer).",
    "calls_in_flight": "Calls that are out, or next to leave.",
    "rate_limit": "Calls that Intercom allows in 10 seconds.",
    "gate_health": "1 for what the gate makes of Intercom: open, throttled, outage, unauthorized.",
    "http_refusals_total": "Requests that the HTTP source refused, by door and reason.",
    "ready": "1 while events are taken.",
}
"""All metrics, without prefix. The README's table is checked against it."""


class GateStatus(msgspec.Struct, frozen=True):
    """One access token's gate: ``limit`` is in calls per 10 seconds."""

    health: str
    limit: float
    in_flight: int
    calls: dict[str, int]
    call_s: dict[str, float]


class SyncStatus(msgspec.Struct, frozen=True):
    """One sync's accounting: received = delivered + dropped + dead + pending."""

    name: str
    enabled: bool
    received: int
    delivered: int
    dropped: dict[str, int]
    dead: int
    pending: int
    dead_by_reason: dict[str, int]
    parked_users: dict[str, int]
    oldest_pending_s: float | None
    spool_bytes: int
    adjusted: dict[str, int]
    unknown_attributes: dict[str, int]
    event_names: int
    latency_s: dict[str, float]
    trouble: str
    """What is wrong with the spool; empty when all is well."""
    intercom: GateStatus | None


class Refusal(msgspec.Struct, frozen=True):
    """How often an HTTP source refused requests at a door for a reason, since the start."""

    door: str
    reason: str
    count: int


class Status(msgspec.Struct, frozen=True):
    """What ``status`` and the admin port say."""

    state: str
    syncs: list[SyncStatus]
    refusals: list[Refusal] = []
    refused_keys: dict[str, int] = {}
    """Requests with an API key that no sync takes, by key."""


class Facts(msgspec.Struct, frozen=True):
    """What a status needs of the spool's tables."""

    dead_by_reason: dict[str, int] = {}
    parked_users: dict[str, int] = {}
    oldest_accepted_ms: int | None = None
    used_bytes: int = 0
    event_names: int = 0


def read_facts(store: Store) -> Facts:
    """Read what a status needs of the tables."""
    return Facts(
        store.letters.reasons(),
        store.users_aside(),
        store.oldest_accepted_ms(),
        store.used_bytes(),
        len(store.meta.event_names()),
    )


def sync_status(
    sync: Sync,
    counters: Counter[str],
    facts: Facts,
    *,
    now_ms: int,
    latency_s: Sequence[float] = (),
    unknown_attributes: Mapping[str, int] | None = None,
    adjusted: Mapping[str, int] | None = None,
    trouble: SpoolError | None = None,
    gate: Gate | None = None,
) -> SyncStatus:
    """Put one sync's accounting together."""
    oldest = facts.oldest_accepted_ms
    return SyncStatus(
        name=sync.name,
        enabled=sync.enabled,
        received=counters["received"],
        delivered=counters["delivered"],
        dropped={
            name.removeprefix("dropped:"): count
            for name, count in sorted(counters.items())
            if name.startswith("dropped:") and count
        },
        dead=counters["dead"],
        pending=counters["pending"],
        dead_by_reason=facts.dead_by_reason,
        parked_users=facts.parked_users,
        oldest_pending_s=None if oldest is None else (now_ms - oldest) / 1000,
        spool_bytes=facts.used_bytes,
        adjusted=dict(sorted((adjusted or {}).items())),
        unknown_attributes=dict(unknown_attributes or {}),
        event_names=facts.event_names,
        latency_s=percentiles(latency_s),
        trouble="" if trouble is None else str(trouble),
        intercom=gate_status(gate) if gate else None,
    )


def gate_status(gate: Gate) -> GateStatus:
    """Put one gate's state together."""
    calls = {f"{endpoint} {status}": n for (endpoint, status), n in sorted(gate.calls.items())}
    return GateStatus(
        gate.health.value, gate.limit, gate.in_flight, calls, percentiles(gate.took_s)
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50 and p95; nothing where there are no values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 6) for p in (50, 95)
    }


def render(status: Status, *, ready: bool) -> bytes:
    """Return a status in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status, ready))
    return generate_latest(registry)


class _Snapshot(Collector):
    """One status as metric families."""

    def __init__(self, status: Status, ready: bool) -> None:
        self._status = status
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        """Yield the families of ``METRICS``."""
        for name, text in METRICS.items():
            samples = list(self._samples(name))
            labels = list(samples[0][0]) if samples else []
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(PREFIX + name.removesuffix("_total"), text, labels=labels)
            for values, value in samples:
                family.add_metric(list(values.values()), value)
            yield family

    def _samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        if name == "ready":
            yield {}, float(self._ready)
        if name == "http_refusals_total":
            for refusal in self._status.refusals:
                yield {"door": refusal.door, "reason": refusal.reason}, refusal.count
        for sync in self._status.syncs:
            for labels, value in _sync_samples(name, sync):
                yield {"sync": sync.name, **labels}, value


def _sync_samples(name: str, sync: SyncStatus) -> Iterator[tuple[dict[str, str], float]]:
    plain: dict[str, float | None] = {
        "events_received_total": sync.received,
        "events_delivered_total": sync.delivered,
        "pending": sync.pending,
        "oldest_pending_seconds": sync.oldest_pending_s,
        "spool_bytes": sync.spool_bytes,
        "spool_trouble": float(bool(sync.trouble)),
        "event_names": sync.event_names,
    }
    by_reason = {
        "events_dropped_total": sync.dropped,
        "dead_letters": sync.dead_by_reason,
        "adjustments_total": sync.adjusted,
        "parked_users": sync.parked_users,
    }
    value = plain.get(name)
    if value is not None:
        yield {}, value
    for reason, count in by_reason.get(name, {}).items():
        yield {"reason": reason}, count
    if sync.intercom is not None:
        yield from _gate_samples(name, sync.intercom)


def _gate_samples(name: str, gate: GateStatus) -> Iterator[tuple[dict[str, str], float]]:
    if name == "calls_in_flight":
        yield {}, gate.in_flight
    elif name == "rate_limit":
        yield {}, gate.limit
    elif name == "gate_health":
        yield {"health": gate.health}, 1
    elif name == "calls_total":
        for call, count in gate.calls.items():
            endpoint, _, status = call.rpartition(" ")
            yield {"endpoint": endpoint, "status": status}, count
