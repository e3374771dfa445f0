"""Too many clients for the files that the daemon may open: they wait, and all are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.products import check_accounts

MAX_FILES = 64
CLIENTS = 500


async def test_five_hundred_clients_with_64_files(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    local = Sandbox(limit_per_minute=6_000_000)
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        async with process.daemon(config, max_files=MAX_FILES) as daemon:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(daemon.http, connector=connector) as session:
                bodies = [_body(n, local) for n in range(CLIENTS)]
                answers = await asyncio.gather(*(_post(session, body) for body in bodies))
                again = await asyncio.gather(*(_post(session, body) for body in bodies[:50]))
            status = await daemon.settled()
            check_accounts(status)
            open_files = len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))
        assert not [entry for entry in daemon.log if entry["level"] == "error"]
    assert answers == [200] * CLIENTS
    assert again == [200] * 50
    assert len(local.events) == CLIENTS
    assert open_files < MAX_FILES
    measured(f"{CLIENTS} clients at once, {MAX_FILES} files: all answered 200, {CLIENTS} delivered")


def _body(n: int, local: Sandbox) -> bytes:
    local.add_contact(external_id=f"user-{n:03}")
    events = [process.event(f"user-{n:03}", n)]
    return json.dumps({"api_key": process.API_KEY, "events": events}).encode()


async def _post(session: aiohttp.ClientSession, body: bytes) -> int:
    async with session.post("/2/httpapi", data=body) as answer:
        return answer.status
