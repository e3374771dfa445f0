"""What once left a contact wrong, or made it twice, or cost calls: each fault by its name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.engine.token_facts import contact_key
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

USER = "mira-okafor"
HTML = Answer(200, {"content-type": "text/html"}, b"<html><body>it works</body></html>")
CONTACTS = "/contacts"


def identify(n: int, operations: dict[str, Any], user: str = USER) -> dict[str, Any]:
    return simulation.identify(user, n, operations)


def set_(n: int, user: str = USER, **properties: Any) -> dict[str, Any]:
    return identify(n, {"$set": properties}, user)


async def send(engine: Engine, *events: dict[str, Any]) -> None:
    """Have events accepted and settled, one after the other."""
    for event in events:
        await engine.submit([event], api_key=simulation.API_KEY)
        await engine.settled()


async def deliver(folder: Path, local: Sandbox, *events: dict[str, Any], **sync: Any) -> SyncStatus:
    """Run a process until each event, one after the other, is settled; return what has become of
    them (in the first sync)."""
    async with simulation.engine(folder, local, **sync) as engine:
        await send(engine, *events)
        status = (await engine.status()).syncs
    return status[0]


async def lose_answer(folder: Path, local: Sandbox, *events: dict[str, Any], **sync: Any) -> None:
    """Run a process that is killed after a contact was written and before the answer is there."""
    local.faults.append(Fault("hang", path=CONTACTS))
    calls_before = len(simulation.made(local))
    async with simulation.engine(folder, local, **sync) as engine:
        await engine.submit(list(events), api_key=simulation.API_KEY)
        with anyio.fail_after(60):
            while len(simulation.made(local)) == calls_before:
                await simulation.a_moment()
        engine.cancel()
    local.faults.clear()


async def finish(folder: Path, local: Sandbox, **sync: Any) -> None:
    """Run a process until what is left is settled."""
    async with simulation.engine(folder, local, **sync) as engine:
        await engine.settled()


def written(local: Sandbox) -> list[str]:
    return [
        entry.path
        for entry in local.journal
        if entry.path.startswith(CONTACTS)
        and entry.method in ("POST", "PUT")
        and entry.outcome in ("created", "updated", "hang")
    ]


def calls(local: Sandbox) -> list[str]:
    """Return the calls of a sandbox, as method and status, the list of attributes apart."""
    return [f"{entry.method} {entry.status}" for entry in simulation.made(local)]


def held(local: Sandbox, user: str = USER) -> dict[str, Any]:
    [contact] = [c for c in local.contacts.values() if c.external_id == user and c.state == "live"]
    return dict(contact.custom_attributes)


# --- answers that are lost ----------------------------------------------------------------


@in_virtual_time
async def test_a_value_with_a_lost_answer_is_written_again_though_it_was_the_one_before(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="free"))
    await lose_answer(tmp_path, local, set_(2, plan="pro"))
    assert held(local) == {"plan": "pro"}
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([set_(3, plan="free")], api_key=simulation.API_KEY)
        await engine.settled()
    assert held(local) == {"plan": "free"}


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("answer", ["hang", "reset", "half"])
@in_virtual_time
async def test_operations_of_a_write_with_a_lost_answer_count_once(
    tmp_path: Path, answer: Any, is_there: bool
) -> None:
    """A ``$set`` and an ``$add`` together, of a contact that is new, or has visits already."""

    expected = {"plan": "pro", "visits": 42 if is_there else 1}
    local = simulation.sandbox(faults=[Fault(answer, path=CONTACTS, start_s=0.5, end_s=200)])
    if is_there:
        local.add_contact(external_id=USER, custom_attributes={"visits": 41})
    both = [identify(1, {"$set": {"plan": "pro"}}), identify(2, {"$add": {"visits": 1}})]
    async with simulation.engine(tmp_path, local) as engine:
        await anyio.sleep(1)
        await engine.submit(both, api_key=simulation.API_KEY)
        await engine.settled()
    assert held(local) == expected


@pytest.mark.parametrize("op", ["$add", "$append", "$prepend", "$setOnce", "$preInsert"])
@in_virtual_time
async def test_an_operation_counts_once_though_the_process_is_killed_three_times(
    tmp_path: Path, op: str
) -> None:
    expected = {"$add": 1, "$append": "x", "$prepend": "x", "$preInsert": "x"}
    local = simulation.sandbox()
    value = 1 if op == "$add" else "x"
    await lose_answer(tmp_path, local, identify(1, {op: {"visits": value}}))
    await lose_answer(tmp_path, local)
    await lose_answer(tmp_path, local)
    await finish(tmp_path, local)
    assert held(local) == {"visits": expected.get(op, "x")}


# --- what was there before ----------------------------------------------------------------


@in_virtual_time
async def test_an_add_counts_on_from_another_systems_value(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id=USER, custom_attributes={"visits": 1})
    await deliver(tmp_path, local, identify(1, {"$add": {"visits": 1}}))
    assert held(local) == {"visits": 2}


@in_virtual_time
async def test_a_property_that_is_selected_later_is_read_before_it_is_counted_on(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id=USER, custom_attributes={"visits": 41, "first": "organic"})
    await deliver(tmp_path, local, set_(1, plan="pro"), users={"properties": ["plan"]})
    users = {"properties": ["plan", "visits", "first"]}
    add = identify(2, {"$add": {"visits": 1}, "$setOnce": {"first": "paid"}})
    await deliver(tmp_path, local, add, users=users)
    assert held(local) == {"plan": "pro", "visits": 42, "first": "organic"}


@in_virtual_time
async def test_a_replayed_letter_with_a_done_update_does_not_repeat_it(tmp_path: Path) -> None:
    """The event brought an ``$add`` along, which was written; Intercom refused the event."""

    local = simulation.sandbox(faults=[Fault("status", 422, path="/events")])
    users = {"properties": ["visits"], "trigger": "any_update"}
    event = simulation.event(USER, 1, user_properties={"$add": {"visits": 1}})
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.submit([event], api_key=simulation.API_KEY)
        await engine.settled()
        assert held(local) == {"visits": 1}
        local.faults.clear()
        await engine.upkeep.replay("simulated", DeadLetterQuery(every=True))
        await engine.settled()
    assert len(local.events) == 1
    assert held(local) == {"visits": 1}


# --- whose contact it is ------------------------------------------------------------------


@pytest.mark.parametrize("then", ["several", "hangs"])
def test_by_email_a_stranger_s_contact_is_written_once_though_the_search_leads_nowhere(
    tmp_path: Path, then: str
) -> None:
    def update(n: int) -> dict[str, Any]:
        return set_(n, email="mira@example.com", plan=f"plan-{n}")

    @in_virtual_time
    async def scenario() -> Sandbox:
        local = simulation.sandbox()
        mapping = {"identifier": "email", "from": "user.email"}
        async with simulation.engine(tmp_path, local, mapping=mapping) as engine:
            await engine.submit([update(1)], api_key=simulation.API_KEY)
            await engine.settled()
            local.change_contact(next(iter(local.contacts)), email="new@example.com")
            local.journal.clear()
            if then == "hangs":
                local.faults.append(Fault("hang", path="/contacts/search"))
            else:
                for _ in range(2):
                    local.add_contact(email="mira@example.com")
            for n in range(2, 8):
                await engine.submit([update(n)], api_key=simulation.API_KEY)
                await anyio.sleep(60)
            local.faults.clear()
            await engine.settled()
        return local

    local = scenario()
    theirs = next(iter(local.contacts))
    writes = [entry.contact_id for entry in local.journal if entry.method == "PUT"]
    assert writes.count(theirs) == 1


@in_virtual_time
async def test_a_contact_that_was_given_to_another_user_is_left_to_that_user(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="free"))
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    await deliver(tmp_path, local, set_(2, plan="pro"), set_(3, plan="team"))
    assert held(local) == {"plan": "team"}
    assert len([path for path in written(local) if path.endswith(next(iter(local.contacts)))]) == 1


@pytest.mark.parametrize("met_before", [0, 40])
@in_virtual_time
async def test_a_user_with_a_contact_that_was_taken_away_gets_all_its_values_again(
    tmp_path: Path, met_before: int
) -> None:
    """Be it created at once, or looked for first because others were there."""

    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    events = {"select": [{"types": ["*"]}], "unknown_user": "drop"}
    others = [f"user-{n}" for n in range(met_before)]
    for other in others:
        local.add_contact(external_id=other)
    later = [set_(1, other, plan="pro") for other in others]
    later += [simulation.event(USER, 2), set_(3, visits=1)]
    await deliver(tmp_path, local, *later, events=events)
    assert held(local) == {"plan": "pro", "visits": 1}


@in_virtual_time
async def test_an_event_does_not_go_to_the_new_user_of_a_contact_that_was_given_away(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    events = {"select": [{"types": ["*"]}], "unknown_user": "create"}
    await deliver(tmp_path, local, simulation.event(USER, 2), events=events)
    [event] = local.events
    assert local.contacts[event.contact_id].external_id == USER


@in_virtual_time
async def test_an_event_of_a_user_that_was_merged_goes_to_the_contact_it_was_merged_into(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    [contact_id] = local.contacts
    heir = local.add_contact(external_id="the-heir")
    local.merge(contact_id, heir)
    await deliver(tmp_path, local, set_(2, plan="team"), simulation.event(USER, 3))
    assert [event.contact_id for event in local.events] == [heir]
    assert held(local, "the-heir") == {"plan": "team"}


@in_virtual_time
async def test_events_of_a_user_that_was_merged_cost_one_call_each_but_the_first(
    tmp_path: Path,
) -> None:
    """Until the user has a contact of its own again."""

    local = simulation.sandbox()
    events = {"select": [{"types": ["*"]}]}
    async with simulation.engine(tmp_path, local, events=events) as engine:
        await send(engine, set_(1, plan="free"), set_(2, "ann-lee", plan="free"))
        mine, theirs = local.contacts
        local.merge(mine, theirs)
        await send(engine, set_(3, plan="pro"))
        local.journal.clear()
        await send(engine, *(simulation.event(USER, n) for n in range(4, 9)))
        said = calls(local)
        assert [event.contact_id for event in local.events] == [theirs] * 5
        local.handle(simulation.delete(theirs))
        await send(engine, set_(9, plan="team"), simulation.event(USER, 10))
    [own] = [c.id for c in local.contacts.values() if c.state == "live"]
    assert local.events[-1].contact_id == own
    assert said == ["POST 404", *["POST 202"] * 5]


@pytest.mark.parametrize("unknown_user", ["park", "create", "drop"])
@in_virtual_time
async def test_a_merged_user_with_an_event_before_an_update_has_no_second_contact(
    tmp_path: Path, unknown_user: str
) -> None:
    local = simulation.sandbox()
    settings: dict[str, Any] = {
        "users": {"properties": ["visits"]},
        "events": {"select": [{"types": ["*"]}], "unknown_user": unknown_user},
    }
    first = [
        identify(1, {"$add": {"visits": 5}}),
        identify(2, {"$add": {"visits": 9}}, "ann-lee"),
    ]
    await deliver(tmp_path, local, *first, **settings)
    mine, theirs = local.contacts
    local.merge(mine, theirs)
    later = [simulation.event(USER, 3), identify(4, {"$add": {"visits": 1}})]
    await deliver(tmp_path, local, *later, **settings)
    assert [c.id for c in local.contacts.values() if c.state == "live"] == [theirs]
    assert held(local, "ann-lee") == {"visits": 10}
    assert [event.contact_id for event in local.events] == [theirs]


@in_virtual_time
async def test_events_of_a_merged_user_do_not_go_to_a_stranger_that_was_given_the_contact(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    events = {"select": [{"types": ["*"]}], "unknown_user": "drop"}
    async with simulation.engine(tmp_path, local, events=events) as engine:
        await send(engine, set_(1, plan="free"), set_(2, "ann-lee", plan="free"))
        mine, theirs = local.contacts
        local.merge(mine, theirs)
        await send(engine, set_(3, plan="pro"), simulation.event(USER, 4))
        local.change_contact(theirs, external_id="stranger")
        await send(engine, *(simulation.event(USER, n) for n in range(5, 25)))
    assert len(local.events) == 1


@in_virtual_time
async def test_a_property_that_is_selected_again_is_set_to_its_earlier_value(
    tmp_path: Path,
) -> None:
    """Others have changed it while it was not selected."""

    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"), users={"properties": ["plan"]})
    await deliver(tmp_path, local, set_(2, tier="x"), users={"properties": ["tier"]})
    local.change_contact(next(iter(local.contacts)), custom_attributes={"plan": "theirs"})
    both = {"properties": ["plan", "tier"]}
    await deliver(tmp_path, local, set_(3, plan="pro"), users=both)
    assert held(local) == {"plan": "pro", "tier": "x"}


@in_virtual_time
async def test_a_count_of_one_contact_is_not_written_to_another_that_is_there(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, identify(1, {"$add": {"visits": 5}}))
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    local.add_contact(external_id=USER, custom_attributes={"visits": 100})
    await deliver(tmp_path, local, identify(2, {"$add": {"visits": 1}}))
    assert held(local) == {"visits": 101}


@in_virtual_time
async def test_somebody_elses_archived_contact_stays_archived(tmp_path: Path) -> None:
    local = simulation.sandbox(strict_email=True)
    theirs = local.add_contact(external_id="another", email="shared@example.com")
    local.archive(theirs)
    await deliver(tmp_path, local, set_(1, email="shared@example.com", plan="pro"))
    assert local.contacts[theirs].state == "archived"
    assert held(local) == {"plan": "pro"}


@in_virtual_time
async def test_an_update_by_an_email_that_two_contacts_have_is_no_guess(tmp_path: Path) -> None:
    local = simulation.sandbox()
    for name in ("one", "two"):
        local.add_contact(external_id=name, email="shared@example.com")
    mapping = {"identifier": "email", "from": "user.email"}
    update = set_(1, email="shared@example.com", plan="pro")
    status = await deliver(tmp_path, local, update, mapping=mapping)
    assert not any(contact.custom_attributes for contact in local.contacts.values())
    assert status.dead_by_reason == {"contact_ambiguous": 1}


@in_virtual_time
async def test_a_merge_that_one_sync_meets_makes_no_base_of_another_stale(tmp_path: Path) -> None:
    local = simulation.sandbox()
    second = {"users": {"properties": ["visits"]}}
    settings: dict[str, Any] = {"users": {"properties": ["plan"]}, "second": second}
    both = [set_(1, plan="free"), identify(2, {"$add": {"visits": 5}})]
    await deliver(tmp_path, local, *both, **settings)
    [contact_id] = local.contacts
    heir = local.add_contact(external_id="the-heir", custom_attributes={"visits": 100})
    local.merge(contact_id, heir)
    later = [set_(3, plan="pro"), identify(4, {"$add": {"visits": 1}})]
    await deliver(tmp_path, local, *later, **settings)
    assert held((local, heir)[0], "the-heir") == {"plan": "pro", "visits": 101}


@pytest.mark.parametrize("together", [False, True])
def test_two_users_that_were_merged_count_on_one_contact(tmp_path: Path, together: bool) -> None:
    """Both go on: what each counts is counted on from what the other has written."""

    @in_virtual_time
    async def scenario() -> Sandbox:
        local = simulation.sandbox(latency_s=0.4)
        users = {"properties": ["visits", "tags"]}
        first = [
            identify(1, {"$add": {"visits": 5}}, "ann-lee"),
            identify(2, {"$add": {"visits": 100}}),
        ]
        await deliver(tmp_path, local, *first, users=users)
        [ann] = [key for key, contact in local.contacts.items() if contact.external_id == "ann-lee"]
        [heir] = [key for key in local.contacts if key != ann]
        local.merge(ann, heir)
        both = [
            identify(n, {"$add": {"visits": 1}, "$append": {"tags": f"t{n}"}}, user)
            for n, user in enumerate(["ann-lee", USER] * 3, 3)
        ]
        if not together:
            await deliver(tmp_path, local, *both, users=users)
            return local
        async with simulation.engine(tmp_path, local, users=users) as engine:
            for event in both:
                await engine.submit([event], api_key=simulation.API_KEY)
                await anyio.sleep(0.3)
            await engine.settled()
        return local

    found = held(scenario())
    assert found["visits"] == 106
    assert sorted(found["tags"].split(", ")) == [f"t{n}" for n in range(3, 9)]


@in_virtual_time
async def test_users_that_share_a_contact_write_a_stranger_once_where_it_is_given_away(
    tmp_path: Path,
) -> None:
    """Five users were merged into one, whose contact becomes another user's."""

    local = simulation.sandbox()
    users = [f"user-{n}" for n in range(5)]
    await deliver(tmp_path, local, *(set_(1, user, plan=user) for user in [*users, USER]))
    *merged, heir = local.contacts
    for contact_id in merged:
        local.merge(contact_id, heir)
    await deliver(tmp_path, local, *(set_(2, user, plan="shared") for user in users))
    local.change_contact(heir, external_id="stranger")
    local.journal.clear()
    await deliver(tmp_path, local, *(set_(3, user, plan=user) for user in [*users, USER]))
    assert [entry.contact_id for entry in local.journal if entry.method == "PUT"] == [heir]
    for user in (*(f"user-{n}" for n in range(5)), USER):
        assert held(local, user) == {"plan": user}


