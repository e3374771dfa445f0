"""Requests go on byte for byte, but for what would be wrong then."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest

from amplitude_intercom.transports import uploads
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.forms import legacy_checksum, read_form
from amplitude_intercom.transports.originals import FORM, as_sent, events_of, key_of, single_events
from amplitude_intercom.transports.uploads import Upload

JSON = "application/json; charset=UTF-8"
PEER = "203.0.113.7"


def of_json(body: bytes, path: str = "/2/httpapi") -> Original:
    return Original("POST", path, "", JSON, body, PEER)


def of_form(path: str = "/identify", **fields: str) -> Original:
    return Original("POST", path, "", FORM, urllib.parse.urlencode(fields).encode(), PEER)


ODD = b'{ "events" : [ {"event_type":"A", "n":1.0 } ,{"n":2e0}], "api_key":"k","more":[1, 2] }'


def test_a_request_goes_on_as_it_came() -> None:
    original = of_json(ODD)
    assert as_sent(original) is original
    assert as_sent(original, [0, 1], waited_ms=9_999) is original


def test_of_some_events_each_keeps_its_bytes_and_so_does_all_beside_them() -> None:
    sent = as_sent(of_json(ODD), [1])
    assert sent.body == b'{"events":[{"n":2e0}],"api_key":"k","more":[1, 2]}'
    assert (sent.method, sent.path, sent.content_type) == ("POST", "/2/httpapi", JSON)


@pytest.mark.parametrize(
    ("event", "address"),
    [
        ({"ip": "$remote"}, PEER),
        ({"ip": "198.51.100.1"}, "198.51.100.1"),
        ({"ip": None, "note": "$remote"}, None),
        ({"event_properties": {"ip": "$remote"}}, "(none)"),
    ],
)
def test_remote_becomes_the_address_of_the_client(event: dict[str, Any], address: Any) -> None:
    body = json.dumps({"api_key": "k", "events": [event, {"n": 1}]}).encode()
    sent = json.loads(as_sent(of_json(body)).body)
    assert sent["events"][0].get("ip", "(none)") == address
    assert {**sent["events"][0], "ip": 0} == {**event, "ip": 0}
    assert sent["events"][1] == {"n": 1}


def test_remote_stays_where_no_address_is_known() -> None:
    body = b'{"api_key":"k","events":[{"ip":"$remote"}]}'
    assert as_sent(Original("POST", "/batch", "", JSON, body, "")).body == body


@pytest.mark.parametrize(
    ("written", "moved"),
    [
        ("2026-11-28T08:00:00.250Z", "2026-11-28T08:10:00.250Z"),
        (1_764_316_800_000, 1_764_317_400_000),
        ("1764316800000", "1764317400000"),
        ("0001-02-03T04:05:06", "0001-02-03T04:15:06.000Z"),
    ],
)
def test_the_time_of_sending_moves_by_as_long_as_it_waited(written: Any, moved: Any) -> None:
    body = json.dumps({"api_key": "k", "events": [{}], "client_upload_time": written}).encode()
    sent = as_sent(of_json(body), waited_ms=600_000)
    assert json.loads(sent.body)["client_upload_time"] == moved


@pytest.mark.parametrize("written", [None, True, [], "soon", "9" * 40, -1e300, {"a": 1}])
def test_a_time_of_sending_that_is_none_stays(written: Any) -> None:
    body = json.dumps({"api_key": "k", "events": [{}], "client_upload_time": written}).encode()
    assert as_sent(of_json(body), waited_ms=600_000).body == body


def test_json_to_a_bare_host_goes_to_http_v2() -> None:
    sent = as_sent(of_json(ODD, path="/"))
    assert (sent.path, sent.body) == ("/2/httpapi", ODD)


def test_one_event_has_its_clients_address() -> None:
    body = b'{"api_key":"k","events":[{"ip":"$remote"}]}'
    [(alone, _)] = single_events(of_json(body), [0])
    assert json.loads(alone)["events"] == [{"ip": PEER}]


def test_large_fields_beside_the_events_are_not_repeated_for_each() -> None:
    junk = "x" * 10_000
    body = json.dumps({"api_key": "k", "junk": junk, "events": [{"n": n} for n in range(50)]})
    found = single_events(of_json(body.encode()), range(50))
    assert sum(len(alone) for alone, _ in found) < 50 * 100
    form = of_form(api_key="k", junk=junk, identification='[{"n":1},{"n":2}]')
    [(alone, _)] = single_events(form, [1])
    assert read_form(alone, FORM) == {"api_key": "k", "identification": '[{"n":2}]'}


def test_the_old_form_gets_its_time_moved_and_its_checksum_anew() -> None:
    events = [{"event_type": "A", "timestamp": 1}, {"event_type": "B"}]
    fields = {"v": "2", "client": "k", "e": json.dumps(events), "upload_time": "1764316800000"}
    signed = fields | {"checksum": legacy_checksum(fields)}
    sent = as_sent(of_form("/", **signed), waited_ms=60_000)
    form = read_form(sent.body, sent.content_type)
    assert form["upload_time"] == "1764316860000"
    assert json.loads(form["e"]) == events
    upload = uploads.decode_legacy_form(form)
    assert isinstance(upload, Upload)


def test_a_form_of_one_object_and_one_of_a_list_keep_their_shapes() -> None:
    alone = of_form(api_key="k", identification='{"user_id":"mira"}')
    several = of_form(api_key="k", identification='[{"user_id":"a"},{"user_id":"b"}]')
    assert as_sent(alone) is alone
    assert as_sent(several) is several
    sent = as_sent(several, [1])
    assert read_form(sent.body, FORM) == {"api_key": "k", "identification": '[{"user_id":"b"}]'}


def test_a_query_goes_on_as_a_form_where_it_changes() -> None:
    query = urllib.parse.urlencode({"api_key": "k", "identification": '[{"a":1},{"b":2}]'})
    original = Original("GET", "/identify", query, "", b"", PEER)
    assert as_sent(original).target == f"/identify?{query}"
    sent = as_sent(original, [0])
    assert (sent.method, sent.target, sent.content_type) == ("POST", "/identify", FORM)
    assert read_form(sent.body, FORM)["identification"] == '[{"a":1}]'


def test_json_that_had_to_be_mended_goes_on_mended() -> None:
    sent = as_sent(of_json(b'{"api_key":"k","events":[{"n":NaN,"t":"\\ud83d"}]}'))
    assert json.loads(sent.body)["events"] == [{"n": None, "t": "\N{REPLACEMENT CHARACTER}"}]


@pytest.mark.parametrize(
    "original",
    [
        of_json(b'{"api_key":"k","events":[{"n":1},{"n":2}],"options":{"min_id_length":1}}'),
        of_json(b'{"api_key":"k","events":[{"n":1},{"n":2}]}', path="/"),
        of_form(api_key="k", identification='[{"n":1},{"n":2}]'),
        of_form("/httpapi", api_key="k", event='[{"n":1},{"n":2}]'),
        of_form("/", client="k", e='[{"n":1},{"n":2}]', v="2"),
    ],
    ids=lambda original: original.path,
)
def test_one_event_is_a_request_of_its_own(original: Original) -> None:
    [(body, event)] = single_events(original, [1])
    assert json.loads(event) == {"n": 2}
    kind = JSON if body.startswith(b"{") else FORM
    alone = Original("POST", original.path, "", kind, body)
    assert [json.loads(event) for event in events_of(alone)] == [{"n": 2}]
    assert key_of(alone) == key_of(original) == "k"


ODD_ONES = [of_json(b"[]"), of_json(b'{"api_key":"k"}'), of_form(api_key="k"), of_json(b"")]


@pytest.mark.parametrize("original", ODD_ONES)
def test_a_body_that_cannot_be_taken_apart_goes_whole_or_not_at_all(original: Original) -> None:
    assert as_sent(original) is original
    with pytest.raises(ValueError, match="not a"):
        as_sent(original, [0])


def test_of_equal_names_in_a_query_the_first_counts() -> None:
    query = "api_key=k&identification=%5B%7B%22n%22:1%7D%5D&identification=%7B%7D&api_key=other"
    original = Original("GET", "/identify", query, "", b"", PEER)
    assert (key_of(original), events_of(original)) == ("k", [b'{"n":1}'])
