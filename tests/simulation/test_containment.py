"""A fault that nobody foresaw costs the record it belongs to, and never its neighbours.

Faults are put into each actor, each call and each answer, for many users at once, while others go
on. Everything runs in virtual time, on the delivery side as it is.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine.actor import RUN_BYTES
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.delivery.contacts.scope import Upserted
from amplitude_intercom.engine.delivery.health import Health
from amplitude_intercom.engine.delivery.loading import Loading
from amplitude_intercom.engine.delivery.scheduler import Scheduler, View
from amplitude_intercom.engine.delivery.stream import SyncDelivery
from amplitude_intercom.engine.delivery.users_in_memory import EVENTS
from amplitude_intercom.engine.envelope import Plan, Record
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Verdict
from amplitude_intercom.engine.spool.contract import Loaded, Transaction, Wanted
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.intercom import Answer, Request, Wire
from amplitude_intercom.transports.intercom_client import IntercomClient
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.stand_in import StandIn, in_place_of
from support.virtual import in_virtual_time

SYNC = "simulated"
CROWD = [f"poison-{n}" for n in range(30)]
WELL = [f"well-{n}" for n in range(30)]

Script = Callable[[Request], Answer | None]


class Scripted:
    """A wire to a sandbox on which some calls go as a script says: it answers, or raises."""

    def __init__(self, local: Sandbox, script: Script) -> None:
        self._wire = InProcess(local)
        self._script = script

    async def send(self, request: Request) -> Answer:
        answer = self._script(request)
        return await self._wire.send(request) if answer is None else answer


def engine(folder: Path, wire: Wire, *, twice: bool = False, **sync: Any) -> Engine:
    loop = virtual.current()
    return Engine(
        simulation.settings(folder, twice=twice, **sync),
        wire=lambda intercom: wire,
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        jitter=random.Random(0).random,
        inline=True,
    )


async def one_status(running: Engine) -> SyncStatus:
    return next(sync for sync in (await running.status()).syncs if sync.name == SYNC)


async def settle(running: Engine, most_s: float = 900) -> SyncStatus:
    with anyio.move_on_after(most_s):
        await running.settled()
    return await one_status(running)


def sandbox() -> Sandbox:
    local = simulation.sandbox()
    for user in [*WELL, *CROWD]:
        local.add_contact(external_id=user)
    return local


def events_of(local: Sandbox) -> list[str]:
    return sorted(str(local.contacts[e.contact_id].external_id) for e in local.events)


def mixed(make: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return something of each user, the poison ones between the well ones."""
    return [make(user) for pair in zip(WELL, CROWD, strict=True) for user in pair]


def delivery_of(running: Engine) -> SyncDelivery:
    delivery = running.streams[SYNC].delivery
    assert delivery is not None
    return delivery


def about_poison(request: Request) -> bool:
    return b"poison" in (request.body or b"")


# --- the actors ---------------------------------------------------------------------------


class BrokenRules(SyncRules):
    def plan(self, record: Record) -> Verdict[Plan]:
        if record.user_key.startswith("poison"):
            raise OverflowError(10**5_000)
        return super().plan(record)


@in_virtual_time
async def test_a_fault_in_mapping_costs_each_of_the_records_that_have_it(tmp_path: Path) -> None:
    local = sandbox()
    async with engine(tmp_path, InProcess(local)) as running:
        delivery = delivery_of(running)
        delivery.rules = BrokenRules(delivery.sync)
        await running.submit(
            mixed(lambda user: simulation.event(user, 1)), api_key=simulation.API_KEY
        )
        status = await settle(running)
    assert events_of(local) == sorted(WELL)
    assert status.dead_by_reason == {"internal": len(CROWD)}
    assert status.faults == 0


