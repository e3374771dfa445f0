"""Seeded scenarios, each a data file: the laws, checked on the journal of what arrived.

The whole delivery side runs unchanged, in virtual time, against the in-process sandbox.
"""

from __future__ import annotations

import random
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.journal import JournalEntry
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

FOLDER = Path(__file__).parent / "scenarios"
DAY_S = 24 * 3600


class Scenario(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a data file says. Shares are of one; seconds are since the beginning."""

    users: int
    events: int
    over_s: float
    known: float
    """Share of the users that Intercom has from the beginning."""
    identifies: float
    """Share of the events that are identifies."""
    faults: list[Fault] = []
    flap_s: float = 0.0
    latency_s: float | tuple[float, float] = (0.05, 0.4)
    limit_per_minute: int = 10_000
    foreign: float = 0.0
    appear_within_s: float = 0.0
    archive_every_s: float = 0.0
    merge_every_s: float = 0.0
    crashes: int = 0
    then_every_s: float = 0.0
    """From then on, until all is settled: seconds between two events of users that are well."""
    dead: list[str] = []
    dead_at_most: int = 1_000
    probes_at_most: int | None = None
    exact_calls: bool = False
    seeds: int = 20


NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Scenario:
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return msgspec.convert(table, Scenario)


class Play:
    """One scenario with one seed, on its way."""

    def __init__(self, scenario: Scenario, seed: int, folder: Path) -> None:
        self.scenario = scenario
        self.seed = seed
        self.folder = folder
        self.dice = random.Random(seed)
        self.users = [f"user-{n:03}" for n in range(scenario.users)]
        self.sent: dict[str, list[int]] = defaultdict(list)
        self.identified: dict[str, int] = {}
        self.strangers: list[str] = []

    async def run(self) -> None:
        scenario = self.scenario
        self.local = simulation.sandbox(
            seed=self.seed,
            latency_s=scenario.latency_s,
            limit_per_minute=scenario.limit_per_minute,
            faults=[] if scenario.flap_s else scenario.faults,
        )
        for user in self.users:
            if self.dice.random() < scenario.known:
                self.local.add_contact(external_id=user)
            elif not scenario.appear_within_s:
                self.strangers.append(user)
        arrivals = sorted(self.dice.uniform(0, scenario.over_s) for _ in range(scenario.events))
        restarts = sorted(self.dice.uniform(0, scenario.over_s) for _ in range(scenario.crashes))
        async with anyio.create_task_group() as tasks:
            for upset in self._upsets():
                tasks.start_soon(upset)
            for end_s in [*restarts, None]:
                await self._live(arrivals, end_s)
            tasks.cancel_scope.cancel()

    async def _live(self, arrivals: list[float], end_s: float | None) -> None:
        """Run one process: until a crash, or until everything is settled."""
        delivery = {"retry_attempts": 10}
        engine_settings: dict[str, Any] = {
            "delivery": delivery,
            "users": {"properties": ["plan", "visits"]},
        }
        async with simulation.engine(
            self.folder, self.local, self.seed, **engine_settings
        ) as engine:
            while arrivals and (end_s is None or arrivals[0] < end_s):
                await _until(arrivals.pop(0))
                await engine.submit([self._event()], api_key=simulation.API_KEY)
            if end_s is not None:
                await _until(end_s)
                engine.cancel()
                return
            with anyio.fail_after(2 * DAY_S):
                await self._settled(engine)
            [self.status] = (await engine.status()).syncs

    async def _settled(self, engine: Engine) -> None:
        while self.scenario.then_every_s:
            with anyio.move_on_after(self.scenario.then_every_s):
                await engine.settled()
                return
            await engine.submit([self._event()], api_key=simulation.API_KEY)
        await engine.settled()

    def _event(self) -> dict[str, Any]:
        """Return the next event; its number is its order."""
        user = self.dice.choice(self.users)
        n = sum(len(sent) for sent in self.sent.values()) + sum(self.identified.values())
        if self.dice.random() < self.scenario.identifies:
            self.identified[user] = self.identified.get(user, 0) + 1
            operations = {"$set": {"plan": f"plan-{n}"}, "$add": {"visits": 1}}
            return simulation.identify(user, 10**6 + n, operations)
        self.sent[user].append(n)
        return simulation.event(user, n)

    # --- what happens meanwhile -----------------------------------------------------------

    def _upsets(self) -> Iterator[Any]:
        if self.scenario.flap_s:
            yield self._flap
        if self.scenario.foreign:
            yield self._foreign_client
        if self.scenario.appear_within_s:
            yield self._appear
        if self.scenario.archive_every_s:
            yield self._archive
        if self.scenario.merge_every_s:
            yield self._merge

    async def _flap(self) -> None:
        while virtual.current().now_s < self.scenario.over_s:
            await anyio.sleep(self.dice.uniform(1, self.scenario.flap_s))
            down = not self.local.faults
            self.local.faults[:] = self.scenario.faults if down else []
        self.local.faults.clear()

    async def _foreign_client(self) -> None:
        while True:
            await anyio.sleep(0.1)
            self.local.foreign_calls(int(self.scenario.foreign * self.local.limit / 100))

    async def _appear(self) -> None:
        there = {contact.external_id for contact in self.local.contacts.values()}
        for user in self.users:
            if user not in there:
                await anyio.sleep(self.scenario.appear_within_s / len(self.users))
                self.local.add_contact(external_id=user)

    async def _archive(self) -> None:
        while virtual.current().now_s < self.scenario.over_s:
            await anyio.sleep(self.scenario.archive_every_s)
            live = [c.id for c in self.local.contacts.values() if c.state == "live"]
            self.local.handle(simulation.archive(self.dice.choice(live)))
            self.local.journal.pop()

    async def _merge(self) -> None:
        while virtual.current().now_s < self.scenario.over_s:
            await anyio.sleep(self.scenario.merge_every_s)
            live = [c.id for c in self.local.contacts.values() if c.state == "live"]
            if len(live) > 2:
                self.local.merge(*self.dice.sample(live, 2))


async def _until(at_s: float) -> None:
    await anyio.sleep(max(0.0, at_s - virtual.current().now_s))


# --- the laws -----------------------------------------------------------------------------------


def check(play: Play) -> None:
    status, local = play.status, play.local
    check_accounting(play, status)
    arrivals = [entry for entry in local.journal if entry.path == "/events" and entry.status]
    check_order(play, arrivals)
    check_retries(local)
    assert local.most_calls_in(10.0) <= local.limit
    if not play.scenario.foreign:
        assert not [e for e in local.journal if e.outcome == "rate_limit_exceeded"]
    if play.scenario.probes_at_most is not None:
        failed = [e for e in local.journal if e.status not in (200, 202, 404, 409)]
        assert len(failed) <= play.scenario.probes_at_most
    if play.scenario.exact_calls:
        check_calls(play)


def check_accounting(play: Play, status: SyncStatus) -> None:
    """Law 2, and that nothing is lost or dead that should not be."""
    sent = sum(map(len, play.sent.values())) + sum(play.identified.values())
    assert status.received == sent
    assert status.delivered + sum(status.dropped.values()) + status.dead == sent
    assert set(status.dropped) <= {"unchanged"}
    never_there = sum(
        len(play.sent[user]) for user in play.strangers if user not in play.identified
    )
    unknown = status.dead_by_reason.get("user_not_found", 0)
    allowed = set(play.scenario.dead) | ({"user_not_found"} if unknown <= never_there else set())
    assert set(status.dead_by_reason) <= allowed
    assert status.dead - never_there <= play.scenario.dead_at_most


def check_order(play: Play, arrivals: list[JournalEntry]) -> None:
    """Law 3: the first time that each event was taken, in the order of acceptance."""
    taken: dict[str, list[int]] = defaultdict(list)
    user_of = {n: user for user, sent in play.sent.items() for n in sent}
    for entry in arrivals:
        body = msgspec.json.decode(entry.body)
        n = body["metadata"]["n"]
        user = user_of[n]
        assert body["user_id"] in names_of(play.local, user), "an invented call"
        if entry.status == 202 and n not in taken[user]:
            taken[user].append(n)
    lost = sum(len(play.sent[user]) - len(taken[user]) for user in play.sent)
    assert lost <= play.status.dead
    assert all(order == sorted(order) for order in taken.values())


def names_of(local: Sandbox, user: str) -> set[str]:
    """Return as whom a user's events may go out: its own, and of those it was merged into."""
    names = {user}
    for contact in local.contacts.values():
        if contact.external_id == user:
            while contact.state == "merged":
                contact = local.contacts[contact.merged_into]
                names.add(str(contact.external_id))
    return names


def check_retries(local: Sandbox) -> None:
    """Law 6: an event has one body, whenever and however often it is sent; and one more for each
    user that its own was merged into."""
    bodies: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for entry in local.journal:
        if entry.path == "/events":
            body = msgspec.json.decode(entry.body)
            bodies[body["user_id"], body["metadata"]["n"]].add(entry.body)
    assert all(len(seen) == 1 for seen in bodies.values())
    stored = Counter((e.contact_id, e.metadata["n"]) for e in local.events)
    assert all(count == 1 for count in stored.values())


def check_calls(play: Play) -> None:
    """Law 5, by hand: one call an event, one a contact that is known, at most two where not."""
    calls = Counter(e.path == "/events" for e in play.local.journal if e.status != 404)
    assert calls[True] == sum(map(len, play.sent.values())) - play.status.dead
    # $add needs what the contact holds: one read more for each that was there before.
    most = sum(play.identified.values()) + 2 * len(play.identified)
    assert calls[False] <= most


@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name in NAMES for seed in range(load(name).seeds)]
)
@in_virtual_time
async def test_the_laws_hold(name: str, seed: int, tmp_path: Path) -> None:
    play = Play(load(name), seed, tmp_path)
    try:
        await play.run()
        check(play)
    except BaseException:
        print(
            f"again: python -m pytest tests/simulation/test_scenarios.py -k 'hold[{name}-{seed}]'"
        )
        raise
