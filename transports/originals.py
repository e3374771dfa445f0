"""Requests to Amplitude's ingestion endpoints as they came, and as they go on from here.

A request goes on byte for byte, except where that would be wrong:

- an event's ``ip`` with the value ``$remote`` means the sender's address. It gets the client's
  address, because from here on this program is the sender;
- Amplitude compares the client's time of sending (``client_upload_time``, ``upload_time``) with the
  time of arrival, and corrects event times by a difference of over a minute (Export API page,
  ``event_time``). So this time is moved by as long as the request has waited here;
- if other events of the request are delivered already, or wait, only some of it goes: the bytes of
  these events stay the same;
- an SDK that was given a bare host posts JSON to ``/``, the path of the old form at Amplitude: it
  goes to HTTP V2;
- JSON that only ``mending.mend`` made readable goes on mended: Amplitude would refuse it.
"""

from __future__ import annotations

import datetime as dt
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.transports.amplitude import BOM, fields_of
from amplitude_intercom.transports.amplitude_times import parse_time
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.forms import legacy_checksum, read_form
from amplitude_intercom.transports.mending import mend

LEAST_WAIT_MS: Final = 10_000
"""Least wait that moves the time of sending: Amplitude corrects nothing under a minute."""

REMOTE: Final = b'"$remote"'
FORM: Final = "application/x-www-form-urlencoded"
HTTP_V2: Final = "/2/httpapi"
JSON_PATHS: Final = (HTTP_V2, "/batch")
_FIELDS: Final = {"/": "e", "/httpapi": "event"}
"""The field with the events, by path; in other forms it is ``identification``."""


VIA: Final = "X-Amplitude-Intercom"
"""Header that marks a request sent on by this process, so that it does not go round in circles."""

THIS_PROCESS: Final = secrets.token_hex(8)

EVENT_FIELDS: Final = frozenset({"events", "e", "event", "identification"})
MOST_BESIDE: Final = 4_096
"""Characters beside the events of a request that each of its dead letters repeats."""


class _Json(msgspec.Struct):
    """A body of HTTP V2 or Batch with undecoded events. ``text``: all of it."""

    text: bytes
    fields: dict[str, Any]
    events: list[msgspec.Raw]


class _Form(msgspec.Struct):
    """A form, from body and query; ``is_list``: whether its events stand in an array."""

    fields: dict[str, Any]
    events: list[msgspec.Raw]
    name: str
    is_list: bool


_list = msgspec.json.Decoder(list[msgspec.Raw])


def events_of(original: Original) -> list[bytes]:
    """Return the events of a request.

    Raises:
        ValueError: no endpoint took such a request.
    """
    return [bytes(event) for event in _opened(original).events]


def key_of(original: Original) -> str:
    """Return a request's API key; empty where it has none.

    Raises:
        ValueError: no endpoint took such a request.
    """
    fields = _opened(original).fields
    key = fields.get("api_key") or fields.get("client") or ""
    return str(msgspec.json.decode(key)) if isinstance(key, msgspec.Raw) else str(key)


def as_sent(original: Original, only: Sequence[int] | None = None, waited_ms: int = 0) -> Original:
    """Return a request as it goes on, with some of its events by index, or all (None).

    ``waited_ms``: time since it was accepted.

    Raises:
        ValueError: it cannot be split, and only some of its events are to go.
    """
    try:
        opened = _opened(original)
    except ValueError:
        if only is None:  # it goes on unchanged, so it need not be decoded
            return original
        raise
    if original.path == "/" and isinstance(opened, _Json):
        original = msgspec.structs.replace(original, path=HTTP_V2)
    events: list[Any] = [*opened.events] if only is None else [opened.events[i] for i in only]
    is_same = len(events) == len(opened.events)
    if b"remote" in original.body or "remote" in original.query:
        known = [_with_address(event, original.peer) for event in events]
        is_same = is_same and all(new is old for new, old in zip(known, events, strict=True))
        events = known
    moved = _moved(opened.fields, waited_ms) if waited_ms >= LEAST_WAIT_MS else {}
    if isinstance(opened, _Form):
        return original if is_same and not moved else _form_of(original, opened, events, moved)
    if is_same and not moved:
        is_mended = opened.text is not original.body
        return msgspec.structs.replace(original, body=opened.text) if is_mended else original
    body = msgspec.json.encode({**opened.fields, **moved, "events": events})
    return msgspec.structs.replace(original, body=body)


