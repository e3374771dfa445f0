"""What ``check`` finds in settings, on this machine, in answers and in samples."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.commands.machine_findings import machine_findings
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.sample_findings import Names, name_findings, wanted_of
from amplitude_intercom.engine.findings.settings_findings import (
    host_findings,
    key_findings,
    port_findings,
    relay_findings,
    secret_findings,
    shared_fields,
)
from amplitude_intercom.engine.findings.workspace_findings import clock_findings, token_findings
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.transports.intercom import Answer


def sync(name: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "amplitude_api_keys": ["key-1"],
        "intercom": {"access_token": "t"},
        **more,
    }


def settings(*syncs: dict[str, Any], **top: Any) -> Settings:
    return from_table({"sync": list(syncs or (sync(),)), **top})


def texts(findings: list[Finding]) -> list[str]:
    return [f"{finding.level} {finding.key}: {finding.text}" for finding in findings]


HTTP = {"http": {"listen": "127.0.0.1:8710"}}


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


def test_a_port_of_somebody_else_is_named_and_the_daemons_own_is_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        table = settings(http={"listen": address}, data_dir=str(tmp_path))
        tmp_path.chmod(0o700)
        [text] = texts([*machine_findings(table, running=False)])
        assert text == f"error http.listen: {address} is in use by another program"
        assert not [*machine_findings(table, running=True)]
    assert not [*machine_findings(table, running=False)]


@pytest.mark.parametrize("listen", ["no-such-host.invalid:8710", "192.0.2.1:8710"])
def test_an_address_that_is_not_here_is_named(tmp_path: Path, listen: str) -> None:
    table = settings(http={"listen": listen}, data_dir=str(tmp_path / "data"))
    [text] = texts([*machine_findings(table, running=False)])
    assert text.startswith(f"error http.listen: {listen} cannot be listened on: ")


def test_a_data_directory_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder, level in ((file, "error"), (file / "data", "error"), (tmp_path / "x/y", "warning")):
        table = settings(data_dir=str(folder))
        [finding] = machine_findings(table, running=False)
        assert (finding.level, finding.key) == (level, "data_dir")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o775, 0o770, 0o755, 0o750, 0o711, 0o700])
def test_the_rights_of_a_data_directory_are_judged_as_a_start_judges_them(
    tmp_path: Path, mode: int
) -> None:
    tmp_path.chmod(mode)
    found = texts([*machine_findings(settings(data_dir=str(tmp_path)), running=False)])
    started = []
    with capture_logs() as lines:
        try:
            DataDir(tmp_path).close()
        except SettingsError as error:
            started = [f"error {error}"]
    started += [f"warning data_dir: {line['rights']}" for line in lines]
    assert found == started


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o777, "can be written by every user of this machine (mode 0777): choose a folder of its"
            " own, or chmod 700 this one"),
        (0o1777, "(mode 1777): choose a folder of its own"),
        (0o775, "can be written by its group and read by every user of this machine (mode 0775)"),
        (0o770, "can be written by its group (mode 0770)"),
        (0o750, "can be read by its group (mode 0750)"),
        (0o755, "can be read by every user of this machine (mode 0755)"),
    ],
)  # fmt: skip
def test_the_permissions_of_a_data_directory_are_reported(
    tmp_path: Path, mode: int, said: str
) -> None:
    tmp_path.chmod(mode)
    [finding] = machine_findings(settings(data_dir=str(tmp_path)), running=False)
    assert finding.text.endswith(said)


def test_a_disk_without_space_for_the_reserve_is_named(tmp_path: Path) -> None:
    large = {"spool": {"reserve_bytes": 10**15}, "data_dir": str(tmp_path / "data")}
    [text] = texts([*machine_findings(settings(**large), running=False)])
    assert text.startswith("error spool.reserve_bytes: 2e+06 GB are needed")
    two = settings(sync("a"), sync("b"), **large)
    [same] = texts([*machine_findings(two, running=False)])
    assert same == text, "all syncs have one spool"


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("/proc/data", "error data_dir: `/proc/data` cannot be used: the file system of `/proc`"),
        ("/sys/fs/x", "error data_dir: `/sys/fs/x` cannot be used: the file system of `/sys/fs`"),
        ("{}/file/data", "is no folder"),
        ("{}/loop/data", "error data_dir: `{}/loop/data` cannot be used: Too many levels"),
        ("{}/" + "x" * 300, "cannot be used: File name too long"),
    ],
)
def test_a_bad_data_directory_is_the_one_cause_that_is_named(
    tmp_path: Path, folder: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    large = {"spool": {"reserve_bytes": 10**15}, "data_dir": folder.format(tmp_path)}
    [text] = texts([*machine_findings(settings(**large), running=False)])
    assert said.format(tmp_path) in text


@pytest.mark.parametrize(
    ("unit", "drop_in", "level"),
    [
        ("[Socket]\nListenStream={}\nBacklog=512\n", "", "warning"),
        ("[Socket]\n ListenStream = {} \n", "", "warning"),
        ("[Socket]\nListenStream=1.2.3.4:1\n", "[Socket]\nListenStream={}\n", "warning"),
        ("[Socket]\nListenStream={}\n", "[Socket]\nListenStream=\n", "error"),
        ("[Socket]\n#ListenStream={}\n", "", "error"),
        ("[Socket]\nListenStream=/run/x\nListenStream=a:b:c\nListenStream\n\xff\x00", "", "error"),
        ("", "", "error"),
    ],
)
def test_a_port_that_our_socket_unit_lists_is_no_intruders(
    tmp_path: Path, unit: str, drop_in: str, level: str
) -> None:
    folders = [tmp_path / "none", tmp_path / "etc", tmp_path / "usr"]
    for folder in folders[1:]:
        (folder / "amplitude-intercom.socket.d").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        name = "amplitude-intercom.socket"
        (folders[1] / name).write_text(unit.replace("{}", address), "latin-1")
        (folders[2] / name).write_text("[Socket]\nListenStream=1.2.3.4:5\n", "utf-8")
        (folders[2] / f"{name}.d/ports.conf").write_text(drop_in.replace("{}", address), "utf-8")
        table = settings(http={"listen": address}, data_dir=str(tmp_path / "data"))
        [found] = machine_findings(table, running=False, unit_folders=folders)
        assert (found.level, found.key) == (level, "http.listen")
        assert ("`amplitude-intercom.socket` lists it" in found.text) == (level == "warning")
        assert not [*machine_findings(table, running=True, unit_folders=folders)]


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
    ("status", "kind", "body", "said"),
    [
        (200, "text/html", b"<html>", "not as Intercom does: 200 text/html"),
        (200, "application/json", b"{}", "not as Intercom does: 200 application/json"),
        (200, "application/json", b'{"app": null}', "not as Intercom does"),
        (200, "application/json", b'["app"]', "not as Intercom does"),
        (204, "", b"", "not as Intercom does: 204 no content type"),
        (302, "text/html; charset=x", b"", "not as Intercom does: 302 text/html"),
        (403, "text/html", b"<html>", "not as Intercom does: 403 text/html"),
        (404, "text/html", b"<html>", "not as Intercom does: 404 text/html"),
        (
            401,
            "application/json",
            b'{"type": "error.list", "errors": [{"code": "unauthorized", "message": "no"}]}',
            "Intercom answers 401: no",
        ),
    ],
)
def test_an_answer_of_somebody_between_is_no_good_sign(
    status: int, kind: str, body: bytes, said: str
) -> None:
    [one] = settings().sync
    [finding] = token_findings(one, Answer(status, {"content-type": kind}, body))
    assert finding.level == "error"
    assert said in finding.text


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", ""),
        ("Tue, 14 Nov 2023 22:12:25 GMT", ""),
        ("Tue, 14 Nov 2023 22:12:10 GMT", "70 s ahead of Intercom's"),
        ("Wed, 15 Nov 2023 22:13:20 GMT", "24 h behind Intercom's"),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_a_clock_that_is_off_is_named(date: str, said: str) -> None:
    found = [*clock_findings(Answer(200, {"date": date}, b""), 1_700_000_000.0)]
    assert len(found) == bool(said)
    assert all(said in finding.text for finding in found)


def names(of: Sync, *events: dict[str, Any]) -> Names:
    return Names((json.dumps(event).encode() for event in events), wanted_of(of))


def test_selected_names_that_a_sample_lacks_are_named_with_those_that_may_be_meant() -> None:
    [shop] = settings(
        sync(
            users={"properties": ["Plan", {"from": "address.city", "to": "city"}]},
            events={
                "select": [{"types": ["Signed Up", "Purchase"]}],
                "metadata": ["price", "place.city", "user.plan", "absent"],
            },
        )
    ).sync
    sample = names(
        shop,
        {"event_type": "Sign Up", "event_properties": {"Price": 1, "place": {"city": "x"}}},
        {
            "event_type": "Purchase",
            "user_properties": {"$set": {"plan": "pro", "address": {"city": "x"}}},
        },
    )
    assert [finding.text for finding in name_findings(shop, sample)] == [
        "the sample has no event type `Signed Up` (did you mean `Sign Up`?)",
        "the sample has no event property `price` (did you mean `Price`?), `absent`",
        "the sample has no user property `Plan` (did you mean `plan`?)",
    ]


def test_properties_of_users_that_no_event_of_a_sample_carries_are_named() -> None:
    """Amplitude's own user properties do not come with an event: it has those that it brings."""
    [shop] = settings(
        sync(
            users={"properties": ["plan"]},
            events={"select": [{"types": ["Seen"]}], "metadata": ["n", "user.city"]},
        )
    ).sync
    bare = {"event_type": "Seen", "event_properties": {"n": 1}}
    assert texts([*name_findings(shop, names(shop, bare))]) == [
        "warning events.metadata: the sample has no user property `city`",
        "warning users.properties: the sample has no user property `plan`",
    ]
    whole = {**bare, "user_properties": {"city": "x", "$set": {"plan": "pro"}}}
    assert not [*name_findings(shop, names(shop, bare, whole))]


