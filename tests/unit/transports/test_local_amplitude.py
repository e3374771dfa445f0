"""The local Amplitude: what its pages say of it, request by request."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.server import serve_amplitude

KEY = "an-api-key"
SECRET = "a-secret"
FORM = {"content-type": "application/x-www-form-urlencoded"}


class Clock:
    def __init__(self) -> None:
        self.at_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at_s


def local(**more: Any) -> tuple[LocalAmplitude, Clock]:
    clock = Clock()
    return LocalAmplitude(now=clock, projects={KEY: SECRET}, **more), clock


def event(n: int, device: str = "device-1", **more: Any) -> dict[str, Any]:
    return {"event_type": "Paid", "device_id": device, "insert_id": f"{device}-{n}", **more}


def post(amplitude: LocalAmplitude, *events: Any, path: str = "/2/httpapi", **more: Any) -> Answer:
    body = json.dumps({"api_key": KEY, "events": events, **more}).encode()
    return amplitude.handle(Request("POST", path, body), {"content-type": "application/json"})


def post_form(amplitude: LocalAmplitude, path: str, **form: str) -> Answer:
    return amplitude.handle(Request("POST", path, urlencode(form).encode()), FORM)


def said(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.body)
    assert found["code"] == answer.status
    return found


def test_events_are_stored_and_one_that_is_sent_again_is_not() -> None:
    amplitude, clock = local()
    answer = said(post(amplitude, event(1), event(2)))
    assert (answer["events_ingested"], answer["server_upload_time"]) == (2, clock.at_s * 1000)
    post(amplitude, event(2), event(2, "device-2"), path="/batch")
    assert [found.event["insert_id"] for found in amplitude.events] == [
        "device-1-1",
        "device-1-2",
        "device-2-2",
    ]
    assert amplitude.duplicates == 1
    clock.at_s += 7 * 86_400
    post(amplitude, event(2))
    assert len(amplitude.events) == 4


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"event_type": None}, "events_with_missing_fields"),
        ({"device_id": None}, "events_with_missing_fields"),
        ({"device_id": "anonymous"}, "events_with_invalid_fields"),
        ({"time": "2024-05-14T09:00:00Z"}, "events_with_invalid_fields"),
        ({"device_id": "abc"}, "events_with_invalid_id_lengths"),
    ],
)
def test_a_request_with_bad_events_is_refused_whole_and_all_are_listed(
    bad: dict[str, Any], field: str
) -> None:
    amplitude, _ = local()
    answer = said(post(amplitude, event(0), {**event(1), **bad}, event(2), {**event(3), **bad}))
    assert answer["code"] == 400
    assert list(answer[field].values()) == [[1, 3]]
    assert not amplitude.events
    post(amplitude, event(0), event(2))
    assert len(amplitude.events) == 2


@pytest.mark.parametrize(
    ("path", "body", "code", "error"),
    [
        ("/2/httpapi", b"", 400, "Missing request body"),
        ("/2/httpapi", b"[", 400, "Invalid JSON request body"),
        ("/2/httpapi", b"{}", 400, "Request missing required field"),
        ("/2/httpapi", b'{"api_key":"x","events":[]}', 400, "Invalid API key: x"),
        ("/2/httpapi", b" " * (1 << 20) + b"{}", 413, "Payload too large"),
        ("/3/httpapi", b"{}", 404, "Invalid request path"),
    ],
)
def test_a_body_that_is_no_upload_is_refused(path: str, body: bytes, code: int, error: str) -> None:
    amplitude, _ = local()
    answer = said(amplitude.handle(Request("POST", path, body), {}))
    assert (answer["code"], answer["error"]) == (code, error)


def test_more_than_two_thousand_events_are_too_many() -> None:
    amplitude, _ = local(events_per_s={})
    assert post(amplitude, *map(event, range(2_001)), path="/batch").status == 413
    assert post(amplitude, *map(event, range(2_000)), path="/batch").status == 200


def test_a_client_that_sends_too_fast_gets_the_indexes_of_events_to_wait_with() -> None:
    amplitude, clock = local(events_per_s={"/2/httpapi": 3})
    assert post(amplitude, *map(event, range(3))).status == 200
    answer = said(post(amplitude, event(0, "device-2"), event(3), user_id="user-1"))
    assert (answer["code"], answer["throttled_events"]) == (429, [1])
    assert answer["throttled_devices"] == {"device-1": 4}
    assert len(amplitude.events) == 3
    clock.at_s += 1
    assert post(amplitude, event(0, "device-2"), event(3)).status == 200


def test_a_device_that_was_silenced_is_listed() -> None:
    amplitude, _ = local()
    amplitude.silenced.add("device-2")
    answer = said(post(amplitude, event(1), event(1, "device-2")))
    assert (answer["silenced_events"], answer["silenced_devices"]) == ([1], ["device-2"])
    assert not amplitude.events


def test_forms_are_taken_as_old_clients_send_them() -> None:
    amplitude, _ = local()
    legacy = json.dumps([{**event(1), "uuid": "1"}])
    assert post_form(amplitude, "/", client=KEY, e=legacy, v="2").status == 200
    identity = json.dumps({"user_id": "mira-okafor", "user_properties": {"plan": "pro"}})
    assert post_form(amplitude, "/identify", api_key=KEY, identification=identity).status == 200
    query = urlencode({"api_key": KEY, "identification": identity})
    assert amplitude.handle(Request("GET", f"/identify?{query}"), {}).status == 200
    assert post_form(amplitude, "/httpapi", api_key=KEY, event=json.dumps(event(2))).status == 200
    group = json.dumps({"group_type": "org", "group_value": "x", "group_properties": {}})
    assert post_form(amplitude, "/groupidentify", api_key=KEY, identification=group).status == 200
    assert [found.event["event_type"] for found in amplitude.events] == [
        "Paid",
        "$identify",
        "$identify",
        "Paid",
    ]
    assert len(amplitude.group_identifies) == 1
    assert post_form(amplitude, "/identify", api_key=KEY).status == 400


def test_faults_lose_the_answer_or_keep_the_request_out() -> None:
    amplitude, _ = local(faults=[Fault("hang")])
    with pytest.raises(NoAnswer):
        post(amplitude, event(1))
    assert len(amplitude.events) == 1
    amplitude.faults[:] = [Fault("status", status=503)]
    assert post(amplitude, event(2)).status == 503
    amplitude.faults[:] = [Fault("html", status=200)]
    assert post(amplitude, event(2)).headers["content-type"] == "text/html"
    assert len(amplitude.events) == 1


def export(amplitude: LocalAmplitude, start: str, end: str, secret: str = SECRET) -> Answer:
    code = base64.b64encode(f"{KEY}:{secret}".encode()).decode()
    request = Request("GET", f"/api/2/export?start={start}&end={end}")
    return amplitude.handle(request, {"authorization": f"Basic {code}"})


def test_hours_are_exported_as_they_are_kept() -> None:
    amplitude, clock = local(most_exported=3)
    post(amplitude, event(1, time=1_799_999_999_123), event(2))
    clock.at_s += 3_600
    post(amplitude, event(3))
    answer = export(amplitude, "20270115T08", "20270115T09")
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        names = archive.namelist()
        lines = [gzip.decompress(archive.read(name)).splitlines() for name in names]
    assert names == ["100/100_2027-01-15_8#0.json.gz", "100/100_2027-01-15_9#0.json.gz"]
    first = json.loads(lines[0][0])
    assert (first["event_time"], first["$insert_id"]) == (
        "2027-01-15 07:59:59.123000",
        "device-1-1",
    )
    assert [len(some) for some in lines] == [2, 1]
    assert export(amplitude, "20270115T09", "20270115T09").status == 200
    assert export(amplitude, "20270115T10", "20270115T11").status == 404
    assert export(amplitude, "20270115T10", "20270115T09").status == 400
    assert export(amplitude, "2027-01-15", "20270115T09").status == 400
    assert export(amplitude, "20270115T08", "20270115T09", "another").status == 401
    post(amplitude, event(4))
    assert export(amplitude, "20270115T08", "20270115T09").status == 400


async def test_over_http_packed_bodies_are_taken() -> None:
    amplitude, _ = local()
    body = gzip.compress(json.dumps({"api_key": KEY, "events": [event(1)]}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with serve_amplitude(amplitude) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/2/httpapi", data=body, headers=headers) as answer:
            assert (answer.status, (await answer.json())["events_ingested"]) == (200, 1)
        amplitude.faults.append(Fault("reset"))
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{url}/2/httpapi", data=body, headers=headers)
