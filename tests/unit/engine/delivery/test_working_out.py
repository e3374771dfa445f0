"""What updates come to: absolute values, of properties and of times that are known."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.delivery.contacts.drafts import Draft, cannot_be_created, needs_base
from amplitude_intercom.engine.delivery.contacts.learned_contact import with_base
from amplitude_intercom.engine.delivery.contacts.working_out import work_out
from amplitude_intercom.engine.envelope import ContactUpdate, Identity
from amplitude_intercom.engine.spool.known_contacts import Held, Known
from support.plans import ANY, rules

RULES = rules(users={"properties": ["plan", "visits", "tags"]}).contacts
PLAN, VISITS, TAGS = (f"custom_attributes.{name}" for name in ("plan", "visits", "tags"))


def update(at_ms: int = 1, /, **operations: Any) -> ContactUpdate:
    spelt = {f"${op}": argument for op, argument in operations.items()}
    return ContactUpdate(Identity("external_id", "mira"), spelt, 1, at_ms, by_time=True)


def worked_out(
    *updates: ContactUpdate,
    held: dict[str, Held] | None = None,
    known: Known | None = None,
    newer_wins: bool = True,
) -> Draft:
    held = {} if held is None else held
    return work_out(RULES, ANY, updates, held, known or Known(), newer_wins=newer_wins)


@pytest.mark.parametrize(
    ("operations", "held", "needs"),
    [
        ({"set": {"plan": "pro"}}, {}, False),
        ({"unset": {"plan": "-"}}, {}, False),
        ({"clearAll": "-"}, {}, False),
        ({"setOnce": {"plan": "pro"}}, {}, True),
        ({"add": {"visits": 1}}, {}, True),
        ({"add": {"visits": 1}}, {"plan": Held("pro")}, True),
        ({"add": {"visits": 1}}, {"visits": Held(None)}, False),
        ({"remove": {"tags": "a"}}, {"tags": Held(["a"])}, False),
    ],
)
def test_a_base_is_needed_where_an_operation_counts_on_from_an_unknown_value(
    operations: dict[str, Any], held: dict[str, Held], needs: bool
) -> None:
    assert needs_base([update(**operations)], held) is needs


@pytest.mark.parametrize(
    ("op", "cannot"),
    [("add", True), ("append", True), ("prepend", True)]
    + [(op, False) for op in ("set", "setOnce", "unset", "preInsert", "postInsert", "remove")],
)
def test_an_operation_that_would_count_twice_is_not_part_of_a_create(op: str, cannot: bool) -> None:
    assert cannot_be_created([update(**{op: {"visits": 1}})]) is cannot


def test_values_are_absolute_and_the_same_however_often_they_are_worked_out() -> None:
    held = {"visits": Held(41)}
    once = worked_out(update(add={"visits": 1}), held=held)
    assert once.changes == {VISITS: 42}
    unsure = Known("5f", unsure=[VISITS])
    assert worked_out(update(add={"visits": 1}), held=held, known=unsure) == once


def test_a_field_is_written_where_it_differs_or_is_unsure() -> None:
    known = Known("5f", fields={PLAN: "pro", VISITS: 1})
    same = update(set={"plan": "pro", "visits": 1})
    assert worked_out(same, known=known).changes == {}
    unsure = Known("5f", fields=known.fields, unsure=[PLAN])
    assert worked_out(same, known=unsure).changes == {PLAN: "pro"}
    assert worked_out(update(set={"visits": True}), known=known).changes == {VISITS: True}


def test_a_cleared_property_is_written_as_null_though_it_was_never_seen() -> None:
    assert worked_out(update(unset={"plan": "-"})).changes == {PLAN: None}
    cleared = Known("5f", fields={PLAN: None})
    assert worked_out(update(unset={"plan": "-"}), known=cleared).changes == {}


def test_an_older_event_sets_nothing_that_a_newer_one_has_set() -> None:
    held = {"plan": Held("pro", 10), "visits": Held(1, 5)}
    older = update(7, set={"plan": "free", "visits": 2})
    found = worked_out(older, held=held)
    assert {name: one.value for name, one in found.properties.items()} == {
        "plan": "pro",
        "visits": 2,
    }
    overwritten = worked_out(older, held=held, newer_wins=False).properties
    assert overwritten["plan"] == Held("free", 10)


def test_an_older_event_clears_nothing_that_a_newer_one_has_set() -> None:
    held = {"plan": Held("pro", 10), "visits": Held(1, 5)}
    for operations in ({"clearAll": "-"}, {"unset": {"plan": "-", "visits": "-", "tags": "-"}}):
        found = worked_out(update(7, **operations), held=held).properties
        assert found["plan"] == Held("pro", 10)
        assert found["visits"].value is None


def test_an_operation_counts_at_any_time() -> None:
    held = {"visits": Held(41, 10)}
    assert worked_out(update(7, add={"visits": 1}), held=held).changes[VISITS] == 42


def test_values_read_from_a_contact_are_not_written_back() -> None:
    """It would be cut, or made fit: it is not ours."""
    held = {"plan": Held("x" * 400), "visits": Held(41)}
    found = worked_out(update(add={"visits": 1}), held=held)
    assert found.changes == {VISITS: 42}
    assert found.adjustments == []


def test_a_contact_that_was_read_gives_the_unknown_values_and_nothing_else() -> None:
    contact = {"custom_attributes": {"plan": "free", "visits": 3}}
    held = with_base({"plan": Held("pro", 10)}, RULES, contact)
    assert held == {"plan": Held("pro", 10), "visits": Held(3), "tags": Held(None)}


def test_an_older_set_once_does_not_undo_a_newer_unset() -> None:
    held = worked_out(update(1, set={"plan": "free"}), update(9, unset={"plan": "-"})).properties
    late = update(5, setOnce={"plan": "late"})
    assert worked_out(late, held=held).properties["plan"].value is None
    assert worked_out(late, held=held, newer_wins=False).properties["plan"].value == "late"
