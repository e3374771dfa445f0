"""Reading and checking the uploads to a local Amplitude.

Written anew, not with ``transports.uploads``: the relay is tested against it.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from amplitude_intercom.transports.amplitude_times import parse_time
from amplitude_intercom.transports.intercom import Request

MAX_BYTES: Final = {"/2/httpapi": 1 << 20, "/batch": 20 << 20}
OTHER_BYTES: Final = 1 << 20
REFUSED_IDS: Final = frozenset(
    "anonymous,nil,none,null,n/a,na,undefined,unknown,,{},lmy47d,0,-1,"
    "00000000-0000-0000-0000-000000000000".split(",")
)
"""Ids that are refused (HTTP V2 page)."""

MIN_ID_LENGTH: Final = 5


class AmplitudeRefusal(Exception):
    """The refusal of a request, in Amplitude's words."""

    def __init__(self, code: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.code = code
        self.body = {"code": code, "error": error, **more}


def device_of(event: Mapping[str, Any]) -> str:
    """Return the device of an event, or its user where it names none."""
    return str(event.get("device_id") or f"user {event.get('user_id')}")


LEAST_SKEW_MS: Final = 60_000
"""A smaller difference of clocks is left alone (Export API page, ``event_time``)."""


def clock_skew_ms(more: Mapping[str, Any], at_s: float) -> int:
    """Return the milliseconds by which a client's clock is behind, or 0 for few."""
    sent = more.get("client_upload_time") or more.get("upload_time")
    if not sent:
        return 0
    skew_ms = int(at_s * 1000) - parse_time(int(sent) if str(sent).isdecimal() else sent)
    return skew_ms if abs(skew_ms) >= LEAST_SKEW_MS else 0


def time_ms_of(event: Mapping[str, Any], at_s: float, skew_ms: int) -> int:
    """Return the time of an event, corrected by the skew, or the time of its arrival."""
    written = event.get("time") or event.get("timestamp")
    return int(at_s * 1000) if written is None else int(written) + skew_ms


def unpacked(body: bytes, encoding: str) -> bytes:
    """Return a body, unpacked.

    Raises:
        AmplitudeRefusal: it is not gzip.
    """
    if encoding != "gzip":
        return body
    try:
        return gzip.decompress(body)
    except (OSError, EOFError):
        raise AmplitudeRefusal(400, "Invalid JSON request body") from None


def begins_with(body: bytes, text: bytes) -> bool:
    """Whether the first byte of a body, blanks apart, is this one."""
    return body.lstrip()[:1] == text


_Body = tuple[str, list[dict[str, Any]], dict[str, Any]]
"""The API key, the events, and the other fields."""


def read_json(body: bytes) -> _Body:
    """Return the content of a JSON body.

    Raises:
        AmplitudeRefusal: HTTP V2 does not take it.
    """
    if not body:
        raise AmplitudeRefusal(400, "Missing request body")
    found = _loaded(body)
    if not isinstance(found, dict):
        raise AmplitudeRefusal(400, "Invalid JSON request body")
    for field, kind in (("api_key", str), ("events", list)):
        if not isinstance(found.get(field), kind):
            raise AmplitudeRefusal(400, "Request missing required field", missing_field=field)
    events = found["events"]
    if not all(isinstance(event, dict) for event in events):
        raise AmplitudeRefusal(400, "Invalid event JSON")
    return found["api_key"], events, found


def read_form(path: str, request: Request, headers: Mapping[str, str], body: bytes) -> _Body:
    """Return the content of a form.

    Raises:
        AmplitudeRefusal: the endpoint does not take it.
    """
    query = urlsplit(request.path).query
    text = query if request.method == "GET" else body.decode("utf-8", "replace")
    if "json" in headers.get("content-type", ""):
        form = _loaded(body)
    else:
        form = dict(parse_qsl(text, keep_blank_values=True))
    names = {
        "/": ("client", "e"),
        "/httpapi": ("api_key", "event"),
        "/identify": ("api_key", "identification"),
        "/groupidentify": ("api_key", "identification"),
    }.get(path)
    if names is None:
        raise AmplitudeRefusal(404, "Invalid request path")
    key, content = (form.get(name) for name in names)
    if not key or content is None:
        raise AmplitudeRefusal(400, "missing_event")
    found = _loaded(content.encode()) if isinstance(content, str) else content
    events = found if isinstance(found, list) else [found]
    if not all(isinstance(event, dict) for event in events):
        raise AmplitudeRefusal(400, "invalid_event_field")
    if path == "/identify":
        events = [{"event_type": "$identify", **event} for event in events]
    return str(key), events, form


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise AmplitudeRefusal(400, "Invalid JSON request body") from None


def check_events(events: Sequence[Mapping[str, Any]], min_id_length: int) -> None:
    """Refuse events if one is bad, and list all bad ones.

    Raises:
        AmplitudeRefusal: one is bad.
    """
    missing: defaultdict[str, list[int]] = defaultdict(list)
    invalid: defaultdict[str, list[int]] = defaultdict(list)
    short: defaultdict[str, list[int]] = defaultdict(list)
    for n, event in enumerate(events):
        ids = {name: event[name] for name in ("user_id", "device_id") if event.get(name)}
        if not event.get("event_type"):
            missing["event_type"].append(n)
        if not ids and event.get("event_type") != "$groupidentify":
            missing["user_id"].append(n)
        for name, value in ids.items():
            if str(value).lower() in REFUSED_IDS:
                invalid[name].append(n)
            elif len(str(value)) < min_id_length:
                short[name].append(n)
        if not isinstance(event.get("time", 0), int | float):
            invalid["time"].append(n)
    lists = {
        "events_with_missing_fields": dict(missing),
        "events_with_invalid_fields": dict(invalid),
        "events_with_invalid_id_lengths": dict(short),
    }
    if missing or invalid or short:
        said = {name: found for name, found in lists.items() if found}
        raise AmplitudeRefusal(400, "Invalid field values on some events", **said)


def check_silenced(events: Sequence[Mapping[str, Any]], silenced: Collection[str]) -> None:
    """Refuse events of silenced devices, by name.

    Raises:
        AmplitudeRefusal: there are such events.
    """
    found = [n for n, event in enumerate(events) if device_of(event) in silenced]
    if found:
        names = sorted({device_of(events[n]) for n in found})
        lists = {"silenced_devices": names, "silenced_events": found}
        raise AmplitudeRefusal(400, "Events silenced for device_id", eps_threshold=1_000, **lists)
