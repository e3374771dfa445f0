"""What ``check`` finds in settings alone."""

from __future__ import annotations

import re
import time
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.engine.findings.settings_findings import (
    host_findings,
    key_findings,
    port_findings,
    relay_findings,
    secret_findings,
    shared_fields,
)
from support.findings import HTTP, settings, sync, texts


def test_an_http_source_without_keys_refuses_everybody() -> None:
    [text] = texts([*key_findings(settings(sync(amplitude_api_keys=[]), **HTTP))])
    assert text.startswith("error http: no sync has `amplitude_api_keys`")
    assert not [*key_findings(settings(sync(amplitude_api_keys=[])))]
    assert not [*key_findings(settings(**HTTP))]


def test_a_key_of_a_disabled_sync_alone_is_named() -> None:
    off = sync("off", enabled=False)
    [text] = texts([*key_findings(settings(off, sync("on", amplitude_api_keys=["key-2"])))])
    assert "no enabled sync takes the key key-…" in text
    assert not [*key_findings(settings(off, sync("on")))]
    assert not [*key_findings(settings(off, sync("on", amplitude_api_keys=["*"])))]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "both write `City`, `plan` to one workspace's contacts: the one that comes last"),
        ({"mapping": {"identifier": "email", "from": "user.email"}}, "do not know what the other"),
        ({"users": {"properties": ["seats"]}}, ""),
        ({"users": {"properties": ["plan"], "enabled": False}}, ""),
        ({"intercom": {"access_token": "another"}}, ""),
        ({"enabled": False}, ""),
    ],
)
def test_fields_that_two_syncs_write_are_named(other: dict[str, Any], said: str) -> None:
    users: dict[str, Any] = {
        "users": {"properties": ["plan", "email", {"from": "city", "to": "City"}]}
    }
    theirs: dict[str, Any] = {"users": {"properties": ["City", "plan"]}, **other}
    found = texts([*shared_fields(settings(sync(**users), sync("b", **theirs)))])
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.parametrize(("keys", "found"), [(["key-1"], 1), (["*"], 1), (["key-2"], 0), ([], 0)])
def test_two_syncs_with_one_key_and_one_token_send_twice(keys: list[str], found: int) -> None:
    other = sync("b", amplitude_api_keys=keys)
    for pair in ((sync(), other), (other, sync())):
        said = texts([*key_findings(settings(*pair))])
        assert len(said) == found
        assert all("sent twice" in text for text in said)
    elsewhere = {**other, "intercom": {"access_token": "another"}}
    assert not [*key_findings(settings(sync(), elsewhere))]


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(["*", "a", "b", "c"]), unique=True), st.booleans()),
        max_size=6,
    )
)
def test_each_pair_with_one_key_and_one_token_is_named_once_in_order(
    syncs: list[tuple[list[str], bool]],
) -> None:
    given_ = [
        sync(f"s{n}", amplitude_api_keys=keys, intercom={"access_token": f"token-{same}"})
        for n, (keys, same) in enumerate(syncs)
    ]
    said = [f.text for f in key_findings(settings(*given_)) if "sent twice" in f.text]
    assert [re.findall(r"`(s\d+)`", text) for text in said] == [
        [f"s{n}", f"s{m}"]
        for (n, (mine, one)), (m, (theirs, other)) in combinations(enumerate(syncs), 2)
        if one == other and mine and theirs and ({*mine} & {*theirs} or "*" in mine + theirs)
    ]


@pytest.mark.parametrize("key", ["*", "key-1", None])
def test_the_first_findings_of_a_thousand_syncs_come_at_once(key: str | None) -> None:
    """A reload asks for them: all pairs of a thousand syncs held the loop for a second."""
    many = settings(*(sync(f"s{n}", amplitude_api_keys=[key or f"key-{n}"]) for n in range(1_000)))
    began_s = time.process_time()
    found = list(islice(key_findings(many), 20))
    assert time.process_time() - began_s < 0.2
    assert len(found) == (0 if key is None else 20)


@pytest.mark.parametrize(
    ("admin", "found"),
    [("127.0.0.1:8710", 1), ("localhost:8710", 1), ("127.0.0.1:8711", 0), ("[::1]:8710", 0)],
)
def test_one_port_twice_is_named(admin: str, found: int) -> None:
    table = settings(**HTTP, admin={"listen": admin})
    assert len([*port_findings(table)]) == found


def test_an_intercom_at_our_own_port_is_named() -> None:
    table = settings(
        sync(intercom={"access_token": "t", "base_url": "http://localhost:8710/x"}), **HTTP
    )
    [text] = texts([*port_findings(table)])
    assert "is this program's own http.listen" in text


def test_secrets_that_are_spelled_out_are_named_and_not_shown(tmp_path: Path) -> None:
    top: dict[str, Any] = {
        "admin": {"token": "canary-1", "read_token": "canary-3"},
        "export": {"api_key": "public", "secret_key": "canary-2"},
    }
    found = [*secret_findings(settings(**top))]
    assert [(finding.level, finding.key) for finding in found] == [
        ("warning", "sync[0].intercom.access_token"),
        ("warning", "admin.token"),
        ("warning", "admin.read_token"),
        ("warning", "export.secret_key"),
    ]
    assert "canary" not in "".join(texts(found))
    (tmp_path / "token").write_text("canary-3", "utf-8")
    there = sync(intercom={"access_token": f"file:{tmp_path / 'token'}"})
    assert not [*secret_findings(settings(there))]


def test_a_region_beside_a_base_url_is_named() -> None:
    url, region = {"base_url": "http://127.0.0.1:9"}, {"region": "us"}
    table = {
        "sync": [{"intercom": url}, {"intercom": region}, {"intercom": {**url, **region}}],
        "relay": [{**url, **region}, {}],
        "export": {**url, **region},
    }
    assert [finding.key for finding in host_findings(table)] == [
        "sync[2].intercom.region",
        "relay[0].region",
        "export.region",
    ]
    assert not [*host_findings({})]


@pytest.mark.parametrize(
    ("relays", "http", "found"),
    [
        ([], True, []),
        ([{}], True, []),
        ([{"amplitude_api_keys": ["*"]}], True, []),
        ([{"amplitude_api_keys": ["key-1", "key-9"]}], True, []),
        ([{"enabled": False}], False, []),
        ([{}], False, ["relay"]),
        ([{"amplitude_api_keys": ["key-9"]}], True, ["sync[0].amplitude_api_keys"]),
    ],
)
def test_events_that_amplitude_will_not_get_are_named(
    relays: list[dict[str, Any]], http: bool, found: list[str]
) -> None:
    top: dict[str, Any] = {"relay": relays} | ({"http": {}} if http else {})
    assert [finding.key for finding in relay_findings(settings(**top))] == found
