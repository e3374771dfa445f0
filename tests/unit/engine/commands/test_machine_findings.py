"""What ``check`` finds on this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.commands.machine_findings import machine_findings
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from support.findings import settings, sync, texts


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


def test_a_relative_data_dir_beside_the_settings_is_no_reason_to_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = machine_findings(settings(data_dir="data"), running=False)
    assert [finding for finding in said if finding.key == "data_dir"] == []
