"""SIGTERM: what was read is finished, what comes later is told to come again, nothing is reset."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from support import process
from transports.sandbox import Sandbox, serve


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
        while (await daemon.status())["intercom"]["in_flight"] == 0:
            pass
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
        while (await daemon.status())["intercom"]["in_flight"] == 0:
            pass
        assert await daemon.end(signal.SIGTERM) == 0
        assert len(local.events) == 1
        async with process.daemon(process.settings(tmp_path, url)) as second:
            status = await second.settled()
    assert (status["received"], status["delivered"], local.calls) == (1, 1, 1)