class WatchedRules(SyncRules):
    """Counts the bytes that are planned between two turns of the loop."""

    planned_bytes = 0
    worst_bytes = 0

    def plan(self, record: Record) -> Verdict[Plan]:
        if not self.planned_bytes:
            asyncio.get_running_loop().call_soon(self._turn)
        self.planned_bytes += len(record.raw)
        self.worst_bytes = max(self.worst_bytes, self.planned_bytes)
        return super().plan(record)

    def _turn(self) -> None:
        self.planned_bytes = 0


@in_virtual_time
async def test_others_have_their_turn_while_many_large_records_are_mapped(tmp_path: Path) -> None:
    local = sandbox()
    async with engine(tmp_path, InProcess(local)) as running:
        delivery = delivery_of(running)
        delivery.rules = rules = WatchedRules(delivery.sync)
        large = [simulation.event(user, 1, user_properties={"x": "x" * 200_000}) for user in WELL]
        await running.submit(large, api_key=simulation.API_KEY)
        await settle(running)
    assert events_of(local) == sorted(WELL)
    assert 200_000 < rules.worst_bytes <= RUN_BYTES


@in_virtual_time
async def test_a_fault_in_a_call_costs_each_of_the_records_that_have_it(tmp_path: Path) -> None:
    def script(request: Request) -> Answer | None:
        if request.path == "/events" and about_poison(request):
            raise TypeError("this call cannot be made")
        return None

    local = sandbox()
    async with engine(tmp_path, Scripted(local, script)) as running:
        for n in range(3):
            await running.submit(mixed(partial(simulation.event, n=n)), api_key=simulation.API_KEY)
        status = await settle(running)
    assert events_of(local) == sorted(WELL * 3)
    assert status.dead_by_reason == {"internal": len(CROWD) * 3}
    assert (status.faults, status.pending) == (0, 0)
    assert delivery_of(running).loaded.held == 0


class ShortOfThreads(IntercomClient):
    """A client to a sandbox that can start no thread until an instant."""

    def __init__(self, local: Sandbox, until_s: float) -> None:
        super().__init__("http://127.0.0.1:9", "token", timeout_s=30, connections=9)
        self._wire, self._until_s = InProcess(local), until_s

    async def _exchange(self, request: Request) -> Answer:
        if virtual.current().now_s < self._until_s:
            raise RuntimeError("can't start new thread")
        return await self._wire.send(request)


@in_virtual_time
async def test_a_failure_of_this_process_is_no_verdict_on_a_record(tmp_path: Path) -> None:
    local = simulation.sandbox()
    users = [f"user-{n}" for n in range(100)]
    for user in users:
        local.add_contact(external_id=user)
    async with (
        ShortOfThreads(local, virtual.current().now_s + 2.0) as client,
        engine(tmp_path, client) as running,
    ):
        await running.submit(
            [simulation.event(user, n) for n in range(5) for user in users],
            api_key=simulation.API_KEY,
        )
        status = await settle(running)
    assert (status.delivered, status.dead, status.faults) == (500, 0, 0)
    assert events_of(local) == sorted(users * 5)


@in_virtual_time
async def test_of_updates_that_wait_together_only_the_one_with_a_fault_dies(tmp_path: Path) -> None:
    def script(request: Request) -> Answer | None:
        if request.path.startswith("/contacts") and b'"poison' in (request.body or b""):
            raise ValueError("about this request")
        return None

    local = simulation.sandbox(latency_s=1.0)
    async with engine(tmp_path, Scripted(local, script)) as running:
        for user in WELL:
            plans = ["free", "poison", "pro"]
            await running.submit(
                [
                    simulation.identify(user, n, {"$set": {"plan": plan, "email": f"{n}@x.io"}})
                    for n, plan in enumerate(plans)
                ],
                api_key=simulation.API_KEY,
            )
        status = await settle(running)
    plans_now = {str(c.external_id): c.custom_attributes for c in local.contacts.values()}
    assert plans_now == {user: {"plan": "pro"} for user in WELL}
    assert status.dead_by_reason.keys() <= {"internal"}
    assert status.dead <= len(WELL)
    assert (status.faults, status.pending) == (0, 0)


