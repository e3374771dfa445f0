"""Faults that were found by reading and by use; each of these failed once."""

from __future__ import annotations

import random
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.contract import batch_of
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation
from support.spools import recount
from support.virtual import in_virtual_time

USER = "mira-okafor"
ANY: dict[str, Any] = {"select": [{"types": ["*"]}], "metadata": ["n"]}
Steps = Callable[[Engine, Sandbox], Awaitable[None]]


@in_virtual_time
async def play(
    folder: Path, steps: Steps, *, sandbox: dict[str, Any] | None = None, **sync: Any
) -> Sandbox:
    """Take steps with a running engine and a sandbox."""

    local = simulation.sandbox(**(sandbox or {}))
    async with simulation.engine(folder, local, **sync) as engine:
        await steps(engine, local)
    return local


async def deliver(engine: Engine, *events: dict[str, Any]) -> None:
    await engine.submit(list(events), api_key=simulation.API_KEY)
    with anyio.fail_after(30 * 3600):
        await engine.settled()


def contact_of(key: ContactKey, store: Store) -> Known | None:
    return store.contacts.get(key)


def test_an_update_is_not_on_disk_before_an_earlier_event_of_its_user(tmp_path: Path) -> None:
    """Else a kill in between would bring the earlier one again, and undo the update."""

    async def steps(engine: Engine, local: Sandbox) -> None:
        local.add_contact(external_id=USER)
        await deliver(engine, simulation.identify(USER, 0, {"$set": {"plan": "none"}}))
        earlier = simulation.event(USER, 1, user_properties={"$set": {"plan": "free"}})
        later = simulation.identify(USER, 2, {"$set": {"plan": "paid"}})
        await engine.submit([earlier, later], api_key=simulation.API_KEY)
        spool = engine.streams["simulated"].spool
        looks = 0
        while spool.counters["pending"]:
            key = ContactKey(spool.workspace, "external_id", USER)
            contact = await engine.spool.do(partial(contact_of, key))
            waiting = await engine.spool.do(lambda store: recount(store, spool.taker)["pending"])
            held = contact.properties[str(spool.taker)] if contact else {}
            if held and held["plan"].value == "paid":
                assert waiting == 0
            looks += 1
            await anyio.sleep(0.0005)
        assert looks > 20

    users = {"properties": ["plan"], "trigger": "any_update"}
    play(tmp_path, steps, sandbox={"latency_s": 0.005}, users=users)


@pytest.mark.parametrize("failing", [8, 12])
def test_users_with_failing_calls_take_no_slot_from_others(tmp_path: Path, failing: int) -> None:
    """However few calls may be out: a call that is only tried again is not one of them."""
    well = [f"well-{n}" for n in range(20)]

    async def steps(engine: Engine, local: Sandbox) -> None:
        for user in well[10:]:
            local.add_contact(external_id=user)
        sick = [simulation.event(f"sick-{n}", 1) for n in range(failing)]
        await engine.submit(
            [*sick, *(simulation.event(user, 1) for user in well)], api_key=simulation.API_KEY
        )
        await anyio.sleep(30)
        assert {event.name for event in local.events} == {"Purchase"}
        assert len(local.events) == len(well)

    play(
        tmp_path,
        steps,
        sandbox={"latency_s": 0.05, "faults": [Fault("status", contains="sick", status=500)]},
        intercom={"access_token": "simulated-token", "max_in_flight": 8},
        events=ANY | {"unknown_user": "create"},
    )


def add(n: int) -> dict[str, Any]:
    return simulation.identify(USER, n, {"$add": {"visits": 1}})


@pytest.mark.parametrize(("visits", "path"), [(None, "/contacts"), (5, "/contacts/")])
def test_an_addition_with_a_lost_answer_is_made_once(
    tmp_path: Path, visits: int | None, path: str
) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        if visits is not None:
            local.add_contact(external_id=USER, custom_attributes={"visits": visits})
        await deliver(engine, add(1))

    lost = Fault("reset", path=path, contains="visits", end_s=0.5)
    local = play(tmp_path, steps, sandbox={"faults": [lost]})
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"visits": (visits or 0) + 1}


