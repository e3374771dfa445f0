"""Whatever value arrives, nothing raises, and what comes out can be written and is Intercom's.

Values are drawn by name and made in the test: a number of 5,000 digits cannot even be printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.envelope import Adjustment, Identity, Kind, Plan, Record
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body, event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute
from amplitude_intercom.engine.rules.money import money
from amplitude_intercom.engine.rules.operations import ORDER, select, split
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.rules.user_properties import MAX_KEPT_BYTES, apply
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject
from amplitude_intercom.engine.settings import Clause, Selector
from support.events import ATTRIBUTES, NAMES, STYLES, rules
from support.intercom_rules import faults_of_contact, faults_of_event

QUICK = settings(max_examples=150, deadline=None)
LIMIT = 5
ACCEPTED_MS = 1_800_000_000_000
BY_STYLE = [
    rules(field, style, limit=LIMIT) for field in ("external_id", "email") for style in STYLES
]
RULES = st.sampled_from(range(len(BY_STYLE))).map(BY_STYLE.__getitem__)


def deep(inner: Any, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(40):
        inner = wrap(inner)
    return inner


HOSTILE: dict[str, Callable[[], Any]] = {
    "321 digits": lambda: 10**321,
    "4,300 digits": lambda: 10**4_299,
    "minus 4,300 digits": lambda: -(10**4_299),
    "5,000 digits": lambda: 10**5_000,
    "largest float": lambda: 1.7e308,
    "not a number": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "5,000 digits as text": lambda: "9" * 5_000,
    "exponent": lambda: "1e999999999999999999999",
    "small exponent": lambda: "1e-999999999",
    "half a pair": lambda: "a\ud83d",
    "control characters": lambda: "\0\x1b[31m\x7f\x85",
    "long text": lambda: "x\u0301" * 50_000,
    "long key": lambda: {"k" * 100_000: 1},
    "half a pair as key": lambda: {"\ud83d": 1, "\0": 2, " ": 3},
    "depth 40": lambda: deep(1, lambda inner: {"a": inner}),
    "lists of depth 40": lambda: deep(10**400, lambda inner: [inner, "a"]),
    "many keys": lambda: {f"{n}": n for n in range(5_000)},
    "many elements": lambda: [{"n": n} for n in range(5_000)],
    "money": lambda: {"amount": 10**400, "currency": "e\ud83dr"},
    "link": lambda: {"url": "https://\0", "value": "\ud83d"},
    "date": lambda: "0001-01-01T00:00:00+23:59",
}
"""Values to be made where they are used."""

LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [f"!{name}" for name in HOSTILE]
) | st.sampled_from(
    [None, True, 0, 1.5, "", "x", "12", "USD", "2024-05-14T09:00:00Z", "a@example.com", [], {}]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "city", "p.q", "\0"]), inner, max_size=3)
    ),
    max_leaves=4,
)
PROPERTIES = st.dictionaries(st.sampled_from([*NAMES, "a"]), VALUES, max_size=4)
PAYLOADS = (
    st.dictionaries(st.sampled_from([*ORDER, "$typo\ud83d", *NAMES]), PROPERTIES | VALUES)
    | PROPERTIES
    | VALUES
)


def made(value: Any) -> Any:
    """A drawn value with the hostile ones in it made."""
    if isinstance(value, str) and value.startswith("!"):
        return HOSTILE[value[1:]]()
    if isinstance(value, list):
        return [made(inner) for inner in value]
    if isinstance(value, dict):
        return {key: made(inner) for key, inner in value.items()}
    return value


def written(value: Any) -> str:
    """JSON as careless writers write it: NaN, numbers of any length, halves of pairs."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(k)}:{written(v)}' for k, v in value.items())}}}"
    if type(value) is int and abs(value) >= 10**4_299:
        return "-"[value > 0 :] + "9" * (5_000 if abs(value) >= 10**5_000 else 4_300)
    return json.dumps(value)


def assert_named(adjustments: Sequence[Adjustment]) -> None:
    assert {adjustment.reason for adjustment in adjustments} <= set(AdjustmentReason)
    assert msgspec.json.encode([str(adjustment) for adjustment in adjustments])
    assert len(adjustments) < 3_000