@in_virtual_time
async def test_a_merged_users_own_contact_gets_the_values_of_both(tmp_path: Path) -> None:
    local = simulation.sandbox()
    users = {"properties": ["plan", "visits", "tier"]}
    first = [set_(1, plan="free"), set_(2, "ann-lee", plan="x", tier="gold")]
    await deliver(tmp_path, local, *first, users=users)
    mine, theirs = local.contacts
    local.merge(mine, theirs)
    await deliver(tmp_path, local, set_(3, plan="team"), users=users)
    local.change_contact(theirs, external_id="another")
    both = [set_(4, visits=1), set_(5, "ann-lee", visits=2)]
    await deliver(tmp_path, local, *both, users=users)
    assert held(local) == {"plan": "team", "visits": 1, "tier": "gold"}
    assert held(local, "ann-lee") == {"plan": "team", "visits": 2, "tier": "gold"}


@pytest.mark.parametrize("length", [3, 12])
@in_virtual_time
async def test_along_many_merges_the_first_user_reaches_the_last_contact(
    tmp_path: Path, length: int
) -> None:
    local = simulation.sandbox()
    users = [f"user-{n:02}" for n in range(length)]
    await deliver(tmp_path, local, *(identify(1, {"$add": {"visits": 1}}, u) for u in users))
    ids = list(local.contacts)
    for n, (contact_id, heir) in enumerate(pairwise(ids)):
        local.merge(contact_id, heir)
        await deliver(tmp_path, local, identify(2, {"$add": {"visits": 1}}, users[n]))
    await deliver(tmp_path, local, identify(3, {"$add": {"visits": 1}}, users[0]))
    [last] = [c for c in local.contacts.values() if c.state == "live"]
    assert (last.external_id, last.custom_attributes) == (f"user-{length - 1:02}", {"visits": 3})


