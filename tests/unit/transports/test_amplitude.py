"""Amplitude's events: dialects, and what is wrong with one."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplitude_intercom.transports import mending
from amplitude_intercom.transports.amplitude import BadEvent, Head, check_head
from amplitude_intercom.transports.amplitude_events import content_decoder, decode_event
from amplitude_intercom.transports.amplitude_heads import decode_head, read_head
from amplitude_intercom.transports.amplitude_times import parse_time

DEEP = b"[" * 10_000 + b"]" * 10_000
GOOD = {"event_type": "Bought", "user_id": "user-1"}


def raw(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


# --- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        (b"", "invalid_json", ""),
        (b"{", "invalid_json", ""),
        (b"[1]", "not_an_object", ""),
        (b"null", "not_an_object", ""),
        (raw(user_id=5.0), "invalid_field", "user_id"),
        (raw(user_id=True), "invalid_field", "user_id"),
        (raw(user_id=5, device_id=[]), "invalid_field", "device_id"),
        (raw(event_type=["a"]), "invalid_field", "event_type"),
        (raw(event_time={}), "invalid_field", "event_time"),
        (b'{"event_type": NaN}', "invalid_json", ""),
        (b'{"event_type": "a", "n": NaN}', "invalid_json", ""),
        (b'{"event_type": "\xff"}', "invalid_json", "event_type"),
        (b'{"event_type": "a", "skipped": "\xff"}', "invalid_json", ""),
        (b'{"event_type": "a", "skipped": ' + DEEP + b"}", "invalid_json", ""),
        (DEEP, "not_an_object", ""),
    ],
)
def test_an_invalid_event_says_why_and_where(line: bytes, reason: str, field: str) -> None:
    head = decode_head(line)
    assert isinstance(head, BadEvent)
    assert (head.reason, head.field) == (reason, field)
    assert head.message


def test_every_dialect_s_insert_id_is_found() -> None:
    for event in ({"insert_id": "i"}, {"$insert_id": "i"}, {"uuid": "i"}):
        head = decode_head(raw(**event))
        assert isinstance(head, Head)
        assert head.unique_id == "i"


def test_the_uuid_of_an_export_row_counts_where_it_has_no_insert_id() -> None:
    row = {"uuid": "u", "event_time": "2024-05-14 09:00:00"}
    for more, expected in (({}, "u"), ({"$insert_id": "i"}, "i"), ({"$insert_id": None}, "u")):
        head = decode_head(raw(**row, **more))
        assert isinstance(head, Head)
        assert head.unique_id == expected


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
def test_an_event_that_amplitude_refuses_is_refused(head: Head, reason: str, field: str) -> None:
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
    "line", [b"", b"[]", b'{"a": "\xff"}', b'{"a": nan}', DEEP, raw(time="x"), raw(time=True)]
)
def test_undecodable_bytes_raise_one_kind_of_error(line: bytes) -> None:
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
        ("1712123100345", 1_712_123_100_345),
        (" 1712123100345 ", 1_712_123_100_345),
        ("1712123100", 1_712_123_100_000),
        (1_712_123_100, 1_712_123_100_000),
        (1_712_123_100_345_678, 1_712_123_100_345),
        ("20240403", 1_712_102_400_000),
        ("1971-01-01T00:00:00Z", 31_536_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2020-11-24 09:59:55.977000 UTC", 1_606_211_995_977),
        ("2020:11:24 09:59:55.977000", 1_606_211_995_977),
        ("2016-12-31 23:59:60.500", 1_483_228_800_500),
    ],
)
def test_a_time_is_read_in_every_dialect(written: Any, ms: int) -> None:
    assert parse_time(written) == ms


@pytest.mark.parametrize(
    "written",
    [None, True, 1.5, "", "soon", [], {}, "1" * 21, "9" * 5_000, 10**20, 1e300],
)
def test_an_invalid_time_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(written)


def test_a_number_of_5_000_digits_is_no_time() -> None:
    with pytest.raises(ValueError, match="too many digits"):
        parse_time(10**4_999)


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
    assert mending.mend_surrogates(cut) == mended


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        (b'{"a":NaN}', b'{"a":null}'),
        (b"[Infinity, -Infinity,NaN]", b"[null, null,null]"),
        (b"[1e400,-1E+400,1.5e308,-2,1e-400]", b"[null,null,1.5e308,-2,1e-400]"),
        (b"[" + b"1" * 400 + b".5]", b"[null]"),
        (b"[" + b"1" * 5_000 + b"]", b"[null]"),
        (b"[" + b"1" * 300 + b"]", b"[" + b"1" * 300 + b"]"),
        (rb'{"NaN":"1e400 \" NaN","b":NaN}', rb'{"NaN":"1e400 \" NaN","b":null}'),
        (rb'["\\",NaN,"\ud83d"]', rb'["\\",null,"\ufffd"]'),
        (b'["NaN', b'["NaN'),
        (b"[N, I, -, nope]", b"[N, I, -, nope]"),
    ],
)
def test_an_invalid_number_becomes_null_and_texts_are_left_alone(
    written: bytes, mended: bytes
) -> None:
    assert mending.mend(written) == mended


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20))
def test_every_output_of_pythons_json_can_be_mended(value: Any) -> None:
    def without_what_is_no_number(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(without_what_is_no_number, value))
        return None if isinstance(value, float) and not math.isfinite(value) else value

    mended = mending.mend(json.dumps(value).encode())
    assert msgspec.json.decode(mended) == without_what_is_no_number(value)


@pytest.mark.parametrize(
    "hostile", [b"NaN,", b"1e400,", b"-", b"N", b'"\\', b'"a\\"', b"1", b"0,", rb"\ud83d", b"1-"]
)
def test_mending_takes_time_in_proportion(hostile: bytes) -> None:
    def taken_s(times: int) -> float:
        started = time.process_time()
        mending.mend(hostile * times)
        return time.process_time() - started

    assert min(taken_s(200_000) for _ in range(3)) < 100 * max(taken_s(20_000), 0.001)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e400", b"1" * 5_000])
def test_a_value_that_is_no_number_costs_itself_alone(number: bytes) -> None:
    event = b'{"event_type":"a","user_id":"user-1","event_properties":{"n":1,"x":%b}}' % number
    head, mended = read_head(event)
    assert isinstance(head, Head)
    assert (head.event_type, head.user_id) == ("a", "user-1")
    for line in (event, mended):
        assert decode_event(line).event_properties == {"n": 1, "x": None}
        assert content_decoder()(line).event_properties == {"n": 1, "x": None}


# --- ids and properties -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["user_id", "device_id", "insert_id", "$insert_id", "uuid"])
def test_an_id_that_is_a_whole_number_is_its_digits(name: str) -> None:
    line = raw(**{name: 2_016_192_872})
    head = decode_head(line)
    assert isinstance(head, Head)
    found = head.unique_id if "insert" in name or name == "uuid" else getattr(head, name)
    assert found == "2016192872"
    fields = decode_event(line).fields
    assert fields[name if name.endswith("e_id") or name == "user_id" else "insert_id"] == found


@pytest.mark.parametrize(
    "name", ["event_properties", "user_properties", "groups", "group_properties"]
)
@pytest.mark.parametrize("value", ["{}", [], [{}], 5, True])
def test_properties_of_an_event_are_an_object_or_null(name: str, value: Any) -> None:
    head = decode_head(raw(**{name: value}))
    assert isinstance(head, BadEvent)
    assert (head.reason, head.field) == ("invalid_field", name)
    assert head.message == f"{name} must be an object"
    for good in (None, {}, {"a": {"b": [1]}}):
        assert isinstance(decode_head(raw(**{name: good})), Head)


# --- one normal form --------------------------------------------------------------------

SPELLINGS: list[dict[str, Any]] = [
    {
        "time": 1_606_211_995_977,
        "insert_id": "i",
        "app_version": "1.0",
        "ip": "192.0.2.1",
        "carrier": "c",
        "library": "amplitude-js/8.21.10",
        "session_id": None,
    },
    {
        "event_time": "2020-11-24 09:59:55.977000",
        "$insert_id": "i",
        "version_name": "1.0",
        "ip_address": "192.0.2.1",
        "device_carrier": "c",
        "library": "amplitude-js/8.21.10",
        "session_id": -1,
    },
    {
        "timestamp": 1_606_211_995_977,
        "uuid": "i",
        "version_name": "1.0",
        "ip_address": "192.0.2.1",
        "carrier": "c",
        "library": {"name": "amplitude-js", "version": "8.21.10"},
        "session_id": -1,
    },
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_dialect_ends_in_the_spelling_of_http_v2(spelling: dict[str, Any]) -> None:
    event = decode_event(raw(**spelling))
    event.fields.pop("uuid", None)
    assert event.fields == GOOD | SPELLINGS[0]
    assert event.time_ms == SPELLINGS[0]["time"]


def test_the_uuid_of_an_export_row_does_not_become_its_insert_id() -> None:
    event = decode_event(raw(uuid="u", event_time="2024-05-14 09:00:00"))
    assert "insert_id" not in event.fields


@given(
    st.datetimes(dt.datetime.fromisoformat("1900-01-01"), dt.datetime.fromisoformat("2200-01-01")),
    st.integers(0, 6),
    st.sampled_from("T "),
    st.sampled_from(["", "Z", "+00:00", "-05:30", "+14:00"]),
)
def test_a_time_is_read_in_every_way_it_is_written(
    moment: dt.datetime, digits: int, separator: str, zone: str
) -> None:
    fraction = f".{moment.microsecond:06}"[: digits + 1] if digits else ""
    written = moment.strftime(f"%Y-%m-%d{separator}%H:%M:%S") + fraction + zone
    offset = dt.timedelta()
    if ":" in zone:
        hours, minutes = int(zone[:3]), int(zone[0] + zone[4:])
        offset = dt.timedelta(hours=hours, minutes=minutes)
    kept_us = moment.microsecond // 10 ** (6 - digits) * 10 ** (6 - digits)
    utc = moment.replace(microsecond=kept_us) - offset
    since_1970 = utc - dt.datetime.fromisoformat("1970-01-01")
    assert parse_time(written) == since_1970 // dt.timedelta(milliseconds=1)
