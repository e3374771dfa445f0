"""The model that histories of contacts are judged by."""

from __future__ import annotations

from typing import Any

import pytest

from support.contact_model import UNSURE, Held, Properties, Update, apply, as_field, moved, perhaps

NAMES = ("plan", "visits", "tags")


def after(*payloads: dict[str, Any], start: Properties | None = None, base: Any = None) -> Any:
    """Return all values after payloads that came in order."""
    found = start or {}
    for n, payload in enumerate(payloads):
        found = apply(Update(payload, NAMES, n, newer_wins=False), found, lambda _: base)
    return {name: held.value for name, held in found.items()}


def at(time_s: float, payload: dict[str, Any], found: Properties) -> Properties:
    return apply(Update(payload, NAMES, time_s, newer_wins=True), found, lambda _: None)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"$add": {"visits": 2}}, {"visits": 7}),
        ({"$setOnce": {"visits": 2}}, {"visits": 5}),
        ({"$set": {"visits": 1}, "$add": {"visits": 2}}, {"visits": 3}),
        ({"visits": 1, "$set": {"visits": 2}}, {"visits": 2}),
        ({"$set": {"visits": None, "other": 1}}, {}),
        ({"$append": {"visits": [5, 6]}}, {"visits": [5, 5, 6]}),
        ({"$preInsert": {"visits": [5, 6]}}, {"visits": [6, 5]}),
        ({"$remove": {"visits": 5}}, {"visits": []}),
    ],
)
def test_operations_follow_amplitudes_description(
    payload: dict[str, Any], expected: object
) -> None:
    assert after(payload, base=5) == expected


def test_a_set_that_is_older_than_the_last_one_is_ignored_and_others_count() -> None:
    found = at(10, {"$set": {"plan": "new", "visits": 1}}, {})
    found = at(9, {"$set": {"plan": "old"}, "$add": {"visits": 1}}, found)
    assert (found["plan"].value, found["visits"].value) == ("new", 2)


def test_a_set_between_the_last_one_and_an_operation_is_open_until_the_next() -> None:
    found = at(1, {"$set": {"visits": 1}}, {})
    found = at(9, {"$add": {"visits": 1}}, found)
    found = at(5, {"$set": {"visits": 7}}, found)
    assert found["visits"].value is UNSURE
    assert at(10, {"$set": {"visits": 7}}, found)["visits"].value == 7


def test_a_value_written_to_another_contact_is_open_until_a_new_one_is_set() -> None:
    found = moved({"plan": Held("pro"), "visits": Held(1)}, NAMES)
    values = after({"$set": {"plan": "pro", "visits": 2}}, {"$add": {"visits": 1}}, start=found)
    assert values == {"plan": UNSURE, "visits": 3, "tags": UNSURE}


def test_an_update_that_may_have_been_applied_leaves_its_own_properties_open() -> None:
    update = Update({"$add": {"visits": 1}}, NAMES, 0, newer_wins=False)
    found = perhaps(update, {"plan": Held("pro"), "visits": Held(1)})
    assert (found["plan"].value, found["visits"].value) == ("pro", UNSURE)


def test_a_list_is_one_text_on_a_contact() -> None:
    assert as_field(["a", 1, True, 2.5]) == "a, 1, true, 2.5"
    assert as_field([]) is None