def single_events(original: Original, indexes: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """Return for each of some events a body with that event only, and the event.

    The body suffices to send the event again, with the client's address for ``$remote``.

    Raises:
        ValueError: no endpoint took such a request.
    """
    opened = _opened(original)
    opened.fields = _small(opened.fields)
    found = []
    for index in indexes:
        event = _with_address(opened.events[index], original.peer)
        if isinstance(opened, _Form):
            body = _form_of(original, opened, [event], {}).body
        else:
            body = msgspec.json.encode({**opened.fields, "events": [event]})
        found.append((body, bytes(event)))
    return found


def _small(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that go with each single event; only the key where they are large.

    Two thousand copies of large fields would take far more than the request did.
    """
    beside = {k: v for k, v in fields.items() if k not in EVENT_FIELDS}
    sizes = (len(memoryview(v)) if isinstance(v, msgspec.Raw) else len(v) for v in beside.values())
    if sum(sizes) <= MOST_BESIDE:
        return beside
    return {k: v for k, v in beside.items() if k in ("api_key", "client", "v")}


# --- taking it apart ----------------------------------------------------------------------


def is_json(original: Original) -> bool:
    """Whether a request is one of HTTP V2 or Batch, also from an SDK with a bare host."""
    if original.path == "/":
        return original.body.removeprefix(BOM).lstrip()[:1] == b"{"
    return original.path in JSON_PATHS


def _opened(original: Original) -> _Json | _Form:
    return (
        _open_json(original.body.removeprefix(BOM)) if is_json(original) else _open_form(original)
    )


def _open_json(text: bytes) -> _Json:
    fields = fields_of(text)
    if fields is None:
        text = mend(text)
        fields = fields_of(text)
    if fields is None or "events" not in fields:
        raise ValueError("not a body of HTTP V2")
    return _Json(text, fields, _events(fields["events"]))


def _open_form(original: Original) -> _Form:
    query: dict[str, str] = {}
    for name, value in urllib.parse.parse_qsl(original.query, keep_blank_values=True):
        query.setdefault(name, value)  # of equal names the first counts, as in the HTTP source
    fields = {**query, **read_form(original.body, original.content_type)}
    name = _FIELDS.get(original.path, "identification")
    text = fields.get(name, "").encode("utf-8", "replace").removeprefix(BOM).strip()
    is_list = text[:1] == b"["
    return _Form(fields, _events(text if is_list else b"[%b]" % text), name, is_list)


def _events(text: bytes | msgspec.Raw) -> list[msgspec.Raw]:
    found = _decoded(text)
    if found is None:
        found = _decoded(mend(bytes(text)))
    if not found:
        raise ValueError("not a list of events")
    return found


def _decoded(text: bytes | msgspec.Raw) -> list[msgspec.Raw] | None:
    try:
        return _list.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


# --- putting it together ------------------------------------------------------------------


def _with_address(event: Any, peer: str) -> Any:
    """Return an event with its client's address for ``$remote``; without that the same object."""
    if not peer or REMOTE not in bytes(event):
        return event
    fields = fields_of(event)
    if fields is None or bytes(fields.get("ip", b"")) != REMOTE:
        return event
    return msgspec.Raw(msgspec.json.encode({**fields, "ip": peer}))


def _form_of(
    original: Original, form: _Form, events: Sequence[Any], moved: Mapping[str, Any]
) -> Original:
    """Return a form with other events, urlencoded also where it was multipart or JSON."""
    text = msgspec.json.encode(events if form.is_list else events[0]).decode()
    fields = {**form.fields, **moved, form.name: text}
    if fields.get("checksum"):
        fields["checksum"] = legacy_checksum(fields)
    body = urllib.parse.urlencode(fields).encode()
    return Original("POST", original.path, "", FORM, body, original.peer)


def _moved(fields: Mapping[str, Any], waited_ms: int) -> dict[str, Any]:
    """Return the field of the client's time of sending, later by the wait; empty without one."""
    for name in ("client_upload_time", "upload_time"):
        written = _time_in(fields.get(name))
        if written is None:
            continue
        try:
            return {name: _like(written, parse_time(written) + waited_ms)}
        except (ValueError, OverflowError, OSError):  # no time, or one beyond the calendar
            continue
    return {}


def _time_in(field: Any) -> int | str | None:
    if not isinstance(field, msgspec.Raw):
        return field if isinstance(field, str) else None
    try:
        return msgspec.json.decode(field, type=int | str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _like(written: int | str, time_ms: int) -> int | str:
    """Return a time in the spelling of another one."""
    if isinstance(written, int):
        return time_ms
    if written.strip().isdecimal():
        return str(time_ms)
    moment = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
