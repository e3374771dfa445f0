"""``status``: the accounting, from the daemon or from the spools' files."""

from __future__ import annotations

from collections.abc import Iterator

from amplitude_intercom.engine.commands.running import OK, print_json
from amplitude_intercom.engine.commands.spool_access import read_spools
from amplitude_intercom.engine.commands.spool_files import SpoolFiles
from amplitude_intercom.engine.commands.terminal import count, listed, print_table, say, size
from amplitude_intercom.engine.delivery.judge import Trouble
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.engine.status import (
    RATE_MINUTES,
    GateStatus,
    LoopStatus,
    RelayStatus,
    SpoolStatus,
    Status,
    SyncStatus,
)
from amplitude_intercom.engine.wording import duration, shown

THROTTLED = "asks for a pause: the rate limit is reached, by this program or others with the token"

BY_A_FAULT = "by a fault, starts again by itself"


async def print_status(settings: Settings, *, as_json: bool = False) -> int:
    """Print the accounting of all syncs and relays."""
    async with read_spools(settings) as spools:
        found = await spools.status()
        files = spools if isinstance(spools, SpoolFiles) else None
    if as_json:
        print_json(found)
        return OK
    say(_headline(found, files))
    if not found.spool.exists:
        say("there is no spool yet: nothing was accepted, the first start makes it")
    else:
        print_table(_spool(found.spool, settings.spool.max_bytes))
    for sync in found.syncs if found.spool.exists else ():
        say("")
        say(f"sync {sync.name}" + ("" if sync.enabled else " (disabled: what waits is kept)"))
        print_table([(f"  {what}", number, more) for what, number, more in _rows(sync)])
    for relay in found.relays if found.spool.exists else ():
        say("")
        off = "" if relay.enabled else " (disabled: takes nothing more, what waits is sent)"
        say(f"relay {relay.name} to {relay.address}{off}")
        print_table([(f"  {what}", number, more) for what, number, more in _relay_rows(relay)])
    for source in found.sources:
        if source.stopped:
            say("")
            say(
                f"source {source.name} stopped by a fault, starts again by itself: {source.stopped}"
            )
    refused = [(f"  {r.door}", f"{r.count:,}", r.reason) for r in found.refusals]
    refused += [
        ("  unknown key", f"{number:,}", f"{key}: no sync takes this API key")
        for key, number in _most(found.refused_keys)[:10]
    ]
    if refused:
        say("")
        say("requests that the HTTP source refused since its start")
        print_table(refused)
    return OK


def _headline(found: Status, files: SpoolFiles | None) -> str:
    if files is None:
        return f"the daemon is {found.state}, data in {found.data_dir}{_lag(found.loop)}"
    if files.holder is not None:
        runs = f"a daemon or `forward` runs (process {files.holder}), but it cannot be asked"
        return f"{runs}: {files.why}; this is what the files say, data in {found.data_dir}"
    return f"no daemon runs, data in {found.data_dir} ({files.why})"


def _lag(loop: LoopStatus | None) -> str:
    """Return the lag of the event loop, where somebody would notice it."""
    if loop is None or loop.longest_s < NOTICED_S:
        return ""
    return f"; answers and calls were late by up to {duration(loop.longest_s)} in the last minutes"


def _spool(spool: SpoolStatus, max_bytes: int) -> Iterator[tuple[str, str, str]]:
    """Yield the facts about the spool."""
    waits = f"{size(spool.waiting_bytes)} wait, {size(max_bytes)} may"
    if spool.disk_free_bytes is not None:
        waits += f"; the disk has {size(spool.disk_free_bytes)} left"
    yield "spool", size(spool.disk_bytes), f"on disk, {size(spool.used_bytes)} in use; {waits}"
    if spool.full_in_s is not None and 0 < spool.full_in_s < FAR_S:
        yield (
            "full in",
            duration(spool.full_in_s),
            f"at the rate of the last {RATE_MINUTES} minutes",
        )
    if spool.trouble:
        yield "trouble", "", spool.trouble
    for name, left in spool.left.items():
        there = f"{count(left.pending, 'event')} and {count(left.dead, 'dead letter')} of it"
        what_to_do = OF_A_RELAY if name.startswith(RELAY) else WHAT_TO_DO
        yield "left", name, f"{there}, which is not in the settings: {what_to_do}"


NOTICED_S = 0.25
"""A lag of the event loop from which on clients and calls notice it."""

FAR_S = 365 * 86_400.0
"""What is further away than a year is not worth a line."""

OF_A_RELAY = "put it back, or `spool drop OLD --yes`"
WHAT_TO_DO = "put it back, or `spool move OLD NEW`, or `spool drop OLD --yes`"
"""What can be done with what is left of a sync."""


