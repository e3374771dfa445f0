"""SIGHUP: the real process reads its settings again while clients send."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process


def change(config: Path, **sync: Any) -> None:
    """Change keys of the first sync in a settings file."""
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    table["sync"][0] |= sync
    config.write_text(tomli_w.dumps(table), encoding="utf-8")


async def reloaded(running: process.Daemon, count: int = 1) -> list[dict[str, Any]]:
    """Ask for a reload; return what the daemon has said of all of them, once there are so many."""
    running.process.send_signal(signal.SIGHUP)
    said: list[dict[str, Any]] = []
    while len(said) < count:
        await asyncio.sleep(0)
        said = [entry for entry in running.log if "settings" in entry["event"]]
    return said


async def test_ten_reloads_under_load_lose_nothing(tmp_path: Path) -> None:
    local = Sandbox(latency_s=(0.0, 0.05))
    local.add_contact(external_id="ada-lovelace")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config) as running:
            sent: list[int] = []

            async def send() -> None:
                while True:
                    n = len(sent)
                    answer = process.upload(
                        f"{running.http}/2/httpapi", [process.event("ada-lovelace", n)]
                    )
                    status, _ = await asyncio.shield(asyncio.ensure_future(answer))
                    assert status == 200
                    sent.append(n)

            sending = asyncio.create_task(send())
            for n in range(10):
                change(config, events={"select": [{"types": ["*"]}], "metadata": ["n", f"x{n}"]})
                said = await reloaded(running, n + 1)
                assert said[-1]["changed"] == ["e2e"]
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
            status = await running.settled()
            assert status["received"] == status["delivered"] >= len(sent) > 0
            assert [entry for entry in running.log if entry["level"] == "error"] == []
    numbers = [event.metadata["n"] for event in local.events]
    assert numbers == sorted(set(numbers))
    assert set(sent) <= set(numbers)


async def test_a_file_that_is_wrong_changes_nothing_and_is_told(tmp_path: Path) -> None:
    local = Sandbox(latency_s=0)
    local.add_contact(external_id="ada-lovelace")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config) as running:
            for n, text in enumerate(("sync = 5", "[[sync", "", "\ud800")):
                config.write_bytes(text.encode("utf-8", "surrogatepass"))
                [*_, said] = await reloaded(running, n + 1)
                assert said["event"] == "settings not loaded: the daemon goes on as before"
                assert str(config) in said["cause"]
            config.unlink()
            assert "cannot be read again" in (await reloaded(running, 5))[-1]["cause"]
            event = process.event("ada-lovelace", 1)
            assert (await process.upload(f"{running.http}/2/httpapi", [event]))[0] == 200
            assert (await running.settled())["delivered"] == 1


async def test_the_command_asks_the_daemon_and_prints_what_has_changed(tmp_path: Path) -> None:
    port = process.free_port()
    top = {"admin": {"listen": f"127.0.0.1:{port}"}}
    async with serve(Sandbox(latency_s=0)) as url:
        config = process.settings(tmp_path, url, top=top)
        nobody = await process.run("reload", "-c", str(config))
        assert (nobody[0], "nothing listens there" in nobody[2]) == (1, True)
        assert "has changed" in nobody[2]
        assert "send it SIGHUP" in nobody[2]
        async with process.daemon(config) as running:
            assert await process.run("reload", "-c", str(config)) == (
                0,
                "nothing has changed\n",
                "",
            )
            before = config.read_text()
            config.write_text(before.replace("[[sync]]", "[[synk]]"))
            code, out, err = await process.run("reload", "-c", str(config))
            assert (code, out, "did you mean" in err, "goes on as before" in err) == (
                2,
                "",
                True,
                True,
            )
            config.write_text(before)
            change(config, enabled=False)
            code, out, _ = await process.run("reload", "--json", "-c", str(config))
            assert (code, json.loads(out)["changed"]) == (0, ["e2e"])
            assert not (await running.status())["enabled"]
            config.write_text(config.read_text().replace('"e2e"', '"other"'))
            code, out, _ = await process.run("reload", "-c", str(config))
            assert (code, out) == (0, "added: other\nremoved: e2e\n")
    audit = (tmp_path / "data" / "audit.jsonl").read_text().splitlines()
    assert len({json.loads(line)["action"] for line in audit}) == 1
    assert len(audit) == 3


@asynccontextmanager
async def service_manager(folder: Path) -> AsyncIterator[tuple[dict[str, str], list[str]]]:
    """Return the environment that a service manager gives, and the list of what it is told."""
    path, told = folder / "notify", []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(path))
        opened.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(opened.fileno(), lambda: told.append(opened.recv(4_096).decode()))
        yield {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}, told
        loop.remove_reader(opened.fileno())


async def test_the_service_manager_is_told_of_readiness_reloads_and_life(tmp_path: Path) -> None:
    async with serve(Sandbox(latency_s=0)) as url, service_manager(tmp_path) as (env, told):
        config = process.settings(tmp_path, url)
        async with process.daemon(config, env) as running:
            while "WATCHDOG=1" not in told:
                await asyncio.sleep(0)
            await reloaded(running)
        said = [text.partition("\n")[0] for text in told if text != "WATCHDOG=1"]
    assert said == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


@pytest.mark.parametrize("odd", [{"WATCHDOG_USEC": "soon"}, {"WATCHDOG_PID": "1"}])
async def test_a_watchdog_that_is_not_for_this_process_gets_no_sign(
    tmp_path: Path, odd: dict[str, str]
) -> None:
    async with (
        serve(Sandbox(latency_s=0)) as url,
        service_manager(tmp_path) as (env, told),
        process.daemon(process.settings(tmp_path, url), env | odd) as running,
    ):
        await reloaded(running)
    assert "WATCHDOG=1" not in told
    assert told[0].startswith("READY=1")


async def test_a_reload_that_comes_while_it_drains_does_not_make_it_ready(tmp_path: Path) -> None:
    local = Sandbox(latency_s=4.0)
    local.add_contact(external_id="ada-lovelace")
    port = process.free_port()
    top = {"admin": {"listen": f"127.0.0.1:{port}"}}
    async with serve(local) as url, service_manager(tmp_path) as (env, told):
        config = process.settings(tmp_path, url, top=top)
        running = await process.start(config, env)
        await process.upload(f"{running.http}/2/httpapi", [process.event("ada-lovelace", 1)])
        while not any(entry.path == "/events" for entry in local.journal):
            await asyncio.sleep(0)
        running.process.send_signal(signal.SIGTERM)
        while not any(text.startswith("STOPPING=1") for text in told):
            await asyncio.sleep(0)
        code, _, error = await process.run("reload", "-c", str(config))
        assert (code, "draining" in error) == (1, True)
        assert await running.process.wait() == 0
        await running.end(signal.SIGTERM)
        said = [text.partition("\n")[0] for text in told if text != "WATCHDOG=1"]
    assert said == ["READY=1", "STOPPING=1"]
