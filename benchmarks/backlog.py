"""The cost of a backlog: memory, the next start, and the CPU of an event by its size."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.batches import Kept, entry_of, packs
from amplitude_intercom.engine.spool.rows import Append, Part
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME, connect
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from benchmarks import daemons, events, load
from benchmarks.report import Result, result
from benchmarks.servers import ME

MIB = 1 << 20
A_COMMIT = 2_000
"""Events that are appended in one commit."""

A_BATCH = 16
"""Events that one sync is given at once."""

USERS = 50_000
READY_S = 2.0
"""Seconds from a start after SIGKILL to the first delivery."""


def _append(settings: Settings, count: int, first: int = 0, kept: int = 0) -> float:
    """Append events as intake does; return the CPU seconds of each of the last ``kept`` events."""
    path = Path(settings.data_dir)
    path.mkdir(exist_ok=True)
    store = Store(connect(path / FILE_NAME), Limits(window_ms=10**9))
    templates = [events.event(n, n % USERS) for n in range(A_COMMIT)]
    cpu = 0.0
    for start in range(first, first + count, A_COMMIT):
        rows = [
            Kept(Kind.EVENT, f"user-{(start + n) % USERS:08}", raw)
            for n, raw in enumerate(templates)
        ]
        started = time.process_time()
        packed = packs([entry_of(row) for row in rows], [row.raw for row in rows])
        part = Part("benchmark", len(rows), packed, [], Counter())
        store.begin()
        store.append([Append([part])], time.time_ns() // 1_000_000)
        store.commit()
        if start >= first + count - kept:
            cpu += time.process_time() - started
    store.close()
    return cpu / kept if kept else 0.0


def memory_and_recovery(seed: int, *, smoke: bool) -> list[Result]:
    """Measure resident memory and the time to the first call, by size of the backlog.

    Memory is read after as many deliveries at each size, from none to three million pending events.
    """
    sizes = (0, 20_000, 40_000) if smoke else (0, 1_000_000, 3_000_000)
    delivered = 300 if smoke else 1_500
    local = Sandbox(seed=seed, limit_per_minute=10_000)
    for user in range(USERS):
        local.add_contact(external_id=f"user-{user:08}")
    with tempfile.TemporaryDirectory() as name:
        return asyncio.run(_memory_and_recovery(Path(name), local, sizes, delivered))


async def _memory_and_recovery(
    folder: Path, local: Sandbox, sizes: tuple[int, ...], delivered: int
) -> list[Result]:
    resident = []
    first_s = 0.0
    waiting = 0
    async with serve(local) as url:
        table = events.table(folder, url)
        settings = events.checked(table)
        for size in sizes:
            filled = max(size - waiting, delivered)
            await asyncio.to_thread(_append, settings, filled, waiting)
            waiting += filled
            before, started = local.calls, time.perf_counter()
            with daemons.running(table, signal.SIGKILL) as daemon:
                while local.calls == before:
                    await asyncio.sleep(0.005)
                if size == sizes[1]:
                    first_s = time.perf_counter() - started
                while local.calls < before + delivered:
                    await asyncio.sleep(0.05)
                resident.append(daemon.facts.resident_bytes() / MIB)
    told = ", ".join(
        f"{mib:.0f} MiB at {size:,}" for size, mib in zip(sizes, resident, strict=True)
    )
    assert max(resident) < 200, told
    return [
        result("memory-growth", max(resident), resident[0], "MiB", told),
        result("recovery", first_s, READY_S, f"s to a call, {sizes[1]:,} waiting"),
    ]


class _Instant:
    """An Intercom that answers every call with success, without latency."""

    async def send(self, request: Request) -> Answer:
        await asyncio.sleep(0)
        return Answer(200, {}, ME) if request.path == "/me" else Answer(202, {}, b"")


def _per_event(settings: Settings, count: int, warm_up: int) -> float:
    """Return the CPU seconds of delivering an event, after ``warm_up`` deliveries."""

    async def scenario() -> float:
        async with Engine(settings, wire=lambda _: _Instant()) as engine:
            spools = [stream.spool for stream in engine.streams.values()]
            there = sum(spool.counters["received"] for spool in spools)

            async def delivered(at_least: int) -> tuple[int, float]:
                while True:
                    done = sum(spool.counters["delivered"] for spool in spools)
                    if done >= min(at_least, there):
                        return done, time.process_time()
                    await asyncio.sleep(0.01)

            before, started = await delivered(warm_up)
            done, ended = await delivered(before + count)
            engine.drain()
            engine.cancel()
        return (ended - started) / (done - before)

    return asyncio.run(scenario())


def _spread(name: str, costs: dict[int, float]) -> Result:
    """Return the ratio of the greatest cost of an event to the least."""
    told = ", ".join(f"{size:,}: {cost * 1e6:.0f}" for size, cost in costs.items())
    return result(
        name, max(costs.values()) * 1e6, min(costs.values()) * 1e6, "µs of CPU an event", told
    )


def _in_folders(
    sizes: tuple[int, ...], measure: Callable[[Path, int], float], rounds: int = 1
) -> dict[int, float]:
    """Return the cost at each size: the least of ``rounds``, because other load only adds to it."""
    costs = dict.fromkeys(sizes, math.inf)
    for _ in range(rounds):
        for size in sizes:
            with tempfile.TemporaryDirectory() as name:
                costs[size] = min(costs[size], measure(Path(name), size))
    return costs


def scaling(seed: int, *, smoke: bool) -> list[Result]:
    """Measure the CPU of an event, taken in and delivered, by backlog, syncs and workers.

    The number of events and the size of their batches do not depend on the number of syncs.
    """
    sizes = (2_000, 6_000) if smoke else (10_000, 100_000, 1_000_000)
    delivered, warm_up = (1_000, 500) if smoke else (6_000, 3_000)
    rounds = 1 if smoke else 2
    syncs = (1, 4, 32) if smoke else (1, 16, 256, 1_000)

    def of_backlog(folder: Path, size: int) -> float:
        settings = events.settings(folder)
        taken_in = _append(settings, size, kept=min(size, 10_000))
        return taken_in + _per_event(settings, delivered, warm_up)

    def of_syncs(folder: Path, count: int) -> float:
        table = events.table(folder)
        one: dict[str, Any] = table["sync"][0]
        table["sync"] = [one | {"name": f"sync-{n}"} for n in range(count)]
        settings = events.checked(table)
        return asyncio.run(_per_event_of_all(settings, syncs[-1], seed))

    def of_workers(folder: Path, workers: int) -> float:
        table = events.table(folder)
        table["sync"][0]["intercom"] |= {"max_in_flight": workers}
        settings = events.checked(table)
        taken_in = _append(settings, 4 * delivered, kept=4 * delivered)
        return taken_in + _per_event(settings, 3 * delivered, warm_up)

    return [
        _spread("scale-events", _in_folders(sizes, of_backlog)),
        _spread("scale-syncs", _in_folders(syncs, of_syncs, rounds)),
        _spread("scale-workers", _in_folders((1, 64, 400), of_workers, rounds)),
    ]


async def _per_event_of_all(settings: Settings, batches: int, seed: int) -> float:
    """Return the CPU seconds of an event, from ``submit`` until it is settled.

    ``batches`` are submitted to the syncs in turn, 32 at a time. A first lot of the same users
    starts the workers, and is not measured.
    """
    names = [sync.name for sync in settings.sync]
    dice = random.Random(seed)
    users = [dice.randrange(USERS) for _ in range(batches * A_BATCH)]
    lots = [
        [events.event(lot * len(users) + n, user) for n, user in enumerate(users)]
        for lot in range(2)
    ]
    async with Engine(settings, wire=lambda _: _Instant()) as engine:
        for lot in lots:
            started = time.process_time()
            for first in range(0, batches, load.CONNECTIONS):
                numbers = range(first, min(first + load.CONNECTIONS, batches))
                await asyncio.gather(
                    *(
                        engine.submit(
                            lot[n * A_BATCH : (n + 1) * A_BATCH], sync=names[n % len(names)]
                        )
                        for n in numbers
                    )
                )
            await engine.settled()
            cpu_s = time.process_time() - started
    return cpu_s / len(users)
