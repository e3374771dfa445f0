"""Reading the head of an Amplitude event: the few fields that decide whether it is taken. Pure.

Most events are not wanted, so the rest of an event is skipped, and only checked to be JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from amplitude_intercom.transports.amplitude import (
    NULL,
    AnyObject,
    BadEvent,
    Head,
    Time,
    as_event,
    decode_fields,
    fields_of,
)
from amplitude_intercom.transports.amplitude_times import MAX_TIME, parse_time
from amplitude_intercom.transports.mending import mend


class _NumberedHead(Head, gc=False):
    """A head with ids that may be whole numbers: Rails and Go servers send them."""

    user_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    device_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    insert_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    export_insert_id: str | int | None = msgspec.field(default=None, name="$insert_id")  # type: ignore[assignment]  # wider, on purpose
    uuid: str | int | None = None  # type: ignore[assignment]  # wider, on purpose


_head = msgspec.json.Decoder(Head)
_heads = msgspec.json.Decoder(list[Head])
_numbered_head = msgspec.json.Decoder(_NumberedHead)

_IDS: Final = ("user_id", "device_id", "insert_id", "export_insert_id", "uuid")


def decode_head(raw: bytes) -> Head | BadEvent:
    """Return the head of one event, or its fault. Never raises."""
    try:
        if not raw.isascii():
            raw.decode()  # the decoder does not check the encoding of skipped values
        return _head.decode(raw)
    except msgspec.ValidationError:
        return _decode_numbered_head(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return diagnose(raw, error)


def decode_heads(raws: Sequence[bytes]) -> list[Head] | None:
    """Return the heads of events, each of them JSON, or None where one needs ``decode_head``."""
    together = b"[%b]" % b",".join(raws)
    try:
        if not together.isascii():
            together.decode()
        return _heads.decode(together)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode_numbered_head(raw: bytes) -> Head | BadEvent:
    """Return the head of an event in which a field has a wrong type; ids may be numbers."""
    try:
        head = _numbered_head.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        return diagnose(raw, error)
    for name in _IDS:
        value = getattr(head, name)
        setattr(head, name, str(value) if isinstance(value, int) else value)
    return head


class _TypeOnly(msgspec.Struct, gc=False):
    event_type: str | None = None


_type_only = msgspec.json.Decoder(_TypeOnly)


def decode_types(raws: Sequence[bytes]) -> list[str | None] | None:
    """Return the types of events, or None where one of them needs ``decode_head``.

    The type alone often decides that no taker wants an event. The rest is only checked to be JSON.
    """
    decode = _type_only.decode
    try:
        return [decode(raw).event_type for raw in raws]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_head(raw: bytes) -> tuple[Head | BadEvent, bytes]:
    """Return an event's head and its bytes, mended where that helps. Never raises.

    An Identify object, which has no event type, becomes an event (``as_event``).
    """
    head = decode_head(raw)
    if not isinstance(head, Head):
        head, raw = read_mended(head, raw)
    if isinstance(head, Head) and head.event_type is None:
        event = as_event(raw)
        return (head, raw) if event is raw else (decode_head(event), event)
    return head, raw


def read_mended(bad: BadEvent, raw: bytes) -> tuple[Head | BadEvent, bytes]:
    """Return the head and bytes of an unreadable event after mending, where that helps."""
    if bad.reason == "invalid_json":
        mended = mend(raw)
        if mended != raw:
            return decode_head(mended), mended
    return bad, raw


def diagnose(raw: bytes, error: Exception) -> BadEvent:
    """Return the field that cannot be decoded, and why. Slow: only for events with a fault."""
    try:
        fields = decode_fields(raw)
    except msgspec.ValidationError:
        return BadEvent("not_an_object", "", "an event is an object")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        return BadEvent("invalid_json", "", f"not JSON: {broken}")
    for field in msgspec.structs.fields(_NumberedHead):
        try:
            msgspec.json.decode(fields.get(field.encode_name, b"null"), type=field.type)
        except msgspec.ValidationError:
            wanted = _WANTED.get(field.type, "text")
            return BadEvent(
                "invalid_field", field.encode_name, f"{field.encode_name} must be {wanted}"
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as broken:
            return BadEvent("invalid_json", field.encode_name, f"not JSON: {broken}")
    return BadEvent("invalid_json", "", f"not JSON: {error}")


_WANTED: Final = {Time | None: "a time", AnyObject | None: "an object"}


def legible(raw: bytes) -> Head:
    """Return a head with an event's type and ids, each read by itself. Never raises.

    ``decode_head`` reads all fields at once, so one of a wrong type would hide the others.
    """
    fields, head = fields_of(raw) or {}, Head()
    for name in ("event_type", "user_id", "device_id"):
        try:
            value = msgspec.json.decode(fields.get(name, NULL), type=str | int | None)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        setattr(head, name, None if value is None else str(value))
    return head


def check_time(head: Head) -> BadEvent | None:
    """Return the fault of an event's time, in any dialect, or None."""
    written = head.written_time
    if written is None or (type(written) is int and -MAX_TIME < written < MAX_TIME):
        return None
    try:
        parse_time(written)
    except ValueError as error:
        return BadEvent("invalid_field", "time", str(error))
    return None
