"""What a sync keeps of a batch, and why not the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.actors.filter import FilterActor, only_project
from amplitude_intercom.engine.commands.preview import Past, Preview
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.admission import LONGEST_TYPE_KEPT, TYPES_KEPT, Admission
from amplitude_intercom.engine.rules.insert_keys import dead_key, insert_key, project_hash
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Keep
from amplitude_intercom.engine.spool.rows import Append, dead_letter
from amplitude_intercom.transports import Batch
from amplitude_intercom.transports.amplitude import BadEvent, Head, decode_head, read_head
from amplitude_intercom.transports.uploads import Upload, checked_batch
from support import reference

ANY: dict[str, Any] = {"select": [{"types": ["*"]}]}
BOUGHT: dict[str, Any] = {"types": ["Bought"]}


def an_admission(**sync: Any) -> Admission:
    base = {"name": "a", "intercom": {"access_token": "t"}, "events": ANY}
    checked = from_table({"sync": [base | sync]}).sync[0]
    return SyncRules(checked).admission


def kept_of(decide: Admission, batch: Batch, **actor: Any) -> Append:
    spool = cast("Any", None)  # filtering needs none
    return asyncio.run(FilterActor(decide, spool, **actor).admit(batch))


def judged(decide: Admission, raw: bytes) -> Any:
    """The verdict: a kind, a reason to drop, or a reason for a dead letter."""
    verdict = decide.judge(decode_head(raw), raw)
    return verdict.value if isinstance(verdict, Keep) else verdict.reason


def judge(decide: Admission, event_type: str | None, **more: Any) -> Any:
    event = {"event_type": event_type, "user_id": "user-1", **more}
    return judged(decide, json.dumps(event).encode())


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
def test_what_is_not_kept_has_its_reason(
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
    ],
)
def test_an_unusual_type_has_its_verdict(event_type: str, selected: Any, unselected: str) -> None:
    assert judge(an_admission(), event_type) == selected
    assert judge(an_admission(events={"select": [{"types": ["Bought"]}]}), event_type) == unselected


def test_types_that_are_remembered_are_bounded_in_number_and_length() -> None:
    decide = an_admission()
    for n in range(2 * TYPES_KEPT):
        decide.drop_by_type(f"{n}" * 64)
        decide.drop_by_type(f"type {n}")
    assert decide._known.cache_info().currsize == TYPES_KEPT
    before = decide._known.cache_info().misses
    assert decide.drop_by_type("x" * (LONGEST_TYPE_KEPT + 1)) is None
    assert decide._known.cache_info().misses == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ["event_type", "user_id", "device_id", "insert_id", "uuid", "time", "event_time"]
PROPERTIES = ["event_properties", "user_properties", "groups", "group_properties", "country"]
EVENTS = st.dictionaries(st.sampled_from(FIELDS + PROPERTIES), JSON | st.just("Bought"))


@given(EVENTS | JSON, st.booleans())
def test_whatever_comes_is_kept_dropped_or_a_dead_letter(event: Any, derive: bool) -> None:
    where = [{"property": "event.p", "op": "is not", "values": [1]}]
    raw = json.dumps(event).encode()
    for decide in (
        an_admission(events={"select": [{"types": ["*"], "where": where}]}),
        an_admission(
            users={"properties": ["plan"], "trigger": "any_update"}, events={"select": []}
        ),
    ):
        kept = kept_of(decide, Batch(None, [raw], derive_ids=derive))
        assert len(kept.rows) + len(kept.dead) + kept.dropped.total() == kept.received == 1
        assert {letter.reason for letter in kept.dead} <= set(DeadReason)
        assert kept.dropped.keys() <= set(DropReason)


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


def key_of(project: str = "p", *, derive: bool = False, **head: Any) -> bytes | None:
    return insert_key(Head(**head), b"raw", project_hash(project), derive=derive)


def test_an_event_is_known_again_by_its_insert_id_on_its_device() -> None:
    assert key_of(insert_id="i", device_id="d") == key_of(export_insert_id="i", device_id="d")
    assert key_of(insert_id="i", device_id="d") != key_of(insert_id="i", device_id="e")
    assert key_of(insert_id="i", device_id="d", user_id="ann") == key_of(
        insert_id="i", device_id="d", user_id="bob"
    )


def test_an_event_without_device_id_is_known_again_as_its_users() -> None:
    assert key_of(insert_id="i", user_id="alice") != key_of(insert_id="i", user_id="bobby")
    assert key_of(insert_id="i", user_id="alice") == key_of(insert_id="i", user_id="alice")
    assert key_of(insert_id="i", user_id="alice") != key_of(insert_id="i", device_id="alice")


def test_an_event_is_another_one_in_another_project() -> None:
    assert key_of("p", insert_id="i", device_id="d") != key_of("q", insert_id="i", device_id="d")
    assert key_of("p", derive=True) != key_of("q", derive=True)


def test_no_part_of_a_key_can_pass_for_another() -> None:
    parts = [
        ("p", "d", "ui"),
        ("p", "du", "i"),
        ("pd", "", "ui"),
        ("p", "d\0u", "i"),
        ("p", "", "dui"),
    ]
    keys = [key_of(project, device_id=d, insert_id=i) for project, d, i in parts]
    assert len(set(keys)) == len(parts)


@pytest.mark.parametrize("time", [{}, {"event_time": "2024-05-14 09:00:00"}])
def test_an_event_without_insert_id_is_known_again_by_its_uuid(time: dict[str, str]) -> None:
    assert key_of(uuid="u", device_id="d", **time) == key_of(insert_id="u", device_id="d")
    both = key_of(uuid="u", export_insert_id="i", device_id="d", **time)
    assert both == key_of(insert_id="i", device_id="d")


def test_an_event_without_any_id_is_known_by_its_content_where_its_source_may_repeat() -> None:
    assert key_of() is None
    same = insert_key(Head(), b"raw", project_hash("p"), derive=True)
    assert same == insert_key(Head(), b"raw", project_hash("p"), derive=True)
    assert same != insert_key(Head(), b"other", project_hash("p"), derive=True)


def keys(raw: bytes, api_keys: Sequence[str] = (), **batch: Any) -> list[bytes | None]:
    table = {"name": "a", "intercom": {"access_token": "t"}, "events": ANY}
    sync = from_table({"sync": [{**table, "amplitude_api_keys": list(api_keys)}]}).sync[0]
    brought = Batch(batch.pop("heads", None), [raw], **batch)
    kept = kept_of(SyncRules(sync).admission, brought, project=only_project(sync))
    return [row.insert_key for row in (*kept.rows, *kept.dead)]


GOOD = b'{"event_type": "Bought", "user_id": "user-1", "insert_id": "i"}'


def test_a_file_and_the_sdk_bring_the_same_event_where_the_sync_has_one_project() -> None:
    assert keys(GOOD, ["k1"], sync="a") == keys(GOOD, ["k1"], api_key="k1")
    assert keys(GOOD, ["k1"], sync="a") != keys(GOOD, ["k1"], api_key="k2")


@pytest.mark.parametrize("api_keys", [[], ["*"], ["k1", "k2"]])
def test_a_file_belongs_to_no_project_where_it_may_be_any(api_keys: list[str]) -> None:
    found = keys(GOOD, api_keys, sync="a")
    assert found == keys(GOOD, api_keys, sync="a")
    assert found not in [keys(GOOD, api_keys, api_key=key) for key in ("k1", "k2", "*")]


BAD = b'{"event_type": "Bought", "user_id": "user-1", "insert_id": "i", "time": "soon"}'


def test_a_dead_letter_is_known_again_by_its_content_and_never_makes_another_a_duplicate() -> None:
    assert keys(BAD, sync="a", derive_ids=True) == keys(BAD, sync="a")
    assert keys(BAD, sync="a") != keys(GOOD, sync="a")
    no_id = b'{"event_type": "Bought", "user_id": "user-1"}'
    assert keys(no_id, sync="a", derive_ids=True) != keys(BAD, sync="a")
    assert keys(b"{", sync="a") != keys(b"[", sync="a")


def test_a_dead_letter_is_not_the_event_that_the_same_bytes_are_under_other_settings() -> None:
    """Its letter may be gone by then, and it would be lost."""
    raw, project = b'{"event_type": "Bought", "user_id": "user-1"}', project_hash("p")
    head = Head(event_type="Bought")
    assert dead_key(raw, project) != insert_key(head, raw, project, derive=True)


def test_lines_that_begin_alike_are_different_dead_letters_where_the_rest_differs() -> None:
    def key(digest: bytes) -> list[bytes | None]:
        return keys(b"alike", heads=[BadEvent("too_large", "", "too long", digest=digest)])

    assert key(b"one") == key(b"one")
    assert key(b"one") != key(b"other")


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


def test_each_line_of_an_export_gets_the_verdict_it_deserves() -> None:
    decide, rows = an_admission(), reference.export_rows()
    verdicts = {number: judged(decide, row) for number, row in rows.items()}
    deserved = {number: reason for number, reason in NOT_KEPT.items() if number in rows}
    assert {n: v for n, v in verdicts.items() if isinstance(v, str)} == deserved
    assert deserved


def test_every_line_that_is_kept_can_be_sent() -> None:
    checked = from_table(
        {"sync": [{"name": "a", "intercom": {"access_token": "t"}, "events": ANY}]}
    ).sync[0]
    mapping = SyncRules(checked)
    for line in reference.export_rows().values():
        found = judged(an_admission(), line)
        if isinstance(found, tuple):
            assert isinstance(mapping.plan(Record(1, *found, 1_800_000_000_000, line)), Keep)


def test_only_the_same_event_of_the_same_device_is_known_again() -> None:
    rows = reference.export_rows()

    def key(number: int) -> bytes | None:
        head = decode_head(rows[number])
        assert isinstance(head, Head)
        return insert_key(head, rows[number], project_hash(""), derive=True)

    assert key(16) == key(17)
    assert len({key(n) for n in (6, 7, 8, 16, 18, 39, 40)}) == 7


def admit(decide: Admission, raws: list[bytes], *, decoded: bool, few_are_kept: bool) -> Any:
    actor = FilterActor(decide, cast("Any", None))  # admitting needs no spool
    actor._few_are_kept = few_are_kept
    heads = [read_head(raw)[0] for raw in raws] if decoded else None
    read = [read_head(raw)[1] for raw in raws] if decoded else raws
    batch = Batch(heads, read, origin="f", lines=range(1, len(raws) + 1))
    return asyncio.run(actor.admit(batch))


TYPES = ("Bought", "Seen", "$identify", "$groupidentify", "_all", "[Intercom] x", "", None)


@pytest.mark.parametrize("trigger", ["identify", "any_update"])
@pytest.mark.parametrize("broken", [b"", b"{", b'{"event_type": 5, "user_id": "user-1"}'])
def test_whatever_is_decoded_first_the_same_is_kept(trigger: str, broken: bytes) -> None:
    decide = an_admission(
        events={"select": [{"types": ["Bought"]}]},
        users={"properties": ["plan"], "trigger": trigger},
    )
    raws = [
        json.dumps(
            {"event_type": event_type, "user_id": f"user-{n}", "user_properties": given}
        ).encode()
        for event_type in TYPES
        for n, given in enumerate(({}, {"plan": "pro"}, {"$set": {"plan": "pro"}}))
    ]
    raws[5:5] = [broken] if broken else []
    expected = admit(decide, raws, decoded=True, few_are_kept=False)
    for few_are_kept in (False, True):
        assert admit(decide, raws, decoded=False, few_are_kept=few_are_kept) == expected
    assert expected.rows
    assert expected.dropped["not_selected"] or trigger == "any_update"


def test_what_nobody_selected_is_dropped_whatever_else_is_wrong_with_it() -> None:
    """So it does not depend on what else is in its batch."""
    decide = an_admission(events={"select": [{"types": ["Bought"]}]})
    bad = [b'{"event_type": "Seen", "user_id": true}', b'{"event_type": "Seen", "x": "\xff"}']
    worse = [b'{"event_type": "Bought", "user_id": true}', b"{"]
    for decoded, few_are_kept in ((True, False), (False, False), (False, True)):
        for beside in ([], worse):
            kept = admit(decide, bad + beside, decoded=decoded, few_are_kept=few_are_kept)
            assert kept.dropped == {"not_selected": 2}
            assert len(kept.dead) == len(beside)


@pytest.mark.parametrize("extra", [b"", b', "x": NaN'])
def test_what_a_door_has_let_in_does_not_become_too_large_behind_it(extra: bytes) -> None:
    """A clock that is corrected, and a number that is mended, make an event a little longer."""
    start = b'{"event_type": "Bought", "user_id": "user-1", "time": 1' + extra + b', "p": "'
    raw = start + b"x" * (1_024 - len(start) - 2) + b'"}'
    assert len(raw) == 1_024
    upload = Upload("key", [raw], uploaded_at=b"1500000000000")
    batch = checked_batch(upload, "http", max_event_bytes=1_024, received_ms=1_800_000_000_000)
    assert isinstance(batch, Batch)
    assert len(batch.raws[0]) > 1_024
    append = kept_of(an_admission(), batch, max_event_bytes=1_024)
    assert (len(append.rows), append.dead) == (1, [])


@pytest.mark.parametrize("event_type", ["Bought", "Seen"])
@pytest.mark.parametrize("user_id", ['"user-1"', "true", '"user-1", "groups": 1'])
def test_preview_and_replay_judge_a_bad_event_as_intake_does(event_type: str, user_id: str) -> None:
    table = {"name": "a", "intercom": {"access_token": "t"}, "events": {"select": [BOUGHT]}}
    sync = from_table({"sync": [table]}).sync[0]
    raw = f'{{"event_type": "{event_type}", "user_id": {user_id}}}'.encode()
    kept = admit(SyncRules(sync).admission, [raw], decoded=False, few_are_kept=False)
    letter = dead_letter(Record(1, Kind.EVENT, "", 0, raw), Failure(DeadReason.INVALID_FIELD), 0)
    foreseen = [Preview(sync).of(raw), Preview(sync).replayed(letter, Past())]
    expected = ["send"] * len(kept.rows) + ["reject"] * len(kept.dead) + list(kept.dropped)
    assert [a["reason"] if a["verdict"] == "drop" else a["verdict"] for a in foreseen] == (
        expected * 2
    )


@pytest.mark.parametrize(
    ("mapping", "raw", "user"),
    [
        ({}, b'{"event_type": [], "user_id": "Ann"}', "Ann"),
        ({}, b'{"event_type": "A", "user_id": 17, "time": "never"}', "17"),
        ({}, b'{"event_type": "A", "user_id": {}, "device_id": "d-1"}', ""),
        ({"from": "device_id"}, b'{"event_type": "A", "user_id": {}, "device_id": "d-1"}', "d-1"),
        ({"identifier": "email"}, b'{"event_type": 1, "user_id": " A@B.c "}', "a@b.c"),
        ({"from": "user.id"}, b'{"event_type": [], "user_properties": {"id": "Ann"}}', "Ann"),
        ({"from": "user.id"}, b'{"event_type": "A", "user_properties": 7}', ""),
        ({}, b'{"event_type": "A", "user_id": "An', ""),
        ({}, b'{"event_type": "A", "user_id": "%s"}' % (b"x" * 5_000), ""),
    ],
)
def test_an_event_that_dies_at_the_door_is_its_user_s_where_that_can_be_read(
    mapping: dict[str, str], raw: bytes, user: str
) -> None:
    decide = an_admission(mapping=mapping)
    batch = Batch(None, [raw], sync="a", derive_ids=True, origin="f")
    [letter] = kept_of(decide, batch).dead
    assert letter.user_key == user
