"""Relays in virtual time: requests as SDKs make them, an engine, a local Amplitude behind it."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports import uploads
from amplitude_intercom.transports.contract import Batch, Original
from amplitude_intercom.transports.sandbox.amplitude_archives import Ingested
from amplitude_intercom.transports.sandbox.in_process import AmplitudeInProcess, InProcess
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.upload_events import checked_batch
from amplitude_intercom.transports.uploads import Upload
from support import virtual

KEY = "simulated"
RELAY = "relay:amplitude"


def settings(folder: Path, top: Mapping[str, Any] | None = None, **relay: Any) -> Settings:
    """Return settings with a sync that keeps nothing, and a relay."""
    sync = {
        "name": "simulated",
        "amplitude_api_keys": [KEY],
        "intercom": {"access_token": "simulated-token"},
    }
    table = {"data_dir": str(folder), "sync": [sync], "relay": [relay], **(top or {})}
    return from_table(table)


def amplitude(**more: Any) -> LocalAmplitude:
    return LocalAmplitude(**{"now": virtual.current().wall_s, "events_per_s": {}, **more})


@asynccontextmanager
async def engine(
    folder: Path,
    local: LocalAmplitude,
    *,
    seed: int = 0,
    wire: AmplitudeInProcess | None = None,
    top: Mapping[str, Any] | None = None,
    **relay: Any,
) -> AsyncIterator[Engine]:
    loop = virtual.current()
    intercom = Sandbox(now=loop.wall_s, open_attributes=True)
    async with Engine(
        settings(folder, top, **relay),
        wire=lambda _: InProcess(intercom),
        relay_wire=lambda _: wire or AmplitudeInProcess(local),
        now_ms=loop.wall_ms,
        now_s=loop.wall_s,
        jitter=random.Random(seed).random,
        inline=True,
    ) as running:
        yield running


def event(device: str, n: int, **more: Any) -> dict[str, Any]:
    return {
        "event_type": "Purchase",
        "device_id": device,
        "user_id": f"user-of-{device}",
        "insert_id": f"{device}/{n}",
        "time": 1_700_000_000_000 + n * 1_000,
        "event_properties": {"n": n},
        **more,
    }


def request(
    events: Sequence[Mapping[str, Any]], *, key: str = KEY, path: str = "/2/httpapi", **body: Any
) -> Batch:
    """Return the batch that the HTTP source makes of a request."""
    options = {"min_id_length": 1}
    text = json.dumps({"api_key": key, "events": events, "options": options, **body}).encode()
    upload = uploads.decode_upload(text)
    assert isinstance(upload, Upload), upload
    batch = checked_batch(upload, f"http {path}")
    assert isinstance(batch, Batch), batch
    batch.original = Original("POST", path, "", "application/json", text, "203.0.113.7")
    return batch


async def take_in(engine: Engine, batch: Batch) -> None:
    await (await engine.intake.send(batch)).wait()


def by_device(found: Sequence[Ingested]) -> dict[str, list[str]]:
    """Return the insert ids of each device, in the order in which they are stored."""
    ids: dict[str, list[str]] = defaultdict(list)
    for stored in found:
        ids[stored.device].append(stored.event["insert_id"])
    return dict(ids)
