"""User property operations, read out of a payload and selected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amplitude_intercom.engine.rules.operations import (
    MAX_PROBLEMS,
    ORDER,
    Operations,
    select,
    split,
)


def test_plain_keys_act_like_set_beside_operations() -> None:
    payload = {"plan": "pro", "$set": {"seats": 3}, "$add": {"logins": 1}}
    assert split(payload) == Operations(
        {"$set": {"plan": "pro", "seats": 3}, "$add": {"logins": 1}}
    )


def test_an_explicit_set_wins_over_a_plain_key() -> None:
    assert split({"$set": {"p": 1}, "p": 2}).operations == {"$set": {"p": 1}}
    assert split({"p": 2, "$set": {"p": 1}}).operations == {"$set": {"p": 1}}


def test_operations_come_out_in_the_order_of_application() -> None:
    payload = {op: "-" if op == "$clearAll" else {"p": 1} for op in reversed(ORDER)}
    assert tuple(split(payload).operations) == ORDER


def test_unknown_operations_are_left_out_and_reported() -> None:
    assert split({"$typo": {"p": 1}, "p": 2}) == Operations(
        {"$set": {"p": 2}}, ("$typo: not an operation",)
    )


@pytest.mark.parametrize("argument", [None, 1, "x", ["p"], True])
def test_a_malformed_argument_is_left_out_and_reported(argument: Any) -> None:
    assert split({"$set": argument}) == Operations(
        problems=("$set: the argument is not an object",)
    )


@pytest.mark.parametrize("argument", [None, {}, {"p": "-"}, True, "", ["-"]])
def test_only_the_documented_argument_clears_all(argument: Any) -> None:
    assert split({"$clearAll": argument}) == Operations(
        problems=('$clearAll: the argument is not "-"',)
    )


def test_operations_on_nothing_are_left_out_in_silence() -> None:
    assert split({"$set": {}, "$unset": {}}) == Operations()
    assert split(None) == Operations()


def test_a_payload_that_is_no_object_is_reported() -> None:
    assert split(["p"]) == Operations(problems=("user_properties: not an object",))


def test_only_selected_properties_are_kept() -> None:
    operations = {"$set": {"a": 1, "b": 2}, "$add": {"b": 1}}
    assert select(operations, {"a"}) == {"$set": {"a": 1}}


def test_a_null_that_is_set_is_not_kept_and_one_that_is_unset_is() -> None:
    nulls = {"p": None, "q": 1}
    assert select({"$set": nulls, "$setOnce": nulls}, ["p"]) == {}
    assert select({"$set": nulls}, ["p", "q"]) == {"$set": {"q": 1}}
    assert select({"$unset": nulls}, ["p"]) == {"$unset": {"p": None}}


def test_clear_all_is_kept_for_the_selected_properties() -> None:
    assert select({"$clearAll": "-", "$set": {"a": 1}}, {"b"}) == {"$clearAll": "-"}


def test_nothing_selected_leaves_nothing_even_of_clear_all() -> None:
    assert select({"$clearAll": "-", "$set": {"a": 1}}, ()) == {}


def test_few_problems_of_many_are_named_and_can_be_written() -> None:
    problems = split({f"$\ud800{n}": 1 for n in range(10_000)}).problems
    assert len(problems) == MAX_PROBLEMS
    assert json.dumps(problems, ensure_ascii=False).encode()


@pytest.mark.parametrize("op", [op for op in ORDER if op != "$clearAll"])
def test_a_property_is_found_nested_or_dotted_in_every_operation(op: str) -> None:
    for argument in ({"address": {"city": 1}}, {"address.city": 1}, {"address.city": 1, "x": 2}):
        assert select({op: argument}, ["address.city"]) == {op: {"address.city": 1}}


def test_a_property_goes_with_the_object_that_holds_it() -> None:
    unset = {"$unset": {"address": "-"}}
    assert select(unset, ["address.city", "city"]) == {"$unset": {"address.city": "-"}}
    assert select({"$set": {"address": "-"}}, ["address.city"]) == {}
