"""``spool …``, with a daemon and without one."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomli_w

from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.faulty_disk import MARKS, FaultyDisk
from support.products import check_accounts

NOWHERE = "http://127.0.0.1:9"


async def _spool(action: str, config: Path, *more: str) -> tuple[int, Any]:
    code, out, err = await process.run("spool", action, "-c", str(config), "--json", *more)
    assert code in (0, 1, 2), err
    return code, json.loads(out) if out else err


@pytest.mark.parametrize("running", [True, False], ids=["beside a daemon", "by themselves"])
async def test_spool_commands_show_the_content(tmp_path: Path, running: bool) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon:
        events = [process.event("mira-okafor", n) for n in range(20)]
        await process.upload(f"{daemon.http}/2/httpapi", events)
        while (await daemon.status())["intercom"]["health"] != "outage":
            pass
        if running:
            await _check(config)
    if not running:
        await _check(config)


async def _check(config: Path) -> None:
    code, state = await _spool("status", config)
    assert code == 0
    assert state["path"] == str(config.parent / "data" / "spool.db")
    assert state["rows"]["records"] == state["syncs"]["e2e"]["pending"] == 20
    assert state["rows"]["inbox"] == 1
    assert state["schema_version"] == SCHEMA_VERSION
    assert state["last_trouble"] == ""
    assert await _spool("verify", config) == (0, [])
    code, out, _ = await process.run("spool", "status", "-c", str(config))
    assert (code, "20 rows" in out) == (0, True)


async def test_a_spool_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    code, out, _ = await process.run("spool", "status", "-c", str(config))
    assert (code, "there is no spool" in out, "spool.db yet" in out) == (0, True, True)
    assert await _spool("status", config) == (0, None)
    code, out, _ = await process.run("spool", "verify", "-c", str(config))
    assert (code, "spool.db: not there" in out) == (0, True)
    assert await _spool("verify", config) == (0, [])


@pytest.mark.parametrize("running", [True, False], ids=["through a daemon", "by itself"])
async def test_compact_gives_the_space_back(tmp_path: Path, running: bool) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    admin = {"admin": {"listen": f"127.0.0.1:{process.free_port()}"}}
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top=admin)
        async with process.daemon(config) as daemon:
            for part in range(5):
                events = [
                    process.event("mira-okafor", part * 100 + n, padding="x" * 8_000)
                    for n in range(100)
                ]
                await process.upload(f"{daemon.http}/2/httpapi", events)
            await daemon.settled()
            if running:
                code, told = await _spool("compact", config)
        if not running:
            code, told = await _spool("compact", config)
    assert code == 0
    assert told["after_bytes"] < told["before_bytes"] / 5
    _, after = await _spool("status", config)
    assert after["file_bytes"] == told["after_bytes"]


# --- backup ---------------------------------------------------------------------------------


async def _accept(config: Path, rounds: int = 1) -> None:
    """Have a daemon take events in that it cannot deliver, 20 kB a round, and end it."""
    async with process.daemon(config) as daemon:
        for part in range(rounds):
            events = [
                process.event("mira-okafor", part * 20 + n, padding="x" * 1_000) for n in range(20)
            ]
            assert (await process.upload(f"{daemon.http}/2/httpapi", events))[0] == 200


@asynccontextmanager
async def _daemon_or_none(config: Path, running: bool) -> AsyncIterator[process.Daemon | None]:
    if not running:
        yield None
        return
    async with process.daemon(config) as daemon:
        yield daemon


@pytest.mark.parametrize("running", [True, False], ids=["beside a daemon", "by itself"])
async def test_a_backup_is_a_spool_that_another_daemon_delivers(
    tmp_path: Path, running: bool
) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    config = process.settings(tmp_path, NOWHERE)
    await _accept(config)
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True, mode=0o700)
    async with _daemon_or_none(config, running):
        code, told = await _spool("backup", config, str(other / "data" / "spool.db"))
    assert code == 0
    assert told["size_bytes"] == (other / "data" / "spool.db").stat().st_size
    async with serve(local) as url, process.daemon(process.settings(other, url)) as daemon:
        assert (await daemon.settled())["delivered"] == 20
    assert [stored.metadata["n"] for stored in local.events] == list(range(20))


async def test_a_backup_that_cannot_be_written_names_the_obstacle(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await _accept(config)
    (tmp_path / "there").write_bytes(b"mine")
    before = sorted(os.listdir(tmp_path))
    for target, said in {
        "there": f"{tmp_path}/there: it is there already",
        "there/copy": f"{tmp_path}/there: {os.strerror(errno.ENOTDIR)}",
        "nowhere/copy": f"{tmp_path}/nowhere: {os.strerror(errno.ENOENT)}",
    }.items():
        assert await _spool("backup", config, str(tmp_path / target)) == (1, f"error: {said}\n")
    assert await _spool("backup", config, ".") == (1, "error: .: it is there already\n")
    assert (tmp_path / "there").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == before


async def test_a_backup_to_a_full_disk_names_that_disk_and_leaves_nothing(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await _accept(config)
    full = tmp_path / "full"
    full.mkdir()
    disk = FaultyDisk(full, tmp_path / "control", quota_on=1, free_bytes=100_000)
    command = ("spool", "backup", str(full / "copy.db"), "-c", str(config))
    code, out, err = await process.run(*command, env=disk.env)
    assert (code, out) == (1, "")
    assert err == f"error: {full}/copy.db: {os.strerror(errno.ENOSPC)}\n"
    assert [name for name in os.listdir(full) if not name.endswith(MARKS)] == []


async def test_a_backup_without_a_spool_says_that_there_is_none(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    code, err = await _spool("backup", config, str(tmp_path / "copy.db"))
    assert (code, err.startswith("error: there is no spool")) == (1, True)
    assert os.listdir(tmp_path) == ["settings.toml"]


async def test_after_a_sigkill_the_next_backup_is_whole_and_alone(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    await _accept(config, rounds=500)
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    async with process.daemon(config):
        while not await _killed_while_it_writes(config, copy):
            copy.unlink()  # it was quicker
        assert os.listdir(copy.parent) not in ([], ["copy.db"])
        code, told = await _spool("backup", config, str(copy))
    assert (code, os.listdir(copy.parent)) == (0, ["copy.db"])
    assert told["size_bytes"] > 10_000_000


async def _killed_while_it_writes(config: Path, copy: Path) -> bool:
    command = process.command("spool", "backup", str(copy), "-c", str(config))
    running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    while not os.listdir(copy.parent):
        await asyncio.sleep(0)
    running.kill()
    return await running.wait() == -signal.SIGKILL and not copy.exists()


# --- what is left of a sync that has gone from the settings ---------------------------------

WAITING, DEAD = 20, 3


def _with_a_second(config: Path) -> None:
    """Add a sync `shop` to the settings, whose Intercom does not answer."""
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    [first] = table["sync"]
    intercom = {**first["intercom"], "base_url": NOWHERE}
    shop = {**first, "name": "shop", "amplitude_api_keys": ["shop-key"], "intercom": intercom}
    config.write_text(tomli_w.dumps({**table, "sync": [first, shop]}), encoding="utf-8")


async def _leave_something(config: Path) -> None:
    """Let a sync `shop` go from the settings while it has something waiting, and dead letters."""
    without = config.read_bytes()
    _with_a_second(config)
    late = [process.event("late-arrival", n, time=1_000) for n in range(DEAD)]
    waiting = [process.event("mira-okafor", n) for n in range(WAITING)]
    body = json.dumps({"api_key": "shop-key", "events": [*waiting, *late]}).encode()
    async with process.daemon(config) as daemon:
        assert (await process.post(f"{daemon.http}/2/httpapi", body))[0] == 200
        while sum(sync["dead"] for sync in await daemon.syncs()) < DEAD:
            pass
    config.write_bytes(without)


@asynccontextmanager
async def _left(
    folder: Path, local: Sandbox, running: bool
) -> AsyncIterator[tuple[Path, process.Daemon | None]]:
    """Yield settings of the sync `e2e` while its spool has something of a sync `shop`."""
    local.add_contact(external_id="mira-okafor")
    admin = {"admin": {"listen": f"127.0.0.1:{process.free_port()}"}}
    async with serve(local) as url:
        config = process.settings(folder, url, top=admin)
        await _leave_something(config)
        async with _daemon_or_none(config, running) as daemon:
            assert await _left_of(config) == {"shop": {"pending": WAITING, "dead": DEAD}}
            yield config, daemon
            assert await _left_of(config) == {}
            assert await _spool("verify", config) == (0, [])


async def _left_of(config: Path) -> Any:
    code, out, err = await process.run("status", "--json", "-c", str(config))
    assert code == 0, err
    return json.loads(out)["spool"]["left"]


async def _settled(config: Path, daemon: process.Daemon | None) -> dict[str, Any]:
    """Let all be settled, by a daemon of its own where none runs."""
    async with _daemon_or_none(config, daemon is None) as started:
        running = daemon or started
        assert running is not None
        return await running.settled()


EITHER_WAY = pytest.mark.parametrize("running", [True, False], ids=["beside a daemon", "alone"])


@EITHER_WAY
async def test_the_backlog_of_a_removed_sync_is_delivered_by_its_new_one(
    tmp_path: Path, running: bool
) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    async with _left(tmp_path, local, running) as (config, daemon):
        assert await _spool("move", config, "shop", "e2e") == (0, {"records": WAITING + DEAD})
        assert await _spool("move", config, "shop", "e2e") == (0, {"records": 0})
        status = await _settled(config, daemon)
    check_accounts(status)
    assert (status["delivered"], status["dead"]) == (WAITING, DEAD)
    assert [stored.metadata["n"] for stored in local.events] == list(range(WAITING))


@EITHER_WAY
async def test_the_backlog_of_a_removed_sync_is_dropped_and_counted(
    tmp_path: Path, running: bool
) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    async with _left(tmp_path, local, running) as (config, daemon):
        code, err = await _spool("drop", config, "shop")
        assert (code, "Invalid value: --yes is needed" in err) == (2, True)
        assert await _spool("drop", config, "shop", "--yes") == (0, {"records": WAITING + DEAD})
        assert await _spool("drop", config, "shop", "--yes") == (0, {"records": 0})
        assert (await _settled(config, daemon))["received"] == 0
        _, state = await _spool("status", config)
        assert state["syncs"]["shop"]["dropped:discarded"] == WAITING + DEAD
    assert local.events == []


async def _check_what_is_said(config: Path, daemon: process.Daemon) -> None:
    code, out, _ = await process.run("status", "-c", str(config))
    assert (code, f"{WAITING} events and {DEAD} dead letters of it" in out) == (0, True)
    assert "`spool move OLD NEW`, or `spool drop OLD --yes`" in out
    [said] = [line for line in daemon.log if line.get("sync") == "shop"]
    assert (said["waiting"], said["dead_letters"]) == (WAITING, DEAD)
    async with (
        aiohttp.ClientSession(daemon.admin) as session,
        session.get("/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    assert f'amplitude_intercom_left_events{{sync="shop"}} {WAITING + DEAD}.0' in lines


async def test_a_backlog_that_cannot_be_moved_or_dropped_is_named_and_stays(
    tmp_path: Path,
) -> None:
    refused = {
        ("move", "shop", "shop"): "there is no sync `shop`; there is e2e",
        ("move", "shop", "nobody"): "there is no sync `nobody`; there is e2e",
        ("move", "nobody", "e2e"): "the spool knows no sync `nobody`",
        ("move", "e2e", "e2e"): "sync `e2e` is in the settings",
        ("drop", "e2e", "--yes"): "sync `e2e` is in the settings",
        ("drop", "nobody", "--yes"): "the spool knows no sync `nobody`",
    }
    async with _left(tmp_path, Sandbox(), running=True) as (config, daemon):
        assert daemon is not None
        await _check_what_is_said(config, daemon)
        commands = [_spool(action, config, *more) for action, *more in refused]
        answers = await asyncio.gather(*commands)
        for command, (code, err) in zip(refused, answers, strict=True):
            assert (code, refused[command] in err) == (2, True), (command, err)
        assert await _left_of(config) == {"shop": {"pending": WAITING, "dead": DEAD}}
        assert (await _spool("drop", config, "shop", "--yes"))[0] == 0
    code, err = await _spool("drop", config, "e2e", "--yes")
    assert (code, "sync `e2e` is in the settings" in err) == (2, True)
