"""Any selectors on any event: what is selected is what a naive reading of the rules says."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any, get_args

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.rules.verdicts import Drop, Keep
from amplitude_intercom.engine.setting_types import Operator
from amplitude_intercom.engine.settings import Clause, Selector, Sync
from amplitude_intercom.transports.amplitude_heads import decode_head

NEGATED = {
    "is not": "is",
    "does not contain": "contains",
    "does not start with": "starts with",
    "set does not contain": "set contains",
    "not glob": "glob",
}


# --- The reference ---


def expected(selectors: list[Selector], event_type: str, event: dict[str, Any]) -> bool:
    for selector in selectors:
        typed = event_type in selector.types or "*" in selector.types or "_all" in selector.types
        if typed and all(clause_holds(clause, event) for clause in selector.where):
            return True
    return False


def clause_holds(clause: Clause, event: dict[str, Any]) -> bool:
    if clause.op in NEGATED:
        return not positive_holds(NEGATED[clause.op], clause, event)
    return positive_holds(clause.op, clause, event)


def positive_holds(op: str, clause: Clause, event: dict[str, Any]) -> bool:
    values = [value for value in property_values(clause.property, event) if value is not None]
    if not values:
        return op == "is" and "(none)" in clause.values
    if op == "set contains":
        return any(all(one_holds("is", held, want) for want in clause.values) for held in values)
    return any(one_holds(op, held, want) for held in values for want in clause.values)


def property_values(name: str, event: dict[str, Any]) -> list[Any]:
    parts = name.split(".", 1)
    if parts[0] == "event":
        return [nested(event.get("event_properties"), parts[1])]
    if parts[0] == "user":
        return [nested(as_set(event.get("user_properties")), parts[1])]
    if parts[0] != "group":
        return [nested_field(event, name)]
    names = nested_one(event.get("groups"), parts[1])
    if names is not None and names != []:
        return names if isinstance(names, list) and len(names) == 1 else [names]
    if "." not in parts[1]:
        return []
    kind, prop = parts[1].split(".", 1)
    groups = nested_one(event.get("group_properties"), kind)
    return [nested(g, prop) for g in groups.values()] if isinstance(groups, dict) else []


def nested_one(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, dict) else None


def nested(holder: Any, name: str) -> Any:
    value = nested_field(holder, name)
    if value is None and isinstance(holder, dict):
        inner = {
            k.removeprefix(f"{name}."): v
            for k, v in holder.items()
            if k[: len(name) + 1] == f"{name}."
        }
        return {k: v for k, v in inner.items() if v is not None} or None
    return value


def nested_field(holder: Any, name: str) -> Any:
    parts = name.split(".")
    ways = [nested_one(holder, name)]
    for n in range(1, len(parts)):
        ways.append(nested(nested_one(holder, ".".join(parts[:n])), ".".join(parts[n:])))
    return next((value for value in ways if value is not None), None)


def as_set(properties: Any) -> Any:
    sets = nested_one(properties, "$set")
    return {**properties, **sets} if isinstance(sets, dict) else properties


def one_holds(op: str, held: Any, want: Any) -> bool:
    if op in {"<", "<=", ">", ">="}:
        left, right = number(held), number(want)
        if left is None or right is None:
            return False
        return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]
    if isinstance(held, list):
        return any(
            not isinstance(element, list) and one_holds(op, element, want) for element in held
        )
    if held is None or isinstance(held, dict):
        return False
    left_text, right_text = text(held), text(want)
    if op == "is":
        return left_text == right_text
    if op == "contains":
        return right_text.casefold() in left_text.casefold()
    if op == "starts with":
        return left_text.casefold()[: len(right_text.casefold())] == right_text.casefold()
    assert op == "glob"
    return glob_matches(right_text, left_text)


def text(value: Any) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float) and value == math.floor(value):
        return str(math.floor(value))
    return str(value)


def number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9.]+", value):
        try:
            return float(value)
        except ValueError:
            return None
    return None


@cache
def glob_matches(glob: str, string: str) -> bool:
    if not glob:
        return not string
    if glob.startswith("**"):
        return glob_matches(glob[2:], string) or (string != "" and glob_matches(glob, string[1:]))
    if glob[0] == "*":
        crosses = string != "" and string[0] != "/" and glob_matches(glob, string[1:])
        return crosses or glob_matches(glob[1:], string)
    if not string:
        return False
    if glob.startswith("[ab]"):
        return string[0] in "ab" and glob_matches(glob[4:], string[1:])
    if glob.startswith("[!a]"):
        return string[0] not in "a/" and glob_matches(glob[4:], string[1:])
    if glob.startswith("[b-c/]"):
        return string[0] in "bc" and glob_matches(glob[6:], string[1:])
    if glob[0] == "?":
        return string[0] != "/" and glob_matches(glob[1:], string[1:])
    return glob[0] == string[0] and glob_matches(glob[1:], string[1:])


# --- Anything, from small alphabets, so that matches are as frequent as mismatches ---

TYPES = st.sampled_from(["A", "B", "C"])
NAMES = st.sampled_from(["p", "q", "p.q"])
TEXTS = st.sampled_from(
    ["", "a", "A", "b", "ab", "Ba", "(none)", "1", "1.5", "100", "1.", ".", "true", "ß", "SS"]
)
SCALARS = TEXTS | st.sampled_from([0, 1, 2, 100, -1, 1.0, 1.5, 1e22, True, False])
HELD = st.recursive(
    SCALARS | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("pq"), inner, max_size=2)
    ),
    max_leaves=4,
)
HOLDERS = st.none() | HELD | st.dictionaries(NAMES, HELD, max_size=3)
SETS = st.fixed_dictionaries({"$set": HOLDERS}, optional={"p": HELD, "p.q": HELD})
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "event_properties": HOLDERS,
        "user_properties": HOLDERS | SETS,
        "groups": HOLDERS,
        "group_properties": st.none() | st.dictionaries(st.sampled_from("pq"), HOLDERS, max_size=2),
        "country": HELD,
        "p": HELD,
    },
)
PROPERTIES = st.sampled_from(["country", "p", "p.q"]) | st.builds(
    "{}.{}".format, st.sampled_from(["event", "user", "group"]), NAMES | st.just("p.q.p")
)
GLOB_TOKENS = ["*", "*", "**", "?", "[ab]", "[!a]", "[b-c/]", "a", "b", "/", "."]
GLOBS = st.lists(st.sampled_from(GLOB_TOKENS), max_size=7).map("".join)
NUMBERS = st.sampled_from([0, 1, 1.5, 100, -1, "1", "1.5"])


@st.composite
def clauses(draw: st.DrawFn) -> Clause:
    op = draw(st.sampled_from(get_args(Operator)))
    values: st.SearchStrategy[Any] = SCALARS
    if op in {"<", "<=", ">", ">="}:
        values = NUMBERS
    elif "glob" in op:
        values = GLOBS
    elif "with" in op or (op.endswith("contain") or op == "contains"):
        values = SCALARS.filter(lambda value: value != "")
    return Clause(draw(PROPERTIES), op, draw(st.lists(values, min_size=1, max_size=3)))


SELECTORS = st.lists(
    st.builds(
        Selector,
        st.lists(TYPES | st.sampled_from(["*", "_all"]), min_size=1, max_size=2),
        st.lists(clauses(), max_size=3),
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(SELECTORS, TYPES, EVENTS)
def test_the_compiled_selection_agrees_with_a_naive_reading_of_the_rules(
    selectors: list[Selector], event_type: str, event: dict[str, Any]
) -> None:
    predicate = Selection(selectors).lookup(event_type)
    selected = predicate is not None and predicate.matches(event)
    assert selected is expected(selectors, event_type, event)


@settings(max_examples=300, deadline=None)
@given(SELECTORS, TYPES, EVENTS)
def test_an_explanation_agrees_with_the_selection_and_with_a_naive_reading(
    selectors: list[Selector], event_type: str, event: dict[str, Any]
) -> None:
    selection = Selection(selectors)
    predicate = selection.lookup(event_type)
    explained = selection.explain(event_type, event)
    selected = predicate is not None and predicate.matches(event)
    assert any(one.held for one in explained) is selected
    assert [one.at for one in explained] == list(range(len(selectors)))
    for one, selector in zip(explained, selectors, strict=True):
        assert one.has_type is not {event_type, "*", "_all"}.isdisjoint(selector.types)
        for clause, wanted in zip(one.where, selector.where, strict=True):
            assert (clause.property, clause.wanted) == (wanted.property, wanted.values)
            assert clause.held is clause_holds(wanted, event)
            values = [v for v in property_values(wanted.property, event) if v is not None]
            assert bool(clause.found) is bool(values)


@settings(max_examples=300, deadline=None)
@given(clauses(), HELD | st.none())
@example(Clause("event.p", "is", ["a", "(none)"]), None)
@example(Clause("event.p", "is not", ["a", "(none)"]), None)
def test_one_clause_on_one_value_agrees_with_a_naive_reading_of_the_rules(
    clause: Clause, value: Any
) -> None:
    clause = Clause("event.p", clause.op, clause.values)
    predicate = Selection([Selector(["A"], [clause])]).lookup("A")
    event = {"event_properties": {"p": value}}
    assert predicate is not None
    assert predicate.matches(event) is clause_holds(clause, event)


@settings(max_examples=1500, deadline=None)
@given(GLOBS, st.text("ab/.", max_size=10))
@example("**a*b", "a/ab")
@example("*a**b*", "aab/b")
def test_a_glob_matches_exactly_like_an_exhaustive_search(glob: str, string: str) -> None:
    predicate = Selection([Selector(["A"], [Clause("p", "glob", [glob])])]).lookup("A")
    assert predicate is not None
    assert predicate.matches({"p": string}) is glob_matches(glob, string)


@settings(max_examples=200, deadline=None)
@given(SELECTORS, TYPES, EVENTS)
def test_unneeded_properties_can_be_left_out_of_the_event(
    selectors: list[Selector], event_type: str, event: dict[str, Any]
) -> None:
    predicate = Selection(selectors).lookup(event_type)
    if predicate is not None:
        rest = {key: value for key, value in event.items() if key in predicate.needed}
        assert predicate.matches(rest) is predicate.matches(event)


UNSELECTED = (DropReason.NOT_SELECTED, DropReason.FILTERED_OUT)


def sync_with(selectors: list[Selector]) -> Sync:
    table = {
        "name": "explained",
        "amplitude_api_keys": ["key"],
        "intercom": {"access_token": "token"},
    }
    [sync] = from_table({"data_dir": "data", "sync": [table]}).sync
    return replace(sync, events=replace(sync.events, select=selectors))


@settings(max_examples=300, deadline=None)
@given(SELECTORS, TYPES | st.just("$identify"), EVENTS)
def test_an_event_is_kept_where_a_selector_has_held(
    selectors: list[Selector], event_type: str, event: dict[str, Any]
) -> None:
    raw = json.dumps({**event, "event_type": event_type, "user_id": "mira-okafor"}).encode()
    admission = SyncRules(sync_with(selectors)).admission
    verdict = admission.judge(decode_head(raw), raw)
    explained = admission.explain(raw)
    if event_type == "$identify":
        assert explained == []
    elif isinstance(verdict, Drop):
        assert verdict.reason in UNSELECTED
        assert not any(one.held for one in explained)
    elif isinstance(verdict, Keep):
        assert any(one.held for one in explained)
