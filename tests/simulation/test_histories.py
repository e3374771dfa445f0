"""Random histories: faults of every kind, in any mixture, with kills and clocks that are set.

Each seed draws a history, which the whole engine lives through in virtual time; then all faults end
and everything is settled. What the laws promise is read from the sandbox's journal. A seed that
fails once stands in ``FOUND``, for good.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

FOUND: Final = (330,)
"""Seeds of histories that once broke a law."""
IN_CI: Final = range(300)
MANY: Final = range(300, 3_000)

LIMITS: Final = (7, 20, 83, 167, 1_667)
LATENCIES: Final = (0.02, 0.3, (0.05, 0.6), 1.0)
STATUSES: Final = (500, 502, 503, 504, 408, 403, 401, 429)
PAGES: Final = (200, 404, 502)
LONGEST_S: Final = 900.0
MOST_EVENTS: Final = 200
DAY_S: Final = 86_400.0
ATTEMPTS: Final = 30
"""Attempts that a user has, so that a fault of half of all calls kills none by chance."""
FEW_ATTEMPTS: Final = 4
LOOK_S: Final = 600.0
MOST_CALLS: Final = 120
"""Calls for one event in so many seconds: the probes of an outage of ten minutes are the most."""
LATE_S: Final = 60.0
"""Users that are well do not wait longer for others that are not."""

LOST = "the program has a fault for this user"

Kinds = tuple[Literal["status", "html", "hang", "reset", "half", "refuse"], ...]
KINDS: Kinds = ("status", "status", "html", "hang", "reset", "half", "refuse")


class History:
    """What one seed draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        dice = self.dice = random.Random(seed)
        self.limit = dice.choice(LIMITS)
        self.latency_s: Any = dice.choice(LATENCIES)
        self.syncs = [f"sync-{n}" for n in range(dice.choice((1, 1, 2, 3)))]
        self.unknown_user = {
            sync: dice.choice(("park", "park", "create", "drop", "dead_letter"))
            for sync in self.syncs
        }
        self.seconds = dice.uniform(60, LONGEST_S)
        users = [f"user-{n:03}-" for n in range(dice.choice((1, 5, 20, 50)))]
        dice.shuffle(users)
        ill, strangers, late = (int(len(users) * dice.choice((0, 0, 0.1, 0.5))) for _ in "abc")
        self.ill = users[:ill]
        self.strangers = users[ill : ill + strangers]
        self.late = {u: dice.uniform(0, self.seconds) for u in users[ill + strangers :][:late]}
        self.users = users
        per_s = min(20.0, 0.4 * self.limit / 10) * dice.choice((0.1, 0.5, 1.0))
        self.events = min(MOST_EVENTS, int(per_s * self.seconds))
        self.updates = dice.choice((0.0, 0.1, 0.5))
        self.faults = [self._fault(user) for user in self.ill]
        self.bugs = self.ill[: dice.choice((0, 0, 0, 30))]
        """Users for which this program has a fault."""
        self.general = [self._fault("") for _ in range(dice.choice((0, 0, 1, 2)))]
        self.revoked = self._spans(dice.choice((0, 0, 0, 1)))
        self.foreign = dice.choice((0.0, 0.0, 0.0, 0.3, 0.6))
        self.ends = sorted(dice.uniform(0, self.seconds) for _ in range(dice.choice((0, 0, 1, 3))))
        """When a process ends, and the next one begins."""
        self.is_killed = dice.random() < 0.7
        self.clock_steps = [
            (dice.uniform(0, self.seconds), dice.choice((-3_600.0, -40.0, 40.0, 3_600.0)))
            for _ in range(dice.choice((0, 0, 0, 1, 2)))
        ]
        self.archives = dice.choice((0, 0, 0, 3))

    def _spans(self, count: int) -> list[tuple[float, float]]:
        starts = [self.dice.uniform(0, self.seconds) for _ in range(count)]
        return [(at_s, at_s + self.dice.choice((3.0, 30.0, 300.0))) for at_s in starts]

    def _fault(self, user: str) -> Fault:
        """Draw a fault of one user, or (no ``user``) of a whole endpoint."""
        dice = self.dice
        [(start_s, end_s)] = self._spans(1)
        kind = dice.choice(KINDS)
        return Fault(
            kind=kind,
            status=dice.choice(STATUSES if kind == "status" else PAGES),
            share=dice.choice((1.0, 1.0, 0.5)),
            start_s=start_s,
            end_s=self.seconds if user and dice.random() < 0.5 else end_s,
            path=dice.choice(("", "/events", "/contacts", "/me", "/data_attributes")),
            contains=user,
            done=dice.random() < 0.5,
        )

    @property
    def attempts(self) -> int:
        return ATTEMPTS if any(f.share < 1 for f in self.general) else FEW_ATTEMPTS

    @property
    def is_calm(self) -> bool:
        """Whether only single users are struck, so that all others are served in time."""
        slow = any(fault.kind == "hang" for fault in self.faults)
        apart = self.general or self.revoked or self.ends or self.clock_steps or self.foreign
        return not (apart or slow or self.archives)


