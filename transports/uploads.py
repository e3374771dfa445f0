"""The content of a request to Amplitude's ingestion endpoints. Pure.

Each ``decode_…`` takes one endpoint's body or form apart and returns an ``Upload``, or Amplitude's
refusal of it (``upload_answers``). ``upload_events`` checks the events.

The senders of ``/`` and ``/webhook`` cannot act on a list of bad events: the old JavaScript SDK
would keep a bad event for ever, and all events behind it; Amplitude's webhook would lose it after
ten tries. There a bad event is accepted as a ``BadEvent`` and becomes a dead letter.

The cost is in proportion to the body's length, whatever its content: the API key is checked first,
and elements are counted before an object is made for each.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.transports.amplitude import (
    BOM,
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MIN_ID_LENGTH,
    NULL,
    fields_of,
    group_identify_event,
    identify_event,
)
from amplitude_intercom.transports.forms import legacy_checksum
from amplitude_intercom.transports.mending import mend
from amplitude_intercom.transports.upload_answers import (
    NO_BODY,
    NOT_JSON,
    BadUpload,
    Takes,
    missing_field,
    refuse_key,
)

MAX_TIME_BYTES: Final = 64
"""JSON of a client's time of sending; the longest date in use has half of that."""


class Upload(msgspec.Struct):
    """The events of one request, not decoded yet.

    ``uploaded_at``: the client's own time of sending, as JSON. ``forgiving``: the sender cannot act
    on a list of bad events, so these are accepted. ``in_text``: the answer has to be plain text.
    ``derive_ids``: the sender may send an event again, and not every event has an insert id.
    """

    api_key: str
    events: Sequence[msgspec.Raw | bytes]
    min_id_length: int = 1
    uploaded_at: msgspec.Raw | bytes = b"null"
    forgiving: bool = False
    in_text: bool = False
    derive_ids: bool = False


# --- /2/httpapi and /batch ----------------------------------------------------------------


class _Body(msgspec.Struct):
    api_key: str | None = None
    events: list[msgspec.Raw] | None = None
    options: msgspec.Raw = NULL
    client_upload_time: msgspec.Raw = NULL


SMALL_BODY_BYTES: Final = 262_144
"""Up to this length the elements need not be counted: memory suffices for all of them."""

_First = msgspec.defstruct(
    "_First",
    [(f"element_{n}", msgspec.Raw, NULL) for n in range(MAX_EVENTS + 1)],
    array_like=True,
    gc=False,
)
"""The first elements of an array, one more than are allowed; the others are skipped."""


class _LargeBody(msgspec.Struct):
    api_key: str | None = None
    events: _First | None = None  # type: ignore[valid-type]  # it is made above
    options: msgspec.Raw = NULL
    client_upload_time: msgspec.Raw = NULL


class _Options(msgspec.Struct):
    min_id_length: int | None = None


_body = msgspec.json.Decoder(_Body)
_large_body = msgspec.json.Decoder(_LargeBody)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_large_array = msgspec.json.Decoder(_First)
_any = msgspec.json.Decoder(msgspec.Raw)
_options = msgspec.json.Decoder(_Options)


def _elements(found: Any) -> Sequence[msgspec.Raw]:
    """Return the elements of an array, decoded as a list or as ``_First``."""
    if found is None or isinstance(found, list):
        return found or ()
    raws = msgspec.structs.astuple(found)
    return raws[: bisect_left(range(len(raws)), True, key=lambda n: raws[n] is NULL)]


def decode_upload(body: bytes, takes: Takes = bool) -> Upload | BadUpload:
    """Return an SDK's upload to ``/2/httpapi`` or ``/batch``."""
    body = body.removeprefix(BOM)
    if first_byte(body) == b"":
        return NO_BODY
    decoded = _decode_body(body, takes)
    if isinstance(decoded, BadUpload):
        return decoded
    refused = refuse_key("api_key", decoded.api_key, takes)
    if refused is not None:
        return refused
    events = _elements(decoded.events)
    if not events:
        return missing_field("events")
    return Upload(
        decoded.api_key, events, _min_id_length(decoded.options), decoded.client_upload_time
    )


def _decode_body(body: bytes, takes: Takes) -> Any:
    """Return an SDK's decoded body. It is mended only for a known API key: mending is slow."""
    decoder = _body if len(body) <= SMALL_BODY_BYTES else _large_body
    decoded = _decode_json(body, decoder)
    if decoded is not NOT_JSON:
        return decoded
    key = _API_KEY.search(body)
    if key is None or not takes(key[1].decode(errors="replace")):
        return NOT_JSON
    return _decode_json(mend(body), decoder)


_API_KEY: Final = re.compile(rb'"api_key"\s{0,8}:\s{0,8}"([^"\\]{1,1024})"')
_FIRST_BYTE: Final = re.compile(rb"[ \t\r\n]*+(.?)", re.DOTALL)


def first_byte(body: bytes) -> bytes:
    """Return the byte that tells the type of JSON: ``{``, ``[``, …; empty where there is none."""
    found = _FIRST_BYTE.match(body)
    return found[1] if found else b""


