"""The accounting, for people (``status``) and for Prometheus (``/metrics``): one set of numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.judging import Trouble
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.logs import lines_lost
from amplitude_intercom.engine.relay.relay import Relay
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.accounts import INBOX, SPOOL, TAKEN_ALONG, WAITING, under
from amplitude_intercom.engine.spool.store import MINUTE_MS, Store
from amplitude_intercom.engine.supervision import Supervisor

PREFIX = "amplitude_intercom_"

METRICS = {
    "events_received_total": "Events that sources brought.",
    "events_delivered_total": "Events and identifies that Intercom took.",
    "events_dropped_total": "Events dropped by a rule, by reason.",
    "dead_letters": "Dead letters, by reason.",
    "adjustments_total": "Values changed on the way to Intercom, by reason.",
    "event_names": "Event names that are in use in the workspace; it has 120.",
    "pending": "Events accepted and not settled.",
    "parked_users": "Users whose events wait for a retry, by reason.",
    "oldest_pending_seconds": "Age of the first event that waits, those of parked users left out.",
    "oldest_parked_seconds": "Time since the first failure of the user that is parked the longest.",
    "last_delivery_seconds": "Time since the last delivery.",
    "latency_seconds": "Time from accepted to answered, of the last 4,096 deliveries, by quantile.",
    "spool_bytes": "Bytes that the spool has on disk, with its log and its reserve.",
    "spool_used_bytes": "Bytes of them that hold something.",
    "waiting_bytes": "Bytes of what waits of a sync, which `spool.max_bytes` bounds for all.",
    "left_events": "Events and dead letters of a sync that is not in the settings any more.",
    "spool_trouble": "1 while events are refused or the spool cannot be read, by sync.",
    "calls_total": "Calls to Intercom, by access token, endpoint and status (0: no answer).",
    "calls_in_flight": "Calls that are out, or next to leave, by access token.",
    "rate_limit": "Calls that Intercom allows an access token in 10 seconds.",
    "gate_health": "1 for the health of an access token: open, throttled, outage, unauthorized.",
    "sync_info": "1 for each sync, with the access token that it uses.",
    "sync_stopped": "1 while a fault of this program keeps a sync from running.",
    "sync_faults_total": "Faults of this program that stopped a sync, since the start.",
    "source_stopped": "1 while a fault of this program keeps a source from running.",
    "source_faults_total": "Faults of this program that stopped a source, since the start.",
    "http_refusals_total": "Requests that the HTTP source refused, by door and reason.",
    "relay_received_total": "Events that came in requests which a relay keeps.",
    "relay_delivered_total": "Events of a relay that Amplitude took.",
    "relay_dropped_total": "Events of a relay that were dropped, by reason.",
    "relay_dead_letters": "Dead letters of a relay, by reason.",
    "relay_pending": "Events of a relay that wait for Amplitude.",
    "relay_waiting_bytes": "Bytes of the requests that wait for Amplitude.",
    "relay_oldest_pending_seconds": "Age of the first request that waits for Amplitude.",
    "relay_last_delivery_seconds": "Time since Amplitude took something last.",
    "relay_held": "Devices and API keys whose events wait for their time.",
    "relay_calls_total": "Requests to Amplitude, by status (0: no answer).",
    "relay_health": "1 for the health of a relay: open, failing, outage, busy, invalid_key.",
    "relay_stopped": "1 while a fault of this program keeps a relay from running.",
    "relay_faults_total": "Faults of this program that stopped a relay, since the start.",
    "ready": "1 while events are taken.",
    "log_lines_lost_total": "Lines of the log that could not be written.",
}
"""All metrics, without prefix. The README's table is checked against it."""


