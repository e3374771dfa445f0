"""What a request to Amplitude's ingestion endpoints holds, and what is answered. Pure.

Each ``decode_…`` takes one endpoint's body or form apart and returns an ``Upload``, or the refusal
that Amplitude would answer; ``checked_batch`` looks at its events. Clients decide by the answer, so
what is said here decides what they send again (behaviour of the Python and Node SDKs):

- what they list as bad they drop, and send the rest again; so a batch that is partly bad is refused
  whole, and **every** bad index is listed;
- a 400 with ``missing_field``, or with ``Invalid API key:`` and the key, makes them give up; any
  other is sent again up to twelve times.

The senders of ``/`` and ``/webhook`` know none of this: the old JavaScript SDK would keep a bad
event for ever and with it all behind it, Amplitude's webhook would lose it after ten tries. There a
bad event is taken along as a ``BadEvent`` and becomes a dead letter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from transports import Batch
from transports.amplitude import (
    BOM,
    GROUP_IDENTIFY,
    IDENTIFY,
    MIN_ID_LENGTH,
    BadEvent,
    Head,
    check_head,
    decode_head,
    mend_surrogates,
)

MAX_EVENTS: Final = 2_000
"""Events of one request (HTTP V2 and Batch pages)."""

MAX_DEPTH: Final = 40
"""Objects and arrays inside one another, in one value of an event (HTTP V2 page)."""

MAX_KEY_SHOWN: Final = 128


class Upload(msgspec.Struct):
    """The events of one request, not decoded yet.

    ``forgiving``: the sender could not act on a list of bad events, so they are taken along.
    ``derive_ids``: it may send an event again, and not every event has an insert id.
    """

    api_key: str
    events: Sequence[msgspec.Raw | bytes]
    min_id_length: int = 1
    forgiving: bool = False
    derive_ids: bool = False


class BadUpload(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refusal in Amplitude's words (HTTP V2 page). Encodes as the answer's body."""

    code: int
    error: str
    missing_field: str | None = None
    events_with_invalid_fields: dict[str, list[int]] = {}
    events_with_missing_fields: dict[str, list[int]] = {}
    events_with_invalid_id_lengths: dict[str, list[int]] = {}
    eps_threshold: int = 0
    throttled_devices: dict[str, int] = {}
    throttled_users: dict[str, int] = {}
    throttled_events: list[int] = []


class GoodUpload(msgspec.Struct, frozen=True):
    """Success in Amplitude's words; clients look for ``code`` in it."""

    code: int
    events_ingested: int
    payload_size_bytes: int
    server_upload_time: int


TOO_LARGE: Final = BadUpload(413, "Payload too large")
NOT_JSON: Final = BadUpload(400, "Invalid JSON request body", missing_field="body")
NO_BODY: Final = BadUpload(400, "Missing request body", missing_field="body")


def _missing(field: str) -> BadUpload:
    return BadUpload(400, "Request missing required field", missing_field=field)


def unknown_key(api_key: str) -> BadUpload:
    """Return the refusal on which both SDKs stop: they look for the colon."""
    return BadUpload(400, f"Invalid API key: {api_key[:MAX_KEY_SHOWN]}")


# --- /2/httpapi and /batch ----------------------------------------------------------------


class _Body(msgspec.Struct):
    api_key: str | None = None
    events: list[msgspec.Raw] | None = None
    options: Any = None


_body = msgspec.json.Decoder(_Body)


def decode_upload(body: bytes) -> Upload | BadUpload:
    """Return what an SDK sends to ``/2/httpapi`` and ``/batch``."""
    body = body.removeprefix(BOM)
    if not body.strip():
        return NO_BODY
    decoded = _decode_json(body, _body)
    if isinstance(decoded, BadUpload):
        return decoded
    if not decoded.api_key:
        return _missing("api_key")
    if not decoded.events:
        return _missing("events")
    return Upload(decoded.api_key, decoded.events, _min_id_length(decoded.options))


def _min_id_length(options: Any) -> int:
    """Return the shortest length of ids that an upload asks for; no option costs its events."""
    wanted = options.get("min_id_length") if isinstance(options, dict) else None
    return wanted if type(wanted) is int else MIN_ID_LENGTH


