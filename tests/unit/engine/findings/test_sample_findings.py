"""What ``check`` finds in samples of events."""

from __future__ import annotations

import json
from typing import Any

from amplitude_intercom.engine.findings.sample_findings import Names, name_findings, wanted_of
from amplitude_intercom.engine.settings import Sync
from support.findings import settings, sync, texts


def names(of: Sync, *events: dict[str, Any]) -> Names:
    return Names((json.dumps(event).encode() for event in events), wanted_of(of))


def test_selected_names_that_a_sample_lacks_are_named_with_those_that_may_be_meant() -> None:
    [shop] = settings(
        sync(
            users={"properties": ["Plan", {"from": "address.city", "to": "city"}]},
            events={
                "select": [{"types": ["Signed Up", "Purchase"]}],
                "metadata": ["price", "place.city", "user.plan", "absent"],
            },
        )
    ).sync
    sample = names(
        shop,
        {"event_type": "Sign Up", "event_properties": {"Price": 1, "place": {"city": "x"}}},
        {
            "event_type": "Purchase",
            "user_properties": {"$set": {"plan": "pro", "address": {"city": "x"}}},
        },
    )
    assert [finding.text for finding in name_findings(shop, sample)] == [
        "the sample has no event type `Signed Up` (did you mean `Sign Up`?)",
        "the sample has no event property `price` (did you mean `Price`?), `absent`",
        "the sample has no user property `Plan` (did you mean `plan`?)",
    ]


def test_properties_of_users_that_no_event_of_a_sample_carries_are_named() -> None:
    """Amplitude's own user properties do not come with an event: it has those that it brings."""
    [shop] = settings(
        sync(
            users={"properties": ["plan"]},
            events={"select": [{"types": ["Seen"]}], "metadata": ["n", "user.city"]},
        )
    ).sync
    bare = {"event_type": "Seen", "event_properties": {"n": 1}}
    assert texts([*name_findings(shop, names(shop, bare))]) == [
        "warning events.metadata: the sample has no user property `city`",
        "warning users.properties: the sample has no user property `plan`",
    ]
    whole = {**bare, "user_properties": {"city": "x", "$set": {"plan": "pro"}}}
    assert not [*name_findings(shop, names(shop, bare, whole))]


def test_a_sample_is_looked_through_as_the_rules_do() -> None:
    """Flattened as Export writes it, and fields of the event's own: neither is missing."""
    [shop] = settings(
        sync(
            users={"properties": ["carrier", "visits"]},
            events={"select": [{"types": ["*"]}], "metadata": ["place", "country", "absent"]},
        )
    ).sync
    sample = names(
        shop,
        {
            "event_type": "Seen",
            "country": "NL",
            "device_carrier": "KPN",
            "event_properties": {"place.city": "Delft", "absent": None},
            "user_properties": {"$add": {"visits": 1}},
        },
    )
    assert [finding.text for finding in name_findings(shop, sample)] == [
        "the sample has no event property `absent`"
    ]


def test_a_sample_of_anything_is_looked_at_within_bounds() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = {"\x1b[31m": deep}
    many = {f"name {n}": n for n in range(20_000)}
    odd = [b"\xff", b"[]", b"{", b"1" * 5_000, b'{"event_type": 5}', b'{"user_properties": [1]}']
    selected: dict[str, Any] = {"events": {"metadata": [f"wanted {n}" for n in range(30)]}}
    [shop] = settings(sync(**selected)).sync
    full = json.dumps({"event_properties": many, "user_properties": deep}).encode()
    sample = Names([*odd, full], wanted_of(shop))
    [finding] = name_findings(shop, sample)
    assert len(sample.event) <= 10_000
    assert len(finding.text) < 2_000
    assert finding.text.endswith("and 20 more")
