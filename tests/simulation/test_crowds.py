"""Failures in numbers: crowds of users whose calls fail, endpoints that are out, calls that hang.

Each data file of ``crowds`` is a scenario; the whole engine runs unchanged, in virtual time; the
journal of what arrived is judged, and what status says. What takes long runs with ``-m long``.
"""

from __future__ import annotations

import random
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.status import Status
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.journal import JournalEntry
from support import simulation, virtual
from support.virtual import in_virtual_time

pytestmark = pytest.mark.timeout(300)
"""The largest crowds take half a minute, where nothing else runs on the machine."""

FOLDER = Path(__file__).parent / "crowds"
TICK_S = 0.5
LOOK_S = 600.0


class Crowd(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Users of one kind: ``events_per_s`` together, or (0) one event each, within ``spread_s``."""

    name: str
    users: int
    events_per_s: float = 0.0
    spread_s: float = 1.0
    each: int = 1
    start_s: float = 0.0
    end_s: float | None = None
    kind: Literal["event", "identify"] = "event"
    known: bool = True
    sync: str = "simulated"


class Flap(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Faults are there for ``on_s`` and away for ``off_s``, over and over, until an instant."""

    on_s: float
    off_s: float
    end_s: float


class Calls(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How many calls to a path may be made in the first minute from an instant, and in each later
    one until another."""

    path: str
    start_s: float
    end_s: float
    first: int
    then: int
    method: str = ""


class Scenario(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a data file says; seconds are since the beginning."""

    seconds: float
    crowds: list[Crowd]
    faults: list[Fault] = []
    flap: Flap | None = None
    revoked_s: tuple[float, float] | None = None
    latency_s: float | tuple[float, float] = 0.3
    slower_s: tuple[float, float] | None = None
    """From an instant on, another latency."""
    limit: int = 1_667
    syncs: tuple[str, ...] = ("simulated",)
    more_syncs: int = 0
    restart_s: tuple[float, float] | None = None
    """A process that ends at an instant, and one that starts at another."""
    appear_s: float | None = None
    settle: bool = True
    """Whether all is settled within a day after the end, once there are no faults any more."""

    p95_s: dict[str, float] = {}
    most_s: dict[str, float] = {}
    undelivered: dict[str, int] = {}
    dead_at_most: int = 0
    parked: int = 0
    parked_s: float = 0.0
    """So many users are parked by then."""
    calls_each: dict[str, int] = {}
    """Calls for each user of a crowd within ten minutes, at most."""
    calls: list[Calls] = []
    used: float = 0.0
    used_from_s: float = 0.0
    """Share of the allowance that is used from then on."""
    throttled: float = 0.0


def load(path: Path) -> Scenario:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return msgspec.convert(table, Scenario)


Key = tuple[str, int]
"""A user and the number of its event."""


class Play:
    """One scenario on its way."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folder = folder
        self.dice = random.Random(1)
        self._taken_s: dict[str, dict[Key, float]] = {}
        self._read_to = -1
        self.accepted_s: dict[str, dict[Key, float]] = defaultdict(dict)
        self.crowd_of: dict[str, str] = {}
        self.parked = 0
        self.at_end: set[Key] = set()

    async def run(self) -> None:
        scenario = self.scenario
        self.local = simulation.sandbox(
            seed=1,
            latency_s=scenario.latency_s,
            limit_per_minute=scenario.limit * 6,
            faults=[] if scenario.flap else scenario.faults,
        )
        self.ids: dict[str, str] = {}
        for crowd in scenario.crowds:
            for user in _users(crowd):
                self.crowd_of[user] = crowd.name
                if crowd.known:
                    self.ids.setdefault(user, self.local.add_contact(external_id=user))
        arrivals = self._arrivals()
        async with anyio.create_task_group() as tasks:
            for upset in (self._flap, self._revoke, self._slow_down, self._appear):
                tasks.start_soon(upset)
            if scenario.restart_s is not None:
                end_s, start_s = scenario.restart_s
                await self._live(arrivals, end_s)
                await _until(start_s)
            await self._live(arrivals, None)
            tasks.cancel_scope.cancel()

    def _arrivals(self) -> list[tuple[float, Crowd, str, int]]:
        found = []
        for crowd in self.scenario.crowds:
            users, end_s = _users(crowd), crowd.end_s or self.scenario.seconds
            if crowd.events_per_s:
                count = int((end_s - crowd.start_s) * crowd.events_per_s)
                times = [crowd.start_s + n / crowd.events_per_s for n in range(count)]
                who = [users[n % len(users)] for n in range(count)]
            else:
                count = len(users) * crowd.each
                times = [crowd.start_s + crowd.spread_s * n / count for n in range(count)]
                who = [users[n % len(users)] for n in range(count)]
            found += [(at_s, crowd, who[n], n) for n, at_s in enumerate(times)]
        return sorted(found, key=lambda arrival: arrival[0])

    async def _live(self, arrivals: list[Any], end_s: float | None) -> None:
        """Run one process, until it ends or all is done."""
        scenario, loop = self.scenario, virtual.current()
        async with Engine(
            self._settings(),
            wire=lambda _: InProcess(self.local),
            now_ms=loop.wall_ms,
            now_s=loop.wall_s,
            jitter=self.dice.random,
            inline=True,
        ) as engine:
            last_s = scenario.seconds if end_s is None else end_s
            async with anyio.create_task_group() as tasks:
                if scenario.parked and end_s is None:
                    tasks.start_soon(self._look_at_parked, engine)
                while loop.now_s < last_s:
                    await self._submit(engine, arrivals)
                    next_s = arrivals[0][0] if arrivals else last_s
                    await _until(min(last_s, max(next_s, loop.now_s + TICK_S)))
            if end_s is not None:
                engine.cancel()
                return
            self._look_at_end()
            if scenario.settle:
                self.local.faults.clear()
                with anyio.fail_after(86_400):
                    await engine.settled()
            self.status = await engine.status()

    async def _submit(self, engine: Engine, arrivals: list[Any]) -> None:
        now_s, by_sync = virtual.current().now_s, defaultdict(list)
        while arrivals and arrivals[0][0] <= now_s:
            _, crowd, user, n = arrivals.pop(0)
            if crowd.kind == "identify":
                made = simulation.identify(user, n, {"$set": {"plan": f"{crowd.name}-{n}"}})
            else:
                made = simulation.event(user, n)
            by_sync[crowd.sync].append(made | {"insert_id": f"{crowd.name}/{user}/{n}"})
            self.accepted_s[crowd.name][user, n] = now_s
        for sync, events in by_sync.items():
            await engine.submit(events, sync=sync)

    def _settings(self) -> Any:
        names = [*self.scenario.syncs, *(f"more-{n}" for n in range(self.scenario.more_syncs))]
        table = {
            "amplitude_api_keys": [simulation.API_KEY],
            "intercom": {
                "access_token": "simulated-token",
                "requests_per_minute": self.scenario.limit * 6,
            },
            "users": {"properties": ["plan"]},
            "events": {"select": [{"types": ["*"]}], "metadata": ["n"]},
        }
        syncs = [{"name": name, **table} for name in names]
        return from_table({"data_dir": str(self.folder), "sync": syncs})

    # --- what happens meanwhile -----------------------------------------------------------

    async def _flap(self) -> None:
        flap = self.scenario.flap
        while flap is not None and virtual.current().now_s < flap.end_s:
            self.local.faults[:] = self.scenario.faults
            await anyio.sleep(flap.on_s)
            self.local.faults.clear()
            await anyio.sleep(flap.off_s)

    async def _revoke(self) -> None:
        if self.scenario.revoked_s is not None:
            start_s, end_s = self.scenario.revoked_s
            await _until(start_s)
            self.local.revoke_token()
            await _until(end_s)
            self.local.restore_token()

    async def _slow_down(self) -> None:
        if self.scenario.slower_s is not None:
            at_s, latency_s = self.scenario.slower_s
            await _until(at_s)
            self.local.set_latency_s(latency_s)

    async def _appear(self) -> None:
        if self.scenario.appear_s is not None:
            await _until(self.scenario.appear_s)
            for user in self.crowd_of:
                if user not in self.ids:
                    self.local.add_contact(external_id=user)

    async def _look_at_parked(self, engine: Engine) -> None:
        await _until(self.scenario.parked_s)
        status = await engine.status()
        self.parked = sum(sum(sync.parked_users.values()) for sync in status.syncs)

    def _look_at_end(self) -> None:
        now_s = virtual.current().now_s
        self.late = {}
        for crowd, accepted in self.accepted_s.items():
            left = [at_s for key, at_s in accepted.items() if key not in self._taken(crowd)]
            self.late[crowd] = sum(at_s < now_s - 5.0 for at_s in left)

    # --- what is in the journal -----------------------------------------------------------

    def _taken(self, crowd: str) -> dict[Key, float]:
        """Return when each event, or the update that says the same, was taken first."""
        if self._read_to != len(self.local.journal):
            self._taken_s = self._read()
            self._read_to = len(self.local.journal)
        return self._taken_s.get(crowd, {})

    def _read(self) -> dict[str, dict[Key, float]]:
        found: dict[str, dict[Key, float]] = defaultdict(dict)
        for entry in self.local.journal:
            if entry.status not in (200, 202) or not entry.body.startswith(b"{"):
                continue
            at_s = entry.at_s - virtual.EPOCH_S
            body = msgspec.json.decode(entry.body)
            if entry.path == "/events":
                user, n = body["user_id"], body["metadata"]["n"]
                found[self._crowd(user, n)].setdefault((user, n), at_s)
            elif plan := body.get("custom_attributes", {}).get("plan"):
                crowd, _, n = plan.rpartition("-")
                user = self.local.contacts[entry.contact_id].external_id
                found[crowd].setdefault((str(user), int(n)), at_s)
        return found

    def _crowd(self, user: str, n: int) -> str:
        """Return of which crowd an event is: a user may be of two."""
        crowds = [name for name, accepted in self.accepted_s.items() if (user, n) in accepted]
        return crowds[0]

    def latencies(self, crowd: str) -> list[float]:
        """Return how long the events of a crowd took that arrived, in order; those of updates that
        became one with a later one are left out."""
        taken, accepted = self._taken(crowd), self.accepted_s[crowd]
        return sorted(taken[key] - at_s for key, at_s in accepted.items() if key in taken)

    def calls_of(self, path: str, method: str) -> list[JournalEntry]:
        return [
            entry
            for entry in self.local.journal
            if entry.path.startswith(path) and method in ("", entry.method)
        ]


def _users(crowd: Crowd) -> list[str]:
    return [f"{crowd.name}-user-{n:04}" for n in range(crowd.users)]


async def _until(at_s: float) -> None:
    await anyio.sleep(max(0.0, at_s - virtual.current().now_s))


# --- what must hold -----------------------------------------------------------------------


def check(play: Play) -> None:
    scenario, local = play.scenario, play.local
    check_accounts(play, play.status)
    check_order(play)
    assert local.most_calls_in(10.0) <= local.limit
    assert local.throttled <= scenario.throttled * len(local.journal)
    for crowd, most_s in scenario.p95_s.items():
        found = play.latencies(crowd)
        assert found[int(len(found) * 0.95)] < most_s, f"p95 of {crowd}"
    for crowd, most_s in scenario.most_s.items():
        assert play.latencies(crowd)[-1] < most_s, f"the slowest of {crowd}"
    for crowd, most in scenario.undelivered.items():
        assert play.late[crowd] <= most, f"undelivered of {crowd}"
    assert play.parked >= scenario.parked
    check_calls(play)
    if scenario.used:
        allowed = (scenario.seconds - scenario.used_from_s) / 10 * scenario.limit
        start_s = virtual.EPOCH_S + scenario.used_from_s
        end_s = virtual.EPOCH_S + scenario.seconds
        made = sum(start_s <= entry.at_s < end_s for entry in local.journal)
        assert made >= scenario.used * allowed, f"{made} calls of {allowed}"


def check_accounts(play: Play, status: Status) -> None:
    """Law 2, and that nothing is dead that should not be."""
    for sync in status.syncs:
        settled = sync.delivered + sum(sync.dropped.values()) + sync.dead
        assert sync.received == settled + sync.pending
    assert sum(sync.dead for sync in status.syncs) <= play.scenario.dead_at_most
    if play.scenario.settle:
        assert sum(sync.pending for sync in status.syncs) == 0


def check_order(play: Play) -> None:
    """Law 3: the first time that each event was taken, in the order of acceptance; law 6."""
    order: dict[tuple[str, str], list[int]] = defaultdict(list)
    bodies: dict[Key, set[bytes]] = defaultdict(set)
    for entry in play.local.journal:
        if entry.path != "/events":
            continue
        body = msgspec.json.decode(entry.body)
        user, n = body["user_id"], body["metadata"]["n"]
        bodies[user, n].add(entry.body)
        mine = order[play._crowd(user, n), user]
        if entry.status == 202 and n not in mine[-50:]:
            mine.append(n)
    assert all(taken == sorted(taken) for taken in order.values())
    assert all(len(seen) == 1 for seen in bodies.values())


def check_calls(play: Play) -> None:
    for crowd, most in play.scenario.calls_each.items():
        calls: Counter[str] = Counter()
        for entry in play.local.journal:
            if entry.at_s - virtual.EPOCH_S < LOOK_S and b'"user_id"' in entry.body:
                calls[msgspec.json.decode(entry.body)["user_id"]] += 1
        mine = [calls[user] for user, of in play.crowd_of.items() if of == crowd]
        assert max(mine) <= most, f"calls for one of {crowd}"
    for bound in play.scenario.calls:
        times = [
            entry.at_s - virtual.EPOCH_S
            for entry in play.calls_of(bound.path, bound.method)
            if entry.status not in (200, 202)
        ]
        first = sum(bound.start_s <= at_s < bound.start_s + 60 for at_s in times)
        assert first <= bound.first, f"{bound.path}: {first} in the first minute"
        for minute_s in range(int(bound.start_s) + 60, int(bound.end_s) - 60, 60):
            made = sum(minute_s <= at_s < minute_s + 60 for at_s in times)
            assert made <= bound.then, f"{bound.path}: {made} in the minute from {minute_s} on"


def _parameters() -> list[Any]:
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.long] if "-long" in path.stem else [])
        for path in sorted(FOLDER.glob("*.toml"))
    ]


@pytest.mark.parametrize("path", _parameters())
@in_virtual_time
async def test_crowds(path: Path, tmp_path: Path) -> None:
    play = Play(load(path), tmp_path)
    await play.run()
    check(play)
