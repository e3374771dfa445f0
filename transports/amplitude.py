"""Amplitude's wire: how its clients spell an event, what its servers check, what they answer.

Two steps, since most events are not wanted: ``decode_head`` reads the few fields that decide
whether an event is taken, ``decode_event`` the whole of it, in one normal form whatever dialect it
was written in (HTTP V2 and SDKs; Export files and webhooks; the old JavaScript SDK).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

MIN_ID_LENGTH: Final = 5
"""Shortest user or device id, unless ``options.min_id_length`` says otherwise (HTTP V2 page)."""

RESERVED_IDS: Final = frozenset(
    "|anonymous|nil|none|null|n/a|na|undefined|unknown|{}|lmy47d|0|-1"
    "|00000000-0000-0000-0000-000000000000".split("|")
)
"""Ids that Amplitude refuses, compared without case (HTTP V2 page, "Device and user ids")."""

RESERVED_TYPES: Final = frozenset(
    {
        "_all",
        "_identify",
        "[Amplitude] Start Session",
        "[Amplitude] End Session",
        "[Amplitude] Revenue",
        "[Amplitude] Revenue (Verified)",
        "[Amplitude] Revenue (Unverified)",
        "[Amplitude] Merged User",
    }
)
"""Event types that cannot be ingested or streamed (streaming and HTTP V2 pages)."""

IDENTIFY: Final = "$identify"
GROUP_IDENTIFY: Final = "$groupidentify"


class Head(msgspec.Struct, gc=False):
    """The fields of an event that intake needs; ids are None when null or missing."""

    event_type: str | None = None
    user_id: str | None = None
    device_id: str | None = None
    insert_id: str | None = None
    export_insert_id: str | None = msgspec.field(default=None, name="$insert_id")
    uuid: str | None = None
    event_time: str | int | None = None

    @property
    def unique_id(self) -> str | None:
        """The insert id, whichever dialect it was spelled in.

        The old JavaScript SDK calls it ``uuid``; an Export row has a ``uuid`` too, but that
        differs between two deliveries of one event, so it counts only where no Export time is.
        """
        if self.insert_id or self.export_insert_id:
            return self.insert_id or self.export_insert_id
        return self.uuid if self.event_time is None else None


class BadEvent(msgspec.Struct, frozen=True):
    """An event that cannot be taken: ``field`` is where, ``reason`` one of a closed set.

    Reasons: ``invalid_json``, ``not_an_object``, ``missing_field``, ``invalid_field``,
    ``invalid_id``, ``too_large``.
    """

    reason: str
    field: str
    message: str


_head = msgspec.json.Decoder(Head)


def decode_head(raw: bytes) -> Head | BadEvent:
    """Return the head of one event, or what is wrong with it. Never raises."""
    try:
        if not raw.isascii():
            raw.decode()  # the decoder does not look into what it skips
        return _head.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return _diagnose(raw, error)


def _diagnose(raw: bytes, error: Exception) -> BadEvent:
    """Say which field is wrong: slow, and only for what could not be decoded."""
    try:
        event = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as broken:
        return BadEvent("invalid_json", "", f"not JSON: {broken}")
    if not isinstance(event, dict):
        return BadEvent("not_an_object", "", f"an event is an object, this is {_kind(event)}")
    for name in ("event_type", "user_id", "device_id", "insert_id", "$insert_id", "uuid"):
        value = event.get(name)
        if value is not None and not isinstance(value, str):
            return BadEvent("invalid_field", name, f"{name} must be text, this is {_kind(value)}")
    return BadEvent("invalid_field", "event_time", f"{error}")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "null" if value is None else "a number")


def check_head(head: Head, min_id_length: int = MIN_ID_LENGTH) -> BadEvent | None:
    """Return what Amplitude's servers would refuse about an event's head, or None.

    A ``$groupidentify`` needs neither user nor device (Python and Node SDKs send none).
    """
    if not head.event_type:
        return BadEvent("missing_field", "event_type", "event_type is missing")
    if head.event_type == GROUP_IDENTIFY:
        return None
    if not head.user_id and not head.device_id:
        return BadEvent("missing_field", "user_id", "neither user_id nor device_id is there")
    return check_id("user_id", head.user_id, min_id_length) or check_id(
        "device_id", head.device_id, min_id_length
    )


def check_id(field: str, value: str | None, min_id_length: int) -> BadEvent | None:
    """Return what is wrong with a user or device id; empty and missing ones are absent."""
    if not value:
        return None
    if len(value) < min_id_length:
        return BadEvent("invalid_id", field, f"{field} is shorter than {min_id_length}")
    if value.lower() in RESERVED_IDS:
        return BadEvent("invalid_id", field, f"{field} has a value that is not accepted")
    return None


class Event(msgspec.Struct):
    """An event in normal form. ``fields`` is the whole of it, top-level names normalised."""

    event_type: str
    time_ms: int | None
    fields: dict[str, Any]

    @property
    def event_properties(self) -> dict[str, Any]:
        return _object(self.fields.get("event_properties"))

    @property
    def user_properties(self) -> dict[str, Any]:
        return _object(self.fields.get("user_properties"))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


NORMAL_NAMES: Final = {
    "$insert_id": "insert_id",
    "version_name": "app_version",
    "ip_address": "ip",
    "device_carrier": "carrier",
}
"""Export spelling → HTTP V2 spelling (Export API and HTTP V2 pages)."""


def decode_event(raw: bytes) -> Event:
    """Return a whole event in normal form.

    Raises:
        ValueError: not a JSON object, or its time cannot be read.
    """
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise ValueError(f"an event is an object, this is {_kind(decoded)}")
    for theirs, ours in NORMAL_NAMES.items():
        if theirs in decoded and decoded.get(ours) is None:
            decoded[ours] = decoded.pop(theirs)
    return Event(str(decoded.get("event_type") or ""), _time_of(decoded), decoded)


def _time_of(fields: dict[str, Any]) -> int | None:
    """Return the event's own time in ms: HTTP V2's, else Export's, else the old SDK's."""
    for name in ("time", "event_time", "timestamp", "client_event_time"):
        if fields.get(name) is not None:
            return parse_time(fields[name])
    return None


def parse_time(value: Any) -> int:
    """Return Unix milliseconds of a time as Amplitude's dialects write it.

    Whole milliseconds, or text: ``2020-11-24 09:59:55.977000``, ``T`` or space, 0 to 6 fraction
    digits, ``Z`` or an offset, none of them meaning UTC (Export API page; real files).

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        moment = dt.datetime.fromisoformat(value.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return round(moment.timestamp() * 1000)
    raise ValueError(f"not a time: {_kind(value)}")


# --- requests to /2/httpapi and /batch --------------------------------------------------------


class _Options(msgspec.Struct):
    min_id_length: int = MIN_ID_LENGTH


class Upload(msgspec.Struct):
    """The body of an upload: events are left undecoded."""

    api_key: str | None = None
    events: list[msgspec.Raw] | msgspec.UnsetType | None = msgspec.UNSET
    options: _Options | None = None


class BadUpload(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refusal in Amplitude's words (HTTP V2 page). Encodes as the answer's body."""

    code: int
    error: str
    missing_field: str | None = None
    events_with_invalid_fields: dict[str, list[int]] = {}
    events_with_missing_fields: dict[str, list[int]] = {}
    events_with_invalid_id_lengths: dict[str, list[int]] = {}
    silenced_events: list[int] = []


class GoodUpload(msgspec.Struct, frozen=True):
    """Success in Amplitude's words; clients look for ``code`` in it."""

    code: int
    events_ingested: int
    payload_size_bytes: int
    server_upload_time: int


_upload = msgspec.json.Decoder(Upload)


def decode_upload(body: bytes) -> Upload | BadUpload:
    """Return an upload's parts, or the refusal that Amplitude would answer."""
    if not body.strip():
        return BadUpload(400, "Missing request body")
    try:
        upload = _decode_mended(body)
    except msgspec.ValidationError as error:
        return BadUpload(400, "Invalid JSON request body", missing_field=_field_of(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadUpload(400, "Invalid JSON request body", missing_field="")
    if not upload.api_key:
        return BadUpload(400, "Request missing required field", missing_field="api_key")
    if not isinstance(upload.events, list) or not upload.events:
        return BadUpload(400, "Request missing required field", missing_field="events")
    return upload


def _decode_mended(body: bytes) -> Upload:
    try:
        return _upload.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return _upload.decode(mend_surrogates(body))


_ESCAPE = re.compile(
    rb"\\(?:u(?P<high>d[89ab][0-9a-f]{2})(?P<low>\\ud[c-f][0-9a-f]{2})?|u(?P<lone>d[c-f][0-9a-f]{2})|.)",
    re.IGNORECASE | re.DOTALL,
)


def mend_surrogates(raw: bytes) -> bytes:
    """Return JSON with U+FFFD for each half of a surrogate pair, which is not text.

    JavaScript cuts strings between the halves of an emoji; one such string must not cost the others
    of its upload.
    """
    return _ESCAPE.sub(_mend, raw)


def _mend(escape: re.Match[bytes]) -> bytes:
    halved = (escape["high"] and not escape["low"]) or escape["lone"]
    return b"\\ufffd" if halved else escape[0]


def _field_of(error: msgspec.ValidationError) -> str:
    """Return the path that msgspec names: clients give up on ``missing_field``, as they should."""
    _, found, path = str(error).rpartition("`$")
    return path.strip("`").strip(".") if found else ""


def decode_events(
    events: Iterable[msgspec.Raw | bytes], min_id_length: int = MIN_ID_LENGTH
) -> tuple[list[Head], list[bytes]] | BadUpload:
    """Return heads and bytes of the events, or one refusal that lists **every** bad index.

    A batch that is partly bad is refused whole: the client drops what is listed and sends the
    rest again (behaviour of the Python and Node SDKs).
    """
    heads: list[Head] = []
    raws: list[bytes] = []
    bad: list[tuple[int, BadEvent]] = []
    for index, raw_event in enumerate(events):
        raw = bytes(raw_event)
        head = decode_head(raw)
        problem = head if isinstance(head, BadEvent) else _check_upload(head, raw, min_id_length)
        if problem is not None:
            bad.append((index, problem))
        elif isinstance(head, Head):
            heads.append(head)
            raws.append(raw)
    return refuse_events(bad) if bad else (heads, raws)


class _Times(msgspec.Struct, gc=False):
    time: Any = None


_times = msgspec.json.Decoder(_Times)


def _check_upload(head: Head, raw: bytes, min_id_length: int) -> BadEvent | None:
    try:
        time = _times.decode(raw).time
    except (msgspec.MsgspecError, RecursionError):
        time = False  # a number out of range, half a surrogate pair: no time either
    if time is not None and (type(time) is not int or time < 0):
        return BadEvent("invalid_field", "time", "time must be whole milliseconds since 1970")
    return check_head(head, min_id_length)


def refuse_events(bad: Sequence[tuple[int, BadEvent]]) -> BadUpload:
    """Return the 400 that names each bad event's index under its field."""
    invalid: dict[str, list[int]] = {}
    missing: dict[str, list[int]] = {}
    ids: dict[str, list[int]] = {}
    by_reason = {"missing_field": missing, "invalid_id": ids}
    for index, problem in bad:
        lists = by_reason.get(problem.reason, invalid)
        lists.setdefault(problem.field or "event", []).append(index)
    return BadUpload(
        400,
        _error_text(bool(invalid), bool(missing)),
        events_with_invalid_fields=invalid,
        events_with_missing_fields=missing,
        events_with_invalid_id_lengths=ids,
    )


def _error_text(invalid: bool, missing: bool) -> str:
    if missing:
        return "Request missing required field"
    if invalid:
        return "Invalid field values on some events"
    return "Invalid id length for user_id or device_id"
