"""Who may come in: the admin port, the files, and a second process."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from support import process

NOWHERE = "http://127.0.0.1:9"
PATHS = ("/api/status", "/metrics")


async def test_beyond_loopback_the_admin_port_does_not_start_without_a_token(
    tmp_path: Path,
) -> None:
    for listen in ("0.0.0.0:0", "[::]:0", "10.1.2.3:8711"):
        config = process.settings(tmp_path, NOWHERE, top={"admin": {"listen": listen}})
        code, _, err = await process.run("run", "-c", str(config))
        assert code == 2
        assert "admin.token" in err


async def test_with_a_token_nothing_is_told_or_done_without_it(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    admin = {"listen": "0.0.0.0:0", "token": "admin-secret"}
    config = process.settings(tmp_path, NOWHERE, top={"admin": admin})
    async with process.daemon(config) as daemon, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{daemon.admin.rpartition(':')[2]}"
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "admin-secre"}):
            for path in PATHS:
                async with session.get(base + path, headers=header) as answer:
                    assert answer.status == 401
            for path in ("/api/v1/syncs/e2e/jobs", "/api/v1/spool/compact"):
                async with session.post(base + path, json={}, headers=header) as answer:
                    assert answer.status == 401
        right = {"Authorization": "Bearer admin-secret"}
        async with session.get(f"{base}/api/status", headers=right) as answer:
            assert answer.status == 200
    measured("admin port without its token: 401, and beyond loopback it does not even start")


async def test_a_page_that_somebody_opened_on_this_machine_reaches_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon, aiohttp.ClientSession(daemon.admin) as session:
        for host in ("evil.example.com", "127.0.0.1.evil.example.com", "localhost.evil.example"):
            async with session.get("/api/status", headers={"Host": host}) as answer:
                assert answer.status == 403, host
        discard = "/api/v1/syncs/e2e/jobs"
        cross_site = {"Origin": "https://evil.example.com", "Sec-Fetch-Site": "cross-site"}
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Content-Type": kind, **cross_site}
            async with session.post(discard, data=b"{}", headers=headers) as answer:
                assert answer.status in (403, 415), kind
        headers = {"Content-Type": "application/json", **cross_site}
        async with session.post(discard, data=b"{}", headers=headers) as answer:
            assert answer.status == 403
        async with session.options(discard, headers=cross_site) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
    measured("admin port, another Host or a cross-site POST: 403 or 415, nothing done")


async def test_written_files_are_readable_by_their_owner_alone(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    before = os.umask(0)
    try:
        config = process.settings(tmp_path, NOWHERE)
        async with process.daemon(config) as daemon:
            await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
            files = sorted((tmp_path / "data").iterdir())
            spool = [f"spool.db{end}" for end in ("", "-reserve", "-shm", "-wal")]
            assert [file.name for file in files] == ["lock", *spool]
            for file in files:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    finally:
        os.umask(before)
    measured("data files 0600 in a folder 0700, whatever the umask")


async def test_a_second_process_on_the_same_data_is_refused_by_name(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon:
        for again in (("run",), ("forward", "events.jsonl")):
            (tmp_path / "events.jsonl").touch()
            paths = [str(tmp_path / name) for name in again[1:]]
            code, _, err = await process.run(again[0], "-c", str(config), *paths)
            assert code == 4
            assert f"in use by process {daemon.process.pid}" in err
            assert ("stop it first" in err) == (again[0] == "forward")
    measured("a second process on the same data: exit 4, names the first")


@pytest.mark.parametrize("path", PATHS)
async def test_health_alone_needs_no_token(tmp_path: Path, path: str) -> None:
    admin = {"listen": "127.0.0.1:0", "token": "admin-secret"}
    config = process.settings(tmp_path, NOWHERE, top={"admin": admin})
    async with process.daemon(config) as daemon, aiohttp.ClientSession(daemon.admin) as session:
        for open_path, expected in (("/healthz", 200), ("/readyz", 200), (path, 401)):
            async with session.get(open_path) as answer:
                assert answer.status == expected
