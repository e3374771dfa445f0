"""Where an event has a property, in every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.rules.paths import FIELDS, find, parse, read, top_level_keys


@pytest.mark.parametrize(
    ("holder", "found"),
    [
        ({"a.b.c": 1, "a": {"b": {"c": 2}}}, 1),
        ({"a": {"b": {"c": 1}}}, 1),
        ({"a": {"b.c": 1}}, 1),
        ({"a.b": {"c": 1}}, 1),
        ({"a": {"b": 2}, "a.b": {"c": 1}}, 1),
        ({"a.b.c": None, "a": {"b": {"c": 1}}}, 1),
        ({"a.b.c.d": 1, "a.b.c.e.f": 2, "a.b.cd": 3}, {"d": 1, "e.f": 2}),
        ({"a": {"b.c.d": 1}}, {"d": 1}),
        ({"a.b.c.d": None}, None),
        ({"a": 1}, None),
        ({"a": [{"b": {"c": 1}}]}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_a_name_is_found_dotted_nested_and_flattened(holder: Any, found: Any) -> None:
    assert find(holder, "a.b.c") == found


def test_a_flattened_property_is_an_object_again() -> None:
    assert find({"place.city": "Oslo", "place.zip": None, "places": 1}, "place") == {"city": "Oslo"}
    assert find({"place": {"city": "Rome"}, "place.city": "Oslo"}, "place") == {"city": "Rome"}


@pytest.mark.parametrize(
    ("text", "event", "found"),
    [
        ("user.plan", {"user_properties": {"plan": "free", "$set": {"plan": "pro"}}}, "pro"),
        ("user.plan", {"user_properties": {"plan": "free", "$set": {"plan": None}}}, None),
        ("user.plan", {"user_properties": {"plan": "free", "$set": "text"}}, "free"),
        ("user.plan", {"user_properties": {"$add": {"plan": 1}}}, None),
        ("user.a.b", {"user_properties": {"$set": {"a.b": 1}}}, 1),
        ("user.a.b", {"user_properties": {"$set": {"a": {"b": 1}}}}, 1),
        ("user.country", {"user_properties": {"country": "NO"}, "country": "FI"}, "NO"),
        ("user.country", {"country": "FI"}, "FI"),
        ("user.plan", {"plan": {"branch": "main"}}, None),
        ("user.revenue", {"revenue": 1}, None),
        ("event.country", {"event_properties": {"country": "NO"}, "country": "FI"}, "NO"),
        ("event.country", {"event_properties": {"country": None}, "country": "FI"}, "FI"),
        ("event.country", {"event_properties": "text", "country": "FI"}, "FI"),
        ("event.plan", {"plan": {"branch": "main"}}, None),
        ("event.$revenue", {"revenue": 9.5}, 9.5),
        ("event.$revenue", {"event_properties": {"$revenue": 1}, "revenue": 9.5}, 1),
        ("event.revenue", {"revenue": 9.5}, 9.5),
        ("event.$productId", {"productId": "sku-1"}, "sku-1"),
        ("event.$country", {"country": "FI"}, None),
        ("country", {"event_properties": {"country": "NO"}, "country": "FI"}, "FI"),
        ("plan.branch", {"plan": {"branch": "main"}}, "main"),
        ("place", {"place.city": "Oslo"}, None),
    ],
)
def test_a_property_is_its_own_or_the_field_that_stands_in_for_it(
    text: str, event: dict[str, Any], found: Any
) -> None:
    assert read(parse(text), event) == found


def test_a_name_without_a_scope_gets_the_one_of_its_list() -> None:
    assert parse("country", "event") == parse("event.country")
    assert parse("country", "user") == parse("user.country")
    assert parse("place.city", "event") == ("event", "place.city", "")
    assert parse("user", "event") == ("event", "user", "")
    assert parse("country") == ("", "country", "")


def test_the_properties_that_are_read_of_an_event_are_known_beforehand() -> None:
    for text in ("event.price", "user.country", "country", "plan.branch", "event.$price", "user.a"):
        path = parse(text)
        event = {
            "event_properties": {},
            "user_properties": {},
            "plan": {"branch": 1},
            **dict.fromkeys(FIELDS, 1),
        }
        whole = read(path, event)
        assert read(path, {key: event.get(key) for key in top_level_keys(path)}) == whole
