"""SIGTERM: what was read is finished, what comes later is told to come again, nothing is reset."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.faulty_disk import FaultyDisk
from support.products import Products, check_accounts


async def event_under_way(local: Sandbox) -> None:
    """Return once an event has arrived that is not answered yet."""
    while not any(entry.path == "/events" for entry in local.journal):
        await asyncio.sleep(0)


async def test_while_it_drains_the_port_stays_open_and_says_later(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True, latency_s=1.0)
    local.add_contact(external_id="mira-okafor")
    body = json.dumps(
        {"api_key": process.API_KEY, "events": [process.event("mira-okafor", 2)]}
    ).encode()
    async with serve(local) as url:
        daemon = await process.start(process.settings(tmp_path, url))
        address = daemon.http.removeprefix("http://")
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /2/httpapi HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:10])
        status, _ = await process.upload(
            f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)]
        )
        assert status == 200
        await event_under_way(local)
        daemon.process.send_signal(signal.SIGTERM)
        while not any(entry["event"] == "draining" for entry in daemon.log):
            await asyncio.sleep(0)
        writer.write(body[10:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert b'{"code":503,"error":"Service unavailable: draining"}' in await reader.read()
        writer.close()
        await daemon.process.wait()
        assert await daemon.end(signal.SIGTERM) == 0
    assert [event.metadata["n"] for event in local.events] == [1]


async def test_a_clean_stop_leaves_nothing_half_done(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True, latency_s=0.3)
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url:
        daemon = await process.start(process.settings(tmp_path, url))
        await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
        await event_under_way(local)
        assert await daemon.end(signal.SIGTERM) == 0
        assert len(local.events) == 1
        async with process.daemon(process.settings(tmp_path, url)) as second:
            status = await second.settled()
    sent = sum(entry.path == "/events" for entry in local.journal)
    assert (status["received"], status["delivered"], sent) == (1, 1, 1)


async def test_sigterm_under_load_is_clean_loses_nothing_and_repeats_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    local = Sandbox(latency_s=0.01, limit_per_minute=6_000_000)
    products = Products(local)
    stops = 5
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        for _ in range(stops):
            daemon = await process.start(config)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(products.upload_until_cut_off(daemon.http))
                await process.moment(0.3)
                assert await daemon.end(signal.SIGTERM) == 0
            assert daemon.log[-1]["event"] == "stopped"
        async with process.daemon(config) as last:
            check_accounts(await last.settled())
    assert products.check() == 0
    measured(f"{stops} × SIGTERM under load: exit 0, nothing lost, no call made twice")


@pytest.mark.parametrize("signals", [1, 2])
async def test_past_the_deadline_or_at_a_second_signal_it_ends_with_1_and_loses_nothing(
    tmp_path: Path, measured: Callable[[str], None], signals: int
) -> None:
    """Intercom does not answer."""
    no_answer = Fault("hang", path="/events", done=False)
    local = Sandbox(faults=[no_answer], limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    deadline_s = 1.0 if signals == 1 else 30.0
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top={"drain_deadline_s": deadline_s})
        daemon = await process.start(config)
        await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
        await event_under_way(local)
        started = time.perf_counter()
        for _ in range(signals):
            daemon.process.send_signal(signal.SIGTERM)
            while signals == 2 and not any(line["event"] == "draining" for line in daemon.log):
                await asyncio.sleep(0)
        await daemon.process.wait()
        took_s = time.perf_counter() - started
        assert await daemon.end(signal.SIGTERM) == 1
        assert daemon.log[-1]["clean"] is False
        assert took_s < 30
    local = Sandbox(limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config) as last:
            status = await last.settled()
    assert (status["received"], status["delivered"], len(local.events)) == (1, 1, 1)
    how = "a second signal" if signals == 2 else f"a deadline of {deadline_s:.0f} s"
    measured(f"{how}: exit 1 after {took_s:.1f} s, what was under way is delivered next time")


HANGS_MS = 3_600_000


@pytest.mark.parametrize("signals", [1, 2])
async def test_above_a_disk_that_hangs_it_ends_in_time_with_1_and_loses_nothing(
    tmp_path: Path, measured: Callable[[str], None], signals: int
) -> None:
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="mira-okafor")
    deadline_s = 1.0 if signals == 1 else 300.0
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top={"drain_deadline_s": deadline_s})
        disk = FaultyDisk(tmp_path / "data", tmp_path / "control")
        daemon = await process.start(config, disk.env)
        upload = f"{daemon.http}/2/httpapi"
        assert (await process.upload(upload, [process.event("mira-okafor", 1)]))[0] == 200
        await daemon.settled()
        disk.set(fsync_delay_ms=HANGS_MS)
        hanging = asyncio.create_task(process.upload(upload, [process.event("mira-okafor", 2)]))
        await process.moment(0.5)
        assert not hanging.done(), "it is not on disk"
        started = time.perf_counter()
        for _ in range(signals):
            daemon.process.send_signal(signal.SIGTERM)
            while signals == 2 and not any(line["event"] == "draining" for line in daemon.log):
                await asyncio.sleep(0)
        code = await daemon.end(signal.SIGTERM) if signals == 1 else await daemon.process.wait()
        took_s = time.perf_counter() - started
        hanging.cancel()
        assert code == 1
        assert took_s < 1.0 + 10.0 + 5.0
        said = [line["event"] for line in daemon.log]
        assert "the disk hangs: the spool is left as it is" in said
        disk.set(fsync_delay_ms=0)
        async with process.daemon(config) as last:
            status = await last.settled()
    assert status["received"] == status["delivered"]
    numbers = [event.metadata["n"] for event in local.events]
    assert numbers in ([1], [1, 2]), "what was not answered may be there; the other is, once"
    measured(f"a disk that hangs, {signals} × SIGTERM: exit 1 after {took_s:.1f} s")


async def test_a_file_system_that_hangs_stops_neither_health_nor_the_end(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Threads hang in the kernel: the loop goes on, and the process ends without them."""
    local = Sandbox(open_attributes=True)
    async with serve(local) as url, aiohttp.ClientSession() as session:
        config = process.settings(tmp_path, url, top={"drain_deadline_s": 1.0})
        disk = FaultyDisk(tmp_path / "data", tmp_path / "control")
        daemon = await process.start(config, disk.env)
        disk.set(stat_delay_ms=HANGS_MS)
        async with asyncio.TaskGroup() as tasks:
            looks = [tasks.create_task(_status(session, daemon.admin)) for _ in range(20)]
            slowest_s = 0.0
            while not all(look.done() for look in looks):
                began_s = time.perf_counter()
                async with session.get(f"{daemon.admin}/healthz") as answer:
                    assert answer.status == 200
                slowest_s = max(slowest_s, time.perf_counter() - began_s)
                await process.moment(0.05)
        assert {look.result()["spool"]["trouble"] for look in looks} == {
            "the disk does not answer: it cannot be read"
        }
        assert slowest_s < 2.0
        started = time.perf_counter()
        assert await daemon.end(signal.SIGTERM) == 1
        took_s = time.perf_counter() - started
        assert took_s < 1.0 + 10.0 + 5.0
        [line] = [line for line in daemon.log if "hangs" in line]
        assert any("disk_bytes" in where or "size_of" in where for where in line["hangs"].values())
    measured(f"a file system that hangs: exit 1 after {took_s:.1f} s, {line['hangs']}")


async def _status(session: aiohttp.ClientSession, admin: str) -> dict[str, Any]:
    async with session.get(f"{admin}/api/status") as answer:
        found: dict[str, Any] = await answer.json()
        return found
