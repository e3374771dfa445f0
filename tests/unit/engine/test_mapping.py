"""From an Amplitude event to Intercom's bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.config import from_table
from engine.envelope import ContactUpdate, Identity, Kind, Plan, Record, Verdict
from engine.mapping import (
    Rules,
    contact_body,
    created_at_s,
    creation_body,
    event_body,
    field_name,
    fit,
    money,
)

ACCEPTED_MS = 1_715_677_200_999


def rules(**sync: Any) -> Rules:
    base = {"name": "a", "intercom": {"access_token": "t"}}
    return Rules(from_table({"sync": [base | sync]}).sync[0])


def record(event: dict[str, Any], user: str = "user-1", kind: Kind = Kind.EVENT) -> Record:
    return Record(7, kind, user, ACCEPTED_MS, json.dumps({"event_type": "Bought"} | event).encode())


def plan(mapping: Rules, event: dict[str, Any], **more: Any) -> Plan:
    planned = mapping.plan(record(event, **more))
    assert isinstance(planned, Plan)
    return planned


def body(mapping: Rules, event: dict[str, Any], **more: Any) -> dict[str, Any]:
    sent = plan(mapping, event, **more).event
    assert sent is not None
    decoded: dict[str, Any] = json.loads(event_body(sent))
    return decoded


def metadata(properties: dict[str, Any], **events: Any) -> dict[str, Any]:
    events = {"metadata": list(properties), **events}
    found: dict[str, Any] = body(rules(events=events), {"event_properties": properties}).get(
        "metadata", {}
    )
    return found


# --- events -----------------------------------------------------------------------------


def test_an_event_has_its_name_its_second_and_its_user_and_nothing_unselected() -> None:
    event = {"time": 1_715_677_200_500, "event_properties": {"plan": "pro"}}
    assert body(rules(), event) == {
        "event_name": "Bought",
        "created_at": 1_715_677_200,
        "user_id": "user-1",
    }


def test_a_contact_found_by_email_is_named_by_email() -> None:
    by_email = rules(mapping={"identifier": "email"})
    assert body(by_email, {}, user="a@example.com")["email"] == "a@example.com"


@pytest.mark.parametrize(
    ("time_ms", "second"),
    [(None, ACCEPTED_MS // 1000), (ACCEPTED_MS + 10**7, ACCEPTED_MS // 1000), (5_999, 5), (-1, 0)],
)
def test_an_event_is_of_its_own_second_but_never_later_than_its_acceptance(
    time_ms: int | None, second: int
) -> None:
    assert created_at_s(time_ms, ACCEPTED_MS) == second


def test_signs_that_intercom_refuses_are_replaced() -> None:
    assert body(rules(), {"event_type": "cart.$paid"})["event_name"] == "cart--paid"
    assert metadata({"a.b$c": 1}) == {"a_b_c": 1}


def test_metadata_keeps_the_order_of_the_selection_and_its_limit() -> None:
    properties = {f"p{n}": n for n in range(25)}
    planned = plan(rules(events={"metadata": list(properties)}), {"event_properties": properties})
    assert planned.event is not None
    assert list(json.loads(event_body(planned.event))["metadata"]) == list(properties)[:20]
    assert planned.adjustments[0] == "metadata.p20: left out, 20 keys are there"
    assert len(planned.adjustments) == 5


def test_missing_properties_take_no_room_in_the_limit() -> None:
    assert metadata({"a": None, "b": 1}, metadata_limit=1) == {"b": 1}


def test_keys_that_differ_in_case_only_are_one() -> None:
    assert metadata({"Plan": 1, "plan": 2}) == {"Plan": 1}


def test_metadata_comes_from_the_user_too_and_can_be_renamed() -> None:
    chosen = {"metadata": ["user.plan", {"from": "event.amount", "to": "Total"}]}
    event = {"user_properties": {"plan": "pro"}, "event_properties": {"amount": 3, "plan": "x"}}
    assert body(rules(events=chosen), event)["metadata"] == {"plan": "pro", "Total": 3}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("x" * 300, "x" * 255),
        (1.5, 1.5),
        (False, False),
        ("", ""),
        ({}, None),
        ([], None),
        ([1], None),
        ({"a": {"b": 1}}, None),
        ({"url": "https://example.com", "value": "Order"}, ...),
        ({"url": "javascript:alert(1)", "value": "Order"}, None),
        ({"amount": 1999, "currency": "eur"}, ...),
        ({"amount": 19.99, "currency": "eur"}, None),
        ({"amount": True, "currency": "eur"}, None),
    ],
)
def test_values_are_scalars_rich_links_or_money_and_everything_else_is_left_out(
    value: Any, kept: Any
) -> None:
    expected = value if kept is ... else kept
    assert metadata({"p": value}) == ({} if expected is None else {"p": expected})


def test_numbers_that_json_cannot_say_are_left_out() -> None:
    for value in (float("nan"), float("inf")):
        assert fit(value) == (None, "not a finite number, left out")


def test_a_selected_property_with_a_currency_becomes_money() -> None:
    chosen = {"money": {"price": "currency"}, "metadata": ["price"]}
    assert metadata({"price": 19.99, "currency": "EUR"}, **chosen) == {
        "price": {"amount": 1999, "currency": "eur"}
    }
    assert metadata({"price": "free", "currency": "EUR"}, **chosen) == {"price": "free"}
    assert metadata({"price": 5}, **chosen) == {"price": 5}


# --- money ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "currency", "amount"),
    [
        (19.99, "USD", 1999),
        (0.1, "usd", 10),
        (1200, "JPY", 1200),
        (1.2345, "KWD", 1234),
        ("449.50", "EUR", 44950),
        (0.125, "USD", 12),
        (0.135, "USD", 14),
        ("0.12500000000000000000000000000000001", "USD", 13),
        (0, "USD", 0),
    ],
)
def test_an_amount_is_exact_in_the_minor_unit(value: Any, currency: str, amount: int) -> None:
    assert money(value, currency) == {"amount": amount, "currency": currency.lower()}


@pytest.mark.parametrize(
    "value", [None, True, [], -1, "nan", "sNaN", "inf", "", "1e999999", 10**20]
)
def test_what_is_no_amount_is_no_money(value: Any) -> None:
    assert money(value, "USD") is None


@pytest.mark.parametrize("currency", [None, "", "US", "EURO", "12E", "ßßß", "usd\n", 5])
def test_what_is_no_currency_makes_no_money(currency: Any) -> None:
    assert money(1, currency) is None


# --- who --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "user"),
    [("external_id", "x" * 256), ("external_id", "a\0b"), ("email", "no-at-sign")],
)
def test_an_identity_that_intercom_cannot_take_is_rejected(identifier: str, user: str) -> None:
    planned = rules(mapping={"identifier": identifier}).plan(record({}, user))
    assert isinstance(planned, Verdict)
    assert (planned.verdict, planned.reason) == ("reject", "invalid_identity")
    assert planned.message.startswith(f"{identifier}: ")


def test_a_time_that_cannot_be_read_is_rejected() -> None:
    planned = rules().plan(record({"time": "yesterday"}))
    assert isinstance(planned, Verdict)
    assert (planned.verdict, planned.reason) == ("reject", "invalid_field")


# --- contacts ---------------------------------------------------------------------------


def test_an_identify_updates_the_contact_with_selected_properties_only() -> None:
    event = {"event_type": "$identify", "user_properties": {"$set": {"plan": "pro", "x": 1}}}
    planned = plan(rules(users={"properties": ["plan"]}), event, kind=Kind.IDENTIFY)
    identity = Identity("external_id", "user-1")
    assert planned == Plan(identity, ContactUpdate(identity, {"$set": {"plan": "pro"}}, 7))


def test_an_event_updates_its_user_only_where_the_trigger_says_so() -> None:
    event = {"user_properties": {"plan": "pro"}}
    users: dict[str, Any] = {"properties": ["plan"]}
    assert plan(rules(users=users), event).contact is None
    updated = plan(rules(users=users | {"trigger": "any_update"}), event)
    assert updated.contact is not None
    assert updated.event is not None


def test_standard_fields_go_to_the_contact_and_all_others_to_custom_attributes() -> None:
    mapping = rules(users={"properties": ["name", {"from": "company_name", "to": "Company"}]})
    fields, _ = mapping.contact_fields({"name": "Lena", "company_name": "Acme", "secret": 1})
    assert json.loads(contact_body(fields)) == {
        "name": "Lena",
        "custom_attributes": {"Company": "Acme"},
    }
    assert field_name("email") == "email"


def test_a_contact_s_dates_are_unix_seconds_however_they_were_written() -> None:
    mapping = rules(users={"properties": ["signed_up_at"]})
    for written in ("2024-05-14T09:00:00Z", 1_715_677_200, 1_715_677_200_000):
        assert mapping.contact_fields({"signed_up_at": written})[0] == {
            "signed_up_at": 1_715_677_200
        }


def test_nested_values_do_not_reach_a_contact_and_are_reported() -> None:
    mapping = rules(users={"properties": ["p"]})
    link = {"url": "https://example.com", "value": "x"}
    for nested in ([1], {"a": 1}, link, {"amount": 1, "currency": "eur"}):
        assert mapping.contact_fields({"p": nested}) == (
            {},
            ["custom_attributes.p: nested, left out"],
        )


def test_a_new_contact_is_a_user_with_its_identity() -> None:
    assert json.loads(creation_body(Identity("email", "a@b.c"), {"name": "A"})) == {
        "role": "user",
        "email": "a@b.c",
        "name": "A",
    }


def test_what_a_contact_holds_is_read_back_as_selected_properties() -> None:
    mapping = rules(users={"properties": ["name", {"from": "co", "to": "Company"}, "gone"]})
    contact = {"name": "A", "custom_attributes": {"Company": "Acme", "gone": None, "x": 1}}
    assert mapping.properties_of_contact(contact) == {"name": "A", "co": "Acme"}
    assert mapping.properties_of_contact({"custom_attributes": None}) == {}
