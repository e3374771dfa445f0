"""What a sync keeps of a batch, and why not the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from engine.actors.filter import Filter, FilterActor, insert_key
from engine.config import from_table
from engine.envelope import Kind, Plan, Record
from engine.errors import DEAD_REASONS, DROP_REASONS
from engine.mapping import Rules
from transports import Batch
from transports.amplitude import BadEvent, Head, decode_head

SAMPLE = Path(__file__).parents[3].parent / "shared" / "data" / "amplitude-export-sample.jsonl"
ANY: dict[str, Any] = {"select": [{"types": ["*"]}]}


def a_filter(**sync: Any) -> Filter:
    base = {"name": "a", "intercom": {"access_token": "t"}, "events": ANY}
    checked = from_table({"sync": [base | sync]}).sync[0]
    return Filter(checked, Rules(checked))


def judged(decide: Filter, raw: bytes) -> Any:
    """The verdict: a kind, a reason to drop, or a reason for a dead letter."""
    head = decode_head(raw)
    found = head if isinstance(head, BadEvent) else decide.judge(head, raw)
    return found.reason if isinstance(found, BadEvent) else found


def judge(decide: Filter, event_type: str | None, **more: Any) -> Any:
    event = {"event_type": event_type, "user_id": "user-1", **more}
    return judged(decide, json.dumps(event).encode())


def test_a_selected_event_is_kept_under_its_user() -> None:
    assert judge(a_filter(), "Bought") == (Kind.EVENT, "user-1")
    assert judge(a_filter(events={"select": [{"types": ["Bought"]}]}), "Bought") == (
        Kind.EVENT,
        "user-1",
    )


def test_an_identify_is_kept_though_no_selection_names_it() -> None:
    assert judge(a_filter(events={"select": []}), "$identify") == (Kind.IDENTIFY, "user-1")


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
def test_what_is_not_kept_has_its_reason(
    sync: dict[str, Any], event_type: str | None, reason: str
) -> None:
    assert judge(a_filter(**sync), event_type) == reason
    assert reason in DROP_REASONS | DEAD_REASONS


def test_a_where_clause_that_does_not_hold_drops_the_event() -> None:
    clause = {"property": "event.amount", "op": ">=", "values": [100]}
    decide = a_filter(events={"select": [{"types": ["Bought"], "where": [clause]}]})
    assert judge(decide, "Bought", event_properties={"amount": 99}) == "filtered_out"
    assert judge(decide, "Bought", event_properties={"amount": 100}) == (Kind.EVENT, "user-1")


def test_an_event_that_comes_back_from_intercom_passes_where_the_guard_is_off() -> None:
    decide = a_filter(events=ANY | {"loop_guard": False})
    assert judge(decide, "[Intercom] event.created") == (Kind.EVENT, "user-1")


def test_an_unselected_event_may_still_update_its_user() -> None:
    users = {"properties": ["plan"], "trigger": "any_update"}
    decide = a_filter(users=users, events={"select": []})
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
    decide = a_filter(mapping={"from": source})
    assert judge(decide, "Bought", **event) == (Kind.EVENT, user)
    assert judge(decide, "Bought") == "no_identity"


def test_emails_compare_without_case_and_outer_space() -> None:
    decide = a_filter(mapping={"identifier": "email"})
    assert judge(decide, "Bought", user_id=" Lena@Example.com ") == (Kind.EVENT, "lena@example.com")


def test_a_repeated_event_is_known_by_its_insert_id_on_its_device() -> None:
    def key(**head: Any) -> bytes | None:
        return insert_key(Head(**head), b"raw", derive=False)

    assert key(insert_id="i", device_id="d") == key(export_insert_id="i", device_id="d")
    assert key(insert_id="i", device_id="d") != key(insert_id="i", device_id="e")
    assert key() is None
    assert insert_key(Head(), b"raw", derive=True) == insert_key(Head(), b"raw", derive=True)
    assert insert_key(Head(), b"raw", derive=True) != insert_key(Head(), b"other", derive=True)


# --- the Export sample ------------------------------------------------------------------

NOT_KEPT = {
    **dict.fromkeys((3, 19, 20, 21), "no_identity"),
    **dict.fromkeys((22, 23, 24), "loop_guard"),
    37: "invalid_json",
    **dict.fromkeys((44, 45), "missing_field"),
    **dict.fromkeys((49, 50, 54), "reserved_name"),
    56: "invalid_id",
}
"""What ``shared/data/README.md`` says of these lines, in this program's words."""


