"""Whatever stands at whatever key: it is read, or refused with the key named."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any, get_args

import msgspec
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine import config
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Rename, Section, Settings

SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.booleans()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.just(datetime.UTC) | st.none())
    | st.sampled_from(
        ["*", "env:", "env:X=", "file:", "file:/dev/null", "~", "[::1]:1", "https://a..b", "a:0"]
    )
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["types", "where", "from", "to", "property", "op", "values", "stdin", "name"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def keys_of(struct: Any = Settings, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for field in msgspec.structs.fields(struct):
        here = (*path, field.encode_name)
        found.append(here)
        for kind in (field.type, *get_args(field.type), *_inner(field.type)):
            if isinstance(kind, type) and issubclass(kind, Section):
                found += [] if kind is Rename else keys_of(kind, here)
    return found


def _inner(kind: Any) -> list[Any]:
    return [inner for outer in get_args(kind) for inner in get_args(outer)]


def put(table: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inside = table.setdefault(name, {})
        table = inside[0] if isinstance(inside, list) else inside
    table[path[-1]] = value


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(keys_of()), VALUES)
def test_any_value_at_any_key_is_read_or_refused_by_name(path: tuple[str, ...], value: Any) -> None:
    table: dict[str, Any] = {"sync": [{"name": "a", "intercom": {"access_token": "b"}}]}
    put(table, path, value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.toml"
        file.write_text(tomli_w.dumps(table), encoding="utf-8")
        try:
            assert isinstance(config.load(file), Settings)
        except SettingsError as error:
            said = str(error).removeprefix(f"{file}: ").replace("[0]", "")
            section = ".".join(path[:-1]) or path[0]
            assert said.startswith(section), said
