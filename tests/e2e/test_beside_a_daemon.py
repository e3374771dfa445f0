"""Commands beside a daemon: they act through one whose data directory is theirs, or not at all."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from support import process

NOWHERE = "http://127.0.0.1:9"
OF_A_SYNC = (("dead-letters", "discard", "--all"), ("dead-letters", "replay"))
WRITING = (
    *OF_A_SYNC,
    ("spool", "compact"),
    ("spool", "move", "gone", "e2e"),
    ("spool", "drop", "gone", "--yes"),
)


def settings_of(folder: Path, port: int, **admin: Any) -> Path:
    folder.mkdir(exist_ok=True)
    listen = {"listen": f"127.0.0.1:{port}"}
    return process.settings(folder, NOWHERE, top={"admin": {**listen, **admin}})


async def bury(config: Path) -> None:
    """Have a daemon keep a dead letter, and end it."""
    async with process.daemon(config) as daemon:
        late = process.event("mira-okafor", 1, time=1_000)
        assert (await process.upload(f"{daemon.http}/2/httpapi", [late]))[0] == 200
        await daemon.settled()


async def test_writing_commands_never_act_on_the_data_of_another_daemon(tmp_path: Path) -> None:
    """A copied settings file in which only data_dir is another one."""
    port = process.free_port()
    theirs, ours = (settings_of(tmp_path / name, port) for name in ("theirs", "ours"))
    await bury(theirs)
    shutil.copytree(theirs.parent / "data", ours.parent / "data")
    async with process.daemon(theirs) as daemon:
        with DataDir(ours.parent / "data"):
            for command in WRITING:
                code, out, err = await process.run(*command, "-c", str(ours))
                assert (code, out) == (4, ""), command
                assert f"in use by process {os.getpid()}" in err
                assert f"has another data_dir, {theirs.parent}/data" in err
        assert (await daemon.status())["dead"] == 1
        code, out, _ = await process.run("dead-letters", "discard", "--all", "-c", str(ours))
        assert (code, out) == (0, "1 dead letter discarded\n")
        assert (await daemon.status())["dead"] == 1


async def test_a_foreign_answer_is_a_failure_that_quotes_it(
    tmp_path: Path,
) -> None:
    config = settings_of(tmp_path, process.free_port())
    async with process.daemon(config):
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace('name = "e2e"', 'name = "newer"'), encoding="utf-8")
        for command in (("dead-letters", "list"), ("users", "show", "a"), *OF_A_SYNC):
            code, out, err = await process.run(*command, "-c", str(config))
            assert (code, out) == (1, ""), command
            assert "answers 404: no sync named newer" in err


async def test_a_user_without_a_name_is_nobody_that_is_known(tmp_path: Path) -> None:
    config = settings_of(tmp_path, process.free_port())
    async with process.daemon(config):
        beside = await process.run("users", "show", "", "-c", str(config))
    assert beside == await process.run("users", "show", "", "-c", str(config))
    assert (beside[0], beside[2]) == (1, "")


async def test_a_daemon_that_hangs_is_given_up_and_named(tmp_path: Path) -> None:
    """What a process does that takes connections and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as silent, DataDir(tmp_path / "data"):
        config = settings_of(tmp_path, silent.getsockname()[1])
        commands = [(*command, "-c", str(config)) for command in (*WRITING, ("status", "--json"))]
        async with asyncio.timeout(30):
            *wrote, status = await asyncio.gather(*(process.run(*command) for command in commands))
    for code, out, err in wrote:
        assert (code, out, "no answer within 5 s" in err) == (4, "", True)
        assert f"in use by process {os.getpid()}" in err
    assert (status[0], json.loads(status[1])["state"]) == (0, "unreachable")
    assert "no answer within 5 s" in status[2]


@pytest.mark.parametrize("why", ["no [admin]", "another port", "another token"])
async def test_a_daemon_that_cannot_be_asked_is_no_daemon_that_does_not_run(
    tmp_path: Path, why: str
) -> None:
    port = process.free_port()
    config = settings_of(tmp_path, port, token="admin-secret")
    async with process.daemon(config) as daemon:
        text = config.read_text(encoding="utf-8")
        pattern, new, said = {
            "no [admin]": (r"\[admin\]\n(\w.*\n)*", "", "there is no [admin] to ask one through"),
            "another port": (f":{port}", f":{process.free_port()}", "nothing listens there"),
            "another token": ("admin-secret", "wrong", "answers 401: admin token"),
        }[why]
        config.write_text(re.sub(pattern, new, text), encoding="utf-8")
        code, out, err = await process.run("status", "-c", str(config))
        assert code == 0, err
        assert f"runs (process {daemon.process.pid}), but it cannot be asked: " in out
        assert said in out
        _, out, _ = await process.run("status", "--json", "-c", str(config))
        assert json.loads(out)["state"] == "unreachable"
        code, out, _ = await process.run("check", "--offline", "--json", "-c", str(config))
        assert json.loads(out)["running"] is True
        for command in WRITING:
            code, out, err = await process.run(*command, "-c", str(config))
            assert (code, out, said in err) == (4, "", True), command
            assert f"in use by process {daemon.process.pid}" in err
    _, out, _ = await process.run("status", "--json", "-c", str(config))
    assert json.loads(out)["state"] == "offline"