def test_a_sample_is_looked_through_as_the_rules_do() -> None:
    """Flattened as Export writes it, and fields of the event's own: neither is missing."""
    [shop] = settings(
        sync(
            users={"properties": ["carrier", "visits"]},
            events={"select": [{"types": ["*"]}], "metadata": ["place", "country", "absent"]},
        )
    ).sync
    sample = names(
        shop,
        {
            "event_type": "Seen",
            "country": "NL",
            "device_carrier": "KPN",
            "event_properties": {"place.city": "Delft", "absent": None},
            "user_properties": {"$add": {"visits": 1}},
        },
    )
    assert [finding.text for finding in name_findings(shop, sample)] == [
        "the sample has no event property `absent`"
    ]


def test_a_sample_of_anything_is_looked_at_within_bounds() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = {"\x1b[31m": deep}
    many = {f"name {n}": n for n in range(20_000)}
    odd = [b"\xff", b"[]", b"{", b"1" * 5_000, b'{"event_type": 5}', b'{"user_properties": [1]}']
    selected: dict[str, Any] = {"events": {"metadata": [f"wanted {n}" for n in range(30)]}}
    [shop] = settings(sync(**selected)).sync
    full = json.dumps({"event_properties": many, "user_properties": deep}).encode()
    sample = Names([*odd, full], wanted_of(shop))
    [finding] = name_findings(shop, sample)
    assert len(sample.event) <= 10_000
    assert len(finding.text) < 2_000
    assert finding.text.endswith("and 20 more")


def test_a_relative_data_dir_beside_the_settings_is_no_reason_to_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = machine_findings(settings(data_dir="data"), running=False)
    assert [finding for finding in said if finding.key == "data_dir"] == []


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