@in_virtual_time
async def test_two_users_do_not_both_take_over_a_contact_without_a_name(tmp_path: Path) -> None:
    local = simulation.sandbox(strict_email=True, latency_s=0.3)
    local.add_contact(email="lead@example.com", custom_attributes={"visits": 100})
    both = [
        identify(2, {"$set": {"email": "lead@example.com"}, "$add": {"visits": 1}}, user)
        for user in (USER, "ann-lee")
    ]
    users = {"properties": ["email", "visits"]}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.submit(both, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    found = sorted(contact["visits"] for contact in (held(local), held(local, "ann-lee")))
    assert found == [1, 101]
    assert status.adjusted["taken"] == 1


@in_virtual_time
async def test_a_value_with_an_unanswered_first_try_is_refused_once(tmp_path: Path) -> None:
    local = simulation.sandbox()
    tries = 0

    def answer(request: Request) -> Answer | None:
        nonlocal tries
        if b'"visits":"many"' not in (request.body or b""):
            return None
        tries += 1
        code = "server_error" if tries == 1 else "parameter_invalid"
        errors = [{"code": code, "message": "'visits' is invalid"}]
        body = {"type": "error.list", "errors": errors}
        return Answer(500 if tries == 1 else 422, {}, simulation.encode(body))

    wire = Between(local, answer)
    updates = [set_(n, visits="many") for n in range(2, 9)]
    await deliver(tmp_path, local, set_(1, plan="free"), *updates, wire=wire)
    assert (held(local), tries) == ({"plan": "free"}, 2)


@in_virtual_time
async def test_a_user_with_a_deleted_heir_has_a_contact_of_its_own_again(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="free"), set_(2, "ann-lee", plan="pro"))
    mine, theirs = local.contacts
    local.merge(mine, theirs)
    await deliver(tmp_path, local, set_(3, plan="team"))
    local.handle(simulation.delete(theirs))
    await deliver(tmp_path, local, set_(4, plan="more"), set_(5, plan="most"))
    assert held(local) == {"plan": "most"}


