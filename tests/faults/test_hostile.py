"""Hostile input on every port: the right status, bounded memory, and everybody else is served."""

from __future__ import annotations

import asyncio
import gzip
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.serving import speak

MIB = 1 << 20
PORTS = ("http", "admin")


def bomb(mebibytes: int) -> bytes:
    """Return so many mebibytes of zeros, packed to a thousandth."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mebibytes)) + packer.flush()


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    said = "".join(f"{header}\r\n" for header in headers)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{said}"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


def chunked(path: str, mebibytes: int) -> Iterator[bytes]:
    yield (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    for _ in range(mebibytes):
        yield b"100000\r\n" + b"x" * MIB + b"\r\n"
    yield b"0\r\n\r\n"


def status_of(answer: bytes) -> int:
    """Return an answer's status; 0 where the connection was closed without one."""
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(found[1]) if found else 0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[process.Daemon]:
    """A daemon that in the end still works, has not grown, and has nothing to complain of."""
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config) as running:
            yield running
            event = [process.event("mira-okafor", 1)]
            status, _ = await process.upload(f"{running.http}/2/httpapi", event)
            assert status == 200
            assert (await running.settled())["delivered"] == 1
            assert running.memory_bytes("VmHWM") < 200 * MIB
            errors = [entry for entry in running.log if entry["level"] == "error"]
    assert not errors
    assert len(local.events) == 1


def _target(daemon: process.Daemon, port: str) -> tuple[str, str]:
    if port == "http":
        return daemon.http.removeprefix("http://"), "/batch"
    return daemon.admin.removeprefix("http://"), "/api/v1/syncs/e2e/jobs"


@pytest.mark.parametrize("port", PORTS)
async def test_large_packed_and_deep_bodies_are_refused(
    daemon: process.Daemon, port: str, measured: Callable[[str], None]
) -> None:
    address, path = _target(daemon, port)
    packed = bomb(1_024)
    assert len(packed) < 2 * MIB
    nested = b'{"api_key": "%s", "events": ' % process.API_KEY.encode() + b"[" * 500_000
    refused = {
        "a bomb of 1 GiB": (post(path, packed, "Content-Encoding: gzip"), {413, 400}),
        "100 MB that are announced": (post(path, b"x" * 1_000, length=100 * MIB), {413}),
        "100 MB in chunks": (b"".join(chunked(path, 100)), {413, 0}),
        "half a million brackets": (post(path, nested), {400, 422}),
        "the same, packed": (
            post(path, gzip.compress(nested), "Content-Encoding: gzip"),
            {400, 422},
        ),
        "garbage for gzip": (post(path, b"not gzip", "Content-Encoding: gzip"), {400}),
    }
    for what, (said, expected) in refused.items():
        assert status_of(await speak(address, said)) in expected, what
    grown = daemon.memory_bytes("VmHWM") // MIB
    measured(f"{port} port, bombs and 100 MB bodies: 400 and 413, at most {grown} MiB resident")


@pytest.mark.parametrize("port", PORTS)
async def test_floods_of_headers_are_refused(daemon: process.Daemon, port: str) -> None:
    address, path = _target(daemon, port)
    many = [f"X-Flood-{n}: {n}" for n in range(20_000)]
    for headers in (many, [f"X-Long: {'x' * MIB}"], [f"{'X' * MIB}: 1"]):
        assert status_of(await speak(address, post(path, b"{}", *headers))) in {400, 414, 431, 0}
    line = f"GET /{'x' * MIB} HTTP/1.1\r\n\r\n".encode()
    assert status_of(await speak(address, line)) in {400, 414, 0}


@pytest.mark.parametrize("port", PORTS)
async def test_random_bytes_are_refused_or_dropped(daemon: process.Daemon, port: str) -> None:
    address, path = _target(daemon, port)
    dice = random.Random(port)
    whole = post(path, b'{"api_key": "x", "events": []}')
    for _ in range(150):
        said = bytearray(whole) if dice.random() < 0.5 else bytearray(dice.randbytes(300))
        for _ in range(dice.randrange(1, 8)):
            said[dice.randrange(len(said))] = dice.randrange(256)
        said += b"\r\n\r\n"
        assert status_of(await speak(address, bytes(said) + b"\r\n\r\n")) < 500


@pytest.mark.parametrize("port", PORTS)
async def test_clients_that_never_finish_a_request_hold_nobody_up(
    daemon: process.Daemon, port: str, measured: Callable[[str], None]
) -> None:
    address, path = _target(daemon, port)
    host, _, number = address.partition(":")
    slow = [await asyncio.open_connection(host, int(number)) for _ in range(40)]
    for n, (_, writer) in enumerate(slow):
        writer.write(post(path, b"", length=1_000)[: 20 + n * 3])
    answers = [status_of(await speak(address, post(path, b"{}"))) for _ in range(20)]
    assert all(400 <= answer < 500 or answer == 200 for answer in answers)
    for _, writer in slow:
        writer.close()
    measured(f"{port} port, 40 clients that never finish: 20 others answered at once")
