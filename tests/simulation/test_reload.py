"""Settings change while the engine works: what did not change is not touched, nothing is lost."""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine import metrics
from amplitude_intercom.engine.actors.offers import Offer
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings_effects import Effects
from amplitude_intercom.engine.status import Status, SyncStatus
from amplitude_intercom.transports.errors import Refused, UnknownApiKey
from amplitude_intercom.transports.reasons import RefusalReason
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import AmplitudeInProcess, InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import relaying, simulation, virtual
from support.virtual import in_virtual_time

USERS = [f"user-{n}" for n in range(20)]
ONE, TWO = "token-one", "token-two"


def sync(name: str, token: str = ONE, **more: Any) -> dict[str, Any]:
    table = {
        "name": name,
        "amplitude_api_keys": ["key"],
        "intercom": {"access_token": token, **more.pop("intercom", {})},
        "users": {"properties": ["plan"]},
        "events": {"select": [{"types": ["*"]}], "metadata": ["n"], **more.pop("events", {})},
    }
    return table | more


def table(folder: Path, *syncs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"data_dir": str(folder), "admin": {}, "sync": list(syncs), **more}


def workspace(**more: Any) -> Sandbox:
    local = simulation.sandbox(**more)
    for user in USERS:
        local.add_contact(external_id=user)
    return local


@asynccontextmanager
async def engine(
    folder: Path, local: Sandbox, *syncs: Mapping[str, Any], seed: int = 0, **more: Any
) -> AsyncIterator[Engine]:
    loop = virtual.current()
    async with Engine(
        from_table(table(folder, *syncs, **more)),
        wire=lambda intercom: InProcess(local),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        jitter=random.Random(seed).random,
        inline=True,
    ) as running:
        yield running


def arrived(local: Sandbox, user: str, name: str = "Purchase") -> list[int]:
    """Return the numbers of a user's events in the order in which Intercom took them."""
    bodies = [
        msgspec.json.decode(entry.body)
        for entry in local.journal
        if entry.path == "/events" and entry.status == 202
    ]
    return [
        body["metadata"]["n"]
        for body in bodies
        if (body["user_id"], body["event_name"]) == (user, name)
    ]


@in_virtual_time
async def test_a_sync_is_added_changed_and_removed(tmp_path: Path) -> None:
    local = workspace()
    async with engine(tmp_path, local) as running:
        with pytest.raises(UnknownApiKey):
            await running.submit([simulation.event(USERS[0], 0)], api_key="key")
        done = await running.reload(from_table(table(tmp_path, sync("first"))))
        assert done == Effects(added=["first"])
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        await running.settled()
        other = sync("first", amplitude_api_keys=["other"])
        assert (await running.reload(from_table(table(tmp_path, other)))).changed == ["first"]
        await running.submit([simulation.event(USERS[0], 2)], api_key="other")
        await running.settled()
        assert (await running.reload(from_table(table(tmp_path)))).removed == ["first"]
        with pytest.raises(UnknownApiKey):
            await running.submit([simulation.event(USERS[0], 3)], api_key="other")
        assert (await running.status()).syncs == []
    assert arrived(local, USERS[0]) == [1, 2]


@in_virtual_time
async def test_a_sync_that_did_not_change_is_not_touched(tmp_path: Path) -> None:
    local = workspace(latency_s=0.2)
    steady = sync("steady")
    async with engine(tmp_path, local, steady, sync("other"), sync("third", TWO)) as running:
        before = running.streams["steady"], running.streams["steady"].delivery
        gate = running.streams["steady"].gate
        changed = sync("other", events={"metadata": ["n", "plan"]})
        done = await running.reload(from_table(table(tmp_path, steady, changed)))
        assert done == Effects(changed=["other"], removed=["third"])
        assert (running.streams["steady"], running.streams["steady"].delivery) == before
        assert running.streams["other"].gate is gate


