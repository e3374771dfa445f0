"""From user properties to a contact's fields, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amplitude_intercom.engine.envelope import ContactUpdate, Identity, Kind, Plan
from amplitude_intercom.engine.rules.bodies import contact_body
from amplitude_intercom.engine.rules.contacts import can_be_cleared, field_name
from amplitude_intercom.engine.rules.user_properties import apply
from support.plans import ACCEPTED_MS, ANY, plan, rules


class Types:
    """A workspace's attributes, by name."""

    def __init__(self, **types: str) -> None:
        self._types = types

    def options_of(self, name: str) -> tuple[str, ...]:
        return ()

    def type_of(self, name: str) -> str | None:
        return self._types.get(name)


def test_an_identify_updates_the_contact_with_selected_properties_only() -> None:
    event = {"event_type": "$identify", "user_properties": {"$set": {"plan": "pro", "x": 1}}}
    planned = plan(rules(users={"properties": ["plan"]}), event, kind=Kind.IDENTIFY)
    identity = Identity("external_id", "user-1")
    assert planned == Plan(
        identity, ContactUpdate(identity, {"$set": {"plan": "pro"}}, 7, ACCEPTED_MS)
    )


def test_an_event_updates_its_user_only_where_the_trigger_says_so() -> None:
    event = {"user_properties": {"plan": "pro"}}
    users: dict[str, Any] = {"properties": ["plan"]}
    assert plan(rules(users=users), event).contact is None
    updated = plan(rules(users=users | {"trigger": "any_update"}), event)
    assert updated.contact is not None
    assert updated.event is not None
    disabled = plan(rules(users=users | {"trigger": "any_update", "enabled": False}), event)
    assert disabled.contact is None
    assert disabled.event is not None


def test_standard_fields_go_to_the_contact_and_all_others_to_custom_attributes() -> None:
    mapping = rules(users={"properties": ["name", {"from": "company_name", "to": "Company"}]})
    properties = {"name": "Lena", "company_name": "Acme", "secret": 1}
    fields, _ = mapping.contacts.contact_fields(properties, ANY)
    assert json.loads(contact_body(fields)) == {
        "name": "Lena",
        "custom_attributes": {"Company": "Acme"},
    }
    assert field_name("email") == "email"


def test_a_contact_s_dates_are_unix_seconds_however_they_were_written() -> None:
    mapping = rules(users={"properties": ["signed_up_at"]})
    for written in ("2024-05-14T09:00:00Z", 1_715_677_200, 1_715_677_200_000):
        assert mapping.contacts.contact_fields({"signed_up_at": written}, ANY)[0] == {
            "signed_up_at": 1_715_677_200
        }


def test_nested_values_do_not_reach_a_contact_and_are_reported() -> None:
    mapping = rules(users={"properties": ["p"]})
    link = {"url": "https://example.com", "value": "x"}
    for nested in ({"a": 1}, link, {"amount": 1, "currency": "eur"}):
        fields, [adjustment] = mapping.contacts.contact_fields({"p": nested}, ANY)
        assert (fields, adjustment.reason) == ({}, "nested_left_out")


def test_the_types_of_the_workspace_s_attributes_are_kept() -> None:
    mapping = rules(users={"properties": ["seats", "trial", "plan", "gone", "since"]})
    types = Types(seats="integer", trial="boolean", plan="string", since="date")
    properties = {"seats": "12", "trial": "no", "plan": 7, "gone": 1, "since": "2024-05-14"}
    fields, adjustments = mapping.contacts.contact_fields(properties, types)
    assert json.loads(contact_body(fields)) == {
        "custom_attributes": {"seats": 12, "plan": "7", "since": 1_715_644_800}
    }
    assert sorted(
        (adjustment.reason, adjustment.where.rpartition(".")[2]) for adjustment in adjustments
    ) == [
        ("type_converted", "plan"),
        ("type_converted", "seats"),
        ("type_converted", "since"),
        ("type_mismatch", "trial"),
        ("unknown_attribute", "gone"),
    ]


def test_an_attribute_is_created_only_for_a_written_value_and_with_a_fitting_type() -> None:
    names = ["addr", "trial_at", "signup_date", "seats", "plan", "vip", "tags", "gone"]
    wanted = rules(users={"properties": names}).contacts.attributes_of(
        {
            "addr": {"city": "Oslo"},
            "trial_at": "2026-01-02T10:00:00Z",
            "signup_date": "2026-01-02",
            "seats": 3,
            "plan": "pro",
            "vip": True,
            "tags": ["a"],
            "gone": None,
        }
    )
    assert wanted == {
        "trial_at": "date",
        "signup_date": "date",
        "seats": "float",
        "plan": "string",
        "vip": "boolean",
        "tags": "string",
    }


def test_the_field_that_identifies_a_contact_is_never_changed_by_a_property() -> None:
    mapping = rules(mapping={"identifier": "email"}, users={"properties": ["email", "name"]})
    fields, _ = mapping.contacts.contact_fields({"email": "other@example.com", "name": "A"}, ANY)
    assert fields == {"name": "A"}


