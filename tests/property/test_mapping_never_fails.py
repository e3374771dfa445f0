"""The mapper takes whatever JSON a client can send, and gives what Intercom can take."""

from __future__ import annotations

import decimal
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import from_table
from engine.envelope import Identity, Kind, Plan, Record, Verdict
from engine.mapping import (
    THREE_DECIMAL,
    ZERO_DECIMAL,
    Rules,
    contact_body,
    creation_body,
    event_body,
    money,
)
from engine.user_properties import apply

QUICK = settings(max_examples=200, deadline=None)
LIMIT = 5
NAMES = ("price", "currency", "plan", "p.q", "P.Q", "$r", "signed_up_at", "email")


def rules(identifier: str) -> Rules:
    sync = {
        "name": "a",
        "intercom": {"access_token": "t"},
        "mapping": {"identifier": identifier},
        "users": {"properties": [*NAMES], "trigger": "any_update"},
        "events": {
            "select": [{"types": ["*"]}],
            "metadata": [*NAMES, {"from": "user.plan", "to": "user plan"}],
            "metadata_limit": LIMIT,
            "money": {"price": "currency"},
        },
    }
    return Rules(from_table({"sync": [sync]}).sync[0])


BY_FIELD = {field: rules(field) for field in ("external_id", "email")}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x" * 300, "nan", "1e99999", 10**300, 1e308, "0001-01-01T00:00:00+23:59"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
SHAPES = st.fixed_dictionaries(
    {"amount": JSON | st.integers(0, 9), "currency": JSON | st.just("eur")}
) | st.fixed_dictionaries({"url": JSON | st.just("https://a.b"), "value": JSON | st.text()})
VALUES = JSON | SHAPES
PROPERTIES = (
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(NAMES, VALUES)
        | {"currency": st.sampled_from(["USD", "JPY", "kwd", "ßßß"]) | JSON}
        | {op: st.dictionaries(st.sampled_from(NAMES), VALUES) | JSON for op in ("$set", "$add")},
    )
    | JSON
)
EVENTS = (
    st.fixed_dictionaries(
        {},
        optional={
            "event_type": st.sampled_from(["Bought", "a.b$c", "$identify"]) | st.text(max_size=9),
            "time": st.integers() | JSON,
            "event_time": st.just("2024-05-14 09:00:00") | JSON,
            "event_properties": PROPERTIES,
            "user_properties": PROPERTIES,
        },
    )
    | JSON
)
RAWS = EVENTS.map(lambda event: json.dumps(event).encode()) | st.binary(max_size=20)
RECORDS = st.builds(
    Record,
    id=st.just(1),
    kind=st.sampled_from(Kind),
    user_key=st.sampled_from(["user-1", "a@example.com", "x" * 300, "a\0b"]) | st.text(),
    accepted_at_ms=st.integers(0, 2**45),
    raw=RAWS,
)
FIELDS = st.sampled_from(sorted(BY_FIELD))


def is_money(value: dict[str, Any]) -> bool:
    return value.keys() == {"amount", "currency"} and isinstance(value["amount"], int)


def is_rich_link(value: dict[str, Any]) -> bool:
    return value.keys() == {"url", "value"} and all(len(v) <= 255 for v in value.values())


def assert_intercom_takes(value: Any) -> None:
    if isinstance(value, dict):
        assert is_money(value) or is_rich_link(value)
    else:
        assert isinstance(value, str | int | float)
        assert not isinstance(value, str) or len(value) <= 255


@QUICK
@given(FIELDS, RECORDS)
def test_a_record_is_planned_or_gets_a_verdict_and_the_same_one_again(
    field: str, record: Record
) -> None:
    planned = BY_FIELD[field].plan(record)
    assert isinstance(planned, Plan | Verdict)
    again = rules(field).plan(record)
    assert again == planned
    if isinstance(planned, Plan) and isinstance(again, Plan) and planned.event and again.event:
        assert event_body(again.event) == event_body(planned.event)


@QUICK
@given(FIELDS, RECORDS)
def test_an_event_s_body_is_what_intercom_takes(field: str, record: Record) -> None:
    planned = BY_FIELD[field].plan(record)
    if not isinstance(planned, Plan) or planned.event is None:
        return
    body = json.loads(event_body(planned.event))
    metadata = body.pop("metadata", {})
    who = "user_id" if field == "external_id" else "email"
    assert body.keys() == {"event_name", "created_at", who}
    assert not set(".$") & set(body["event_name"])
    assert 0 <= body["created_at"] <= record.accepted_at_ms // 1000
    assert len(metadata) <= LIMIT
    assert len({key.lower() for key in metadata}) == len(metadata)
    for key, value in metadata.items():
        assert not set(".$") & set(key)
        assert_intercom_takes(value)


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES), VALUES), PROPERTIES)
def test_a_contact_s_body_is_what_intercom_takes(state: dict[str, Any], properties: Any) -> None:
    mapping = BY_FIELD["external_id"]
    event = {"event_type": "$identify", "user_properties": properties}
    planned = mapping.plan(Record(1, Kind.IDENTIFY, "user-1", 0, json.dumps(event).encode()))
    if not isinstance(planned, Plan):  # a number that no decoder takes
        return
    assert planned.contact is not None
    fields, _ = mapping.contact_fields(apply(planned.contact.operations, state)[0])
    for value in fields.values():
        assert isinstance(value, str | int | float)
        assert not isinstance(value, str) or len(value) <= 255
    written = json.loads(contact_body(fields))
    created = json.loads(creation_body(Identity("external_id", "user-1"), fields))
    assert created == {"role": "user", "external_id": "user-1"} | written


CURRENCIES = st.sampled_from(sorted({"USD", "EUR", "INR"} | ZERO_DECIMAL | THREE_DECIMAL))
AMOUNTS = (
    st.integers(0, 10**10)
    | st.floats(0, 10**10)
    | st.decimals(0, 10**10, places=40).map(str)
    | st.decimals(0, 10**6, places=2).map(float)
)


@settings(max_examples=400, deadline=None)
@given(AMOUNTS, CURRENCIES, st.booleans())
def test_money_is_exact_in_the_minor_unit_of_its_currency(
    amount: float | str, currency: str, lower: bool
) -> None:
    digits = 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2
    with decimal.localcontext(decimal.Context(prec=500)):
        exact = (decimal.Decimal(str(amount)) * 10**digits).to_integral_value(
            decimal.ROUND_HALF_EVEN
        )
    written = currency.lower() if lower else currency
    assert money(amount, written) == {"amount": int(exact), "currency": currency.lower()}
