"""From an Amplitude event to Intercom's bodies."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import ContactUpdate, Identity, Kind, Plan, Record
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body, event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute, can_be_cleared, field_name
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.user_properties import apply
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject

ACCEPTED_MS = 1_715_677_200_999
ANY = AnyAttribute()


class Types:
    """A workspace's attributes, by name."""

    def __init__(self, **types: str) -> None:
        self._types = types

    def type_of(self, name: str) -> str | None:
        return self._types.get(name)


def rules(**sync: Any) -> SyncRules:
    base = {"name": "a", "intercom": {"access_token": "t"}}
    events = {"select": [{"types": ["*"]}], **sync.pop("events", {})}
    return SyncRules(from_table({"sync": [base | sync | {"events": events}]}).sync[0])


def record(event: dict[str, Any], user: str = "user-1", kind: Kind = Kind.EVENT) -> Record:
    return Record(7, kind, user, ACCEPTED_MS, json.dumps({"event_type": "Bought"} | event).encode())


def plan(mapping: SyncRules, event: dict[str, Any], **more: Any) -> Plan:
    verdict = mapping.plan(record(event, **more))
    assert isinstance(verdict, Keep)
    return verdict.value


def body(mapping: SyncRules, event: dict[str, Any], **more: Any) -> dict[str, Any]:
    sent = plan(mapping, event, **more).event
    assert sent is not None
    decoded: dict[str, Any] = json.loads(event_body(sent))
    return decoded


def metadata(properties: dict[str, Any], **events: Any) -> dict[str, Any]:
    events = {"metadata": list(properties), **events}
    found: dict[str, Any] = body(rules(events=events), {"event_properties": properties}).get(
        "metadata", {}
    )
    return found


# --- events -----------------------------------------------------------------------------


def test_an_event_has_its_name_its_second_and_its_user_and_nothing_unselected() -> None:
    event = {"time": 1_715_677_200_500, "event_properties": {"plan": "pro"}}
    assert body(rules(), event) == {
        "event_name": "Bought",
        "created_at": 1_715_677_200,
        "user_id": "user-1",
    }


def test_a_contact_found_by_email_is_named_by_email() -> None:
    by_email = rules(mapping={"identifier": "email"})
    assert body(by_email, {}, user="a@example.com")["email"] == "a@example.com"


