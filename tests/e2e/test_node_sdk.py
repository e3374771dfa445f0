"""Amplitude's own Node client, unmodified and fetched by npm, against the real process."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve, serve_amplitude
from support import process

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PACKAGE = "@amplitude/analytics-node@^1.5"

PROGRAM = """
const amplitude = require('@amplitude/analytics-node');
const { url, key, events } = JSON.parse(process.argv[2]);
(async () => {
  const options = { serverUrl: url, flushIntervalMillis: 100, flushQueueSize: 40, logLevel: 0 };
  await amplitude.init(key, options).promise;
  const sent = events.map(
    ([type, properties, who]) => amplitude.track(type, properties, who).promise);
  console.log(JSON.stringify((await Promise.all(sent)).map((result) => result.code)));
  await amplitude.flush().promise;
})();
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the SDK and a program that sends what it is given."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "send.js").write_text(PROGRAM, encoding="utf-8")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", PACKAGE]
    subprocess.run(command, cwd=folder, check=True, timeout=240)
    return folder / "send.js"


async def send(program: Path, url: str, *events: list[Any]) -> list[int]:
    """Track events with the SDK; return the code that its promise gives for each."""
    arguments = json.dumps({"url": url, "key": process.API_KEY, "events": events})
    node = await asyncio.create_subprocess_exec(
        "node", str(program), arguments, cwd=program.parent, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await node.communicate()
    codes: list[int] = json.loads(out.splitlines()[0])
    return codes


def purchase(n: int, user: Any = "mira-okafor", **properties: Any) -> list[Any]:
    time = process.event("", n)["time"]  # a second of its own, or Intercom would take two for one
    return ["Purchase", {"n": n, **properties}, {"user_id": user, "time": time}]


def arrived(local: Sandbox) -> list[int]:
    return sorted(event.metadata["n"] for event in local.events)


@pytest.mark.parametrize("path", ["/2/httpapi", "/batch", "/", ""])
async def test_events_of_the_node_sdk_arrive_and_a_bad_one_costs_itself(
    tmp_path: Path, program: Path, path: str
) -> None:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    local.add_contact(external_id="mira-okafor")
    local.add_contact(external_id="2016192872")
    async with serve(local) as url, process.daemon(process.settings(tmp_path, url)) as daemon:
        events = [purchase(n) for n in range(100)]
        events[3] = purchase(3, "anonymous")
        events[17] = purchase(17, "ab")
        events[40] = purchase(40, 2016192872)
        events[41] = purchase(41, amount=None, text="\ud83d")
        codes = await send(program, f"{daemon.http}{path}", *events)
        await daemon.settled()
    assert [n for n, code in enumerate(codes) if code != 200] == [3, 17]
    assert arrived(local) == [n for n in range(100) if n not in (3, 17)]


async def test_events_of_the_node_sdk_reach_amplitude_in_their_order(
    tmp_path: Path, program: Path
) -> None:
    """It sends one request after the other, and null properties, which stay null."""
    local, amplitude = Sandbox(open_attributes=True, limit_per_minute=6_000_000), LocalAmplitude()
    local.add_contact(external_id="mira-okafor")
    async with serve(local) as url, serve_amplitude(amplitude) as amplitude_url:
        config = process.settings(tmp_path, url, top={"relay": [{"base_url": amplitude_url}]})
        async with process.daemon(config) as daemon:
            events = [purchase(n, amount=None) for n in range(25)]
            assert await send(program, f"{daemon.http}/batch", *events) == [200] * 25
            await daemon.settled()
            while (await daemon.relays())[0]["pending"]:
                await asyncio.sleep(0)
    found = [stored.event["event_properties"] for stored in amplitude.events]
    assert found == [{"n": n, "amount": None} for n in range(25)]
    assert {stored.path for stored in amplitude.events} == {"/batch"}
    assert b'"client_upload_time":' in amplitude.journal[0].body
