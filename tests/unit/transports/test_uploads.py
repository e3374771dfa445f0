"""What requests hold: refusals in Amplitude's words, forms, webhooks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from transports.amplitude import decode_event
from transports.uploads import BadUpload, Upload, decode_events, decode_upload

RECORDED = Path(__file__).parents[3].parent / "shared" / "data" / "amplitude-requests"
DEEP = b"[" * 10_000 + b"]" * 10_000
GOOD = {"event_type": "Bought", "user_id": "user-1"}


def raw(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(events: list[bytes], min_id_length: int = 5) -> dict[str, Any]:
    refused = decode_events(events, min_id_length)
    assert isinstance(refused, BadUpload)
    decoded: dict[str, Any] = json.loads(msgspec.json.encode(refused))
    return decoded


# --- uploads ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error", "missing_field"),
    [
        (b" \n", "Missing request body", "body"),
        (b"not json", "Invalid JSON request body", "body"),
        (b"[]", "Invalid JSON request body", "body"),
        (b'{"api_key": "k", "events": [nan]}', "Invalid JSON request body", "body"),
        (b'{"api_key": "k", "events": [' + DEEP + b"]}", "Invalid JSON request body", "body"),
        (b'{"api_key": "\xff", "events": [{}]}', "Invalid JSON request body", "body"),
        (b'{"api_key": 5, "events": [{}]}', "Invalid JSON request body", "api_key"),
        (b'{"api_key": "k", "events": {}}', "Invalid JSON request body", "events"),
        (b'{"events": [{}]}', "Request missing required field", "api_key"),
        (b'{"api_key": "", "events": [{}]}', "Request missing required field", "api_key"),
        (b'{"api_key": "k"}', "Request missing required field", "events"),
        (b'{"api_key": "k", "events": []}', "Request missing required field", "events"),
        (b'{"api_key": "k", "events": null}', "Request missing required field", "events"),
    ],
)
def test_a_body_that_is_no_upload_is_refused_in_amplitude_s_words(
    body: bytes, error: str, missing_field: str | None
) -> None:
    assert decode_upload(body) == BadUpload(400, error, missing_field=missing_field)


@pytest.mark.parametrize("time", ["2024-05-14T09:00:00Z", "1715677200000", 1.5, -1, True, [], {}])
def test_a_time_other_than_whole_milliseconds_is_refused(time: Any) -> None:
    assert refusal([raw(time=time)])["events_with_invalid_fields"] == {"time": [0]}


@pytest.mark.parametrize("time", [b"1e999", b"1" * 5_000])
def test_a_time_that_cannot_even_be_decoded_is_refused(time: bytes) -> None:
    event = b'{"event_type": "Bought", "user_id": "user-1", "time": ' + time + b"}"
    assert refusal([event])["events_with_invalid_fields"] == {"time": [0]}


def test_a_refusal_lists_every_bad_index_under_its_field() -> None:
    events = [
        raw(),
        raw(user_id=5.5),
        raw(event_type=None),
        raw(user_id="abcd"),
        raw(time="today"),
        raw(user_id=None),
        raw(),
        raw(user_id=True),
        b"5",
        raw(device_id="d"),
    ]
    assert refusal(events) == {
        "code": 400,
        "error": "Request missing required field",
        "events_with_invalid_fields": {
            "user_id": [1, 3, 7],
            "time": [4],
            "event": [8],
            "device_id": [9],
        },
        "events_with_missing_fields": {"event_type": [2], "user_id": [5]},
        "events_with_invalid_id_lengths": {"user_id": [3], "device_id": [9]},
    }


def test_short_ids_are_called_so_unless_the_client_allows_them() -> None:
    assert refusal([raw(user_id="abc")])["error"] == "Invalid id length for user_id or device_id"
    heads, raws = decode_events([raw(user_id="abc")], 3)  # type: ignore[misc]
    assert (len(heads), raws) == (1, [raw(user_id="abc")])


def test_good_events_keep_their_bytes_and_their_order() -> None:
    events = [b'{ "user_id" : "user-%d" ,"event_type":"a"}' % n for n in range(3)]
    heads, raws = decode_events(events)  # type: ignore[misc]
    assert raws == events
    assert [head.user_id for head in heads] == ["user-0", "user-1", "user-2"]


def test_half_a_surrogate_pair_costs_no_event_of_its_upload() -> None:
    body = rb'{"api_key": "k", "events": [{"event_type": "a\ud83d", "user_id": "mira-okafor"}]}'
    upload = decode_upload(body)
    assert isinstance(upload, Upload)
    assert isinstance(upload.events, list)
    heads, _ = decode_events(upload.events)
    assert [head.event_type for head in heads] == ["a\N{REPLACEMENT CHARACTER}"]


# --- recorded requests ------------------------------------------------------------------


def test_what_the_python_sdk_sends_is_taken_whole() -> None:
    path = RECORDED / "amplitude-python-001-ok.json"
    if not path.exists():
        pytest.skip("no recorded requests here")
    recorded = json.loads(path.read_bytes())
    upload = decode_upload(base64.b64decode(recorded["raw_body_base64"]))
    assert isinstance(upload, Upload)
    assert upload.min_id_length == 1
    decoded = decode_events(upload.events, 1)  # type: ignore[arg-type]
    assert not isinstance(decoded, BadUpload), decoded
    sent = recorded["body_json"]["events"]
    assert [head.event_type for head in decoded[0]] == [event["event_type"] for event in sent]
    assert [decode_event(one).fields for one in decoded[1]] == sent
