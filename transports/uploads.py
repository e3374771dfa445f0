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

Nothing here costs more than in proportion to the body, whatever that holds: the key is looked at
first, elements are counted before there are objects for them, and an event that is too large is not
looked into.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from amplitude_intercom.transports.amplitude import (
    BOM,
    KEPT_BYTES,
    MAX_EVENT_BYTES,
    MIN_ID_LENGTH,
    BadEvent,
    Head,
    Time,
    check_head,
    fields_of,
    too_large,
)
from amplitude_intercom.transports.amplitude_heads import (
    decode_head,
    decode_heads,
    group_identify_event,
    identify_event,
    read_head,
    read_mended,
)
from amplitude_intercom.transports.amplitude_times import MAX_TIME, parse_time
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.forms import legacy_checksum
from amplitude_intercom.transports.mending import mend

MAX_EVENTS: Final = 2_000
"""Events of one request (HTTP V2 and Batch pages)."""

MAX_DEPTH: Final = 40
"""Objects and arrays inside one another, in one value of an event (HTTP V2 page)."""

MAX_KEY_SHOWN: Final = 128
INVALID_KEY: Final = "Invalid API key: "
MAX_KEY_LENGTH: Final = 1_024
"""Characters of an API key; Amplitude's have 32."""

MIN_SKEW_MS: Final = 60_000
"""A client's clock that is off by less is left alone (Export API page, ``event_time``)."""

MAX_SKEW_MS: Final = 20 * 365 * 86_400_000
"""A client's clock that is off by more is none: phones that lost theirs begin at 2009 or later."""

MAX_TIME_BYTES: Final = 64
"""JSON of a client's time of sending; the longest date in use has half of that."""

Takes = Callable[[str], bool]
"""Whether somebody takes the events of an API key."""


class Upload(msgspec.Struct):
    """The events of one request, not decoded yet.

    ``uploaded_at``: the client's own time of sending, as JSON. ``forgiving``: the sender could not
    act on a list of bad events, so they are taken along. ``in_text``: it wants its answer as text.
    ``derive_ids``: it may send an event again, and not every event has an insert id.
    """

    api_key: str
    events: Sequence[msgspec.Raw | bytes]
    min_id_length: int = 1
    uploaded_at: msgspec.Raw | bytes = b"null"
    forgiving: bool = False
    in_text: bool = False
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
    shown = api_key[:MAX_KEY_SHOWN].encode(errors="replace").decode()
    return BadUpload(400, f"{INVALID_KEY}{shown}")


# --- /2/httpapi and /batch ----------------------------------------------------------------


_NULL: Final = msgspec.Raw(b"null")


class _Body(msgspec.Struct):
    api_key: str | None = None
    events: list[msgspec.Raw] | None = None
    options: msgspec.Raw = _NULL
    client_upload_time: msgspec.Raw = _NULL


SMALL_BODY_BYTES: Final = 262_144
"""A body whose elements need not be counted: there is memory for as many as it can hold."""

_First = msgspec.defstruct(
    "_First",
    [(f"element_{n}", msgspec.Raw, _NULL) for n in range(MAX_EVENTS + 1)],
    array_like=True,
    gc=False,
)
"""The first elements of an array, enough to tell that it has too many; the others are skipped."""


class _LargeBody(msgspec.Struct):
    api_key: str | None = None
    events: _First | None = None  # type: ignore[valid-type]  # it is made above
    options: msgspec.Raw = _NULL
    client_upload_time: msgspec.Raw = _NULL


class _Options(msgspec.Struct):
    min_id_length: int | None = None


_body = msgspec.json.Decoder(_Body)
_large_body = msgspec.json.Decoder(_LargeBody)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_large_array = msgspec.json.Decoder(_First)
_any = msgspec.json.Decoder(msgspec.Raw)
_options = msgspec.json.Decoder(_Options)
_time = msgspec.json.Decoder(Time)


def _elements(found: Any) -> Sequence[msgspec.Raw]:
    """Return the elements of an array that was decoded either way; no more than one too many."""
    if found is None or isinstance(found, list):
        return found or ()
    raws = msgspec.structs.astuple(found)
    return raws[: bisect_left(range(len(raws)), True, key=lambda n: raws[n] is _NULL)]


def decode_upload(body: bytes, takes: Takes = bool) -> Upload | BadUpload:
    """Return what an SDK sends to ``/2/httpapi`` and ``/batch``."""
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
        return _missing("events")
    return Upload(
        decoded.api_key, events, _min_id_length(decoded.options), decoded.client_upload_time
    )


def _decode_body(body: bytes, takes: Takes) -> Any:
    """Decode an SDK's body; it is worth mending only where somebody takes its events."""
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
    """Return the byte that tells what JSON is: ``{``, ``[``, …; empty where there is none."""
    found = _FIRST_BYTE.match(body)
    return found[1] if found else b""


