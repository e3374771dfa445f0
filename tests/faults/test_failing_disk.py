"""A disk that is full, that fails, or that is slow: what was acknowledged stays, and it goes on."""

from __future__ import annotations

import asyncio
import errno
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.faulty_disk import FaultyDisk, after_power_cut
from support.products import Products, check_accounts

MIB = 1 << 20


class Rig:
    """The daemon above a faulty disk, products that send, and an Intercom that answers."""

    def __init__(self, daemon: process.Daemon, disk: FaultyDisk, products: Products) -> None:
        self.daemon = daemon
        self.disk = disk
        self.products = products

    async def upload(self) -> list[bool]:
        """One upload of each product; whether it was taken."""
        return [await product.upload(self.daemon.http) for product in self.products.all]

    async def upload_until(self, taken: bool) -> None:
        while await self.upload() != [taken] * len(self.products.all):
            pass

    async def trouble(self) -> str:
        trouble: str = (await self.daemon.status())["trouble"]
        return trouble

    async def ready(self) -> tuple[int, dict[str, str]]:
        status, said = await self.daemon.ready()
        return status, said["unready"]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.daemon.log if entry["event"] == event]


@asynccontextmanager
async def rig(tmp_path: Path, latency_s: float = 0.0, **disk: int) -> AsyncIterator[Rig]:
    """All of it, running; at the end the disk is well, and what was sent arrives."""
    local = Sandbox(latency_s=latency_s, limit_per_minute=6_000_000)
    products = Products(local)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top={"spool": {"reserve_bytes": 32 * MIB}})
        faulty = FaultyDisk(tmp_path / "data", tmp_path / "control", **disk)
        running = Rig(await process.start(config, faulty.env), faulty, products)
        try:
            await running.upload_until(taken=True)
            yield running
            await running.upload_until(taken=True)
            check_accounts(await running.daemon.settled())
        finally:
            code = await running.daemon.end(signal.SIGTERM)
        assert code == 0, running.daemon.log
        verified, out, _ = await process.run("spool", "verify", "-c", str(config))
    assert (verified, out) == (0, f"{tmp_path}/data/spool.db: whole\n")
    products.check()


@pytest.mark.parametrize("call", ["fsync", "write"])
async def test_an_error_that_comes_once_costs_one_refusal(
    tmp_path: Path, measured: Callable[[str], None], call: str
) -> None:
    async with rig(tmp_path) as running:
        await running.daemon.settled()
        running.disk.set(**{f"{call}_errno": errno.EIO, f"{call}_failures": 1})
        taken = await running.upload()
        assert running.disk.get(f"{call}_failures") == 0
        assert taken.count(False) == 1
        assert await running.ready() == (200, {})
        assert len(running.logged("the spool is well again")) == 1
    measured(f"{call} fails once: 1 request answered 503, opened again, 0 lost")


@pytest.mark.parametrize("call", ["fsync", "write"])
async def test_an_error_that_stays_is_said_and_nothing_is_acknowledged(
    tmp_path: Path, measured: Callable[[str], None], call: str
) -> None:
    async with rig(tmp_path) as running:
        received = (await running.daemon.settled())["received"]
        running.disk.set(**{f"{call}_errno": errno.EIO, f"{call}_failures": -1})
        for _ in range(3):
            assert await running.upload() == [False] * 4
        assert await running.trouble() == "spool_failing: disk I/O error"
        assert await running.ready() == (503, {"e2e": "spool_failing"})
        assert running.logged("the spool is in trouble")
        running.disk.set(**{f"{call}_failures": 0})
        while (await running.ready())[0] != 200:
            await process.moment(0.05)
        assert await running.trouble() == ""
        assert (await running.daemon.status())["received"] == received, "what failed came back"
    measured(f"{call} fails for good: every request 503, not ready, said why; well again by itself")


async def test_after_failed_fsyncs_a_power_cut_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    """What a failed fsync left in memory must not lie below what is acknowledged later."""
    async with rig(tmp_path, keep=1) as running:
        for failures in (1, 2, 3, 1):
            running.disk.set(fsync_errno=errno.EIO, fsync_failures=failures)
            await running.upload_until(taken=True)
        await running.daemon.end(signal.SIGKILL)
        after_power_cut(tmp_path / "data", tmp_path / "after", random.Random(1))
        (tmp_path / "data").rename(tmp_path / "before")
        (tmp_path / "after").rename(tmp_path / "data")
        running.daemon = await process.start(tmp_path / "settings.toml")


async def test_on_a_full_disk_deliveries_are_settled_and_intake_says_later(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """Somebody else writes 250 MB a second, and takes whatever becomes free."""
    async with rig(tmp_path, latency_s=0.1, quota_on=1, free_bytes=96 * MIB) as running:
        for _ in range(30):
            await running.upload()
        filling = asyncio.create_task(_fill(running.disk))
        await running.upload_until(taken=False)
        waiting = (await running.daemon.status())["pending"]
        assert waiting > 1_000
        assert "disk_full" in await running.trouble()
        assert (await running.ready())[0] == 503
        await running.daemon.settled()
        assert (await running.ready())[0] == 503
        filling.cancel()
        while (await running.ready())[0] != 200:
            running.disk.set(free_bytes=96 * MIB)  # again: the daemon may be counting just now
            await process.moment(0.05)
    measured(f"full disk: intake 503, {waiting} deliveries settled on it, then goes on by itself")


async def _fill(disk: FaultyDisk) -> None:
    while True:
        await process.moment(0.004)
        disk.set(free_bytes=max(0, disk.get("free_bytes") - MIB))


async def test_a_daemon_starts_on_a_full_disk(tmp_path: Path) -> None:
    async with rig(tmp_path, quota_on=1, free_bytes=96 * MIB) as running:
        await running.daemon.settled()
        await running.daemon.end(signal.SIGKILL)
        running.disk.set(free_bytes=0)
        running.daemon = await process.start(tmp_path / "settings.toml", running.disk.env)
        status, why = await running.ready()
        assert (status, why) == (503, {"e2e": "disk_full"})
        assert not running.logged("ready")
        assert await running.upload() == [False] * 4
        running.disk.set(free_bytes=96 * MIB)
        while (await running.ready())[0] != 200:
            await process.moment(0.05)


@pytest.mark.parametrize(
    "long", [False, pytest.param(True, marks=pytest.mark.long)], ids=["short", "long"]
)
async def test_a_slow_disk_does_not_hold_the_event_loop_up(
    tmp_path: Path, measured: Callable[[str], None], long: bool
) -> None:
    delay_s = 0.5 if long else 0.25
    async with rig(tmp_path, fsync_delay_ms=int(delay_s * 1_000)) as running:
        async with (
            aiohttp.ClientSession(running.daemon.admin) as session,
            asyncio.TaskGroup() as up,
        ):
            for product in running.products.all:
                up.create_task(_twice(product, running.daemon.http))
            took_s: list[float] = []
            while len(took_s) < (400 if long else 200):
                started = time.perf_counter()
                async with session.get("/healthz") as answer:
                    assert answer.status == 200
                took_s.append(time.perf_counter() - started)
                await process.moment(0.005)
        running.disk.set(fsync_delay_ms=0)
    p99 = sorted(took_s)[len(took_s) * 99 // 100]
    assert p99 < delay_s / 4
    measured(f"fsync takes {delay_s * 1000:.0f} ms: health answers in {p99 * 1000:.1f} ms (p99)")


async def _twice(product: Any, url: str) -> None:
    for _ in range(2):
        assert await product.upload(url)
