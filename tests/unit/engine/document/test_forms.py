"""Tables for forms: secrets by their origin, and what a form may give instead."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from amplitude_intercom.engine.document.forms import shown, shown_sync, sync_with_secrets_kept
from amplitude_intercom.engine.document.refusals import CannotKeep
from support.secret_settings import KEY, PRESENT


def sync_of(token: Any, **more: Any) -> dict[str, Any]:
    return {"name": "a", "intercom": {"access_token": token}, **more}


def test_a_table_shows_where_its_secrets_come_from() -> None:
    table = shown(tomllib.loads(PRESENT))
    assert table["admin"] == {"token": {"set": True}}
    assert table["sources"]["kafka"] == {
        "servers": [{"set": True, "at": 0}, {"set": True, "at": 1}],
        "password": {"from": "env:KAFKA"},
    }
    assert table["sync"][0] == {
        "name": "a",
        "amplitude_api_keys": [
            {"set": True, "at": 0, "end": "cdef"},
            {"from": "env:KEY"},
            "*",
            {"set": True, "at": 3},
            {"set": True, "at": 4},
        ],
        "intercom": {"access_token": {"set": True}, "region": "us"},
    }


def test_a_form_keeps_changes_and_moves_secrets() -> None:
    present = tomllib.loads(PRESENT)["sync"][0]
    form = shown_sync(present)
    form["intercom"] = {"access_token": "typed", "region": "eu"}
    form["amplitude_api_keys"] = [*form["amplitude_api_keys"][::-1], "typed-key"]
    kept = sync_with_secrets_kept(form, present)
    assert kept.table["amplitude_api_keys"] == ["brief", "short", "*", "env:KEY", KEY, "typed-key"]
    assert kept.table["intercom"] == {"access_token": "typed", "region": "eu"}
    assert ({*kept.typed}, repr(kept)) == ({"typed", "typed-key"}, "KeptSync(***)")


@pytest.mark.parametrize(
    "form",
    [
        sync_of({"set": True}),
        sync_of({"set": False}),
        sync_of({"from": "literal"}),
        sync_of({"from": "env:X", "set": True}),
        sync_of(""),
        sync_of("***"),
        sync_of(7),
        sync_of(None),
        sync_of(["literal"]),
        sync_of("t", amplitude_api_keys=[{"set": True, "at": 9}]),
        sync_of("t", amplitude_api_keys=[{"set": True, "at": "name"}]),
    ],
)
def test_a_form_that_keeps_nothing_or_says_nothing_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(CannotKeep, match="sync"):
        sync_with_secrets_kept(form, {"name": "a"})


def test_a_form_of_another_shape_is_left_to_the_settings() -> None:
    form = {"name": 7, "intercom": "x", "users": [{"set": True}], "more": {"from": "env:X"}}
    assert sync_with_secrets_kept(form, None).table == form