class Wire(InProcess):
    """The way to the sandbox; for some users it does what nobody has foreseen."""

    def __init__(self, sandbox: Sandbox, bugs: Collection[str]) -> None:
        super().__init__(sandbox)
        self._bugs = bugs

    async def send(self, request: Request) -> Answer:
        body = (request.body or b"").decode()
        if any(user in body for user in self._bugs):
            raise RuntimeError(LOST)
        return await super().send(request)


class Play:
    """One history on its way."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.folder = folder
        self.lives = 0
        self.accepted: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self.of_event: dict[int, tuple[str, str]] = {}
        self.updated: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self.at_work: int = 0
        """Calls that were at work when a process was killed, of all of them."""
        self.gone: set[str] = set()

    async def run(self) -> None:
        history = self.history
        self.local = simulation.sandbox(
            seed=history.seed,
            latency_s=history.latency_s,
            limit_per_minute=history.limit * 6,
            faults=[*history.faults, *history.general],
            now=lambda: virtual.EPOCH_S + virtual.current().now_s,
        )
        for user in history.users:
            if user not in history.strangers and user not in history.late:
                self.local.add_contact(external_id=user)
        arrivals = sorted(history.dice.uniform(0, history.seconds) for _ in range(history.events))
        async with anyio.create_task_group() as tasks:
            for upset in (self._appear, self._revoke, self._take_calls, self._set_clock):
                tasks.start_soon(upset)
            tasks.start_soon(self._archive)
            for end_s in history.ends:
                await self._live(arrivals, end_s)
            await self._live(arrivals, None)
            tasks.cancel_scope.cancel()

    async def _live(self, arrivals: list[float], end_s: float | None) -> None:
        """Run one process: until it is killed, or until everything is settled."""
        loop = virtual.current()
        async with Engine(
            self._settings(),
            wire=lambda _: Wire(self.local, self.history.bugs),
            now_ms=loop.wall_ms,
            now_s=loop.wall_s,
            jitter=self.history.dice.random,
            inline=True,
        ) as engine:
            until_s = self.history.seconds if end_s is None else end_s
            while arrivals and arrivals[0] < until_s:
                await _until(arrivals.pop(0))
                await self._submit(engine)
            await _until(until_s)
            if end_s is not None:
                if self.history.is_killed:
                    self._kill(engine)
                return
            self.local.faults.clear()
            self.local.restore_token()
            with anyio.fail_after(3 * DAY_S):
                await engine.settled()
            self.status = await engine.status()

    def _kill(self, engine: Engine) -> None:
        """End a process at once: the next one finds what is on disk at this instant."""
        before = self.folder / f"life-{self.lives}"
        schedulers = {s.delivery.scheduler for s in engine.streams.values() if s.delivery}
        self.at_work += sum(scheduler.at_work.calls for scheduler in schedulers)
        self.lives += 1
        shutil.copytree(before, self.folder / f"life-{self.lives}")
        engine.cancel()

    def _settings(self) -> Any:
        table = {
            "amplitude_api_keys": [simulation.API_KEY],
            "intercom": {
                "access_token": "simulated-token",
                "requests_per_minute": self.history.limit * 6,
            },
            "users": {"properties": ["plan"]},
            "delivery": {"retry_attempts": self.history.attempts},
        }
        syncs = [
            {
                "name": name,
                **table,
                "events": {
                    "select": [{"types": ["*"]}],
                    "metadata": ["n"],
                    "unknown_user": unknown_user,
                },
            }
            for name, unknown_user in self.history.unknown_user.items()
        ]
        folder = self.folder / f"life-{self.lives}"
        return from_table({"data_dir": str(folder), "sync": syncs})

    async def _submit(self, engine: Engine) -> None:
        dice = self.history.dice
        user, sync = dice.choice(self.history.users), dice.choice(self.history.syncs)
        n, now_s = len(self.of_event), virtual.current().now_s
        self.of_event[n] = sync, user
        if dice.random() < self.history.updates:
            made = simulation.identify(user, n, {"$set": {"plan": f"plan-{n}"}})
            self.updated[sync, user][n] = now_s
        else:
            made = simulation.event(user, n)
            self.accepted[sync, user][n] = now_s
        await engine.submit([made], sync=sync)

    # --- what happens meanwhile -----------------------------------------------------------

    async def _appear(self) -> None:
        for user, at_s in sorted(self.history.late.items(), key=lambda late: late[1]):
            await _until(at_s)
            if all(contact.external_id != user for contact in self.local.contacts.values()):
                self.local.add_contact(external_id=user)

    async def _revoke(self) -> None:
        for start_s, end_s in self.history.revoked:
            await _until(start_s)
            self.local.revoke_token()
            await _until(end_s)
            self.local.restore_token()

    async def _take_calls(self) -> None:
        while self.history.foreign and virtual.current().now_s < self.history.seconds:
            await anyio.sleep(1.0)
            self.local.foreign_calls(round(self.history.foreign * self.local.limit / 10))

    async def _set_clock(self) -> None:
        for at_s, by_s in sorted(self.history.clock_steps):
            await _until(at_s)
            virtual.current().wall_offset_s += by_s

    async def _archive(self) -> None:
        for n in range(self.history.archives):
            await _until(self.history.seconds * (n + 0.5) / self.history.archives)
            live = [c for c in self.local.contacts.values() if c.state == "live"]
            if live:
                contact = random.Random(n).choice(live)
                self.gone.add(str(contact.external_id))
                with suppress(NoAnswer):
                    self.local.handle(simulation.archive(contact.id))
                self.local.journal.pop()
                self.local.foreign_calls(-1)

    # --- what is in the journal -----------------------------------------------------------

    def taken(self) -> dict[int, list[float]]:
        """Return when each event was taken, as often as it was."""
        found: dict[int, list[float]] = defaultdict(list)
        for entry in self.local.journal:
            if entry.path == "/events" and entry.outcome in ("stored", "duplicate"):
                n = msgspec.json.decode(entry.body)["metadata"]["n"]
                found[n].append(entry.at_s - virtual.EPOCH_S)
        return found


async def _until(at_s: float) -> None:
    await anyio.sleep(max(0.0, at_s - virtual.current().now_s))


# --- the laws -----------------------------------------------------------------------------


def check(play: Play) -> None:
    taken = play.taken()
    check_accounts(play)
    check_who_is_well(play, taken)
    check_contacts(play)
    check_order(play, taken)
    check_repeats(play, taken)
    check_bodies(play)
    check_pace(play)
    check_calls(play)
    if play.history.is_calm:
        check_latency(play, taken)


def check_accounts(play: Play) -> None:
    """Law 2: what was accepted is settled, each once."""
    for sync in play.status.syncs:
        sent = sum(of[0] == sync.name for of in play.of_event.values())
        assert sync.received == sent
        assert sync.delivered + sum(sync.dropped.values()) + sync.dead == sent
        assert set(sync.dropped) <= {"unchanged", "unknown_user"}


def check_who_is_well(play: Play, taken: dict[int, list[float]]) -> None:
    """Law 1: nothing is lost; and law 10: what is no user's own fault costs no user anything."""
    history = play.history
    for (sync, user), events in play.accepted.items():
        unwell = user in history.ill or user in play.gone
        unknown = user in history.strangers or user in history.late
        if not unwell and (not unknown or history.unknown_user[sync] == "create"):
            lost = [n for n in events if n not in taken]
            assert not lost, f"{lost} of {user} in {sync}"
    never = Counter(
        play.of_event[n][0] for of in play.accepted.values() for n in of if n not in taken
    )
    for sync_status in play.status.syncs:
        settled = sync_status.dead + sum(sync_status.dropped.values())
        assert never[sync_status.name] <= settled


