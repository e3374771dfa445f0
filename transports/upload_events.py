"""The events of an upload, checked, as a batch or one refusal that lists every bad event. Pure.

The cost of an event is in proportion to its bytes: an event that is too large is not decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from amplitude_intercom.transports.amplitude import (
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MIN_ID_LENGTH,
    NULL,
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
    read_head,
    read_mended,
)
from amplitude_intercom.transports.amplitude_times import MAX_TIME, parse_time
from amplitude_intercom.transports.contract import Batch
from amplitude_intercom.transports.lines import KEPT_BYTES
from amplitude_intercom.transports.upload_answers import TOO_LARGE, BadUpload
from amplitude_intercom.transports.uploads import MAX_TIME_BYTES, Upload, size_of

MAX_DEPTH: Final = 40
"""Objects and arrays inside one another, in one value of an event (HTTP V2 page)."""

MIN_SKEW_MS: Final = 60_000
"""A smaller difference of clocks is left alone (Export API page, ``event_time``)."""

MAX_SKEW_MS: Final = 20 * 365 * 86_400_000
"""A larger difference is no clock: phones that lost their time begin at 2009 or later."""
_time = msgspec.json.Decoder(Time)


def checked_batch(
    upload: Upload,
    origin: str,
    *,
    max_event_bytes: int = MAX_EVENT_BYTES,
    received_ms: int | None = None,
) -> Batch | BadUpload:
    """Return an upload's events as a batch, or one refusal that lists every bad index.

    ``received_ms``: the time of arrival. With it the times by the client's clock are corrected.
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
    if size_of(event) > max_event_bytes:
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
"""An element of this type is JSON by itself. Two byte strings may be JSON only when joined."""


def _decode_each(
    raws: list[bytes], min_id_length: int, max_event_bytes: int
) -> tuple[list[Head], list[bytes]] | BadUpload:
    """Return the same as ``decode_events``, one event at a time: slow, for a batch with a fault."""
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


# --- clients with a wrong clock -----------------------------------------------------------


def clock_skew_ms(uploaded_at: msgspec.Raw | bytes, received_ms: int | None) -> int:
    """Return the milliseconds by which a client's clock is behind; 0 for few, or absurdly many."""
    if received_ms is None or uploaded_at is NULL or uploaded_at == b"null":
        return 0
    if size_of(uploaded_at) > MAX_TIME_BYTES:
        return 0
    try:
        skew_ms = received_ms - parse_time(_time.decode(uploaded_at))
    except (ValueError, msgspec.MsgspecError):
        return 0
    return skew_ms if MIN_SKEW_MS < abs(skew_ms) <= MAX_SKEW_MS else 0


def _shifted(head: Head | BadEvent, raw: bytes, skew_ms: int) -> bytes:
    """Return an event with its time corrected, in its head too, or unchanged without a time."""
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
    """Return the fault of an event by the rules of HTTP V2, or None.

    HTTP V2 takes times in whole milliseconds only.
    """
    time = head.time
    if (
        time is not None
        and not (type(time) is int and 0 <= time < MAX_TIME)
        and (isinstance(time, str) or not 0 <= time < MAX_TIME or time != int(time))
    ):
        return BadEvent("invalid_field", "time", "time must be whole milliseconds since 1970")
    return _check(head, raw, min_id_length)


def _check(head: Head, raw: bytes, min_id_length: int) -> BadEvent | None:
    """Return the fault of an event's type, ids or depth, or None.

    The number of opening brackets shows for nearly every event that it is not too deep.
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
    """Whether JSON is nested too deep: each round removes the innermost brackets."""
    brackets = _STRING.sub(b"", value).translate(_ALIKE, _NO_BRACKET)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def refuse_events(bad: Sequence[tuple[int, BadEvent]]) -> BadUpload:
    """Return the 400 that names each bad event's index under its field.

    Short ids stand in two lists: one of their own, and the one that Kotlin, Swift, Java and the old
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
