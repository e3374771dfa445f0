"""SIGKILL at random moments of intake and delivery: nothing acknowledged is lost or reordered."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox import Sandbox, serve
from support import process
from support.products import Products, check_accounts

IN_FLIGHT = 25
"""Calls that may be under way at once; fewer than there are users, so that the bound is met."""


async def _kill_after(daemon: process.Daemon, delay_s: float) -> None:
    await process.moment(delay_s)
    await daemon.end(signal.SIGKILL)


async def _prove(tmp_path: Path, kills: int, seed: int) -> str:
    dice = random.Random(seed)
    local = Sandbox(latency_s=0.01, limit_per_minute=6_000_000)
    products = Products(local)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, intercom_more={"max_in_flight": IN_FLIGHT})
        for _ in range(kills):
            daemon = await process.start(config)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(products.upload_until_cut_off(daemon.http))
                tasks.create_task(_kill_after(daemon, dice.uniform(0.0, 0.5)))
        async with process.daemon(config) as last:
            check_accounts(await last.settled())
    repeated = products.check()
    assert repeated <= kills * IN_FLIGHT  # those that were out, or answered and not yet on disk
    return (
        f"{kills} kills, {len(products.acknowledged)} events acknowledged: 0 missing, 0 out of"
        f" order, {repeated / kills:.1f} calls repeated a kill of up to {IN_FLIGHT} in flight,"
        " 0 duplicates in Intercom"
    )


async def test_twenty_kills_lose_and_reorder_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, kills=20, seed=1))


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_lose_and_reorder_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, kills=200, seed=2))