class GateStatus(msgspec.Struct, frozen=True):
    """One access token's gate: ``limit`` is in calls per 10 seconds; ``guessed``: not said yet.

    ``name``: the host and the number of the token there, in the order of the settings.
    """

    name: str
    health: str
    limit: float
    in_flight: int
    calls: dict[str, int]
    call_s: dict[str, float]
    guessed: bool = False
    troubles: list[Trouble] = []


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
    """Age of the first event that waits, those of parked users left out."""
    oldest_parked_s: float | None
    """Time since the first failure of the user that is parked the longest."""
    last_delivery_s: float | None
    """Time since the last delivery."""
    waiting_bytes: int
    """What waits, as a spool's fullness is reckoned."""
    adjusted: dict[str, int]
    unknown_attributes: dict[str, int]
    event_names: int
    latency_s: dict[str, float]
    trouble: str
    """What is wrong with the spool; empty when all is well."""
    intercom: GateStatus | None
    stopped: str = ""
    """The fault of this program that keeps the sync from running now; empty: none does."""
    faults: int = 0
    rekeying: int = 0
    """The job that keys its records anew, before which nothing is sent; 0: there is none."""


class RelayStatus(msgspec.Struct, frozen=True):
    """One relay's accounting: received = delivered + dropped + dead + pending, in events.

    ``health``: empty where nothing is sent by whoever says this. ``said``: the last failure.
    """

    name: str
    enabled: bool
    address: str
    received: int
    delivered: int
    dropped: dict[str, int]
    dead: int
    pending: int
    dead_by_reason: dict[str, int]
    waiting_bytes: int
    oldest_pending_s: float | None = None
    last_delivery_s: float | None = None
    health: str = ""
    said: str = ""
    held: int = 0
    calls: dict[str, int] = {}
    refused_keys: dict[str, str] = {}
    """API keys that Amplitude refuses now, with what it says."""
    trouble: str = ""
    stopped: str = ""
    faults: int = 0


class SourceStatus(msgspec.Struct, frozen=True):
    """One source: the fault that keeps it from running now, or empty, and how many there were."""

    name: str
    stopped: str
    faults: int


class Refusal(msgspec.Struct, frozen=True):
    """How often an HTTP source refused requests at a door for a reason, since the start."""

    door: str
    reason: str
    count: int


class LeftSync(msgspec.Struct, frozen=True):
    """What the spool holds of a sync that is not in the settings any more."""

    pending: int
    dead: int


class SpoolStatus(msgspec.Struct, frozen=True):
    """What the spool takes up: on disk, with its log and its reserve, and of its file in use.

    ``trouble``: what is wrong with it; empty when all is well. ``left``: syncs that are not in the
    settings any more, of which something is there.
    """

    disk_bytes: int = 0
    used_bytes: int = 0
    waiting_bytes: int = 0
    trouble: str = ""
    left: dict[str, LeftSync] = {}
    full_in_s: float | None = None
    """When what waits reaches ``spool.max_bytes``, at the rate of the last minutes; None: never."""

    @property
    def exists(self) -> bool:
        """Whether there is one yet."""
        return self.disk_bytes > 0


class Status(msgspec.Struct, frozen=True):
    """What ``status`` and the admin port say. ``data_dir`` is a whole path."""

    state: str
    data_dir: str
    syncs: list[SyncStatus]
    spool: SpoolStatus = SpoolStatus()
    refusals: list[Refusal] = []
    refused_keys: dict[str, int] = {}
    """Requests with an API key that no sync takes, by key."""
    sources: list[SourceStatus] = []
    relays: list[RelayStatus] = []


class RelayFacts(msgspec.Struct, frozen=True):
    """What a relay's status needs of the spool's tables."""

    oldest_accepted_ms: int | None = None
    delivered_at_ms: int | None = None


class Facts(msgspec.Struct, frozen=True):
    """What a sync's status needs of the spool's tables."""

    parked_users: dict[str, int] = {}
    parked_since_ms: int | None = None
    oldest_accepted_ms: int | None = None
    delivered_at_ms: int | None = None
    event_names: int = 0


def read_facts(store: Store, taker: int, workspace: int) -> Facts:
    """Read what a sync's status needs of the tables; ``workspace``: the number of its own."""
    parked = store.users.parked(taker)
    return Facts(
        {reason: count for reason, (count, _) in parked.items()},
        min((since_ms for _, since_ms in parked.values()), default=None),
        store.first_waiting_ms(taker),
        store.takers.delivered_at_ms(taker),
        len(store.event_names.of(workspace)),
    )


def read_relay_facts(store: Store, taker: int) -> RelayFacts:
    """Read what a relay's status needs of the tables."""
    return RelayFacts(store.relayed.first_ms(taker), store.takers.delivered_at_ms(taker))


