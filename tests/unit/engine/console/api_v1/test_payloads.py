"""Payloads as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.console.api_v1.payloads import MOST_CHARACTERS, payload_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def _pairs(text: str, number: Callable[[str], Any]) -> Any:
    return json.loads(text, object_pairs_hook=tuple, parse_int=number, parse_float=number)


def test_each_digit_and_the_order_of_keys_stay() -> None:
    raw = b'{"z": 12345678901234567890.1000, "a": 9007199254740993, "z": 1e400, "t": "\\u00e9"}'
    shown = payload_of(raw)
    assert shown.text.splitlines() == [
        "{",
        '  "z": 12345678901234567890.1000,',
        '  "a": 9007199254740993,',
        '  "z": 1e400,',
        '  "t": "\\u00e9"',
        "}",
    ]
    assert (shown.is_whole, shown.is_json, shown.bytes) == (True, True, len(raw))


@given(VALUES)
def test_the_lines_say_the_same_as_the_payload(value: Any) -> None:
    raw = json.dumps(value)
    shown = payload_of(raw.encode())
    assert shown.is_json
    assert _pairs(shown.text, Decimal) == _pairs(raw, Decimal)


@pytest.mark.parametrize(
    "raw", [b"{not json", b"[" * 100_000, b"[" * 65 + b"]" * 65, b"", b'"\\ud800"', b'"' * 9]
)
def test_a_payload_that_cannot_be_laid_out_is_shown_as_it_came(raw: bytes) -> None:
    shown = payload_of(raw)
    assert (shown.text, shown.is_json, shown.is_whole) == (raw.decode(), False, True)


def test_bytes_that_are_no_text_and_a_long_payload_are_said_not_to_be_whole() -> None:
    assert not payload_of(b"\xff").is_whole
    long = payload_of(b'"' + b"x" * MOST_CHARACTERS + b'"')
    assert (len(long.text), long.is_whole) == (MOST_CHARACTERS, False)


def test_many_deep_lists_do_not_become_many_times_their_size() -> None:
    raw = b"[" + b",".join([b"[" * 60 + b"]" * 60] * 100) + b"]"
    assert len(payload_of(raw).text) <= MOST_CHARACTERS
