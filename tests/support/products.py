"""Products that send events: what was acknowledged to them must arrive, once and in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

import aiohttp
import msgspec

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process

USERS = 40
UPLOADERS = 4
PAUSE_S = 0.02


class Product:
    """A product's users: each uploader has its own, and repeats an upload until it is taken."""

    def __init__(self, number: int) -> None:
        self.users = [f"user-{number}-{n:02}" for n in range(USERS // UPLOADERS)]
        self.acknowledged: list[tuple[str, int]] = []
        self.refused = 0
        self._next = 0
        self._unanswered: list[dict[str, Any]] = []

    async def upload_until_cut_off(self, url: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            while True:
                await self.upload(url)

    async def upload(self, url: str) -> bool:
        """Upload once: the next batch, or again the one that was not taken."""
        if not self._unanswered:
            self._next += 1
            self._unanswered = [process.event(user, self._next) for user in self.users]
        status, _ = await process.upload(f"{url}/2/httpapi", self._unanswered)
        if status != 200:
            assert status == 503
            self.refused += 1
            await process.moment(PAUSE_S)
            return False
        self.acknowledged += [
            (event["user_id"], event["event_properties"]["n"]) for event in self._unanswered
        ]
        self._unanswered = []
        return True


class Products:
    """Several of them, whose users each workspace of Intercom knows."""

    def __init__(self, *workspaces: Sandbox) -> None:
        self._workspaces = workspaces
        self.all = [Product(n) for n in range(UPLOADERS)]
        for local in workspaces:
            for product in self.all:
                for user in product.users:
                    local.add_contact(external_id=user)

    @property
    def acknowledged(self) -> list[tuple[str, int]]:
        return [event for product in self.all for event in product.acknowledged]

    async def upload_until_cut_off(self, url: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            for product in self.all:
                tasks.create_task(product.upload_until_cut_off(url))

    def check(self) -> int:
        """Hold what arrived against what was acknowledged; return how many calls were repeated.

        Of several workspaces, in the one where most were.
        """
        return max(self._check(local) for local in self._workspaces)

    def _check(self, local: Sandbox) -> int:
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
        assert self.acknowledged
        assert not [(user, n) for user, n in self.acknowledged if n not in arrived[user]]
        assert all(order == sorted(order) for order in arrived.values())
        events = local.events
        assert len({(e.contact_id, e.created_at) for e in events}) == len(events)
        return repeated


def check_accounts(status: dict[str, Any]) -> None:
    """Every event that was received is settled."""
    settled = status["delivered"] + sum(status["dropped"].values()) + status["dead"]
    assert status["received"] == settled