def refuse_key(field: str, api_key: str | None, takes: Takes) -> BadUpload | None:
    """Return the refusal of a request whose key is missing, or nobody's; ``field`` is its name."""
    if not api_key:
        return _missing(field)
    return None if len(api_key) <= MAX_KEY_LENGTH and takes(api_key) else unknown_key(api_key)


def _min_id_length(options: msgspec.Raw) -> int:
    """Return the shortest length of ids that an upload asks for; no option costs its events."""
    if options is _NULL:
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
    """Return the path that msgspec names; an empty one would have clients send it again."""
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
        return _missing(field)
    return Upload(api_key, _converted(found, convert), uploaded_at=_upload_time(form))


def _upload_time(form: Mapping[str, str]) -> bytes:
    return msgspec.json.encode(form.get("upload_time", "")[:MAX_TIME_BYTES])


def _split(body: bytes) -> Sequence[msgspec.Raw | bytes]:
    """Return the elements of a JSON array, or the one object that it is; else nothing.

    An array of too many elements is cut behind the first that is too many.
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
    """Return events in the spelling of HTTP V2; too many or too large ones as they are."""
    if convert is None or len(events) > MAX_EVENTS:
        return events
    return [event if _size(event) > MAX_EVENT_BYTES else convert(event) for event in events]


def _size(raw: msgspec.Raw | bytes) -> int:
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
    """Return what the old JavaScript and Android SDKs send to ``/``.

    A ``checksum`` that is wrong tells of a body that was mangled on its way.
    """
    api_key, text = form.get("client", ""), form.get("e", "")
    refused = refuse_key("client", api_key, takes)
    if refused is not None:
        return refused
    if form.get("checksum") and form["checksum"].lower() != legacy_checksum(form):
        return BadUpload(400, "bad_checksum", missing_field="checksum")
    found = _split(_bytes(text))
    if not found:
        return _missing("e")
    return Upload(api_key, found, uploaded_at=_upload_time(form), forgiving=True, in_text=True)


# --- Amplitude's webhook stream -----------------------------------------------------------


def decode_webhook(body: bytes, api_key: str, takes: Takes = bool) -> Upload | BadUpload:
    """Return what Amplitude's webhook stream sends: an event as in an Export, or an Identify.

    One object or an array of them. Reading their heads makes events of Identify objects
    (``amplitude.as_event``).
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


# --- their events -------------------------------------------------------------------------


def checked_batch(
    upload: Upload,
    origin: str,
    *,
    max_event_bytes: int = MAX_EVENT_BYTES,
    received_ms: int | None = None,
) -> Batch | BadUpload:
    """Return an upload's events as a batch, or one refusal that lists every bad index.

    ``received_ms``: now, by a clock that is right; with it the client's own is corrected.
    """
    if len(upload.events) > MAX_EVENTS:
        return TOO_LARGE
    heads: Sequence[Head | BadEvent]
    if upload.forgiving:
        read = [_read_checked(event, upload, max_event_bytes) for event in upload.events]
        heads, raws = [head for head, _ in read], [raw for _, raw in read]
    else:
        decoded = decode_events(upload.events, upload.min_id_length, max_event_bytes)
        if isinstance(decoded, BadUpload):
            return decoded
        heads, raws = decoded
    skew_ms = clock_skew_ms(upload.uploaded_at, received_ms)
    if skew_ms:
        raws = [_shifted(head, raw, skew_ms) for head, raw in zip(heads, raws, strict=True)]
    return Batch(
        heads,
        raws,
        api_key=upload.api_key,
        derive_ids=upload.derive_ids,
        checked=not upload.forgiving,
        origin=origin,
    )


def _read_checked(
    event: msgspec.Raw | bytes, upload: Upload, max_event_bytes: int
) -> tuple[Head | BadEvent, bytes]:
    if _size(event) > max_event_bytes:
        view = memoryview(event)
        return too_large(view, max_event_bytes), bytes(view[:KEPT_BYTES])
    head, raw = read_head(bytes(event))
    if isinstance(head, BadEvent):
        return head, raw
    return _check(head, raw, upload.min_id_length) or head, raw


