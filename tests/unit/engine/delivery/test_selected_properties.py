"""Since when properties are selected, and what is believed of them."""

from __future__ import annotations

from pathlib import Path

from amplitude_intercom.engine.delivery.contacts.selected_properties import (
    SelectedProperties,
    follow_selection,
)
from amplitude_intercom.engine.spool.known_contacts import Held, Known
from support.spools import opened

FIELDS = {"plan": "custom_attributes.plan", "visits": "custom_attributes.visits"}
BY_ID, BY_EMAIL = "external_id user_id", "email user.email"


def known(number: int) -> Known:
    return Known(
        "5f",
        fields=dict.fromkeys(FIELDS.values(), 1),
        properties={"1": {"plan": Held(1), "visits": Held(1)}},
        selections={"1": number},
    )


def test_a_selection_has_a_number_of_its_own_where_anything_of_it_is_another() -> None:
    first = SelectedProperties().followed_by(["plan"], BY_ID)
    assert first == SelectedProperties(1, {"plan": 1}, BY_ID)
    assert first.followed_by(["plan"], BY_ID) is first
    more = first.followed_by(["visits", "plan"], BY_ID)
    assert more == SelectedProperties(2, {"plan": 1, "visits": 2}, BY_ID)
    none = more.followed_by([], BY_ID)
    assert none.followed_by(["plan"], BY_ID) == SelectedProperties(4, {"plan": 4}, BY_ID)
    assert more.followed_by(["visits", "plan"], BY_EMAIL).since == {"plan": 3, "visits": 3}


def test_a_value_that_was_unselected_for_a_time_is_not_believed() -> None:
    selection = SelectedProperties(3, {"plan": 1, "visits": 3}, BY_ID)
    assert set(selection.properties_of(known(3), "1")) == {"plan", "visits"}
    assert set(selection.properties_of(known(2), "1")) == {"plan"}
    assert selection.properties_of(known(0), "1") == {}
    assert selection.properties_of(known(3), "2") == {}
    assert selection.current(known(3), "1", FIELDS) == known(3)
    assert selection.current(known(2), "1", FIELDS).fields == {"custom_attributes.plan": 1}
    assert selection.current(known(0), "1", FIELDS).fields == {}


def test_a_selection_is_kept_and_one_that_is_damaged_is_believed_of_nothing(
    tmp_path: Path,
) -> None:
    store = opened(tmp_path / "spool.db")
    assert follow_selection(store, 1, ["plan"], BY_ID, 99).number == 1
    assert follow_selection(store, 1, ["plan"], BY_ID, 99).number == 1
    assert follow_selection(store, 2, ["plan"], BY_ID, 99).number == 1
    store.meta.set("selection 1", "[}")
    assert follow_selection(store, 1, ["plan"], BY_ID, 99) == SelectedProperties(
        100, {"plan": 100}, BY_ID
    )
