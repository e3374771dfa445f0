"""What delivering a record takes, by today's settings."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Drop, Reject
from support.plans import ACCEPTED_MS, body, plan, record, rules


def test_a_time_that_cannot_be_read_is_rejected() -> None:
    planned = rules().plan(record({"time": "yesterday"}))
    assert isinstance(planned, Reject)
    assert planned.reason == "invalid_field"


def test_a_set_value_wins_over_a_plain_key_in_filter_metadata_and_contact() -> None:
    pro = {"property": "user.plan", "op": "is", "values": ["pro"]}
    events = {"select": [{"types": ["*"], "where": [pro]}], "metadata": ["user.plan"]}
    mapping = rules(events=events, users={"properties": ["plan"], "trigger": "any_update"})
    planned = plan(mapping, {"user_properties": {"plan": "free", "$set": {"plan": "pro"}}})
    assert planned.event is not None
    assert planned.event["metadata"] == {"plan": "pro"}
    assert planned.contact is not None
    assert planned.contact.operations == {"$set": {"plan": "pro"}}


def test_a_field_named_like_ours_says_nothing() -> None:
    event = {"(fields)": {"country": "x"}, "(time_ms)": 5, "time": ACCEPTED_MS - 1_000}
    sent = body(rules(events={"metadata": ["country"]}), event)
    assert sent == {
        "event_name": "Bought",
        "created_at": ACCEPTED_MS // 1000 - 1,
        "user_id": "user-1",
    }


def test_an_event_can_say_that_it_leaves_its_user_alone() -> None:
    users = {"properties": ["plan"], "trigger": "any_update"}
    mapping = rules(users=users, events={"metadata": ["user.plan"]})
    event = {"$skip_user_properties_sync": True, "user_properties": {"plan": "free-2017"}}
    planned = plan(mapping, event)
    assert planned.contact is None
    assert planned.event is not None
    assert planned.event["metadata"] == {"plan": "free-2017"}
    assert plan(mapping, event | {"$skip_user_properties_sync": False}).contact is not None


@pytest.mark.parametrize(
    ("sync", "event", "kind", "reason"),
    [
        ({"events": {"enabled": False}}, {}, Kind.EVENT, "events_disabled"),
        ({"events": {"select": []}}, {}, Kind.EVENT, "not_selected"),
        ({"events": {"select": [{"types": ["Other"]}]}}, {}, Kind.EVENT, "not_selected"),
        ({}, {"event_type": "[Intercom] a"}, Kind.EVENT, "loop_guard"),
        ({}, {"event_type": "$groupidentify"}, Kind.EVENT, "group_identify"),
        (
            {"users": {"enabled": False}},
            {"event_type": "$identify"},
            Kind.IDENTIFY,
            "users_disabled",
        ),
        ({"users": {"enabled": False}}, {}, Kind.IDENTIFY, "users_disabled"),
        ({}, {}, Kind.IDENTIFY, "not_selected"),
    ],
)
def test_a_waiting_record_is_dropped_for_todays_reason(
    sync: dict[str, Any], event: dict[str, Any], kind: Kind, reason: str
) -> None:
    assert rules(**sync).plan(record(event, kind=kind)) == Drop(DropReason(reason))


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("event.amount", {"event_properties": {"amount": 5}}),
        ("user.amount", {"user_properties": {"$set": {"amount": 5}}}),
        ("group.team.a", {"group_properties": {"team": {"x": {"a": 5}}}}),
        ("quantity", {"quantity": 5}),
        ("event.$quantity", {"quantity": 5}),
        ("app_version", {"version_name": 5}),
        ("plan.branch", {"plan": {"branch": 5}}),
    ],
)
def test_a_waiting_record_has_to_pass_todays_filter(name: str, event: dict[str, Any]) -> None:
    def filtering(value: int) -> SyncRules:
        where = [{"property": name, "op": ">=", "values": [value]}]
        return rules(events={"select": [{"types": ["Bought"], "where": where}]})

    assert plan(filtering(5), event).event is not None
    assert filtering(6).plan(record(event)) == Drop(DropReason.FILTERED_OUT)


def test_an_event_that_is_no_longer_sent_still_updates_its_user() -> None:
    users = {"properties": ["plan"], "trigger": "any_update"}
    mapping = rules(users=users, events={"enabled": False})
    planned = plan(mapping, {"user_properties": {"plan": "pro"}}, kind=Kind.EVENT_WITH_UPDATE)
    assert planned.contact is not None
    assert planned.event is None


@pytest.mark.parametrize("name", [" ", "\t\n", "\0\x1b", "\u200b"])
def test_an_event_with_an_invisible_name_is_rejected(name: str) -> None:
    planned = rules().plan(record({"event_type": name}))
    assert planned == Reject(DeadReason.INVALID_FIELD, "event_type is blank")


def test_a_time_of_too_many_digits_is_rejected() -> None:
    for time in (10**30, 10**400, float("1e300"), "9" * 5_000):
        planned = rules().plan(record({"time": time}))
        assert isinstance(planned, Reject)
        assert planned.reason == "invalid_field"
