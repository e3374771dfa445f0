"""Batches whose answers are lost on their way from a daemon to ``forward``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from amplitude_intercom.engine.commands.daemon_batches import DaemonBatches
from amplitude_intercom.engine.commands.daemon_client import DaemonClient
from amplitude_intercom.engine.commands.daemon_sync import DaemonSync
from amplitude_intercom.engine.settings import Admin
from amplitude_intercom.transports.contract import batch_of
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import Console, console

NONE = {"select": [{"types": ["Other"]}]}


@asynccontextmanager
async def losing(api: Console, *, landed: bool) -> AsyncIterator[str]:
    """Yield an address of the API at which the answer to every other batch is lost.

    ``landed``: such a batch has reached the daemon.
    """
    batches = 0
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def pass_on(request: web.Request) -> web.Response:
            nonlocal batches
            batches += request.path.endswith("/batches")
            lost = request.path.endswith("/batches") and batches % 2 == 1
            body = await request.read()
            if not lost or landed:
                address = f"{api.url}{request.path_qs}"
                kind = {"Content-Type": "application/json"}
                async with session.request(
                    request.method, address, data=body or None, headers=kind
                ) as answer:
                    content, status = await answer.read(), answer.status
            if lost:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return web.Response(body=content, status=status, content_type="application/json")

        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", pass_on)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_batch_is_taken_once_whether_its_answer_or_itself_was_lost(
    tmp_path: Path, kept: bool, landed: bool
) -> None:
    """``kept``: events are; of the others only a count, which is written to disk later."""
    local = Sandbox(open_attributes=True)
    local.add_contact(external_id="mira-okafor")
    more = {} if kept else {"events": NONE}
    async with (
        console(tmp_path, local, **more) as api,
        losing(api, landed=landed) as address,
        DaemonClient(Admin(listen=address)) as client,
    ):

        async def is_theirs() -> str:
            return ""

        batches = DaemonBatches(DaemonSync(client, is_theirs, "e2e"), "e2e")
        await batches.begin()
        for n in range(6):
            raw = json.dumps(process.event("mira-okafor", n)).encode()
            raws = [raw, b"bad %d" % n] if kept else [raw]
            batch = batch_of(raws, sync="e2e", derive_ids=True)
            batch.checkpoints = {"file": str(n)}
            assert await (await batches.send(batch)).wait()
        assert (await batches.checkpoints())["file"] == "5"
        async with asyncio.timeout(30):
            await batches.settled()
        await batches.forget_checkpoints(["file"])
        counts = await batches.end()
        assert await batches.checkpoints() == {}
    found = counts["received"], counts["delivered"], counts["dropped"], counts["dead"]
    assert found == ((12, 6, {}, 6) if kept else (6, 0, {"not_selected": 6}, 0))
    assert [e.metadata["n"] for e in local.events] == list(range(6)) * kept
