"""Cursors of lists."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.console.api_v1.pages import (
    PageQuery,
    cursor_of,
    number,
    position_of,
)
from amplitude_intercom.engine.console.problems import Problem

TEXTS = st.text(max_size=40)


@given(names=TEXTS, position=TEXTS.filter(bool))
def test_a_cursor_leads_back_to_its_position(names: str, position: str) -> None:
    assert position_of(names, cursor_of(names, position), str) == position


@given(names=TEXTS, other=TEXTS, position=TEXTS.filter(bool))
def test_a_cursor_of_another_list_is_refused(names: str, other: str, position: str) -> None:
    if names != other:
        with pytest.raises(Problem) as refusal:
            position_of(other, cursor_of(names, position), str)
        assert (refusal.value.status, refusal.value.errors[0].pointer) == (422, "/cursor")


@given(
    garbage=st.text(min_size=1, max_size=60)
    | st.binary(min_size=1, max_size=60).map(lambda some: base64.urlsafe_b64encode(some).decode())
)
def test_any_other_text_is_refused_as_a_cursor(garbage: str) -> None:
    with pytest.raises(Problem) as refusal:
        position_of("jobs", garbage, str)
    assert refusal.value.status == 422


def test_a_list_is_named_by_its_conditions_and_not_by_its_pages() -> None:
    first, later = PageQuery(limit=1), PageQuery(cursor="x", limit=200)
    assert first.list_name("/jobs") == later.list_name("/jobs") != first.list_name("/syncs")


@pytest.mark.parametrize("forged", ["-1", "x", "9" * 30, "1.0", "٣"])
def test_a_forged_position_is_refused_like_any_other_text(forged: str) -> None:
    with pytest.raises(Problem) as refusal:
        position_of("jobs", cursor_of("jobs", forged), number)
    assert refusal.value.status == 422
    assert position_of("jobs", cursor_of("jobs", "17"), number) == 17
    assert position_of("jobs", "", number) == 0
