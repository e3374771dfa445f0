"""``demo``: the whole thing on embedded parts.

A local Intercom and a local Amplitude on loopback ports, and the same composition as ``run``, fed
over HTTP with events of a small shop. Nothing leaves this machine.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any, Final

import aiohttp
import anyio
import msgspec
from rich.console import Console
from rich.table import Table

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.running import OK
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Log, Settings
from amplitude_intercom.engine.sources import sources_of, start_sources
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery
from amplitude_intercom.engine.status import RelayStatus, Status, SyncStatus
from amplitude_intercom.transports.http import HttpSource
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude

API_KEY: Final = "demo-api-key"
SYNC: Final = "demo"


async def demo() -> int:
    """Run the demo; print the results."""
    logs.configure(Log(level="warning"))
    local = Sandbox(seed=7, latency_s=0.03, attributes={"plan": "string"})
    amplitude = LocalAmplitude()
    local.add_contact(external_id="lena-keller", email="lena@example.com", name="Lena Keller")
    with tempfile.TemporaryDirectory(prefix="amplitude-intercom-") as folder:
        async with serve(local) as url, serve_amplitude(amplitude) as amplitude_url:
            status, letters = await _run(settings(folder, url, amplitude_url))
    _show(status.syncs[0], letters, local)
    _show_relay(status.relays[0], amplitude)
    _tell_what_is_next()
    return OK


def settings(folder: str, url: str, amplitude_url: str) -> Settings:
    """Return the demo's settings: those of the README, but for patience."""
    return from_table(
        {
            "data_dir": folder,
            "http": {"listen": "127.0.0.1:0"},
            "relay": [{"base_url": amplitude_url}],
            "sync": [
                {
                    "name": SYNC,
                    "amplitude_api_keys": [API_KEY],
                    "intercom": {"access_token": "demo-token", "base_url": url},
                    "users": {"properties": ["name", "email", "plan"]},
                    "events": {
                        "select": [{"types": ["Signed Up", "Purchase Completed"]}],
                        "metadata": ["item", "price", {"from": "user.plan", "to": "plan"}],
                        "money": {"price": "currency"},
                    },
                    "delivery": {"retry_attempts": 3, "retry_window_s": 2.0},
                }
            ],
        }
    )


async def _run(demo_settings: Settings) -> tuple[Status, list[DeadLetter]]:
    async with Engine(demo_settings) as engine, anyio.create_task_group() as tasks:
        sources = sources_of(demo_settings)
        await start_sources(sources, engine.intake, engine.sources, tasks)
        http = sources["http"]
        assert isinstance(http, HttpSource)
        await _send_as_an_sdk_does(f"http://{http.address}/2/httpapi")
        with anyio.move_on_after(12):
            await engine.settled()
            await engine.relayed()
        status = await engine.status()
        letters = await engine.upkeep.dead_letters(SYNC, DeadLetterQuery())
        tasks.cancel_scope.cancel()
    return status, letters


async def _send_as_an_sdk_does(url: str) -> None:
    """Upload batches; drop the events that a 400 lists and send the rest again, as the SDKs do."""
    async with aiohttp.ClientSession() as session:
        for batch in sample_events():
            answer = await _upload(session, url, batch)
            if answer["code"] == 400:
                bad = {
                    i
                    for lists in answer.values()
                    if isinstance(lists, dict)
                    for indexes in lists.values()
                    for i in indexes
                }
                _say(f"Amplitude's answer to a bad event, so that the SDK drops it: {answer}")
                await _upload(session, url, [e for i, e in enumerate(batch) if i not in bad])


async def _upload(
    session: aiohttp.ClientSession, url: str, events: list[dict[str, Any]]
) -> dict[str, Any]:
    async with session.post(url, json={"api_key": API_KEY, "events": events}) as response:
        answer: dict[str, Any] = await response.json()
        return answer


def sample_events() -> list[list[dict[str, Any]]]:
    """Return three uploads of a small shop's afternoon."""
    now_ms = time.time_ns() // 1_000_000
    number = iter(range(1_000))

    def event(user: str, event_type: str, **more: Any) -> dict[str, Any]:
        n = next(number)
        return {
            "user_id": user,
            "event_type": event_type,
            "time": now_ms - 60_000 + n * 1_000,
            "insert_id": f"demo-{n}",
            **more,
        }

    def identify(user: str, **properties: Any) -> dict[str, Any]:
        return event(user, "$identify", user_properties={"$set": properties})

    def purchase(user: str, item: str, price: float, currency: str = "EUR") -> dict[str, Any]:
        bought = {"item": item, "price": price, "currency": currency}
        return event(user, "Purchase Completed", event_properties=bought)

    anonymous = event("", "Purchase Completed") | {"user_id": None, "device_id": "device-0042"}
    twice = purchase("mira-okafor", "Desk lamp", 19.99)
    return [
        [
            identify("mira-okafor", name="Mira Okafor", email="mira@example.com", plan="free"),
            event("mira-okafor", "Signed Up", user_properties={"plan": "free"}),
            event("mira-okafor", "Page Viewed"),
            identify("lena-keller", plan="pro"),
        ],
        [
            twice,
            twice,
            purchase("lena-keller", "Notebook", 1200, "JPY"),
            purchase("nobody-knows", "Chair", 89.0),
            anonymous,
            event("lena-keller", "") | {"time": "yesterday"},
        ],
        [
            identify("mira-okafor", plan="pro"),
            identify("mira-okafor", plan="pro"),
            purchase("mira-okafor", "Standing desk", 449.5),
            event("mira-okafor", "[Intercom] event.created"),
        ],
    ]


def _show(status: SyncStatus, letters: list[DeadLetter], local: Sandbox) -> None:
    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_row("received", str(status.received))
    table.add_row("delivered", str(status.delivered))
    for reason, count in status.dropped.items():
        table.add_row(f"dropped: {reason}", str(count))
    for reason, count in status.dead_by_reason.items():
        table.add_row(f"dead letter: {reason}", str(count))
    table.add_row("pending", str(status.pending))
    assert status.intercom is not None
    for call, count in status.intercom.calls.items():
        table.add_row(f"call: {call}", str(count))
    latency = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in status.latency_s.items())
    table.add_row("accepted to answered", latency)
    Console(width=100).print(table)
    for letter in letters:
        _say(
            f"dead letter {letter.id}: {letter.reason} ({letter.status} {letter.message}),"
            f" {letter.attempts} attempts, user {letter.user_key}"
        )
    _say(f"Intercom now has {len(local.contacts)} contacts and {len(local.events)} events.")
    for event in local.events:
        _say(f"  {msgspec.json.encode(event).decode()}")


def _show_relay(relay: RelayStatus, amplitude: LocalAmplitude) -> None:
    _say("")
    known = f" ({amplitude.duplicates} it knew again)" if amplitude.duplicates else ""
    _say(
        f"Amplitude was sent all {relay.delivered} events as they came{known}, also those that"
        " Intercom is not to have:"
    )
    for stored in amplitude.events:
        who = stored.event.get("user_id") or stored.event.get("device_id")
        _say(f"  {stored.event['event_type']} of {who}")


def _tell_what_is_next() -> None:
    _say("")
    _say("Next, with your own workspace (init asks a few questions and writes the settings):")
    for command in ("init", "check", "run"):
        _say(f"  .venv/bin/amplitude-intercom {command}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
