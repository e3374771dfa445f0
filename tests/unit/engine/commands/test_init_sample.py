"""What is proposed from a sample, and what an answer to a list means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.commands.init_sample import (
    Sample,
    is_fit,
    is_of_sdk,
    picked,
)
from amplitude_intercom.engine.commands.init_text import Answers, settings_text
from amplitude_intercom.engine.deploy.adapting import settings_of


def raw(event_type: str, user: str = "ada-lovelace", **more: Any) -> bytes:
    return json.dumps({"event_type": event_type, "user_id": user, "time": 1, **more}).encode()


def test_event_types_come_by_count_and_without_those_that_are_not_events() -> None:
    sample = Sample(
        [
            raw("Rare"),
            *[raw("Often")] * 3,
            *[raw("[Amplitude] Page Viewed")] * 2,
            raw("$identify"),
            raw("[Intercom] event.created"),
            raw(" "),
            raw("*"),
            b"no event",
        ]
    )
    assert sample.types == [("Often", 3), ("[Amplitude] Page Viewed", 2), ("Rare", 1)]
    assert [is_of_sdk(name) for name, _ in sample.types] == [False, True, False]


def test_at_most_120_event_types_are_proposed() -> None:
    assert len(Sample(raw(f"Type {n}") for n in range(200)).types) == 120


def test_properties_are_those_of_the_chosen_types_with_kind_and_example() -> None:
    sample = Sample(
        [
            raw("A", event_properties={"price": 2.5, "note": "x" * 99}),
            raw("B", event_properties={"other": True}),
        ]
    )
    found = sample.event_properties(["A"])
    assert [(p.name, p.kind, p.count) for p in found] == [
        ("price", "number", 1),
        ("note", "text", 1),
    ]
    assert len(found[1].example) == 24
    assert [p.kind for p in sample.event_properties(["B"])] == ["yes/no"]


def test_user_properties_come_from_operations_and_plain_keys() -> None:
    sample = Sample(
        [
            raw("$identify", user_properties={"$set": {"plan": "pro"}, "$add": {"visits": 1}}),
            raw("A", user_properties={"plan": "free", "external_id": "7", "nested": {"a": 1}}),
        ]
    )
    assert [(p.name, p.count) for p in sample.user_properties] == [("plan", 2), ("visits", 1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("password", "x"),
        ("apiToken", "x"),
        ("ACCESS_KEY", "x"),
        ("session", "eyJhbGciOi.eyJzdWIi.c2ln"),
        ("note", "sk_live_4242"),
        ("note", "dG9rOjExMTExMTExMTExMTExMTExMTExMTExMTExMQ=="),
        ("place", {"city": "Lagos"}),
        ("tags", ["a"]),
        ("a.b", 1),
        ("user.plan", 1),
    ],
)
def test_nested_values_secrets_and_names_that_intercom_refuses_are_not_proposed(
    name: str, value: object
) -> None:
    assert not is_fit(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("monkey", "x"),
        ("order_id", "676e8273-3c93-4205-910f-614bb4396a55"),
        ("author", "Ada"),
        ("note", "a long sentence of ordinary words, with 2 numbers in 1 of them"),
    ],
)
def test_ordinary_properties_are_proposed(name: str, value: object) -> None:
    assert is_fit(name, value)


@pytest.mark.parametrize(
    ("users", "identifier"),
    [
        (["a@example.com"] * 9 + ["x"], "email"),
        (["a@example.com", "x"], "external_id"),
        ([], "external_id"),
    ],
)
def test_contacts_are_found_by_email_where_nearly_all_user_ids_are_addresses(
    users: list[str], identifier: str
) -> None:
    assert Sample(raw("A", user) for user in users).identifier == identifier


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("", ["a", "c"]),
        ("all", ["a", "b, too", "c", "7"]),
        ("NONE", []),
        ("1 3", ["a", "c"]),
        ("2-3, 1", ["b, too", "c", "a"]),
        ("c, elsewhere", ["c", "elsewhere"]),
        ("b, too", ["b, too"]),
        ("7", ["7"]),
        ("1,1,a", ["a"]),
        (f"{'0' * 5_000}1", ["a"]),
        ("²", ["²"]),
    ],
)
def test_an_answer_is_numbers_spans_names_all_none_or_what_is_marked(
    answer: str, chosen: list[str]
) -> None:
    assert picked(answer, ["a", "b, too", "c", "7"], ["a", "c"]) == chosen


@pytest.mark.parametrize("answer", ["0", "9", "3-2", "1-9", "9" * 5_000, f"1-{'1' * 5_000}"])
def test_a_number_that_stands_for_nothing_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="expected numbers from 1 to 4") as raised:
        picked(answer, ["a", "b, too", "c", "7"], [])
    assert len(str(raised.value)) < 100


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.lists(st.text())


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "event_type": st.text(max_size=20) | st.sampled_from(["*", "_all", "A", "a"]),
                "event_properties": st.dictionaries(st.text(max_size=9), VALUES, max_size=5),
                "user_properties": st.dictionaries(st.text(max_size=9), VALUES, max_size=5),
            }
        ),
        max_size=6,
    )
)
def test_whatever_is_proposed_makes_settings_that_load(events: list[dict[str, Any]]) -> None:
    sample = Sample(json.dumps(event).encode() for event in events)
    types = [name for name, _ in sample.types]
    text = settings_text(
        Answers(
            amplitude_key="key",
            intercom_token="token",
            events=types,
            metadata=[p.name for p in sample.event_properties(types)],
            properties=[p.name for p in sample.user_properties],
            identifier=sample.identifier,
        )
    )
    assert settings_of(text).sync[0].events.enabled