@in_virtual_time
async def test_a_refused_document_changes_nothing(tmp_path: Path) -> None:
    local = workspace()
    async with engine(tmp_path, local, sync("first")) as running:
        before = dict(running.streams), running.settings
        builder: Any = running.takers._builder

        async def fails(*of: Any) -> Any:
            raise SettingsError("sync `second`: sync.intercom makes no client")

        builder.pipeline = fails
        with pytest.raises(SettingsError, match="second"):
            await running.reload(
                from_table(table(tmp_path, sync("first", enabled=False), sync("second", TWO)))
            )
        assert (dict(running.streams), running.settings) == before
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        await running.settled()
    assert arrived(local, USERS[0]) == [1]


@in_virtual_time
async def test_sections_of_the_process_wait_for_a_restart(tmp_path: Path) -> None:
    async with engine(tmp_path, workspace(), sync("first")) as running:
        other = table(tmp_path, sync("first", enabled=False), http={"listen": "127.0.0.1:1"})
        done = await running.reload(from_table(other))
        assert done == Effects(changed=["first"], needs_restart=["http"])
        assert running.settings.http is None
        assert not running.settings.sync[0].enabled


NAMES = ("a", "b", "c")


def named(name: str, token: str = ONE, **more: Any) -> dict[str, Any]:
    """Return a sync by whose name Intercom calls its events."""
    return sync(name, token, **more, events={"rename": {"Purchase": name}})


def random_syncs(dice: random.Random) -> list[dict[str, Any]]:
    """Return the syncs of one document: ``steady`` is the same in each, and goes first."""
    found = [named("steady")]
    for name, token in zip(NAMES, (ONE, ONE, TWO), strict=True):
        if dice.random() < 0.8:
            found.append(
                named(
                    name,
                    token if dice.random() < 0.9 else TWO,
                    enabled=dice.random() < 0.8,
                    intercom={"max_in_flight": dice.choice((50, 50, 60))},
                    mapping={"from": dice.choice(("user_id", "user_id", "device_id"))},
                    users={"properties": dice.choice((["plan"], ["plan", "seats"], []))},
                )
            )
    return found