def relay_status(
    settings: RelaySettings,
    counters: Mapping[str, int],
    facts: RelayFacts,
    *,
    address: str,
    now_ms: int,
    sender: Relay | None = None,
    trouble: SpoolError | None = None,
    supervisor: Supervisor | None = None,
) -> RelayStatus:
    """Put one relay's accounting together; ``sender``: what sends, where that runs."""
    return RelayStatus(
        name=settings.name,
        enabled=settings.enabled,
        address=address,
        received=counters.get("received", 0),
        delivered=counters.get("delivered", 0),
        dropped=under(counters, "dropped:"),
        dead=counters.get("dead", 0),
        pending=counters.get("pending", 0),
        dead_by_reason=under(counters, "dead:"),
        waiting_bytes=counters.get(INBOX, 0),
        oldest_pending_s=_age_s(facts.oldest_accepted_ms, now_ms),
        last_delivery_s=_age_s(facts.delivered_at_ms, now_ms),
        health="" if sender is None else sender.health,
        said="" if sender is None else sender.said,
        held=0 if sender is None else sender.held,
        calls={} if sender is None else {str(k): n for k, n in sorted(sender.calls.items())},
        refused_keys={} if sender is None else dict(sender.refused_keys),
        trouble="" if trouble is None else str(trouble),
        stopped="" if supervisor is None else supervisor.stopped,
        faults=0 if supervisor is None else supervisor.faults,
    )


RATE_MINUTES = 10
"""Minutes whose rate is taken for the present one."""


def _read_full_in_s(store: Store, max_bytes: int, now_ms: int) -> float | None:
    """Return when the spool will be full at its present rate; None where it does not fill."""
    held = store.accounts.committed(SPOOL)[WAITING]
    since = now_ms // MINUTE_MS - RATE_MINUTES
    per_s = store.accounts.change_since(SPOOL, WAITING, since) / (RATE_MINUTES * 60)
    return max(0, max_bytes - held) / per_s if per_s > 0 else None


def read_left(store: Store, names: Collection[str]) -> dict[str, LeftSync]:
    """Return what there is of syncs that have none of these names."""
    found = {}
    for taker in store.takers.all():
        counters = store.accounts.committed(taker.id)
        if taker.name not in names and (counters["pending"] or counters["dead"]):
            found[taker.name] = LeftSync(counters["pending"], counters["dead"])
    return found


def spool_status(store: Store, names: Collection[str], max_bytes: int, now_ms: int) -> SpoolStatus:
    """Put together what the tables say of the spool; ``names``: the syncs in the settings."""
    return SpoolStatus(
        waiting_bytes=store.accounts.committed(SPOOL)[WAITING],
        left=read_left(store, names),
        full_in_s=_read_full_in_s(store, max_bytes, now_ms),
    )


def sync_status(
    sync: Sync,
    counters: Mapping[str, int],
    facts: Facts,
    *,
    now_ms: int,
    latency_s: Sequence[float] = (),
    unknown_attributes: Mapping[str, int] | None = None,
    adjusted: Mapping[str, int] | None = None,
    trouble: SpoolError | None = None,
    gate: GateStatus | None = None,
    stopped: str = "",
    rekeying: int = 0,
    faults: int = 0,
) -> SyncStatus:
    """Put one sync's accounting together."""
    return SyncStatus(
        name=sync.name,
        enabled=sync.enabled,
        received=counters.get("received", 0),
        delivered=counters.get("delivered", 0),
        dropped=under(counters, "dropped:"),
        dead=counters.get("dead", 0),
        pending=counters.get("pending", 0),
        dead_by_reason=under(counters, "dead:"),
        parked_users=facts.parked_users,
        oldest_pending_s=_age_s(facts.oldest_accepted_ms, now_ms),
        oldest_parked_s=_age_s(facts.parked_since_ms, now_ms),
        last_delivery_s=_age_s(facts.delivered_at_ms, now_ms),
        waiting_bytes=counters.get(INBOX, 0) + counters.get(TAKEN_ALONG, 0),
        adjusted=dict(sorted((adjusted or under(counters, "adjusted:")).items())),
        unknown_attributes=dict(unknown_attributes or {}),
        event_names=facts.event_names,
        latency_s=percentiles(latency_s),
        trouble="" if trouble is None else str(trouble),
        intercom=gate,
        stopped=stopped,
        rekeying=rekeying,
        faults=faults,
    )


