"""The HTTP source, asked by a real client."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import time
import tracemalloc
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import anyio
import pytest

from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.contract import Batch, Receipt, Ticket
from amplitude_intercom.transports.errors import Refused, UnknownApiKey
from amplitude_intercom.transports.forms import MAX_FIELDS, read_form
from amplitude_intercom.transports.http import HttpSource
from amplitude_intercom.transports.http_endpoints import ENDPOINTS
from amplitude_intercom.transports.reasons import RefusalReason
from amplitude_intercom.transports.refusals import NO_ENDPOINT
from support.serving import speak

GOOD = {"event_type": "Bought", "user_id": "user-1"}
Answer = tuple[int, dict[str, Any]]


class Intake:
    """Takes every batch, or answers each with ``error``: at once, or with its ticket."""

    def __init__(self, error: Exception | None = None, *, at_once: bool = False) -> None:
        self.batches: list[Batch] = []
        self._error, self._at_once = error, at_once

    def takes(self, api_key: str) -> bool:
        return True

    async def send(self, batch: Batch) -> Ticket:
        if self._error and self._at_once:
            raise self._error
        self.batches.append(batch)
        ticket = Ticket()
        if self._error:
            ticket.refuse(self._error)
        else:
            ticket.acknowledge(Receipt(len(batch.raws), 0, 0))
        return ticket


def heads_of(intake: Intake) -> Sequence[Head | BadEvent]:
    heads = intake.batches[0].heads
    assert heads is not None
    return heads


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
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    data = encoded if len(encoded) < 1_000_000 else io.BytesIO(encoded)
    async with (
        serving(intake) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url + path, data=data, **more) as answer,
    ):
        if answer.content_type == "text/plain":
            return answer.status, {"text": await answer.text()}
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
    assert [json.loads(raw) for raw in batch.raws] == [GOOD, GOOD]
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
@pytest.mark.parametrize(
    "reason", [RefusalReason.SPOOL_FULL, RefusalReason.SPOOL_FAILING, RefusalReason.DRAINING]
)
async def test_a_batch_that_is_not_stored_is_answered_503(
    reason: RefusalReason, at_once: bool
) -> None:
    status, answer = await ask(Intake(Refused(reason), at_once=at_once), upload(GOOD))
    assert (status, answer) == (503, {"code": 503, "error": f"Service unavailable: {reason}"})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "Missing request body"),
        (b"not json", "Invalid JSON request body"),
        (b"\xff", "Invalid JSON request body"),
        (b"[" * 10_000, "Invalid JSON request body"),
        (b'{"api_key": "key", "events": [{"a": nan}]}', "Invalid JSON request body"),
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
    events: list[dict[str, Any]] = [
        GOOD,
        GOOD | {"time": "2024-05-14T09:00:00Z"},
        GOOD | {"user_id": 5.5},
        {"user_id": "user-1"},
        GOOD | {"user_id": "abcd"},
        GOOD | {"time": "2024-05-14"},
    ]
    status, answer = await ask(intake, upload(*events))
    assert (status, intake.batches) == (400, [])
    assert answer["events_with_invalid_fields"] == {"time": [1, 5], "user_id": [2, 4]}
    assert answer["events_with_missing_fields"] == {"event_type": [3]}
    assert answer["events_with_invalid_id_lengths"] == {"user_id": [4]}


async def test_a_body_in_another_encoding_than_it_says_is_refused() -> None:
    headers = {"Content-Encoding": "gzip"}
    status, answer = await ask(Intake(), upload(GOOD), headers=headers)
    assert (status, answer["missing_field"]) == (400, "body")


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
async def test_an_unknown_path_is_answered_in_json_too(method: str, path: str, status: int) -> None:
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


class EndingIntake(Intake):
    """Makes a batch durable some time after it has let its source be cancelled."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__()
        self._cancel = cancel

    async def send(self, batch: Batch) -> Ticket:
        self._cancel()
        for _ in range(50):
            await asyncio.sleep(0)
        return await super().send(batch)


