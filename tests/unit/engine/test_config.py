"""What is wrong with settings is named by its key; secrets are not seen."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from amplitude_intercom.engine.addresses import is_loopback
from amplitude_intercom.engine.config import _read_pipe, from_table, load
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES, Settings
from support.settings_tables import to_table

CANARY = "canary-7f3a"


def table(**sync: Any) -> dict[str, Any]:
    return {"sync": [{"name": "a", "intercom": {"access_token": CANARY}, **sync}]}


def complaint(wrong: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        from_table(wrong)
    assert CANARY not in str(caught.value)
    return str(caught.value)


def events(**keys: Any) -> dict[str, Any]:
    return table(events=keys)


def test_the_smallest_settings_have_the_documented_defaults() -> None:
    settings = from_table(table())
    assert (settings.data_dir, settings.http, settings.admin) == ("data", None, None)
    sync = settings.sync[0]
    assert (sync.enabled, sync.mapping.identifier, sync.mapping.source) == (
        True,
        "external_id",
        "user_id",
    )
    assert (sync.users.properties, sync.events.metadata) == ([], [])
    assert (sync.events.unknown_user, sync.intercom.requests_per_minute) == ("park", 10_000)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (table() | {"data_dri": "x"}, "unknown field `data_dri`"),
        (table(enabeld=True), "sync[0]: Object contains unknown field `enabeld`"),
        (table() | {"drain_deadline_s": "soon"}, "drain_deadline_s: Expected `float`"),
        (table(enabled=1), "sync[0].enabled: Expected `bool`"),
        (table(name="no spaces"), "sync[0].name: Expected a name of up to 64"),
        (table(name="line\n"), "sync[0].name: "),
        (table(mapping={"from": "user."}), "sync[0].mapping.from: Expected `user_id`"),
        (table(intercom={}), "sync[0].intercom: Object missing required field `access_token`"),
        (table(intercom={"access_token": 5}), "sync[0].intercom.access_token: Expected"),
        (table(intercom={"access_token": ""}), "sync[0].intercom.access_token: Expected"),
        (
            table(intercom={"access_token": CANARY, "base_url": "ftp://x"}),
            "sync[0].intercom.base_url: Expected an address, `http",
        ),
        ({}, "sync: Expected at least one `[[sync]]`"),
        ({"sync": []}, "sync: "),
        (table() | {"http": {"listen": "nowhere"}}, "http.listen: Expected an address"),
        (table() | {"http": {"listen": "::1:80"}}, "http.listen: Expected an address"),
        (table() | {"admin": {"listen": "localhost:65536"}}, "admin.listen: Expected a port"),
        (table() | {"http": {"body_timeout_s": float("nan")}}, "http.body_timeout_s: "),
        (table() | {"http": {"listen": "a..b:80"}}, "http.listen: Expected the name of a host"),
        (table() | {"http": {"listen": f"{'a' * 64}:80"}}, "http.listen: Expected the name of"),
        (table() | {"http": {"listen": "256.0.0.1:80"}}, "http.listen: Expected an IP address"),
        (table() | {"http": {"listen": "[::1%lo]:80"}}, "http.listen: Expected an address"),
        (table() | {"http": {"max_held_bytes": 10**21}}, "http.max_held_bytes: "),
        (table() | {"spool": {"reserve_bytes": 10**21}}, "spool.reserve_bytes: "),
        (table() | {"spool": {"dedupe_window_s": float("inf")}}, "spool.dedupe_window_s: "),
        (table() | {"spool": {"max_bytes": -1}}, "spool.max_bytes: "),
        (table(delivery={"probe_first_s": 1e-300}), "sync[0].delivery.probe_first_s: "),
        (
            table(intercom={"access_token": CANARY, "timeout_s": float("inf")}),
            "sync[0].intercom.timeout_s: ",
        ),
        (table() | {"data_dir": ""}, "data_dir: Expected a path"),
        (table() | {"data_dir": "a\0b"}, "data_dir: Expected a path"),
        (table() | {"data_dir": "\ud800"}, "data_dir: Expected a path"),
        (table() | {"data_dir": "~no-such-user-here/x"}, "data_dir: Expected a user that exists"),
        (table() | {"sources": {"stdin": 5}}, "sources.stdin: Expected `object`"),
        (table() | {"http": {"port": 80}}, "http: Object contains unknown field `port`; use `http"),
        (table(enabeld=True), "`enabeld`; did you mean `enabled`?"),
        (table(zzz=True), "`zzz`; there are name, amplitude_api_keys,"),
        (events(rename={"a": "b", "c": 1}), "sync[0].events.rename.c: Expected `str`"),
        (table(amplitude_api_keys=["a", "b", "a "]), "sync[0].amplitude_api_keys[2]: the same"),
        (events(select=[{"types": []}]), "sync[0].events.select[0].types: empty"),
        (events(metadata=["*"]), 'sync[0].events.metadata[0]: "*" is not offered'),
        (events(metadata=["a", "user.*"]), 'sync[0].events.metadata[1]: "*" is not offered'),
        (events(metadata=["a", "event.a"]), "sync[0].events.metadata[1]: `a` is fed twice"),
        (table(users={"properties": [""]}), "sync[0].users.properties[0]: Expected a property"),
        (table(users={"properties": [" "]}), "sync[0].users.properties[0]: Expected a property"),
        (events(metadata=["\t"]), "sync[0].events.metadata[0]: Expected a property"),
        (events(rename={"a": "\0"}), "sync[0].events.rename.a: Expected a name"),
        (
            table(users={"properties": [{"from": "a", "to": "b", "as": "date"}]}),
            "sync[0].users.properties[0].as: is for metadata",
        ),
        (
            events(metadata=[{"from": "a", "to": "b", "as": "text"}]),
            "sync[0].events.metadata[0].as: Invalid enum value",
        ),
        (
            table(users={"properties": ["plan", {"from": "user.plan", "to": "Plan"}]}),
            "sync[0].users.properties[1]: `plan` is sent twice",
        ),
        (table(users={"properties": ["*"]}), 'sync[0].users.properties[0]: "*" is not offered'),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(wrong: dict[str, Any], said: str) -> None:
    assert said in complaint(wrong)


def test_a_name_that_two_syncs_have_is_refused() -> None:
    twice = {"sync": table()["sync"] * 2}
    assert complaint(twice) == "sync[1].name: `a` is taken by another sync"


def test_as_many_event_types_as_intercom_keeps_pass_and_one_more_is_named() -> None:
    types = [f"Event {n:03}" for n in range(MAX_EVENT_TYPES + 1)]
    from_table(events(select=[{"types": [*types[:-1], "*"]}]))
    said = complaint(events(select=[{"types": types[:60]}, {"types": types[60:]}]))
    assert said.startswith("sync[0].events.select: Expected at most 120 event types")
    assert said.endswith("Surplus: Event 120")


# --- the admin's listener --------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"])
def test_an_address_of_this_machine_needs_no_token(address: str) -> None:
    assert is_loopback(address)
    from_table(table() | {"admin": {"listen": address}})


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "127.example.com:1", "10.0.0.1:1"])
def test_beyond_loopback_the_admin_needs_a_token(address: str) -> None:
    assert complaint(table() | {"admin": {"listen": address}}).startswith("admin.token: needed")
    from_table(table() | {"admin": {"listen": address, "token": CANARY}})


@pytest.mark.parametrize(
    ("admin", "start"),
    [
        ({"read_token": CANARY}, "admin.read_token: without admin.token"),
        ({"token": CANARY, "read_token": CANARY}, "admin.read_token: it is the same"),
        ({"hosts": ["a.example", "https://a.example"]}, "admin.hosts[1]: Expected"),
        ({"hosts": ["a.example:8711"]}, "admin.hosts[0]: Expected"),
        ({"hosts": [""]}, "admin.hosts[0]: Expected"),
        ({"settings": "none"}, "admin.settings: Invalid"),
        ({"scheme_header": "X: y"}, "admin.scheme_header: Expected a header's name"),
    ],
)
def test_who_may_use_the_admin_port_is_checked(admin: dict[str, Any], start: str) -> None:
    said = complaint(table() | {"admin": admin})
    assert said.startswith(start)
    assert CANARY not in said


# --- secrets ----------------------------------------------------------------------------


def token_of(settings: Settings) -> str:
    return settings.sync[0].intercom.access_token.reveal()


def with_token(spelled: str) -> dict[str, Any]:
    return table(intercom={"access_token": spelled})


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", CANARY)
    settings = from_table(with_token("env:A_TOKEN"))
    assert token_of(settings) == CANARY
    assert CANARY not in f"{settings} {settings!r} {to_table(settings)}"
    assert to_table(settings)["sync"][0]["intercom"]["access_token"] == "env:A_TOKEN"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_missing_or_empty_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("A_TOKEN", value)
    assert complaint(with_token("env:A_TOKEN")) == (
        "sync[0].intercom.access_token: Expected the environment variable `A_TOKEN` to be set"
    )


def test_a_secret_comes_from_a_file_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{CANARY}\n")
    settings = from_table(with_token("file:token"), folder=tmp_path)
    assert token_of(settings) == CANARY
    assert CANARY not in f"{settings!r} {to_table(settings)}"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_secret_file_that_is_missing_empty_or_no_text_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    said = complaint(with_token(f"file:{path}"))
    assert said.startswith("sync[0].intercom.access_token: Expected")
    assert str(path) in said


def test_a_file_name_that_no_file_can_have_is_refused() -> None:
    assert "sync[0].intercom.access_token: Expected a readable file" in complaint(
        with_token("file:a\0b")
    )


def test_a_secret_that_is_spelled_out_is_dumped_as_stars() -> None:
    settings = from_table(table(amplitude_api_keys=[CANARY]))
    assert CANARY not in f"{settings} {settings!r} {to_table(settings)}"
    assert to_table(settings)["sync"][0]["amplitude_api_keys"] == ["***"]


@pytest.mark.parametrize(
    "evil",
    ["line\nend", "a\rb", "nul\0", "esc\x1b[1m", "\u043a\u043b", "caf\xe9", "\ud800", "\x7f"],
)
@pytest.mark.parametrize("spelled", ["{}", "env:A_TOKEN", "file:token"])
def test_a_secret_that_no_header_can_hold_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evil: str, spelled: str
) -> None:
    value = f"{CANARY}{evil}{CANARY}"
    if "env" in spelled and "\0" not in evil:
        monkeypatch.setenv("A_TOKEN", value.replace("\ud800", "\udc80"))
    (tmp_path / "token").write_bytes(value.encode(errors="surrogatepass"))
    token = spelled.format(value)
    for key, wrong in (
        ("sync[0].intercom.access_token", with_token(token)),
        ("sync[0].amplitude_api_keys[0]", table(amplitude_api_keys=[token])),
        ("admin.token", table() | {"admin": {"token": token}}),
    ):
        with pytest.raises(SettingsError) as caught:
            from_table(wrong, folder=tmp_path)
        assert str(caught.value).startswith(f"{key}: Expected")
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("around", ["\n", "\r\n", " ", "\t"])
def test_white_space_around_a_secret_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str
) -> None:
    monkeypatch.setenv("A_TOKEN", f"{CANARY}{around}")
    (tmp_path / "token").write_text(f"{around}{CANARY}{around}")
    for spelled in (f"{CANARY}{around}", "env:A_TOKEN", "file:token"):
        assert token_of(from_table(with_token(spelled), folder=tmp_path)) == CANARY


def test_a_secret_for_a_source_is_held_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "a\nb")
    wrong = table() | {"sources": {"queue": {"hosts": [{"password": "env:A_TOKEN"}]}}}
    assert complaint(wrong).startswith("sources.queue.hosts[0].password: Expected a secret")


def test_a_file_that_changed_is_read_again_and_one_that_is_broken_changes_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    secret = from_table(with_token("file:token"), folder=tmp_path).sync[0].intercom.access_token
    file.write_text("second\n")
    assert (secret.reveal(), secret.reveal_again()) == ("first", "second")
    for broken in (b"", b"\xff", b"a\nb"):
        file.write_bytes(broken)
        assert secret.reveal_again() == "first"
    file.unlink()
    assert secret.reveal_again() == "first"


def test_a_secret_file_that_is_no_plain_small_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    for name in ("pipe", "large", ".", "/dev/zero"):
        wrong = with_token(f"file:{tmp_path / name}")
        assert complaint(wrong).startswith("sync[0].intercom.access_token: Expected a readable")


# --- the file ---------------------------------------------------------------------------


def test_relative_paths_start_at_the_file_s_folder(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(table() | {"data_dir": "spools"}))
    assert load(path).data_dir == str(tmp_path / "spools")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[http\n", "not TOML"),
        (b'data_dir = "\xff"\n', "not UTF-8"),
        (b"", "sync: Expected at least one `[[sync]]`"),
        (b"data_dir = " + b"9" * 5_000, "Exceeds the limit"),
        (b"data_dir = " + b"[" * 50_000, "recursion"),
        (b"a." * 100_000 + b"a = 1", "a key of more than 60 parts"),
        (b"[ a . 'b' ." + b' "c".' * 100_000 + b"a]", "a key of more than 60 parts"),
        (b'data_dir = "\\ud800"', "not TOML"),
        (b"data_dir = 1\ndata_dir = 2", "not TOML"),
        (b"# " + b"x" * 10_000_000, "larger than"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(SettingsError, match=r"cannot be read: .* directory") as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(table()).encode())
    assert load(path).sync[0].name == "a"


def test_a_path_that_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(SettingsError, match="cannot be read"):
            load(path)


def test_the_home_folder_is_spelled_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text(CANARY)
    settings = from_table(with_token("file:~/token") | {"data_dir": "~/spools"})
    assert (settings.data_dir, token_of(settings)) == (str(tmp_path / "spools"), CANARY)


def test_settings_come_through_a_pipe_that_somebody_writes_to() -> None:
    """As with ``-c <(sops -d settings.toml)``: the writer is there, and may take its time."""
    reading, writing = os.pipe()
    content = tomli_w.dumps(table()).encode() + b"# " + b"x" * 200_000
    with os.fdopen(writing, "wb") as file, ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, Path(f"/dev/fd/{reading}"))
        file.write(content)
        file.close()
        settings = loaded.result()
    assert (settings.sync[0].name, settings.data_dir) == ("a", "data")  # not below /dev/fd
    os.close(reading)


def test_a_pipe_without_end_is_refused_at_its_bound() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with pytest.raises(ValueError, match="a pipe that has not come to its end within"):
        _read_pipe(reading, 100, within_s=0.01)
    os.write(writing, b"x" * 101)
    assert len(_read_pipe(reading, 100)) == 101
    os.close(writing)
    os.close(reading)


def test_a_source_that_is_configured_twice_is_refused() -> None:
    twice = table() | {"http": {}, "sources": {"http": {"listen": "127.0.0.1:9"}}}
    assert complaint(twice).startswith("sources.http: [http] is that source already")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sync": table()["sync"][0]}, "write [[sync]], with two brackets"),
        (events(select=["Signed Up"]), 'write { types = ["…"] }'),
        (events(metadata=[{"from": "a", "to": "b", "as": "datum"}]), "Expected one of `date`"),
    ],
)
def test_a_suggestion_is_spelled_as_in_the_file(wrong: dict[str, Any], said: str) -> None:
    assert said in complaint(wrong)
