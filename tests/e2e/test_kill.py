"""SIGKILL at random moments of intake and delivery: nothing acknowledged is lost or reordered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from support import process
from transports.sandbox import Sandbox, serve

USERS = 40
UPLOADERS = 4


class Product:
    """A product's users: each uploader has its own, and repeats an upload until it is taken."""

    def __init__(self, number: int) -> None:
        self.users = [f"user-{number}-{n:02}" for n in range(USERS // UPLOADERS)]
        self.acknowledged: list[dict[str, Any]] = []
        self._next = 0
        self._unanswered: list[dict[str, object]] = []

    def _batch(self) -> list[dict[str, object]]:
        self._next += 1
        return [process.event(user, self._next) for user in self.users]

    async def upload_until_cut_off(self, url: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                self._unanswered = self._unanswered or self._batch()
                status, _ = await process.upload(f"{url}/2/httpapi", self._unanswered)
                assert status == 200
                self.acknowledged += self._unanswered
                self._unanswered = []


async def _kill_after(daemon: process.Daemon, delay_s: float) -> None:
    moment = asyncio.Event()
    asyncio.get_running_loop().call_later(delay_s, moment.set)
    await moment.wait()
    await daemon.end(signal.SIGKILL)


async def _prove(tmp_path: Path, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    local = Sandbox(latency_s=0.01, limit_per_minute=6_000_000)
    products = [Product(n) for n in range(UPLOADERS)]
    for product in products:
        for user in product.users:
            local.add_contact(external_id=user)
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        for _ in range(kills):
            daemon = await process.start(config)
            async with asyncio.TaskGroup() as tasks:
                for product in products:
                    tasks.create_task(product.upload_until_cut_off(daemon.http))
                tasks.create_task(_kill_after(daemon, dice.uniform(0.0, 0.5)))
        async with process.daemon(config) as last:
            status = await last.settled()
    _check(local, products, kills)
    counted = status["delivered"] + sum(status["dropped"].values()) + status["dead"]
    assert status["received"] == counted


def _check(local: Sandbox, products: list[Product], kills: int) -> None:
    arrived: dict[str, list[int]] = defaultdict(list)
    repeated = 0
    for entry in local.journal:
        if entry.path != "/events" or entry.status != 202:
            continue
        body = msgspec.json.decode(entry.body)
        user, n = body["user_id"], body["metadata"]["n"]
        if n in arrived[user]:
            repeated += 1
        else:
            arrived[user].append(n)
    acknowledged = [
        (e["user_id"], e["event_properties"]["n"]) for p in products for e in p.acknowledged
    ]
    missing = [(user, n) for user, n in acknowledged if n not in arrived[user]]
    assert not missing
    assert all(order == sorted(order) for order in arrived.values())
    assert len({(e.contact_id, e.created_at) for e in local.events}) == len(local.events)
    assert repeated <= kills * USERS  # a lane has one call out at most
    assert acknowledged


async def test_twenty_kills_lose_and_reorder_nothing(tmp_path: Path) -> None:
    await _prove(tmp_path, kills=20, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_two_hundred_kills_lose_and_reorder_nothing(tmp_path: Path) -> None:
    await _prove(tmp_path, kills=200, seed=2)