@pytest.mark.parametrize("sends", ["before the end", "at the end"])
async def test_the_source_does_not_end_before_clients_that_came_are_answered(sends: str) -> None:
    """A task group that is cancelled cancels again at each await of the source's end."""
    body = json.dumps({"api_key": "k", "events": [GOOD]}).encode()
    head = f"POST /2/httpapi HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    async with anyio.create_task_group() as tasks:
        intake = EndingIntake(tasks.cancel_scope.cancel)
        source = HttpSource(listen="127.0.0.1:0")
        tasks.start_soon(source.run, intake)
        host, _, port = (await source.listening()).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if sends == "at the end":
            asyncio.get_running_loop().call_later(0.02, writer.write, head.encode() + body)
            tasks.cancel_scope.cancel()
        else:
            writer.write(head.encode() + body)
    assert intake.batches
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_the_port_is_closed_once_the_source_is_cancelled() -> None:
    async with serving(Intake()) as url:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(f"{url}/2/httpapi", data=b"{}")


# --- the other endpoints ----------------------------------------------------------------

IDENTIFICATION = {"user_id": "u1", "user_properties": {"$set": {"plan": "pro"}}}
SENT = [IDENTIFICATION | {"event_type": "$identify"}]
GROUP = {"group_type": "company", "group_value": "Acme", "group_properties": {"$set": {"a": 1}}}


def taken(intake: Intake) -> list[dict[str, Any]]:
    return [json.loads(raw) for batch in intake.batches for raw in batch.raws]


async def ask_form(path: str, fields: dict[str, str], how: str) -> tuple[Answer, Intake]:
    intake = Intake()
    if how == "query":
        return await ask(intake, b"", path, "GET", params=fields), intake
    if how == "query of a POST":
        return await ask(intake, b"", path, params=fields), intake
    if how == "multipart":
        with aiohttp.MultipartWriter("form-data") as writer:
            for name, value in fields.items():
                part = writer.append(value)
                part.set_content_disposition("form-data", name=name)
        chunks = Chunks()
        await writer.write(chunks)  # type: ignore[arg-type]
        headers = {"Content-Type": writer.content_type}
        return await ask(intake, bytes(chunks.body), path, headers=headers), intake
    if how == "json":
        as_json = {k: v if k == "api_key" else json.loads(v) for k, v in fields.items()}
        headers = {"Content-Type": "application/json"}
        return await ask(intake, as_json, path, headers=headers), intake
    body = urllib.parse.urlencode(fields).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
    return await ask(intake, body, path, headers=headers), intake


class Chunks:
    """What a multipart body is written to."""

    def __init__(self) -> None:
        self.body = bytearray()

    async def write(self, chunk: bytes) -> None:
        self.body += chunk


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("how", ["form", "multipart", "query", "query of a POST", "json"])
@pytest.mark.parametrize(
    ("path", "field", "sent", "expected"),
    [
        ("/identify", "identification", IDENTIFICATION, SENT[0]),
        ("/httpapi", "event", GOOD | {"time": 1}, GOOD | {"time": 1}),
        (
            "/groupidentify",
            "identification",
            GROUP,
            {
                "event_type": "$groupidentify",
                "groups": {"company": "Acme"},
                "group_properties": {"$set": {"a": 1}},
            },
        ),
    ],
)
async def test_forms_are_taken_however_they_are_sent(
    path: str, field: str, sent: dict[str, Any], expected: dict[str, Any], how: str, many: bool
) -> None:
    fields = {"api_key": "key", field: json.dumps([sent, sent] if many else sent)}
    (status, answer), intake = await ask_form(path, fields, how)
    assert (status, answer.get("events_ingested")) == (200, 2 if many else 1)
    assert taken(intake) == [expected] * (2 if many else 1)
    assert intake.batches[0].api_key == "key"


