"""Amplitude's own Python client, unmodified, against the real process."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from amplitude import BaseEvent, EventOptions, Identify

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.python_sdk import Client

NOWHERE = "http://127.0.0.1:9"


def known() -> Sandbox:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    return local


def arrived(local: Sandbox) -> list[int]:
    return sorted(event.metadata["n"] for event in local.events)


async def test_events_and_identifies_of_the_python_sdk_reach_intercom(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        client = Client(daemon.http)
        identify = Identify()
        identify.set("plan", "pro").set("email", "mira@example.com")
        client.amplitude.identify(identify, EventOptions(user_id="mira-okafor"))
        assert await client.told_of(1) == {200: 1}
        for n in range(30):
            client.track(n)
        assert await client.told_of(31) == {200: 31}
        client.amplitude.shutdown()
        status = await daemon.settled()
    assert status["delivered"] == status["received"] == 31
    [contact] = local.contacts.values()
    assert (contact.external_id, contact.email) == ("mira-okafor", "mira@example.com")
    assert contact.custom_attributes == {"plan": "pro"}
    assert arrived(local) == list(range(30))


async def test_a_bad_event_is_dropped_by_the_sdk_and_the_good_ones_around_it_arrive(
    tmp_path: Path,
) -> None:
    local = known()
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        client = Client(daemon.http, flush_queue_size=50)
        for n in range(40):
            client.amplitude.track(
                BaseEvent(
                    "Purchase",
                    event_properties={"n": n},
                    user_id="anonymous" if n in (3, 17, 39) else "mira-okafor",
                    time=process.event("", n)["time"],
                )
            )
        codes = await client.told_of(40)
        client.amplitude.shutdown()
        await daemon.settled()
    assert codes == {200: 37, 400: 3}
    assert arrived(local) == [n for n in range(40) if n not in (3, 17, 39)]


@pytest.mark.parametrize("path", ["/2/httpapi", "/batch", ""])
async def test_a_number_that_is_none_costs_its_value_and_a_bare_host_is_enough(
    tmp_path: Path, path: str
) -> None:
    local = known()
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        client = Client(daemon.http, path, flush_queue_size=50)
        for n, amount in enumerate((1.5, float("nan"), float("-inf"), 2.5)):
            client.track(n, amount=amount)
        assert await client.told_of(4) == {200: 4}
        client.amplitude.shutdown()
        await daemon.settled()
    assert arrived(local) == [0, 1, 2, 3]
    assert [event.metadata.get("amount") for event in local.events] == [1.5, None, None, 2.5]


async def test_a_batch_that_is_too_large_is_sent_in_pieces_by_the_sdk(tmp_path: Path) -> None:
    local = known()
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        client = Client(daemon.http, flush_queue_size=200)
        for n in range(200):
            client.track(n, **{f"padding_{i}": "x" * 1_000 for i in range(10)})  # 2 MB
        codes = await client.told_of(200)
        client.amplitude.shutdown()
        await daemon.settled()
    assert codes == {200: 200}
    assert arrived(local) == list(range(200))


async def test_events_answered_503_for_a_while_arrive_once_there_is_room(
    tmp_path: Path,
) -> None:
    """Intercom is down, so that the spool fills; then it is there, and the spool drains."""
    port = process.free_port()
    spool = {"spool": {"max_bytes": 1_000_000}}
    config = process.settings(tmp_path, f"http://127.0.0.1:{port}", top=spool)
    local = known()
    async with process.daemon(config) as daemon:
        padding, filled = "x" * 1_000, 1_000
        while True:
            some = [process.event("mira-okafor", filled + i, padding=padding) for i in range(20)]
            if (await process.upload(f"{daemon.http}/2/httpapi", some))[0] != 200:
                break
            filled += 20
        client = Client(daemon.http, flush_max_retries=1_000)
        for n in range(30):
            client.track(n)
        assert client.heard == {}
        async with serve(local, "127.0.0.1", port):
            codes = await client.told_of(30)
            client.amplitude.shutdown()
            await daemon.settled()
    assert codes == {200: 30}
    assert [n for n in arrived(local) if n < 1_000] == list(range(30))


async def _restart_under_load(tmp_path: Path, how: signal.Signals) -> tuple[Client, list[int]]:
    """Restart the daemon while the SDK sends 300 events; return the client, and what arrived."""
    local = known()
    http = {"http": {"listen": f"127.0.0.1:{process.free_port()}"}}
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top=http)
        daemon = await process.start(config)
        client = Client(daemon.http, flush_queue_size=10)
        for n in range(300):
            client.track(n)
            if n == 150:
                await client.told_of(20)
                await daemon.end(how)
        async with process.daemon(config) as second:
            await client.told_of(300 if how == signal.SIGTERM else 140)
            await asyncio.to_thread(client.amplitude.shutdown)
            await second.settled()
    return client, arrived(local)


async def test_a_restart_under_load_loses_nothing(tmp_path: Path) -> None:
    client, found = await _restart_under_load(tmp_path, signal.SIGTERM)
    assert Counter(client.heard.values()) == {200: 300}
    assert found == list(range(300))


async def test_a_kill_under_load_loses_nothing_that_the_sdk_was_told_of(tmp_path: Path) -> None:
    """Of a request that is cut off the SDK itself keeps nothing, and nobody told it to."""
    client, found = await _restart_under_load(tmp_path, signal.SIGKILL)
    told = {n for n, code in client.heard.items() if code == 200}
    assert told <= set(found)
    assert len(found) == len(set(found))


async def test_events_in_the_sdk_are_flushed_when_its_program_ends(tmp_path: Path) -> None:
    local = known()
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        client = Client(daemon.http, path="/batch")
        for n in range(25):
            client.track(n)
        await asyncio.to_thread(client.amplitude.shutdown)
        while len(client.heard) < 25:
            await asyncio.sleep(0)
        await daemon.settled()
    assert arrived(local) == list(range(25))


async def test_an_unknown_key_stops_the_sdk_and_is_named_in_the_answer(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon:
        body = {"api_key": "somebody-elses", "events": [process.event("mira-okafor", 1)]}
        _, answer = await process.post(f"{daemon.http}/2/httpapi", json.dumps(body).encode())
        assert answer == {"code": 400, "error": "Invalid API key: somebody-elses"}
        client = Client(daemon.http)
        client.amplitude.configuration.api_key = "somebody-elses"
        client.track(1)
        await asyncio.to_thread(client.flush)
        status = await daemon.status()
    assert status["received"] == 0
