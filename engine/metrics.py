"""The status in Prometheus' text format: the answer of ``/metrics``, and the list of metrics.

A counter of the spool goes on for ever. One of the process begins at zero with it, and with a sync,
a relay or an access token that comes back after a reload has taken it away (a token: after a
minute). It never falls to another value than zero, and so monitors see a reset.
"""

from __future__ import annotations

import platform
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from amplitude_intercom.engine.logs import lines_lost
from amplitude_intercom.engine.metrics_text import MetricsText, label
from amplitude_intercom.engine.status import (
    GateStatus,
    HttpStatus,
    RelayStatus,
    SpoolStatus,
    Status,
    SyncStatus,
)
from amplitude_intercom.transports.own_version import own_version

PYTHON: Final = platform.python_version()

_process = CollectorRegistry()
ProcessCollector(registry=_process)

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
    "retries_total": "Turns of users that were parked, by sync, since the start.",
    "oldest_pending_seconds": "Age of the first event that waits, those of parked users left out.",
    "oldest_parked_seconds": "Time since the first failure of the user that is parked the longest.",
    "last_delivery_seconds": "Time since the last delivery.",
    "latency_seconds": "Time from accepted to answered, of the last 4,096 deliveries, by quantile.",
    "delivery_seconds": "Times from accepted to answered, since the start.",
    "spool_bytes": "Bytes that the spool has on disk, with its log and its reserve.",
    "spool_used_bytes": "Bytes of `spool_bytes` that hold something.",
    "spool_waiting_bytes": "Bytes of what waits in the spool, of all syncs and relays.",
    "spool_max_bytes": "The bound of `spool_waiting_bytes`: the setting `spool.max_bytes`.",
    "spool_growth_bytes": "Growth of what waits, in bytes a second, over the last ten minutes.",
    "spool_rows": "Rows of the spool, by kind.",
    "spool_commit_seconds": "Durations of commits of the spool.",
    "disk_free_bytes": "Bytes that the disk of the spool has left.",
    "waiting_bytes": "Bytes of what waits of a sync; `spool.max_bytes` bounds all together.",
    "left_events": "Events and dead letters of a sync that is not in the settings any more.",
    "spool_trouble": "1 while events are refused or the spool cannot be read, by sync.",
    "calls_total": "Calls to Intercom, by access token, endpoint and status (0: no answer).",
    "call_seconds": "Durations of answered calls to Intercom, by access token.",
    "pauses_total": "Pauses of an access token for which a 429 has asked.",
    "calls_in_flight": "Calls that are out, or next to leave, by access token.",
    "rate_limit": "Calls that Intercom allows an access token in 10 seconds.",
    "rate_remaining": "Calls of `rate_limit` that Intercom last said are left in its window.",
    "gate_health": "1 for the health of an access token: well, throttled, outage, unauthorized.",
    "sync_info": "1 for each sync, with the access token that it uses.",
    "sync_stopped": "1 while a fault of this program keeps a sync from running.",
    "sync_faults_total": "Faults of this program that stopped a sync, since the start.",
    "source_stopped": "1 while a fault of this program keeps a source from running.",
    "source_faults_total": "Faults of this program that stopped a source, since the start.",
    "http_requests_total": "Requests to the HTTP source, by door and status (0: no answer).",
    "http_request_seconds": "Durations of requests to the HTTP source, from head to answer.",
    "http_connections": "Connections to the HTTP source that are open.",
    "http_held_bytes": "Bytes of request bodies in memory, of `http.max_held_bytes`.",
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
    "loop_lag_seconds": "Times by which the event loop was late for a timer, four a second.",
    "build_info": "1, with the version of the program and of Python.",
    "log_lines_lost_total": "Lines of the log that could not be written.",
}
"""All metrics without the prefix; a test compares the documented table with it."""

HISTOGRAMS: Final = frozenset(
    {
        "call_seconds",
        "delivery_seconds",
        "http_request_seconds",
        "loop_lag_seconds",
        "spool_commit_seconds",
    }
)
"""The metrics that are histograms; of the others, one whose name ends with ``_total`` is a
counter."""


def render(status: Status, *, ready: bool) -> bytes:
    """Return a status in Prometheus' text format."""
    # Family by family over all syncs, it took a second for a thousand: each is passed once.
    text = MetricsText(PREFIX, METRICS, HISTOGRAMS)
    text.add("ready", "", ready)
    versions = f"{label('version', own_version())},{label('python', PYTHON)}"
    text.add("build_info", versions, 1)
    text.add("log_lines_lost_total", "", lines_lost())
    text.add_histogram("loop_lag_seconds", "", status.loop.lag if status.loop else None)
    _add_spool(text, status.spool)
    _add_sources(text, status)
    for relay in status.relays:
        _add_relay(text, label("relay", relay.name), relay)
    for sync in status.syncs:
        _add_sync(text, label("sync", sync.name), sync)
    # Syncs with the same access token share a gate: its calls must not be counted twice.
    for gate in {
        sync.intercom.name: sync.intercom for sync in status.syncs if sync.intercom
    }.values():
        _add_gate(text, label("intercom", gate.name), gate)
    return text.encode() + generate_latest(_process)