def test_an_impossible_property_operation_is_reported() -> None:
    event = {"event_type": "$identify", "user_properties": {"$bad": 1, "$set": {"plan": "pro"}}}
    planned = plan(rules(users={"properties": ["plan"]}), event, kind=Kind.IDENTIFY)
    assert [adjustment.reason for adjustment in planned.adjustments] == ["operation_refused"]


def test_a_contacts_values_are_read_back_as_selected_properties() -> None:
    mapping = rules(users={"properties": ["name", {"from": "co", "to": "Company"}, "gone"]})
    contact = {"name": "A", "custom_attributes": {"Company": "Acme", "gone": None, "x": 1}}
    assert mapping.contacts.properties_of_contact(contact) == {"name": "A", "co": "Acme"}
    assert mapping.contacts.properties_of_contact({"custom_attributes": None}) == {}
    empty = {"name": "", "custom_attributes": {"Company": "", "gone": 0}}
    assert mapping.contacts.properties_of_contact(empty) == {"gone": 0}


@pytest.mark.parametrize("sets", [{"address": {"city": "Oslo"}}, {"address.city": "Oslo"}])
@pytest.mark.parametrize("op", ["$set", "$setOnce", ""])
def test_a_user_property_is_written_whether_nested_or_dotted(op: str, sets: dict[str, Any]) -> None:
    mapping = rules(users={"properties": [{"from": "address.city", "to": "city"}]})
    event = {"event_type": "$identify", "user_properties": {op: sets} if op else sets}
    planned = plan(mapping, event, kind=Kind.IDENTIFY)
    assert planned.contact is not None
    state, _ = apply(planned.contact.operations, {})
    assert mapping.contacts.contact_fields(state, ANY)[0] == {"custom_attributes.city": "Oslo"}


@pytest.mark.parametrize(
    ("given", "operations"),
    [
        ({}, {"$set": {"country": "Norway"}}),
        ({"country": "Chile"}, {"$set": {"country": "Chile"}}),
        ({"$setOnce": {"country": "Chile"}}, {"$setOnce": {"country": "Chile"}}),
        ({"$clearAll": "-"}, {"$clearAll": "-", "$set": {"country": "Norway"}}),
    ],
)
def test_a_standard_user_property_is_taken_from_the_event_itself(
    given: dict[str, Any], operations: dict[str, Any]
) -> None:
    mapping = rules(users={"properties": ["country"]})
    event = {"event_type": "$identify", "country": "Norway", "user_properties": given}
    planned = plan(mapping, event, kind=Kind.IDENTIFY)
    assert planned.contact is not None
    assert planned.contact.operations == operations


@pytest.mark.parametrize("role", ["user", "lead", "admin", 5])
def test_a_role_is_not_written_beside_an_external_id(role: Any) -> None:
    chosen = ["role", "external_id", "name"]
    properties = {"role": role, "external_id": "u-1", "name": "A"}
    for identifier in ("external_id", "email"):
        mapping = rules(mapping={"identifier": identifier}, users={"properties": chosen})
        fields, adjustments = mapping.contacts.contact_fields(properties, ANY)
        assert "role" not in fields
        reasons = [adjustment.reason for adjustment in adjustments]
        assert reasons == ([] if role == "user" else ["type_mismatch"])
    fields, _ = mapping.contacts.contact_fields({"role": "lead", "name": "A"}, ANY)
    assert fields == {"role": "lead", "name": "A"}


def test_neither_role_nor_external_id_can_be_cleared() -> None:
    types = Types(plan="string")
    names = ["role", "external_id", "name", "custom_attributes.plan", "custom_attributes.gone"]
    assert [name for name in names if can_be_cleared(name, types)] == [
        "name",
        "custom_attributes.plan",
    ]


def test_one_value_that_does_not_fit_costs_itself_alone() -> None:
    chosen = {"owner_id": "nobody", "signed_up_at": 10**321, "avatar": "x", "name": "Mira"}
    mapping = rules(users={"properties": list(chosen)})
    fields, adjustments = mapping.contacts.contact_fields(chosen, ANY)
    assert fields == {"name": "Mira"}
    assert [adjustment.reason for adjustment in adjustments] == ["type_mismatch"] * 3
    assert mapping.contacts.contact_fields({"owner_id": "999"}, ANY)[0] == {"owner_id": 999}


def test_a_code_of_digits_becomes_an_attribute_of_text() -> None:
    mapping = rules(users={"properties": ["postalCode"]})
    assert mapping.contacts.attributes_of({"postalCode": "02138"}) == {"postalCode": "string"}
    fields, [adjustment] = mapping.contacts.contact_fields(
        {"postalCode": "02138"}, Types(postalCode="float")
    )
    assert (fields, adjustment.reason) == ({}, "type_mismatch")


@pytest.mark.parametrize("answer", [None, [], "text", 5, {"custom_attributes": "text"}])
def test_an_answer_that_is_no_contact_holds_no_properties(answer: Any) -> None:
    assert (
        rules(users={"properties": ["name", "plan"]}).contacts.properties_of_contact(answer) == {}
    )
