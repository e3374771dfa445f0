"""Amplitude's user property operations, one by one."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from amplitude_intercom.engine.rules.operations import split
from amplitude_intercom.engine.rules.user_properties import MAX_KEPT_BYTES, apply


def after(payload: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return apply(split(payload).operations, state)[0]


@pytest.mark.parametrize(
    ("payload", "state", "expected"),
    [
        ({"$set": {"p": {"deep": [1]}}}, {"p": 1, "q": 2}, {"p": {"deep": [1]}, "q": 2}),
        ({"$set": {"p": None}}, {"p": 1}, {"p": 1}),
        ({"$set": {"p": None}}, {}, {}),
        ({"$setOnce": {"p": None}}, {}, {}),
        ({"$unset": {"p": "-", "gone": "-"}}, {"p": 1, "q": 2}, {"q": 2}),
        ({"$clearAll": "-"}, {"p": 1, "q": 2}, {}),
        ({"$clearAll": "-", "$set": {"p": 3}}, {"p": 1, "q": 2}, {"p": 3}),
        ({"$unset": {"p": "-"}, "$set": {"p": 3}}, {"p": 1}, {"p": 3}),
        ({"$setOnce": {"p": 1, "q": 1, "r": 1}}, {"p": 0, "q": None}, {"p": 0, "q": 1, "r": 1}),
        ({"$add": {"p": 2, "q": 2, "r": -1}}, {"p": 1, "q": None}, {"p": 3, "q": 2, "r": -1}),
        ({"$add": {"p": 0.5}}, {"p": 1}, {"p": 1.5}),
        ({"$append": {"p": 3}}, {"p": [1]}, {"p": [1, 3]}),
        ({"$append": {"p": [1, 1]}}, {"p": [1]}, {"p": [1, 1, 1]}),
        ({"$append": {"p": 3}}, {"p": 1}, {"p": [1, 3]}),
        ({"$append": {"p": 3}}, {}, {"p": [3]}),
        ({"$prepend": {"p": [2, 3]}}, {"p": [1]}, {"p": [2, 3, 1]}),
        ({"$prepend": {"p": 2}}, {"p": "x"}, {"p": [2, "x"]}),
        ({"$preInsert": {"p": [3, 1, 2, 3]}}, {"p": [1]}, {"p": [3, 2, 1]}),
        ({"$postInsert": {"p": [3, 1, 2, 3]}}, {"p": [1]}, {"p": [1, 3, 2]}),
        ({"$postInsert": {"p": 1}}, {"p": 1}, {"p": [1]}),
        ({"$preInsert": {"p": 2}}, {"p": 1}, {"p": [2, 1]}),
        ({"$postInsert": {"p": [True, "1", 1.0]}}, {"p": [1]}, {"p": [1, True, "1"]}),
        ({"$postInsert": {"p": [{"a": True}]}}, {"p": [{"a": 1}]}, {"p": [{"a": 1}, {"a": True}]}),
        ({"$postInsert": {"p": [{"a": [1]}]}}, {"p": [{"a": [1]}]}, {"p": [{"a": [1]}]}),
        ({"$remove": {"p": 1}}, {"p": [1, 2, 1, True]}, {"p": [2, True]}),
        ({"$remove": {"p": [1, [2]]}}, {"p": [1, [2], 3]}, {"p": [3]}),
        ({"$remove": {"p": 1, "q": 1}}, {"p": 1, "q": 2}, {"p": [], "q": 2}),
        ({"$remove": {"p": 1, "q": 1}}, {"q": None}, {"q": None}),
    ],
)
def test_each_operation_does_as_amplitude_documents(
    payload: dict[str, Any], state: dict[str, Any], expected: dict[str, Any]
) -> None:
    new, problems = apply(split(payload).operations, state)
    assert repr(new) == repr(expected)  # 1, 1.0 and True are equal to Python
    assert problems == ()


@pytest.mark.parametrize(
    ("argument", "old", "why"),
    [
        (1, "text", "the old value is not a finite number"),
        (1, True, "the old value is not a finite number"),
        (1, [1], "the old value is not a finite number"),
        ("1", 1, "the argument is not a finite number"),
        (True, 1, "the argument is not a finite number"),
        (None, 1, "the argument is not a finite number"),
        (float("nan"), 1, "the argument is not a finite number"),
        (1e308, 1e308, "the sum is out of range"),
        (0.5, 10**400, "the sum is out of range"),
    ],
)
def test_add_refuses_a_non_number_and_keeps_the_old_value(
    argument: Any, old: Any, why: str
) -> None:
    new, problems = apply({"$add": {"p": argument, "q": 1}}, {"p": old})
    assert new == {"p": old, "q": 1}
    assert problems == (f"$add p: {why}",)


def test_one_payload_runs_through_all_operations_in_order() -> None:
    payload = {
        "$remove": {"p": 9},
        "$postInsert": {"p": [5, 9]},
        "$preInsert": {"p": 4},
        "$prepend": {"p": 3},
        "$append": {"p": 2},
        "$add": {"p": 1},
        "$setOnce": {"p": 100},
        "$set": {"p": 0},
        "$unset": {"p": "-"},
        "$clearAll": "-",
    }
    assert after(payload, {"p": "old", "q": 1}) == {"p": [4, 3, 1, 2, 5]}


def test_problems_name_no_values_and_cut_long_names() -> None:
    (problem,) = apply({"$add": {"n" * 5000: "secret"}}, {})[1]
    assert "secret" not in problem
    assert len(problem) < 200


def test_neither_operations_nor_state_are_changed() -> None:
    operations = {"$append": {"p": [2]}, "$postInsert": {"q": [3]}, "$remove": {"r": 1}}
    state = {"p": [1], "q": [1], "r": [1]}
    new, _ = apply(operations, state)
    new["p"].append("later")
    assert operations == {"$append": {"p": [2]}, "$postInsert": {"q": [3]}, "$remove": {"r": 1}}
    assert state == {"p": [1], "q": [1], "r": [1]}


def test_values_nested_beyond_the_stack_are_refused() -> None:
    def nested() -> list[Any]:
        value: list[Any] = []
        for _ in range(50_000):
            value = [value]
        return value

    new, [problem] = apply({"$postInsert": {"p": [nested(), 1]}}, {"p": [2]})
    assert (new, problem.partition(":")[0]) == ({"p": [2, 1]}, "$postInsert p")
    assert apply({"$set": {"p": {"a": nested()}}}, {"p": 1})[0] == {"p": 1}


@pytest.mark.parametrize(
    ("op", "argument"),
    [
        ("$set", 10**5_000),
        ("$set", float("nan")),
        ("$set", {"a": 10**5_000}),
        ("$set", {"a": "x" * 5_000}),
        ("$set", {"a": "\ud800"}),
        ("$setOnce", float("inf")),
        ("$add", 10**4_299),
        ("$add", 2**53),
        ("$add", float("inf")),
    ],
    ids=map(str, range(9)),  # not by value: even these cannot be written
)
def test_a_value_too_large_to_remember_is_refused_and_named(op: str, argument: Any) -> None:
    new, [problem] = apply({op: {"p": argument}}, {})
    assert new == {}
    assert problem.startswith(f"{op} p: ")


@pytest.mark.parametrize("op", ["$append", "$prepend", "$preInsert", "$postInsert"])
def test_a_list_grows_no_further_than_is_ever_sent(op: str) -> None:
    state: dict[str, Any] = {}
    for n in range(1_000):
        state, problems = apply({op: {"p": [f"value {n}"]}}, state)
    assert len(json.dumps(state["p"], separators=(",", ":"))) <= MAX_KEPT_BYTES
    assert len(", ".join(state["p"])) > 255
    assert [problem.partition(":")[0] for problem in problems] == [f"{op} p"]


def test_a_text_is_remembered_as_far_as_amplitude_keeps_it() -> None:
    assert apply({"$set": {"p": "x" * 5_000}}, {})[0] == {"p": "x" * 1_024}
    assert apply({"$set": {"p": "a\ud83d"}}, {})[0] == {"p": "a\ufffd"}


def test_a_list_without_end_takes_no_time_to_insert() -> None:
    argument = [[n] for n in range(100_000)]
    new, _ = apply({"$postInsert": {"p": argument}}, {})
    assert apply({"$postInsert": {"p": argument}, "$remove": {"p": argument}}, new)[0] == {"p": []}


@pytest.mark.parametrize("op", ["$preInsert", "$postInsert", "$remove"])
def test_lists_of_lists_and_objects_take_time_by_their_length_and_not_by_its_square(
    op: str,
) -> None:
    def took_s(count: int) -> float:
        lists = [[n] if n % 2 else {"": n} for n in range(count)]
        before = {f"p{i}": lists for i in range(6_400 // count)}
        asked = {op: dict.fromkeys(before, lists[::-1])}
        started_s = time.process_time()
        apply(asked, before)
        return time.process_time() - started_s

    assert min(took_s(400) for _ in range(5)) < 4 * min(took_s(25) for _ in range(5))


# --- names with dots ---
