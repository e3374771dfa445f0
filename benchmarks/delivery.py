"""The speed and CPU of deliveries over real sockets, without a rate limit.

The reference posts the same bodies to the same server with a bare aiohttp client.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.envelope import Identity
from amplitude_intercom.engine.rules.bodies import creation_body
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports.intercom import VERSION
from benchmarks import events, servers
from benchmarks.feeding import bodies_of, fill
from benchmarks.report import Result, in_turns, result_of_rounds

IN_FLIGHT = 64
"""Requests of the bare client at a time."""


class _Took(NamedTuple):
    """The time that some calls took."""

    clock_s: float
    cpu_s: float
    """CPU time of this process, which does not run the server."""


async def _drain(settings: Settings) -> _Took:
    """Deliver all pending events; return the time that it took.

    Until the first answer one call a second leaves, so events delivered before it are not measured.
    """
    async with Engine(settings) as engine:
        spool = next(iter(engine.streams.values())).spool
        while not spool.counters["delivered"]:
            await asyncio.sleep(0.001)
        left = spool.counters["pending"] / spool.counters["received"]
        started, cpu_s = time.perf_counter(), time.process_time()
        await engine.settled()
        return _Took((time.perf_counter() - started) / left, (time.process_time() - cpu_s) / left)


async def _bare_posts(url: str, bodies: Sequence[bytes], status: int) -> _Took:
    """Post bodies, ``IN_FLIGHT`` at a time, and read the answers; return the time that it took."""
    waiting = iter(bodies)
    headers = {
        "Authorization": "Bearer benchmark-token",
        "Accept": "application/json",
        "Intercom-Version": VERSION,
        "Content-Type": "application/json",
    }
    async with aiohttp.ClientSession(headers=headers) as session:

        async def work() -> None:
            for body in waiting:
                async with session.post(url, data=body) as answer:
                    await answer.read()
                    assert answer.status == status

        started, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return _Took(time.perf_counter() - started, time.process_time() - cpu_s)


def _beside_bare_posts(
    rounds: int,
    path: str,
    status: int,
    raws: Sequence[bytes],
    bodies_for: Callable[[Settings], Sequence[bytes]],
) -> list[tuple[_Took, _Took]]:
    """Return the times of delivering events, each beside that of bare posts of their bodies."""
    with servers.running("intercom") as address:
        url = f"http://{address}"

        def measured() -> _Took:
            with tempfile.TemporaryDirectory() as name:
                settings = events.settings(Path(name), url)
                asyncio.run(fill(settings, raws))
                return asyncio.run(_drain(settings))

        bodies = bodies_for(events.settings(Path("nowhere"), url))
        return in_turns(
            rounds, measured, lambda: asyncio.run(_bare_posts(url + path, bodies, status))
        )


def over_sockets(seed: int, *, smoke: bool) -> list[Result]:
    """Measure event deliveries: calls a second, and CPU a call, beside bare posts."""
    count, rounds = (1_500, 2) if smoke else (8_000, 4)
    raws = events.events(count, seed, users=count)
    pairs = _beside_bare_posts(rounds, "/events", 202, raws, lambda found: bodies_of(found, raws))
    speed = [(count / mine.clock_s, count / bare.clock_s) for mine, bare in pairs]
    cost = [(mine.cpu_s / count * 1e6, bare.cpu_s / count * 1e6) for mine, bare in pairs]
    return [
        result_of_rounds("delivery", speed, "calls/s"),
        result_of_rounds("delivery-cpu", cost, "µs of CPU a call"),
    ]


def updates_over_sockets(seed: int, *, smoke: bool) -> list[Result]:
    """Measure first contacts of new users: calls a second, beside bare posts.

    Each call costs two commits that the reference does not make: the intent before it, and the
    outcome after it.
    """
    count, rounds = (1_000, 2) if smoke else (6_000, 4)
    plans = [events.PLANS[user % len(events.PLANS)] for user in range(count)]
    raws = [msgspec.json.encode(events.identify(n, plan, n)) for n, plan in enumerate(plans)]
    bodies = [
        creation_body(Identity("external_id", f"user-{user:08}"), {"custom_attributes.plan": plan})
        for user, plan in enumerate(plans)
    ]
    pairs = _beside_bare_posts(rounds, "/contacts", 200, raws, lambda _: bodies)
    speed = [(count / mine.clock_s, count / bare.clock_s) for mine, bare in pairs]
    return [result_of_rounds("delivery-updates", speed, "calls/s")]