def _add_spool(text: MetricsText, spool: SpoolStatus) -> None:
    text.add("spool_bytes", "", spool.disk_bytes)
    text.add("spool_used_bytes", "", spool.used_bytes)
    text.add("spool_waiting_bytes", "", spool.waiting_bytes)
    text.add("spool_max_bytes", "", spool.max_bytes or None)
    text.add("spool_growth_bytes", "", spool.growth_bytes_per_s)
    text.add("disk_free_bytes", "", spool.disk_free_bytes)
    text.add_each("spool_rows", "", "kind", spool.rows)
    text.add_histogram("spool_commit_seconds", "", spool.commits)
    for name, left in spool.left.items():
        text.add("left_events", label("sync", name), left.pending + left.dead)


def _add_sources(text: MetricsText, status: Status) -> None:
    for refusal in status.refusals:
        labels = f"{label('door', refusal.door)},{label('reason', refusal.reason)}"
        text.add("http_refusals_total", labels, refusal.count)
    for source in status.sources:
        labels = label("source", source.name)
        text.add("source_stopped", labels, bool(source.stopped))
        text.add("source_faults_total", labels, source.faults)
        if source.http is not None:
            _add_http(text, labels, source.http)


def _add_http(text: MetricsText, source_label: str, http: HttpStatus) -> None:
    for request, count in http.requests.items():
        door, _, status = request.rpartition(" ")
        labels = f"{source_label},{label('door', door)},{label('status', status)}"
        text.add("http_requests_total", labels, count)
    text.add_histogram("http_request_seconds", source_label, http.took)
    text.add("http_connections", source_label, http.connections)
    text.add("http_held_bytes", source_label, http.held_bytes)


def _add_sync(text: MetricsText, sync_label: str, sync: SyncStatus) -> None:
    text.add("events_received_total", sync_label, sync.received)
    text.add("events_delivered_total", sync_label, sync.delivered)
    text.add("pending", sync_label, sync.pending)
    text.add("retries_total", sync_label, sync.retries)
    text.add("oldest_pending_seconds", sync_label, sync.oldest_pending_s)
    text.add("oldest_parked_seconds", sync_label, sync.oldest_parked_s)
    text.add("last_delivery_seconds", sync_label, sync.last_delivery_s)
    text.add("waiting_bytes", sync_label, sync.waiting_bytes)
    text.add("spool_trouble", sync_label, bool(sync.trouble))
    text.add("event_names", sync_label, sync.event_names)
    text.add("sync_stopped", sync_label, bool(sync.stopped))
    text.add("sync_faults_total", sync_label, sync.faults)
    text.add_each("events_dropped_total", sync_label, "reason", sync.dropped)
    text.add_each("dead_letters", sync_label, "reason", sync.dead_by_reason)
    text.add_each("adjustments_total", sync_label, "reason", sync.adjusted)
    text.add_each("parked_users", sync_label, "reason", sync.parked_users)
    quantiles = {str(int(p.removeprefix("p")) / 100): s for p, s in sync.latency_s.items()}
    text.add_each("latency_seconds", sync_label, "quantile", quantiles)
    text.add_histogram("delivery_seconds", sync_label, sync.deliveries)
    if sync.intercom is not None:
        text.add("sync_info", f"{sync_label},{label('intercom', sync.intercom.name)}", 1)


def _add_relay(text: MetricsText, relay_label: str, relay: RelayStatus) -> None:
    text.add("relay_received_total", relay_label, relay.received)
    text.add("relay_delivered_total", relay_label, relay.delivered)
    text.add("relay_pending", relay_label, relay.pending)
    text.add("relay_waiting_bytes", relay_label, relay.waiting_bytes)
    text.add("relay_oldest_pending_seconds", relay_label, relay.oldest_pending_s)
    text.add("relay_last_delivery_seconds", relay_label, relay.last_delivery_s)
    text.add("relay_held", relay_label, relay.held)
    text.add("relay_stopped", relay_label, bool(relay.stopped))
    text.add("relay_faults_total", relay_label, relay.faults)
    if relay.health:
        text.add("relay_health", f"{relay_label},{label('health', relay.health)}", 1)
    text.add_each("relay_dropped_total", relay_label, "reason", relay.dropped)
    text.add_each("relay_dead_letters", relay_label, "reason", relay.dead_by_reason)
    text.add_each("relay_calls_total", relay_label, "status", relay.calls)


def _add_gate(text: MetricsText, gate_label: str, gate: GateStatus) -> None:
    text.add("calls_in_flight", gate_label, gate.in_flight)
    text.add("pauses_total", gate_label, gate.pauses)
    text.add_histogram("call_seconds", gate_label, gate.took)
    text.add("rate_limit", gate_label, gate.limit)
    text.add("rate_remaining", gate_label, gate.remaining)
    text.add("gate_health", f"{gate_label},{label('health', gate.health)}", 1)
    for call, count in gate.calls.items():
        endpoint, _, status = call.rpartition(" ")
        labels = f"{gate_label},{label('endpoint', endpoint)},{label('status', status)}"
        text.add("calls_total", labels, count)
