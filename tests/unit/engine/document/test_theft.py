"""No change from the console gives a secret to somebody who does not have it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.document.refusals import Objection
from amplitude_intercom.engine.document.secret_files import SecretFolder
from amplitude_intercom.engine.document.theft import problems

EVIL = "https://evil.example"
PROXY = "https://proxy.example/intercom"
STORED = "file:data/secrets/a-token-0123456789abcdef"
SECRETS = SecretFolder(Path("/etc/daemon/data/secrets"), Path("/etc/daemon"))
PRESENT: dict[str, Any] = {
    "data_dir": "data",
    "admin": {"listen": "127.0.0.1:1", "token": "env:ADMIN"},
    "sources": {"kafka": {"servers": ["one:9092"], "password": "env:KAFKA", "batch": 5}},
    "export": {"api_key": "export-key-1234", "secret_key": "env:EXPORT"},
    "relay": [
        {
            "name": "mirror",
            "base_url": "https://mirror.example",
            "amplitude_api_keys": ["env:KEY_A"],
        }
    ],
    "sync": [
        {
            "name": "a",
            "amplitude_api_keys": ["env:KEY_A", "literal-key-0001"],
            "intercom": {"access_token": "env:TOKEN_A", "region": "us"},
        },
        {
            "name": "b",
            "amplitude_api_keys": ["env:KEY_B"],
            "intercom": {"access_token": "literal-token-b", "base_url": PROXY},
        },
    ],
}
SYNC_C = {"name": "c", "amplitude_api_keys": ["*"]}
RELAY = {"name": "new", "region": "us"}


def found(wanted: dict[str, Any], *typed: str, trusted: Any = ()) -> list[Objection]:
    return list(problems(PRESENT, wanted, typed=typed, secrets=SECRETS, trusted=trusted))


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """Return the present table with another value at a path; an index behind the end appends."""
    table = deepcopy(PRESENT)
    holder: Any = table
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, list) and path[-1] == len(holder):
        holder.append(to)
    else:
        holder[path[-1]] = to
    return table


def new_sync(**intercom: str) -> dict[str, Any]:
    return changed("sync", 2, to={**SYNC_C, "intercom": intercom})


def new_relay(**more: Any) -> dict[str, Any]:
    return changed("relay", 1, to={"name": "new", **more})


def swapped() -> dict[str, Any]:
    table = deepcopy(PRESENT)
    one, other = (sync["intercom"] for sync in table["sync"])
    one["access_token"], other["access_token"] = other["access_token"], one["access_token"]
    return table


def renamed() -> dict[str, Any]:
    """Sync b's section with a's name and token, as a mask would bring it back."""
    table = deepcopy(PRESENT)
    table["sync"] = [deepcopy(PRESENT["sync"][1])]
    table["sync"][0] |= {"name": "a"}
    table["sync"][0]["intercom"]["access_token"] = "env:TOKEN_A"
    return table


TYPE_AGAIN = {
    "another base_url, same variable": changed("sync", 0, "intercom", "base_url", to=EVIL),
    "another base_url, same literal": changed("sync", 1, "intercom", "base_url", to=EVIL),
    "another region": changed("sync", 0, "intercom", "region", to="eu"),
    "the proxy without TLS": changed(
        "sync", 1, "intercom", "base_url", to="http://proxy.example/intercom"
    ),
    "another path of the proxy": changed(
        "sync", 1, "intercom", "base_url", to="https://proxy.example/other"
    ),
    "another port of the proxy": changed(
        "sync", 1, "intercom", "base_url", to="https://proxy.example:444/intercom"
    ),
    "an address that is no text": changed("sync", 0, "intercom", "base_url", to=7),
    "a new sync with a token of another": new_sync(access_token="env:TOKEN_A", base_url=EVIL),
    "a token at another sync's address": new_sync(access_token="env:TOKEN_A", base_url=PROXY),
    "tokens that are swapped": swapped(),
    "a section under another's name": renamed(),
    "a token as an API key": changed("sync", 0, "amplitude_api_keys", 2, to="env:TOKEN_A"),
    "a token as a relay's key": new_relay(region="us", amplitude_api_keys=["env:TOKEN_A"]),
    "a token as the export's key": changed("export", "secret_key", to="env:TOKEN_A"),
    "a relay with another base_url": changed("relay", 0, "base_url", to=EVIL),
    "a new relay with known keys": new_relay(base_url=EVIL, amplitude_api_keys=["env:KEY_B"]),
    "a new relay with the syncs' keys": new_relay(base_url=EVIL),
    "a relay that takes the syncs' keys": changed("relay", 0, "amplitude_api_keys", to=[]),
    "the export's address": changed("export", "base_url", to=EVIL),
    "the export's region": changed("export", "region", to="eu"),
    "a token at a key that is none": changed("sync", 0, "intercom", "note", to="env:TOKEN_A"),
    "a stored token at a new address": new_sync(access_token=STORED, base_url=EVIL),
    "a stored token at a known address": new_sync(access_token=STORED, base_url=PROXY),
}
NOT_FROM_HERE = {
    "another variable": new_sync(access_token="env:AWS_SECRET_ACCESS_KEY"),
    "another variable as an API key": changed("sync", 0, "amplitude_api_keys", 2, to="env:HOME"),
    "a file of the machine": new_sync(access_token="file:/etc/shadow"),
    "a file above the folder": new_sync(access_token="file:data/secrets/../../token"),
    "a file above and back": new_sync(access_token="file:data/x/../secrets/token"),
    "a file in a folder below": new_sync(access_token="file:data/secrets/sub/token"),
    "a file beside the folder": new_sync(access_token="file:data/secrets-of-others"),
    "the folder itself": new_sync(access_token="file:data/secrets"),
    "a hidden file": new_sync(access_token="file:data/secrets/.x"),
    "a file of a home": new_sync(access_token="file:~/data/secrets/token"),
    "a file with a NUL": new_sync(access_token="file:data/secrets/a\0b"),
    "a link to the folder": new_sync(access_token="file:link-to-secrets/token"),
    "the spool": new_sync(access_token="file:data/spool.db"),
    "an address of a source": changed("sources", "kafka", "servers", to=["evil:9092"]),
    "a number of a source": changed("sources", "kafka", "batch", to=6),
    "a token as a source's argument": changed("sources", "kafka", "user", to="env:TOKEN_A"),
    "a token in another source": changed(
        "sources", "mqtt", to={"server": "evil", "password": "env:TOKEN_A"}
    ),
    "a source that reads a file": changed("sources", "stdin", to={"paths": ["data/secrets/a"]}),
    "sources that are no table": changed("sources", to=[{"paths": ["/proc/self/environ"]}]),
    "a variable in a source": changed("sources", "mqtt", to={"password": "env:PATH"}),
    "any requests to a new address": new_relay(base_url=EVIL, amplitude_api_keys=["*"]),
    "a variable as a key for Amplitude": new_relay(region="us", amplitude_api_keys=["env:HOME"]),
}
ACCESS = {
    "no token": changed("admin", to={"listen": "127.0.0.1:1"}),
    "another token": changed("admin", "token", to="typed-token"),
    "another address": changed("admin", "listen", to="0.0.0.0:1"),
    "a key more": changed("admin", "more", to=1),
    "no console": {key: value for key, value in PRESENT.items() if key != "admin"},
}
ALLOWED = {
    "nothing": PRESENT,
    "a toggle": changed("sync", 0, "enabled", to=False),
    "the region's own address": changed(
        "sync", 0, "intercom", "base_url", to="https://API.intercom.io:443/"
    ),
    "a sync with a known token": new_sync(access_token="env:TOKEN_A"),
    "a sync that goes": changed("sync", to=PRESENT["sync"][:1]),
    "syncs in another order": changed("sync", to=PRESENT["sync"][::-1]),
    "any events for a sync": changed("sync", 0, "amplitude_api_keys", to=["*"]),
    "a known API key for another sync": changed("sync", 1, "amplitude_api_keys", 1, to="env:KEY_A"),
    "a relay that goes": changed("relay", to=[]),
    "a relay to Amplitude": new_relay(region="eu"),
    "a relay of any request to Amplitude": new_relay(amplitude_api_keys=["*"]),
    "a stored token for Intercom": new_sync(access_token=STORED, region="au"),
    "a source that goes": changed("sources", to={}),
    "another data_dir": changed("data_dir", to="elsewhere"),
}


def cases(table: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("wanted", [pytest.param(v, id=k) for k, v in table.items()])


@cases(TYPE_AGAIN)
def test_a_known_secret_at_a_new_address_has_to_be_typed(wanted: dict[str, Any]) -> None:
    assert {problem.kind for problem in found(wanted)} == {"type_again"}


@cases(NOT_FROM_HERE)
def test_a_source_or_name_of_a_secret_that_the_settings_do_not_have_is_refused(
    wanted: dict[str, Any],
) -> None:
    assert {problem.kind for problem in found(wanted)} == {"not_from_here"}


@cases(NOT_FROM_HERE)
def test_such_a_name_is_no_typed_secret(wanted: dict[str, Any]) -> None:
    assert found(wanted, "*", "some-typed-token") == found(wanted)


@cases(ACCESS)
def test_access_to_the_console_is_not_changed_by_it(wanted: dict[str, Any]) -> None:
    assert [problem.kind for problem in found(wanted, "typed-token")] == ["access"]


@cases(ALLOWED)
def test_a_change_that_teaches_nobody_a_secret_is_allowed(wanted: dict[str, Any]) -> None:
    assert found(wanted) == []


def test_a_secret_that_was_typed_goes_anywhere() -> None:
    table = changed("sync", 1, "intercom", "base_url", to=EVIL)
    table["sync"][1]["intercom"]["access_token"] = "typed-token"
    assert found(table, "typed-token") == []
    assert [problem.path for problem in found(table, "another")] == [
        "sync[1].intercom.access_token"
    ]


def test_a_file_that_was_written_for_a_typed_secret_counts_as_typed() -> None:
    assert found(new_sync(access_token=STORED, base_url=EVIL), STORED) == []


def test_a_relay_needs_each_key_typed() -> None:
    table = new_relay(base_url=EVIL, amplitude_api_keys=["one-key", "literal-key-0001"])
    assert [p.path for p in found(table, "one-key")] == ["relay[1].amplitude_api_keys[1]"]
    assert found(table, "one-key", "literal-key-0001") == []


def test_what_a_kept_version_used_is_allowed_when_it_comes_back_but_not_its_access() -> None:
    former = new_sync(access_token="env:FORMER", base_url=PROXY)
    assert found(former, trusted=[former]) == []
    former["admin"] = {"listen": "127.0.0.1:1"}
    assert [problem.kind for problem in found(former, trusted=[former])] == ["access"]


def test_no_message_quotes_a_secret_or_tells_of_a_file() -> None:
    for wanted in (*TYPE_AGAIN.values(), *NOT_FROM_HERE.values(), *ACCESS.values()):
        said = str(found(wanted))
        assert "literal" not in said
        assert "shadow" not in said


@pytest.mark.parametrize("key", ["token", "read_token"])
def test_a_token_of_the_console_is_called_so(key: str) -> None:
    said = [one.message for one in found(changed("admin", key, to="env:TOKEN_A"))]
    assert any("the console's token" in message for message in said)