@pytest.mark.parametrize(
    "between",
    [
        {"users": {"properties": ["plan"]}},
        {"users": {"properties": ["plan", "visits"], "enabled": False}},
        {"enabled": False},
    ],
)
@in_virtual_time
async def test_a_property_that_was_not_selected_for_a_while_is_read_before_it_is_counted_on(
    tmp_path: Path, between: dict[str, Any]
) -> None:
    local = simulation.sandbox()
    both = {"users": {"properties": ["plan", "visits"]}}
    await deliver(tmp_path, local, identify(1, {"$add": {"visits": 5}}), **both)
    await deliver(tmp_path, local, **{**both, **between})
    [contact_id] = local.contacts
    local.change_contact(contact_id, custom_attributes={"visits": 100})
    await deliver(tmp_path, local, identify(3, {"$add": {"visits": 1}}), **both)
    assert held(local) == {"visits": 101}


@in_virtual_time
async def test_a_create_that_never_arrived_is_no_base_for_a_contact_that_others_made(
    tmp_path: Path,
) -> None:
    """What the contact holds is counted on; of what was known before it gets what it lacks."""

    local = simulation.sandbox()
    users = {"properties": ["plan", "visits", "tier"]}
    first = identify(1, {"$add": {"visits": 5}, "$set": {"plan": "free", "tier": "gold"}})
    await deliver(tmp_path, local, first, users=users)
    [contact_id] = local.contacts
    local.handle(simulation.delete(contact_id))
    fault = Fault("hang", path=CONTACTS, contains="role", done=False)
    local.faults.append(fault)
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.submit([identify(2, {"$add": {"visits": 1}})], api_key=simulation.API_KEY)
        await anyio.sleep(5)
        theirs = {"visits": 100, "plan": "theirs"}
        local.add_contact(external_id=USER, custom_attributes=theirs)
        local.faults.clear()
        await engine.settled()
    assert held(local) == {"visits": 101, "plan": "theirs", "tier": "gold"}


@in_virtual_time
async def test_a_user_created_again_by_an_unanswered_event_keeps_its_values(
    tmp_path: Path,
) -> None:
    """The contact was given to another; the event's call to create one has no answer."""

    local = simulation.sandbox()
    settings: dict[str, Any] = {
        "users": {"properties": ["plan", "visits"]},
        "events": {"select": [{"types": ["*"]}], "unknown_user": "create"},
    }
    first = identify(1, {"$add": {"visits": 5}, "$set": {"plan": "free"}})
    await deliver(tmp_path, local, first, **settings)
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    local.faults.append(Fault("hang", path=CONTACTS))
    async with simulation.engine(tmp_path, local, **settings) as engine:
        await engine.submit([simulation.event(USER, 2)], api_key=simulation.API_KEY)
        await anyio.sleep(5)
        local.faults.clear()
        await engine.settled()
    await deliver(tmp_path, local, identify(3, {"$add": {"visits": 1}}), **settings)
    assert held(local) == {"visits": 6, "plan": "free"}
    assert len(local.events) == 1


@pytest.mark.parametrize("is_replayed", [False, True])
@in_virtual_time
async def test_a_contact_that_others_made_as_an_event_created_it_is_read_before_it_is_written(
    tmp_path: Path, is_replayed: bool
) -> None:
    """Though a letter is replayed meanwhile whose update is done."""

    local = simulation.sandbox()
    settings: dict[str, Any] = {
        "users": {"properties": ["plan", "visits"], "trigger": "any_update"},
        "events": {"select": [{"types": ["*"]}], "unknown_user": "create"},
    }
    first = identify(1, {"$add": {"visits": 5}, "$set": {"plan": "free"}})
    add = {"$add": {"visits": 1}}
    refused = simulation.event(USER, 9, event_type="Refused", user_properties=add)
    local.faults.append(Fault("status", status=400, path="/events", contains="Refused"))
    await deliver(tmp_path, local, first, refused, **settings)
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")

    def answer(request: Request) -> Answer | None:
        """Say that the user is not there, as others make it."""
        if request.path != "/events" or len(local.contacts) > 1:
            return None
        local.add_contact(external_id=USER, custom_attributes={"visits": 100})
        errors = b'{"type":"error.list","errors":[{"code":"not_found","message":"no"}]}'
        return Answer(404, {}, errors)

    wire = Between(local, answer)
    await deliver(tmp_path, local, simulation.event(USER, 2), wire=wire, **settings)
    if is_replayed:
        async with simulation.engine(tmp_path, local, **settings) as engine:
            await engine.upkeep.replay("simulated", DeadLetterQuery(every=True))
            await engine.settled()
    await deliver(tmp_path, local, identify(3, add), **settings)
    assert held(local) == {"visits": 101, "plan": "free"}
    assert len(local.events) == 1


@in_virtual_time
async def test_a_workspace_that_intercom_does_not_name_is_a_token_s_own(tmp_path: Path) -> None:
    def answer(request: Request) -> Answer | None:
        nameless = b'{"type":"admin","id":"1","app":{"type":"app"}}'
        return Answer(200, {}, nameless) if request.path == "/me" else None

    local = simulation.sandbox()
    wire = Between(local, answer)
    for n, plan in enumerate(["free", "pro", "pro"]):
        await deliver(tmp_path, local, set_(n, plan=plan), wire=wire)
    async with simulation.engine(tmp_path, local, wire=wire) as engine:
        key = await engine.spool.do(lambda store: contact_key(store, engine.settings.sync[0], USER))
        known = await engine.spool.do(lambda store: store.contacts.get(key))
    assert key.workspace > 0
    assert known is not None
    assert known.contact_id in local.contacts
    assert held(local) == {"plan": "pro"}
    assert len(written(local)) == 2


