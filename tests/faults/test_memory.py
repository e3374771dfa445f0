"""A backlog costs disk, not memory; and the next start does not read it before it begins."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

MIB = 1 << 20
A_REQUEST = 2_000
USERS = 50_000
PADDING = "x" * 300


def _bodies(events: int) -> Iterator[bytes]:
    """Yield uploads of ``/batch``, of events of about 500 bytes."""
    for start in range(0, events, A_REQUEST):
        batch = ",".join(
            f'{{"user_id":"user-{n % USERS:06}","event_type":"Purchase","insert_id":"{n}",'
            f'"time":{1_700_000_000_000 + n},"event_properties":{{"n":{n},"padding":"{PADDING}"}},'
            '"device_id":"0a1b2c3d-4e5f-6789","platform":"Web","country":"Finland"}'
            for n in range(start, start + A_REQUEST)
        )
        yield f'{{"api_key":"{process.API_KEY}","events":[{batch}]}}'.encode()


async def _fill(daemon: process.Daemon, events: int) -> list[int]:
    """Send a backlog; return the resident memory after each tenth of it."""
    resident = []
    async with aiohttp.ClientSession(daemon.http) as session:
        for number, body in enumerate(_bodies(events), 1):
            async with session.post("/batch", data=body) as answer:
                assert answer.status == 200
            if number * A_REQUEST * 10 % events == 0:
                resident.append(daemon.memory_bytes())
    return resident


async def _start_s(config: Path) -> tuple[process.Daemon, float]:
    started = time.perf_counter()
    daemon = await process.start(config)
    return daemon, time.perf_counter() - started


async def _prove(tmp_path: Path, events: int) -> str:
    local = Sandbox(limit_per_minute=10_000)
    for n in range(USERS):
        local.add_contact(external_id=f"user-{n:06}")
    port = process.free_port()
    config = process.settings(tmp_path, f"http://127.0.0.1:{port}")
    daemon, empty_s = await _start_s(config)
    resident = await _fill(daemon, events)
    await daemon.end(signal.SIGKILL)
    async with serve(local, "127.0.0.1", port):
        daemon, loaded_s = await _start_s(config)
        began = time.perf_counter()
        while not (status := await daemon.status())["delivered"]:
            pass
        first_s = time.perf_counter() - began
        while status["delivered"] < 500:
            status = await daemon.status()
        resident.append(daemon.memory_bytes())
        await daemon.end(signal.SIGKILL)
    assert status["pending"] + status["delivered"] == events
    assert max(resident) < 200 * MIB
    assert resident[9] < resident[2] * 1.2
    assert loaded_s < empty_s * 3 + 1
    return (
        f"{events:,} events wait: {resident[2] // MIB} MiB at 30 %, {resident[9] // MIB} at 100 %,"
        f" {resident[10] // MIB} delivering; ready {loaded_s:.1f} s after SIGKILL (empty:"
        f" {empty_s:.1f} s), first delivery {first_s * 1000:.0f} ms later"
    )


async def test_a_backlog_of_a_hundred_thousand_stays_on_disk(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, 100_000))


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_backlog_of_three_million_stays_on_disk(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, 3_000_000))