@pytest.mark.parametrize(
    ("path", "fields", "missing"),
    [
        ("/identify", {}, "api_key"),
        ("/identify", {"api_key": "key"}, "identification"),
        ("/identify", {"api_key": "key", "identification": "no json"}, "identification"),
        ("/identify", {"api_key": "key", "identification": "[]"}, "identification"),
        ("/httpapi", {"api_key": "key"}, "event"),
        ("/", {"e": "[]"}, "client"),
        ("/", {"client": "key", "e": "{"}, "e"),
    ],
)
async def test_a_form_without_a_needed_field_is_refused_by_name(
    path: str, fields: dict[str, str], missing: str
) -> None:
    (status, answer), intake = await ask_form(path, fields, "form")
    assert (status, answer["missing_field"], intake.batches) == (400, missing, [])


async def test_a_form_with_more_fields_than_any_is_refused() -> None:
    for how in ("form", "multipart"):
        fields = {f"field-{n}": "{}" for n in range(500)}
        (status, answer), _ = await ask_form("/identify", fields, how)
        assert (status, answer["missing_field"]) == (400, "body")


async def test_an_identification_without_a_user_is_refused_with_its_index() -> None:
    fields = {"api_key": "key", "identification": json.dumps([IDENTIFICATION, {"a": 1}, 5])}
    (status, answer), _ = await ask_form("/identify", fields, "form")
    assert (status, answer["events_with_missing_fields"]) == (400, {"user_id": [1]})
    assert answer["events_with_invalid_fields"] == {"event": [2]}


def legacy(events: list[Any], **changes: str) -> dict[str, str]:
    fields = {"client": "key", "e": json.dumps(events), "v": "2", "upload_time": "1700000000000"}
    signed = fields["v"] + fields["client"] + fields["e"] + fields["upload_time"]
    return fields | {"checksum": hashlib.md5(signed.encode()).hexdigest()} | changes


async def test_the_old_javascript_sdk_is_understood_and_its_bad_events_stop_nothing() -> None:
    event = {"event_type": "Sign Up", "device_id": "d", "timestamp": 1, "uuid": "unique"}
    (status, answer), intake = await ask_form("/", legacy([event, {"event_type": "a"}]), "form")
    assert (status, answer) == (200, {"text": "success"})  # what those SDKs compare with
    heads = heads_of(intake)
    assert isinstance(heads[0], Head)
    assert heads[0].unique_id == "unique"
    assert isinstance(heads[1], BadEvent)
    assert heads[1].reason == "missing_field"


async def test_a_checksum_that_is_wrong_is_refused_and_a_missing_one_is_not() -> None:
    event = {"event_type": "Sign Up", "device_id": "d"}
    (status, answer), _ = await ask_form("/", legacy([event], checksum="0" * 32), "form")
    assert (status, answer["error"]) == (400, "bad_checksum")
    (status, _), _ = await ask_form("/", legacy([event], checksum=""), "form")
    assert status == 200


EXPORTED = {"event_type": "Bought", "user_id": "u1", "event_time": "2024-05-14 09:00:00.5"}


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"Authorization": "Bearer key"}, ""),
        ({"authorization": "bearer  key"}, ""),
        ({"X-Api-Key": "key"}, ""),
        ({}, "?api_key=key"),
    ],
)
async def test_amplitude_s_webhook_names_its_project_in_any_of_three_ways(
    headers: dict[str, str], query: str
) -> None:
    intake = Intake()
    for body in (EXPORTED, [EXPORTED, IDENTIFICATION]):
        status, _ = await ask(intake, body, f"/webhook{query}", headers=headers)
        assert status == 200
    assert {batch.api_key for batch in intake.batches} == {"key"}
    assert taken(intake) == [EXPORTED, EXPORTED, *SENT]


async def test_a_repeated_webhook_event_is_known_by_its_content_and_an_upload_is_not() -> None:
    intake = Intake()
    assert (await ask(intake, EXPORTED, "/webhook?api_key=key"))[0] == 200
    upload = {"api_key": "key", "events": [GOOD]}
    assert (await ask(intake, upload, "/2/httpapi"))[0] == 200
    assert [batch.derive_ids for batch in intake.batches] == [True, False]


