"""Refused settings point at the key; a form that no file holds is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.console.api_v1.settings_refusals import (
    MOST_LEVELS,
    MOST_VALUES,
    document_refusals,
    problem_of,
    refuse_unfit,
)
from amplitude_intercom.engine.console.problems import FieldError, Problem
from amplitude_intercom.engine.document.refusals import DocumentError, NotToml, SecretRefused
from amplitude_intercom.engine.errors import SettingsError


def nested(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return {"a": value}


@pytest.mark.parametrize(
    "form",
    [
        {"events": {"select": [[]] * MOST_VALUES}},
        {"events": {"select": [{"a": [0] * 9}] * (MOST_VALUES // 10)}},
        {f"key-{n}": n for n in range(MOST_VALUES)},
    ],
    ids=["lists", "tables in a list", "keys"],
)
def test_a_form_of_too_many_values_is_too_large(form: dict[str, Any]) -> None:
    with pytest.raises(Problem) as refused:
        refuse_unfit(form)
    assert refused.value.status == 413


def test_a_large_form_is_taken() -> None:
    types = [f"Event {n}" for n in range(MOST_VALUES - 10)]
    refuse_unfit({"name": "a", "events": {"select": [{"types": types}]}})


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({"a": [1, {"b": None}]}, "/settings/a/1/b"),
        (nested(MOST_LEVELS), "/settings" + "/a" * MOST_LEVELS),
    ],
    ids=["null", "levels"],
)
def test_a_value_that_no_file_can_hold_is_pointed_at(form: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Problem) as refused:
        refuse_unfit(form)
    assert refused.value.status == 422
    assert [one.pointer for one in refused.value.errors] == [pointer]


@pytest.mark.parametrize(
    ("text", "pointer", "detail"),
    [
        ("sync[1].name: `a` is taken", "/sync/1/name", "`a` is taken"),
        ("sync[0]: Object contains unknown field `x`", "/sync/0", None),
        ("data_dir: : is no path", "/data_dir", ": is no path"),
        ("the file has changed: look", "", None),
        ("Expected one: of these", "", None),
    ],
)
def test_a_refusal_of_settings_points_at_the_key(
    text: str, pointer: str, detail: str | None
) -> None:
    with pytest.raises(Problem) as refused, document_refusals():
        raise SettingsError(text)
    assert refused.value.detail == text
    [error] = refused.value.errors
    assert error == FieldError(pointer, detail or (text.partition(": ")[2] if pointer else text))


@pytest.mark.parametrize("refusal", [NotToml("not TOML: at line 3"), SecretRefused("no secret")])
def test_no_refused_value_is_without_an_error(refusal: DocumentError) -> None:
    refused = problem_of(refusal)
    assert (refused.status, [one.detail for one in refused.errors]) == (422, [str(refusal)])
