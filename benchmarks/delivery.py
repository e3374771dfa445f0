"""How well deliveries use the wire, the allowance and the time."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.envelope import Identity, Kind, Record
from amplitude_intercom.engine.rules.bodies import creation_body, event_body
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports.intercom import VERSION, Answer, Request, Wire
from amplitude_intercom.transports.sandbox import InProcess, Sandbox, serve
from benchmarks import events, servers
from benchmarks.report import Result, result, result_of_rounds

IN_FLIGHT = 64
SUBMIT = 500


async def fill(settings: Settings, raws: Sequence[bytes]) -> None:
    """Have events accepted and not delivered."""
    async with Engine(settings, deliver=False) as engine:
        for start in range(0, len(raws), SUBMIT):
            await engine.submit(raws[start : start + SUBMIT], sync="benchmark")


async def drain(settings: Settings, wire: Wire | None = None) -> tuple[float, float]:
    """Deliver all that waits; return the seconds that it took, by the clock and of this process.

    What is delivered before the first answer, when one call a second leaves, is not measured.
    """
    factory = None if wire is None else lambda _: wire
    async with Engine(settings, wire=factory) as engine:
        spool = next(iter(engine.streams.values())).spool
        while not spool.counters["delivered"]:
            await asyncio.sleep(0.001)
        left = spool.counters["pending"] / spool.counters["received"]
        started, cpu = time.perf_counter(), time.process_time()
        await engine.settled()
        return (time.perf_counter() - started) / left, (time.process_time() - cpu) / left


def bodies_of(settings: Settings, raws: Sequence[bytes]) -> list[bytes]:
    """Return what is posted for these events."""
    rules = SyncRules(settings.sync[0])
    bodies = []
    for number, raw in enumerate(raws):
        record = Record(number, Kind.EVENT, f"user-{number:08}", 1_800_000_000_000, raw)
        verdict = rules.plan(record)
        assert isinstance(verdict, Keep)
        assert verdict.value.event is not None
        bodies.append(event_body(verdict.value.event))
    return bodies


async def _bare_posts(url: str, bodies: Sequence[bytes], status: int = 202) -> tuple[float, float]:
    """Post bodies, 64 at a time, and read the answers."""
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

        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - started, time.process_time() - cpu


def over_sockets(seed: int, *, smoke: bool) -> list[Result]:
    """Events over real sockets without a rate limit: calls a second, CPU a call."""
    count, rounds = (1_500, 2) if smoke else (8_000, 4)
    raws = events.events(count, seed, users=count)
    speed, cost = [], []
    with servers.running("intercom") as address:
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                settings = _settings(Path(name), f"http://{address}", {})
                bodies = bodies_of(settings, raws)
                asyncio.run(fill(settings, raws))
                posts = _bare_posts(f"http://{address}/events", bodies)
                if number % 2:
                    mine = asyncio.run(drain(settings))
                    theirs = asyncio.run(posts)
                else:
                    theirs = asyncio.run(posts)
                    mine = asyncio.run(drain(settings))
            speed.append((count / mine[0], count / theirs[0]))
            cost.append((mine[1] / count * 1e6, theirs[1] / count * 1e6))
    return [
        result_of_rounds("delivery", speed, "calls/s"),
        result_of_rounds("delivery-cpu", cost, "µs of CPU a call"),
    ]


def updates_over_sockets(seed: int, *, smoke: bool) -> list[Result]:
    """First contacts of new users over real sockets, without a rate limit: calls a second.

    What is about to be written is durable before each call, and what came of it after.
    """
    count, rounds = (1_000, 2) if smoke else (6_000, 4)
    raws = [msgspec.json.encode(_identify(user, PLANS[user % 3], user)) for user in range(count)]
    bodies = [
        creation_body(
            Identity("external_id", f"user-{user:08}"),
            {"custom_attributes.plan": PLANS[user % 3]},
        )
        for user in range(count)
    ]
    speed = []
    with servers.running("intercom") as address:
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                settings = _settings(Path(name), f"http://{address}", {})
                asyncio.run(fill(settings, raws))
                posts = _bare_posts(f"http://{address}/contacts", bodies, 200)
                if number % 2:
                    mine = asyncio.run(drain(settings))
                    theirs = asyncio.run(posts)
                else:
                    theirs = asyncio.run(posts)
                    mine = asyncio.run(drain(settings))
            speed.append((count / mine[0], count / theirs[0]))
    return [result_of_rounds("delivery-updates", speed, "calls/s")]


def _settings(folder: Path, url: str, intercom: dict[str, Any], **more: Any) -> Settings:
    table = events.table(folder, url, **more)
    table["sync"][0]["intercom"] |= intercom
    return events.checked(table)


def _known(local: Sandbox, users: int) -> Sandbox:
    for user in range(users):
        local.add_contact(external_id=f"user-{user:08}")
    return local


# --- the allowance ------------------------------------------------------------------------


KNOWN_AFTER = 20
"""Calls after which the limit is known; before the first answer one a second leaves."""


def of_the_allowance(seed: int, *, smoke: bool) -> list[Result]:
    """A backlog, a minute of real time, 300 ms latency: calls of those that are allowed."""
    seconds = 3 if smoke else 60
    allowed = 10_000 * seconds / 60
    local = _known(Sandbox(latency_s=0.3, seed=seed), 2_000)

    async def scenario(folder: Path) -> int:
        async with serve(local) as url:
            settings = _settings(folder, url, {"requests_per_minute": 10_000})
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


# --- the calls ----------------------------------------------------------------------------

KNOWN_SHARE = 0.3
PLANS = ("free", "pro", "team")


def number_of_calls(seed: int, *, smoke: bool) -> list[Result]:
    """A day of 10,000 users in bursts; what law 5 allows is counted beside it, by hand.

    A burst is settled before the next one, so that no two changes of one user can become one.
    """
    users, bursts = (300, 4) if smoke else (10_000, 6)
    dice = random.Random(seed)
    local = Sandbox(open_attributes=True, seed=seed, limit_per_minute=50_000_000)
    known = {user for user in range(users) if dice.random() < KNOWN_SHARE}
    for user in known:
        local.add_contact(external_id=f"user-{user:08}")
    plans: dict[int, str] = {}
    counted = 2  # whose workspace it is, and the list of attributes
    identifies = sent = 0

    async def scenario(folder: Path) -> None:
        nonlocal counted, identifies, sent
        settings = events.settings(folder)
        async with Engine(settings, wire=lambda _: InProcess(local)) as engine:
            number = 0
            for _ in range(bursts):
                burst: list[dict[str, Any]] = []
                for user in range(users):
                    if user not in plans or dice.random() < 0.5:
                        plan = dice.choice(PLANS)
                        repeats = dice.randrange(1, 4)
                        identifies += repeats
                        if user not in plans:
                            counted += 2 if user in known else 1
                        elif plans[user] != plan:
                            counted += 1
                        plans[user] = plan
                        burst += [_identify(user, plan, number + n) for n in range(repeats)]
                        number += repeats
                    for _ in range(dice.randrange(4)):
                        burst.append(_purchase(user, number))
                        number += 1
                        sent += 1
                for start in range(0, len(burst), SUBMIT):
                    await engine.submit(burst[start : start + SUBMIT], sync="benchmark")
                await engine.settled()
        counted += sent

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(scenario(Path(name)))
    assert len(local.events) == sent
    naive = 2 * identifies + sent
    note = f"search, then write, would be {naive:,}"
    return [result("calls", local.calls, counted, "calls", note)]


def calls_of_first_contacts(seed: int, *, smoke: bool) -> list[Result]:
    """First contacts of users all of whom, and half of whom, are in the workspace already.

    Those who are there have an e-mail, and half of them the plan that is written: one call where
    nothing differs, two where something does, and two at most where they are new. At Intercom's own
    pace: what the first answers teach comes too late for whoever is on the way by then.
    """
    users = 300 if smoke else 10_000
    dice = random.Random(seed)
    results = []
    for name, share in (("calls-there", 1.0), ("calls-half", 0.5)):
        local = Sandbox(open_attributes=True, seed=seed, limit_per_minute=10_000)
        counted = 2
        for user in range(users):
            is_there, is_same = dice.random() < share, dice.random() < 0.5
            counted += 1 if share == 1 and is_same else 2
            if is_there:
                plan = {"plan": "pro" if is_same else "free"}
                local.add_contact(
                    external_id=f"user-{user:08}", email=_email(user), custom_attributes=plan
                )
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_identify_all(Path(folder), local, users))
        note = f"{local.calls / users:.2f} a user; search, then write, would be {2 * users:,}"
        results.append(result(name, local.calls, counted, "calls", note))
    return results


async def _identify_all(folder: Path, local: Sandbox, users: int) -> None:
    settings = _settings(folder, "http://127.0.0.1:9", {}, users={"properties": ["plan", "email"]})
    async with Engine(settings, wire=lambda _: InProcess(local)) as engine:
        for start in range(0, users, SUBMIT):
            batch = [
                _of(user, "$identify", user)
                | {"user_properties": {"$set": {"plan": "pro", "email": _email(user)}}}
                for user in range(start, min(users, start + SUBMIT))
            ]
            await engine.submit(batch, sync="benchmark")
        await engine.settled()


def _email(user: int) -> str:
    return f"user-{user:08}@example.com"


def _identify(user: int, plan: str, number: int) -> dict[str, Any]:
    properties = {"plan": plan}
    return _of(user, "$identify", number) | {"user_properties": {"$set": properties}}


def _purchase(user: int, number: int) -> dict[str, Any]:
    return _of(user, events.SELECTED, number) | {"event_properties": {"quantity": number % 5}}


def _of(user: int, event_type: str, number: int) -> dict[str, Any]:
    return {
        "user_id": f"user-{user:08}",
        "event_type": event_type,
        "insert_id": str(number),
        "time": 1_700_000_000_000 + number * 1_000,
    }


# --- latency ------------------------------------------------------------------------------

P50_MS, P95_MS = 10.0, 50.0
"""What may be added to Intercom's own latency."""


class _Stopwatch:
    """A wire that notes when each call was answered, and how long Intercom had it."""

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
    """From accepted to answered, at half of the allowance, over what Intercom takes itself."""
    seconds = 3 if smoke else 12
    users, per_s = 500, 10_000 / 60 / 2
    local = _known(Sandbox(latency_s=0.05, seed=seed), users)
    watch = _Stopwatch(InProcess(local))
    accepted_s: dict[bytes, float] = {}

    async def scenario(folder: Path) -> None:
        settings = _settings(folder, "http://127.0.0.1:9", {"requests_per_minute": 10_000})
        raws = events.events(int(seconds * per_s), seed, users=users)
        bodies = bodies_of(settings, raws)
        async with Engine(settings, wire=lambda _: watch) as engine:
            await engine.submit([events.events(1, seed + 1, users=1)[0]], sync="benchmark")
            await engine.settled()  # now the limit is known
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
    """Return what tells an event's body from others: all but whose it is."""
    return body.partition(b'"created_at":')[2].partition(b",")[0]


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(len(ordered) * share)]