class BrokenSettlement(StandIn):
    """Cannot settle an update to a plan that is poison."""

    async def settle_update(self, records: Sequence[Record], *args: Any, **more: Any) -> None:
        if any(b"poison" in record.raw for record in records):
            raise OverflowError(10**5_000)
        await self.original.settle_update(records, *args, **more)


@in_virtual_time
async def test_a_fault_as_updates_are_settled_costs_one_of_them_and_writes_none_again(
    tmp_path: Path,
) -> None:
    writes: Counter[str] = Counter()

    def script(request: Request) -> Answer | None:
        writes[request.method] += b'"plan"' in (request.body or b"")
        return None

    local = simulation.sandbox(latency_s=1.0)
    async with engine(tmp_path, Scripted(local, script)) as running:
        delivery = delivery_of(running)
        delivery.settlement = in_place_of(delivery.settlement, BrokenSettlement)
        plans = ["free", "poison", "pro", "team"]
        await running.submit(
            [simulation.identify(WELL[0], 0, {"$set": {"email": "an@x.io"}})],
            api_key=simulation.API_KEY,
        )
        updates = [
            simulation.identify(user, n, {"$set": {"plan": plan}})
            for user in WELL
            for n, plan in enumerate(plans, start=1)
        ]
        await running.submit(updates, api_key=simulation.API_KEY)
        status = await settle(running)
    assert {c.custom_attributes["plan"] for c in local.contacts.values()} == {"team"}
    assert status.dead_by_reason == {"internal": len(WELL)}
    assert (status.delivered, status.faults) == (1 + 3 * len(WELL), 0)
    assert sum(writes.values()) <= 2 * len(WELL)


class Alone(StandIn):
    """Settles no updates together, and that of a plan that is poison not at all."""

    async def settle_update(self, records: Sequence[Record], *args: Any, **more: Any) -> None:
        if len(records) > 1 or b"poison" in records[0].raw:
            raise OverflowError("unforeseen")
        await self.original.settle_update(records, *args, **more)


@in_virtual_time
async def test_updates_that_are_written_as_one_and_settled_apart_count_once(tmp_path: Path) -> None:
    """Though one of them cannot be settled, and is replayed."""

    local = simulation.sandbox(latency_s=1.0)
    users = {"properties": ["plan", "visits"]}
    async with engine(tmp_path, InProcess(local), users=users) as running:
        await anyio.sleep(2)
        delivery = delivery_of(running)
        settlement = delivery.settlement
        delivery.settlement = in_place_of(settlement, Alone)
        updates = [
            simulation.identify(user, n, {"$set": {"plan": plan}, "$add": {"visits": 1}})
            for user in WELL
            for n, plan in enumerate(["free", "poison", "pro", "team"])
        ]
        await running.submit(updates, api_key=simulation.API_KEY)
        status = await settle(running)
        assert status.dead_by_reason == {"internal": len(WELL)}
        delivery.settlement = settlement
        await running.upkeep.replay(SYNC, DeadLetterQuery(every=True))
        await settle(running)
    found = [c.custom_attributes for c in local.contacts.values()]
    assert found == [{"plan": "team", "visits": 4}] * len(WELL)


class BrokenContacts(StandIn):
    """Cannot keep what is known of a contact whose user is poison."""

    async def keep(self, upserted: Upserted) -> None:
        if upserted.key.value in CROWD:
            raise OverflowError("unforeseen")
        await self.original.keep(upserted)