def decode_events(
    events: Iterable[msgspec.Raw | bytes],
    min_id_length: int = MIN_ID_LENGTH,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> tuple[list[Head], list[bytes]] | BadUpload:
    """Return heads and bytes of events as HTTP V2 takes them, or the refusal of all of them."""
    came = list(events)
    raws = list(map(bytes, came))
    are_plain = set(map(type, came)) <= _OF_A_DECODER
    are_plain = are_plain and max(map(len, raws), default=0) <= max_event_bytes
    heads = decode_heads(raws) if are_plain else None
    if heads is None:
        return _decode_each(raws, min_id_length, max_event_bytes)
    check = _check_upload
    problems = [check(head, raw, min_id_length) for head, raw in zip(heads, raws, strict=True)]
    bad = [(index, problem) for index, problem in enumerate(problems) if problem is not None]
    return refuse_events(bad) if bad else (heads, raws)


_OF_A_DECODER: Final = frozenset({msgspec.Raw})
"""Of such elements each is JSON by itself. Of bytes two may be JSON only where they meet."""


def _decode_each(
    raws: list[bytes], min_id_length: int, max_event_bytes: int
) -> tuple[list[Head], list[bytes]] | BadUpload:
    """Do the same one by one, for one of them is not as nearly all are."""
    heads: list[Head] = []
    bad: list[tuple[int, BadEvent]] = []
    for index, raw in enumerate(raws):
        head = decode_head(raw) if len(raw) <= max_event_bytes else too_large(raw, max_event_bytes)
        if isinstance(head, BadEvent):
            head, raws[index] = read_mended(head, raw)
        if isinstance(head, Head):
            heads.append(head)
            problem = _check_upload(head, raws[index], min_id_length)
        else:
            problem = head
        if problem is not None:
            bad.append((index, problem))
    return refuse_events(bad) if bad else (heads, raws)


# --- clients whose clock is wrong ---------------------------------------------------------


def clock_skew_ms(uploaded_at: msgspec.Raw | bytes, received_ms: int | None) -> int:
    """Return what a client's clock lacks, in milliseconds; 0 where that is little, or absurd."""
    if received_ms is None or uploaded_at is _NULL or uploaded_at == b"null":
        return 0
    if _size(uploaded_at) > MAX_TIME_BYTES:
        return 0
    try:
        skew_ms = received_ms - parse_time(_time.decode(uploaded_at))
    except (ValueError, msgspec.MsgspecError):
        return 0
    return skew_ms if MIN_SKEW_MS < abs(skew_ms) <= MAX_SKEW_MS else 0


def _shifted(head: Head | BadEvent, raw: bytes, skew_ms: int) -> bytes:
    """Return an event with its time corrected, in its head too; one without a time as it is."""
    name = "timestamp" if isinstance(head, Head) and head.time is None else "time"
    written = None if isinstance(head, BadEvent) else getattr(head, name)
    fields = None if written is None else fields_of(raw)
    if fields is None:
        return raw
    try:
        time_ms = parse_time(written) + skew_ms
    except ValueError:
        return raw
    setattr(head, name, time_ms)
    return msgspec.json.encode({**fields, name: time_ms})


def _check_upload(head: Head, raw: bytes, min_id_length: int) -> BadEvent | None:
    """Return what HTTP V2 refuses about an event: it takes times in whole milliseconds only."""
    time = head.time
    if (
        time is not None
        and not (type(time) is int and 0 <= time < MAX_TIME)
        and (isinstance(time, str) or not 0 <= time < MAX_TIME or time != int(time))
    ):
        return BadEvent("invalid_field", "time", "time must be whole milliseconds since 1970")
    return _check(head, raw, min_id_length)


def _check(head: Head, raw: bytes, min_id_length: int) -> BadEvent | None:
    """Return what is wrong with an event, but for its time: with its ids, or how deep it is.

    Counting the brackets clears nearly every event at once.
    """
    problem = check_head(head, min_id_length)
    if problem is None and len(raw.translate(None, _NO_OPENING)) > MAX_DEPTH:
        return _check_depth(raw)
    return problem


def _check_depth(raw: bytes) -> BadEvent | None:
    for name, value in (fields_of(raw) or {}).items():
        if _is_deep(bytes(value)):
            return BadEvent("invalid_field", name, f"{name} is nested deeper than {MAX_DEPTH}")
    return None


_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ALIKE: Final = bytes.maketrans(b"{}", b"[]")
_NO_OPENING: Final = bytes(set(range(256)) - set(b"[{"))
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))


def _is_deep(value: bytes) -> bool:
    """Whether JSON is nested too deep: each round takes away what is innermost."""
    brackets = _STRING.sub(b"", value).translate(_ALIKE, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def refuse_events(bad: Sequence[tuple[int, BadEvent]]) -> BadUpload:
    """Return the 400 that names each bad event's index under its field.

    Short ids stand in two lists: that of their own, and that which Kotlin, Swift, Java and the old
    Node SDK read (their sources).
    """
    invalid: dict[str, list[int]] = {}
    missing: dict[str, list[int]] = {}
    ids: dict[str, list[int]] = {}
    for index, problem in bad:
        lists = missing if problem.reason == "missing_field" else invalid
        lists.setdefault(problem.field or "event", []).append(index)
        if problem.short:
            ids.setdefault(problem.field, []).append(index)
    all_short = all(problem.short for _, problem in bad)
    return BadUpload(
        400,
        _error_text(not all_short, bool(missing)),
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
