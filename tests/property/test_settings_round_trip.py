"""Settings survive being written and read; secrets survive neither, except as their source."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.rules.texts import is_blank, is_legal_key
from amplitude_intercom.engine.settings import Settings
from support.settings_tables import to_table

CANARY = "canary-3e88"
VARIABLE = "PROPERTY_TEST_TOKEN"
QUICK = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
PLAIN = TEXT.filter(
    lambda text: (
        not text.endswith(("*", "."))
        and not text.startswith(("env:", "file:"))
        and not is_blank(text)
    )
)  # a name, all told
SECONDS = st.floats(0.001, 1e6)
COUNTS = st.integers(1, 5_000)
SECRETS = st.just(f"env:{VARIABLE}")


def properties(**more: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    renames = st.fixed_dictionaries({"from": PLAIN, "to": TEXT.filter(is_legal_key)}, optional=more)
    return st.lists(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True) | renames,
        max_size=4,
        unique_by=(
            lambda item: item["to"] if isinstance(item, dict) else item,
            lambda item: item["from"].removeprefix("user.") if isinstance(item, dict) else item,
        ),
    )


CLAUSES = st.fixed_dictionaries(
    {
        "property": st.builds("event.{}".format, TEXT),
        "op": st.sampled_from(["is", "is not", "set contains"]),
        "values": st.lists(
            TEXT | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9), min_size=1, max_size=3
        ),
    }
)
SELECTORS = st.fixed_dictionaries(
    {"types": st.lists(TEXT, min_size=1, max_size=3)},
    optional={"where": st.lists(CLAUSES, max_size=2)},
)


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A table in which each key may be left out."""
    return st.fixed_dictionaries({}, optional=keys)


SYNCS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "intercom": st.fixed_dictionaries(
            {"access_token": SECRETS},
            optional={
                "region": st.sampled_from(["us", "eu", "au"]),
                "base_url": st.just("http://127.0.0.1:1"),
                "requests_per_minute": st.integers(6, 10**6),
                "timeout_s": SECONDS,
            },
        ),
    },
    optional={
        "enabled": st.booleans(),
        "amplitude_api_keys": st.lists(SECRETS, max_size=1),
        "mapping": section(
            **{
                "identifier": st.sampled_from(["external_id", "email"]),
                "from": st.sampled_from(["user_id", "device_id", "user.email", "event.a.b"]),
            }
        ),
        "users": section(
            enabled=st.booleans(),
            properties=properties(),
            trigger=st.sampled_from(["identify", "any_update"]),
        ),
        "events": section(
            enabled=st.booleans(),
            select=st.lists(SELECTORS, max_size=3),
            metadata=properties(**{"as": st.just("date")}),
            metadata_limit=st.integers(0, 100),
            unknown_user=st.sampled_from(["park", "create", "dead_letter", "drop"]),
            money=st.dictionaries(TEXT, TEXT, max_size=2),
        ),
        "delivery": section(
            read_ahead=st.integers(1, 8192),
            retry_attempts=st.integers(1, 30),
            probe_first_s=SECONDS,
        ),
    },
)
TABLES = st.fixed_dictionaries(
    {"sync": st.lists(SYNCS, min_size=1, max_size=3, unique_by=lambda sync: sync["name"])},
    optional={
        "data_dir": NAMES,
        "drain_deadline_s": SECONDS,
        "http": section(listen=st.sampled_from(["[::1]:80", "a.b:0"]), cors_origins=st.lists(TEXT)),
        "admin": section(token=SECRETS, settings=st.sampled_from(["edit", "view"])),
        "sources": st.dictionaries(
            NAMES, st.dictionaries(TEXT, PLAIN | COUNTS | st.booleans()), max_size=2
        ),
        "spool": section(max_bytes=st.integers(10**6, 10**12), dedupe_window_s=SECONDS),
        "forward": section(max_line_bytes=COUNTS, batch_lines=COUNTS),
        "log": section(level=st.sampled_from(["debug", "error"]), format=st.just("json")),
    },
)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, CANARY)


def again(checked: Settings) -> Settings:
    return from_table(tomllib.loads(tomli_w.dumps(to_table(checked))))


@QUICK
@given(TABLES)
def test_settings_that_are_written_and_read_are_the_same(table: dict[str, Any]) -> None:
    checked = from_table(table)
    assert again(checked) == checked
    assert to_table(again(checked)) == to_table(checked)


@QUICK
@given(TABLES)
def test_no_secret_shows_in_a_text_or_a_dump(table: dict[str, Any]) -> None:
    checked = from_table(table)
    assert checked.sync[0].intercom.access_token.reveal() == CANARY
    assert CANARY not in f"{checked} {checked!r} {to_table(checked)}"


@QUICK
@given(TABLES)
def test_a_secret_that_is_spelled_out_does_not_show_either(table: dict[str, Any]) -> None:
    for sync in table["sync"]:
        sync["intercom"]["access_token"] = CANARY
    checked = from_table(table)
    assert CANARY not in f"{checked} {checked!r} {to_table(checked)}"