@pytest.mark.parametrize(
    ("time", "second", "reason"),
    [
        (None, ACCEPTED_MS // 1000, None),
        (ACCEPTED_MS - 5_000, ACCEPTED_MS // 1000 - 5, None),
        (ACCEPTED_MS + 10**7, ACCEPTED_MS // 1000, "time_ahead"),
        (ACCEPTED_MS + 1, ACCEPTED_MS // 1000, "time_ahead"),
        (ACCEPTED_MS - ACCEPTED_MS % 1000, ACCEPTED_MS // 1000, None),
        (1_700_000_000, 1_700_000_000, "time_unit"),
        (1_700_000_000_123_456, 1_700_000_000, "time_unit"),
        (1_700_000_000_123_456_789, 1_700_000_000, "time_unit"),
        ("2023-11-14 22:13:20.5", 1_700_000_000, None),
    ],
)
def test_an_event_is_of_its_own_second_whatever_its_clock_counts(
    time: Any, second: int, reason: str | None
) -> None:
    planned = plan(rules(), {"time": time})
    assert planned.event is not None
    assert planned.event["created_at"] == second
    assert [adjustment.reason for adjustment in planned.adjustments] == ([reason] if reason else [])


def test_how_far_a_clock_may_be_off_is_a_setting() -> None:
    lenient = rules(events={"max_ahead_s": 60.0, "max_age_s": 100.0})
    assert body(lenient, {"time": ACCEPTED_MS + 60_000})["created_at"] == ACCEPTED_MS // 1000 + 60
    assert body(lenient, {"time": ACCEPTED_MS + 61_001})["created_at"] == ACCEPTED_MS // 1000
    assert body(lenient, {"time": ACCEPTED_MS - 100_000})["created_at"] == ACCEPTED_MS // 1000 - 100
    for time in (ACCEPTED_MS - 102_000, 5_000, -1):
        planned = lenient.plan(record({"time": time}))
        assert isinstance(planned, Reject)
        assert planned.reason == "too_old"
        assert planned.message.endswith("sync.events.max_age_s is 100")


def test_signs_that_intercom_replaces_in_names_are_replaced_here() -> None:
    planned = plan(rules(), {"event_type": "cart.$paid"})
    assert planned.event is not None
    assert planned.event["event_name"] == "cart--paid"
    assert [str(adjustment) for adjustment in planned.adjustments] == [
        "event_name: sent as 'cart--paid'"
    ]


def test_an_event_can_be_renamed() -> None:
    renaming = rules(events={"rename": {"Bought": "Purchase Completed"}})
    assert body(renaming, {})["event_name"] == "Purchase Completed"
    assert body(renaming, {"event_type": "Other"})["event_name"] == "Other"


def test_keys_have_no_signs_that_intercom_refuses() -> None:
    assert metadata({"a.b$c": 1}) == {"a_b_c": 1}


def test_metadata_keeps_the_order_of_the_selection_and_its_limit() -> None:
    properties = {f"p{n}": n for n in range(25)}
    planned = plan(rules(events={"metadata": list(properties)}), {"event_properties": properties})
    assert planned.event is not None
    assert list(json.loads(event_body(planned.event))["metadata"]) == list(properties)[:20]
    assert str(planned.adjustments[0]) == "metadata.p20: left out, 20 keys are there"
    assert len(planned.adjustments) == 5


def test_missing_properties_take_no_room_in_the_limit() -> None:
    assert metadata({"a": None, "b": 1}, metadata_limit=1) == {"b": 1}


def test_keys_that_differ_in_case_only_are_one() -> None:
    assert metadata({"Plan": 1, "plan": 2}) == {"Plan": 1}
    assert metadata({"PLACE_CITY": 1, "place": {"city": 2}}) == {"PLACE_CITY": 1}
    assert metadata({"place": {"city": 2}, "PLACE_CITY": 1}) == {"place_city": 2}


def test_metadata_comes_from_the_user_too_and_can_be_renamed() -> None:
    chosen = {"metadata": ["user.plan", {"from": "event.amount", "to": "Total"}]}
    event = {"user_properties": {"plan": "pro"}, "event_properties": {"amount": 3, "plan": "x"}}
    assert body(rules(events=chosen), event)["metadata"] == {"plan": "pro", "Total": 3}


def test_a_nested_object_becomes_keys_of_its_own_in_their_order() -> None:
    nested = {"city": "Lagos", "geo": {"lat": 6.5, "a.b": 1}, "tags": ["x", 2, None], "gone": None}
    assert metadata({"place": nested, "last": 1}) == {
        "place_city": "Lagos",
        "place_geo_lat": 6.5,
        "place_geo_a_b": 1,
        "place_tags": "x, 2",
        "last": 1,
    }
    assert list(metadata({"place": nested}, metadata_limit=2)) == ["place_city", "place_geo_lat"]


def test_one_key_of_a_nested_object_can_be_selected() -> None:
    chosen = {"metadata": ["place.city", {"from": "event.place.geo.lat", "to": "lat"}]}
    event = {"event_properties": {"place": {"city": "Lagos", "geo": {"lat": 6.5}}}}
    assert body(rules(events=chosen), event)["metadata"] == {"place_city": "Lagos", "lat": 6.5}


def test_nested_values_and_arrays_can_be_dropped_instead() -> None:
    dropping = rules(
        mapping={"nested": "drop", "arrays": "drop"}, events={"metadata": ["a", "b", "c"]}
    )
    planned = plan(dropping, {"event_properties": {"a": {"x": 1}, "b": [1], "c": 1}})
    assert planned.event is not None
    assert planned.event["metadata"] == {"c": 1}
    reasons = [adjustment.reason for adjustment in planned.adjustments]
    assert reasons == ["nested_left_out", "array_left_out"]


def test_everything_can_be_text_as_in_amplitude_s_own_stream() -> None:
    texts = rules(mapping={"stringify": True}, events={"metadata": ["a", "b", "c"]})
    event = {"event_properties": {"a": 1, "b": 2.5, "c": True}}
    assert body(texts, event)["metadata"] == {"a": "1", "b": "2.5", "c": "true"}


def test_a_gigantic_property_stops_nobody() -> None:
    link = {"url": "https://a.b/" + "👍" * 240, "value": "👍" * 255}
    properties: dict[str, Any] = {"text": "\u0001" * 100_000}
    properties |= {f"{'👍' * 250}{n}": link for n in range(99)}
    planned = plan(
        rules(events={"metadata": list(properties), "metadata_limit": 100}),
        {"event_properties": properties},
    )
    assert planned.event is not None
    assert len(event_body(planned.event)) <= 256_000
    reasons = Counter(adjustment.reason for adjustment in planned.adjustments)
    assert reasons["text_cut"] == 1
    assert reasons["too_large"] == 100 - len(planned.event["metadata"]) > 0


def test_a_selected_property_with_a_currency_becomes_money() -> None:
    chosen = {"money": {"price": "currency"}, "metadata": ["price"]}
    assert metadata({"price": 19.99, "currency": "EUR"}, **chosen) == {
        "price": {"amount": 1999, "currency": "eur"}
    }
    assert metadata({"price": "free", "currency": "EUR"}, **chosen) == {"price": "free"}
    assert metadata({"price": 5}, **chosen) == {"price": 5}


def test_a_user_property_is_no_price_though_an_event_property_of_its_name_is() -> None:
    chosen = rules(events={"metadata": ["user.price"], "money": {"price": "currency"}})
    event = {"user_properties": {"price": 5}, "event_properties": {"currency": "EUR"}}
    assert body(chosen, event)["metadata"] == {"price": 5}


# --- who --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "user"),
    [
        ("external_id", "x" * 256),
        ("external_id", "a\0b"),
        ("external_id", "a\nb"),
        ("external_id", " "),
        ("email", "no-at-sign"),
        ("email", "@example.com"),
        ("email", "a b@example.com"),
    ],
)
def test_an_identity_that_intercom_cannot_take_is_rejected(identifier: str, user: str) -> None:
    planned = rules(mapping={"identifier": identifier}).plan(record({}, user))
    assert isinstance(planned, Reject)
    assert planned.reason == "invalid_identity"
    assert planned.message.startswith(f"{identifier}: ")


def test_a_time_that_cannot_be_read_is_rejected() -> None:
    planned = rules().plan(record({"time": "yesterday"}))
    assert isinstance(planned, Reject)
    assert planned.reason == "invalid_field"


# --- contacts ---------------------------------------------------------------------------


def test_an_identify_updates_the_contact_with_selected_properties_only() -> None:
    event = {"event_type": "$identify", "user_properties": {"$set": {"plan": "pro", "x": 1}}}
    planned = plan(rules(users={"properties": ["plan"]}), event, kind=Kind.IDENTIFY)
    identity = Identity("external_id", "user-1")
    assert planned == Plan(identity, ContactUpdate(identity, {"$set": {"plan": "pro"}}, 7))


def test_an_event_updates_its_user_only_where_the_trigger_says_so() -> None:
    event = {"user_properties": {"plan": "pro"}}
    users: dict[str, Any] = {"properties": ["plan"]}
    assert plan(rules(users=users), event).contact is None
    updated = plan(rules(users=users | {"trigger": "any_update"}), event)
    assert updated.contact is not None
    assert updated.event is not None
    disabled = plan(rules(users=users | {"trigger": "any_update", "enabled": False}), event)
    assert disabled.contact is None
    assert disabled.event is not None


def test_standard_fields_go_to_the_contact_and_all_others_to_custom_attributes() -> None:
    mapping = rules(users={"properties": ["name", {"from": "company_name", "to": "Company"}]})
    properties = {"name": "Lena", "company_name": "Acme", "secret": 1}
    fields, _ = mapping.contacts.contact_fields(properties, ANY)
    assert json.loads(contact_body(fields)) == {
        "name": "Lena",
        "custom_attributes": {"Company": "Acme"},
    }
    assert field_name("email") == "email"


def test_a_contact_s_dates_are_unix_seconds_however_they_were_written() -> None:
    mapping = rules(users={"properties": ["signed_up_at"]})
    for written in ("2024-05-14T09:00:00Z", 1_715_677_200, 1_715_677_200_000):
        assert mapping.contacts.contact_fields({"signed_up_at": written}, ANY)[0] == {
            "signed_up_at": 1_715_677_200
        }


def test_nested_values_do_not_reach_a_contact_and_are_reported() -> None:
    mapping = rules(users={"properties": ["p"]})
    link = {"url": "https://example.com", "value": "x"}
    for nested in ({"a": 1}, link, {"amount": 1, "currency": "eur"}):
        fields, [adjustment] = mapping.contacts.contact_fields({"p": nested}, ANY)
        assert (fields, adjustment.reason) == ({}, "nested_left_out")


def test_the_types_of_the_workspace_s_attributes_are_kept() -> None:
    mapping = rules(users={"properties": ["seats", "trial", "plan", "gone", "since"]})
    types = Types(seats="integer", trial="boolean", plan="string", since="date")
    properties = {"seats": "12", "trial": "no", "plan": 7, "gone": 1, "since": "2024-05-14"}
    fields, adjustments = mapping.contacts.contact_fields(properties, types)
    assert json.loads(contact_body(fields)) == {
        "custom_attributes": {"seats": 12, "plan": "7", "since": 1_715_644_800}
    }
    assert sorted(
        (adjustment.reason, adjustment.where.rpartition(".")[2]) for adjustment in adjustments
    ) == [
        ("type_converted", "plan"),
        ("type_converted", "seats"),
        ("type_converted", "since"),
        ("type_mismatch", "trial"),
        ("unknown_attribute", "gone"),
    ]


def test_an_attribute_is_created_only_for_what_is_written_and_with_a_type_that_suits() -> None:
    names = ["addr", "trial_at", "signup_date", "seats", "plan", "vip", "tags", "gone"]
    wanted = rules(users={"properties": names}).contacts.attributes_of(
        {
            "addr": {"city": "Oslo"},
            "trial_at": "2026-01-02T10:00:00Z",
            "signup_date": "2026-01-02",
            "seats": 3,
            "plan": "pro",
            "vip": True,
            "tags": ["a"],
            "gone": None,
        }
    )
    assert wanted == {
        "trial_at": "date",
        "signup_date": "date",
        "seats": "float",
        "plan": "string",
        "vip": "boolean",
        "tags": "string",
    }


def test_an_amount_with_too_many_digits_says_that_it_was_rounded() -> None:
    chosen = rules(events={"metadata": ["price"], "money": {"price": "currency"}})
    event = {"event_properties": {"price": 19.999, "currency": "USD"}}
    planned = plan(chosen, event)
    assert planned.event is not None
    assert planned.event["metadata"] == {"price": {"amount": 2000, "currency": "usd"}}
    assert [adjustment.reason for adjustment in planned.adjustments] == ["amount_rounded"]


def test_the_field_that_identifies_a_contact_is_never_changed_by_a_property() -> None:
    mapping = rules(mapping={"identifier": "email"}, users={"properties": ["email", "name"]})
    fields, _ = mapping.contacts.contact_fields({"email": "other@example.com", "name": "A"}, ANY)
    assert fields == {"name": "A"}


def test_what_a_property_operation_cannot_do_is_reported() -> None:
    event = {"event_type": "$identify", "user_properties": {"$bad": 1, "$set": {"plan": "pro"}}}
    planned = plan(rules(users={"properties": ["plan"]}), event, kind=Kind.IDENTIFY)
    assert [adjustment.reason for adjustment in planned.adjustments] == ["operation_refused"]


def test_a_new_contact_is_a_user_with_its_identity() -> None:
    assert json.loads(creation_body(Identity("email", "a@b.c"), {"name": "A"})) == {
        "role": "user",
        "email": "a@b.c",
        "name": "A",
    }


def test_what_a_contact_holds_is_read_back_as_selected_properties() -> None:
    mapping = rules(users={"properties": ["name", {"from": "co", "to": "Company"}, "gone"]})
    contact = {"name": "A", "custom_attributes": {"Company": "Acme", "gone": None, "x": 1}}
    assert mapping.contacts.properties_of_contact(contact) == {"name": "A", "co": "Acme"}
    assert mapping.contacts.properties_of_contact({"custom_attributes": None}) == {}
    empty = {"name": "", "custom_attributes": {"Company": "", "gone": 0}}
    assert mapping.contacts.properties_of_contact(empty) == {"gone": 0}


# --- where properties are ---------------------------------------------------------------


@pytest.mark.parametrize("properties", [{"place": {"city": "Oslo"}}, {"place.city": "Oslo"}])
def test_an_event_property_is_sent_whether_nested_or_flattened(properties: dict[str, Any]) -> None:
    chosen = {"metadata": ["place", {"from": "place.city", "to": "town"}]}
    sent = body(rules(events=chosen), {"event_properties": properties})
    assert sent["metadata"] == {"place_city": "Oslo", "town": "Oslo"}


@pytest.mark.parametrize("sets", [{"address": {"city": "Oslo"}}, {"address.city": "Oslo"}])
@pytest.mark.parametrize("op", ["$set", "$setOnce", ""])
def test_a_user_property_is_written_whether_nested_or_dotted(op: str, sets: dict[str, Any]) -> None:
    mapping = rules(users={"properties": [{"from": "address.city", "to": "city"}]})
    event = {"event_type": "$identify", "user_properties": {op: sets} if op else sets}
    planned = plan(mapping, event, kind=Kind.IDENTIFY)
    assert planned.contact is not None
    state, _ = apply(planned.contact.operations, {})
    assert mapping.contacts.contact_fields(state, ANY)[0] == {"custom_attributes.city": "Oslo"}


def test_what_is_set_wins_over_a_plain_key_in_filter_metadata_and_contact() -> None:
    pro = {"property": "user.plan", "op": "is", "values": ["pro"]}
    events = {"select": [{"types": ["*"], "where": [pro]}], "metadata": ["user.plan"]}
    mapping = rules(events=events, users={"properties": ["plan"], "trigger": "any_update"})
    planned = plan(mapping, {"user_properties": {"plan": "free", "$set": {"plan": "pro"}}})
    assert planned.event is not None
    assert planned.event["metadata"] == {"plan": "pro"}
    assert planned.contact is not None
    assert planned.contact.operations == {"$set": {"plan": "pro"}}


@pytest.mark.parametrize("version", ["app_version", "version_name"])
def test_fields_of_an_event_itself_are_sent_where_properties_lack_them(version: str) -> None:
    event = {
        "price": 9.99,
        "quantity": 2,
        "revenue": 19.98,
        "currency": "USD",
        "productId": "sku-1",
        "country": "Norway",
        version: "1.2",
        "event_properties": {"quantity": 3},
    }
    home = {"from": "user.country", "to": "home"}
    names = ["$price", "quantity", "revenue", "productId", "country", "app_version", home]
    chosen = rules(events={"metadata": names, "money": {"revenue": "currency"}})
    assert body(chosen, event)["metadata"] == {
        "_price": 9.99,
        "quantity": 3,
        "revenue": {"amount": 1998, "currency": "usd"},
        "productId": "sku-1",
        "country": "Norway",
        "app_version": "1.2",
        "home": "Norway",
    }


@pytest.mark.parametrize(
    ("given", "operations"),
    [
        ({}, {"$set": {"country": "Norway"}}),
        ({"country": "Chile"}, {"$set": {"country": "Chile"}}),
        ({"$setOnce": {"country": "Chile"}}, {"$setOnce": {"country": "Chile"}}),
        ({"$clearAll": "-"}, {"$clearAll": "-", "$set": {"country": "Norway"}}),
    ],
)
def test_a_standard_user_property_is_taken_from_the_event_itself(
    given: dict[str, Any], operations: dict[str, Any]
) -> None:
    mapping = rules(users={"properties": ["country"]})
    event = {"event_type": "$identify", "country": "Norway", "user_properties": given}
    planned = plan(mapping, event, kind=Kind.IDENTIFY)
    assert planned.contact is not None
    assert planned.contact.operations == operations


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


# --- today's settings -------------------------------------------------------------------


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
def test_what_waited_is_dropped_for_the_reason_that_holds_today(
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
def test_what_waited_has_to_pass_today_s_filter(name: str, event: dict[str, Any]) -> None:
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
def test_an_event_whose_name_shows_nothing_is_rejected(name: str) -> None:
    planned = rules().plan(record({"event_type": name}))
    assert planned == Reject(DeadReason.INVALID_FIELD, "event_type is blank")


def test_a_date_as_text_is_not_taken_for_a_number() -> None:
    lenient = rules(events={"max_age_s": 3e9})
    planned = plan(lenient, {"time": "1971-01-01 00:00:00"})
    assert planned.event is not None
    assert planned.event["created_at"] == 31_536_000
    assert planned.adjustments == ()
    [adjustment] = plan(rules(), {"time": "1700000000"}).adjustments
    assert adjustment.reason == "time_unit"


@pytest.mark.parametrize("time", [-1, -1_000, "1969-12-31 23:59:59"])
def test_a_time_before_1970_is_too_old_however_old_an_event_may_be(time: Any) -> None:
    planned = rules(events={"max_age_s": 3e9}).plan(record({"time": time}))
    assert isinstance(planned, Reject)
    assert planned.reason == "too_old"


def test_a_time_of_too_many_digits_is_rejected() -> None:
    for time in (10**30, 10**400, float("1e300"), "9" * 5_000):
        planned = rules().plan(record({"time": time}))
        assert isinstance(planned, Reject)
        assert planned.reason == "invalid_field"


# --- dates, control characters, roles ---------------------------------------------------


def test_text_stays_text_unless_it_is_shown_as_a_date_or_said_to_be_one() -> None:
    written = "2026-01-01T10:00:00Z"
    as_date = {"from": "paid", "to": "paid_on", "as": "date"}
    renamed = {"from": "delivered", "to": "delivery_date"}
    chosen = rules(events={"metadata": ["delivered", "renewed_at", "end_date", as_date, renamed]})
    properties = dict.fromkeys(("delivered", "renewed_at", "end_date", "paid"), written)
    planned = plan(chosen, {"event_properties": properties})
    assert planned.event is not None
    assert planned.event["metadata"] == {
        "delivered": written,
        "renewed_at": written,
        "end_date": 1_767_261_600,
        "paid_on": 1_767_261_600,
        "delivery_date": 1_767_261_600,
    }
    assert [adjustment.reason for adjustment in planned.adjustments] == ["date_converted"] * 3


def test_control_characters_do_not_reach_intercom() -> None:
    chosen = rules(events={"metadata": ["a"]})
    event = {"event_type": "Bo\x1bught", "event_properties": {"a": {"x\0": "1\x072\n3"}}}
    planned = plan(chosen, event)
    assert planned.event is not None
    assert planned.event["event_name"] == "Bo-ught"
    assert planned.event["metadata"] == {"a_x_": "1 2\n3"}
    reasons = [adjustment.reason for adjustment in planned.adjustments]
    assert reasons == ["name_cleaned", "flattened", "key_cleaned", "characters_cleaned"]


def test_an_object_of_many_keys_is_named_once_where_there_is_no_more_space() -> None:
    chosen = rules(events={"metadata": ["a", "b"], "metadata_limit": 2})
    event = {"event_properties": {"a": {f"k{n}": n for n in range(10_000)}, "b": 1}}
    planned = plan(chosen, event)
    assert planned.event is not None
    assert list(planned.event["metadata"]) == ["a_k0", "a_k1"]
    assert [adjustment.reason for adjustment in planned.adjustments] == [
        "flattened",
        "too_many_keys",
        "too_many_keys",
    ]


@pytest.mark.parametrize("role", ["user", "lead", "admin", 5])
def test_a_role_is_not_written_beside_an_external_id(role: Any) -> None:
    chosen = ["role", "external_id", "name"]
    properties = {"role": role, "external_id": "u-1", "name": "A"}
    for identifier in ("external_id", "email"):
        mapping = rules(mapping={"identifier": identifier}, users={"properties": chosen})
        fields, adjustments = mapping.contacts.contact_fields(properties, ANY)
        assert "role" not in fields
        reasons = [adjustment.reason for adjustment in adjustments]
        assert reasons == ([] if role == "user" else ["type_mismatch"])
    fields, _ = mapping.contacts.contact_fields({"role": "lead", "name": "A"}, ANY)
    assert fields == {"role": "lead", "name": "A"}


def test_neither_role_nor_external_id_can_be_cleared() -> None:
    types = Types(plan="string")
    names = ["role", "external_id", "name", "custom_attributes.plan", "custom_attributes.gone"]
    assert [name for name in names if can_be_cleared(name, types)] == [
        "name",
        "custom_attributes.plan",
    ]


def test_one_value_that_does_not_fit_costs_itself_alone() -> None:
    chosen = {"owner_id": "nobody", "signed_up_at": 10**321, "avatar": "x", "name": "Mira"}
    mapping = rules(users={"properties": list(chosen)})
    fields, adjustments = mapping.contacts.contact_fields(chosen, ANY)
    assert fields == {"name": "Mira"}
    assert [adjustment.reason for adjustment in adjustments] == ["type_mismatch"] * 3
    assert mapping.contacts.contact_fields({"owner_id": "999"}, ANY)[0] == {"owner_id": 999}


def test_a_contact_s_last_attributes_are_left_out_where_the_request_would_be_too_large() -> None:
    properties = {f"{'👍' * 250}{n}": "👍" * 255 for n in range(200)}
    mapping = rules(users={"properties": list(properties)})
    fields, adjustments = mapping.contacts.contact_fields(properties, ANY)
    assert len(contact_body(fields)) <= 256_000
    assert list(fields) == [field_name(name) for name in properties][: len(fields)]
    reasons = [adjustment.reason for adjustment in adjustments]
    assert reasons == ["too_large"] * (200 - len(fields))
    assert 100 < len(fields) < 200


def test_a_code_of_digits_becomes_an_attribute_of_text() -> None:
    mapping = rules(users={"properties": ["postalCode"]})
    assert mapping.contacts.attributes_of({"postalCode": "02138"}) == {"postalCode": "string"}
    fields, [adjustment] = mapping.contacts.contact_fields(
        {"postalCode": "02138"}, Types(postalCode="float")
    )
    assert (fields, adjustment.reason) == ({}, "type_mismatch")


@pytest.mark.parametrize("answer", [None, [], "text", 5, {"custom_attributes": "text"}])
def test_what_is_no_contact_holds_no_properties(answer: Any) -> None:
    assert (
        rules(users={"properties": ["name", "plan"]}).contacts.properties_of_contact(answer) == {}
    )
