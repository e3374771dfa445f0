"""The status in Prometheus' text format: the answer of ``/metrics``, and the list of metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from amplitude_intercom.engine.logs import lines_lost
from amplitude_intercom.engine.status import GateStatus, RelayStatus, Status, SyncStatus

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
    "gate_health": "1 for the health of an access token: well, throttled, outage, unauthorized.",
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
    "relay_health": "1 for the health of a relay: well, failing, outage, busy, invalid_key.",
    "relay_stopped": "1 while a fault of this program keeps a relay from running.",
    "relay_faults_total": "Faults of this program that stopped a relay, since the start.",
    "ready": "1 while events are taken.",
    "log_lines_lost_total": "Lines of the log that could not be written.",
}
"""All metrics without the prefix; a test compares the documented table with it."""


def render(status: Status, *, ready: bool) -> bytes:
    """Return a status in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status, ready))
    return generate_latest(registry)


class _Snapshot(Collector):
    """The metric families of one status."""

    def __init__(self, status: Status, ready: bool) -> None:
        self._status = status
        self._ready = ready
        # Syncs with the same access token share a gate: its calls must not be counted twice.
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
