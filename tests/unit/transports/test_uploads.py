"""What requests hold: refusals in Amplitude's words, forms, webhooks."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.transports import uploads
from amplitude_intercom.transports.amplitude import MAX_EVENTS, BadEvent, Head
from amplitude_intercom.transports.amplitude_events import decode_event
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.upload_answers import NOT_JSON, TOO_LARGE, BadUpload, unknown_key
from amplitude_intercom.transports.upload_events import checked_batch, decode_events
from amplitude_intercom.transports.uploads import Upload, decode_upload
from support import reference

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


@pytest.mark.parametrize("time", [b"1e999", b"1" * 5_000, b"1" + b"0" * 21, b"1e21", b"1e20"])
def test_a_number_that_is_no_time_in_any_unit_is_refused(time: bytes) -> None:
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


def test_bytes_that_are_json_only_together_are_refused_each() -> None:
    """Whoever embeds the engine hands bytes over: nobody has decoded them before."""
    good = b'{"event_type": "a", "user_id": "user-1"}'
    two = [good + b', {"x": 2', good[1:]]
    assert refusal(two)["events_with_invalid_fields"] == {"event": [0, 1]}
    assert refusal([good, good + b"," + good])["events_with_invalid_fields"] == {"event": [1]}
    assert refusal([good + b"," + good, b""])["events_with_invalid_fields"] == {"event": [0, 1]}


def test_half_a_surrogate_pair_costs_no_event_of_its_upload() -> None:
    body = rb'{"api_key": "k", "events": [{"event_type": "a\ud83d", "user_id": "mira-okafor"}]}'
    upload = decode_upload(body)
    assert isinstance(upload, Upload)
    assert isinstance(upload.events, list)
    decoded = decode_events(upload.events)
    assert not isinstance(decoded, BadUpload)
    assert [head.event_type for head in decoded[0]] == ["a\N{REPLACEMENT CHARACTER}"]


# --- bounds -----------------------------------------------------------------------------

ZEROS = b"0," * 2_000_000 + b"0"


@pytest.mark.parametrize(
    "decode",
    [
        lambda: decode_upload(b'{"api_key": "k", "events": [' + ZEROS + b"]}"),
        lambda: uploads.decode_webhook(b"[" + ZEROS + b"]", "k"),
        lambda: uploads.decode_event_form({"api_key": "k", "event": f"[{ZEROS.decode()}]"}),
        lambda: uploads.decode_legacy_form({"client": "k", "e": f"[{ZEROS.decode()}]"}),
    ],
)
def test_elements_are_counted_before_there_are_objects_for_them(
    decode: Callable[[], Upload | BadUpload],
) -> None:
    tracemalloc.start()
    try:
        upload = decode()
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(upload, Upload)
    assert len(upload.events) == MAX_EVENTS + 1
    assert held < 10 * len(ZEROS)  # an object for each would be 30 times it
    assert checked_batch(upload, "") is TOO_LARGE


@pytest.mark.parametrize("count", [1, 200, 1_999, 2_000])
def test_up_to_two_thousand_events_are_the_same_at_every_size_of_body(count: int) -> None:
    events = [raw(n=n, padding="x" * 200) if n % 7 else b"null" for n in range(count)]
    upload = decode_upload(b'{"api_key":"k","events":[' + b",".join(events) + b"]}")
    assert isinstance(upload, Upload)
    assert [bytes(event) for event in upload.events] == events


def test_a_key_that_nobody_takes_is_refused_before_its_events_are_looked_at() -> None:
    body = b'{"events": [5, "no event", {}], "api_key": "stranger"}'
    form = {"api_key": "stranger", "client": "stranger", "event": "no json", "e": "no json"}
    refused = unknown_key("stranger")
    assert decode_upload(body, _nobody) == refused
    assert uploads.decode_event_form(form, _nobody) == refused
    assert uploads.decode_identify_form(form, _nobody) == refused
    assert uploads.decode_legacy_form(form, _nobody) == refused
    assert uploads.decode_webhook(b"no json", "stranger", _nobody) == refused
    assert decode_upload(b'{"api_key": "stranger", "events": [NaN]}', _nobody) == NOT_JSON


def _nobody(api_key: str) -> bool:
    return False


def test_an_event_that_is_too_large_is_refused_by_its_index() -> None:
    large = raw(event_properties={"text": "x" * 1_000})
    refused = decode_events([raw(), large, raw()], max_event_bytes=1_000)
    assert isinstance(refused, BadUpload)
    assert refused.events_with_invalid_fields == {"event": [1]}
    assert not isinstance(decode_events([raw(), large, raw()], max_event_bytes=2_000), BadUpload)


def test_from_a_forgiving_door_an_event_that_is_too_large_is_a_dead_letter_of_its_beginning() -> (
    None
):
    large = raw(event_properties={"text": "x" * 300_000})
    for upload in (
        uploads.decode_webhook(b"[%b,%b]" % (raw(), large), "k"),
        uploads.decode_legacy_form({"client": "k", "e": f"[{raw().decode()},{large.decode()}]"}),
    ):
        assert isinstance(upload, Upload)
        batch = checked_batch(upload, "")
        assert isinstance(batch, Batch)
        assert batch.heads is not None
        assert isinstance(batch.heads[0], Head)
        assert isinstance(batch.heads[1], BadEvent)
        assert batch.heads[1].reason == "too_large"
        assert list(batch.raws) == [raw(), large[:4_096]]


@pytest.mark.parametrize(
    "options", [b"5", b'"x"', b"[" + ZEROS + b"]", b'{"min_id_length":"x"}', b'{"other":{}}']
)
def test_options_of_any_shape_cost_no_event(options: bytes) -> None:
    upload = decode_upload(b'{"api_key":"k","events":[%b],"options":%b}' % (raw(), options))
    assert isinstance(upload, Upload)
    assert upload.min_id_length == 5


# --- clients' clocks --------------------------------------------------------------------

NOW = 1_750_000_000_000
YEARS = 2 * 365 * 86_400_000


def times_of(batch: Batch | BadUpload) -> list[Any]:
    assert isinstance(batch, Batch)
    assert batch.heads is not None
    found = [json.loads(raw) for raw in batch.raws]
    heads = [head.written_time for head in batch.heads if isinstance(head, Head)]
    assert heads == [event.get("time", event.get("timestamp")) for event in found]
    return heads


@pytest.mark.parametrize("written", [NOW - YEARS, "2023-06-16T15:06:40.000Z", str(NOW - YEARS)])
def test_a_clock_that_is_years_behind_is_corrected_for_all_events_alike(written: Any) -> None:
    behind = NOW - YEARS
    events = [GOOD | {"time": behind - 500}, GOOD, GOOD | {"time": behind}]
    body = {"api_key": "k", "client_upload_time": written, "events": events}
    upload = decode_upload(json.dumps(body).encode())
    assert isinstance(upload, Upload)
    assert times_of(checked_batch(upload, "", received_ms=NOW)) == [NOW - 500, None, NOW]


def test_the_forms_upload_time_corrects_too() -> None:
    event = json.dumps(GOOD | {"timestamp": NOW - YEARS - 500})
    form = {"client": "k", "e": f"[{event}]", "upload_time": str(NOW - YEARS)}
    upload = uploads.decode_legacy_form(form)
    assert isinstance(upload, Upload)
    assert times_of(checked_batch(upload, "", received_ms=NOW)) == [NOW - 500]


@pytest.mark.parametrize(
    "written",
    [NOW - 60_000, NOW + 60_000, None, "soon", 0, -1, 1e400, [], {}, "9" * 5_000, NOW * 1_000_000],
)
def test_a_clock_that_is_nearly_right_or_absurd_is_left_alone(written: Any) -> None:
    body = {"api_key": "k", "client_upload_time": written, "events": [GOOD | {"time": NOW - 5}]}
    upload = decode_upload(json.dumps(body).encode())
    assert isinstance(upload, Upload)
    assert times_of(checked_batch(upload, "", received_ms=NOW)) == [NOW - 5]


@given(st.lists(st.integers(0, 10**12), min_size=1), st.integers(-YEARS, YEARS))
def test_the_order_of_a_request_s_events_is_kept(times: list[int], skew_ms: int) -> None:
    body = {
        "api_key": "k",
        "client_upload_time": NOW - skew_ms,
        "events": [GOOD | {"time": 10**12 + time} for time in times],
    }
    upload = decode_upload(json.dumps(body).encode())
    assert isinstance(upload, Upload)
    found = times_of(checked_batch(upload, "", received_ms=NOW))
    assert len({new - old for new, old in zip(found, times, strict=True)}) == 1


# --- recorded requests ------------------------------------------------------------------


def test_uploads_of_the_python_sdk_are_taken_whole() -> None:
    path = reference.REQUESTS / "amplitude-python-001-ok.json"
    recorded = json.loads(path.read_bytes())
    upload = decode_upload(base64.b64decode(recorded["raw_body_base64"]))
    assert isinstance(upload, Upload)
    assert upload.min_id_length == 1
    decoded = decode_events(upload.events, 1)
    assert not isinstance(decoded, BadUpload), decoded
    sent = recorded["body_json"]["events"]
    assert [head.event_type for head in decoded[0]] == [event["event_type"] for event in sent]
    assert [decode_event(raw).fields for raw in decoded[1]] == sent