class Types:
    """The attributes of a workspace."""

    def type_of(self, name: str) -> str | None:
        return ATTRIBUTES.get(name)

    def options_of(self, name: str) -> tuple[str, ...]:
        return ()


@QUICK
@given(RULES, st.lists(PAYLOADS, max_size=3), st.booleans())
def test_any_operations_leave_properties_that_can_be_kept_and_written(
    mapping: SyncRules, payloads: list[Any], known: bool
) -> None:
    state: dict[str, Any] = {}
    for payload in map(made, payloads):
        found = split(payload)
        state, problems = apply(select(found.operations, mapping.contacts.properties), state)
        assert msgspec.json.encode([*found.problems, *problems])
    assert len(msgspec.json.encode(state)) <= 2 + len(state) * (MAX_KEPT_BYTES + 300)
    types = Types() if known else AnyAttribute()
    assert msgspec.json.encode(mapping.contacts.attributes_of(state))
    fields, adjustments = mapping.contacts.contact_fields(state, types)
    assert_named(adjustments)
    assert faults_of_contact(contact_body(fields), ATTRIBUTES if known else None) == []
    creation_body(Identity("external_id", "user-1"), fields)
    assert mapping.contacts.contact_fields(state, types) == (fields, adjustments)


@QUICK
@given(RULES, VALUES | st.fixed_dictionaries({"custom_attributes": VALUES | PROPERTIES}) | PAYLOADS)
def test_any_answer_of_intercom_gives_properties_that_can_be_kept(
    mapping: SyncRules, answer: Any
) -> None:
    state = mapping.contacts.properties_of_contact(made(answer))
    assert state.keys() <= mapping.contacts.properties.keys()
    assert len(msgspec.json.encode(state)) <= 2 + len(state) * (MAX_KEPT_BYTES + 300)
    mapping.contacts.contact_fields(state, AnyAttribute())


@QUICK
@given(RULES, st.sampled_from(Kind), VALUES, VALUES, PROPERTIES, PAYLOADS)
def test_any_event_is_planned_or_gets_a_verdict(
    mapping: SyncRules, kind: Kind, event_type: Any, time: Any, properties: Any, payload: Any
) -> None:
    event = {
        "event_type": event_type,
        "time": time,
        "event_properties": properties,
        "user_properties": payload,
        "price": time,
    }
    for raw in map(written, map(made, (event, {**event, "event_type": "A", "time": None}))):
        record = Record(1, kind, "a@example.com", ACCEPTED_MS, raw.encode())
        planned = mapping.plan(record)
        assert isinstance(planned, Keep | Drop | Reject)
        assert msgspec.json.encode(planned)
        if isinstance(planned, Keep):
            assert_named(planned.value.adjustments)
            assert_is_intercom_s(planned.value)


def assert_is_intercom_s(plan: Plan) -> None:
    if plan.event is not None:
        body = event_body(plan.event)
        assert faults_of_event(body, kept=LIMIT, now_s=ACCEPTED_MS // 1000) == []


@QUICK
@given(VALUES, VALUES)
def test_any_amount_is_money_or_none(value: Any, currency: Any) -> None:
    assert msgspec.json.encode(money(made(value), made(currency)))
    assert msgspec.json.encode(money(made(value), "USD"))


@QUICK
@given(
    st.sampled_from(["event.a", "user.a", "user.$set", "group.a.b", "price", "a.b", "event.p.q.a"]),
    st.sampled_from(["is", "contains", "starts with", "glob", "<", ">=", "set contains"]),
    st.sampled_from(["1", "12"]),
    st.dictionaries(
        st.sampled_from(["event_properties", "user_properties", "groups", "group_properties", "a"]),
        VALUES | PAYLOADS | st.fixed_dictionaries({"a": VALUES | PAYLOADS}),
    ),
)
def test_any_event_passes_a_filter_or_does_not(
    name: str, op: Any, value: str, event: dict[str, Any]
) -> None:
    predicate = Selection([Selector(["A"], [Clause(name, op, [value])])]).lookup("A")
    assert predicate is not None
    assert predicate.matches(made(event)) in (True, False)
