"""Amplitude's wire: dialects, checks, and refusals in Amplitude's words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from transports import amplitude
from transports.amplitude import (
    BadEvent,
    BadUpload,
    Head,
    Upload,
    check_head,
    decode_event,
    decode_events,
    decode_head,
    decode_upload,
    parse_time,
)

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


# --- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        (b"", "invalid_json", ""),
        (b"{", "invalid_json", ""),
        (b"[1]", "not_an_object", ""),
        (b"null", "not_an_object", ""),
        (raw(user_id=5), "invalid_field", "user_id"),
        (raw(event_type=["a"]), "invalid_field", "event_type"),
        (raw(event_time={}), "invalid_field", "event_time"),
        (b'{"event_type": NaN}', "invalid_json", ""),
        (b'{"event_type": "a", "n": NaN}', "invalid_json", ""),
        (b'{"event_type": "\xff"}', "invalid_json", ""),
        (b'{"event_type": "a", "skipped": "\xff"}', "invalid_json", ""),
        (b'{"event_type": "a", "skipped": ' + DEEP + b"}", "invalid_json", ""),
        (DEEP, "invalid_json", ""),
    ],
)
def test_what_is_no_event_says_why_and_where(line: bytes, reason: str, field: str) -> None:
    head = decode_head(line)
    assert isinstance(head, BadEvent)
    assert (head.reason, head.field) == (reason, field)
    assert head.message


def test_every_dialect_s_insert_id_is_found() -> None:
    for event in ({"insert_id": "i"}, {"$insert_id": "i"}, {"uuid": "i"}):
        head = decode_head(raw(**event))
        assert isinstance(head, Head)
        assert head.unique_id == "i"


def test_the_uuid_of_an_export_row_is_not_its_insert_id() -> None:
    head = decode_head(raw(uuid="u", event_time="2024-05-14 09:00:00"))
    assert isinstance(head, Head)
    assert head.unique_id is None


@pytest.mark.parametrize(
    ("head", "reason", "field"),
    [
        (Head(user_id="user-1"), "missing_field", "event_type"),
        (Head("Bought"), "missing_field", "user_id"),
        (Head("Bought", user_id="", device_id=""), "missing_field", "user_id"),
        (Head("Bought", user_id="abcd"), "invalid_id", "user_id"),
        (Head("Bought", device_id="abcd"), "invalid_id", "device_id"),
        (Head("Bought", user_id="Undefined"), "invalid_id", "user_id"),
    ],
)
def test_what_amplitude_refuses_is_refused(head: Head, reason: str, field: str) -> None:
    problem = check_head(head)
    assert problem is not None
    assert (problem.reason, problem.field) == (reason, field)


def test_a_group_identify_needs_neither_user_nor_device() -> None:
    assert check_head(Head("$groupidentify")) is None


# --- whole events -----------------------------------------------------------------------


def test_export_names_become_http_names_unless_those_are_there() -> None:
    event = decode_event(raw(**{"$insert_id": "i", "ip_address": "1.2.3.4", "ip": "5.6.7.8"}))
    assert event.fields["insert_id"] == "i"
    assert event.fields["ip"] == "5.6.7.8"


@pytest.mark.parametrize("properties", [None, [], "x", 5])
def test_properties_that_are_no_object_are_none(properties: Any) -> None:
    event = decode_event(raw(event_properties=properties, user_properties=properties))
    assert (event.event_properties, event.user_properties) == ({}, {})


@pytest.mark.parametrize(
    "line", [b"", b"[]", b'{"a": "\xff"}', b'{"a": 1e999}', DEEP, raw(time="x"), raw(time=True)]
)
def test_what_cannot_be_decoded_raises_one_kind_of_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_event(line)


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        (1_606_211_995_977, 1_606_211_995_977),
        (1_606_211_995_977.0, 1_606_211_995_977),
        ("2020-11-24 09:59:55.977000", 1_606_211_995_977),
        ("2020-11-24T09:59:55.977Z", 1_606_211_995_977),
        ("2020-11-24T11:59:55.977+02:00", 1_606_211_995_977),
        ("2020-11-24 09:59:55", 1_606_211_995_000),
        ("0001-01-01T00:00:00+23:59", -62_135_683_140_000),
    ],
)
def test_a_time_is_read_in_every_dialect(written: Any, ms: int) -> None:
    assert parse_time(written) == ms


@pytest.mark.parametrize("written", [None, True, 1.5, "", "soon", [], {}])
def test_what_is_no_time_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(written)


# --- uploads ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error", "missing_field"),
    [
        (b" \n", "Missing request body", None),
        (b"not json", "Invalid JSON request body", ""),
        (b"[]", "Invalid JSON request body", ""),
        (b'{"api_key": "k", "events": [NaN]}', "Invalid JSON request body", ""),
        (b'{"api_key": "k", "events": [' + DEEP + b"]}", "Invalid JSON request body", ""),
        (b'{"api_key": "\xff", "events": [{}]}', "Invalid JSON request body", ""),
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
        raw(user_id=5),
        raw(event_type=None),
        raw(user_id="abcd"),
        raw(time="today"),
        raw(user_id=None),
        raw(),
        raw(user_id=6),
        b"5",
        raw(device_id="d"),
    ]
    assert refusal(events) == {
        "code": 400,
        "error": "Request missing required field",
        "events_with_invalid_fields": {"user_id": [1, 7], "time": [4], "event": [8]},
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


# --- recorded requests ------------------------------------------------------------------


def test_what_the_python_sdk_sends_is_taken_whole() -> None:
    path = RECORDED / "amplitude-python-001-ok.json"
    if not path.exists():
        pytest.skip("no recorded requests here")
    recorded = json.loads(path.read_bytes())
    upload = decode_upload(base64.b64decode(recorded["raw_body_base64"]))
    assert isinstance(upload, Upload)
    assert upload.options is not None
    assert upload.options.min_id_length == 1
    decoded = decode_events(upload.events, 1)  # type: ignore[arg-type]
    assert not isinstance(decoded, BadUpload), decoded
    sent = recorded["body_json"]["events"]
    assert [head.event_type for head in decoded[0]] == [event["event_type"] for event in sent]
    assert [decode_event(one).fields for one in decoded[1]] == sent


@pytest.mark.parametrize(
    ("cut", "mended"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\uDE00 and \ud83d\ude00"', rb'"\ufffd and \ud83d\ude00"'),
        (rb'"\\ud83d stays, it is a backslash"', rb'"\\ud83d stays, it is a backslash"'),
        (rb'"\ud83d\ud83d\ude00\n"', rb'"\ufffd\ud83d\ude00\n"'),
    ],
)
def test_half_a_surrogate_pair_is_mended_and_nothing_else(cut: bytes, mended: bytes) -> None:
    assert amplitude.mend_surrogates(cut) == mended


def test_half_a_surrogate_pair_costs_no_event_of_its_upload() -> None:
    body = rb'{"api_key": "k", "events": [{"event_type": "a\ud83d", "user_id": "mira-okafor"}]}'
    upload = amplitude.decode_upload(body)
    assert isinstance(upload, amplitude.Upload)
    assert isinstance(upload.events, list)
    heads, _ = amplitude.decode_events(upload.events)
    assert [head.event_type for head in heads] == ["a\N{REPLACEMENT CHARACTER}"]