def _min_id_length(options: msgspec.Raw) -> int:
    """Return the least length of ids by an upload's options; invalid options count as absent."""
    if options is NULL:
        return MIN_ID_LENGTH
    try:
        wanted = _options.decode(options).min_id_length
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        wanted = None
    return MIN_ID_LENGTH if wanted is None else wanted


def _decode_json(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        return BadUpload(400, "Invalid JSON request body", missing_field=_field_of(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NOT_JSON


def _field_of(error: msgspec.ValidationError) -> str:
    """Return the path that msgspec names, never empty: on an empty one clients send again."""
    _, found, path = str(error).rpartition("`$")
    return (path.strip("`").strip(".") if found else "") or "body"


# --- forms --------------------------------------------------------------------------------

_Convert = Callable[[msgspec.Raw | bytes], msgspec.Raw | bytes]


def decode_event_form(form: Mapping[str, str], takes: Takes = bool) -> Upload | BadUpload:
    """Return the form of ``/httpapi``, the endpoint before HTTP V2: one event or an array."""
    return _decode_form(form, "event", takes)


def decode_identify_form(form: Mapping[str, str], takes: Takes = bool) -> Upload | BadUpload:
    """Return the form of ``/identify`` as ``$identify`` events: one object or an array."""
    return _decode_form(form, "identification", takes, _identify)


def decode_group_identify_form(form: Mapping[str, str], takes: Takes = bool) -> Upload | BadUpload:
    """Return the form of ``/groupidentify`` as ``$groupidentify`` events."""
    return _decode_form(form, "identification", takes, _group_identify)


def _decode_form(
    form: Mapping[str, str], field: str, takes: Takes, convert: _Convert | None = None
) -> Upload | BadUpload:
    api_key = form.get("api_key", "")
    refused = refuse_key("api_key", api_key, takes)
    if refused is not None:
        return refused
    found = _split(_bytes(form.get(field, "")))
    if not found:
        return missing_field(field)
    return Upload(api_key, _converted(found, convert), uploaded_at=_upload_time(form))


def _upload_time(form: Mapping[str, str]) -> bytes:
    return msgspec.json.encode(form.get("upload_time", "")[:MAX_TIME_BYTES])


def _split(body: bytes) -> Sequence[msgspec.Raw | bytes]:
    """Return the elements of a JSON array, or a single object; nothing for any other text.

    An array with too many elements is cut behind the first one over the limit.
    """
    body = body.removeprefix(BOM)
    first = first_byte(body)
    if first not in (b"{", b"["):
        return ()
    if first == b"{":
        decoder: Any = _any
    else:
        decoder = _array if len(body) <= SMALL_BODY_BYTES else _large_array
    decoded = _decode_json(body, decoder)
    if decoded is NOT_JSON:
        decoded = _decode_json(mend(body), decoder)
    if isinstance(decoded, BadUpload):
        return ()
    return (decoded,) if first == b"{" else _elements(decoded)


def _converted(
    events: Sequence[msgspec.Raw | bytes], convert: _Convert | None
) -> Sequence[msgspec.Raw | bytes]:
    """Return events in the spelling of HTTP V2; too many or too large ones unchanged."""
    if convert is None or len(events) > MAX_EVENTS:
        return events
    return [event if size_of(event) > MAX_EVENT_BYTES else convert(event) for event in events]


def size_of(raw: msgspec.Raw | bytes) -> int:
    return len(memoryview(raw))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _identify(raw: msgspec.Raw | bytes) -> bytes:
    fields = fields_of(raw)
    return bytes(raw) if fields is None else identify_event(fields)


def _group_identify(raw: msgspec.Raw | bytes) -> bytes:
    fields = fields_of(raw)
    return bytes(raw) if fields is None else group_identify_event(fields)


# --- the old JavaScript SDK ---------------------------------------------------------------


def decode_legacy_form(form: Mapping[str, str], takes: Takes = bool) -> Upload | BadUpload:
    """Return the upload of the old JavaScript and Android SDKs to ``/``.

    A wrong ``checksum`` means that the body was changed on its way.
    """
    api_key, text = form.get("client", ""), form.get("e", "")
    refused = refuse_key("client", api_key, takes)
    if refused is not None:
        return refused
    if form.get("checksum") and form["checksum"].lower() != legacy_checksum(form):
        return BadUpload(400, "bad_checksum", missing_field="checksum")
    found = _split(_bytes(text))
    if not found:
        return missing_field("e")
    return Upload(api_key, found, uploaded_at=_upload_time(form), forgiving=True, in_text=True)


# --- Amplitude's webhook stream -----------------------------------------------------------


def decode_webhook(body: bytes, api_key: str, takes: Takes = bool) -> Upload | BadUpload:
    """Return the upload of Amplitude's webhook stream: events as in an Export, or Identify objects.

    One object or an array of them. ``amplitude_heads.as_event`` makes events of Identify objects.
    """
    refused = refuse_key("api_key", api_key, takes)
    if refused is not None:
        return refused
    if first_byte(body) == b"":
        return NO_BODY
    found = _split(body)
    if not found:
        return NOT_JSON
    return Upload(api_key, found, forgiving=True, derive_ids=True)
