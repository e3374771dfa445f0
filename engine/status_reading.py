"""The accounting, read from the tables of the spool and from the running machines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.sync_figures import SyncFigures
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.histograms import HistogramValue
from amplitude_intercom.engine.relay.relay import RelaySender
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.accounts import (
    CONTACTS,
    INBOX,
    INSERT_IDS,
    MINUTE_MS,
    PARKED,
    SPOOL,
    TAKEN_ALONG,
    WAITING,
    under,
)
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import first_waiting_ms
from amplitude_intercom.engine.status import (
    RATE_MINUTES,
    GateStatus,
    HttpStatus,
    LeftSync,
    RelayStatus,
    SpoolStatus,
    SyncStatus,
    TakerStatus,
)
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.http_figures import BOUNDS_S, HttpFigures


class TakerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a sync or a relay that are in tables and in no counter."""

    oldest_accepted_ms: int | None = None
    delivered_at_ms: int | None = None
    received_lately: int = 0
    delivered_lately: int = 0
    """Events of the last ten minutes."""


class SyncFacts(TakerFacts, frozen=True, kw_only=True):
    """The same of a sync, with its users and event names."""

    parked_users: dict[str, int] = {}
    parked_since_ms: int | None = None
    event_names: int = 0


class SharedFacts(msgspec.Struct, frozen=True):
    """Facts that are read once for all syncs and relays, not once for each of a thousand.

    ``lately``: the events of the last ten minutes, and ``delivered_at_ms``, by taker;
    ``event_names``: their number, by workspace.
    """

    lately: Mapping[int, Mapping[str, int]]
    delivered_at_ms: Mapping[int, int]
    event_names: Mapping[int, int]


def read_shared_facts(store: Store, now_ms: int) -> SharedFacts:
    """Read what is read once for all syncs and relays."""
    since = now_ms // MINUTE_MS - RATE_MINUTES
    return SharedFacts(
        store.accounts.changes_since(since, ("received", "delivered")),
        store.takers.deliveries(),
        store.event_names.numbers(),
    )


def read_sync_facts(store: Store, taker: int, workspace: int, shared: SharedFacts) -> SyncFacts:
    """Read the facts about a sync; ``workspace`` is the id of its workspace."""
    # Most of a thousand syncs have nothing that waits: no user of theirs is looked for.
    waits = store.accounts.committed(taker)["pending"] > 0
    return SyncFacts(
        **_rates(shared.lately.get(taker, {})),
        oldest_accepted_ms=first_waiting_ms(store, taker) if waits else None,
        delivered_at_ms=shared.delivered_at_ms.get(taker),
        parked_users=under(store.accounts.committed(taker), PARKED),
        parked_since_ms=store.users.parked_since_ms(taker) if waits else None,
        event_names=shared.event_names.get(workspace, 0),
    )


def read_relay_facts(store: Store, taker: int, shared: SharedFacts) -> TakerFacts:
    """Read the facts about a relay."""
    return TakerFacts(
        **_rates(shared.lately.get(taker, {})),
        oldest_accepted_ms=store.relayed.first_ms(taker),
        delivered_at_ms=shared.delivered_at_ms.get(taker),
    )


def _rates(lately: Mapping[str, int]) -> dict[str, int]:
    return {
        "received_lately": lately.get("received", 0),
        "delivered_lately": lately.get("delivered", 0),
    }


def read_left(store: Store, names: Collection[str]) -> dict[str, LeftSync]:
    """Return takers that hold something in the spool and have none of these names."""
    found = {}
    for taker in store.takers.all():
        counters = store.accounts.committed(taker.id)
        if taker.name not in names and (counters["pending"] or counters["dead"]):
            found[taker.name] = LeftSync(counters["pending"], counters["dead"])
    return found


def spool_status(store: Store, names: Collection[str], max_bytes: int, now_ms: int) -> SpoolStatus:
    """Read the spool's status from its tables; ``names`` are the takers in the settings."""
    held, since = store.accounts.committed(SPOOL)[WAITING], now_ms // MINUTE_MS - RATE_MINUTES
    per_s = store.accounts.change_since(SPOOL, WAITING, since) / (RATE_MINUTES * 60)
    return SpoolStatus(
        waiting_bytes=held,
        left=read_left(store, names),
        full_in_s=max(0, max_bytes - held) / per_s if per_s > 0 else None,
        max_bytes=max_bytes,
        growth_bytes_per_s=round(per_s, 3),
        rows=_rows(store),
    )


def _rows(store: Store) -> dict[str, int]:
    """Return the number of rows by kind, from counters: no table is passed through."""
    accounts = store.accounts
    counters = [accounts.committed(taker) for taker in accounts.takers()]
    return {
        "pending": sum(one["pending"] for one in counters),
        "dead_letters": sum(one["dead"] for one in counters),
        "insert_ids": accounts.committed(SPOOL)[INSERT_IDS],
        "contacts": accounts.committed(SPOOL)[CONTACTS],
    }