async def test_a_webhook_element_that_is_no_event_is_kept() -> None:
    intake = Intake()
    body = [EXPORTED, {"user_id": "u1"}, 5, EXPORTED | {"user_id": "anonymous"}]
    assert (await ask(intake, body, "/webhook?api_key=key"))[0] == 200
    reasons = [getattr(head, "reason", "") for head in heads_of(intake)]
    assert reasons == ["", "missing_field", "not_an_object", "invalid_id"]


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        (EXPORTED, "/webhook", "Request missing required field"),
        (b"", "/webhook?api_key=key", "Missing request body"),
        (b"{", "/webhook?api_key=key", "Invalid JSON request body"),
        (b"[]", "/webhook?api_key=key", "Invalid JSON request body"),
    ],
)
async def test_a_webhook_that_brings_nothing_is_refused(body: Any, path: str, said: str) -> None:
    status, answer = await ask(Intake(), body, path)
    assert (status, answer["error"]) == (400, said)


# --- what is checked --------------------------------------------------------------------


@pytest.mark.parametrize("user_id", ["anonymous", "NULL", "0", "-1", "x" * 1_025])
async def test_ids_that_amplitude_refuses_are_refused(user_id: str) -> None:
    body = upload(GOOD | {"user_id": user_id}, options={"min_id_length": 1})
    status, answer = await ask(Intake(), body)
    assert (status, answer["events_with_invalid_fields"]) == (400, {"user_id": [0]})
    assert "events_with_invalid_id_lengths" not in answer


@pytest.mark.parametrize(("depth", "status"), [(40, 200), (41, 400), (3_000, 400)])
async def test_values_are_nested_up_to_forty_deep(depth: int, status: int) -> None:
    nested = "[" * (depth - 1) + '"]]"' + "]" * (depth - 1)
    event = f'{{"event_type": "a", "user_id": "user-1", "event_properties": {{"p": {nested}}}}}'
    body = f'{{"api_key": "key", "events": [{event}]}}'.encode()
    found, answer = await ask(Intake(), body)
    assert found == status
    if status == 400 and depth < 100:
        assert answer["events_with_invalid_fields"] == {"event_properties": [0]}


@pytest.mark.parametrize(("depth", "reason"), [(40, ""), (41, "invalid_field")])
@pytest.mark.parametrize("path", ["/", "/webhook?api_key=key"])
async def test_doors_that_refuse_nothing_bury_values_that_are_nested_deeper(
    path: str, depth: int, reason: str
) -> None:
    nested: Any = "deep"
    for _ in range(depth - 1):
        nested = [nested]
    events = [GOOD | {"event_properties": {"p": nested}}]
    intake = Intake()
    if path == "/":
        (status, _), intake = await ask_form(path, legacy(events), "form")
    else:
        status, _ = await ask(intake, events, path)
    [head] = heads_of(intake)
    assert (status, getattr(head, "reason", "")) == (200, reason)


# --- clients as Amplitude understands them ----------------------------------------------


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
@pytest.mark.parametrize("path", ["/2/httpapi", "/batch", "/httpapi", "/webhook?api_key=key", "/"])
async def test_an_invalid_number_costs_its_value_at_every_door(path: str, number: bytes) -> None:
    intake, good = Intake(), json.dumps(GOOD).encode()
    event = b'{"event_type": "a", "user_id": "user-1", "event_properties": {"n": %b}}' % number
    events = b"[%b, %b]" % (good, event)
    if path == "/httpapi":
        form = urllib.parse.urlencode({"api_key": "key", "event": events})
        status, _ = await ask(intake, form.encode(), path)
    elif path == "/":
        status, _ = await ask(intake, b"client=key&e=" + events, path)
    else:
        body = events if "webhook" in path else b'{"api_key": "key", "events": %b}' % events
        status, _ = await ask(intake, body, path)
    assert status == 200
    assert taken(intake) == [GOOD, GOOD | {"event_type": "a", "event_properties": {"n": None}}]


@pytest.mark.parametrize("user_id", ["unknown", "00000000-0000-0000-0000-000000000000"])
async def test_reserved_ids_stand_in_the_list_that_clients_read(user_id: str) -> None:
    status, answer = await ask(Intake(), upload(GOOD, GOOD | {"device_id": user_id}))
    assert (status, answer["events_with_invalid_fields"]) == (400, {"device_id": [1]})
    assert "events_with_invalid_id_lengths" not in answer