def _age_s(at_ms: int | None, now_ms: int) -> float | None:
    return None if at_ms is None else max(0.0, (now_ms - at_ms) / 1000)


def gate_status(gate: Gate, name: str) -> GateStatus:
    """Put one gate's state together."""
    calls = {f"{endpoint} {status}": n for (endpoint, status), n in sorted(gate.calls.items())}
    return GateStatus(
        name,
        gate.state.value,
        gate.limit,
        gate.in_flight,
        calls,
        percentiles(gate.took_s),
        gate.pace.is_guess,
        gate.troubles(loop_time_s()),
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
        # Syncs with one access token share one gate: its calls must not count twice.
        self._gates = {s.intercom.name: s.intercom for s in status.syncs if s.intercom}

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
        if name == "log_lines_lost_total":
            yield {}, lines_lost()
        if name == "spool_bytes":
            yield {}, self._status.spool.disk_bytes
        if name == "left_events":
            for sync_name, left in self._status.spool.left.items():
                yield {"sync": sync_name}, left.pending + left.dead
        if name == "spool_used_bytes":
            yield {}, self._status.spool.used_bytes
        if name == "http_refusals_total":
            for refusal in self._status.refusals:
                yield {"door": refusal.door, "reason": refusal.reason}, refusal.count
        for source in self._status.sources:
            if name == "source_stopped":
                yield {"source": source.name}, float(bool(source.stopped))
            if name == "source_faults_total":
                yield {"source": source.name}, source.faults
        for relay in self._status.relays:
            for labels, value in _relay_samples(name, relay):
                yield {"relay": relay.name, **labels}, value
        for sync in self._status.syncs:
            for labels, value in _sync_samples(name, sync):
                yield {"sync": sync.name, **labels}, value
        for gate in self._gates.values():
            for labels, value in _gate_samples(name, gate):
                yield {"intercom": gate.name, **labels}, value


def _sync_samples(name: str, sync: SyncStatus) -> Iterator[tuple[dict[str, str], float]]:
    plain: dict[str, float | None] = {
        "events_received_total": sync.received,
        "events_delivered_total": sync.delivered,
        "pending": sync.pending,
        "oldest_pending_seconds": sync.oldest_pending_s,
        "oldest_parked_seconds": sync.oldest_parked_s,
        "last_delivery_seconds": sync.last_delivery_s,
        "waiting_bytes": sync.waiting_bytes,
        "spool_trouble": float(bool(sync.trouble)),
        "event_names": sync.event_names,
        "sync_stopped": float(bool(sync.stopped)),
        "sync_faults_total": sync.faults,
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
    if name == "latency_seconds":
        for percent, seconds in sync.latency_s.items():
            yield {"quantile": str(int(percent.removeprefix("p")) / 100)}, seconds
    if name == "sync_info" and sync.intercom is not None:
        yield {"intercom": sync.intercom.name}, 1


def _relay_samples(name: str, relay: RelayStatus) -> Iterator[tuple[dict[str, str], float]]:
    plain: dict[str, float | None] = {
        "relay_received_total": relay.received,
        "relay_delivered_total": relay.delivered,
        "relay_pending": relay.pending,
        "relay_waiting_bytes": relay.waiting_bytes,
        "relay_oldest_pending_seconds": relay.oldest_pending_s,
        "relay_last_delivery_seconds": relay.last_delivery_s,
        "relay_held": relay.held,
        "relay_stopped": float(bool(relay.stopped)),
        "relay_faults_total": relay.faults,
    }
    value = plain.get(name)
    if value is not None:
        yield {}, value
    if name == "relay_health" and relay.health:
        yield {"health": relay.health}, 1
    by_label = {
        "relay_dropped_total": ("reason", relay.dropped),
        "relay_dead_letters": ("reason", relay.dead_by_reason),
        "relay_calls_total": ("status", relay.calls),
    }
    label, counts = by_label.get(name, ("", {}))
    for key, count in counts.items():
        yield {label: key}, count


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
