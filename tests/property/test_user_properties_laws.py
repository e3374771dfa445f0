"""Laws of user property operations, for whatever JSON can say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.rules.operations import ORDER, select, split
from amplitude_intercom.engine.rules.user_properties import apply

NAMES = st.sampled_from(["p", "q", "r"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(), inner),
    max_leaves=6,
)
STATES = st.dictionaries(NAMES, JSON, max_size=3)
ARGUMENTS = st.dictionaries(NAMES, JSON, max_size=3) | JSON
PAYLOADS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(ORDER[1:], ARGUMENTS)
    | {"$clearAll": st.just("-") | JSON, "$typo": ARGUMENTS, "p": JSON, "q": JSON},
)
STATELESS = {"$clearAll", "$unset", "$set"}
QUICK = settings(max_examples=120, deadline=None)


def after(payload: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return apply(split(payload).operations, state)[0]


@QUICK
@given(JSON | PAYLOADS, STATES)
def test_nothing_json_can_say_raises(payload: Any, state: dict[str, Any]) -> None:
    operations = split(payload).operations
    apply(operations, state)
    apply(select(operations, {"p"}), state)


@QUICK
@given(PAYLOADS, STATES)
def test_the_arguments_are_never_changed_and_the_outcome_is_the_same_again(
    payload: dict[str, Any], state: dict[str, Any]
) -> None:
    before = copy.deepcopy((payload, state))
    operations = split(payload)
    kept = copy.deepcopy(operations)
    first = apply(operations.operations, state)
    assert (payload, state) == before
    assert operations == kept
    assert split(payload) == operations
    assert apply(operations.operations, state) == first


@QUICK
@given(PAYLOADS, STATES, st.data())
def test_the_order_of_keys_does_not_matter(
    payload: dict[str, Any], state: dict[str, Any], data: st.DataObject
) -> None:
    shuffled = {key: payload[key] for key in data.draw(st.permutations(list(payload)))}
    assert split(shuffled) == split(payload)
    shuffled_inside = {
        op: dict(reversed(argument.items())) if isinstance(argument, dict) else argument
        for op, argument in shuffled.items()
        if op.startswith("$")
    }
    plain = {name: value for name, value in payload.items() if not name.startswith("$")}
    turned = split({**shuffled_inside, **plain}).operations
    assert apply(turned, state) == apply(split(payload).operations, state)


@QUICK
@given(PAYLOADS, STATES)
def test_operations_in_one_payload_equal_the_same_operations_one_by_one(
    payload: dict[str, Any], state: dict[str, Any]
) -> None:
    operations = split(payload).operations
    expected: dict[str, Any] = state
    problems: tuple[str, ...] = ()
    for op in ORDER:
        if op in operations:
            expected, more = apply({op: operations[op]}, expected)
            problems += more
    assert apply(operations, state) == (expected, tuple(sorted(problems)))


@pytest.mark.parametrize(
    "op", ["$unset", "$set", "$setOnce", "$preInsert", "$postInsert", "$remove"]
)
@QUICK
@given(st.dictionaries(NAMES, JSON, max_size=3), STATES)
def test_absolute_operations_are_idempotent(
    op: str, argument: dict[str, Any], state: dict[str, Any]
) -> None:
    once = after({op: argument}, state)
    assert after({op: argument}, once) == once


@QUICK
@given(PAYLOADS, STATES, st.sets(NAMES))
def test_selecting_before_applying_equals_applying_before_selecting(
    payload: dict[str, Any], state: dict[str, Any], names: set[str]
) -> None:
    operations = split(payload).operations
    whole = after(payload, state)
    few = apply(select(operations, names), state)[0]
    assert {n: few[n] for n in names & few.keys()} == {n: whole[n] for n in names & whole.keys()}


@QUICK
@given(PAYLOADS, STATES, STATES)
def test_set_unset_and_clear_do_not_depend_on_the_old_values_of_their_properties(
    payload: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    operations = {
        op: argument for op, argument in split(payload).operations.items() if op in STATELESS
    }
    touched = {
        name
        for op, names in operations.items()
        if op != "$clearAll"
        for name, argument in names.items()
        if op == "$unset" or argument is not None
    }
    first, second = apply(operations, one)[0], apply(operations, other)[0]
    assert {n: first[n] for n in touched & first.keys()} == {
        n: second[n] for n in touched & second.keys()
    }


@QUICK
@given(STATES, NAMES, JSON | st.integers())
def test_an_addition_is_done_or_is_reported_and_changes_nothing(
    state: dict[str, Any], name: str, argument: Any
) -> None:
    new, problems = apply({"$add": {name: argument}}, state)
    if problems:
        assert new == state
    else:
        old = state.get(name)
        assert new == {**state, name: argument if old is None else old + argument}


def same(first: Any, second: Any) -> bool:
    """Equality as JSON has it, by going through both values side by side."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return isinstance(first, bool) is isinstance(second, bool) and bool(first == second)


ALIKE = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 0.0, 1.0, -0.0, "", "1", "list", 2**60]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["", "1", "a"]), inner)
    ),
    max_leaves=5,
)


@QUICK
@given(st.lists(ALIKE, max_size=6), st.lists(ALIKE, max_size=6))
def test_a_list_contains_values_that_are_equal_as_json(old: list[Any], values: list[Any]) -> None:
    new: list[Any] = []
    for value in values:
        if not any(same(value, other) for other in [*old, *new]):
            new.append(value)
    left = [value for value in old if not any(same(value, other) for other in values)]
    assert repr(after({"$postInsert": {"p": values}}, {"p": old})["p"]) == repr([*old, *new])
    assert repr(after({"$preInsert": {"p": values}}, {"p": old})["p"]) == repr([*new, *old])
    assert repr(after({"$remove": {"p": values}}, {"p": old})["p"]) == repr(left)
