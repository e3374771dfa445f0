"""What a change of settings does, and what it is said to do."""

from __future__ import annotations

from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.settings_effects import Effects, effects_of, until_restart

BEFORE: dict[str, Any] = {"admin": {"listen": "127.0.0.1:8711"}}


def settings(**more: Any) -> Settings:
    return from_table(BEFORE | more)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("admin", {"listen": "127.0.0.1:8711", "token": "a-secret"}),
        ("log", {"level": "debug"}),
        ("drain_deadline_s", 5),
        ("forward", {"batch_lines": 10}),
        ("export", {"api_key": "a", "secret_key": "b"}),
    ],
)
def test_a_section_that_holds_at_once_is_named(key: str, value: Any) -> None:
    effects = effects_of(settings(), settings(**{key: value}))
    assert effects == Effects(sections=[key])
    assert effects.lines() == [f"changed settings: {key}"]


@pytest.mark.parametrize("key", ["data_dir", "http", "admin", "spool"])
def test_a_section_of_the_process_waits_for_a_restart(key: str) -> None:
    values = {"data_dir": "other", "spool": {"max_bytes": 2_000_000}}
    value = values.get(key, {"listen": "127.0.0.1:1"})
    effects = effects_of(settings(), settings(**{key: value}))
    assert effects == Effects(needs_restart=[key])


def test_of_the_admin_port_the_address_waits_and_the_token_holds() -> None:
    before, after = settings(), settings(admin={"listen": "127.0.0.1:1", "token": "a-secret"})
    assert effects_of(before, after) == Effects(sections=["admin"], needs_restart=["admin"])
    running = until_restart(before, after)
    assert running.admin
    assert running.admin.listen == "127.0.0.1:8711"
    assert effects_of(running, after) == Effects(needs_restart=["admin"]), "it was told already"


def test_a_port_that_is_taken_away_waits_for_a_restart() -> None:
    sync = {"name": "one", "amplitude_api_keys": ["k"], "intercom": {"access_token": "t"}}
    before, after = settings(sync=[sync]), from_table({"sync": [sync]})
    assert effects_of(before, after) == Effects(needs_restart=["admin"])
    assert until_restart(before, after).admin == before.admin


def test_nothing_is_said_to_have_changed_where_nothing_has() -> None:
    assert effects_of(settings(), settings()).lines() == ["nothing has changed"]