@in_virtual_time
async def test_a_letter_is_replayed_twice_and_its_update_is_done_once(tmp_path: Path) -> None:
    """Intercom refuses the event, whose update is done, at each replay."""

    local = simulation.sandbox(faults=[Fault("status", status=400, path="/events")])
    settings: dict[str, Any] = {
        "users": {"properties": ["visits"], "trigger": "any_update"},
        "events": {"select": [{"types": ["*"]}]},
    }
    add = {"$add": {"visits": 1}}
    async with simulation.engine(tmp_path, local, **settings) as engine:
        event = simulation.event(USER, 1, user_properties=add)
        await engine.submit([event], api_key=simulation.API_KEY)
        await engine.settled()
        for _ in range(3):
            await engine.upkeep.replay("simulated", DeadLetterQuery(every=True))
            await engine.settled()
        [status] = (await engine.status()).syncs
    assert status.dead == 1
    assert held(local) == {"visits": 1}


@in_virtual_time
async def test_a_time_that_is_ahead_does_not_keep_later_updates_out(tmp_path: Path) -> None:
    """An event's time is the phone's: what is ahead of its acceptance counts as then."""

    local = simulation.sandbox()
    users = {"properties": ["plan"], "trigger": "any_update"}
    now_ms = virtual.current().wall_ms()
    ahead = {**set_(1, plan="free"), "time": now_ms + 3_600_000}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.submit([ahead], api_key=simulation.API_KEY)
        await engine.settled()
        await anyio.sleep(60)
        later = {**set_(2, plan="pro"), "time": virtual.current().wall_ms()}
        await engine.submit([later], api_key=simulation.API_KEY)
        await engine.settled()
    assert held(local) == {"plan": "pro"}


@in_virtual_time
async def test_two_syncs_that_write_one_property_never_bring_back_a_replaced_value(
    tmp_path: Path,
) -> None:
    """Each counts on from what the other has written."""

    local = simulation.sandbox()
    users = {"properties": ["plan", "visits", "tags"]}
    second = {"users": users, "amplitude_api_keys": ["second-api-key"]}
    async with simulation.engine(tmp_path, local, users=users, second=second) as engine:
        updates: list[tuple[str, dict[str, Any]]] = [
            ("simulated", {"$set": {"plan": "free"}, "$add": {"visits": 1}}),
            ("another", {"$set": {"plan": "trial"}, "$add": {"visits": 5}}),
            ("simulated", {"$set": {"plan": "pro"}, "$add": {"visits": 1}}),
            ("another", {"$set": {"tags": ["new"]}}),
            ("simulated", {"$unset": {"plan": "-"}, "$append": {"tags": "old"}}),
            ("another", {"$add": {"visits": 1}, "$preInsert": {"tags": "new"}}),
        ]
        for n, (sync, operations) in enumerate(updates):
            await engine.submit([identify(n, operations)], sync=sync)
            await engine.settled()
    assert held(local) == {"plan": None, "visits": 8, "tags": "new, old"}


@pytest.mark.parametrize("newer_wins", [True, False])
@in_virtual_time
async def test_a_replayed_letter_does_not_replace_later_values(
    tmp_path: Path, newer_wins: bool
) -> None:
    expected = {"plan": "team" if newer_wins else "pro", "visits": 3}
    local = simulation.sandbox()
    users = {"properties": ["plan", "visits"], "newer_wins": newer_wins}
    local.faults.append(Fault("status", status=422, path=CONTACTS, contains="pro"))
    async with simulation.engine(tmp_path, local, users=users) as engine:
        for n, plan in enumerate(["free", "pro", "team"]):
            both = {"$set": {"plan": plan}, "$add": {"visits": 1}}
            await engine.submit([identify(n, both)], api_key=simulation.API_KEY)
            await engine.settled()
            await anyio.sleep(5)
        local.faults.clear()
        await engine.upkeep.replay("simulated", DeadLetterQuery(every=True))
        await engine.settled()
    assert held(local) == expected


@in_virtual_time
async def test_a_list_that_has_become_empty_clears_its_field(tmp_path: Path) -> None:
    local = simulation.sandbox()
    both = {"$set": {"tags": ["only"], "others": ["a"]}}
    empty = {"$remove": {"tags": "only"}, "$set": {"others": []}}
    users = {"properties": ["tags", "others"]}
    await deliver(tmp_path, local, identify(1, both), identify(2, empty), users=users)
    assert held(local) == {"tags": None, "others": None}


