"""The HTTP source before an engine that stores and does not deliver, and raw requests to it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.transports.http import HttpSource


@asynccontextmanager
async def serving(
    folder: Path, api_key: str = "*", *, relay: str = "", **http: Any
) -> AsyncIterator[tuple[HttpSource, Engine]]:
    """The source, listening, and the engine behind it; ``relay``: where one sends to, if any."""
    sync: dict[str, Any] = {
        "name": "a",
        "amplitude_api_keys": [api_key],
        "intercom": {"access_token": "t"},
        "events": {"select": [{"types": ["*"]}]},
    }
    if relay:
        sync["enabled"] = False
    relays = [{"base_url": relay}] if relay else []
    settings = from_table({"data_dir": str(folder), "sync": [sync], "relay": relays})
    source = HttpSource(listen="127.0.0.1:0", **http)
    async with Engine(settings, deliver=bool(relay)) as engine, anyio.create_task_group() as tasks:
        tasks.start_soon(source.run, engine.intake)
        await source.listening()
        yield source, engine
        tasks.cancel_scope.cancel()


async def speak(address: str, said: bytes) -> bytes:
    """Say something to a port; return the whole answer, or what is heard until it closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = b""
    try:
        writer.write(said)
        while not _is_whole(heard) and (more := await reader.read(65_536)):
            heard += more
    except ConnectionError:
        pass
    finally:
        writer.close()
    return heard


def _is_whole(heard: bytes) -> bool:
    head, found, body = heard.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return bool(found and length) and len(body) >= int(length[1] if length else 0)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
