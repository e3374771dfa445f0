"""``spool status``, ``verify`` and ``compact``, with a daemon and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION
from amplitude_intercom.transports.sandbox import Sandbox, serve
from support import process

NOWHERE = "http://127.0.0.1:9"


async def _spool(action: str, config: Path, *more: str) -> tuple[int, Any]:
    code, out, err = await process.run("spool", action, "-c", str(config), "--json", *more)
    assert code in (0, 1), err
    return code, json.loads(out) if out else err


@pytest.mark.parametrize("running", [True, False], ids=["beside a daemon", "by themselves"])
async def test_they_tell_what_is_there(tmp_path: Path, running: bool) -> None:
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
