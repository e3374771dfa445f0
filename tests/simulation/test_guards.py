"""What a workspace has no place for is not sent: attributes that it lacks, the 121st event name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

USER = "mira-okafor"
USERS = {"properties": ["plan", "visits", "name"]}


def identify(n: int = 1, **properties: Any) -> dict[str, Any]:
    return simulation.identify(USER, n, {"$set": properties})


async def deliver(engine: Any, *events: dict[str, Any]) -> Any:
    for event in events:
        await engine.submit([event], api_key=simulation.API_KEY)
        await engine.settled()
    [status] = (await engine.status()).syncs
    return status


def asked(local: Sandbox) -> list[str]:
    return [f"{e.method} {e.path.split('?')[0][:16]} {e.status}" for e in local.journal]


# --- attributes ---------------------------------------------------------------------------


@in_virtual_time
async def test_an_attribute_that_the_workspace_lacks_costs_no_refused_call(tmp_path: Path) -> None:
    local = simulation.sandbox(open_attributes=False, attributes={"plan": "string"})
    async with simulation.engine(tmp_path, local, users=USERS) as engine:
        first = identify(plan="pro", visits=3, name="Mira")
        status = await deliver(engine, first, identify(2, plan="free", name="Mira O."))
    me, listed, *writes = asked(local)
    assert (me, listed) == ("GET /me 200", "GET /data_attributes 200")
    assert [write[-3:] for write in writes] == ["200", "200"]
    [contact] = local.contacts.values()
    assert (contact.name, contact.custom_attributes) == ("Mira O.", {"plan": "free"})
    assert status.unknown_attributes == {"custom_attributes.visits": 2}
    assert status.adjusted == {"unknown_attribute": 2}


@pytest.mark.parametrize("status", [403, 404, 500])
@in_virtual_time
async def test_where_the_list_cannot_be_read_the_refusals_teach_and_nothing_stops(
    tmp_path: Path, status: int
) -> None:
    fault = Fault(kind="status", status=status, path="/data_attributes")
    local = simulation.sandbox(open_attributes=False, faults=[fault])
    local.add_contact(external_id="somebody-else")
    async with simulation.engine(tmp_path, local, users=USERS) as engine:
        other = simulation.event("somebody-else", 1)
        first = identify(plan="pro", visits=3, name="Mira")
        await engine.submit([other, first], sync="simulated")
        await engine.settled()
        found = await deliver(engine, identify(2, plan="free", name="Mira O."))
    posted = [e.status for e in local.journal if e.path == "/contacts"]
    assert posted == [400, 400, 200]
    assert [c.name for c in local.contacts.values()] == [None, "Mira O."]
    assert found.unknown_attributes == {
        "custom_attributes.plan": 2,
        "custom_attributes.visits": 2,
    }


@in_virtual_time
async def test_an_attribute_that_somebody_creates_is_written_once_the_list_is_read_again(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(open_attributes=False, attributes={"plan": "string"})
    users = USERS | {"refresh_attributes_s": 60.0}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await deliver(engine, identify(plan="pro", visits=3))
        local.handle(simulation.create_attribute("visits", "integer"))
        await deliver(engine, identify(2, plan="free"))
        [contact] = local.contacts.values()
        assert contact.custom_attributes == {"plan": "free"}
        await anyio.sleep(61)
        await deliver(engine, identify(3, plan="pro"))
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro", "visits": 3}
    lists = [line for line in asked(local) if line.startswith("GET /data")]
    assert len(lists) == 2


@pytest.mark.parametrize(
    "fault", [Fault("status", 503, path="/data_attributes"), Fault("hang", path="/data_attributes")]
)
@in_virtual_time
async def test_a_list_that_cannot_be_read_is_read_again_soon_and_not_in_ten_minutes(
    fault: Fault, tmp_path: Path
) -> None:
    """One 503 once cost every value of another type for ten minutes, and `status` said that the
    workspace lacked the attribute."""

    attributes = {"plan": "integer"}
    local = simulation.sandbox(
        open_attributes=False, attributes=attributes, faults=[fault], latency_s=0.1
    )
    users = {"properties": ["plan"]}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await deliver(engine, simulation.identify("early", 1, {"$set": {"plan": "12"}}))
        local.faults.clear()
        await anyio.sleep(30)
        await deliver(engine, simulation.identify("later", 2, {"$set": {"plan": "12"}}))
    found = {c.external_id: c.custom_attributes for c in local.contacts.values()}
    assert found == {"early": {}, "later": {"plan": 12}}


@in_virtual_time
async def test_missing_attributes_are_created_with_a_type_where_the_settings_say_so(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(open_attributes=False)
    users = {
        "properties": ["plan", "visits", "trial", "name"],
        "create_missing_attributes": True,
    }
    async with simulation.engine(tmp_path, local, users=users) as engine:
        status = await deliver(engine, identify(plan="pro", visits=3, trial=True, name="Mira"))
        again = simulation.identify("another-user", 2, {"$set": {"plan": "x", "visits": 1.5}})
        await deliver(engine, again)
    created = {name: made["data_type"] for name, made in local.attributes.items()}
    assert created == {"plan": "string", "visits": "float", "trial": "boolean"}
    assert [c.custom_attributes for c in local.contacts.values()] == [
        {"plan": "pro", "visits": 3, "trial": True},
        {"plan": "x", "visits": 1.5},
    ]
    assert status.unknown_attributes == {}
    posts = Counter(asked(local))
    assert posts["POST /data_attributes 200"] == 3


@pytest.mark.parametrize("status", [429, 500, 503])
@in_virtual_time
async def test_an_attribute_with_an_unanswered_creation_costs_no_value(
    status: int, tmp_path: Path
) -> None:
    """It was taken for one that the workspace lacks, and the update counted as delivered."""

    fault = Fault("status", status, path="/data_attributes", contains="plan", end_s=5.0)
    local = simulation.sandbox(open_attributes=False, faults=[fault])
    users = {"properties": ["plan"], "create_missing_attributes": True}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await deliver(engine, identify(plan="pro"))
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro"}


@in_virtual_time
async def test_a_creation_that_hangs_keeps_no_other_call_waiting(tmp_path: Path) -> None:
    hangs = Fault("hang", path="/data_attributes", contains="plan", end_s=60.0, done=False)
    local = simulation.sandbox(open_attributes=False, faults=[hangs])
    for n in range(40):
        local.add_contact(external_id=f"known-{n}")
    users = {"properties": ["plan"], "create_missing_attributes": True}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        updates = [simulation.identify(f"new-{n}", 1, {"$set": {"plan": "x"}}) for n in range(60)]
        await engine.submit(updates, api_key=simulation.API_KEY)
        await anyio.sleep(3)
        events = [simulation.event(f"known-{n}", 1) for n in range(40)]
        await engine.submit(events, api_key=simulation.API_KEY)
        await anyio.sleep(8)
        assert len(local.events) == 40
        await engine.settled()
    plans = [c.custom_attributes.get("plan") for c in local.contacts.values()]
    assert plans.count("x") == 60


@in_virtual_time
async def test_a_list_that_hangs_keeps_no_other_call_waiting(tmp_path: Path) -> None:
    """Turns that wait for it have made no call, and no more were chosen than may leave soon."""

    local = simulation.sandbox(faults=[Fault("hang", path="/data_attributes")])
    for n in range(40):
        local.add_contact(external_id=f"known-{n}")
    users = {"properties": ["plan"]}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        updates = [simulation.identify(f"new-{n}", 1, {"$set": {"plan": "x"}}) for n in range(60)]
        await engine.submit(updates, api_key=simulation.API_KEY)
        await anyio.sleep(3)
        events = [simulation.event(f"known-{n}", 1) for n in range(40)]
        await engine.submit(events, api_key=simulation.API_KEY)
        await anyio.sleep(8)
        assert len(local.events) == 40


@in_virtual_time
async def test_an_attribute_that_cannot_be_created_is_left_out(tmp_path: Path) -> None:
    fault = Fault(kind="status", status=404, path="/data_attributes", contains="visits")
    local = simulation.sandbox(open_attributes=False, faults=[fault])
    users = USERS | {"create_missing_attributes": True}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        status = await deliver(engine, identify(plan="pro", visits=3), identify(2, visits=4))
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro"}
    assert status.unknown_attributes == {"custom_attributes.visits": 2}
    assert Counter(asked(local))["POST /data_attributes 404"] == 1


@in_virtual_time
async def test_values_get_the_types_of_the_workspace_or_are_left_out(tmp_path: Path) -> None:
    attributes = {"plan": "string", "visits": "integer"}
    local = simulation.sandbox(open_attributes=False, attributes=attributes)
    async with simulation.engine(tmp_path, local, users=USERS) as engine:
        status = await deliver(engine, identify(plan=7, visits="12"), identify(2, visits="x"))
    [contact] = local.contacts.values()
    # A value that does not fit is skipped; it is unset that clears.
    assert contact.custom_attributes == {"plan": "7", "visits": 12}
    assert status.adjusted == {"type_converted": 3, "type_mismatch": 1}


# --- event names --------------------------------------------------------------------------


def named(first: int, last: int) -> list[dict[str, Any]]:
    return [simulation.event(USER, n, event_type=f"Name {n}") for n in range(first, last)]


@in_virtual_time
async def test_the_121st_event_name_becomes_a_dead_letter_without_a_call_over_restarts_too(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id=USER)
    for first, last in ((0, 60), (50, 119), (119, 130)):
        async with simulation.engine(tmp_path, local) as engine:
            await engine.submit(named(first, last), api_key=simulation.API_KEY)
            await engine.settled()
            same = simulation.event(USER, 1_000 + last, event_type="NAME 3")  # no new one
            status = await deliver(engine, same)
            letters = await engine.upkeep.dead_letters("simulated", DeadLetterQuery())
    assert [letter.reason for letter in letters] == ["event_type_limit"] * 10
    assert (status.dead_by_reason, status.event_names) == ({"event_type_limit": 10}, 120)
    assert {e.name for e in local.events} == {*(f"Name {n}" for n in range(120)), "NAME 3"}
    assert {e.status for e in simulation.made(local)} == {202}


@in_virtual_time
async def test_names_that_nobody_sends_any_more_make_room(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id=USER)
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit(named(0, 120), api_key=simulation.API_KEY)
        await engine.settled()
    virtual.current().now_s += 91 * 86_400
    local.event_names.clear()  # somebody archived them
    async with simulation.engine(tmp_path, local) as engine:
        status = await deliver(engine, simulation.event(USER, 200, event_type="New"))
    assert (status.dead_by_reason, status.event_names) == ({}, 1)
    assert local.events[-1].name == "New"
