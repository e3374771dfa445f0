"""The use of Intercom's allowance, and the time that a delivery adds to Intercom's own."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports.intercom import Answer, Request, Wire
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from benchmarks import events
from benchmarks.feeding import bodies_of, fill
from benchmarks.report import Result, result

PER_MINUTE = 10_000
"""The allowance, which is Intercom's default for an app."""

KNOWN_AFTER = 20
"""Calls after which the measurement starts. Until the first answer one call a second leaves."""


def of_the_allowance(seed: int, *, smoke: bool) -> list[Result]:
    """Measure the calls that leave in a minute of real time, beside the allowance.

    Over sockets, with a backlog of 2,000 users and 300 ms latency. Fails at an answer 429.
    """
    seconds = 3 if smoke else 60
    allowed = PER_MINUTE * seconds / 60
    local = _with_users(Sandbox(latency_s=0.3, seed=seed), 2_000)

    async def scenario(folder: Path) -> int:
        async with serve(local) as url:
            settings = _settings(folder, url)
            await fill(settings, events.events(int(allowed * 1.2) + 1_000, seed, users=2_000))
            async with Engine(settings) as engine:
                while local.calls < KNOWN_AFTER:
                    await asyncio.sleep(0.01)
                before = local.calls
                await asyncio.sleep(seconds)
                calls = local.calls - before
                engine.drain()
                engine.cancel()
        return calls

    with tempfile.TemporaryDirectory() as name:
        made = asyncio.run(scenario(Path(name)))
    note = f"{local.throttled} answers 429, {local.most_calls_in(10.0)} calls in 10 s at most"
    assert local.throttled == 0, note
    return [result("allowance", made, allowed, f"calls in {seconds} s", note)]


P50_MS, P95_MS = 10.0, 50.0
"""Milliseconds that may be added to Intercom's own latency."""


class _Stopwatch:
    """A wire that notes the instant of each answer, and the duration of each call."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.answered_s: dict[bytes, float] = {}
        self.took_s: list[float] = []

    async def send(self, request: Request) -> Answer:
        started = time.perf_counter()
        answer = await self._wire.send(request)
        ended = time.perf_counter()
        self.took_s.append(ended - started)
        self.answered_s[request.body or b""] = ended
        return answer


def latency(seed: int, *, smoke: bool) -> list[Result]:
    """Measure the time from acceptance to answer, less the duration of the call.

    At half of the allowance, with 50 ms latency and an Intercom in this process.
    """
    seconds = 3 if smoke else 12
    users, per_s = 500, PER_MINUTE / 60 / 2
    local = _with_users(Sandbox(latency_s=0.05, seed=seed), users)
    watch = _Stopwatch(InProcess(local))
    accepted_s: dict[bytes, float] = {}

    async def scenario(folder: Path) -> None:
        settings = _settings(folder)
        raws = events.events(int(seconds * per_s), seed, users=users)
        bodies = bodies_of(settings, raws)
        async with Engine(settings, wire=lambda _: watch) as engine:
            await engine.submit([events.events(1, seed + 1, users=1)[0]], sync="benchmark")
            await engine.settled()  # its answer has told the limit
            loop = asyncio.get_running_loop()
            began = loop.time()

            async def submit(number: int) -> None:
                await engine.submit([raws[number]], sync="benchmark")
                accepted_s[_key(bodies[number])] = time.perf_counter()

            async with asyncio.TaskGroup() as tasks:
                for number in range(len(raws)):
                    await asyncio.sleep(max(0.0, began + number / per_s - loop.time()))
                    tasks.create_task(submit(number))
            await engine.settled()

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(scenario(Path(name)))
    answered_s = {_key(body): at for body, at in watch.answered_s.items()}
    whole = sorted(answered_s[key] - at for key, at in accepted_s.items())
    own = sorted(watch.took_s)
    p50 = (_at(whole, 0.5) - _at(own, 0.5)) * 1000
    p95 = (_at(whole, 0.95) - _at(own, 0.95)) * 1000
    note = f"p50 +{p50:.1f} ms of {P50_MS:g}, p95 +{p95:.1f} ms of {P95_MS:g}"
    part = max(p50 / P50_MS, p95 / P95_MS)
    return [result("latency", part, 1.0, "of what may be added", note)]


def _key(body: bytes) -> bytes:
    """Return the second of an event, which no two of these events share."""
    return body.partition(b'"created_at":')[2].partition(b",")[0]


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]


def _with_users(local: Sandbox, users: int) -> Sandbox:
    for user in range(users):
        local.add_contact(external_id=f"user-{user:08}")
    return local


def _settings(folder: Path, url: str = events.NOWHERE) -> Settings:
    table = events.table(folder, url)
    table["sync"][0]["intercom"] |= {"requests_per_minute": PER_MINUTE}
    return events.checked(table)
