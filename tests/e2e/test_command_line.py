"""The command as shells meet it: streams that are closed, options before and behind, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

NOWHERE = "http://127.0.0.1:9"


def shell(
    script: str, folder: Path, *, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, in which `ai` is the command."""
    command = f'ai() {{ "{sys.executable}" -m amplitude_intercom.engine "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", command],
        input=stdin,
        capture_output=True,
        cwd=folder,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    process.settings(tmp_path, NOWHERE)
    return tmp_path


def test_one_process_can_run_command_after_command(folder: Path) -> None:
    script = """
import sys
from amplitude_intercom.engine.cli import app
for arguments in (["demo"], ["status", "-c", "settings.toml", "--json"]) * 2:
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code, end.code
"""
    done = shell(f"{sys.executable} -c '{script}'", folder)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.count(b'"syncs"') == 2


def test_the_version_is_the_package_s(folder: Path) -> None:
    done = shell("ai --version", folder)
    assert (done.returncode, done.stdout.decode().strip()) == (0, version("amplitude-intercom"))


def test_a_shell_can_complete_commands(folder: Path) -> None:
    env = {
        "COMP_WORDS": "amplitude-intercom dead",
        "COMP_CWORD": "1",
        "_AMPLITUDE_INTERCOM_COMPLETE": "complete_bash",
    }
    done = shell("ai", folder, env=env)
    assert done.stdout.split() == [b"dead-letters"]


@pytest.mark.parametrize(
    "script",
    [
        "ai status -c settings.toml --json",
        "ai -c settings.toml status --json",
        "ai -c nowhere.toml status -c settings.toml --json",
        "export AMPLITUDE_INTERCOM_CONFIG=settings.toml; ai status --json",
        "export AMPLITUDE_INTERCOM_CONFIG=nowhere.toml; ai -c settings.toml status --json",
        "cp settings.toml amplitude-intercom.toml; ai status --json",
        "mv settings.toml amplitude-intercom.toml; AMPLITUDE_INTERCOM_CONFIG= ai status --json",
    ],
)
def test_the_settings_file_is_found(folder: Path, script: str) -> None:
    done = shell(script, folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["syncs"][0]["name"] == "e2e"


def test_without_a_settings_file_the_ways_to_give_one_are_named(tmp_path: Path) -> None:
    done = shell("ai status", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    for said in (b"amplitude-intercom.toml", b"AMPLITUDE_INTERCOM_CONFIG", b"-c FILE"):
        assert said in done.stderr


EVENTS = b"".join(
    json.dumps(process.event("zo\u00eb-okafor", n)).encode() + b"\n" for n in range(3_000)
)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("ai preview -c settings.toml | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 141),
        ("ai status -c settings.toml --json >&-", 0),
        ("ai status -c settings.toml >&-", 0),
        ("ai status -c settings.toml >/dev/full", 1),
        ("ai preview -c settings.toml >/dev/full", 1),
        ("ai --help >&-", 0),
        ("ai --help >/dev/full", 1),
        ("ai status -c settings.toml <&- >&- 2>&-", 0),
        ("ai status -c nowhere.toml 2>&-", 2),
        ("ai status -c nowhere.toml 2>/dev/full", 2),
        ("ai forward -c settings.toml --max-wait 0 2>&-", 1),
        ("ai forward -c settings.toml --max-wait 0 2>/dev/full", 1),
    ],
)
def test_streams_that_are_closed_or_full_are_no_fault_of_the_program(
    folder: Path, script: str, code: int
) -> None:
    done = shell(script, folder, stdin=EVENTS)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "script", ["ai preview -c settings.toml", "ai dead-letters list -c settings.toml"]
)
@pytest.mark.parametrize(
    "ascii_only",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_an_ascii_terminal_gets_ascii_alone(
    folder: Path, script: str, ascii_only: dict[str, str]
) -> None:
    line = json.dumps(process.event("zo\u00eb-okafor", 1) | {"time": "\u00fc"}, ensure_ascii=False)
    shell("ai forward -c settings.toml --max-wait 0", folder, stdin=line.encode())
    done = shell(script, folder, stdin=line.encode(), env=ascii_only)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert done.stdout.isascii()


async def test_ctrl_c_is_no_traceback(folder: Path) -> None:
    """`preview` is reading its standard input, of which more may come."""
    started = await asyncio.create_subprocess_exec(
        *process.command("preview", "-c", str(folder / "settings.toml")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    started.stdin.write(EVENTS * 10)
    await started.stdout.readline()
    started.send_signal(signal.SIGINT)
    _, said = await started.communicate()
    assert (started.returncode, said.strip()) == (130, b"")


async def test_a_token_in_a_file_that_was_changed_is_used_without_a_restart(
    tmp_path: Path,
) -> None:
    local = Sandbox(access_token="the-right-one")
    local.add_contact(external_id="mira-okafor")
    (tmp_path / "token").write_text("an-old-one\n")
    async with serve(local) as url:
        more = {"access_token": "file:token"}
        config = process.settings(tmp_path, url, intercom_more=more)
        async with process.daemon(config) as daemon:
            await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
            while (await daemon.status())["intercom"]["health"] != "unauthorized":
                pass
            (tmp_path / "token").write_text("the-right-one\n")
            status = await daemon.settled()
    assert (status["delivered"], len(local.events)) == (1, 1)
    assert "the-right-one" not in json.dumps(daemon.log)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"http": {"listen": "no-such-host.invalid:0"}}, "http.listen: no-such-host.invalid:0"),
        ({"admin": {"listen": "no-such-host.invalid:0", "token": "t"}}, "admin.listen: no-such-"),
        ({"sources": {"stdin": {}}}, "sources.stdin.sync: missing"),
        ({"sources": {"stdin": {"sync": "e2e", "paths": ["absent"]}}}, "sources.stdin: absent"),
    ],
)
async def test_a_source_that_cannot_begin_is_a_matter_of_settings(
    tmp_path: Path, edit: dict[str, dict[str, object]], said: str
) -> None:
    config = process.settings(tmp_path, NOWHERE, top=edit)
    code, _, err = await process.run("run", "-c", str(config))
    assert (code, "Traceback" in err, "Unknown error" in err) == (2, False, False)
    assert f"error: {said}" in err


def test_a_preview_of_standard_input_reads_sockets_too_and_says_where_it_is_closed(
    tmp_path: Path,
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    ours, theirs = socket.socketpair()
    events = "".join(json.dumps(process.event("mira-okafor", n)) + "\n" for n in range(2))
    with ours, theirs:
        ours.sendall(events.encode())
        ours.shutdown(socket.SHUT_WR)
        done = subprocess.run(
            process.command("preview", "-c", str(config), "-"),
            stdin=theirs.fileno(),
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 2]
    for command in ("preview", "forward"):
        closed = shell(f"ai {command} -c {config} - <&-", tmp_path)
        assert closed.returncode == 1
        assert b"stdin: it is closed" in closed.stderr
    csv = shell(f"ai preview -c {config} -", tmp_path, stdin=b"a,b\n1,2\n")
    assert csv.stderr.startswith(b"error: stdin: not JSON: CSV")
