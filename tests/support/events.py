"""Generated events: any JSON that a client can send, and mappings to try them on."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from hypothesis import strategies as st

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.rules.planning import SyncRules

NAMES = ("price", "currency", "plan", "p.q", "P.Q", "$r", "signed_up_at", "email", "avatar", "tags")
ATTRIBUTES = {"plan": "string", "price": "float", "tags": "string", "flag": "boolean"}
STYLES = [
    {"nested": nested, "arrays": arrays, "stringify": stringify}
    for nested, arrays, stringify in itertools.product(
        ("flatten", "drop"), ("join", "drop"), (False, True)
    )
]


def sync_table(identifier: str, style: dict[str, Any], *, limit: int) -> dict[str, Any]:
    """A sync's settings in which everything is selected that ``NAMES`` names."""
    return {
        "name": "a",
        "amplitude_api_keys": ["key"],
        "intercom": {"access_token": "t"},
        "mapping": {"identifier": identifier, **style},
        "users": {
            "properties": [
                *(name for name in NAMES if name.isidentifier()),
                {"from": "p.q", "to": "flag"},
                {"from": "$r", "to": "owner_id"},
                {"from": "P.Q", "to": "unsubscribed_from_emails"},
            ],
            "trigger": "any_update",
        },
        "events": {
            "select": [{"types": ["*"]}],
            "metadata": [*NAMES, {"from": "user.plan", "to": "user plan"}],
            "metadata_limit": limit,
            "money": {"price": "currency"},
            "rename": {"Bought": "Purchase Completed"},
        },
    }


def rules(identifier: str, style: dict[str, Any], *, limit: int) -> SyncRules:
    return SyncRules(from_table({"sync": [sync_table(identifier, style, limit=limit)]}).sync[0])


CORNERS: list[Any] = [
    *("x" * 300, "é\u0301" * 200, "nan", "1e99999", 10**300, 2**53, -(2**53), 1e308),
    *("0001-01-01T00:00:00+23:59", "2024-05-14", "2024-05-14T09:00:00Z", 1_715_677_200_000),
    *("true", "12", "1.50", "https://example.com/a.png", "a@example.com", "USD", "jpy"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(CORNERS)
)
JSON: st.SearchStrategy[Any] = st.recursive(
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
            "event_type": st.sampled_from(["Bought", "a.b$c", "$identify", "é" * 300])
            | st.text(max_size=9),
            "time": st.integers() | st.integers(0, 2**55) | JSON,
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


# --- those that are sent ------------------------------------------------------------------

KNOWN = st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1)
"""Properties that the settings select."""

USER_PROPERTIES = KNOWN | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("$set", "$setOnce", "$append"), KNOWN) | {"plan": VALUES}
)
ACCEPTED_MS = 1_715_677_200_999


def sent_record(kind: Kind, user_key: str, age_ms: int, fields: dict[str, Any]) -> Record:
    event = {"time": ACCEPTED_MS - age_ms, **fields}
    return Record(1, kind, user_key, ACCEPTED_MS, json.dumps(event).encode())


SENT_RECORDS = st.builds(
    sent_record,
    kind=st.sampled_from([Kind.EVENT, Kind.EVENT_WITH_UPDATE]),
    user_key=st.sampled_from(["a@example.com", f"{'x' * 243}@example.com"]),
    age_ms=st.integers(-(10**7), 10**9),
    fields=st.fixed_dictionaries(
        {
            "event_type": st.sampled_from(["Bought", "a.b$c", "é" * 300, "Page Viewed"]),
            "event_properties": KNOWN,
            "user_properties": USER_PROPERTIES,
        },
        optional={"price": SCALARS, "currency": st.just("USD")},
    ),
)
"""Events of a selected type, of a user and at a time that Intercom takes, with any values."""


# --- many of them, quickly ----------------------------------------------------------------


def random_value(dice: random.Random, depth: int = 0) -> Any:
    """Any JSON that a client can send, by a seeded draw."""
    kind = dice.randrange(12)
    if kind < 5 or depth > 3:
        return dice.choice([*CORNERS[:6], *CORNERS[8:], dice.randrange(10**6), None, True, 0.1])
    if kind < 8:
        return "".join(
            dice.choice("aé ✓\U0001f44d.$'{}\"\\\n\0") for _ in range(dice.randrange(400))
        )
    if kind == 8:
        return {"amount": dice.choice([5, -1, 1.5]), "currency": dice.choice(["eur", "e", 5])}
    if kind == 9:
        return {"url": dice.choice(["https://a.b", "x"]), "value": dice.choice(["Order", 5])}
    inner = [random_value(dice, depth + 1) for _ in range(dice.randrange(5))]
    return inner if kind == 10 else {dice.choice([*NAMES, "é", ""]): v for v in inner}


def random_event(dice: random.Random, user: str, n: int) -> bytes:
    """An event, an identify, or an event with an update, at a time of its own."""
    properties = {name: random_value(dice) for name in NAMES if dice.random() < 0.5}
    event = {
        "event_type": dice.choice(["$identify", "Bought", "cart.$paid", "é" * 300, "Page Viewed"]),
        "user_id": user,
        "time": 1_700_000_000_000 + n * 1_000,
        "insert_id": f"{n}",
        "event_properties": properties,
        "user_properties": {name: random_value(dice) for name in NAMES if dice.random() < 0.3},
    }
    return json.dumps(event).encode()