@in_virtual_time
async def test_an_event_with_an_unsaved_update_is_not_sent_and_counts_once_later(
    tmp_path: Path,
) -> None:
    local = sandbox()
    users = {"properties": ["visits"], "trigger": "any_update"}
    async with engine(tmp_path, InProcess(local), users=users) as running:
        await anyio.sleep(2)
        delivery = delivery_of(running)
        contacts = delivery.contacts
        delivery.contacts = in_place_of(contacts, BrokenContacts)
        add = {"$add": {"visits": 1}}
        for n in range(2):
            events = mixed(partial(simulation.event, n=n, user_properties=add))
            await running.submit(events, api_key=simulation.API_KEY)
            status = await settle(running)
        assert status.dead_by_reason == {"internal": 2 * len(CROWD)}
        assert set(events_of(local)) == set(WELL)
        delivery.contacts = contacts
        await running.upkeep.replay(SYNC, DeadLetterQuery(every=True))
        await settle(running)
    assert len(local.events) == 2 * (len(WELL) + len(CROWD))
    assert {c.custom_attributes["visits"] for c in local.contacts.values()} == {2}


@in_virtual_time
async def test_a_fault_in_the_list_of_attributes_costs_no_record(tmp_path: Path) -> None:
    def script(request: Request) -> Answer | None:
        if request.path.startswith("/data_attributes"):
            raise TypeError("unforeseen")
        return None

    local = simulation.sandbox()
    async with engine(tmp_path, Scripted(local, script)) as running:
        update = simulation.identify("mira-okafor", 1, {"$set": {"plan": "pro"}})
        await running.submit([update], api_key=simulation.API_KEY)
        status = await settle(running)
    assert (status.delivered, status.dead, status.faults) == (1, 0, 0)


# --- faults that belong to no record ------------------------------------------------------


class BreakingLoading(Loading):
    """Cannot load anything from an instant on, once it has loaded, until it begins anew."""

    breaks_at_s = 0.0
    loads = 0

    def load(self, store: Transaction, wanted: Wanted) -> Loaded:
        self.loads += 1
        if self.loads > 2 and virtual.current().now_s >= self.breaks_at_s:
            raise RuntimeError("no record is to blame")
        return super().load(store, wanted)

    def begin_anew(self) -> None:
        self.breaks_at_s = float("inf")
        super().begin_anew()


def break_feed(running: Engine, at_s: float = 0.0, read_ahead: int = 8) -> None:
    stream = running.streams[SYNC]
    assert stream.delivery is not None
    loading = BreakingLoading(
        SYNC,
        stream.spool.taker,
        stream.delivery.scheduler,
        stream.delivery.gate.health,
        stream.delivery.loaded,
        read_ahead=read_ahead,
        writes_contacts=True,
        now_ms=virtual.current().wall_ms,
    )
    loading.breaks_at_s = at_s
    stream.delivery.feed._loading = loading
    stream.delivery.settlement._look_at_table = loading.look_at_table
    stream.delivery.feed._turn_ends._look_at_table = loading.look_at_table


@in_virtual_time
async def test_a_fault_of_no_record_stops_one_sync_which_says_so_and_goes_on(
    tmp_path: Path,
) -> None:
    local = sandbox()
    async with engine(tmp_path, InProcess(local), twice=True) as running:
        break_feed(running, at_s=1.0)
        for n in range(10):
            batch = [simulation.event(user, n) for user in WELL]
            await running.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(1.8)
        stopped, other = (await running.status()).syncs
        assert running.overview.stopped == {SYNC: "RuntimeError: no record is to blame"}
        assert stopped.stopped == running.overview.stopped[SYNC]
        assert running.overview.ready  # events are taken all the while
        assert other.pending < stopped.pending
        await settle(running)
        stopped, other = (await running.status()).syncs
    assert (stopped.delivered, other.delivered) == (300, 300)
    assert (stopped.faults, other.faults, stopped.stopped) == (1, 0, "")
    assert events_of(local) == sorted(WELL * 10)  # byte for byte: Intercom saw them once