@pytest.fixture(scope="module")
def sample() -> list[bytes]:
    if not SAMPLE.exists():
        pytest.skip("no sample data here")
    return SAMPLE.read_bytes().splitlines()


def test_each_line_of_an_export_gets_the_verdict_it_deserves(sample: list[bytes]) -> None:
    decide = a_filter()
    verdicts = {number: judged(decide, line) for number, line in enumerate(sample, 1)}
    assert {n: v for n, v in verdicts.items() if isinstance(v, str)} == NOT_KEPT
    assert len(verdicts) == 60


def test_every_line_that_is_kept_can_be_sent(sample: list[bytes]) -> None:
    checked = from_table(
        {"sync": [{"name": "a", "intercom": {"access_token": "t"}, "events": ANY}]}
    ).sync[0]
    mapping = Rules(checked)
    for line in sample:
        found = judged(a_filter(), line)
        if isinstance(found, tuple):
            assert isinstance(mapping.plan(Record(1, *found, 1_800_000_000_000, line)), Plan)


def test_only_the_same_event_of_the_same_device_is_known_again(sample: list[bytes]) -> None:
    def key(number: int) -> bytes | None:
        return insert_key(decode_head(sample[number - 1]), sample[number - 1], derive=True)

    assert key(16) == key(17)
    assert len({key(n) for n in (6, 7, 8, 16, 18, 39, 40)}) == 7


def sift(decide: Filter, raws: list[bytes], *, decoded: bool, few_are_kept: bool) -> Any:
    actor = FilterActor(decide, cast("Any", None))  # sifting needs no spool
    actor._few_are_kept = few_are_kept
    heads = [decode_head(raw) for raw in raws] if decoded else None
    return actor.sift(Batch(heads, raws, origin="f", lines=range(1, len(raws) + 1)))


TYPES = ("Bought", "Seen", "$identify", "$groupidentify", "_all", "[Intercom] x", "", None)


@pytest.mark.parametrize("trigger", ["identify", "any_update"])
@pytest.mark.parametrize("broken", [b"", b"{", b'{"event_type": 5, "user_id": "user-1"}'])
def test_whatever_is_decoded_first_the_same_is_kept(trigger: str, broken: bytes) -> None:
    decide = a_filter(
        events={"select": [{"types": ["Bought"]}]},
        users={"properties": ["plan"], "trigger": trigger},
    )
    raws = [
        json.dumps({"event_type": one, "user_id": f"user-{n}", "user_properties": given}).encode()
        for one in TYPES
        for n, given in enumerate(({}, {"plan": "pro"}, {"$set": {"plan": "pro"}}))
    ]
    raws[5:5] = [broken] if broken else []
    expected = sift(decide, raws, decoded=True, few_are_kept=False)
    for few_are_kept in (False, True):
        assert sift(decide, raws, decoded=False, few_are_kept=few_are_kept) == expected
    assert expected.rows
    assert expected.dropped["not_selected"] or trigger == "any_update"


def test_what_nobody_selected_is_dropped_whatever_else_is_wrong_with_it() -> None:
    """So it does not depend on what else is in its batch."""
    decide = a_filter(events={"select": [{"types": ["Bought"]}]})
    bad = [b'{"event_type": "Seen", "user_id": 5.5}', b'{"event_type": "Seen", "x": "\xff"}']
    worse = [b'{"event_type": "Bought", "user_id": 5.5}', b"{"]
    for decoded, few_are_kept in ((True, False), (False, False), (False, True)):
        for beside in ([], worse):
            kept = sift(decide, bad + beside, decoded=decoded, few_are_kept=few_are_kept)
            assert kept.dropped == {"not_selected": 2}
            assert len(kept.dead) == len(beside)
