"""Attacks on signing in and on the guard of the admin port: bounded memory, others are served."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import aiohttp
import pytest

from support import process
from support.serving import speak

MIB = 1 << 20
TOKEN = "admin-secret-canary"
OWN = {"Sec-Fetch-Site": "same-origin"}
SESSION = "/api/v1/session"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[process.Daemon]:
    """A daemon behind a proxy that names its clients' addresses."""
    admin = {"listen": "127.0.0.1:0", "token": TOKEN, "ip_header": "X-Real-Ip"}
    config = process.settings(tmp_path, "http://127.0.0.1:9", top={"admin": admin})
    async with process.daemon(config) as running:
        yield running
        errors = [entry for entry in running.log if entry["level"] == "error"]
        assert not errors


async def sign_in(session: aiohttp.ClientSession, token: str, peer: str) -> int:
    headers = OWN | {"X-Real-Ip": peer}
    async with session.post(SESSION, json={"token": token}, headers=headers) as answer:
        await answer.read()
        return answer.status


async def statuses(session: aiohttp.ClientSession, token: str, peers: Iterable[str]) -> list[int]:
    """Sign in from each of these addresses, twenty at a time."""
    at_once = asyncio.Semaphore(20)

    async def one(peer: str) -> int:
        async with at_once:
            return await sign_in(session, token, peer)

    return await asyncio.gather(*map(one, peers))


async def health_s(daemon: process.Daemon) -> float:
    began_s = time.perf_counter()
    async with aiohttp.ClientSession(daemon.admin) as session, session.get("/healthz") as answer:
        assert answer.status == 200
    return time.perf_counter() - began_s


async def test_sign_ins_from_many_addresses_take_bounded_memory_and_disk(
    daemon: process.Daemon, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(daemon.admin, cookie_jar=jar) as session:
        await statuses(session, "wrong", ["10.9.9.9"])
        before = daemon.memory_bytes()
        peers = [f"10.1.{n >> 8}.{n & 255}" for n in range(12_000)]
        wrong = asyncio.create_task(statuses(session, "wrong", peers))
        slowest_s = 0.0
        while not wrong.done():
            slowest_s = max(slowest_s, await health_s(daemon))
            await process.moment(0.05)
        assert set(await wrong) == {401}
        again = await statuses(session, "wrong", ["10.7.7.7"] * 50)
        assert (again.count(401), again.count(429)) == (5, 45)
        right = await statuses(session, TOKEN, [f"10.2.{n >> 8}.{n & 255}" for n in range(1_500)])
        assert set(right) == {200}
        grown = daemon.memory_bytes() - before
    assert grown < 32 * MIB
    lines = (tmp_path / "data" / "audit.jsonl").read_text().splitlines()
    refused = [line for line in lines if json.loads(line)["action"] == "sign-in refused"]
    minutes = 1 + (json.loads(lines[-1])["time_ms"] - json.loads(lines[0])["time_ms"]) // 60_000
    assert 30 <= len(refused) <= 30 * (minutes + 1)
    measured(
        f"12,000 wrong and 1,500 right sign-ins, each from an address of its own: at most "
        f"{grown // MIB + 1} MiB more, {len(refused)} refusals written, `/healthz` within "
        f"{slowest_s * 1000:.0f} ms"
    )


@pytest.mark.parametrize(
    "headers",
    [
        [f"Cookie: {'a=b; ' * 1_500}"],
        [f"Cookie: {';' * 8_000}"],
        [f'Cookie: x="{chr(92) * 7_000}'],
        ["Cookie: console-1=x"] * 500,
        [f"Cookie: {'x' * MIB}"],
        [f"Authorization: Bearer {'x' * 8_000}"],
        ["Authorization: Bearer a", f"Authorization: Bearer {TOKEN}"],
        [f"Origin: http://{'x' * 8_000}"],
        [f"Sec-Fetch-Site: {'x' * 8_000}"],
        [f"X-Real-Ip: {'1,' * 4_000}"],
        ["X-Real-Ip: \xff"],
        ["Sec-Fetch-Site: same-origin"] * 100,
        [f"X-Flood-{n}: {n}" for n in range(20_000)],
    ],
    ids=lambda headers: f"{len(headers)}-{headers[0][:20]}",
)
async def test_headers_without_measure_are_refused(
    daemon: process.Daemon, headers: list[str]
) -> None:
    said = "".join(f"{header}\r\n" for header in headers)
    request = f"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\n{said}Connection: close\r\n\r\n"
    answer = await speak(daemon.admin.removeprefix("http://"), request.encode("latin-1"))
    assert answer == b"" or int(answer.split()[1]) in {400, 401, 403, 414, 431}
    assert await health_s(daemon) < 1
    assert daemon.memory_bytes("VmHWM") < 200 * MIB


async def test_hosts_without_measure_are_refused(daemon: process.Daemon) -> None:
    for host in ("", "x" * 8_000, "127.0.0.1\r\nHost: evil", "[" * 4_000, "\xff", "a" * 255 + ":1"):
        request = f"GET /api/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = await speak(daemon.admin.removeprefix("http://"), request.encode("latin-1"))
        assert int(answer.split()[1]) in {400, 403}, host[:20]
