"""The delivery side, unchanged, against the in-process sandbox, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Request, Wire
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.journal import JournalEntry
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import virtual

API_KEY = "simulated"


def settings(
    folder: Path,
    *,
    twice: bool = False,
    second: Mapping[str, Any] | None = None,
    top: Mapping[str, Any] | None = None,
    **sync: Any,
) -> Settings:
    """Return settings with one sync, or ``twice`` the same under two names; of the ``second`` one
    some may be others. ``top``: further sections."""
    table = {
        "amplitude_api_keys": [API_KEY],
        "intercom": {"access_token": "simulated-token"},
        "users": {"properties": ["plan", "email", "visits"]},
        "events": {"select": [{"types": ["*"]}], "metadata": ["n"]},
        **sync,
    }
    syncs = [{"name": "simulated", **table}]
    if twice or second:
        syncs.append({"name": "another", **table, **(second or {})})
    return from_table({"data_dir": str(folder), "sync": syncs, **(top or {})})


def sandbox(**more: Any) -> Sandbox:
    return Sandbox(**{"now": virtual.current().wall_s, "open_attributes": True, **more})


@asynccontextmanager
async def engine(
    folder: Path,
    local: Sandbox,
    seed: int = 0,
    wire: Wire | None = None,
    store_type: type[Store] = Store,
    **sync: Any,
) -> AsyncIterator[Engine]:
    """Run an engine on a sandbox; ``wire`` takes its calls instead."""
    loop = virtual.current()
    async with Engine(
        settings(folder, **sync),
        wire=lambda intercom: wire or InProcess(local),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        jitter=random.Random(seed).random,
        inline=True,
        store_type=store_type,
    ) as running:
        yield running


def event(user: str, n: int, **more: Any) -> dict[str, Any]:
    """Return an event of its own second, so that Intercom has no reason to merge it."""
    return {
        "user_id": user,
        "event_type": "Purchase",
        "insert_id": f"{user}/{n}",
        "time": 1_700_000_000_000 + n * 1_000,
        "event_properties": {"n": n},
        **more,
    }


def identify(user: str, n: int, operations: Mapping[str, Any]) -> dict[str, Any]:
    return event(user, n) | {"event_type": "$identify", "user_properties": dict(operations)}


def archive(contact_id: str) -> Request:
    return Request("POST", f"/contacts/{contact_id}/archive", b"{}")


def delete(contact_id: str) -> Request:
    return Request("DELETE", f"/contacts/{contact_id}")


async def a_moment() -> None:
    """Let simulated time pass."""
    await anyio.sleep(0.1)


def made(local: Sandbox) -> list[JournalEntry]:
    """The calls that were made, but for what is asked of the workspace itself: its name, once, and
    its list of attributes now and then."""
    apart = ("/data_attributes", "/me")
    return [entry for entry in local.journal if not entry.path.startswith(apart)]


def create_attribute(name: str, data_type: str) -> Request:
    return intercom.create_attribute(name, data_type)


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)
