"""What the settings of Send Events select."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from amplitude_intercom.engine.rules.operators import MAX_ELEMENTS
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.setting_types import Operator
from amplitude_intercom.engine.settings import Clause, Selector


def clause(prop: str, op: str, *values: Any) -> Clause:
    return Clause(property=prop, op=op, values=list(values))  # type: ignore[arg-type]


def passes(event: dict[str, Any], prop: str, op: str, *values: Any) -> bool:
    predicate = Selection([Selector(["T"], [clause(prop, op, *values)])]).lookup("T")
    assert predicate is not None
    return predicate.matches(event)


def holds(value: Any, op: str, *values: Any) -> bool:
    return passes({"event_properties": {"p": value}}, "event.p", op, *values)


# --- Types ---


def test_nothing_selected_selects_nothing() -> None:
    assert Selection([]).lookup("Signed Up") is None


def test_a_type_that_is_not_named_is_not_selected() -> None:
    assert Selection([Selector(["Signed Up"])]).lookup("Logged In") is None


def test_a_named_type_without_conditions_always_passes_and_needs_nothing() -> None:
    predicate = Selection([Selector(["Signed Up"])]).lookup("Signed Up")
    assert predicate is not None
    assert predicate.always
    assert predicate.needed == frozenset()
    assert predicate.matches({})


@pytest.mark.parametrize("wildcard", ["*", "_all"])
def test_a_wildcard_selects_every_type(wildcard: str) -> None:
    selection = Selection([Selector([wildcard])])
    assert selection.any_type
    assert selection.types == frozenset()
    predicate = selection.lookup("whatever")
    assert predicate is not None
    assert predicate.always


def test_a_named_type_passes_by_its_own_selector_or_by_the_wildcard_one() -> None:
    selection = Selection(
        [
            Selector(["Buy"], [clause("country", "is", "FR")]),
            Selector(["*"], [clause("event.amount", ">=", 100)]),
        ]
    )
    named, other = selection.lookup("Buy"), selection.lookup("Else")
    assert named is not None
    assert other is not None
    assert named.matches({"country": "FR"})
    assert named.matches({"event_properties": {"amount": 100}})
    assert not named.matches({"country": "DE"})
    assert not other.matches({"country": "FR"})


def test_an_unconditional_selector_makes_the_conditions_of_others_moot() -> None:
    predicate = Selection(
        [Selector(["Buy"], [clause("country", "is", "FR")]), Selector(["*"])]
    ).lookup("Buy")
    assert predicate is not None
    assert predicate.always


def test_all_clauses_of_a_selector_must_hold() -> None:
    both = [clause("country", "is", "FR"), clause("platform", "is", "iOS")]
    predicate = Selection([Selector(["T"], both)]).lookup("T")
    assert predicate is not None
    assert predicate.matches({"country": "FR", "platform": "iOS"})
    assert not predicate.matches({"country": "FR", "platform": "Web"})


def test_distinct_named_types_are_counted_once_and_wildcards_not() -> None:
    selection = Selection([Selector(["A", "B"]), Selector(["B", "*"])])
    assert selection.types == {"A", "B"}


def test_needed_names_the_top_level_keys_that_conditions_read() -> None:
    selection = Selection(
        [
            Selector(["A"], [clause("event.x", "is", 1)]),
            Selector(["B"], [clause("user.x", "is", 1), clause("group.org", "is", 1)]),
            Selector(["C"], [clause("plan.branch", "is", "main")]),
        ]
    )
    predicate = selection.lookup("A")
    assert predicate is not None
    assert predicate.needed == {"event_properties"}
    assert selection.needed == {
        *("event_properties", "user_properties", "groups", "group_properties"),
        *("plan", "plan.branch"),
    }


# --- Properties ---


def test_a_dotted_name_is_tried_as_it_stands_and_then_as_a_path() -> None:
    flat = {"event_properties": {"a.b": 1, "a": {"b": 2}}}
    deep = {"event_properties": {"a": {"b": {"c": 3}}}}
    assert passes(flat, "event.a.b", "is", 1)
    assert not passes(flat, "event.a.b", "is", 2)
    assert passes(deep, "event.a.b.c", "is", 3)


def test_user_properties_are_found_plain_and_under_set() -> None:
    assert passes({"user_properties": {"plan": "pro"}}, "user.plan", "is", "pro")
    assert passes({"user_properties": {"$set": {"plan": "pro"}}}, "user.plan", "is", "pro")


@pytest.mark.parametrize("names", ["acme", ["acme"], ["initech", "acme"]])
def test_group_names_match_as_text_and_as_array(names: Any) -> None:
    assert passes({"groups": {"org": names}}, "group.org", "is", "acme")


def test_a_group_type_without_names_is_none() -> None:
    assert passes({"groups": {"org": []}}, "group.org", "is", "(none)")
    assert passes({}, "group.org", "is", "(none)")


def test_a_group_property_matches_when_that_of_any_group_does() -> None:
    event = {"group_properties": {"org": {"acme": {"plan": "pro"}, "initech": {"plan": "free"}}}}
    assert passes(event, "group.org.plan", "is", "free")
    assert not passes(event, "group.org.plan", "is not", "free")
    assert passes(event, "group.org.size", "is", "(none)")


def test_of_many_groups_of_a_type_the_first_are_looked_at() -> None:
    groups = {f"g{n}": {"n": n} for n in range(MAX_ELEMENTS + 1)}
    event = {"group_properties": {"org": groups}}
    assert passes(event, "group.org.n", "is", MAX_ELEMENTS - 1)
    assert not passes(event, "group.org.n", "is", MAX_ELEMENTS)


@pytest.mark.parametrize("holder", [None, 7, "text", [], {"p": None}])
def test_an_absent_property_counts_as_none(holder: Any) -> None:
    for name in ("event", "user", "group"):
        event = dict.fromkeys(("event_properties", "user_properties", "groups"), holder)
        event["group_properties"] = holder
        assert passes(event, f"{name}.p", "is", "(none)")
        assert passes(event, f"{name}.p.q", "is", "(none)")


# --- Operators ---


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (100, 100, True),
        (100, "100", True),
        ("100", 100, True),
        (100.0, "100", True),
        (100.5, 100, False),
        (0.5, "0.5", True),
        (True, "true", True),
        ("true", True, True),
        (True, 1, False),
        (1, True, False),
        (0, False, False),
        ("Pro", "pro", False),
        ("", "", True),
        (["a", "b"], "b", True),
        (["a", "b"], "c", False),
        ([1, None, {}], 1, True),
        ([], "(none)", False),
        ("", "(none)", False),
        (None, "(none)", True),
        ("(none)", "(none)", True),
        ({"a": 1}, "a", False),
        (float("nan"), "nan", False),
    ],
)
def test_is_compares_by_text_and_is_not_negates_it(value: Any, wanted: Any, expected: bool) -> None:
    assert holds(value, "is", wanted) is expected
    assert holds(value, "is not", wanted) is not expected


def test_a_number_beyond_pythons_digits_equals_nothing_but_compares() -> None:
    assert not holds(10**5000, "is", "1")
    assert holds(10**5000, ">", 1.5)


def test_is_not_none_matches_present_values() -> None:
    assert holds("x", "is not", "(none)")
    assert not holds(None, "is not", "(none)")


@pytest.mark.parametrize(
    ("value", "op", "values", "expected"),
    [
        ("Big STRASSE", "contains", ["straße"], True),
        ("Big", "contains", ["x", "IG"], True),
        (["one", "two"], "contains", ["TW"], True),
        (1234, "contains", [23], True),
        (None, "contains", ["(none)"], False),
        ("Enterprise", "starts with", ["enter"], True),
        ("Enterprise", "starts with", ["prise"], False),
        (["x", "Yes"], "starts with", ["y"], True),
        (["a", "b", "c"], "set contains", ["a", "c"], True),
        (["a", "b"], "set contains", ["a", "c"], False),
        ("a", "set contains", ["a"], True),
        (None, "set contains", ["(none)"], False),
        ([1, 2], "set contains", ["1"], True),
    ],
)
def test_text_and_set_operators_and_their_negations(
    value: Any, op: str, values: list[Any], expected: bool
) -> None:
    negated = {
        "contains": "does not contain",
        "starts with": "does not start with",
        "set contains": "set does not contain",
    }
    assert holds(value, op, *values) is expected
    assert holds(value, negated[op], *values) is not expected


@pytest.mark.parametrize(
    ("value", "op", "bound", "expected"),
    [
        (100, ">=", 100, True),
        (100, ">", 100, False),
        (99.5, "<", "100", True),
        (" 1e2 ", "<=", 100, True),
        ("-5", "<", 0, True),
        (10**400, ">", 1.5, True),
        ("1_000", ">", 0, False),
        ("1e999", ">", 0, False),
        ("inf", ">", 0, False),
        (float("inf"), ">", 0, False),
        (float("nan"), "<=", 0, False),
        (True, ">", 0, False),
        ([5], ">", 0, False),
        ("", "<", 1, False),
        (None, "<", 1, False),
    ],
)
def test_comparisons_take_numbers_and_texts_of_numbers_only(
    value: Any, op: str, bound: Any, expected: bool
) -> None:
    assert holds(value, op, bound) is expected


def test_one_of_several_bounds_is_enough() -> None:
    assert holds(5, ">", 100, 1)


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/b/c", False),
        ("/a/**", "/a/b/c", True),
        ("*/x", "a/b/x", False),
        ("**/x", "a/b/x", True),
        ("*.*", "a.b.c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("v[0-9]", "v7", True),
        ("v[!0-9]", "v7", False),
        ("v[!0-9]", "vx", True),
        ("v[!0-9]x", "v/x", False),
        ("[]a]", "]", True),
        ("[a-]", "-", True),
        ("[^&&~~||[]", "^", True),
        ("[", "[", True),
        ("[]", "[]", True),
        ("a.c", "abc", False),
        ("ABC", "abc", False),
        ("a*", "a\nb", True),
        ("", "", True),
        ("a", "ab", False),
        ("**a*b", "xa/ab", True),
    ],
)
def test_globs_match_whole_texts_and_only_two_stars_cross_slashes(
    glob: str, text: str, expected: bool
) -> None:
    assert holds(text, "glob", glob) is expected
    assert holds(text, "not glob", glob) is not expected
    assert holds(["no match", text], "glob", glob) is expected


@pytest.mark.parametrize(
    ("value", "op", "wanted", "expected"),
    [
        ("a" * 4_094 + "end", "contains", "en", True),
        ("a" * 4_094 + "end", "contains", "end", False),
        ("a" * 4_094 + "end", "glob", "*en", True),
        ("a" * 4_094 + "end", "starts with", "aa", True),
        ("a" * 5_000, "is", "a" * 5_000, True),
        ("a" * 5_000, "is", "a" * 4_096, False),
        (["a" * 4_090, "the end"], "contains", "the en", True),
        (["a" * 4_090, "the end"], "contains", "end", False),
        ([1] * 999 + [2, 3], "is", 2, True),
        ([1] * 999 + [2, 3], "is", 3, False),
        ([""] * 999 + ["x", "y"], "contains", "x", True),
        ([""] * 999 + ["x", "y"], "contains", "y", False),
        ([1] * 999 + [2, 3], "set contains", 3, False),
        ("0" * 4_095 + "7", ">", 6, True),
        ("0" * 4_096 + "7", ">", 6, False),
    ],
)
def test_operators_look_at_the_beginning_of_long_values(
    value: Any, op: str, wanted: Any, expected: bool
) -> None:
    assert holds(value, op, wanted) is expected


ABSURD = [
    *("9" * 5_000, 10**5_000, -(10**5_000), 1e308, float("nan"), float("-inf"), "\ud800" * 9),
    *("1e-999999", "ß" * 300_000, ["x"] * 100_000, [10**5_000, [1], {}, None], {"p": {"p": 1}}),
]


@pytest.mark.parametrize("op", get_args(Operator))
def test_an_operator_accepts_every_value_that_a_client_can_send(op: str) -> None:
    for value in ABSURD:
        for wanted in (1, 1.5, -1e308, "7"):
            assert holds(value, op, wanted) in (True, False)


def test_whole_numbers_of_thousands_of_digits_compare_with_any_number() -> None:
    assert holds(10**5_000, ">", 1e308)
    assert holds(-(10**5_000), "<", -1e308)
    assert not holds("9" * 4_000, ">", 0), "as a text it is beyond all numbers"


# --- Settings ---


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (Selector([]), r"\[1\].types: empty"),
        (Selector([""]), r"\[1\].types: an event type is empty"),
        (Selector(["T"], [clause("", "is", 1)]), r"\[1\].where\[0\] .*no name"),
        (Selector(["T"], [clause("event", "is", 1)]), "no name"),
        (Selector(["T"], [clause("user.", "is", 1)]), "no name"),
        (Selector(["T"], [clause("event.p", "is")]), r"\('event.p' is\): values is empty"),
        (Selector(["T"], [clause("event.p", "<", "many")]), "'many' is not a number"),
        (Selector(["T"], [clause("event.p", "<", True)]), "True is not a number"),
        (Selector(["T"], [clause("event.p", "<", float("nan"))]), "nan is not a number"),
        (Selector(["T"], [clause("event.p", "is", float("inf"))]), "not a finite number"),
        (Selector(["T"], [clause("event.p", "contains", "")]), "a value is empty"),
        (Selector(["T"], [clause("event.p", "glob", "[z-a]")]), "z-a is upside down"),
        (Selector(["T"], [clause("event.p", "like", 1)]), "op is none of is, is not"),
        (
            Selector(["T"], [clause("country", "is", 1), clause("user.x", ">", "x")]),
            r"\[1\].where\[1\] ",
        ),
    ],
)
def test_settings_that_can_mean_nothing_are_refused_by_name(
    selector: Selector, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Selection([Selector(["fine"]), selector])


def test_selectors_are_read_from_settings_with_their_types_kept() -> None:
    raw = {
        "types": ["*"],
        "where": [{"property": "event.p", "op": "is", "values": [1, 0.5, "x", True]}],
    }
    assert msgspec.convert(raw, Selector).where[0].values == [1, 0.5, "x", True]


@pytest.mark.parametrize(
    "wrong", [{"op": "like"}, {"values": [None]}, {"value": [1]}, {"property": 1}]
)
def test_unknown_operators_keys_and_types_in_settings_are_refused(wrong: dict[str, Any]) -> None:
    raw = {"property": "event.p", "op": "is", "values": [1], **wrong}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(raw, Clause)