@in_virtual_time
async def test_a_sync_that_a_fault_has_stopped_leaves_its_token_to_the_others(
    tmp_path: Path,
) -> None:
    """Its turns were never over, and there are only so many at once."""

    intercom = {"access_token": "simulated-token", "max_in_flight": 4}
    local = sandbox()
    async with engine(tmp_path, InProcess(local), twice=True, intercom=intercom) as running:
        break_feed(running, at_s=1.0, read_ahead=60)
        for n in range(100):
            batch = [simulation.event(user, n) for user in WELL]
            await running.submit(batch, api_key=simulation.API_KEY)
        with anyio.fail_after(60):
            while not running.overview.stopped:
                await anyio.sleep(0.01)
        await anyio.sleep(0.4)  # turns that were chosen before are over
        before = (await running.status()).syncs
        await anyio.sleep(0.5)
        after = (await running.status()).syncs
    assert after[0].stopped
    assert after[0].delivered == before[0].delivered
    assert after[1].delivered > before[1].delivered


@in_virtual_time
async def test_a_user_with_a_long_backlog_goes_on_where_a_fault_has_stopped_its_sync(
    tmp_path: Path,
) -> None:
    """It was being worked off, and only the feed that is gone knew that it was."""

    local = sandbox()
    async with engine(tmp_path, InProcess(local)) as running:
        break_feed(running, read_ahead=300)
        batch = [simulation.event(WELL[0], n) for n in range(200)]
        await running.submit(batch, api_key=simulation.API_KEY)
        status = await settle(running)
    assert (status.delivered, status.pending, status.faults) == (200, 0, 1)
    assert events_of(local) == [WELL[0]] * 200


@in_virtual_time
async def test_a_sync_that_stands_still_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with engine(tmp_path, InProcess(sandbox())) as running:
        break_feed(running)
        batch = [simulation.event(user, 1) for user in WELL]
        await running.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(0.8)
        assert running.overview.stopped
        began_s = virtual.current().now_s
        assert await running.finish(25.0)
        assert virtual.current().now_s - began_s < 1.0


@in_virtual_time
async def test_a_sync_that_stops_as_it_probes_does_not_keep_others_from_probing(
    tmp_path: Path,
) -> None:
    """Two syncs share one token, and one of them is cancelled in the middle of a probe."""

    local = sandbox()
    down = True

    def script(request: Request) -> Answer | None:
        is_out = down and request.path != "/me"
        return Answer(503, {}, b"") if is_out else None

    async with engine(tmp_path, Scripted(local, script), twice=True) as running:
        break_feed(running, at_s=8.0)
        for n in range(4):
            batch = [simulation.event(user, n) for user in WELL]
            await running.submit(batch, api_key=simulation.API_KEY)
            await anyio.sleep(4.0)
        assert (await running.status()).syncs[0].faults == 1
        down = False
        await settle(running)
        statuses = (await running.status()).syncs
    assert [status.delivered for status in statuses] == [120, 120]


class SlowlyDown(Scripted):
    """While ``down`` is set, calls of events fail after some seconds."""

    down = True

    async def send(self, request: Request) -> Answer:
        if self.down and request.path == "/events":
            await anyio.sleep(3)
            return Answer(503, {}, b"")
        return await super().send(request)


class BreakingScheduler(StandIn):
    """Breaks once, while somebody finds out whether an endpoint is well again."""

    def __init__(self, original: Scheduler, health: Health) -> None:
        super().__init__(original)
        self.health = health
        self.breaks = True

    def choose(self, view: View) -> Any:
        if self.breaks and self.health.of(EVENTS).circuit.probing:
            self.breaks = False
            raise RuntimeError("no record is to blame")
        return self.original.choose(view)


@in_virtual_time
async def test_a_probe_that_a_fault_has_stopped_keeps_no_other_from_probing(tmp_path: Path) -> None:
    """Its turn never ended, and nobody else may call while somebody does."""

    wire = SlowlyDown(sandbox(), lambda _: None)
    async with engine(tmp_path, wire) as running:
        pipeline: Any = running.takers.pipelines[SYNC]
        health = delivery_of(running).gate.health
        pipeline._scheduler = in_place_of(
            pipeline._scheduler, partial(BreakingScheduler, health=health)
        )
        batch = [simulation.event(user, 1) for user in WELL]
        await running.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(60)
        assert (await one_status(running)).faults == 1
        wire.down = False
        status = await settle(running)
    assert (status.delivered, status.dead) == (len(WELL), 0)


