"""Event properties as metadata: sent unchanged, or changed by rule and noted."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.fitting import Style
from amplitude_intercom.engine.rules.metadata_values import MAX_SPREAD, spread
from amplitude_intercom.engine.rules.texts import is_blank

LINK = {"url": "https://example.com", "value": "Order"}
MONEY = {"amount": 1999, "currency": "eur"}


@pytest.mark.parametrize(
    ("value", "fitted", "reason"),
    [
        ("text", "text", None),
        ("", "", None),
        ("x" * 300, "x" * 255, "text_cut"),
        (1, 1, None),
        (1.5, 1.5, None),
        (True, "true", None),
        (False, "false", None),
        (None, None, None),
        (2**53 - 1, 2**53 - 1, None),
        (2**53, "9007199254740992", "number_as_text"),
        (-(10**30), "-1000000000000000000000000000000", "number_as_text"),
        (float("nan"), None, "not_finite"),
        (float("-inf"), None, "not_finite"),
        (LINK, LINK, None),
        (MONEY, MONEY, None),
        ({}, None, "empty_left_out"),
        ([], None, "empty_left_out"),
        ([[]], None, "array_left_out"),
        ([1, "b", True, None, {"a": 1}], "1, b, true", "array_joined"),
        (["x" * 200, "y" * 200], "x" * 200 + ", " + "y" * 53, "array_joined"),
        ("2024-05-14T09:00:00Z", "2024-05-14T09:00:00Z", None),
        ("2024-05-14", "2024-05-14", None),
        ("two\nlines\tand tabs", "two\nlines\tand tabs", None),
        ("\x1b[31mred\0\x85\ud83d", " [31mred   ", "characters_cleaned"),
        ("\0" * 300, " " * 255, "text_cut"),
        ({"url": "https://example.com/\0", "value": "x"}, None, "flattened"),
    ],
)
def test_a_value_of_metadata(value: Any, fitted: Any, reason: str | None) -> None:
    (key, found, note), *_ = spread("key", value, Style())
    assert (key, found, note.reason if note else None) == ("key", fitted, reason)
    assert reason is None or reason in set(AdjustmentReason)


def test_a_number_too_long_to_write_becomes_its_size() -> None:
    [(_, fitted, note)] = spread("key", 10**5000, Style())
    assert (fitted, note and note.reason) == ("about 10^5000", "number_as_text")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"url": "javascript:alert(1)", "value": "x"}, "flattened"),
        ({"amount": 19.99, "currency": "eur"}, "flattened"),
        ({"amount": True, "currency": "eur"}, "flattened"),
        ({"amount": 1, "currency": "e1r"}, "flattened"),
    ],
)
def test_an_object_that_only_looks_like_a_link_or_money_is_flattened(
    value: Any, reason: str
) -> None:
    (key, fitted, note), *inner = spread("p", value, Style())
    assert (key, fitted, note and note.reason) == ("p", None, reason)
    assert [k for k, _, _ in inner] == [f"p_{name}" for name in value]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2024-05-14", 1_715_644_800),
        (1_715_677_200_000, 1_715_677_200),
        (1_715_677_200_000_000_000, 1_715_677_200),
        ("1715677200", 1_715_677_200),
        ("2024-05-14 09:00:00", 1_715_677_200),
        ("2024-05-14T11:00:00+02:00", 1_715_677_200),
        (1_715_677_200, 1_715_677_200),
        ("soon", "soon"),
        ("2024-05-14T99:00:00Z", "2024-05-14T99:00:00Z"),
    ],
)
def test_only_the_key_of_a_date_makes_unix_seconds_of_one(value: Any, seconds: Any) -> None:
    [(_, fitted, _)] = spread("end_date", value, Style(), dated=True)
    assert fitted == seconds
    [(_, fitted, note)] = spread("renewed_at", value, Style())
    assert str(fitted) == str(value)
    assert note is None or note.reason == "number_as_text"


def test_a_nested_key_that_intercom_shows_as_a_date_holds_one() -> None:
    trip = {"start_date": "2024-05-14", "at": "2024-05-14"}
    found = {key: fitted for key, fitted, _ in spread("trip", trip, Style())}
    assert found == {"trip": None, "trip_start_date": 1_715_644_800, "trip_at": "2024-05-14"}


def test_an_object_is_read_up_to_a_bound() -> None:
    inner = {f"k{n}": n for n in range(1_000)}
    for value in (inner, {name: {"a": inner} for name in inner}):
        found = spread("p", value, Style())
        assert MAX_SPREAD < len(found) < MAX_SPREAD + 10
        assert found[-1][2] is not None
        assert found[-1][2].reason == "nested_left_out"


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\0", "\u200b\u00a0", "\ud83d"])
def test_a_value_without_a_name_is_left_out(name: str) -> None:
    assert is_blank(name)
    found = [(key, fitted) for key, fitted, _ in spread("p", {name: 1, "a": 2}, Style())]
    assert found == [("p", None), ("p", None), ("p_a", 2)]


def within_objects(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [9, 200])
def test_objects_beyond_the_greatest_depth_are_left_out(depth: int) -> None:
    found = spread("a", within_objects(depth), Style())
    assert found[-1][2] is not None
    assert found[-1][2].reason == "nested_left_out"
    assert all(fitted is None for _, fitted, _ in found)


def test_objects_at_the_greatest_depth_are_flattened() -> None:
    found = spread("a", within_objects(8), Style())
    assert found[-1] == ("_".join("a" * 9), 1, None)


@pytest.mark.parametrize("name", ["n" * 100, "n" * 300, "n-" * 50])
def test_the_key_of_a_nested_value_is_cut_to_its_bound(name: str) -> None:
    found = spread("p" * 200, {name: 1}, Style())
    assert found[-1] == ("p" * 200 + "_" + name[:54], 1, None)
    assert [note.reason for _, _, note in found if note] == ["flattened", "key_cleaned"]