# --- put together -------------------------------------------------------------------------


def _taker_status(
    settings: Sync | RelaySettings,
    counters: Mapping[str, int],
    facts: TakerFacts,
    now_ms: int,
    *,
    trouble: SpoolError | None,
    stopped: str,
    faults: int,
) -> dict[str, Any]:
    """Return the fields of ``TakerStatus``."""
    account = TakerStatus(
        name=settings.name,
        enabled=settings.enabled,
        received=counters.get("received", 0),
        delivered=counters.get("delivered", 0),
        dropped=under(counters, "dropped:"),
        dead=counters.get("dead", 0),
        pending=counters.get("pending", 0),
        dead_by_reason=under(counters, "dead:"),
        waiting_bytes=counters.get(INBOX, 0) + counters.get(TAKEN_ALONG, 0),
        oldest_pending_s=_age_s(facts.oldest_accepted_ms, now_ms),
        last_delivery_s=_age_s(facts.delivered_at_ms, now_ms),
        received_per_s=round(facts.received_lately / (RATE_MINUTES * 60), 6),
        delivered_per_s=round(facts.delivered_lately / (RATE_MINUTES * 60), 6),
        trouble="" if trouble is None else str(trouble),
        stopped=stopped,
        faults=faults,
    )
    return msgspec.structs.asdict(account)


def sync_status(
    sync: Sync,
    counters: Mapping[str, int],
    facts: SyncFacts,
    *,
    now_ms: int,
    figures: SyncFigures | None = None,
    adjusted: Mapping[str, int] | None = None,
    trouble: SpoolError | None = None,
    gate: GateStatus | None = None,
    stopped: str = "",
    rekeying: int = 0,
    faults: int = 0,
) -> SyncStatus:
    """Return the status of a sync; without ``figures`` it does not run in this process."""
    figures = figures or SyncFigures()
    return SyncStatus(
        **_taker_status(
            sync, counters, facts, now_ms, trouble=trouble, stopped=stopped, faults=faults
        ),
        parked_users=facts.parked_users,
        oldest_parked_s=_age_s(facts.parked_since_ms, now_ms),
        adjusted=dict(sorted((adjusted or under(counters, "adjusted:")).items())),
        unknown_attributes=dict(figures.unknown_attributes),
        event_names=facts.event_names,
        latency_s=figures.latency.percentiles(),
        intercom=gate,
        deliveries=figures.latency.value,
        retries=figures.retries,
        rekeying=rekeying,
    )


def relay_status(
    settings: RelaySettings,
    counters: Mapping[str, int],
    facts: TakerFacts,
    *,
    address: str,
    now_ms: int,
    sender: RelaySender | None = None,
    trouble: SpoolError | None = None,
    supervisor: Supervisor | None = None,
) -> RelayStatus:
    """Return the status of a relay; ``sender`` is its machine, where that runs in this process."""
    stopped = "" if supervisor is None else supervisor.stopped
    faults = 0 if supervisor is None else supervisor.faults
    account = _taker_status(
        settings, counters, facts, now_ms, trouble=trouble, stopped=stopped, faults=faults
    )
    if sender is None:
        return RelayStatus(**account, address=address)
    return RelayStatus(
        **account,
        address=address,
        health=sender.health,
        said=sender.said,
        held=sender.held,
        calls={str(status): n for status, n in sorted(sender.calls.items())},
        refused_keys=dict(sender.refused_keys),
    )


def http_status(source: Any) -> HttpStatus | None:
    """Return the status of a source that is a server of HTTP; None of any other."""
    # By its figures: the server itself would bring its libraries into every command.
    figures = getattr(source, "figures", None)
    if not isinstance(figures, HttpFigures):
        return None
    return HttpStatus(
        {f"{endpoint} {status}": n for (endpoint, status), n in sorted(figures.requests.items())},
        HistogramValue(BOUNDS_S, tuple(figures.buckets), round(figures.sum_s, 6)),
        source.connections,
        source.held_bytes,
    )


def gate_status(gate: Gate, name: str) -> GateStatus:
    """Return the status of a gate."""
    calls = {f"{endpoint} {status}": n for (endpoint, status), n in sorted(gate.calls.items())}
    return GateStatus(
        name,
        gate.state.value,
        gate.limit,
        gate.in_flight,
        calls,
        gate.took.percentiles(),
        gate.pace.is_guess,
        gate.troubles(loop_time_s()),
        gate.took.value,
        gate.pauses,
        gate.remaining,
    )


def _age_s(at_ms: int | None, now_ms: int) -> float | None:
    return None if at_ms is None else max(0.0, (now_ms - at_ms) / 1000)
