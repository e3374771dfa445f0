"""Which events a sync keeps, for whom, and why not the rest."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.admission import LONGEST_TYPE_KEPT, TYPE_VERDICTS_KEPT
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep
from support import reference
from support.admissions import ANY, an_admission, judge, judged


def test_a_selected_event_is_kept_under_its_user() -> None:
    assert judge(an_admission(), "Bought") == (Kind.EVENT, "user-1")
    assert judge(an_admission(events={"select": [{"types": ["Bought"]}]}), "Bought") == (
        Kind.EVENT,
        "user-1",
    )


def test_an_identify_is_kept_though_no_selection_names_it() -> None:
    assert judge(an_admission(events={"select": []}), "$identify") == (Kind.IDENTIFY, "user-1")


@pytest.mark.parametrize(
    ("sync", "event_type", "reason"),
    [
        ({"events": {"select": [{"types": ["Other"]}]}}, "Bought", "not_selected"),
        ({"events": ANY | {"enabled": False}}, "Bought", "events_disabled"),
        ({"users": {"enabled": False}}, "$identify", "users_disabled"),
        ({"enabled": False}, "Bought", "sync_disabled"),
        ({"enabled": False}, "$identify", "sync_disabled"),
        ({}, "[Intercom] event.created", "loop_guard"),
        ({"events": {"select": []}}, "$groupidentify", "group_identify"),
        ({}, "$groupidentify", "group_identify"),
        ({}, "[Amplitude] Start Session", "reserved_name"),
        ({}, None, "missing_field"),
        ({}, "", "missing_field"),
    ],
)
def test_an_event_that_is_not_kept_has_a_reason(
    sync: dict[str, Any], event_type: str | None, reason: str
) -> None:
    assert judge(an_admission(**sync), event_type) == reason
    assert reason in {*DropReason, *DeadReason}


@pytest.mark.parametrize(
    ("event_type", "selected", "unselected"),
    [
        (" \t\u00a0", "invalid_field", "not_selected"),
        ("x" * 1_025, "invalid_field", "not_selected"),
        ("x" * 1_024, (Kind.EVENT, "user-1"), "not_selected"),
        ("x" * 200, (Kind.EVENT, "user-1"), "not_selected"),
        ("[Intercom] " + "x" * 200, "loop_guard", "not_selected"),
        ("\0", (Kind.EVENT, "user-1"), "not_selected"),
        ("_all", "reserved_name", "not_selected"),
        ("[Intercomx] a", (Kind.EVENT, "user-1"), "not_selected"),
        ("[Intercom]", (Kind.EVENT, "user-1"), "not_selected"),
        ("[Intercom]a", (Kind.EVENT, "user-1"), "not_selected"),
    ],
)
def test_an_unusual_type_has_its_verdict(event_type: str, selected: Any, unselected: str) -> None:
    assert judge(an_admission(), event_type) == selected
    assert judge(an_admission(events={"select": [{"types": ["Bought"]}]}), event_type) == unselected


def test_types_that_are_remembered_are_bounded_in_number_and_length() -> None:
    decide = an_admission()
    for n in range(2 * TYPE_VERDICTS_KEPT):
        decide.drop_by_type(f"{n}" * 64)
        decide.drop_by_type(f"type {n}")
    assert decide._known.cache_info().currsize == TYPE_VERDICTS_KEPT
    before = decide._known.cache_info().misses
    assert decide.drop_by_type("x" * (LONGEST_TYPE_KEPT + 1)) is None
    assert decide._known.cache_info().misses == before


def test_a_where_clause_that_does_not_hold_drops_the_event() -> None:
    clause = {"property": "event.amount", "op": ">=", "values": [100]}
    decide = an_admission(events={"select": [{"types": ["Bought"], "where": [clause]}]})
    assert judge(decide, "Bought", event_properties={"amount": 99}) == "filtered_out"
    assert judge(decide, "Bought", event_properties={"amount": 100}) == (Kind.EVENT, "user-1")


def test_an_event_that_comes_back_from_intercom_passes_where_the_guard_is_off() -> None:
    decide = an_admission(events=ANY | {"loop_guard": False})
    assert judge(decide, "[Intercom] event.created") == (Kind.EVENT, "user-1")


def test_an_unselected_event_may_still_update_its_user() -> None:
    users = {"properties": ["plan"], "trigger": "any_update"}
    decide = an_admission(users=users, events={"select": []})
    assert judge(decide, "Seen", user_properties={"plan": "pro"}) == (Kind.IDENTIFY, "user-1")
    assert judge(decide, "Seen", user_properties={"other": 1}) == "not_selected"


@pytest.mark.parametrize(
    ("source", "event", "user"),
    [
        ("device_id", {"device_id": "d-1"}, "d-1"),
        ("user.email", {"user_properties": {"email": "A@B.c"}}, "A@B.c"),
        ("user.email", {"user_properties": {"$set": {"email": "s"}, "email": "p"}}, "s"),
        ("event.account", {"event_properties": {"account": 42}}, "42"),
    ],
)
def test_the_user_comes_from_where_the_mapping_says(
    source: str, event: dict[str, Any], user: str
) -> None:
    decide = an_admission(mapping={"from": source})
    assert judge(decide, "Bought", **event) == (Kind.EVENT, user)
    assert judge(decide, "Bought") == "no_identity"


def test_emails_compare_without_case_and_outer_space() -> None:
    decide = an_admission(mapping={"identifier": "email"})
    assert judge(decide, "Bought", user_id=" Lena@Example.com ") == (Kind.EVENT, "lena@example.com")


NOT_KEPT = {
    3: "no_identity",  # an anonymous device
    19: "no_identity",
    22: "loop_guard",
    37: "invalid_json",  # it ends in the middle
    44: "missing_field",  # the event type
    49: "reserved_name",
    56: "invalid_id",
}
"""Why these lines of the Export are not kept; all others are."""


def test_each_line_of_an_export_gets_the_verdict_it_deserves() -> None:
    decide, rows = an_admission(), reference.export_rows()
    verdicts = {number: judged(decide, row) for number, row in rows.items()}
    assert {n: v for n, v in verdicts.items() if isinstance(v, str)} == NOT_KEPT


def test_every_line_that_is_kept_can_be_sent() -> None:
    checked = from_table(
        {"sync": [{"name": "a", "intercom": {"access_token": "t"}, "events": ANY}]}
    ).sync[0]
    mapping = SyncRules(checked)
    for line in reference.export_rows().values():
        found = judged(an_admission(), line)
        if isinstance(found, tuple):
            kind, user = found
            assert isinstance(mapping.plan(Record(1, kind, user, 1_800_000_000_000, line)), Keep)