def _rows(sync: SyncStatus) -> Iterator[tuple[str, str, str]]:
    """Yield the facts about a sync: a name, a number, and its parts."""
    yield "received", f"{sync.received:,}", _rate(sync.received_per_s)
    yield "delivered", f"{sync.delivered:,}", _deliveries(sync)
    yield "dropped", f"{sum(sync.dropped.values()):,}", listed(_most(sync.dropped))
    yield "dead letters", f"{sync.dead:,}", listed(_most(sync.dead_by_reason))
    yield "waiting", f"{sync.pending:,}", _waiting(sync)
    if sync.parked_users:
        yield "parked users", f"{sum(sync.parked_users.values()):,}", _parked(sync)
    if sync.adjusted:
        yield "values changed", f"{sum(sync.adjusted.values()):,}", listed(_most(sync.adjusted))
    if sync.unknown_attributes:
        total = f"{sum(sync.unknown_attributes.values()):,}"
        names = listed(_most(sync.unknown_attributes))
        yield "no attribute", total, f"left out, the workspace lacks them: {names}"
    if sync.intercom is not None:
        name = sync.intercom.name
        for line in _intercom(sync.intercom):
            yield "Intercom" if name else "", name, line
            name = ""
    if sync.trouble:
        yield "trouble", "", sync.trouble
    if sync.stopped:
        yield "stopped", "", f"{BY_A_FAULT}: {sync.stopped}"
    if sync.rekeying:
        yield "waiting", "", f"its records are keyed anew, after sync.mapping (job {sync.rekeying})"


def _relay_rows(relay: RelayStatus) -> Iterator[tuple[str, str, str]]:
    """Yield the facts about a relay, in the same form."""
    last_s, oldest_s = relay.last_delivery_s, relay.oldest_pending_s
    events = "events, in requests that came over HTTP"
    yield "received", f"{relay.received:,}", _joined(events, _rate(relay.received_per_s))
    ago = "" if last_s is None else f"the last {duration(last_s)} ago"
    yield "delivered", f"{relay.delivered:,}", _joined(_rate(relay.delivered_per_s), ago)
    yield "dropped", f"{sum(relay.dropped.values()):,}", listed(_most(relay.dropped))
    yield "dead letters", f"{relay.dead:,}", listed(_most(relay.dead_by_reason))
    oldest = "" if oldest_s is None else f"the oldest for {duration(oldest_s)}"
    held = f"{relay.held:,} devices and keys whose time has not come" if relay.held else ""
    yield "waiting", f"{relay.pending:,}", ", ".join(filter(None, (oldest, held)))
    if relay.health:
        calls = count(sum(relay.calls.values()), "request")
        said = f": {shown(relay.said)}" if relay.said else ""
        yield "Amplitude", "", f"{_relay_health(relay)}; {calls} since the start{said}"
    for key, why in list(relay.refused_keys.items())[:10]:
        yield "refused key", shown(key, 40), shown(why)
    if relay.trouble:
        yield "trouble", "", relay.trouble
    if relay.stopped:
        yield "stopped", "", f"{BY_A_FAULT}: {relay.stopped}"


def _relay_health(relay: RelayStatus) -> str:
    if not relay.calls:
        return "not called yet"
    return {
        "failing": "does not answer, or somebody else does; it is tried again",
        "outage": "does not answer; it is tried until it does",
        "busy": "asks for a pause",
        "invalid_key": "refuses an API key; what comes with it waits",
    }.get(relay.health, "answers")


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _rate(per_s: float) -> str:
    """Return a rate of the last ten minutes; empty where nothing came."""
    if not per_s:
        return ""
    number, span = (per_s, "second") if per_s >= 1 else (per_s * 60, "minute")
    return f"{number:,.3g} a {span}" if number < 100 else f"{number:,.0f} a {span}"


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _deliveries(sync: SyncStatus) -> str:
    parts = [_rate(sync.delivered_per_s)]
    if sync.last_delivery_s is not None:
        parts.append(f"the last {duration(sync.last_delivery_s)} ago")
    if sync.latency_s:
        half, most = (duration(sync.latency_s[name]) for name in ("p50", "p95"))
        parts.append(f"half within {half}, 95 % within {most} of acceptance")
    return _joined(*parts)


def _waiting(sync: SyncStatus) -> str:
    if sync.oldest_pending_s is None:
        return "all with parked users" if sync.pending else ""
    return f"the oldest for {duration(sync.oldest_pending_s)}, parked users apart"


def _parked(sync: SyncStatus) -> str:
    oldest_s = sync.oldest_parked_s
    since = "" if oldest_s is None else f", the first {duration(oldest_s)} ago"
    return f"{listed(_most(sync.parked_users))}{since}"


def _intercom(gate: GateStatus) -> Iterator[str]:
    calls = count(sum(gate.calls.values()), "call")
    allowed = f"{gate.limit:,.0f} {'assumed' if gate.guessed else 'allowed'} in 10 s"
    yield f"{_health(gate)}; {calls} since the start, {allowed}"
    yield from (_said(trouble) for trouble in gate.troubles)


def _health(gate: GateStatus) -> str:
    """Return how an access token fares, for people."""
    match gate.health:
        case "unauthorized":
            return "refuses the access token"
        case "outage":
            return "does not answer all calls"
        case "throttled":
            return THROTTLED
    if not gate.calls:
        return "not called yet"
    answered = any(not endpoint.endswith(" 0") for endpoint in gate.calls)
    return "answers" if answered else "has not answered yet"


def _said(trouble: Trouble) -> str:
    for_s = f"for {duration(trouble.seconds)}: {shown(trouble.cause)}"
    if not trouble.endpoint:
        return f"{for_s}; asked again all the time, nothing is lost"
    return f"{trouble.endpoint} {for_s}; tried again until it answers, nothing is lost"
