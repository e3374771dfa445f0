"""Amplitude's own Python client, unmodified, against the real process."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from amplitude import Amplitude, BaseEvent, Config, EventOptions, Identify

from support import process
from transports.sandbox import Sandbox, serve


def _use_the_client(url: str) -> list[int]:
    """Do what a product's code does; return the codes that the client's callbacks heard."""
    heard: list[int] = []
    logger = logging.getLogger("amplitude-client-under-test")
    client = Amplitude(
        process.API_KEY,
        Config(
            server_url=f"{url}/2/httpapi",
            flush_interval_millis=50,
            logger=logger,
            callback=lambda event, code, message: heard.append(code),
        ),
    )
    identify = Identify()
    identify.set("plan", "pro").set("email", "mira@example.com")
    client.identify(identify, EventOptions(user_id="mira-okafor"))
    for future in client.flush() or []:
        future.result(timeout=10)
    for n in range(30):
        client.track(
            BaseEvent("Purchase Completed", user_id="mira-okafor", event_properties={"n": n})
        )
    for future in client.flush() or []:
        future.result(timeout=10)
    client.shutdown()
    return heard


async def test_events_and_identifies_of_the_python_sdk_reach_intercom(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        heard = await asyncio.to_thread(_use_the_client, daemon.http)
        status = await daemon.settled()
    assert heard == [200] * 31
    assert status["delivered"] == status["received"] == 31
    [contact] = local.contacts.values()
    assert (contact.external_id, contact.email) == ("mira-okafor", "mira@example.com")
    assert contact.custom_attributes == {"plan": "pro"}
    assert sorted(e.metadata["n"] for e in local.events) == list(range(30))