class Load:
    """Events and updates of all users, one after the other; ``taken``: the events, by user."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.taken: dict[str, list[int]] = defaultdict(list)

    async def run(self, running: Engine) -> None:
        """Go on until cancelled."""
        for n in itertools.count(1):
            user = self._dice.choice(USERS)
            if n % 7 == 0:
                event = simulation.identify(user, n, {"$set": {"plan": f"plan-{n}"}})
            else:
                event = simulation.event(user, n)
            with anyio.CancelScope(shield=True):
                await running.submit([event | {"device_id": user}], api_key="key")
                if n % 7:
                    self.taken[user].append(n)
            await anyio.sleep(self._dice.uniform(0, 0.4))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 60))]
)
@in_virtual_time
async def test_a_hundred_reloads_under_load_lose_nothing(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    local = workspace(
        limit_per_minute=3_000,
        latency_s=(0.02, 0.6),
        faults=[Fault(kind="status", status=503, share=0.2, path="/events", start_s=20, end_s=60)],
    )
    load = Load(dice)
    async with engine(tmp_path, local, *random_syncs(dice), seed=seed) as running:
        steady = running.streams["steady"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run, running)
            for _ in range(100):
                await anyio.sleep(dice.uniform(0, 1.5))
                await running.reload(from_table(table(tmp_path, *random_syncs(dice))))
            tasks.cancel_scope.cancel()
        assert running.streams["steady"] is steady
        last = [named(name) for name in ("steady", *NAMES)]
        await running.reload(from_table(table(tmp_path, *last)))
        with anyio.fail_after(6 * 3600):
            await running.settled()
        for status in (await running.status()).syncs:
            assert status.dead == status.pending == status.faults == 0, status
            assert status.received == status.delivered + sum(status.dropped.values()), status
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= 2 * local.limit  # two access tokens
    for user, numbers in load.taken.items():
        assert arrived(local, user, "steady") == numbers
        for name in NAMES:
            found = arrived(local, user, name)
            assert found == sorted(set(found)), "out of order, or twice"
            assert set(found) <= set(numbers)


@in_virtual_time
async def test_a_hundred_reloads_never_exceed_the_allowance(tmp_path: Path) -> None:
    """Each gives the token another gate, which knows nothing of the calls of the one before."""
    local = workspace(limit_per_minute=600, latency_s=0.05)
    async with engine(tmp_path, local, sync("first")) as running:
        events = [simulation.event(user, n) for n in range(40) for user in USERS]
        await running.submit(events, api_key="key")
        for n in range(100):
            await anyio.sleep(0.7)
            of = sync("first", intercom={"max_in_flight": 40 + n % 2})
            await running.reload(from_table(table(tmp_path, of)))
        await running.settled()
    assert (local.throttled, local.most_calls_in(10.0) <= local.limit) == (0, True)


@in_virtual_time
async def test_a_sync_is_not_delivered_before_its_records_have_their_new_keys(
    tmp_path: Path,
) -> None:
    local = workspace(faults=[Fault(kind="status", status=503, path="/events", end_s=30)])
    async with engine(tmp_path, local, sync("first")) as running:
        events = [
            simulation.event(f"other-{n}", n) | {"device_id": USERS[n % 20]} for n in range(600)
        ]
        await running.submit(events, api_key="key")
        await anyio.sleep(5)
        by_device = sync("first", mapping={"from": "device_id"})
        await running.reload(from_table(table(tmp_path, by_device)))
        await running.settled()
        assert (await running.status()).syncs[0].delivered == 600
    assert sum(len(arrived(local, user)) for user in USERS) == 600


async def a_call_is_out(running: Engine, name: str) -> None:
    delivery = running.streams[name].delivery
    assert delivery is not None
    while not (delivery.has_entered and delivery.scheduler.of(name).at_work):
        await simulation.a_moment()


@in_virtual_time
async def test_a_reload_at_the_end_is_refused_and_everything_ends(tmp_path: Path) -> None:
    local = workspace(latency_s=20.0)
    async with engine(tmp_path, local, sync("first"), sync("second", TWO)) as running:
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        await a_call_is_out(running, "first")
        answers: list[str] = []

        async def reload() -> None:
            try:
                await running.reload(from_table(table(tmp_path, sync("first", enabled=False))))
            except Refused as refused:
                answers.append(refused.reason)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reload)
            await anyio.sleep(1)
            assert await running.finish(100.0)
    assert answers == ["draining"]
    with pytest.raises(Refused):
        await running.reload(from_table(table(tmp_path, sync("first"))))


@in_virtual_time
async def test_others_have_their_turns_while_many_syncs_change(tmp_path: Path) -> None:
    """All at once a thousand took half a second, in which nobody was answered."""
    names = [f"sync-{n}" for n in range(100)]
    turns: list[int] = []
    async with engine(tmp_path, workspace(), *map(sync, names)) as running:
        streams = dict(running.streams)

        async def take_turns() -> None:
            while running.streams == streams:
                turns.append(1)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            other = [sync(name, events={"metadata": ["n", "plan"]}) for name in names]
            await running.reload(from_table(table(tmp_path, *other)))
        assert len(turns) >= len(names)
        await running.submit([simulation.event(USERS[0], 1)], sync=names[-1])
        await running.settled()


@in_virtual_time
async def test_the_one_who_asked_may_leave(tmp_path: Path) -> None:
    local = workspace(latency_s=10.0)
    async with engine(tmp_path, local, sync("first")) as running:
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        await a_call_is_out(running, "first")
        with anyio.move_on_after(0.1):
            await running.reload(from_table(table(tmp_path, sync("second"))))
        await anyio.sleep(30)
        assert list(running.streams) == ["second"]
        assert arrived(local, USERS[0]) == [1]


@in_virtual_time
async def test_figures_go_on_where_a_token_gets_another_gate(tmp_path: Path) -> None:
    local = workspace()
    slower = sync("one", intercom={"requests_per_minute": 1_000})
    async with engine(tmp_path, local, sync("one")) as running:
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        await running.settled()
        gate, before = running.streams["one"].gate, (await running.status()).syncs[0]
        await running.reload(from_table(table(tmp_path, slower)))
        assert running.streams["one"].gate is not gate
        after = (await running.status()).syncs[0]
        await running.submit([simulation.event(USERS[0], 2)], api_key="key")
        await running.settled()
        later = (await running.status()).syncs[0]
    figures = [_grown(one) for one in (before, after, later)]
    assert figures[0][0] > 0
    assert all(a <= b for a, b in zip(figures[0], figures[1], strict=True))
    assert all(a < b for a, b in zip(figures[1], figures[2], strict=True))


def _grown(status: SyncStatus) -> list[int]:
    """Return the numbers of deliveries, of timed calls, and of calls."""
    assert status.deliveries is not None
    assert status.intercom is not None
    assert status.intercom.took is not None
    timed = sum(status.intercom.took.counts)
    return [sum(status.deliveries.counts), timed, sum(status.intercom.calls.values())]


@in_virtual_time
async def test_a_sync_that_moves_to_another_workspace_leaves_its_event_names(
    tmp_path: Path,
) -> None:
    """The workspace that it leaves had been found for it, and goes on for its other sync."""
    locals_ = {token: workspace(workspace_id=token) for token in (ONE, TWO)}
    loop = virtual.current()
    async with Engine(
        from_table(table(tmp_path, sync("first"), sync("other"))),
        wire=lambda intercom: InProcess(locals_[intercom.access_token.reveal()]),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        inline=True,
    ) as running:
        await running.submit([simulation.event(USERS[0], 1)], sync="first")
        await running.settled()
        await running.reload(from_table(table(tmp_path, sync("first", TWO), sync("other"))))
        moved = [simulation.event(USERS[0], 2) | {"event_type": "Moved"}]
        await running.submit(moved, sync="first")
        await running.settled()
        await running.submit(
            [simulation.event(USERS[0], 3) | {"event_type": "Stayed"}], sync="other"
        )
        await running.settled()
        numbers = {stream.spool.workspace for stream in running.streams.values()}
        names = await running.spool.do(
            lambda store: [sorted(store.event_names.of(number)) for number in numbers]
        )
    assert sorted(names) == [["moved"], ["purchase", "stayed"]]


@in_virtual_time
async def test_a_fault_of_intake_does_not_keep_a_reload_from_its_end(tmp_path: Path) -> None:
    """The filter pauses up to a minute after a fault, and reads no channel meanwhile."""
    local = workspace()
    async with engine(tmp_path, local, sync("first")) as running:
        await running.submit([simulation.event(USERS[0], 1)], api_key="key")
        intake: Any = running._taking_in

        async def breaks(offer: Offer) -> None:
            offer.ticket.refuse(Refused(RefusalReason.INTERNAL))
            raise OverflowError("as the test says")

        intake._actor.handle = breaks
        for _ in range(3):
            await intake.source.catch_up()
        assert intake.stopped
        began_s = anyio.current_time()
        await running.reload(from_table(table(tmp_path, sync("first", enabled=False))))
        assert anyio.current_time() - began_s < 0.5


def calls_between(local: Sandbox, begin_s: float, end_s: float) -> list[str]:
    """Return the calls that came in a span of simulated time."""
    return [
        f"{entry.method} {entry.path} {entry.status}"
        for entry in local.journal
        if begin_s < entry.at_s - virtual.EPOCH_S < end_s
    ]


OTHER_GATE = sync("one", intercom={"max_in_flight": 41})
GATE_CHANGES = {
    "another gate": [OTHER_GATE],
    "disabled, then enabled": [sync("one", enabled=False), sync("one")],
    "to another token, then back": [sync("one", TWO), sync("one")],
    "gone, then back": [sync("other", TWO), sync("one")],
}


@pytest.mark.parametrize("ways", GATE_CHANGES.values(), ids=GATE_CHANGES)
@in_virtual_time
async def test_a_pause_that_intercom_asked_for_outlasts_a_reload(
    tmp_path: Path, ways: list[dict[str, Any]]
) -> None:
    pause = Fault(kind="status", status=429, path="/events", end_s=3)
    local, other = workspace(faults=[pause]), workspace(workspace_id=TWO)
    loop = virtual.current()
    async with Engine(
        from_table(table(tmp_path, sync("one"))),
        wire=lambda intercom: InProcess(other if intercom.access_token.reveal() == TWO else local),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        inline=True,
    ) as running:
        await running.submit([simulation.event(user, 1) for user in USERS], api_key="key")
        gate = running.streams["one"].gate
        assert gate is not None
        with anyio.fail_after(10):
            while not gate.pace.is_paused:
                await simulation.a_moment()
        until_s, before_s = gate.pace.paused_until_s, loop.now_s
        for way in ways:
            await running.reload(from_table(table(tmp_path, way)))
        after = running.streams["one"].gate
        assert after is not gate
        assert after is not None
        assert (after.state, after.pace.paused_until_s) == ("throttled", until_s)
        await running.settled()
    assert until_s - before_s > 1
    assert calls_between(local, before_s, until_s) == []
    assert sum(len(arrived(one, user)) for one in (local, other) for user in USERS) == len(USERS)


@in_virtual_time
async def test_what_waits_is_waited_for_through_a_change_of_settings(tmp_path: Path) -> None:
    """A sync has no delivery, and a relay no sender, while a change is under way."""
    local, amplitude = workspace(latency_s=5.0), relaying.amplitude(latency_s=5.0)
    loop = virtual.current()
    relay = {"relay": [{"connections": 1}]}
    async with Engine(
        from_table(table(tmp_path, sync("first"), **relay)),
        wire=lambda _: InProcess(local),
        relay_wire=lambda _: AmplitudeInProcess(amplitude),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        inline=True,
    ) as running:
        for n in range(3):
            await relaying.take_in(
                running, relaying.request([relaying.event(f"d{n}", n)], key="key")
            )
        await running.submit([simulation.event(user, 1) for user in USERS[:3]], sync="first")
        await a_call_is_out(running, "first")
        other = sync("first", events={"metadata": ["n", "plan"]})
        changed = from_table(table(tmp_path, other, relay=[{"connections": 2}]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.reload, changed)
            await simulation.a_moment()
            assert (running.streams["first"].delivery, running.settings == changed) == (None, False)
            assert running.takers.delivers("first")
            await running.settled()
            assert running.streams["first"].spool.counters["pending"] == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.reload, from_table(table(tmp_path, other, **relay)))
            await simulation.a_moment()
            await running.relayed()
            assert running.takers.parts["relay:amplitude"].counters["pending"] == 0
        assert [arrived(local, user) for user in USERS[:3]] == [[1], [1], [1]]
        assert len(amplitude.events) == 3


@in_virtual_time
async def test_a_fault_at_the_end_of_one_sync_lets_the_others_end_well(tmp_path: Path) -> None:
    """It cancelled their ends: calls under way were made again by the next start."""
    local = workspace(latency_s=5.0)
    syncs = [sync("first"), sync("second"), sync("third", TWO)]
    async with engine(tmp_path, local, *syncs) as running:
        pipeline: Any = running.takers.pipelines["first"]
        delivery = running.streams["first"].delivery
        removes = pipeline.remove

        async def fails(name: str) -> None:
            if name == "first":
                raise OverflowError("as the test says")
            await removes(name)

        pipeline.remove = fails
        for name in ("second", "third"):
            await running.submit([simulation.event(USERS[0], 1)], sync=name)
            await a_call_is_out(running, name)
        changed = [{**one, "events": {"select": [{"types": ["*"]}]}} for one in syncs]
        await running.reload(from_table(table(tmp_path, *changed)))
        assert {name: one.spool.counters["delivered"] for name, one in running.streams.items()} == {
            "first": 0,
            "second": 1,
            "third": 1,
        }
        assert running.overview.stopped == {"first": "OverflowError: as the test says"}
        del pipeline.remove, delivery
        await running.reload(from_table(table(tmp_path, *syncs)))
        assert running.overview.stopped == {}
        await running.submit([simulation.event(USERS[1], 2)], sync="first")
        await running.settled()
    assert arrived(local, USERS[0]) == [1, 1]
    assert arrived(local, USERS[1]) == [2]


@in_virtual_time
async def test_workspaces_are_forgotten_with_their_last_token(tmp_path: Path) -> None:
    locals_: dict[str, Sandbox] = {}
    loop = virtual.current()

    def of(token: str) -> InProcess:
        found = locals_.setdefault(token, workspace(workspace_id=token.partition(" ")[0]))
        return InProcess(found)

    first = from_table(table(tmp_path, sync("steady", "w of all"), sync("first", "w0 a")))
    async with Engine(
        first,
        wire=lambda intercom: of(intercom.access_token.reveal()),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        inline=True,
    ) as running:
        known = running.takers._builder._workspaces  # type: ignore[attr-defined]
        for n in range(20):
            two = [sync("one", f"w{n} a"), sync("two", f"w{n} b")]
            await running.reload(from_table(table(tmp_path, sync("steady", "w of all"), *two)))
            await running.submit([simulation.event(USERS[0], n)], sync="one")
            await running.submit([simulation.event(USERS[1], n)], sync="steady")
            await running.settled()
            assert len(known) == 2
        shared = running.streams["one"].delivery
        assert shared is not None
        kept = shared.workspace
        alone = [sync("steady", "w of all"), sync("two", "w19 b", enabled=False)]
        await running.reload(from_table(table(tmp_path, *alone)))
        again = [sync("steady", "w of all"), sync("two", "w19 b")]
        await running.reload(from_table(table(tmp_path, *again)))
        await running.submit([simulation.event(USERS[2], 1)], sync="two")
        await running.settled()
        delivery = running.streams["two"].delivery
        assert delivery is not None
        assert delivery.workspace is kept, "another token has kept it"
        await anyio.sleep(100)
        assert len(running.takers._builder._gates._numbers) == 2  # type: ignore[attr-defined]


def counters_of(status: Status) -> dict[str, float]:
    """Return the series of counters and histograms, by name and labels."""
    lines = metrics.render(status, ready=True).decode().splitlines()
    series = (line.rpartition(" ") for line in lines if line.startswith(metrics.PREFIX))
    grown = re.compile(r"\w+_(total|bucket|count|sum)\b")
    return {name: float(value) for name, _, value in series if grown.match(name)}


@pytest.mark.parametrize("away_s", [1.0, 100.0])
@in_virtual_time
async def test_counters_never_fall_but_to_zero_where_syncs_and_tokens_come_and_go(
    tmp_path: Path, away_s: float
) -> None:
    local = workspace()
    steady, other = sync("steady"), sync("other", TWO)
    seen: list[dict[str, float]] = []
    async with engine(tmp_path, local, steady, other) as running:

        async def look(*syncs: dict[str, Any]) -> None:
            await running.reload(from_table(table(tmp_path, *syncs)))
            seen.append(counters_of(await running.status()))
            for n, one in enumerate(syncs):
                batch = [simulation.event(USERS[n], 10 * len(seen) + n)]
                batch.append(simulation.event(f"nobody-{len(seen)}", len(seen)))
                await running.submit(batch, sync=one["name"])
            await anyio.sleep(away_s)
            seen.append(counters_of(await running.status()))

        faster = sync("other", TWO, intercom={"max_in_flight": 50})
        for syncs in ([steady, other], [steady], [steady, faster], [faster], [steady], [other]):
            await look(*syncs)
            await look(*syncs)
    for name in {name for one in seen for name in one}:
        values = [one.get(name, 0.0) for one in seen]
        resets = [(a, b) for a, b in itertools.pairwise(values) if b < a]
        assert all(b == 0 for _, b in resets), (name, values)
    assert any(name.startswith(f"{metrics.PREFIX}retries_total") for name in seen[-1])
