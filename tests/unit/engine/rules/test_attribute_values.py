"""User properties as attributes of a contact."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.rules.attribute_values import fit_attribute
from amplitude_intercom.engine.rules.fitting import (
    Style,
)

LINK = {"url": "https://example.com", "value": "Order"}
MONEY = {"amount": 1999, "currency": "eur"}


@pytest.mark.parametrize(
    ("data_type", "value", "fitted", "reason"),
    [
        ("string", "x", "x", None),
        ("string", 5, "5", "type_converted"),
        ("string", 1.5, "1.5", "type_converted"),
        ("string", True, "true", "type_converted"),
        ("string", ["a", "b"], "a, b", "array_joined"),
        ("integer", 5, 5, None),
        ("integer", "5", 5, "type_converted"),
        ("integer", 5.0, 5, "type_converted"),
        ("integer", "5.0", 5, "type_converted"),
        ("integer", 5.5, None, "type_mismatch"),
        ("integer", True, None, "type_mismatch"),
        ("integer", 2**53, None, "type_mismatch"),
        ("float", 5, 5, None),
        ("float", "1e3", 1000.0, "type_converted"),
        ("float", "1e999", None, "type_mismatch"),
        ("float", "5 EUR", None, "type_mismatch"),
        ("float", "02138", None, "type_mismatch"),
        ("integer", "007", None, "type_mismatch"),
        ("integer", "0", 0, "type_converted"),
        ("float", "0.5", 0.5, "type_converted"),
        ("float", 10**300, None, "type_mismatch"),
        ("float", float("nan"), None, "type_mismatch"),
        ("integer", 1e300, None, "type_mismatch"),
        ("string", 1e300, "1e+300", "type_converted"),
        ("string", "a\0b", "a b", "characters_cleaned"),
        ("string", "02138", "02138", None),
        ("float", ["1"], 1, "array_joined"),
        ("boolean", True, True, None),
        ("boolean", "False", False, "type_converted"),
        ("boolean", 1, True, "type_converted"),
        ("boolean", 2, None, "type_mismatch"),
        ("boolean", "yes", None, "type_mismatch"),
        ("date", "2024-05-14T09:00:00Z", 1_715_677_200, "type_converted"),
        ("date", 1_715_677_200_000, 1_715_677_200, "type_converted"),
        ("date", 1_715_677_200, 1_715_677_200, None),
        ("date", "1715644800", 1_715_644_800, "type_converted"),
        ("date", "1715644800000", 1_715_644_800, "type_converted"),
        ("date", "12", None, "type_mismatch"),
        ("date", 10**321, None, "type_mismatch"),
        ("date", 1e300, None, "type_mismatch"),
        ("date", "soon", None, "type_mismatch"),
        ("url", "https://example.com/a.png", "https://example.com/a.png", None),
        ("url", "a.png", None, "type_mismatch"),
        ("url", "https://example.com/\0", None, "type_mismatch"),
        ("email", " A@Example.com ", "a@example.com", "type_converted"),
        ("email", "a@example.com", "a@example.com", None),
        ("email", "a\x01@example.com", None, "type_mismatch"),
        ("email", "nobody", None, "type_mismatch"),
        ("role", "lead", "lead", None),
        ("role", "admin", None, "type_mismatch"),
        ("", True, True, None),
        ("", 10**20, "100000000000000000000", "number_as_text"),
        ("", "x" * 300, "x" * 255, "text_cut"),
        ("", "2024-05-14T09:00:00Z", 1_715_677_200, "date_converted"),
        ("", "2024-05-14", "2024-05-14", None),
        ("", {"a": 1}, None, "nested_left_out"),
        ("", None, None, None),
        ("list", "x", "x", None),
    ],
)
def test_a_user_property_becomes_its_attribute_s_type_where_nothing_is_lost(
    data_type: str, value: Any, fitted: Any, reason: str | None
) -> None:
    found, note = fit_attribute("plan", value, data_type, Style())
    assert (found, type(found), note.reason if note else None) == (fitted, type(fitted), reason)


def test_a_number_of_any_length_is_fitted_or_left_out() -> None:
    for data_type in ("string", "integer", "float", "boolean", "date", "url", "email", "role", ""):
        for value in (10**5_000, -(10**5_000), "9" * 5_000, [10**5_000]):
            fitted, note = fit_attribute("renewed_at", value, data_type, Style())
            assert fitted is None or len(fitted) <= 255
            assert note is not None