def _decode_json(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return decoder.decode(mend_surrogates(body))
    except msgspec.ValidationError as error:
        return BadUpload(400, "Invalid JSON request body", missing_field=_field_of(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NOT_JSON


def _field_of(error: msgspec.ValidationError) -> str:
    """Return the path that msgspec names; an empty one would have clients send it again."""
    _, found, path = str(error).rpartition("`$")
    return (path.strip("`").strip(".") if found else "") or "body"


# --- forms --------------------------------------------------------------------------------

_one_or_more = msgspec.json.Decoder(list[msgspec.Raw] | dict[str, msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NULL: Final = msgspec.Raw(b"null")
_Convert = Callable[[msgspec.Raw | bytes], bytes]


def decode_event_form(form: Mapping[str, str]) -> Upload | BadUpload:
    """Return the form of ``/httpapi``, the endpoint before HTTP V2: one event or an array."""
    return _decode_form(form, "event")


def decode_identify_form(form: Mapping[str, str]) -> Upload | BadUpload:
    """Return the form of ``/identify`` as ``$identify`` events: one object or an array."""
    return _decode_form(form, "identification", _identify)


def decode_group_identify_form(form: Mapping[str, str]) -> Upload | BadUpload:
    """Return the form of ``/groupidentify`` as ``$groupidentify`` events."""
    return _decode_form(form, "identification", _group_identify)


def _decode_form(
    form: Mapping[str, str], field: str, convert: _Convert | None = None
) -> Upload | BadUpload:
    if not form.get("api_key"):
        return _missing("api_key")
    found = _split(_bytes(form.get(field, "")))
    if not found:
        return _missing(field)
    events = list(map(convert, found)) if convert else found
    return Upload(form["api_key"], events)


def _split(body: bytes) -> Sequence[msgspec.Raw | bytes]:
    """Return the elements of a JSON array, or the one object that it is; else nothing."""
    decoded = _decode_json(body, _one_or_more)
    if isinstance(decoded, BadUpload):
        return ()
    return [mend_surrogates(body)] if isinstance(decoded, dict) else decoded


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _identify(raw: msgspec.Raw | bytes) -> bytes:
    fields = _fields_of(raw)
    return bytes(raw) if fields is None else _event(IDENTIFY, fields)


def _group_identify(raw: msgspec.Raw | bytes) -> bytes:
    fields = _fields_of(raw)
    if fields is None:
        return bytes(raw)
    try:
        group_type = msgspec.json.decode(fields.pop("group_type", _NULL), type=str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        group_type = None
    value = fields.pop("group_value", _NULL)
    groups = msgspec.Raw(msgspec.json.encode({group_type or "": value}))
    return _event(GROUP_IDENTIFY, {**fields, "groups": groups})


def _fields_of(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw] | None:
    try:
        return _object.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _event(event_type: str, fields: Mapping[str, msgspec.Raw]) -> bytes:
    return msgspec.json.encode({**fields, "event_type": event_type})


# --- the old JavaScript SDK ---------------------------------------------------------------


def decode_legacy_form(form: Mapping[str, str]) -> Upload | BadUpload:
    """Return what the old JavaScript and Android SDKs send to ``/``.

    ``checksum`` is the MD5 of ``v``, ``client``, ``e`` and ``upload_time`` (requests of
    amplitude-js 8.21.10). One that is wrong tells of a body that was mangled on its way.
    """
    api_key, text = form.get("client", ""), form.get("e", "")
    if not api_key:
        return _missing("client")
    signed = form.get("v", "") + api_key + text + form.get("upload_time", "")
    checksum = hashlib.md5(_bytes(signed), usedforsecurity=False)
    if form.get("checksum") and form["checksum"].lower() != checksum.hexdigest():
        return BadUpload(400, "bad_checksum", missing_field="checksum")
    found = _split(_bytes(text))
    return Upload(api_key, found, forgiving=True) if found else _missing("e")


# --- Amplitude's webhook stream -----------------------------------------------------------


def decode_webhook(body: bytes, api_key: str) -> Upload | BadUpload:
    """Return what Amplitude's webhook stream sends: an event as in an Export, or an Identify.

    One object or an array; an object without event type that has user properties is an Identify
    (webhook streaming page).
    """
    if not api_key:
        return _missing("api_key")
    if not body.strip():
        return NO_BODY
    found = _split(body)
    if not found:
        return NOT_JSON
    return Upload(api_key, list(map(_webhook_event, found)), forgiving=True, derive_ids=True)


def _webhook_event(raw: msgspec.Raw | bytes) -> msgspec.Raw | bytes:
    fields = _fields_of(raw)
    if (
        fields is None
        or fields.get("event_type", _NULL) != _NULL
        or "user_properties" not in fields
    ):
        return raw
    return _event(IDENTIFY, fields)


# --- their events -------------------------------------------------------------------------


def checked_batch(upload: Upload, origin: str) -> Batch | BadUpload:
    """Return an upload's events as a batch, or one refusal that lists every bad index."""
    if len(upload.events) > MAX_EVENTS:
        return TOO_LARGE
    if upload.forgiving:
        raws = [bytes(event) for event in upload.events]
        heads: Sequence[Head | BadEvent] = [_decode_checked(raw, upload) for raw in raws]
    else:
        decoded = decode_events(upload.events, upload.min_id_length)
        if isinstance(decoded, BadUpload):
            return decoded
        heads, raws = decoded
    return Batch(
        heads,
        raws,
        api_key=upload.api_key,
        derive_ids=upload.derive_ids,
        checked=not upload.forgiving,
        origin=origin,
    )


def _decode_checked(raw: bytes, upload: Upload) -> Head | BadEvent:
    head = decode_head(raw)
    if isinstance(head, BadEvent):
        return head
    return check_head(head, upload.min_id_length) or _check_depth(raw) or head


def decode_events(
    events: Iterable[msgspec.Raw | bytes], min_id_length: int = MIN_ID_LENGTH
) -> tuple[list[Head], list[bytes]] | BadUpload:
    """Return heads and bytes of events as HTTP V2 takes them, or the refusal of all of them."""
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


def _check_upload(head: Head, raw: bytes, min_id_length: int) -> BadEvent | None:
    """Return what HTTP V2 refuses about an event: it takes times in whole milliseconds only."""
    time = head.time
    if (
        time is not None
        and not (type(time) is int and time >= 0)
        and (isinstance(time, str) or time < 0 or time != int(time))
    ):
        return BadEvent("invalid_field", "time", "time must be whole milliseconds since 1970")
    return check_head(head, min_id_length) or _check_depth(raw)


def _check_depth(raw: bytes) -> BadEvent | None:
    """Return what is nested too deep. Counting the brackets clears nearly every event at once."""
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return None
    for name, value in (_fields_of(raw) or {}).items():
        if _is_deep(bytes(value)):
            return BadEvent("invalid_field", name, f"{name} is nested deeper than {MAX_DEPTH}")
    return None


_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ALIKE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))


def _is_deep(value: bytes) -> bool:
    """Whether JSON is nested too deep: each round takes away what is innermost."""
    brackets = _STRING.sub(b"", value).translate(_ALIKE, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


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