async def test_short_ids_stand_in_both_lists() -> None:
    _, answer = await ask(Intake(), upload(GOOD, GOOD | {"user_id": "abcd"}))
    assert answer["error"] == "Invalid id length for user_id or device_id"
    assert answer["events_with_invalid_fields"] == {"user_id": [1]}
    assert answer["events_with_invalid_id_lengths"] == {"user_id": [1]}


async def test_numbers_as_ids_are_their_digits() -> None:
    intake = Intake()
    status, _ = await ask(intake, upload(GOOD | {"user_id": 2_016_192_872, "device_id": 123_456}))
    assert status == 200
    [head] = heads_of(intake)
    assert isinstance(head, Head)
    assert (head.user_id, head.device_id) == ("2016192872", "123456")


async def test_json_of_an_sdk_that_was_given_a_bare_host_is_http_v2() -> None:
    intake = Intake()
    status, answer = await ask(intake, b" \n" + json.dumps(upload(GOOD)).encode(), "/")
    assert (status, answer["events_ingested"], taken(intake)) == (200, 1, [GOOD])
    status, answer = await ask(Intake(), upload(GOOD | {"user_id": "abcd"}), "/")
    assert (status, answer["events_with_invalid_fields"]) == (400, {"user_id": [0]})


async def test_load_balancers_are_answered() -> None:
    async with serving(Intake()) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/healthz") as answer:
            assert (answer.status, await answer.json()) == (200, {"code": 200, "status": "ok"})
        for path in ("/healthz", "/openapi.json", *ENDPOINTS):
            async with session.head(url + path) as answer:
                assert (answer.status, await answer.read()) == (200, b"")


@pytest.mark.parametrize("path", ["/2/httpapi", "/webhook?api_key=key"])
async def test_gzip_that_no_header_announces_is_taken(path: str) -> None:
    intake = Intake()
    body: Any = GOOD if "webhook" in path else upload(GOOD)
    status, _ = await ask(intake, gzip.compress(json.dumps(body).encode()), path)
    assert (status, taken(intake)) == (200, [GOOD])


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/webhook", b"X-Api-Key: \xff", 400),
        ("/webhook", b"Authorization: Bearer \xff", 400),
        ("/webhook?api_key=%ff", b"A: b", 400),
        ("/2/httpapi", b"Content-Encoding: \xff", 415),
        ("/identify", b"Content-Type: multipart/form-data; boundary=\xff", 400),
        ("/2/httpapi", b"Origin: \xff", 400),
        ("/2/httpapi", b"Expect: \xff", 400),
    ],
)
async def test_bytes_that_are_no_text_in_a_header_are_refused_in_json(
    path: str, header: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Choosy("key"), cors_origins=["https://shop.example"]) as url:
        heard = await _speak(
            url,
            b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\nContent-Length: 2\r\n\r\n{}"
            % (path.encode(), header),
        )
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["code"] == status
    assert not [record for record in caplog.records if record.exc_info]


class Choosy(Intake):
    """Takes the events of one key."""

    def __init__(self, api_key: str) -> None:
        super().__init__()
        self._api_key = api_key

    def takes(self, api_key: str) -> bool:
        return api_key == self._api_key


async def test_a_webhook_with_a_key_that_nobody_takes_is_refused_before_its_body_is_read() -> None:
    head = b"POST /webhook?api_key=other HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    async with serving(Choosy("key")) as url:
        heard = await speak(url.removeprefix("http://"), head)
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b"Invalid API key: other" in heard


async def test_the_clock_that_corrects_clients_is_the_one_that_is_given() -> None:
    intake, now_ms = Intake(), 1_750_000_000_000
    body = upload(GOOD | {"time": 1_000_000_000_000}, client_upload_time=1_600_000_000_000)
    async with (
        serving(intake, now_ms=lambda: now_ms) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/2/httpapi", json=body) as answer,
    ):
        assert (await answer.json())["server_upload_time"] == now_ms
    assert taken(intake) == [GOOD | {"time": 1_150_000_000_000}]


