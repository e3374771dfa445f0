"""Single values: what fits goes through, everything else is changed by rule and named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.attribute_values import type_for
from amplitude_intercom.engine.rules.fitting import (
    MAX_ELEMENTS,
    MAX_SPREAD,
    Style,
    cut,
    fit_key,
    fit_name,
    is_blank,
    is_date_key,
    join,
    spread,
    to_seconds,
)

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


def test_a_number_too_long_to_be_written_is_told_by_its_size() -> None:
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
def test_what_only_looks_like_a_link_or_money_is_an_object_like_any_other(
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
def test_what_is_shown_as_a_date_is_unix_seconds_where_it_is_one(value: Any, seconds: Any) -> None:
    [(_, fitted, _)] = spread("end_date", value, Style(), dated=True)
    assert fitted == seconds
    [(_, fitted, note)] = spread("renewed_at", value, Style())
    assert str(fitted) == str(value)
    assert note is None or note.reason == "number_as_text"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("renewed_at", True),
        ("end_date", True),
        ("endDate", True),
        ("date", True),
        ("format", False),
        ("update", False),
    ],
)
def test_the_name_of_a_user_property_can_say_that_it_is_a_date(key: str, says: bool) -> None:
    assert is_date_key(key) is says
    assert type_for(key, 1_715_644_800, Style()) == ("date" if says else "float")


def test_a_nested_key_that_intercom_shows_as_a_date_holds_one() -> None:
    trip = {"start_date": "2024-05-14", "at": "2024-05-14"}
    found = {key: fitted for key, fitted, _ in spread("trip", trip, Style())}
    assert found == {"trip": None, "trip_start_date": 1_715_644_800, "trip_at": "2024-05-14"}


def test_an_object_without_end_is_looked_at_up_to_a_bound() -> None:
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
def test_what_is_nested_deeper_than_anybody_reads_is_left_out(depth: int) -> None:
    found = spread("a", within_objects(depth), Style())
    assert found[-1][2] is not None
    assert found[-1][2].reason == "nested_left_out"
    assert all(fitted is None for _, fitted, _ in found)


def test_what_is_nested_as_deep_as_is_read_is_flattened() -> None:
    found = spread("a", within_objects(8), Style())
    assert found[-1] == ("_".join("a" * 9), 1, None)


@pytest.mark.parametrize("name", ["n" * 100, "n" * 300, "n-" * 50])
def test_the_key_of_a_nested_value_is_cut_to_its_bound(name: str) -> None:
    found = spread("p" * 200, {name: 1}, Style())
    assert found[-1] == ("p" * 200 + "_" + name[:54], 1, None)
    assert [note.reason for _, _, note in found if note] == ["flattened", "key_cleaned"]


FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 254 + "é", "x" * 254 + "é"),
        ("x" * 254 + "e\u0301", "x" * 254),
        ("x" * 254 + FAMILY, "x" * 254),
        ("x" * 253 + FAMILY, "x" * 253),
        ("x" * 254 + "👍🏽", "x" * 254),
        ("x" * 254 + "🇳🇬", "x" * 254),
        ("x" * 250 + FAMILY + "y", "x" * 250 + FAMILY),
        ("\u0301" * 300, "\u0301" * 223),
    ],
)
def test_a_text_is_not_cut_inside_of_a_character(text: str, kept: str) -> None:
    assert cut(text) == kept


def test_names_and_keys_lose_what_intercom_does_not_take() -> None:
    assert fit_name("a.b$c d") == "a-b-c d"
    assert (fit_name("a\0b\x1b\ud83d"), fit_key("a\0b\x85\ud83d")) == ("a-b--", "a_b__")
    assert fit_key("a.b$~`!@#%^&*'{}|\\\"\0c d-e") == "a_b" + "_" * 17 + "c d-e"
    for text in ("a.b", "x" * 999, "👍🏽" * 300, ""):
        assert fit_key(fit_key(text)) == fit_key(text)
        assert fit_name(fit_name(text)) == fit_name(text)
        assert len(fit_key(text)) <= 255


def test_an_array_says_how_many_it_joined() -> None:
    assert joined(["a", "b"]) == ("a, b", "an array of 2, joined")
    assert joined(["a", {}, "b"]) == ("a, b", "an array of 3, 2 of them joined")


def test_an_array_says_that_it_was_cut_and_how_many_of_it_were_begun() -> None:
    cut_text = "an array of 3, 2 of them joined, cut to 255 characters"
    assert joined(["x" * 254, "y", "z"]) == ("x" * 254 + ",", cut_text)
    assert joined(["x" * 255]) == ("x" * 255, "an array of 1, joined")
    assert joined(["x" * 255, {}]) == ("x" * 255, "an array of 2, 1 of them joined")
    assert joined([{}] * MAX_ELEMENTS + ["a"]) == (
        None,
        f"an array without single values in its first {MAX_ELEMENTS}, left out",
    )
    assert joined(["a"] + [{}] * MAX_ELEMENTS + ["b"]) == (
        "a",
        f"an array of {MAX_ELEMENTS + 2}, 1 of them joined",
    )


def joined(values: list[Any]) -> tuple[Any, str]:
    fitted, note = join(values)
    assert note is not None
    return fitted, note.what


class Counted(list[Any]):
    """A list that counts how many of its elements were looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self.looked_at += 1
            yield value


@pytest.mark.parametrize("value", ["ab", 12, 1.5, True, None, {"a": 1}, [1], "", "x" * 300])
def test_no_more_of_an_array_is_looked_at_than_its_text_can_hold(value: Any) -> None:
    many = Counted([value] * 100_000)
    join(many)
    assert many.looked_at <= MAX_ELEMENTS


def test_a_name_that_shows_nothing_where_it_is_cut_is_blank() -> None:
    assert is_blank(" " * 255 + "x")
    assert not is_blank(" " * 254 + "x")
    assert is_blank("\n" * 255 + "x")


@pytest.mark.parametrize(
    "value", [True, None, [], {}, "x", "99999-01-01", float("nan"), 10**20, -(10**14)]
)
def test_what_is_no_date_is_none(value: Any) -> None:
    assert to_seconds(value) is None
