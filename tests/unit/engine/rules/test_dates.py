"""Dates in any spelling, and the property names that promise one."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.rules.attribute_values import type_for
from amplitude_intercom.engine.rules.dates import is_date_key, to_seconds
from amplitude_intercom.engine.rules.fitting import Style


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("renewed_at", True),
        ("end_date", True),
        ("endDate", True),
        ("date", True),
        ("format", False),
        ("update", False),
    ],
)
def test_the_name_of_a_user_property_can_say_that_it_is_a_date(key: str, says: bool) -> None:
    assert is_date_key(key) is says
    assert type_for(key, 1_715_644_800, Style()) == ("date" if says else "float")


@pytest.mark.parametrize(
    "value", [True, None, [], {}, "x", "99999-01-01", float("nan"), 10**20, -(10**14)]
)
def test_a_value_that_is_no_date_has_no_seconds(value: Any) -> None:
    assert to_seconds(value) is None
