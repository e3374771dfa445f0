"""The papers' own commands and examples, run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.papers import ROOT, block


@pytest.fixture(scope="module")
def fresh_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a checkout has, and nothing that was built."""
    folder = tmp_path_factory.mktemp("fresh") / "amplitude-intercom"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in (".ci", "engine", "transports"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _shell(script: str, folder: Path, timeout_s: float = 300) -> str:
    """Run a script in a process group of its own, and end what it leaves behind."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON"))
    }
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if "&\n" in script:
            process.wait(timeout_s)
            os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.mark.timeout(400)
def test_the_first_command_shows_the_demo_and_the_next_steps_deliver_an_event(
    fresh_copy: Path,
) -> None:
    """From nothing to a delivered event, with what the README says and nothing else."""
    out = _shell(block("README.md", "demo-command"), fresh_copy)
    for said in ("delivered", "dropped: duplicate", "dead letter", "p95", "amplitude-intercom run"):
        assert said in out
    (fresh_copy / "amplitude-intercom.toml").write_text(
        block("README.md", "first-settings"), encoding="utf-8"
    )
    out = _shell(block("README.md", "first-commands"), fresh_copy)
    assert '"code":200' in out
    assert '"event_name":"Signed Up"' in out
    assert '"metadata":{"item":"newsletter","plan":"pro"}' in out


def test_the_test_command_is_one_line_and_the_one_that_ci_runs() -> None:
    [line] = block("README.md", "test-command").strip().splitlines()
    assert line.startswith("python3 -m venv .venv && ")
    assert "test-command" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


async def test_the_library_example_runs_inside_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERCOM_ACCESS_TOKEN", "a-token")
    monkeypatch.chdir(tmp_path)
    example: dict[str, object] = {}
    exec(compile(block("engine/README.md", "library-example"), "README", "exec"), example)
    local = Sandbox(access_token="a-token")
    async with serve(local) as url:
        example["SETTINGS"]["sync"][0]["intercom"]["base_url"] = url  # type: ignore[index]
        await asyncio.gather(example["main"](), _another_task())  # type: ignore[operator]
    assert capsys.readouterr().out == "1 accepted\n"
    assert [e.name for e in local.events] == ["Signed Up"]


async def _another_task() -> None:
    """What else the program does meanwhile."""
    for _ in range(100):
        await asyncio.sleep(0)


def _as_root_elsewhere(script: str, folder: Path, stdin: str = "") -> None:
    """Run the commands of a server in a folder that stands for its root, all but systemd's."""
    lines = [line for line in script.splitlines() if not line.startswith("systemctl ")]
    text = "\n".join(lines).replace("/etc/", f"{folder}/etc/")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**os.environ, "PATH": path},
        input=stdin,
        text=True,
        check=True,
    )


def test_the_steps_on_a_server_put_every_file_where_the_unit_looks_for_it(tmp_path: Path) -> None:
    settings = block("README.md", "first-settings")
    settings = settings.replace('"any-token"', '"env:INTERCOM_ACCESS_TOKEN"')
    (tmp_path / "amplitude-intercom.toml").write_text(settings, encoding="utf-8")
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    _as_root_elsewhere(block("engine/README.md", "server-commands"), tmp_path, "a-token\n")
    unit = (units / "amplitude-intercom.service").read_text(encoding="utf-8")
    loaded = re.findall(r"^LoadCredential=.*:/(.*)$", unit, re.MULTILINE)
    assert len(loaded) == 2
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in loaded}
    assert modes == {0o600}
    folder = tmp_path / "etc" / "amplitude-intercom"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "intercom-access-token").read_text(encoding="utf-8") == "a-token\n"
    assert (units / "amplitude-intercom.socket").exists()


async def test_a_backup_is_restored_by_the_steps_of_the_paper(tmp_path: Path) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    line = json.dumps(process.event("mira-okafor", 1)).encode()
    await process.run("forward", "-c", str(config), "--max-wait", "0", stdin=line)
    (tmp_path / "backups").mkdir(mode=0o700)
    copy = str(tmp_path / "backups" / "copy.db")
    code, _, err = await process.run("spool", "backup", copy, "-c", str(config))
    assert code == 0, err
    shutil.rmtree(tmp_path / "data")
    config.rename(tmp_path / "amplitude-intercom.toml")
    _as_root_elsewhere(block("engine/README.md", "restore-commands"), tmp_path)
    _, out, _ = await process.run(
        "status", "-c", str(tmp_path / "amplitude-intercom.toml"), "--json"
    )
    assert [sync["pending"] for sync in json.loads(out)["syncs"]] == [1]


def test_help_names_every_command() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "amplitude_intercom.engine", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ("demo", "run", "forward", "preview", "check", "status", "dead-letters", "sandbox"):
        assert name in out
