"""The cost of an event from HTTP intake until it is settled: CPU on one core, bytes on disk.

The reference is the first version of this program, measured in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import daemons, events, load, servers
from benchmarks.processes import on_cores, split_cores
from benchmarks.report import Result, result

A_REQUEST = 100
"""Events in a request, as in ``intake-http-100``. Smaller requests cost more commits an event."""

CPU_S_PER_1000 = 0.257
"""CPU seconds for 1,000 events in the first version."""

MOST_BYTES_A_BYTE = {500: 33.0, 2_000: 15.6}
"""Bytes that the first version wrote for each byte of an event, by the event's size."""


class _Cost(NamedTuple):
    """The cost of one event."""

    cpu_s: float
    written_bytes: float


def on_disk(seed: int, *, smoke: bool) -> list[Result]:
    """Measure the bytes written for each byte of an event, at two sizes of events."""
    count = 1_000 if smoke else 20_000
    results = []
    for size_bytes, most in MOST_BYTES_A_BYTE.items():
        written = _per_event(count, seed, size_bytes).written_bytes
        note = f"{written:,.0f} bytes for an event of {size_bytes:,}"
        name = f"disk-bytes-{size_bytes}"
        results.append(result(name, written / size_bytes, most, "bytes a byte", note))
    return results


def on_a_core(seed: int, *, smoke: bool) -> list[Result]:
    """Measure the CPU of an event: the least of some rounds, because other load only adds to it."""
    count, rounds = (1_000, 1) if smoke else (20_000, 4)
    took_s = [_per_event(count, seed, events.EVENT_BYTES).cpu_s * 1_000 for _ in range(rounds)]
    told = "each: " + ", ".join(f"{each:.3f}" for each in took_s)
    return [result("cpu-per-event", min(took_s), CPU_S_PER_1000, "s of CPU per 1,000 events", told)]


def _per_event(count: int, seed: int, size_bytes: int, a_request: int = A_REQUEST) -> _Cost:
    """Return the cost of ``count`` events over HTTP, until all are settled, after a warm-up.

    The daemon has a core to itself. The client, and an Intercom without latency, run on the others.
    """
    warm_up = count // 2
    raws = events.events(warm_up + count, seed, size_bytes=size_bytes)
    own, others = split_cores()
    with (
        tempfile.TemporaryDirectory() as name,
        on_cores(others),
        servers.running("intercom") as address,
        daemons.running(events.table(Path(name), f"http://{address}"), cores=own) as daemon,
    ):
        load.post_all(daemon.http, "/batch", _bodies(raws[:warm_up], a_request))
        daemon.settle(warm_up)
        cpu_s, written = daemon.facts.cpu_s(), daemon.facts.written_bytes()
        load.post_all(daemon.http, "/batch", _bodies(raws[warm_up:], a_request))
        daemon.settle(warm_up + count)
        return _Cost(
            (daemon.facts.cpu_s() - cpu_s) / count,
            (daemon.facts.written_bytes() - written) / count,
        )


def _bodies(raws: list[bytes], a_request: int) -> Iterator[bytes]:
    key = events.API_KEY.encode()
    for start in range(0, len(raws), a_request):
        part = b",".join(raws[start : start + a_request])
        yield b'{"api_key":"%s","events":[%s]}' % (key, part)