# --- answers ------------------------------------------------------------------------------

DEEP = b"[" * 5_000 + b"]" * 5_000
IDS: list[Any] = [None, "", 7, [], {}, "x" * 100_000, True, "6" * 24]
ATTRIBUTES: list[Any] = ["text", [], 1.5, None, {"plan": [1]}, {"plan": {"a": 1}}]
BODIES = [
    b"",
    b" ",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b"1" * 5_000,
    b"\xff\xfe",
    b'"\xed\xa0\x80"',
    DEEP,
    b"<html><body>it works</body></html>",
    b'{"type": "error.list"}',
    b'{"type": "error.list", "errors": "none"}',
    b'{"type": "error.list", "errors": [null, 1]}',
    b'{"type": "error.list", "errors": [{"code": 5, "message": {"a": 1}}]}',
    b'{"type": "error.list", "errors": [{"code": "conflict", "message": "id='
    + b"9" * 9_000
    + b'"}]}',
    b'{"type": "error.list", "request_id": [], "errors": [{"code": "not_found"}]}',
    b'{"data": [{"name": 5}, null]}',
    b'{"data": {"name": "plan"}}',
    b'{"app": []}',
]
HEADERS = [
    {},
    {"x-ratelimit-limit": "9" * 5_000, "x-ratelimit-remaining": "-1", "x-ratelimit-reset": "now"},
    {"x-ratelimit-limit": "0", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    {
        "x-request-id": "\udcff" * 9_000,
        "content-type": "\udcff",
        "link": "</contacts/" + "9" * 9_000,
    },
    {"link": '</contacts/\u00e9>; rel="canonical"', "date": "yesterday"},
]
STATUSES = [100, 200, 200, 200, 201, 202, 204, 299, 301, 307, 400, 404, 404, 409, 410, 418, 422]
STATUSES += [408, 429, 500, 503, 599, 999, 0, -1]


def any_answer(dice: random.Random) -> Answer:
    """Return an answer as nobody who speaks for Intercom would give it, or nearly."""
    contact = {
        "type": "contact",
        "id": dice.choice(IDS),
        "custom_attributes": dice.choice(ATTRIBUTES),
    }
    body = dice.choice([*BODIES, simulation.encode(contact), simulation.encode(contact)])
    return Answer(dice.choice(STATUSES), dice.choice(HEADERS), body)


@pytest.mark.parametrize("seed", range(25))
@in_virtual_time
async def test_answers_of_any_shape_change_nothing_but_their_own_record(
    tmp_path: Path, seed: int
) -> None:
    local = simulation.sandbox()
    dice = random.Random(seed)
    ends_s = virtual.current().now_s + 120

    def script(request: Request) -> Answer | None:
        strange = virtual.current().now_s < ends_s and dice.random() < 0.5
        return any_answer(dice) if strange else None

    wire = Scripted(local, script)
    async with engine(
        tmp_path, wire, events={"unknown_user": "create", "select": [{"types": ["*"]}]}
    ) as running:
        for n in range(20):
            users = dice.sample([*WELL, *CROWD], 10)
            batch = [simulation.event(user, n) for user in users]
            batch += [
                simulation.identify(user, n, {"$set": {"plan": n}, "$add": {"visits": 1}})
                for user in users
            ]
            await running.submit(batch, api_key=simulation.API_KEY)
            await anyio.sleep(5)
        status = await settle(running, most_s=6 * 3600)
        letters = await running.upkeep.dead_letters(SYNC, DeadLetterQuery(reason="internal"))
    assert [(letter.message, letter.code) for letter in letters] == []
    assert (status.faults, status.pending) == (0, 0)
    dropped = sum(status.dropped.values())
    assert status.received == 400 == status.delivered + status.dead + dropped
