"""The cost of a thousand syncs in one daemon: memory, start, threads and files, idle CPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import daemons, events, load, servers
from benchmarks.processes import TICK_S, Facts
from benchmarks.report import Result, result

MOST_MB = 400.0
MOST_READY_S = 5.0
MOST_IDLE_PERCENT = 2.0
"""Per cent of a core while nothing arrives."""

MOST_HANDLES = 64
"""Threads and open files; connections are not counted."""

REST_S = 3.0
"""Seconds from the last delivery to the measurement of idle CPU."""


class _Seen(NamedTuple):
    """Measurements of one daemon; CPU in per cent of a core."""

    ready_s: float
    resident_bytes: int
    busy_percent: float
    idle_percent: float
    threads: int
    files: int
    sockets: int


def many_syncs(seed: int, *, smoke: bool) -> list[Result]:
    """Measure a daemon with many syncs: an event a second for each, then none.

    Each sync has an API key, an access token and a workspace of its own, because one token's
    allowance is too small for all. Nearly every event has a new user, so that the memory of users
    counts. The slower of two starts counts: with an empty spool, and with the spool of the run.
    """
    syncs, seconds, idle_s = (40, 2, 2.0) if smoke else (1_000, 30, 10.0)
    with tempfile.TemporaryDirectory() as name, servers.running("sandbox") as address:
        table = _table(Path(name), f"http://{address}", syncs)
        seen = _run(table, syncs, seconds, idle_s, seed)
        with daemons.running(table) as again:
            ready_s = again.ready_s
    busy = f"{seen.busy_percent:.0f} % at an event a second each"
    starts = f"{seen.ready_s:.2f} s with nothing there, {ready_s:.2f} s after a run"
    handles = f"{seen.threads} threads, {seen.files} files; {seen.sockets} sockets beside them"
    return [
        result("many-syncs-memory", seen.resident_bytes / 1e6, MOST_MB, "MB", f"{syncs:,} syncs"),
        result("many-syncs-ready", max(seen.ready_s, ready_s), MOST_READY_S, "s", starts),
        result("many-syncs-idle", seen.idle_percent, MOST_IDLE_PERCENT, "% of a core", busy),
        result(
            "many-syncs-handles", seen.threads + seen.files, MOST_HANDLES, "threads, files", handles
        ),
    ]


def _table(folder: Path, url: str, syncs: int) -> dict[str, Any]:
    table = events.table(folder, url)
    one: dict[str, Any] = table["sync"][0]
    table["sync"] = [
        one
        | {
            "name": f"sync-{n}",
            "amplitude_api_keys": [_key(n)],
            "intercom": one["intercom"] | {"access_token": f"benchmark-token-{n}"},
        }
        for n in range(syncs)
    ]
    return table


def _key(sync: int) -> str:
    return f"{events.API_KEY}-{sync}"


def _run(table: dict[str, Any], syncs: int, seconds: int, idle_s: float, seed: int) -> _Seen:
    raws = events.events(syncs * seconds, seed, users=servers.KNOWN_USERS)
    bodies = [
        b'{"api_key":"%s","events":[%s]}' % (_key(n % syncs).encode(), raw)
        for n, raw in enumerate(raws)
    ]
    with daemons.running(table) as daemon:
        facts = daemon.facts
        started, cpu_s = time.monotonic(), facts.cpu_s()
        load.post_paced(daemon.http, "/2/httpapi", bodies, per_s=syncs)
        busy = _percent(facts, started, cpu_s)
        handles = facts.threads(), facts.files(), facts.sockets()
        daemon.settle(len(raws), look_every_s=2.0)
        time.sleep(REST_S)
        started, cpu_s = time.monotonic(), facts.cpu_s()
        time.sleep(idle_s)
        idle = max(_percent(facts, started, cpu_s), 100 * TICK_S / idle_s)  # the resolution
        return _Seen(daemon.ready_s, facts.most_resident_bytes(), busy, idle, *handles)


def _percent(facts: Facts, since_s: float, cpu_s: float) -> float:
    """Return the CPU since ``since_s``, when it was ``cpu_s``, in per cent of a core."""
    return 100 * (facts.cpu_s() - cpu_s) / (time.monotonic() - since_s)
