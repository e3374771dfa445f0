"""An event's name, second and metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amplitude_intercom.engine.rules.bodies import event_body
from amplitude_intercom.engine.rules.verdicts import Reject
from support.plans import ACCEPTED_MS, body, plan, record, rules


def metadata(properties: dict[str, Any], **events: Any) -> dict[str, Any]:
    events = {"metadata": list(properties), **events}
    found: dict[str, Any] = body(rules(events=events), {"event_properties": properties}).get(
        "metadata", {}
    )
    return found


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
def test_an_event_has_its_own_second_in_any_unit_of_time(
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


def test_an_amount_with_too_many_digits_says_that_it_was_rounded() -> None:
    chosen = rules(events={"metadata": ["price"], "money": {"price": "currency"}})
    event = {"event_properties": {"price": 19.999, "currency": "USD"}}
    planned = plan(chosen, event)
    assert planned.event is not None
    assert planned.event["metadata"] == {"price": {"amount": 2000, "currency": "usd"}}
    assert [adjustment.reason for adjustment in planned.adjustments] == ["amount_rounded"]


@pytest.mark.parametrize("properties", [{"place": {"city": "Oslo"}}, {"place.city": "Oslo"}])
def test_an_event_property_is_sent_whether_nested_or_flattened(properties: dict[str, Any]) -> None:
    chosen = {"metadata": ["place", {"from": "place.city", "to": "town"}]}
    sent = body(rules(events=chosen), {"event_properties": properties})
    assert sent["metadata"] == {"place_city": "Oslo", "town": "Oslo"}


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
