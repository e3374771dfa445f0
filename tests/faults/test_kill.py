"""SIGKILL at random moments of intake and delivery: nothing acknowledged is lost or reordered."""

from __future__ import annotations

import asyncio
import random
import signal
import tomllib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import tomli_w

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.products import Products, check_accounts

IN_FLIGHT = 25
"""Calls that may be under way at once; fewer than there are users, so that the bound is met."""


async def _kill_after(daemon: process.Daemon, delay_s: float) -> None:
    await process.moment(delay_s)
    await daemon.end(signal.SIGKILL)


def _with_second_sync(config: Path, url: str) -> None:
    """Let another sync of the same settings take the same events to a workspace of its own."""
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    [first] = table["sync"]
    intercom = {**first["intercom"], "access_token": "another-token", "base_url": url}
    table["sync"].append({**first, "name": "other", "intercom": intercom})
    config.write_text(tomli_w.dumps(table), encoding="utf-8")


async def _prove(tmp_path: Path, kills: int, seed: int, syncs: int = 1) -> str:
    dice = random.Random(seed)
    workspaces = [Sandbox(latency_s=0.01, limit_per_minute=6_000_000) for _ in range(syncs)]
    products = Products(*workspaces)
    async with AsyncExitStack() as stack:
        url, *others = [await stack.enter_async_context(serve(local)) for local in workspaces]
        config = process.settings(tmp_path, url, intercom_more={"max_in_flight": IN_FLIGHT})
        for other in others:
            _with_second_sync(config, other)
        for _ in range(kills):
            daemon = await process.start(config)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(products.upload_until_cut_off(daemon.http))
                tasks.create_task(_kill_after(daemon, dice.uniform(0.0, 0.5)))
        async with process.daemon(config) as last:
            for status in await last.all_settled():
                check_accounts(status)
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


async def test_two_syncs_that_share_a_spool_both_have_all_that_was_acknowledged(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(f"two syncs: {await _prove(tmp_path, kills=10, seed=3, syncs=2)}")


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_lose_and_reorder_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, kills=200, seed=2))