# --- refusals are counted ---------------------------------------------------------------


async def test_every_refusal_is_counted_by_door_and_reason_and_logged_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = HttpSource(listen="127.0.0.1:0")
    task = asyncio.create_task(source.run(Choosy("key")))
    address = await source.listening()
    async with aiohttp.ClientSession(f"http://{address}") as session:
        for path, body, more in (
            *[("/2/httpapi", b'{"api_key": "typo", "events": [{}]}', {})] * 3,
            ("/2/httpapi", b"{not json", {}),
            ("/wrong/path", b"x", {}),
            ("/batch", b"x", {"Content-Encoding": "zstd"}),
            ("/batch", b'{"api_key": "key", "events": [5]}', {}),
        ):
            async with session.post(path, data=body, headers=more) as answer:
                assert answer.status >= 400
    await speak(address, b"no http\r\n\r\n")
    task.cancel()
    await asyncio.wait([task])
    assert source.refusals == {
        ("/2/httpapi", "unknown_key"): 3,
        ("/2/httpapi", "invalid_json"): 1,
        ("/batch", "encoding"): 1,
        ("/batch", "bad_events"): 1,
        (NO_ENDPOINT, "unknown_path"): 1,
        (NO_ENDPOINT, "bad_http"): 1,
    }
    assert source.refused_keys == {"typo": 3}
    assert len([r for r in caplog.records if "refused a request" in r.getMessage()]) == 6


# --- bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "", "application/octet-stream"])
async def test_json_is_read_under_any_content_type(kind: str) -> None:
    assert (await ask(Intake(), upload(GOOD), headers={"Content-Type": kind}))[0] == 200


async def test_a_body_may_come_in_chunks_and_in_several_encodings() -> None:
    body = json.dumps(upload(GOOD | {"name": "Zoë \u2713"})).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 10):
            yield body[at : at + 10]

    async with (
        serving(Intake()) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/2/httpapi", data=chunks()) as answer,
    ):
        assert answer.status == 200
    for encoding, packed in (
        ("deflate", zlib.compress(body)),
        ("x-gzip", gzip.compress(body[:9]) + gzip.compress(body[9:])),
        ("Identity", body),
    ):
        headers = {"Content-Encoding": encoding}
        assert (await ask(Intake(), packed, headers=headers))[0] == 200
    assert (await ask(Intake(), body, headers={"Content-Encoding": "br"}))[0] == 415
    cut_off = gzip.compress(body)[:-3]
    assert (await ask(Intake(), cut_off, headers={"Content-Encoding": "gzip"}))[0] == 400


async def test_a_bomb_takes_no_memory() -> None:
    bomb = gzip.compress(bytes(10_000_000)) * 90  # 0.9 MB that inflate to 900
    assert len(bomb) < 1_000_000
    async with serving(Intake()) as url, aiohttp.ClientSession() as session:
        tracemalloc.start()
        try:
            headers = {"Content-Encoding": "gzip"}
            async with session.post(f"{url}/2/httpapi", data=bomb, headers=headers) as answer:
                assert answer.status == 413
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 10_000_000


# --- pressure ---------------------------------------------------------------------------


