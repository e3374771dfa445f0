"""What the HTTP source hands over for relays, seen where a relay has sent it on."""

from __future__ import annotations

import gzip
import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.server import serve_amplitude
from support.serving import serving

EVENT = {"event_type": "Viewed", "user_id": "mira-okafor", "ip": "$remote", "insert_id": "1"}
BODY = json.dumps({"api_key": "k", "events": [EVENT]}).encode()


async def relayed(
    folder: Path,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    method: str = "POST",
    **http: str,
) -> LocalAmplitude:
    """Make a request to the source; return the Amplitude that a relay has sent it on to."""
    amplitude = LocalAmplitude()
    async with (
        serve_amplitude(amplitude) as url,
        serving(folder, "*", relay=url, **http) as (source, engine),
        aiohttp.ClientSession() as session,
    ):
        asked = URL(f"http://{source.address}{path}", encoded=True)
        async with session.request(method, asked, data=body or None, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        await engine.relayed()
    return amplitude


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("10.0.0.1, 198.51.100.7", "198.51.100.7"),
        ("2001:DB8::1", "2001:db8::1"),
        ("unknown", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_remote_becomes_the_address_in_the_trusted_header(
    tmp_path: Path, said: str, address: str
) -> None:
    headers = {"X-Real-Ip": said, "Content-Type": "application/json"}
    amplitude = await relayed(tmp_path, "/2/httpapi", BODY, headers, ip_header="X-Real-IP")
    assert amplitude.events[0].event == EVENT | {"ip": address}


async def test_a_header_that_nobody_said_to_trust_is_not_believed(tmp_path: Path) -> None:
    headers = {"X-Real-Ip": "198.51.100.7", "X-Forwarded-For": "198.51.100.8"}
    amplitude = await relayed(tmp_path, "/batch", BODY, headers)
    assert amplitude.events[0].event["ip"] == "127.0.0.1"


async def test_a_packed_body_goes_on_unpacked(tmp_path: Path) -> None:
    body = BODY.replace(b"$remote", b"198.51.100.9")
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    amplitude = await relayed(tmp_path, "/2/httpapi", gzip.compress(body), headers)
    assert amplitude.journal[0].body == body


async def test_forms_go_on_as_they_came(tmp_path: Path) -> None:
    identification = json.dumps({"user_id": "mira-okafor", "user_properties": {"plan": "ü & =;"}})
    body = urllib.parse.urlencode({"api_key": "k", "identification": identification}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    amplitude = await relayed(tmp_path, "/identify", body, headers)
    assert amplitude.journal[0].body == body
    assert amplitude.events[0].event["user_properties"] == {"plan": "ü & =;"}


async def test_a_query_goes_on_with_its_path(tmp_path: Path) -> None:
    groups = json.dumps({"group_type": "company", "group_value": "a/b", "group_properties": {}})
    query = urllib.parse.urlencode({"api_key": "k", "identification": groups})
    amplitude = await relayed(tmp_path, f"/groupidentify?{query}", b"", {}, method="GET")
    [entry] = amplitude.journal
    assert (entry.method, entry.path) == ("GET", f"/groupidentify?{query}")
    assert amplitude.group_identifies == [json.loads(groups)]


async def test_amplitudes_own_webhook_stream_does_not_go_round(tmp_path: Path) -> None:
    body = json.dumps(EVENT | {"$insert_id": "1"}).encode()
    amplitude = await relayed(tmp_path, "/webhook?api_key=k", body, {})
    assert amplitude.journal == []