@in_virtual_time
async def test_a_list_that_is_one_text_on_the_contact_is_a_list_again_where_it_is_read(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    theirs = {"tags": "a, b", "seen": "a, b", "name2": "Lee, Ann"}
    local.add_contact(external_id=USER, custom_attributes=theirs)
    operations = {
        "$preInsert": {"tags": ["a", "c"]},
        "$remove": {"seen": "b"},
        "$setOnce": {"name2": "x"},
    }
    users = {"properties": list(theirs)}
    await deliver(tmp_path, local, identify(1, operations), users=users)
    assert held(local) == {"tags": "c, a, b", "seen": "a", "name2": "Lee, Ann"}


@in_virtual_time
async def test_a_value_known_by_another_identifier_is_read_before_it_is_counted_on(
    tmp_path: Path,
) -> None:
    def update(n: int, operations: dict[str, Any]) -> dict[str, Any]:
        operations = {**operations, "$set": {**operations.get("$set", {}), "email": "m@x.io"}}
        return identify(n, operations)

    local = simulation.sandbox()
    users = {"properties": ["email", "visits"]}
    by_email = {"identifier": "email", "from": "user.email"}
    add = {"$add": {"visits": 1}}
    await deliver(tmp_path, local, update(1, add), users=users)
    await deliver(tmp_path, local, update(2, add), users=users, mapping=by_email)
    await deliver(tmp_path, local, update(3, add), users=users)
    assert held(local)["visits"] == 3


@pytest.mark.parametrize("lag_s", [0.0, 120.0])
@in_virtual_time
async def test_by_email_a_contact_that_got_another_email_is_left_alone_while_the_index_is_behind(
    tmp_path: Path, lag_s: float
) -> None:
    def update(n: int, plan: str) -> dict[str, Any]:
        return set_(n, email="mira@example.com", plan=plan)

    local = simulation.sandbox(search_lag_s=lag_s)
    mapping = {"identifier": "email", "from": "user.email"}
    async with simulation.engine(tmp_path, local, mapping=mapping) as engine:
        await engine.submit([update(1, "free")], api_key=simulation.API_KEY)
        await engine.settled()
        await anyio.sleep(600)
        local.change_contact(next(iter(local.contacts)), email="new@example.com")
        await anyio.sleep(20)
        some = [update(n, f"plan-{n}") for n in range(2, 8)]
        await engine.submit(some, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    plans = {contact.email: contact.custom_attributes for contact in local.contacts.values()}
    assert status.dead == 0
    assert plans["mira@example.com"] == {"plan": "plan-7"}
    theirs = min(key for key, c in local.contacts.items() if c.email == "new@example.com")
    writes = [entry for entry in local.journal if entry.method in ("PUT", "POST")]
    assert [entry.contact_id for entry in writes].count(theirs) <= 2  # made, and written once more


@pytest.mark.parametrize("op", ["$add", "$append"])
@in_virtual_time
async def test_an_operation_for_a_contact_that_is_created_again_counts_once(
    tmp_path: Path, op: str
) -> None:
    """The answer to its creation is lost, so that the contact is there when it is tried again."""

    expected = 6 if op == "$add" else "5, 1"
    local = simulation.sandbox()
    await deliver(tmp_path, local, identify(1, {op: {"visits": 5}}))
    [contact_id] = local.contacts
    local.change_contact(contact_id, external_id="another")
    local.faults.append(Fault("hang", path=CONTACTS, contains="mira", end_s=400))
    await deliver(tmp_path, local, identify(2, {op: {"visits": 1}}))
    assert held(local) == {"visits": expected}


@in_virtual_time
async def test_by_email_the_index_names_the_contact_and_not_its_values(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(search_lag_s=120)
    attributes = {"visits": 1, "plan": "free"}
    contact_id = local.add_contact(email="mira@example.com", custom_attributes=attributes)
    await anyio.sleep(300)
    local.change_contact(contact_id, custom_attributes={"visits": 41, "plan": "pro"})
    mapping = {"identifier": "email", "from": "user.email"}
    update = identify(
        1, {"$set": {"plan": "free", "email": "mira@example.com"}, "$add": {"visits": 1}}
    )
    await deliver(tmp_path, local, update, mapping=mapping)
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"visits": 42, "plan": "free"}


# --- answers of somebody between ----------------------------------------------------------


class Between:
    """A wire where somebody else answers some calls."""

    def __init__(self, local: Sandbox, answer: Callable[[Request], Answer | None]) -> None:
        self._wire = InProcess(local)
        self._answer = answer

    async def send(self, request: Request) -> Answer:
        await anyio.sleep(0.05)
        return self._answer(request) or await self._wire.send(request)


@pytest.mark.parametrize("body", [b"", HTML.body, b"{}", b"[]", b'{"type": "contact"}'])
@in_virtual_time
async def test_a_contact_that_is_read_as_anything_else_has_no_answer(
    tmp_path: Path, body: bytes
) -> None:
    """It was taken for a contact without an owner, and taken over."""

    local = simulation.sandbox(strict_email=True)
    theirs = local.add_contact(external_id="another", email="shared@example.com")
    is_between = True

    def answer(request: Request) -> Answer | None:
        is_read = request.method == "GET" and request.path.startswith(CONTACTS)
        return Answer(200, {}, body) if is_between and is_read else None

    async with simulation.engine(tmp_path, local, wire=Between(local, answer)) as engine:
        update = set_(1, email="shared@example.com", plan="pro")
        await engine.submit([update], api_key=simulation.API_KEY)
        await anyio.sleep(120)
        assert not local.contacts[theirs].custom_attributes
        assert (await pending(engine)) == 1
        is_between = False
        await engine.settled()
    assert not local.contacts[theirs].custom_attributes
    assert held(local) == {"plan": "pro"}


async def pending(engine: Engine) -> int:
    return sum(sync.pending for sync in (await engine.status()).syncs)


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("unknown_user", ["park", "drop", "dead_letter", "create"])
@in_virtual_time
async def test_a_page_of_any_status_at_every_path_is_an_outage(
    tmp_path: Path, status: int, unknown_user: str
) -> None:
    local = simulation.sandbox()
    is_between = False

    def answer(request: Request) -> Answer | None:
        return Answer(status, HTML.headers, HTML.body) if is_between else None

    for n in range(30):
        local.add_contact(external_id=f"user-{n}")
    events = {"select": [{"types": ["*"]}], "unknown_user": unknown_user}
    wire = Between(local, answer)
    async with simulation.engine(tmp_path, local, wire=wire, events=events) as engine:
        await anyio.sleep(2)
        is_between = True
        batch = [simulation.event(f"user-{n}", 1) for n in range(30)]
        batch += [set_(2, f"user-{n}", plan="pro") for n in range(30)]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(600)
        assert await pending(engine) == 60
        is_between = False
        await engine.settled()
        [sync] = (await engine.status()).syncs
    assert (sync.delivered, sync.dead) == (60, 0)


# --- whose names and contacts they are ----------------------------------------------------


@in_virtual_time
async def test_a_token_of_another_workspace_has_a_directory_of_its_own(tmp_path: Path) -> None:
    one, other = simulation.sandbox(), simulation.sandbox(workspace_id="another")
    await deliver(tmp_path, one, set_(1, plan="pro"))
    token = {"access_token": "another-token"}
    await deliver(tmp_path, other, set_(2, plan="pro"), intercom=token)
    await deliver(tmp_path, one, set_(3, plan="pro"))  # and back: it is known still
    assert (held(one), held(other)) == ({"plan": "pro"}, {"plan": "pro"})
    assert len(written(one)) == 1


@in_virtual_time
async def test_another_token_of_the_same_workspace_knows_its_contacts(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    token = {"access_token": "another-token"}
    status = await deliver(tmp_path, local, set_(2, plan="pro"), intercom=token)
    assert status.dropped == {"unchanged": 1}
    assert len(written(local)) == 1


@pytest.mark.parametrize("token", ["simulated-token", "another-token"])
@in_virtual_time
async def test_two_syncs_of_one_workspace_write_a_contact_one_after_the_other(
    tmp_path: Path, token: str
) -> None:
    """With one token or two; each has a property of its own, and an operation to count."""

    local = simulation.sandbox(latency_s=(0.05, 0.4))
    second = {"intercom": {"access_token": token}, "users": {"properties": ["seats"]}}
    users = {"properties": ["visits"]}
    async with simulation.engine(tmp_path, local, users=users, second=second) as engine:
        for n in range(30):
            add = identify(n, {"$add": {"visits": 1, "seats": 2}})
            await engine.submit([add], api_key=simulation.API_KEY)
            await anyio.sleep(0.3)
        await engine.settled()
        assert [sync.dead for sync in (await engine.status()).syncs] == [0, 0]
    assert held(local) == {"visits": 30, "seats": 60}
    assert len(local.contacts) == 1


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_an_event_that_creates_a_user_spoils_no_update_of_another_sync(
    tmp_path: Path, seed: int
) -> None:
    """Both find that the user is new; what the update knows of the contact is kept."""

    local = simulation.sandbox(latency_s=(0.05, 0.9), seed=seed)
    events = {"select": [{"types": ["*"]}], "unknown_user": "create"}
    second = {"users": {"enabled": False}, "events": events}
    settings: dict[str, Any] = {"events": {"enabled": False}, "second": second}
    async with simulation.engine(tmp_path, local, seed, **settings) as engine:
        for n in range(3):
            add = identify(2 * n, {"$set": {"plan": "pro"}, "$add": {"visits": 1}})
            both = [add, simulation.event(USER, 2 * n + 1)]
            await engine.submit(both, api_key=simulation.API_KEY)
            await anyio.sleep(0.2)
        engine.cancel()
    async with simulation.engine(tmp_path, local, seed, **settings) as engine:
        await engine.settled()
    assert held(local) == {"plan": "pro", "visits": 3}
    assert len(local.events) == 3


@in_virtual_time
async def test_another_region_has_event_names_and_contacts_of_its_own(tmp_path: Path) -> None:
    for n, region in enumerate(["us", "eu"]):
        local = simulation.sandbox(max_event_names=1)
        events = [
            set_(10 * n, plan="pro"),
            simulation.event(USER, 10 * n + 1, event_type=f"Only in {region}"),
        ]
        intercom = {"access_token": "simulated-token", "region": region}
        status = await deliver(tmp_path, local, *events, intercom=intercom)
        assert (status.dead, dict(status.dropped)) == (0, {})
        assert held(local) == {"plan": "pro"}
        assert [found.name for found in local.events] == [f"Only in {region}"]


# --- one refused value --------------------------------------------------------------------


@in_virtual_time
async def test_a_value_that_is_refused_costs_itself_and_only_its_users(tmp_path: Path) -> None:
    """It was left out for everybody for ten minutes; thirty users have such a value at once."""

    local = simulation.sandbox()

    def answer(request: Request) -> Answer | None:
        if b'"visits":"many"' not in (request.body or b""):
            return None
        message = "Custom attribute 'visits' is not of type integer"
        errors = [{"code": "parameter_invalid", "message": message}]
        return Answer(400, {}, simulation.encode({"type": "error.list", "errors": errors}))

    async with simulation.engine(tmp_path, local, wire=Between(local, answer)) as engine:
        batch = [set_(1, f"bad-{n}", plan="pro", visits="many") for n in range(30)]
        batch += [set_(1, f"good-{n}", plan="pro", visits=n) for n in range(30)]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert (status.delivered, status.dead) == (60, 0)
    for n in range(30):
        assert held(local, f"bad-{n}") == {"plan": "pro"}
        assert held(local, f"good-{n}") == {"plan": "pro", "visits": n}
    assert status.adjusted == {"type_mismatch": 30}


@in_virtual_time
async def test_a_value_that_is_refused_is_not_tried_again_before_it_is_another(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()

    def answer(request: Request) -> Answer | None:
        if b'"visits":"many"' not in (request.body or b""):
            return None
        errors = [{"code": "parameter_invalid", "message": "'visits' is invalid"}]
        return Answer(422, {}, simulation.encode({"type": "error.list", "errors": errors}))

    events = [set_(1, plan="pro"), *(set_(n, visits="many") for n in range(2, 6))]
    async with simulation.engine(tmp_path, local, wire=Between(local, answer)) as engine:
        for event in [*events, set_(6, visits=7)]:
            await engine.submit([event], api_key=simulation.API_KEY)
            await engine.settled()
        [status] = (await engine.status()).syncs
    assert held(local) == {"plan": "pro", "visits": 7}
    assert (status.delivered, status.dropped) == (3, {"unchanged": 3})


@in_virtual_time
async def test_fourteen_refused_values_cost_themselves_each(tmp_path: Path) -> None:
    names = [f"p{n:02}" for n in range(20)]
    there = dict.fromkeys(names[14:], "integer")
    local = simulation.sandbox(
        open_attributes=False,
        attributes=there,
        faults=[Fault("status", 403, path="/data_attributes")],
    )
    update = identify(1, {"$set": {name: n for n, name in enumerate(names)}})
    status = await deliver(tmp_path, local, update, users={"properties": names})
    assert (status.delivered, status.dead) == (1, 0)
    assert held(local) == {f"p{n:02}": n for n in range(14, 20)}


@in_virtual_time
async def test_an_attribute_that_somebody_else_has_just_created_is_there(tmp_path: Path) -> None:
    local = simulation.sandbox(open_attributes=False)
    is_first = True

    def answer(request: Request) -> Answer | None:
        nonlocal is_first
        if request.method == "POST" and request.path == "/data_attributes" and is_first:
            is_first = False
            local.handle(request)  # by another
        return None

    users = {"properties": ["plan"], "create_missing_attributes": True}
    wire = Between(local, answer)
    async with simulation.engine(tmp_path, local, wire=wire, users=users) as engine:
        await engine.submit([set_(1, plan="pro")], api_key=simulation.API_KEY)
        await engine.settled()
    assert held(local) == {"plan": "pro"}


@pytest.mark.parametrize("can_create", [True, False])
@in_virtual_time
async def test_a_missing_attribute_is_created_though_the_list_cannot_be_read(
    tmp_path: Path, can_create: bool
) -> None:
    """A refusal that names it says that it is missing."""

    local = Sandbox(attributes={}, limit_per_minute=100_000)
    local.faults.append(Fault("status", status=500, path="/data_attributes?"))
    if not can_create:
        local.faults.append(Fault("status", status=403, path="/data_attributes"))
    users = {"properties": ["plan"], "create_missing_attributes": True}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        for n in range(5):
            some = [set_(n, f"user-{m}", plan=f"plan-{n}") for m in range(20)]
            await engine.submit(some, api_key=simulation.API_KEY)
            await engine.settled()
    creations = [e for e in local.journal if e.method == "POST" and "data_attributes" in e.path]
    assert len(creations) == 1
    plans = [contact.custom_attributes for contact in local.contacts.values()]
    assert plans == ([{"plan": "plan-4"}] if can_create else [{}]) * 20


@in_virtual_time
async def test_an_option_that_a_list_attribute_does_not_have_costs_itself(tmp_path: Path) -> None:
    local = simulation.sandbox(open_attributes=False, attributes={"visits": "integer"})
    options = [{"value": "free"}, {"value": "pro"}]
    plan = {"name": "plan", "model": "contact", "data_type": "options", "options": options}
    made = local.handle(Request("POST", "/data_attributes", simulation.encode(plan)))
    assert made.status == 200, made.body
    async with simulation.engine(tmp_path, local) as engine:
        batch = [set_(1, f"bad-{n}", plan="team", visits=n) for n in range(30)]
        batch += [set_(1, f"good-{n}", plan="pro", visits=n) for n in range(30)]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert (status.delivered, status.dead) == (60, 0)
    assert [held(local, f"bad-{n}") for n in range(30)] == [{"visits": n} for n in range(30)]
    assert held(local, "good-7") == {"plan": "pro", "visits": 7}
    assert "POST 400" not in calls(local)


@in_virtual_time
async def test_a_contact_that_is_created_with_201_is_created(tmp_path: Path) -> None:
    local = simulation.sandbox()

    def answer(request: Request) -> Answer | None:
        if (request.method, request.path) != ("POST", CONTACTS):
            return None
        done = local.handle(request)
        return Answer(201, done.headers, done.body)

    async with simulation.engine(tmp_path, local, wire=Between(local, answer)) as engine:
        await engine.submit([set_(1, plan="pro")], api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert held(local) == {"plan": "pro"}
    assert status.delivered == 1


# --- calls, counted by hand ---------------------------------------------------------------


@in_virtual_time
async def test_events_of_a_contact_that_is_deleted_cost_one_attempt_a_back_off(
    tmp_path: Path,
) -> None:
    """It cannot be created again: its id is taken by one that nobody can bring back."""

    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    [contact_id] = local.contacts
    local.delete(contact_id)
    local.journal.clear()
    events = {"select": [{"types": ["*"]}], "unknown_user": "create"}
    many = [simulation.event(USER, n) for n in range(2, 22)]
    status = await deliver(tmp_path, local, *many, events=events)
    assert status.dead_by_reason == {"contact_gone": 20}
    # The event, a look at the contact, the create, and the way back, that are refused.
    assert calls(local) == ["POST 404", "GET 404", "POST 409", "POST 400"]


@pytest.mark.parametrize("unknown_user", ["drop", "dead_letter"])
@in_virtual_time
async def test_a_hundred_events_of_an_unknown_user_cost_one_call(
    tmp_path: Path, unknown_user: str
) -> None:
    local = simulation.sandbox()
    events = {"select": [{"types": ["*"]}], "unknown_user": unknown_user}
    many = [simulation.event(USER, n) for n in range(100)]
    status = await deliver(tmp_path, local, *many, events=events)
    assert status.dead + sum(status.dropped.values()) == 100
    assert calls(local) == ["POST 404"]


@pytest.mark.parametrize("unknown_user", ["drop", "dead_letter"])
def test_a_user_that_was_unknown_is_known_after_an_identify_and_after_a_while(
    tmp_path: Path, unknown_user: str
) -> None:
    @in_virtual_time
    async def scenario() -> Sandbox:
        local = simulation.sandbox()
        events = {"select": [{"types": ["*"]}], "metadata": ["n"], "unknown_user": unknown_user}
        async with simulation.engine(tmp_path, local, events=events) as engine:

            async def deliver_one(event: dict[str, Any]) -> None:
                await engine.submit([event], api_key=simulation.API_KEY)
                await engine.settled()

            for user in ("identified", "signed-up"):
                await deliver_one(simulation.event(user, 1))
            await deliver_one(set_(2, "identified", plan="pro"))
            await deliver_one(simulation.event("identified", 3))
            local.add_contact(external_id="signed-up")
            await deliver_one(simulation.event("signed-up", 4))
            await anyio.sleep(3_600)
            await deliver_one(simulation.event("signed-up", 5))
        return local

    assert [event.metadata["n"] for event in scenario().events] == [3, 5]


@in_virtual_time
async def test_many_updates_of_a_contact_that_is_deleted_are_refused_as_one(tmp_path: Path) -> None:
    local = simulation.sandbox()
    await deliver(tmp_path, local, set_(1, plan="pro"))
    [contact_id] = local.contacts
    local.delete(contact_id)
    local.journal.clear()
    async with simulation.engine(tmp_path, local) as engine:
        many = [identify(n, {"$add": {"visits": 1}}) for n in range(2, 22)]
        await engine.submit(many, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert status.dead_by_reason == {"contact_gone": 20}
    assert len(calls(local)) <= 4


@in_virtual_time
async def test_a_thousand_waiting_identifies_are_one_call(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([set_(1, plan="pro", visits=0)], api_key=simulation.API_KEY)
        await engine.settled()
        local.journal.clear()
        many = [identify(n, {"$add": {"visits": 1}}) for n in range(2, 1_002)]
        await engine.submit(many[:500], api_key=simulation.API_KEY)
        await engine.submit(many[500:], api_key=simulation.API_KEY)
        await engine.settled()
    assert len(calls(local)) <= 3
    assert held(local) == {"plan": "pro", "visits": 1_000}


@in_virtual_time
async def test_a_contact_without_an_id_that_has_the_email_is_taken_over_at_once(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(strict_email=True)
    local.add_contact(email="mira@example.com")
    await deliver(
        tmp_path, local, set_(1, email="mira@example.com", plan="pro"), set_(2, plan="team")
    )
    assert (len(local.contacts), held(local)) == (1, {"plan": "team"})
    assert calls(local) == ["POST 409", "GET 200", "PUT 200", "PUT 200"]


def test_a_workspace_of_known_contacts_costs_a_call_where_nothing_differs(
    tmp_path: Path,
) -> None:
    @in_virtual_time
    async def scenario() -> Sandbox:
        local = simulation.sandbox()
        for n in range(200):
            plan = "pro" if n % 2 else "free"
            email = f"{n}@example.com"
            local.add_contact(
                external_id=f"user-{n}", email=email, custom_attributes={"plan": plan}
            )
        events = [set_(1, f"user-{n}", plan="pro", email=f"{n}@example.com") for n in range(200)]
        await deliver(tmp_path, local, *events)
        return local

    local = scenario()
    first, later = calls(local)[:60], calls(local)[60:]
    assert len(first) + len(later) <= 200 + 100 + 20
    assert later.count("POST 409") == 0
    assert all(held(local, f"user-{n}") == {"plan": "pro"} for n in range(200))