def check_contacts(play: Play) -> None:
    """Law 6: a contact has at last what its last update said."""
    history = play.history
    plans = {
        contact.external_id: contact.custom_attributes.get("plan")
        for contact in play.local.contacts.values()
    }
    for (_, user), updates in play.updated.items():
        if len(history.syncs) == 1 and user not in history.ill and user not in play.gone:
            assert plans[user] == f"plan-{max(updates)}"


def check_order(play: Play, taken: dict[int, list[float]]) -> None:
    """Law 3: the first time that each event was taken, in the order of acceptance."""
    for events in play.accepted.values():
        firsts = [taken[n][0] for n in sorted(events) if n in taken]
        assert firsts == sorted(firsts)


def check_repeats(play: Play, taken: dict[int, list[float]]) -> None:
    """Law 9: an event is taken again only where its answer was lost, or a process was killed."""
    lost: Counter[int] = Counter()
    for entry in play.local.journal:
        if entry.path == "/events" and not entry.status:
            lost[msgspec.json.decode(entry.body)["metadata"]["n"]] += 1
    again = sum(max(0, len(times) - 1 - lost[n]) for n, times in taken.items())
    assert again <= play.at_work


def check_bodies(play: Play) -> None:
    """Law 6: an event has one body, whenever and however often it is sent; and one more for each
    contact that its user was merged into."""
    bodies: dict[tuple[int, str], set[bytes]] = defaultdict(set)
    for entry in play.local.journal:
        if entry.path == "/events":
            body = msgspec.json.decode(entry.body)
            bodies[body["metadata"]["n"], body.get("id", "")].add(entry.body)
    assert all(len(seen) == 1 for seen in bodies.values())


