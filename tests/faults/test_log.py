"""The reader of the log goes away, hangs, or has a full disk: the daemon works as before."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

EVENTS = 2_000
PER_REQUEST = 200


@contextmanager
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def nobody() -> Iterator[int]:
    """A pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def hanging_reader(*, non_blocking: bool = False) -> Iterator[int]:
    """A pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x")
    except BlockingIOError:
        os.set_blocking(writing, not non_blocking)
    yield writing
    os.close(writing)
    os.close(reading)


@contextmanager
def hanging_reader_without_blocking() -> Iterator[int]:
    with hanging_reader(non_blocking=True) as writing:
        yield writing


@contextmanager
def closed() -> Iterator[None]:
    yield None


class Running:
    """A daemon, the log of which tells nothing."""

    def __init__(self, process_: asyncio.subprocess.Process, http: int, admin: int) -> None:
        self.process = process_
        self.http = f"http://127.0.0.1:{http}"
        self.admin = f"http://127.0.0.1:{admin}"

    async def get(self, path: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(self.admin + path) as answer:
            return await answer.text()

    async def until_ready(self) -> None:
        while self.process.returncode is None:
            try:
                if '"ready": true' in await self.get("/readyz"):
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0)
        raise AssertionError(f"it ended with {self.process.returncode}")

    async def settled(self) -> None:
        while '"pending":0' not in await self.get("/api/status"):
            pass


@asynccontextmanager
async def daemon(folder: Path, url: str, stderr: int | None) -> AsyncIterator[Running]:
    http, admin = process.free_port(), process.free_port()
    top = {
        "http": {"listen": f"127.0.0.1:{http}"},
        "admin": {"listen": f"127.0.0.1:{admin}"},
        "log": {"level": "debug"},
    }
    config = process.settings(folder, url, top=top)
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh"] if stderr is None else []
    started = await asyncio.create_subprocess_exec(
        *shell, *process.command("run", "-c", str(config)), stderr=stderr
    )
    running = Running(started, http, admin)
    try:
        await running.until_ready()
        yield running
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await started.wait()
    assert code == 0


@pytest.mark.parametrize(
    "stderr", [full_disk, nobody, hanging_reader, hanging_reader_without_blocking, closed]
)
async def test_a_failing_log_stops_no_intake_and_no_settling(
    tmp_path: Path, measured: Callable[[str], None], stderr: Any
) -> None:
    """Intercom refuses each event, and each refusal is a warning."""
    refused = Fault("status", 400, path="/events")
    local = Sandbox(faults=[refused], limit_per_minute=6_000_000)
    async with serve(local) as url:
        with stderr() as descriptor:
            async with daemon(tmp_path, url, descriptor) as running:
                for first in range(0, EVENTS, PER_REQUEST):
                    events = [
                        process.event(f"user-{n % 50}", n)
                        for n in range(first, first + PER_REQUEST)
                    ]
                    status, _ = await process.upload(f"{running.http}/2/httpapi", events)
                    assert status == 200
                    assert '"status": "ok"' in await running.get("/healthz")
                await running.settled()
                metrics = await running.get("/metrics")
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert values['amplitude_intercom_dead_letters{sync="e2e",reason="refused"}'] == f"{EVENTS}.0"
    if "hanging" not in stderr.__name__:  # there, some hundred lines wait
        assert float(values["amplitude_intercom_log_lines_lost_total"]) > 0
    measured(f"stderr {stderr.__name__}: {EVENTS} dead letters, each a warning; exit 0")


async def test_a_log_that_is_read_again_goes_on_with_whole_lines(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    refused = Fault("status", 400, path="/events")
    local = Sandbox(faults=[refused], limit_per_minute=6_000_000)
    async with serve(local) as url:
        async with daemon(tmp_path, url, writing) as running:
            os.close(writing)
            await process.upload(
                f"{running.http}/2/httpapi", [process.event("mira-okafor", n) for n in range(50)]
            )
            await running.settled()
        with os.fdopen(reading, "rb") as log:
            lines = log.read().splitlines()
    assert all(line.startswith(b'{"event": ') and line.endswith(b"}") for line in lines)
    assert b'"event": "stopped"' in lines[-1]
