"""An Amplitude event's head, and the checks of Amplitude's servers on it. Pure.

Most events are not wanted, so an event is read in two steps. ``amplitude_heads`` reads the few
fields that decide whether it is taken; ``amplitude_events`` reads all of it, in one normal form for
all dialects: HTTP V2 and SDKs, Export files and webhooks, the old JavaScript SDK.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

MIN_ID_LENGTH: Final = 5
"""Shortest user or device id, unless ``options.min_id_length`` says otherwise (HTTP V2 page)."""

RESERVED_IDS: Final = frozenset(
    "|anonymous|nil|none|null|n/a|na|undefined|unknown|{}|lmy47d|0|-1"
    "|00000000-0000-0000-0000-000000000000".split("|")
)
"""Ids that Amplitude refuses, compared without case (HTTP V2 page, "Device and user ids")."""

_RESERVED_LENGTHS: Final = frozenset(map(len, RESERVED_IDS))

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

MAX_AMPLITUDE_TEXT: Final = 1_024
"""Longest text in characters (HTTP V2 page)."""

MAX_EVENT_BYTES: Final = 262_144
"""Largest event in bytes of JSON: 500 times a usual one, and all that Intercom takes of one."""

MAX_EVENTS: Final = 2_000
"""Events of one request (HTTP V2 and Batch pages)."""

BOM: Final = b"\xef\xbb\xbf"
IDENTIFY: Final = "$identify"
GROUP_IDENTIFY: Final = "$groupidentify"

NULL: Final = msgspec.Raw(b"null")

Time = int | float | str


class AnyObject(msgspec.Struct, frozen=True, gc=False):
    """Any JSON object. Decoding it checks that it is one, and skips its content."""


class Head(msgspec.Struct, gc=False):
    """The fields of an event that intake needs, as they are spelled; None when null or missing.

    Ids that are whole numbers are their digits, as at Amplitude.
    """

    event_type: str | None = None
    user_id: str | None = None
    device_id: str | None = None
    insert_id: str | None = None
    export_insert_id: str | None = msgspec.field(default=None, name="$insert_id")
    uuid: str | None = None
    time: Time | None = None
    event_time: Time | None = None
    timestamp: Time | None = None
    event_properties: AnyObject | None = None
    user_properties: AnyObject | None = None
    groups: AnyObject | None = None
    group_properties: AnyObject | None = None

    @property
    def unique_id(self) -> str | None:
        """The insert id, whichever dialect it was spelled in.

        The old JavaScript SDK calls it ``uuid``. An Export row has Amplitude's own ``uuid`` beside
        it, which differs where an event came there twice. So it counts only where no other is.
        """
        return self.insert_id or self.export_insert_id or self.uuid

    @property
    def written_time(self) -> Time | None:
        """The event's own time as it is written: HTTP V2's, else Export's, else the old SDK's."""
        if self.time is not None:
            return self.time
        return self.event_time if self.event_time is not None else self.timestamp


BadEventReason = Literal[
    "invalid_json", "not_an_object", "missing_field", "invalid_field", "invalid_id", "too_large"
]


class BadEvent(msgspec.Struct, frozen=True):
    """The reason why an event cannot be taken, and the ``field`` that is wrong.

    ``short``: the only fault of an id is its length. ``digest``: of the whole event, where only its
    beginning is kept.
    """

    reason: BadEventReason
    field: str
    message: str
    short: bool = False
    digest: bytes = b""


def too_large(raw: bytes | memoryview, max_bytes: int) -> BadEvent:
    """Return the refusal of an event of more than ``max_bytes``, with a digest of all of it."""
    digest = hashlib.blake2b(raw, digest_size=16).digest()
    return BadEvent("too_large", "event", f"longer than {max_bytes} bytes", digest=digest)


decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""Return an object's fields, not decoded; raises as ``msgspec`` does."""


def fields_of(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw] | None:
    """Return an object's fields, not decoded, or None where the text is no object."""
    try:
        return decode_fields(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def check_head(head: Head, min_id_length: int = MIN_ID_LENGTH) -> BadEvent | None:
    """Return Amplitude's reason to refuse an event by its head, or None.

    A ``$groupidentify`` needs neither user nor device (Python and Node SDKs send none).
    """
    event_type, user_id, device_id = head.event_type, head.user_id, head.device_id
    if not event_type:
        return BadEvent("missing_field", "event_type", "event_type is missing")
    if event_type.isspace():
        return BadEvent("invalid_field", "event_type", "event_type is blank")
    if len(event_type) > MAX_AMPLITUDE_TEXT:
        return BadEvent(
            "invalid_field", "event_type", f"event_type is longer than {MAX_AMPLITUDE_TEXT}"
        )
    if not user_id and not device_id:
        if event_type == GROUP_IDENTIFY:
            return None
        return BadEvent("missing_field", "user_id", "neither user_id nor device_id is there")
    return check_id("user_id", user_id, min_id_length) or check_id(
        "device_id", device_id, min_id_length
    )


def check_id(field: str, value: str | None, min_id_length: int) -> BadEvent | None:
    """Return the fault of a user or device id, or None; an empty one counts as absent.

    An id that is too long is refused. Amplitude would cut it, and the rest may be another user's.
    """
    if not value:
        return None
    length = len(value)
    if length < min_id_length:
        return BadEvent("invalid_id", field, f"{field} is shorter than {min_id_length}", short=True)
    if length > MAX_AMPLITUDE_TEXT:
        return BadEvent("invalid_id", field, f"{field} is longer than {MAX_AMPLITUDE_TEXT}")
    if length in _RESERVED_LENGTHS and value.lower() in RESERVED_IDS:
        return BadEvent("invalid_id", field, f"{field} has a value that is not accepted")
    return None


def as_event(raw: bytes) -> bytes:
    """Return an event unchanged, and an Identify object, which has no event type, as an event.

    An object with user properties is an Identify (webhook streaming page), one with group
    properties a Group Identify (Group Identify page).
    """
    fields = fields_of(raw)
    if fields is None or fields.get("event_type", NULL) != NULL:
        return raw
    if "user_properties" in fields:
        return identify_event(fields)
    return group_identify_event(fields) if "group_properties" in fields else raw


def identify_event(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """Return an Identify object as a ``$identify`` event."""
    return msgspec.json.encode({**fields, "event_type": IDENTIFY})


def group_identify_event(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """Return a Group Identify object as a ``$groupidentify`` event."""
    try:
        group_type = msgspec.json.decode(fields.get("group_type", NULL), type=str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        group_type = None
    groups = msgspec.json.encode({group_type or "": fields.get("group_value", NULL)})
    rest = {k: v for k, v in fields.items() if k not in ("group_type", "group_value")}
    more = {"groups": msgspec.Raw(groups), "event_type": GROUP_IDENTIFY}
    return msgspec.json.encode({**rest, **more})