def check_pace(play: Play) -> None:
    assert play.local.most_calls_in(10.0) <= play.local.limit
    if not play.history.foreign:
        assert not play.local.throttled


def check_calls(play: Play) -> None:
    """Whatever fails, and for whatever reason: no event is sent all the time."""
    sent: dict[int, list[float]] = defaultdict(list)
    for entry in play.local.journal:
        if entry.path == "/events" and entry.outcome != "rate_limit_exceeded":
            sent[msgspec.json.decode(entry.body)["metadata"]["n"]].append(entry.at_s)
    for times in sent.values():
        busy = [n for n, at_s in enumerate(times[MOST_CALLS:]) if at_s - times[n] < LOOK_S]
        assert not busy, f"more than {MOST_CALLS} calls in {LOOK_S} s"


def check_latency(play: Play, taken: dict[int, list[float]]) -> None:
    """Law 4: who is well does not wait for who is not."""
    history = play.history
    apart = {*history.ill, *history.strangers, *history.late}
    for (_, user), events in play.accepted.items():
        if user not in apart:
            slowest_s = max((taken[n][0] - at_s for n, at_s in events.items()), default=0.0)
            assert slowest_s < LATE_S, f"{user} waited {slowest_s} s"


def _parameters() -> list[Any]:
    many = [pytest.param(seed, marks=pytest.mark.long) for seed in MANY]
    return [*IN_CI, *FOUND, *many]


@pytest.mark.parametrize("seed", _parameters())
@in_virtual_time
async def test_the_laws_hold_in_every_history(seed: int, tmp_path: Path) -> None:
    play = Play(History(seed), tmp_path)
    await play.run()
    check(play)
