"""Amplitude's own client → the real process → a local Amplitude and a local Intercom."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from amplitude import BaseEvent, EventOptions, Identify

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude, serve_application
from support import process
from support.python_sdk import Client


def relay(url: str, **more: Any) -> dict[str, Any]:
    """Return tables of settings: a relay, and an admin port that commands can ask."""
    admin = {"listen": f"127.0.0.1:{process.free_port()}"}
    return {"relay": [{"base_url": url, **more}], "admin": admin}


def known() -> Sandbox:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    return local


async def relayed(daemon: process.Daemon) -> dict[str, Any]:
    """Ask until nothing waits for Amplitude."""
    while (status := (await daemon.relays())[0])["pending"]:
        await asyncio.sleep(0)
    return status


class Wiretap:
    """Passes requests on to the daemon as they come, and keeps what was answered 200."""

    def __init__(self) -> None:
        self.target = ""
        self.taken: list[bytes] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        application = web.Application(client_max_size=1 << 25)
        application.router.add_post("/{path:.*}", self._pass_on)
        async with (
            aiohttp.ClientSession() as self.session,
            serve_application(application, "127.0.0.1", 0) as url,
        ):
            yield url

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {"Content-Type": request.headers["Content-Type"]}
        url = f"{self.target}{request.path_qs}"
        async with self.session.post(url, data=body, headers=headers) as answer:
            if answer.status == 200:
                self.taken.append(body)
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)


async def test_events_of_the_sdk_are_relayed_byte_for_byte_and_intercom_has_its_part(
    tmp_path: Path,
) -> None:
    local, amplitude, tap = known(), LocalAmplitude(events_per_s={}), Wiretap()
    async with (
        serve(local) as url,
        serve_amplitude(amplitude) as amplitude_url,
        tap.listening() as tapped,
        process.daemon(process.settings(tmp_path, url, top=relay(amplitude_url))) as daemon,
    ):
        tap.target = daemon.http
        client = Client(tapped, flush_queue_size=10)
        identify = Identify()
        identify.set("plan", "pro").add("visits", 1)
        client.amplitude.identify(identify, EventOptions(user_id="mira-okafor"))
        client.amplitude.group_identify("company", "acme", Identify().set("size", 12))
        for n in range(40):
            client.track(n, "Purchase" if n % 2 else "Page \N{SNOWMAN} Viewed", text="\u2028 ü")
        client.amplitude.track(BaseEvent("Anonymous", device_id="device-0042"))
        while sum(len(json.loads(body)["events"]) for body in tap.taken) < 43:
            await asyncio.sleep(0)
        await asyncio.to_thread(client.amplitude.shutdown)
        status = await relayed(daemon)
        await daemon.settled()
    assert status["received"] == status["delivered"] == 43
    assert Counter(entry.body for entry in amplitude.journal) == Counter(tap.taken)
    assert sorted(event.metadata["n"] for event in local.events) == list(range(40))


async def test_kills_and_outages_of_amplitude_lose_nothing_and_keep_each_devices_order(
    tmp_path: Path,
) -> None:
    """Four kills, while a third of the requests to Amplitude fail in five ways."""
    local = known()
    faults = [
        Fault(kind="status", status=503, share=0.1),
        Fault(kind="html", status=502, share=0.1),
        Fault(kind="reset", share=0.1),
        Fault(kind="half", share=0.1),
    ]
    amplitude = LocalAmplitude(events_per_s={}, faults=faults)
    async with serve(local) as url, serve_amplitude(amplitude) as amplitude_url:
        config = process.settings(tmp_path, url, top=relay(amplitude_url))
        sent: dict[str, list[str]] = defaultdict(list)
        for life in range(5):
            daemon = await process.start(config)
            for n in range(60):
                device = f"device-{n % 5}"
                event = process.event("mira-okafor", life * 60 + n, device_id=device)
                code, _ = await process.upload(f"{daemon.http}/2/httpapi", [event])
                assert code == 200
                sent[device].append(event["insert_id"])
            if life < 4:
                await daemon.end(signal.SIGKILL)
        amplitude.faults.clear()
        status = await relayed(daemon)
        await daemon.settled()
        assert await daemon.end(signal.SIGTERM) == 0
    assert (status["received"], status["delivered"]) == (300, 300)
    arrived: dict[str, list[str]] = defaultdict(list)
    for stored in amplitude.events:
        arrived[stored.device].append(stored.event["insert_id"])
    assert arrived == sent
    assert sorted(event.metadata["n"] for event in local.events) == list(range(300))


async def test_an_absent_amplitude_is_named_and_waiting_requests_are_kept(
    tmp_path: Path,
) -> None:
    local, port = known(), process.free_port()
    config = process.settings(tmp_path, "http://127.0.0.1:9", top=relay(f"http://127.0.0.1:{port}"))
    async with process.daemon(config) as daemon:
        events = [process.event("mira-okafor", n) for n in range(30)]
        assert (await process.upload(f"{daemon.http}/batch", events))[0] == 200
        while not (await daemon.relays())[0]["calls"]:
            await asyncio.sleep(0)
        code, out, _ = await process.run("status", "-c", str(config))
        assert code == 0
        assert "relay amplitude to" in out
        assert "does not answer, or somebody else does" in out
        assert ": nothing listens there" in out
        code, out, _ = await process.run("check", "-c", str(config))
        assert code == 1
        assert f"relay[0].base_url: http://127.0.0.1:{port} does not answer" in out
    amplitude = LocalAmplitude()
    async with (
        serve(local) as url,
        serve_amplitude(amplitude, "127.0.0.1", port) as amplitude_url,
        process.daemon(process.settings(tmp_path, url, top=relay(amplitude_url))) as daemon,
    ):
        assert (await relayed(daemon))["delivered"] == 30
        code, out, _ = await process.run("check", "-c", str(config))
        assert "does not answer as Amplitude" not in out
    assert len(amplitude.events) == 30


async def test_dead_letters_of_a_relay_are_shown_and_replayed(tmp_path: Path) -> None:
    local, amplitude = known(), LocalAmplitude()
    amplitude.silenced.add("device-1")
    async with serve(local) as url, serve_amplitude(amplitude) as amplitude_url:
        config = process.settings(tmp_path, url, top=relay(amplitude_url))
        async with process.daemon(config) as daemon:
            events = [
                process.event("mira-okafor", n, device_id=f"device-{n % 2}") for n in range(6)
            ]
            assert (await process.upload(f"{daemon.http}/2/httpapi", events))[0] == 200
            status = await relayed(daemon)
            assert status["dead_by_reason"] == {"amplitude_refused": 3}
            about = ("-c", str(config), "--sync", "relay:amplitude")
            code, out, _ = await process.run("dead-letters", "list", *about, "--json")
            letters = json.loads(out)
            assert [letter["user_key"] for letter in letters] == ["mira-okafor"] * 3
            code, out, _ = await process.run("dead-letters", "replay", "--dry-run", *about)
            assert (code, out.count("POST /2/httpapi")) == (0, 3), out
            amplitude.silenced.clear()
            code, out, err = await process.run("dead-letters", "replay", *about)
            assert (code, out.strip()) == (0, "3 replayed"), err
            await relayed(daemon)
            await daemon.settled()
        code, out, _ = await process.run("spool", "verify", "-c", str(config))
        assert code == 0, out
    assert len(amplitude.events) == 6


async def test_a_key_that_only_a_relay_takes_is_taken_and_one_that_nobody_takes_is_not(
    tmp_path: Path,
) -> None:
    local, amplitude = known(), LocalAmplitude()
    async with serve(local) as url, serve_amplitude(amplitude) as amplitude_url:
        top = relay(amplitude_url, amplitude_api_keys=["of-the-relay"])
        async with process.daemon(process.settings(tmp_path, url, top=top)) as daemon:
            for key, expected in (("of-the-relay", 200), (process.API_KEY, 200), ("no-one's", 400)):
                body = {"api_key": key, "events": [process.event("mira-okafor", 1)]}
                code, _ = await process.post(f"{daemon.http}/batch", json.dumps(body).encode())
                assert code == expected, key
            await relayed(daemon)
            await daemon.settled()
    assert [(stored.api_key, stored.path) for stored in amplitude.events] == [
        ("of-the-relay", "/batch")
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"region": "au"}, "relay[0].region"),
        ({"base_url": "ftp://x"}, "relay[0].base_url"),
        ({"amplitude_api_keys": ["a", "a"]}, "relay[0].amplitude_api_keys[1]: the same key"),
        ({"when_full": "wait"}, "relay[0].when_full"),
        ({"key": "a"}, "relay[0]: Object contains unknown field `key`"),
    ],
)
async def test_bad_settings_of_a_relay_are_named(
    tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    table = {"relay": [wrong]}
    config = process.settings(tmp_path, "http://127.0.0.1:9", top=table)
    code, _, err = await process.run("check", "--offline", "-c", str(config))
    assert code == 2
    assert said in err
