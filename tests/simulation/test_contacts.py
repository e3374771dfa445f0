"""Each answer that a contact write can get, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation
from support.virtual import in_virtual_time

USER = "mira-okafor"


@in_virtual_time
async def deliver(
    tmp_path: Path, prepare: Callable[[Sandbox], None], *events: dict[str, Any], **sync: Any
) -> tuple[Sandbox, Any]:
    """Deliver events to a prepared sandbox, one after the other; return it and the accounting."""

    local = simulation.sandbox(open_attributes=sync.pop("open_attributes", True))
    prepare(local)
    async with simulation.engine(tmp_path, local, **sync) as engine:
        for event in events:
            await engine.submit([event], api_key=simulation.API_KEY)
            await engine.settled()
        [status] = (await engine.status()).syncs
    return local, status


def identify(n: int = 1, **properties: Any) -> dict[str, Any]:
    return simulation.identify(USER, n, {"$set": properties})


def calls(local: Sandbox) -> list[str]:
    made = simulation.made(local)
    return [f"{e.method} {e.path.split('/')[-1][:9]} {e.status}" for e in made]


def test_a_new_user_is_created_with_one_call(tmp_path: Path) -> None:
    local, _ = deliver(tmp_path, lambda local: None, identify(plan="pro"))
    assert calls(local) == ["POST contacts 200"]


def test_a_live_contact_is_updated_by_the_id_that_the_409_names(tmp_path: Path) -> None:
    def prepare(local: Sandbox) -> None:
        local.add_contact(external_id=USER)

    local, _ = deliver(tmp_path, prepare, identify(plan="pro"), identify(2, plan="free"))
    assert [c[:4] for c in calls(local)] == ["POST", "PUT ", "PUT "]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "free"}


@pytest.mark.parametrize("is_there", [False, True])
def test_an_owner_that_is_nobody_is_left_out_and_the_rest_is_written(
    tmp_path: Path, is_there: bool
) -> None:
    def prepare(local: Sandbox) -> None:
        if is_there:
            local.add_contact(external_id=USER)

    local, status = deliver(
        tmp_path,
        prepare,
        identify(1, plan="pro", owner_id=4711),
        identify(2, plan="pro", owner_id=4711),
        identify(3, plan="team", owner_id=4711),
        identify(4, plan="team", owner_id=1),
        users={"properties": ["plan", "owner_id"]},
    )
    [contact] = local.contacts.values()
    assert (contact.custom_attributes, contact.owner_id) == ({"plan": "team"}, "1")
    assert (status.delivered, status.dead) == (3, 0)
    assert (status.dropped, status.adjusted) == ({"unchanged": 1}, {"type_mismatch": 1})
    answers = [call.rpartition(" ")[2] for call in calls(local)]
    assert answers == ["400", *(["409"] if is_there else []), "200", "200", "200"]


def test_null_leaves_a_contact_s_property_as_it_is_and_unset_clears_it(tmp_path: Path) -> None:
    local, status = deliver(
        tmp_path,
        lambda local: None,
        identify(1, plan="pro", visits=3),
        identify(2, plan=None, visits=4),
        identify(3, plan=None),
        simulation.identify(USER, 4, {"$unset": {"visits": "-"}}),
    )
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro", "visits": None}
    assert (status.delivered, status.dropped) == (3, {"unchanged": 1})


def _archived(local: Sandbox) -> None:
    contact = local.add_contact(external_id=USER)
    local.handle(simulation.archive(contact))
    local.journal.clear()


def test_an_archived_contact_is_unarchived_and_updated(tmp_path: Path) -> None:
    local, status = deliver(tmp_path, _archived, identify(plan="pro"))
    assert calls(local) == ["POST contacts 409", "POST unarchive 200", calls(local)[2]]
    [contact] = local.contacts.values()
    assert (contact.state, contact.custom_attributes) == ("live", {"plan": "pro"})
    assert status.delivered == 1


def test_an_archived_contact_is_left_alone_where_the_settings_say_so(tmp_path: Path) -> None:
    users = {"properties": ["plan"], "archived": "dead_letter"}
    local, status = deliver(tmp_path, _archived, identify(plan="pro"), users=users)
    assert calls(local) == ["POST contacts 409"]
    assert status.dead_by_reason == {"contact_archived": 1}


def test_a_deleted_contact_cannot_be_brought_back_and_is_not_tried_for_ever(
    tmp_path: Path,
) -> None:
    def prepare(local: Sandbox) -> None:
        local.handle(simulation.delete(local.add_contact(external_id=USER)))
        local.journal.clear()

    local, status = deliver(tmp_path, prepare, identify(plan="pro"))
    assert calls(local) == ["POST contacts 409", "POST unarchive 400"]
    assert status.dead_by_reason == {"contact_gone": 1}


@in_virtual_time
async def test_a_remembered_contact_that_is_gone_is_resolved_again_once(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([identify(plan="free")], api_key=simulation.API_KEY)
        await engine.settled()
        [contact_id] = local.contacts
        local.handle(simulation.archive(contact_id))
        local.journal.clear()
        await engine.submit([identify(2, plan="pro")], api_key=simulation.API_KEY)
        await engine.settled()
    assert [c.rpartition(" ")[2] for c in calls(local)] == ["404", "409", "200", "200"]
    [contact] = local.contacts.values()
    assert (contact.state, contact.custom_attributes["plan"]) == ("live", "pro")


@in_virtual_time
async def test_a_merged_contact_is_followed_to_where_it_went(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([identify(plan="free")], api_key=simulation.API_KEY)
        await engine.settled()
        [old] = local.contacts
        local.merge(old, local.add_contact(external_id="the-other"))
        local.journal.clear()
        for n, plan in enumerate(["pro", "team"], 2):
            await engine.submit([identify(n, plan=plan)], api_key=simulation.API_KEY)
            await engine.settled()
    assert [c.rpartition(" ")[2] for c in calls(local)] == ["410", "200", "200", "200"]
    [target] = [c for c in local.contacts.values() if c.external_id == "the-other"]
    assert target.custom_attributes == {"plan": "team"}


@in_virtual_time
async def test_somebody_elses_contact_with_the_same_email_is_not_overwritten(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(strict_email=True)
    local.add_contact(external_id="somebody-else", email="shared@example.com")
    async with simulation.engine(tmp_path, local) as engine:
        both = identify(email="shared@example.com", plan="pro")
        await engine.submit([both], api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert (status.dead, status.adjusted["taken"]) == (0, 1)
    theirs, ours = local.contacts.values()
    assert (theirs.custom_attributes, theirs.email) == ({}, "shared@example.com")
    assert (ours.custom_attributes, ours.email) == ({"plan": "pro"}, "")


def test_contacts_are_found_by_email_in_any_case(tmp_path: Path) -> None:
    def prepare(local: Sandbox) -> None:
        local.add_contact(email="mira@example.com")

    event = identify(email="Mira@Example.com ", plan="pro")
    purchase = simulation.event(USER, 2, user_properties={"email": "mira@example.com"})
    mapping = {"identifier": "email", "from": "user.email"}
    local, status = deliver(tmp_path, prepare, event, purchase, mapping=mapping)
    assert (status.delivered, len(local.contacts), len(local.events)) == (2, 1, 1)


def test_several_users_with_one_email_are_a_dead_letter_and_not_a_guess(tmp_path: Path) -> None:
    def prepare(local: Sandbox) -> None:
        for name in ("one", "two"):
            local.add_contact(external_id=name, email="shared@example.com")

    purchase = simulation.event(USER, 2, user_properties={"email": "shared@example.com"})
    mapping = {"identifier": "email", "from": "user.email"}
    _, status = deliver(tmp_path, prepare, purchase, mapping=mapping)
    assert status.dead_by_reason == {"contact_ambiguous": 1}


@pytest.mark.parametrize(
    ("choice", "delivered", "dropped", "dead"),
    [
        ("create", 1, {}, {}),
        ("drop", 0, {"unknown_user": 1}, {}),
        ("dead_letter", 0, {}, {"user_not_found": 1}),
    ],
)
def test_an_event_of_an_unknown_user_goes_where_the_settings_say(
    tmp_path: Path, choice: str, delivered: int, dropped: dict[str, int], dead: dict[str, int]
) -> None:
    events = {"select": [{"types": ["*"]}], "unknown_user": choice}
    local, status = deliver(tmp_path, lambda local: None, simulation.event(USER, 1), events=events)
    assert (status.delivered, status.dropped, status.dead_by_reason) == (delivered, dropped, dead)
    assert len(local.events) == delivered


def test_with_any_update_an_event_brings_its_users_properties_along(tmp_path: Path) -> None:
    users = {"properties": ["plan"], "trigger": "any_update"}
    events = {"select": [{"types": ["Purchase"]}]}
    with_plan = {"user_properties": {"plan": "pro"}}
    local, status = deliver(
        tmp_path,
        lambda local: None,
        simulation.event(USER, 1, **with_plan),
        simulation.event(USER, 2, **with_plan),
        simulation.event(USER, 3, event_type="Page Viewed", user_properties={"plan": "team"}),
        simulation.event(USER, 4, event_type="Page Viewed", user_properties={"other": 1}),
        users=users,
        events=events,
    )
    assert [c[:4] + c[-3:] for c in calls(local)] == ["POST200", "POST202", "POST202", "PUT 200"]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "team"}
    assert (status.delivered, status.dropped) == (3, {"not_selected": 1})


@in_virtual_time
async def test_the_121st_event_name_is_a_dead_letter_with_its_reason(tmp_path: Path) -> None:
    local = simulation.sandbox(max_event_names=1)
    local.add_contact(external_id=USER)
    async with simulation.engine(tmp_path, local) as engine:
        batch = [simulation.event(USER, n, event_type=name) for n, name in enumerate("abb")]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
        assert [e.status for e in simulation.made(local)] == [
            202,
            422,
        ]  # the second "b" costs no call
        local.event_names.discard("a")  # somebody archives a name
        for _ in range(36_010):
            await simulation.a_moment()
        assert await engine.upkeep.replay("simulated", DeadLetterQuery(every=True)) == {
            "replayed": 2
        }
        await engine.settled()
        assert [e.metadata["n"] for e in local.events] == [0, 1, 2]
    assert status.dead_by_reason == {"event_type_limit": 2}


@in_virtual_time
async def test_operations_are_applied_once_though_the_process_ends_before_it_can_say_so(
    tmp_path: Path,
) -> None:
    """The contact is written and remembered, the record is not settled: then comes the restart."""

    local = simulation.sandbox(latency_s=0.5, faults=[Fault("hang", path="/events")])
    users = {"properties": ["visits"], "trigger": "any_update"}
    add = {"user_properties": {"$add": {"visits": 1}}}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.submit([simulation.event(USER, 1, **add)], api_key=simulation.API_KEY)
        while len(local.journal) < 2:
            await simulation.a_moment()
        engine.cancel()
    local.faults.clear()
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await engine.settled()
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"visits": 1}
    assert len(local.events) == 1


@in_virtual_time
async def together(tmp_path: Path, *events: dict[str, Any], **sync: Any) -> tuple[Sandbox, Any]:
    """Deliver events that arrive in one batch, to a sandbox that knows nobody."""

    local = simulation.sandbox(latency_s=0.2, **sync.pop("sandbox", {}))
    async with simulation.engine(tmp_path, local, **sync) as engine:
        await engine.submit(list(events), api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    return local, status


def test_waiting_identifies_of_one_user_become_one_call_with_all_their_effects(
    tmp_path: Path,
) -> None:
    local, status = together(
        tmp_path,
        *(simulation.identify(USER, n, {"$add": {"visits": 1}}) for n in range(20)),
        simulation.identify(USER, 30, {"$set": {"plan": "pro"}, "$unset": {"email": "-"}}),
    )
    assert [c[:4] for c in calls(local)] == ["POST", "PUT "]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"visits": 20, "plan": "pro"}
    assert status.delivered == 21


def test_an_identify_behind_an_event_is_not_pulled_before_it(tmp_path: Path) -> None:
    local, _ = together(
        tmp_path,
        identify(1, plan="free"),
        simulation.identify(USER, 2, {"$add": {"visits": 1}}),
        simulation.event(USER, 3),
        identify(4, plan="pro"),
        simulation.identify(USER, 5, {"$add": {"visits": 1}}),
    )
    assert [c.split(" ")[0] + c[-4:] for c in calls(local)] == [
        "POST 200",
        "PUT 200",
        "POST 202",
        "PUT 200",
    ]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro", "visits": 2}


def test_an_operation_that_needs_the_state_reads_a_contact_that_was_never_read(
    tmp_path: Path,
) -> None:
    def prepare(local: Sandbox) -> None:
        local.add_contact(external_id=USER, custom_attributes={"visits": 5})

    add = simulation.identify(USER, 2, {"$add": {"visits": 1}})
    local, _ = deliver(tmp_path, prepare, identify(plan="pro"), add, {**add, "insert_id": "3"})
    assert [c.split(" ")[0] for c in calls(local)] == ["POST", "PUT", "GET", "PUT", "PUT"]
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro", "visits": 7}


@in_virtual_time
async def test_of_an_update_that_conflicts_with_somebody_elses_contact_the_rest_is_written(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(strict_email=True)
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([identify(plan="pro")], api_key=simulation.API_KEY)
        await engine.settled()
        local.add_contact(external_id="somebody-else", email="theirs@example.com")
        conflict = identify(2, email="theirs@example.com", plan="team")
        await engine.submit([conflict], api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    ours, theirs = local.contacts.values()
    assert ours.custom_attributes == {"plan": "team"}
    assert (theirs.email, theirs.custom_attributes) == ("theirs@example.com", {})
    assert (status.delivered, status.dead) == (2, 0)


def test_one_bad_update_among_merged_ones_spoils_only_itself(tmp_path: Path) -> None:
    bad = Fault("status", 422, contains='"visits":666')
    local, status = together(
        tmp_path,
        identify(1, plan="pro"),
        identify(2, visits=666),
        identify(3, plan="team"),
        sandbox={"faults": [bad]},
    )
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "team"}
    assert (status.delivered, status.dead_by_reason) == (2, {"refused": 1})


@in_virtual_time
async def test_different_events_of_one_second_all_appear_and_keep_their_seconds(
    tmp_path: Path,
) -> None:
    faults = [Fault("half", share=0.5, path="/events", end_s=30)]
    local = simulation.sandbox(latency_s=0.2, faults=faults)
    local.add_contact(external_id=USER)
    same = {"time": 1_700_000_000_000}
    events = [simulation.event(USER, n, **same) for n in range(12)]
    for start in (0, 4, 8):
        async with simulation.engine(tmp_path, local) as engine:
            await engine.submit(events[start : start + 4], api_key=simulation.API_KEY)
            for _ in range(10 if start < 8 else 1):
                await simulation.a_moment()
            if start < 8:
                engine.cancel()
            else:
                await engine.settled()
    assert [e.metadata["n"] for e in local.events] == list(range(12))
    assert [e.created_at - 1_700_000_000 for e in local.events] == list(range(12))
