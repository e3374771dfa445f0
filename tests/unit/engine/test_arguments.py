"""What is wrong with a source's settings is named before the source is built."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.arguments import problems
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.sources import load_source


class Queue:
    """A source with arguments of several kinds."""

    def __init__(
        self, *, hosts: Sequence[str], folder: Path | None = None, every_s: float = 1.0
    ) -> None:
        raise AssertionError("it is not built")


class Anything:
    def __init__(self, **more: Any) -> None:
        raise AssertionError("it is not built")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"hosts": ["a"]}, ""),
        ({"hosts": ["a"], "every_s": 2, "folder": "x"}, ""),
        ({}, "hosts: missing"),
        ({"hosts": "a"}, "hosts: Expected `array`"),
        ({"hosts": ["a", 5]}, "hosts: Expected `str`"),
        ({"hosts": ["a"], "every_s": "soon"}, "every_s: Expected `float`"),
        ({"hosts": ["a"], "evry_s": 1}, "evry_s: this source has no such setting; it has hosts,"),
    ],
)
def test_an_argument_that_cannot_be_is_named(arguments: dict[str, Any], said: str) -> None:
    assert next(problems(Queue, arguments, ["a"]), "").startswith(said)
    assert said or not list(problems(Queue, arguments, ["a"]))


def test_a_source_that_takes_anything_is_given_it() -> None:
    assert not list(problems(Anything, {"a": 1}, ["a"]))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("stdin", {}, "sources.stdin.sync: missing"),
        ("stdin", {"sync": "b"}, "sources.stdin.sync: there is no sync `b`; there is a"),
        ("stdin", {"sync": 5}, "sources.stdin.sync: Expected"),
        ("stdin", {"sync": "a", "paths": 5}, "sources.stdin.paths: Expected `array`"),
        ("stdni", {"sync": "a"}, "sources.stdni: no source of this name"),
    ],
)
def test_a_pipe_has_to_say_which_sync_it_is_for(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_source(name, arguments, ["a"])
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("stdin", {"batch_lines": 0}, "batch_lines: Expected `int` >= 1"),
        ("stdin", {"max_line_bytes": -1}, "max_line_bytes: Expected `int` >= 1"),
        ("stdin", {"max_event_bytes": 0}, "max_event_bytes: Expected `int` >= 1024"),
        ("stdin", {"refused_nap_s": -1.0}, "refused_nap_s: Expected `float` >= 0.001"),
        ("http", {"max_held_bytes": 0}, "max_held_bytes: Expected `int` >= 20000000"),
        ("http", {"body_timeout_s": float("nan")}, "body_timeout_s: Expected `float`"),
        ("http", {"idle_timeout_s": 0.0}, "idle_timeout_s: Expected `float`"),
        ("http", {"max_connections": -5}, "max_connections: Expected `int` >= 1"),
        ("http", {"key_events_per_s": -1.0}, "key_events_per_s: Expected `float`"),
        ("http", {"listen": "8710"}, "listen: expected `host:port`"),
        ("http", {"listen": "127.0.0.1:99999"}, "listen: expected `host:port`"),
    ],
)
def test_the_bounds_of_a_source_are_those_of_its_settings(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    more = {"sync": "a"} if name == "stdin" else {}
    with pytest.raises(SettingsError) as caught:
        load_source(name, {**arguments, **more}, ["a"])
    assert re.match(rf"sources\.{name}(\.|: ){re.escape(said)}", str(caught.value))
