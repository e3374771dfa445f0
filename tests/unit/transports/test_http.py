"""The HTTP source, asked by a real client."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from transports import Batch, Receipt, Ticket
from transports.errors import Refused, UnknownApiKey
from transports.http import HttpSource

GOOD = {"event_type": "Bought", "user_id": "user-1"}
Answer = tuple[int, dict[str, Any]]


class Intake:
    """Takes every batch, or answers each with ``error``: at once, or with its ticket."""

    def __init__(self, error: Exception | None = None, *, at_once: bool = False) -> None:
        self.batches: list[Batch] = []
        self._error, self._at_once = error, at_once

    async def send(self, batch: Batch) -> Ticket:
        if self._error and self._at_once:
            raise self._error
        self.batches.append(batch)
        ticket = Ticket()
        if self._error:
            ticket.refuse(self._error)
        else:
            ticket.acknowledge(Receipt(len(batch.raws), 0, 0, 0))
        return ticket


@asynccontextmanager
async def serving(intake: Intake, **settings: Any) -> AsyncIterator[str]:
    source = HttpSource(listen="127.0.0.1:0", **settings)
    task = asyncio.create_task(source.run(intake))
    try:
        yield f"http://{await source.listening()}"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def ask(
    intake: Intake, body: Any, path: str = "/2/httpapi", method: str = "POST", **more: Any
) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        serving(intake) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url + path, data=data, **more) as answer,
    ):
        assert answer.content_type == "application/json"
        decoded = await answer.json()
        assert decoded["code"] == answer.status
        return answer.status, decoded


def upload(*events: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"api_key": "key", "events": list(events)} | more


# --- success ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/2/httpapi", "/batch"])
async def test_success_is_said_in_exactly_amplitude_s_words(path: str) -> None:
    intake, body = Intake(), json.dumps(upload(GOOD, GOOD)).encode()
    status, answer = await ask(intake, body, path)
    assert status == 200
    assert answer.pop("server_upload_time") > 1_700_000_000_000
    assert answer == {"code": 200, "events_ingested": 2, "payload_size_bytes": len(body)}
    batch = intake.batches[0]
    assert [json.loads(one) for one in batch.raws] == [GOOD, GOOD]
    assert (batch.api_key, batch.origin, batch.sync) == ("key", f"http {path}", None)


async def test_a_compressed_body_is_taken() -> None:
    body = gzip.compress(json.dumps(upload(GOOD)).encode())
    status, _ = await ask(Intake(), body, headers={"Content-Encoding": "gzip"})
    assert status == 200


async def test_the_client_s_own_shortest_id_counts() -> None:
    short = GOOD | {"user_id": "u"}
    assert (await ask(Intake(), upload(short, options={"min_id_length": 1})))[0] == 200
    assert (await ask(Intake(), upload(short)))[1]["events_with_invalid_id_lengths"] == {
        "user_id": [0]
    }


# --- refusals ---------------------------------------------------------------------------


async def test_an_unknown_key_is_refused_in_exactly_amplitude_s_words() -> None:
    for at_once in (True, False):
        intake = Intake(UnknownApiKey("key"), at_once=at_once)
        assert await ask(intake, upload(GOOD)) == (
            400,
            {"code": 400, "error": "Invalid API key: key"},
        )


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("reason", ["spool_full", "spool_failing", "draining"])
async def test_what_is_not_stored_now_is_asked_for_again(reason: str, at_once: bool) -> None:
    status, answer = await ask(Intake(Refused(reason), at_once=at_once), upload(GOOD))
    assert (status, answer) == (503, {"code": 503, "error": f"Service unavailable: {reason}"})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "Missing request body"),
        (b"not json", "Invalid JSON request body"),
        (b"\xff", "Invalid JSON request body"),
        (b"[" * 10_000, "Invalid JSON request body"),
        (b'{"api_key": "key", "events": [{"a": NaN}]}', "Invalid JSON request body"),
        ({"events": [GOOD]}, "Request missing required field"),
        ({"api_key": "key"}, "Request missing required field"),
        (upload(), "Request missing required field"),
    ],
)
async def test_a_body_that_is_no_upload_is_refused(body: Any, error: str) -> None:
    intake = Intake()
    status, answer = await ask(intake, body)
    assert (status, answer["error"], intake.batches) == (400, error, [])


async def test_a_partly_bad_batch_is_refused_whole_with_every_bad_index() -> None:
    intake = Intake()
    events = [
        GOOD,
        GOOD | {"time": "2024-05-14T09:00:00Z"},
        GOOD | {"user_id": 5},
        {"user_id": "user-1"},
        GOOD | {"user_id": "abcd"},
        GOOD | {"time": "2024-05-14"},
    ]
    status, answer = await ask(intake, upload(*events))
    assert (status, intake.batches) == (400, [])
    assert answer["events_with_invalid_fields"] == {"time": [1, 5], "user_id": [2]}
    assert answer["events_with_missing_fields"] == {"event_type": [3]}
    assert answer["events_with_invalid_id_lengths"] == {"user_id": [4]}


async def test_a_body_in_another_encoding_than_it_says_is_refused() -> None:
    headers = {"Content-Encoding": "gzip"}
    status, answer = await ask(Intake(), upload(GOOD), headers=headers)
    assert (status, answer["missing_field"]) == (400, "")


# --- limits -----------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
async def test_a_body_over_a_megabyte_is_too_large_for_the_small_door(extra: int) -> None:
    body = json.dumps(upload(GOOD)).encode()
    body += b" " * (1_000_000 + extra - len(body))
    assert (await ask(Intake(), body))[0] == (413 if extra else 200)
    assert (await ask(Intake(), body, "/batch"))[0] == 200


async def test_a_body_that_is_large_only_when_unpacked_is_too_large() -> None:
    for megabytes in (2, 40):
        bomb = gzip.compress(b" " * megabytes * 1_000_000)
        status, answer = await ask(Intake(), bomb, headers={"Content-Encoding": "gzip"})
        assert (status, answer) == (413, {"code": 413, "error": "Payload too large"})


@pytest.mark.parametrize(("count", "status"), [(2_000, 200), (2_001, 413)])
async def test_more_than_two_thousand_events_are_too_large(count: int, status: int) -> None:
    assert (await ask(Intake(), upload(*[GOOD] * count), "/batch"))[0] == status


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with serving(Intake(), body_timeout_s=0.01) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


# --- everything else --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/unknown", 404), ("GET", "/2/httpapi", 405), ("PUT", "/identify", 405)],
)
async def test_what_is_not_served_is_answered_in_json_too(
    method: str, path: str, status: int
) -> None:
    assert (await ask(Intake(), b"", path, method))[0] == status


async def test_browsers_of_allowed_origins_may_send() -> None:
    ours = {"Origin": "https://shop.example"}
    for origins, headers, allowed in (
        (["*"], ours, "*"),
        (["https://shop.example"], ours, "https://shop.example"),
        (["https://shop.example"], {"Origin": "https://other.example"}, None),
        ([], ours, None),
    ):
        async with (
            serving(Intake(), cors_origins=origins) as url,
            aiohttp.ClientSession() as session,
        ):
            for method in ("OPTIONS", "POST"):
                async with session.request(
                    method, f"{url}/2/httpapi", json=upload(GOOD), headers=headers
                ) as answer:
                    assert answer.status in (200, 204)
                    assert answer.headers.get("Access-Control-Allow-Origin") == allowed


async def test_the_port_is_closed_once_the_source_is_cancelled() -> None:
    async with serving(Intake()) as url:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(f"{url}/2/httpapi", data=b"{}")
