"""Requests that Amplitude's clients made, replayed byte for byte."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path

import pytest

from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.server import serve_amplitude
from support import reference
from support.serving import serving, speak

API_KEY = "test-api-key-0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "path", "events", "dropped"),
    [
        ("amplitude-python-001-ok", "/2/httpapi", 8, {"group_identify": 1, "no_identity": 1}),
        ("amplitude-js-legacy-001-ok", "/", 1, {}),
        ("amplitude-js-legacy-002-ok", "/", 2, {}),
    ],
)
async def test_requests_of_clients_are_taken_whole_and_known_a_second_time(
    tmp_path: Path, name: str, path: str, events: int, dropped: dict[str, int]
) -> None:
    file = reference.REQUESTS / f"{name}.json"
    request = _bytes_of(json.loads(file.read_bytes()), path)
    async with serving(tmp_path, API_KEY) as (source, engine):
        for _ in range(2):
            answer = await speak(source.address, request)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            if path == "/":
                assert body == b"success"
            else:
                said = json.loads(body)
                assert (said["code"], said["events_ingested"]) == (200, events)
        # Duplicates are found where delivery unpacks what was taken in.
        taker = engine.streams["a"].spool.taker
        await engine.spool.do(partial(unpacked, taker=taker))
        [status] = (await engine.status()).syncs
    kept = events - sum(dropped.values())
    assert (status.received, status.pending) == (2 * events, kept)
    assert status.dropped == {k: 2 * n for k, n in dropped.items()} | {"duplicate": kept}


def unpacked(store: Store, taker: int) -> None:
    """Unpack all that a sync was brought, as its deliveries would."""
    last_id, more = 0, True
    while more:
        wanted = Wanted(999, 1 << 20, per_user=999, now_ms=1, after_id=last_id)
        loaded = store.queue(taker).load(wanted)
        last_id, more = loaded.last_id, loaded.more


def _bytes_of(recorded: dict[str, object], path: str) -> bytes:
    """The request as it was, but for the path that the recorder was given."""
    headers: list[list[str]] = recorded["headers"]  # type: ignore[assignment]
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    body = base64.b64decode(str(recorded["raw_body_base64"]))
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("amplitude-python-001-ok", "/2/httpapi"),
        ("amplitude-js-legacy-001-ok", "/"),
        ("amplitude-js-legacy-002-ok", "/"),
    ],
)
async def test_requests_of_clients_go_on_to_amplitude_byte_for_byte(
    tmp_path: Path, name: str, path: str
) -> None:
    recorded = json.loads((reference.REQUESTS / f"{name}.json").read_bytes())
    amplitude = LocalAmplitude()
    async with (
        serve_amplitude(amplitude) as url,
        serving(tmp_path, API_KEY, relay=url) as (source, engine),
    ):
        answer = await speak(source.address, _bytes_of(recorded, path))
        assert answer.startswith(b"HTTP/1.1 200 ")
        await engine.relayed()
    [entry] = amplitude.journal
    assert (entry.method, entry.path, entry.status) == ("POST", path, 200)
    assert entry.body == base64.b64decode(recorded["raw_body_base64"])