class SlowIntake(Intake):
    """Takes batches, and acknowledges them when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = 0
        self.someone = asyncio.Event()

    async def send(self, batch: Batch) -> Ticket:
        self.waiting += 1
        self.someone.set()
        await self.go.wait()
        return await super().send(batch)


async def test_the_bytes_of_a_body_are_held_until_it_is_answered() -> None:
    """A large one that waits for the disk keeps a second one of its size out, not a small one."""
    large = [{**GOOD, "event_properties": {"text": "x" * 300_000}}]
    intake = SlowIntake()
    async with (
        serving(
            intake, max_held_bytes=1_000_000, body_timeout_s=0.05, max_event_bytes=1_000_000
        ) as url,
        aiohttp.ClientSession() as session,
    ):
        held = asyncio.create_task(session.post(f"{url}/2/httpapi", json=upload(*large)))
        await intake.someone.wait()
        async with session.post(f"{url}/2/httpapi", json=upload(*large)) as answer:
            assert answer.status == 503
        intake.someone.clear()
        small = asyncio.create_task(session.post(f"{url}/2/httpapi", json=upload(GOOD)))
        await intake.someone.wait()
        intake.go.set()
        assert [(await held).status, (await small).status] == [200, 200]


async def test_a_request_that_gets_no_room_in_time_is_to_be_sent_again() -> None:
    intake = SlowIntake()
    async with (
        serving(intake, max_held_bytes=20_000, body_timeout_s=0.01) as url,
        aiohttp.ClientSession() as session,
    ):
        first = asyncio.create_task(session.post(f"{url}/2/httpapi", json=upload(GOOD)))
        await intake.someone.wait()
        async with session.post(f"{url}/2/httpapi", json=upload(GOOD)) as answer:
            body = await answer.json()
        assert (answer.status, body["error"]) == (503, "Service unavailable: busy")
        intake.go.set()
        assert (await first).status == 200  # it was slow, and not late: its body had come


async def test_a_key_with_a_limit_is_throttled_in_amplitude_s_words() -> None:
    async with (
        serving(Intake(), key_events_per_s=0.2) as url,
        aiohttp.ClientSession() as session,
    ):
        answers = []
        for _ in range(2):
            async with session.post(f"{url}/2/httpapi", json=upload(GOOD, GOOD)) as answer:
                answers.append((answer.status, await answer.json()))
    assert answers[0][0] == 200
    assert answers[1] == (
        429,
        {
            "code": 429,
            "error": "Too many requests for some devices and users",
            "eps_threshold": 1,
            "throttled_devices": {},
            "throttled_users": {"user-1": 2},
            "throttled_events": [0, 1],
        },
    )


async def _speak(url: str, said: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    heard = await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return heard


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /identify?identification=" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", 400),
    ],
)
async def test_bytes_that_are_no_http_are_answered_in_json(said: bytes, status: int) -> None:
    async with serving(Intake()) as url:
        heard = await _speak(url, said)
    head, _, body = heard.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status))
    assert json.loads(body)["code"] == status


async def test_a_connection_that_never_becomes_a_request_is_closed() -> None:
    async with serving(Intake(), idle_timeout_s=0.01) as url:
        assert await _speak(url, b"POST /2/httpapi HTTP/1.1\r\nHost: half a he") == b""


async def test_a_fault_of_our_own_is_answered_in_json_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, answer = await ask(Intake(RuntimeError("fault"), at_once=True), upload(GOOD))
    assert (status, answer) == (500, {"code": 500, "error": "Internal error"})
    assert "fault while answering /2/httpapi" in caplog.text


async def test_a_browser_may_send_any_header_of_its_sdk() -> None:
    ask_for = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Headers": "content-type,cross-origin-resource-policy",
    }
    async with serving(Intake()) as url, aiohttp.ClientSession() as session:
        for path in ENDPOINTS:
            async with session.options(url + path, headers=ask_for) as answer:
                assert answer.status == 204
                allowed = answer.headers["Access-Control-Allow-Headers"]
                assert allowed == ask_for["Access-Control-Request-Headers"]
                assert "POST" in answer.headers["Access-Control-Allow-Methods"]


async def test_the_description_is_served() -> None:
    async with (
        serving(Intake()) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/openapi.json") as answer,
    ):
        described = await answer.json()
    assert set(described["paths"]) == {*ENDPOINTS, "/openapi.json", "/healthz"}


async def test_a_body_that_is_held_back_is_asked_for() -> None:
    body = json.dumps(upload(GOOD)).encode()
    async with serving(Intake()) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /batch HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_requests_without_their_bodies_do_not_keep_others_out() -> None:
    async with (
        serving(Intake(), max_held_bytes=20_000_000) as url,
        aiohttp.ClientSession() as session,
    ):
        host, port = url.removeprefix("http://").split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        for _, writer in silent:
            writer.write(b"POST /batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            await writer.drain()
        async with session.post(f"{url}/2/httpapi", json=upload(GOOD)) as answer:
            assert answer.status == 200
        for _, writer in silent:
            writer.close()


async def test_a_request_that_is_worked_on_does_not_give_way_to_new_connections() -> None:
    """Which connections may give way is what the listener notes of each that it waits for."""
    intake = SlowIntake()
    source = HttpSource(listen="127.0.0.1:0")
    task = asyncio.create_task(source.run(intake))
    url = f"http://{await source.listening()}"
    listener = source._listener
    assert listener is not None
    async with aiohttp.ClientSession() as session:
        asked = asyncio.create_task(session.post(f"{url}/2/httpapi", json=upload(GOOD)))
        await intake.someone.wait()
        assert (len(listener._open_ones), len(listener._waited_for)) == (1, 0)
        intake.go.set()
        assert (await asked).status == 200
        assert listener._open_ones == listener._waited_for.keys()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/identify", "multipart/form-data; boundary=b", b"--b\r\nA: name=" + b'"' * 900_000),
        ("/identify", "multipart/form-data; boundary=b", b"--b\r\nA: x" + b"; a=b" * 180_000),
        ("/identify", "multipart/form-data; boundary=b", b"--b\r\nA: " + b"(" * 900_000),
        ("/identify", "multipart/form-data; boundary=b", b"--b\r\n\r\n" * 90_000),
        ("/identify", "application/x-www-form-urlencoded", b"%" * 900_000),
        ("/batch", "", b'{"api_key":"' + rb"\n" * 9_000_000),
        ("/batch", "", rb'{"api_key":"\ud83d' + rb"\n" * 9_000_000),
        ("/batch", "", b'{"api_key":"k","events":[{"a":[' + b"[]," * 6_000_000 + b"1]}]}"),
        ("/batch", "", b'{"api_key":"k","events":[{"a":' + b'"[",' * 4_000_000 + b"}]}"),
        ("/2/httpapi", "", b'{"api_key":"k","events":[' + b"0," * 400_000 + b"0]}"),
    ],
)
async def test_no_body_takes_long_to_be_refused(path: str, kind: str, body: bytes) -> None:
    """What a stranger may send must not hold up everybody; some of these once took 200 times it."""
    started = time.process_time()
    assert sum(1 for _ in range(2_000_000)) == 2_000_000
    measure = time.process_time() - started
    status, _ = await ask(Intake(), body, path, headers={"Content-Type": kind})
    assert status in (400, 413)
    assert time.process_time() - started < 20 * measure


@pytest.mark.parametrize("options", [None, [], {}, {"min_id_length": None}, {"min_id_length": "x"}])
async def test_an_option_that_means_nothing_costs_no_event(options: Any) -> None:
    assert (await ask(Intake(), upload(GOOD, options=options)))[0] == 200


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_form_has_few_fields_however_it_is_written(kind: str) -> None:
    many = {f"field-{n}": "x" for n in range(MAX_FIELDS + 1)}
    body = json.dumps(many) if "json" in kind else urllib.parse.urlencode(many)
    with pytest.raises(ValueError, match=r"(?i)fields"):
        read_form(body.encode(), kind)


@pytest.mark.parametrize("packed", [False, True])
async def test_a_client_that_hangs_up_within_a_body_is_gone_and_sent_nothing_bad(
    packed: bool,
) -> None:
    source = HttpSource(listen="127.0.0.1:0")
    task = asyncio.create_task(source.run(Intake()))
    host, _, port = (await source.listening()).rpartition(":")
    whole = json.dumps(upload(GOOD)).encode()
    body = gzip.compress(whole) if packed else whole
    encoding = "Content-Encoding: gzip\r\n" if packed else ""
    head = f"POST /batch HTTP/1.1\r\nHost: x\r\n{encoding}Content-Length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body[:-5])
    await writer.drain()
    writer.close()
    while not source.refusals:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert source.refusals == {("/batch", "gone"): 1}
