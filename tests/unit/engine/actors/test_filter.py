"""What a sync keeps of a batch, and why not the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.actors.filter import FilterActor
from amplitude_intercom.engine.actors.offers import SyncFilter, only_project
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.previewing import Past, Preview
from amplitude_intercom.engine.reasons import DeadReason, DropReason, Failure
from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.spool.batches import MOST_BYTES, MOST_EVENTS, Entry, entries_of
from amplitude_intercom.engine.spool.rows import Part, dead_letter
from amplitude_intercom.transports.amplitude import BadEvent
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.upload_events import checked_batch
from amplitude_intercom.transports.uploads import Upload
from support.admissions import ANY, BOUGHT, an_admission


def kept_of(decide: Admission, batch: Batch, *, project: str = "", **actor: Any) -> Part:
    return admitted(SyncFilter("a", decide, project), batch, **actor)


def admitted(sync: SyncFilter, batch: Batch, **actor: Any) -> Part:
    spool = cast("Any", None)  # filtering needs none
    return asyncio.run(FilterActor(spool, **actor).admit(batch, sync))


def entries(part: Part) -> list[Entry]:
    """Return what the indexes say of the events that are kept."""
    found = [entry for pack in part.packs for entry in entries_of(pack.index)]
    assert len(found) == sum(pack.count for pack in part.packs)
    return found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ["event_type", "user_id", "device_id", "insert_id", "uuid", "time", "event_time"]
PROPERTIES = ["event_properties", "user_properties", "groups", "group_properties", "country"]
EVENTS = st.dictionaries(st.sampled_from(FIELDS + PROPERTIES), JSON | st.just("Bought"))


@given(EVENTS | JSON, st.booleans())
def test_every_event_is_kept_dropped_or_a_dead_letter(event: Any, derive: bool) -> None:
    where = [{"property": "event.p", "op": "is not", "values": [1]}]
    raw = json.dumps(event).encode()
    for decide in (
        an_admission(events={"select": [{"types": ["*"], "where": where}]}),
        an_admission(
            users={"properties": ["plan"], "trigger": "any_update"}, events={"select": []}
        ),
    ):
        kept = kept_of(decide, Batch(None, [raw], derive_ids=derive))
        assert len(entries(kept)) + len(kept.dead) + kept.dropped.total() == kept.received == 1
        assert {letter.reason for letter in kept.dead} <= set(DeadReason)
        assert kept.dropped.keys() <= set(DropReason)


def keys(raw: bytes, api_keys: Sequence[str] = (), **batch: Any) -> list[bytes | None]:
    table = {"name": "a", "intercom": {"access_token": "t"}, "events": ANY}
    sync = from_table({"sync": [{**table, "amplitude_api_keys": list(api_keys)}]}).sync[0]
    brought = Batch(batch.pop("heads", None), [raw], **batch)
    kept = kept_of(SyncRules(sync).admission, brought, project=only_project(sync))
    return [*(row.insert_key for row in entries(kept)), *(row.insert_key for row in kept.dead)]


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


def test_lines_that_begin_alike_are_different_dead_letters_where_the_rest_differs() -> None:
    def key(digest: bytes) -> list[bytes | None]:
        return keys(b"alike", heads=[BadEvent("too_large", "", "too long", digest=digest)])

    assert key(b"one") == key(b"one")
    assert key(b"one") != key(b"other")


# --- the Export sample ------------------------------------------------------------------


def admit(decide: Admission, raws: list[bytes], *, decoded: bool, few_are_kept: bool) -> Part:
    sync = SyncFilter("a", decide)
    sync.few_are_kept = few_are_kept
    heads = [read_head(raw)[0] for raw in raws] if decoded else None
    read = [read_head(raw)[1] for raw in raws] if decoded else raws
    batch = Batch(heads, read, origin="f", lines=range(1, len(raws) + 1))
    return admitted(sync, batch)


TYPES = ("Bought", "Seen", "$identify", "$groupidentify", "_all", "[Intercom] x", "", None)


@pytest.mark.parametrize("trigger", ["identify", "any_update"])
@pytest.mark.parametrize("broken", [b"", b"{", b'{"event_type": 5, "user_id": "user-1"}'])
def test_the_same_is_kept_with_and_without_decoded_heads(trigger: str, broken: bytes) -> None:
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
    assert expected.packs
    assert expected.dropped[DropReason.NOT_SELECTED] or trigger == "any_update"


def test_an_unselected_event_is_dropped_before_any_other_fault_counts() -> None:
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
def test_an_event_that_was_let_in_does_not_become_too_large_afterwards(extra: bytes) -> None:
    """A clock that is corrected, and a number that is mended, make an event a little longer."""
    start = b'{"event_type": "Bought", "user_id": "user-1", "time": 1' + extra + b', "p": "'
    raw = start + b"x" * (1_024 - len(start) - 2) + b'"}'
    assert len(raw) == 1_024
    upload = Upload("key", [raw], uploaded_at=b"1500000000000")
    batch = checked_batch(upload, "http", max_event_bytes=1_024, received_ms=1_800_000_000_000)
    assert isinstance(batch, Batch)
    assert len(batch.raws[0]) > 1_024
    part = kept_of(an_admission(), batch, max_event_bytes=1_024)
    assert (len(entries(part)), part.dead) == (1, [])


@pytest.mark.parametrize("event_type", ["Bought", "Seen"])
@pytest.mark.parametrize("user_id", ['"user-1"', "true", '"user-1", "groups": 1'])
def test_preview_and_replay_judge_a_bad_event_as_intake_does(event_type: str, user_id: str) -> None:
    table = {"name": "a", "intercom": {"access_token": "t"}, "events": {"select": [BOUGHT]}}
    sync = from_table({"sync": [table]}).sync[0]
    raw = f'{{"event_type": "{event_type}", "user_id": {user_id}}}'.encode()
    kept = admit(SyncRules(sync).admission, [raw], decoded=False, few_are_kept=False)
    letter = dead_letter(Record(1, Kind.EVENT, "", 0, raw), Failure(DeadReason.INVALID_FIELD), 0)
    foreseen = [Preview(sync).of(raw), Preview(sync).replayed(letter, Past())]
    expected = ["send"] * len(entries(kept)) + ["reject"] * len(kept.dead) + list(kept.dropped)
    assert [a.reason if a.verdict == "drop" else a.verdict for a in foreseen] == (expected * 2)


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
def test_an_event_that_dies_at_intake_is_its_user_s_where_that_can_be_read(
    mapping: dict[str, str], raw: bytes, user: str
) -> None:
    decide = an_admission(mapping=mapping)
    batch = Batch(None, [raw], sync="a", derive_ids=True, origin="f")
    [letter] = kept_of(decide, batch).dead
    assert letter.user_key == user


def test_many_and_large_events_are_kept_in_packs_of_bounded_size() -> None:
    start = b'{"event_type": "Bought", "user_id": "user-1", "p": "'
    sizes = [10] * 700 + [300_000] * 9 + [1 << 21, 10]
    raws = [start + b"x" * size + b'"}' for size in sizes]
    part = kept_of(an_admission(), Batch(None, raws), max_event_bytes=1 << 22)
    assert [entry.length for entry in entries(part)] == [len(raw) for raw in raws]
    assert b"\n".join(pack.events for pack in part.packs) == b"\n".join(raws)
    for pack in part.packs:
        assert pack.count <= MOST_EVENTS
        assert len(pack.events) <= MOST_BYTES + pack.count or pack.count == 1


def test_two_syncs_keep_their_own_parts_of_a_batch() -> None:
    chosen = an_admission(events={"select": [BOUGHT]})
    syncs = [SyncFilter("all", an_admission()), SyncFilter("bought", chosen)]
    raws = [b'{"event_type": "%s", "user_id": "user-1"}' % t for t in (b"Bought", b"Seen", b"Seen")]
    for _ in range(2):  # whether the last run of a sync kept few of them or not
        parts = [admitted(sync, Batch(None, raws)) for sync in syncs]
        assert [part.taker for part in parts] == ["all", "bought"]
        assert [len(entries(part)) for part in parts] == [3, 1]
        assert [part.dropped.total() for part in parts] == [0, 2]
        assert [sync.few_are_kept for sync in syncs] == [False, True]