def test_a_contact_adopted_by_email_gets_the_users_id(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        local.add_contact(email="mira@example.com")
        found = simulation.identify(USER, 1, {"$set": {"email": "mira@example.com"}})
        await deliver(engine, found, simulation.event(USER, 2))

    local = play(tmp_path, steps, sandbox={"strict_email": True})
    assert [c.external_id for c in local.contacts.values()] == [USER]
    assert len(local.events) == 1


def test_users_that_all_fail_with_nobody_else_are_charged_nothing_and_delay_nobody(
    tmp_path: Path,
) -> None:
    """Nothing proves whose fault it is. They are tried once a minute, and others go at once."""

    async def steps(engine: Engine, local: Sandbox) -> None:
        users = ["user-a", "user-b", "user-c"]
        for user in [*users, "user-d"]:
            local.add_contact(external_id=user)
        await engine.submit(
            [simulation.event(user, 13) for user in users], api_key=simulation.API_KEY
        )
        await anyio.sleep(3600)
        assert len(simulation.made(local)) <= 3 * 80
        await engine.submit([simulation.event("user-d", 1)], api_key=simulation.API_KEY)
        await anyio.sleep(1)
        [status] = (await engine.status()).syncs
        assert (status.delivered, status.dead, status.pending) == (1, 0, 3)

    play(tmp_path, steps, sandbox={"faults": [Fault("status", 500, contains='"n":13}')]})


def test_a_known_contact_that_is_gone_is_created_again_for_an_event(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        await deliver(engine, simulation.event(USER, 1))
        [contact] = local.contacts
        local.handle(simulation.archive(contact))
        await deliver(engine, simulation.event(USER, 2))

    events = {"select": [{"types": ["*"]}], "unknown_user": "create", "metadata": ["n"]}
    local = play(tmp_path, steps, events=events)
    assert [e.metadata["n"] for e in local.events] == [1, 2]


def test_an_identify_that_says_nothing_new_still_brings_back_a_contact_that_is_gone(
    tmp_path: Path,
) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        same = {"$set": {"plan": "pro"}}
        await deliver(engine, simulation.identify(USER, 1, same))
        [contact] = local.contacts
        local.handle(simulation.archive(contact))
        await engine.submit([simulation.event(USER, 2)], api_key=simulation.API_KEY)
        await anyio.sleep(3)
        with anyio.fail_after(3):
            await deliver(engine, simulation.identify(USER, 3, same))

    local = play(tmp_path, steps)
    assert [e.metadata["n"] for e in local.events] == [2]


def test_a_contact_that_is_gone_when_it_has_to_be_read_is_resolved_again(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        contact = local.add_contact(external_id=USER, custom_attributes={"visits": 5})
        await deliver(engine, simulation.identify(USER, 1, {"$set": {"plan": "pro"}}))
        local.handle(simulation.archive(contact))
        await deliver(engine, add(2))

    [contact] = play(tmp_path, steps).contacts.values()
    assert contact.custom_attributes == {"plan": "pro", "visits": 6}


def test_an_identify_does_not_overtake_an_earlier_update_in_an_event(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        await engine.submit([simulation.event(USER, 1)], api_key=simulation.API_KEY)
        await anyio.sleep(1)
        update = simulation.event(USER, 2, user_properties={"plan": "free"})
        await deliver(engine, update, simulation.identify(USER, 3, {"$set": {"plan": "pro"}}))

    users = {"properties": ["plan"], "trigger": "any_update"}
    local = play(tmp_path, steps, users=users)
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro"}
    assert [e.metadata["n"] for e in local.events] == [1, 2]


def test_an_insert_id_is_its_users_own_where_there_is_no_device(tmp_path: Path) -> None:
    """Shops count their orders for each customer; Amplitude makes a device of the user id."""

    async def steps(engine: Engine, local: Sandbox) -> None:
        for user in ("alice", "bobby"):
            local.add_contact(external_id=user)
        orders = [simulation.event(user, 1, insert_id="order-1") for user in ("alice", "bobby")]
        await deliver(engine, *orders)
        await deliver(engine, *orders)
        assert (await engine.status()).syncs[0].dropped == {"duplicate": 2}

    assert len(play(tmp_path, steps).events) == 2


def test_a_corrected_event_is_taken_though_its_insert_id_is_a_dead_letters(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        local.add_contact(external_id=USER)
        wrong = msgspec.json.encode(simulation.event(USER, 1, time="soon"))
        for raws in ([wrong], [wrong], [msgspec.json.encode(simulation.event(USER, 1))]):
            ticket = await engine.intake.send(batch_of(raws, sync="simulated", derive_ids=True))
            await ticket.wait()
        await engine.settled()
        [status] = (await engine.status()).syncs
        assert (status.dead, status.dropped) == (1, {"duplicate": 1})

    assert len(play(tmp_path, steps).events) == 1


def test_a_twin_keeps_its_second_as_long_as_it_may_still_be_sent(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        local.add_contact(external_id=USER)
        local.add_contact(external_id="another-user")
        twin = simulation.event(USER, 1, insert_id="twin", event_properties={"n": 2})
        await deliver(engine, simulation.event(USER, 1))
        await deliver(engine, twin)
        local.faults.clear()
        await anyio.sleep(25 * 3600)
        await deliver(engine, simulation.event("another-user", 1))
        await engine.upkeep.replay("simulated", DeadLetterQuery(every=True))
        await deliver(engine, simulation.event("another-user", 2))

    poison = Fault("status", 422, contains='"n":2}', end_s=3600)
    local = play(tmp_path, steps, sandbox={"faults": [poison]})
    assert sorted(e.metadata["n"] for e in local.events) == [1, 1, 2, 2]


def test_an_outage_costs_a_parked_user_none_of_its_attempts(tmp_path: Path) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        others = [simulation.event(f"user-{n}", 1) for n in range(3)]
        await engine.submit([simulation.event(USER, 1)], api_key=simulation.API_KEY)
        await anyio.sleep(4)
        await engine.submit(others, api_key=simulation.API_KEY)
        await anyio.sleep(86_400)
        assert (await engine.status()).syncs[0].dead == 0

    play(tmp_path, steps, sandbox={"faults": [Fault("refuse", start_s=3, end_s=86_000)]})


def test_a_workspace_without_most_of_the_attributes_stops_nobody(tmp_path: Path) -> None:
    names = [f"property-{n}" for n in range(20)]

    async def steps(engine: Engine, local: Sandbox) -> None:
        await deliver(engine, simulation.identify(USER, 1, {"$set": dict.fromkeys(names, 1)}))
        assert (await engine.status()).syncs[0].delivered == 1

    play(tmp_path, steps, sandbox={"open_attributes": False}, users={"properties": names})


def test_an_update_is_not_applied_again_when_its_event_finds_the_contact_gone(
    tmp_path: Path,
) -> None:
    """The contact is written, and archived before the event of the same record arrives."""

    async def steps(engine: Engine, local: Sandbox) -> None:
        update = simulation.event(USER, 1, user_properties={"$add": {"visits": 1}})
        await engine.submit([update], api_key=simulation.API_KEY)
        while not local.contacts:
            await anyio.sleep(0.05)
        local.handle(simulation.archive(next(iter(local.contacts))))
        await engine.settled()

    users = {"properties": ["visits"], "trigger": "any_update"}
    local = play(tmp_path, steps, sandbox={"latency_s": 0.5}, users=users)
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"visits": 1}
    assert [e.metadata["n"] for e in local.events] == [1]


def test_a_contact_adopted_by_email_gets_the_users_id_though_it_holds_the_same_values(
    tmp_path: Path,
) -> None:
    async def steps(engine: Engine, local: Sandbox) -> None:
        local.add_contact(email="mira@example.com", custom_attributes={"visits": 1})
        both = {"$set": {"email": "mira@example.com"}, "$add": {"visits": 1}}
        await deliver(engine, simulation.identify(USER, 1, both), simulation.event(USER, 2))

    lost = Fault("reset", path="/contacts/", contains="visits", done=False, end_s=0.5)
    local = play(tmp_path, steps, sandbox={"strict_email": True, "faults": [lost]})
    [contact] = local.contacts.values()
    assert (contact.external_id, contact.custom_attributes["visits"]) == (USER, 2)
    assert [e.metadata["n"] for e in local.events] == [2]


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_fails_now_and_then_ends_no_lane(tmp_path: Path, seed: int) -> None:
    """What is known of a contact is read and written by turns, which must not die of it."""
    users, dice = [f"user-{n}" for n in range(12)], random.Random(seed)

    fails = False

    class FailingStore(Store):
        def commit(self) -> None:
            if fails and dice.random() < 0.15:
                raise sqlite3.OperationalError("disk I/O error")
            super().commit()

    async def steps(engine: Engine, local: Sandbox) -> None:
        nonlocal fails
        changes = [
            simulation.event(user, n, user_properties={"plan": f"plan-{n}"})
            for n in range(8)
            for user in users
        ]
        await engine.submit(changes, api_key=simulation.API_KEY)
        fails = True
        with anyio.fail_after(3600):
            await engine.settled()

    update = {"properties": ["plan"], "trigger": "any_update"}
    events = ANY | {"unknown_user": "create"}
    local = play(tmp_path, steps, store_type=FailingStore, users=update, events=events)
    arrived: dict[str, list[int]] = defaultdict(list)
    for event in local.events:
        arrived[event.contact_id].append(event.metadata["n"])
    assert list(arrived.values()) == [list(range(8))] * len(users)
