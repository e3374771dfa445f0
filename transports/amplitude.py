"""Amplitude's wire: how its clients spell an event, what its servers check, what they answer.

Two steps, since most events are not wanted: ``decode_head`` reads the few fields that decide
whether an event is taken, ``decode_event`` the whole of it, in one normal form whatever dialect it
was written in (HTTP V2 and SDKs; Export files and webhooks; the old JavaScript SDK).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

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

KEPT_BYTES: Final = 4_096
"""How much of an event that is too large is kept, for whoever looks for it."""

BOM: Final = b"\xef\xbb\xbf"
IDENTIFY: Final = "$identify"
GROUP_IDENTIFY: Final = "$groupidentify"


Time = int | float | str


class _Object(msgspec.Struct, frozen=True, gc=False):
    """Any JSON object: decoding it says that it is one, and skips it."""


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
    event_properties: _Object | None = None
    user_properties: _Object | None = None
    groups: _Object | None = None
    group_properties: _Object | None = None

    @property
    def unique_id(self) -> str | None:
        """The insert id, whichever dialect it was spelled in.

        The old JavaScript SDK calls it ``uuid``. An Export row has Amplitude's own ``uuid`` beside
        it, which differs where an event came there twice: so it counts where there is no other.
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
    """An event that cannot be taken: ``field`` is where.

    ``short``: an id that is all right but for its length. ``digest``: of all of it, where only its
    beginning is kept.
    """

    reason: BadEventReason
    field: str
    message: str
    short: bool = False
    digest: bytes = b""


def too_large(raw: bytes | memoryview, max_bytes: int) -> BadEvent:
    """Return what is wrong with an event of more than ``max_bytes``; it knows all of it again."""
    digest = hashlib.blake2b(raw, digest_size=16).digest()
    return BadEvent("too_large", "event", f"longer than {max_bytes} bytes", digest=digest)


class _NumberedHead(Head, gc=False):
    """A head whose ids may be whole numbers: Rails and Go servers send them."""

    user_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    device_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    insert_id: str | int | None = None  # type: ignore[assignment]  # wider, on purpose
    export_insert_id: str | int | None = msgspec.field(default=None, name="$insert_id")  # type: ignore[assignment]  # wider, on purpose
    uuid: str | int | None = None  # type: ignore[assignment]  # wider, on purpose


_head = msgspec.json.Decoder(Head)
_heads = msgspec.json.Decoder(list[Head])
_numbered_head = msgspec.json.Decoder(_NumberedHead)
OBJECTS: Final = ("event_properties", "user_properties", "groups", "group_properties")
"""Fields of an event that are objects or null; Amplitude refuses anything else there."""

_IDS: Final = ("user_id", "device_id", "insert_id", "export_insert_id", "uuid")


def decode_head(raw: bytes) -> Head | BadEvent:
    """Return the head of one event, or what is wrong with it. Never raises."""
    try:
        if not raw.isascii():
            raw.decode()  # the decoder does not look into what it skips
        return _head.decode(raw)
    except msgspec.ValidationError:
        return _decode_numbered_head(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _diagnose(raw, error)


def decode_heads(raws: Sequence[bytes]) -> list[Head] | None:
    """Return the heads of events, each of them JSON; None where one of them needs a look."""
    together = b"[%b]" % b",".join(raws)
    try:
        if not together.isascii():
            together.decode()
        return _heads.decode(together)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode_numbered_head(raw: bytes) -> Head | BadEvent:
    """Read again an event that has something of a wrong type: numbers as ids are taken."""
    try:
        head = _numbered_head.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        return _diagnose(raw, error)
    for name in _IDS:
        value = getattr(head, name)
        setattr(head, name, str(value) if isinstance(value, int) else value)
    return head


class _TypeOnly(msgspec.Struct, gc=False):
    event_type: str | None = None


_type_only = msgspec.json.Decoder(_TypeOnly)


def decode_types(raws: Sequence[bytes]) -> list[str | None] | None:
    """Return the types of events, or None where one of them needs a look.

    That is the least that tells whether anybody wants them; the rest is only checked to be JSON.
    """
    decode = _type_only.decode
    try:
        return [decode(raw).event_type for raw in raws]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def read_head(raw: bytes) -> tuple[Head | BadEvent, bytes]:
    """Return an event's head and its bytes, mended where that helps. Never raises.

    An Identify object, which has no event type, becomes the event that it is (``as_event``).
    """
    head = decode_head(raw)
    if not isinstance(head, Head):
        head, raw = read_mended(head, raw)
    if isinstance(head, Head) and head.event_type is None:
        event = as_event(raw)
        return (head, raw) if event is raw else (decode_head(event), event)
    return head, raw


def read_mended(bad: BadEvent, raw: bytes) -> tuple[Head | BadEvent, bytes]:
    """Return what an event that could not be read is once it is mended, where that helps."""
    if bad.reason == "invalid_json":
        mended = mend(raw)
        if mended != raw:
            return decode_head(mended), mended
    return bad, raw


def _diagnose(raw: bytes, error: Exception) -> BadEvent:
    """Say which field is wrong: slow, and only for what could not be decoded."""
    try:
        fields = _fields.decode(raw)
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


_WANTED: Final = {Time | None: "a time", _Object | None: "an object"}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NULL: Final = msgspec.Raw(b"null")


def fields_of(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw] | None:
    """Return an object's fields, not decoded; None where it is no object."""
    try:
        return _fields.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def legible(raw: bytes) -> Head:
    """Return type and ids of an event, each where it can be read by itself. Never raises.

    A head is read as a whole: one field of a wrong kind would hide all others.
    """
    fields, head = fields_of(raw) or {}, Head()
    for name in ("event_type", "user_id", "device_id"):
        try:
            value = msgspec.json.decode(fields.get(name, _NULL), type=str | int | None)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        setattr(head, name, None if value is None else str(value))
    return head


def as_event(raw: bytes) -> bytes:
    """Return an event as it is, and an Identify object, which has no event type, as an event.

    An object with user properties is an Identify (webhook streaming page), one with group
    properties a Group Identify (Group Identify page).
    """
    fields = fields_of(raw)
    if fields is None or fields.get("event_type", _NULL) != _NULL:
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
        group_type = msgspec.json.decode(fields.get("group_type", _NULL), type=str | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        group_type = None
    groups = msgspec.json.encode({group_type or "": fields.get("group_value", _NULL)})
    rest = {k: v for k, v in fields.items() if k not in ("group_type", "group_value")}
    more = {"groups": msgspec.Raw(groups), "event_type": GROUP_IDENTIFY}
    return msgspec.json.encode({**rest, **more})


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "null" if value is None else "a number")


def check_head(head: Head, min_id_length: int = MIN_ID_LENGTH) -> BadEvent | None:
    """Return what Amplitude's servers would refuse about an event's head, or None.

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
    """Return what is wrong with a user or device id; empty and missing ones are absent.

    An id that is too long is refused where Amplitude would cut it: cut, it may be somebody else's.
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


def check_time(head: Head) -> BadEvent | None:
    """Return what is wrong with an event's time, in whatever dialect it is written, or None."""
    written = head.written_time
    if written is None or (type(written) is int and -MAX_TIME < written < MAX_TIME):
        return None
    try:
        parse_time(written)
    except ValueError as error:
        return BadEvent("invalid_field", "time", str(error))
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

    @property
    def leaves_user_alone(self) -> bool:
        """Whether its user properties are about the event only, and do not change the user."""
        return self.fields.get(SKIP_SYNC) is True


SKIP_SYNC: Final = "$skip_user_properties_sync"
"""Top-level key of an event that does not change its user (HTTP V2 page)."""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


NORMAL_NAMES: Final = {
    "$insert_id": "insert_id",
    "version_name": "app_version",
    "ip_address": "ip",
    "device_carrier": "carrier",
}
"""Export and old SDK spelling → HTTP V2 spelling (Export API and HTTP V2 pages)."""

TIMES: Final = ("time", "event_time", "timestamp", "client_event_time")
"""Names of an event's own time: HTTP V2's, else Export's, else the old SDK's, else the device's."""


def decode_event(raw: bytes) -> Event:
    """Return a whole event in normal form: that of HTTP V2.

    Raises:
        ValueError: not a JSON object, or its time cannot be read.
    """
    try:
        decoded = _decode_mended(_anything, raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise ValueError(f"an event is an object, this is {_kind(decoded)}")
    time_ms = _time_of(decoded)
    _normalize(decoded, time_ms)
    event_type = decoded.get("event_type")
    return Event(event_type if isinstance(event_type, str) else "", time_ms, decoded)


_anything = msgspec.json.Decoder()


def _decode_mended(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """Decode JSON, or what can be mended to it; raises as the decoder does."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        mended = mend(raw)
        if mended == raw:
            raise
        return decoder.decode(mended)


class Content(msgspec.Struct, gc=False):
    """What an event says, as far as mapping needs it: ``content_decoder`` makes one that reads it.

    ``time_ms`` is the event's own time in milliseconds, None where it has none.
    """

    event_type: Any = None
    time: Any = None
    event_properties: Any = None
    user_properties: Any = None
    event_time: Any = None
    timestamp: Any = None
    client_event_time: Any = None
    skip_sync: Any = msgspec.field(default=None, name=SKIP_SYNC)
    time_ms: Any = msgspec.field(default=None, name="(time_ms)")  # worked out, not read
    _fields: Any = msgspec.field(default=None, name="(fields)")  # nor is this

    EXTRA: ClassVar[Mapping[str, str]] = {}
    """Further top-level fields that are read, as they are spelled, by attribute."""

    @property
    def fields(self) -> dict[str, Any]:
        """The top-level fields that were read, in normal form."""
        if self._fields is None:
            self._fields = self._normal_fields()
        fields: dict[str, Any] = self._fields
        return fields

    def _normal_fields(self) -> dict[str, Any]:
        found = {
            "event_type": self.event_type,
            "event_properties": self.event_properties,
            "user_properties": self.user_properties,
        }
        if self.event_time is not None:
            found["event_time"] = self.event_time
        for attribute, name in self.EXTRA.items():
            value = getattr(self, attribute)
            if value is not None:
                found[name] = value
        _normalize(found, self.time_ms)
        return found

    @property
    def leaves_user_alone(self) -> bool:
        """Whether its user properties are about the event only, and do not change the user."""
        return self.skip_sync is True

    @property
    def time_was_guessed(self) -> bool:
        """Whether its time is a number that counts something else than milliseconds."""
        written = self._written_time()
        if isinstance(written, str):
            digits = written.strip()
            return bool(_NUMBER.fullmatch(digits)) and int(digits) != self.time_ms
        return written is not None and written != self.time_ms

    def _written_time(self) -> Any:
        times = (self.time, self.event_time, self.timestamp, self.client_event_time)
        return next((time for time in times if time is not None), None)


def content_decoder(fields: Iterable[str] = ()) -> Callable[[bytes], Content]:
    """Return a function that reads what an event says, whatever dialect it is written in.

    It reads less than all of it. ``fields`` are top-level fields to read beside the properties, by
    their names in HTTP V2. The function raises ValueError for what is not a JSON object, and for a
    time that cannot be read.
    """
    read = {field.encode_name for field in msgspec.structs.fields(Content)}
    names = sorted({name for field in fields for name in _spellings(field)} - read)
    extra = {f"field_{number}": name for number, name in enumerate(names)}
    kind = msgspec.defstruct(
        "Content",
        [(a, Any, msgspec.field(default=None, name=name)) for a, name in extra.items()],
        bases=(Content,),
        namespace={"EXTRA": extra},
        gc=False,
    )
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def decode(raw: bytes) -> Content:
        try:
            content: Content = decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            content = _decode_badly_written(decoder, raw)
        content._fields = None
        time = content.time
        if type(time) is int and 10**11 <= time < 10**14:  # nearly all are: milliseconds
            content.time_ms = time
        else:
            written = content._written_time()
            content.time_ms = None if written is None else parse_time(written)
        if type(content.event_type) is not str:
            content.event_type = ""
        if type(content.event_properties) is not dict:
            content.event_properties = {}
        if type(content.user_properties) is not dict:
            content.user_properties = {}
        return content

    return decode


def _spellings(field: str) -> Iterator[str]:
    """Yield the names of a top-level field in all dialects."""
    yield field
    yield from (theirs for theirs, ours in NORMAL_NAMES.items() if ours == field)
    if field == "insert_id":
        yield "uuid"


def _decode_badly_written(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return _decode_mended(decoder, raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(_diagnose(raw, error).message) from None


def _time_of(fields: dict[str, Any]) -> int | None:
    for name in TIMES:
        if fields.get(name) is not None:
            return parse_time(fields[name])
    return None


def _normalize(fields: dict[str, Any], time_ms: int | None) -> None:
    """Bring the top-level fields of any dialect into the spelling of HTTP V2, in place."""
    for name in ("user_id", "device_id", "insert_id", "$insert_id", "uuid"):
        if type(fields.get(name)) is int:
            fields[name] = str(fields[name])
    if fields.get("uuid") and "event_time" not in fields:
        fields.setdefault("insert_id", fields["uuid"])  # the old JavaScript SDK's
    for theirs, ours in NORMAL_NAMES.items():
        if theirs in fields:
            value = fields.pop(theirs)
            if fields.get(ours) is None:
                fields[ours] = value
    if time_ms is not None:
        fields["time"] = time_ms
        fields.pop("event_time", None)
        fields.pop("timestamp", None)
    library = fields.get("library")
    if isinstance(library, dict):  # the old JavaScript SDK's
        parts = (library.get("name"), library.get("version"))
        fields["library"] = "/".join(part for part in parts if isinstance(part, str))
    if fields.get("session_id") == -1:  # outside of any session
        fields["session_id"] = None


def parse_time(value: Any) -> int:
    """Return Unix milliseconds of a time as Amplitude's dialects write it.

    A whole number, or its digits as text, in milliseconds, seconds, micro- or nanoseconds, which
    its size tells apart (``in_milliseconds``). Or a date as text: ``2020-11-24 09:59:55.977000``,
    ``T`` or space, 0 to 6 fraction digits, ``Z``, ``UTC`` or an offset, none of them meaning UTC,
    the date with dashes or colons (Export API page; real files). A leap second, ``23:59:60``, is
    the second after it.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return in_milliseconds(value)
    if isinstance(value, float) and value.is_integer():
        return in_milliseconds(int(value))
    if isinstance(value, str):
        text = value.strip()
        return in_milliseconds(int(text)) if _NUMBER.fullmatch(text) else _parse_date(text)
    raise ValueError(f"not a time: {_kind(value)}")


_NUMBER: Final = re.compile(r"-?(?:[0-9]{1,7}|[0-9]{9,20})")
"""A number as text; eight digits are a date without its dashes."""

_DATE: Final = re.compile(r"[0-9]{8}|[0-9]{4}-.{1,60}", re.DOTALL)

_LEAP_SECOND: Final = re.compile(r"(?<=[0-9]{2}:[0-9]{2}:)60")


_WITH_COLONS: Final = re.compile(r"[0-9]{4}:[0-9]{2}:[0-9]{2}[T ]")


def _parse_date(text: str) -> int:
    text = text.removesuffix(" UTC")
    if _WITH_COLONS.match(text):
        text = text[:10].replace(":", "-") + text[10:]
    before, leaps = _LEAP_SECOND.subn("59", text, count=1) if _DATE.fullmatch(text) else ("", 0)
    try:
        moment = dt.datetime.fromisoformat(before)
    except ValueError:
        raise ValueError(f"not a time: {text[:40]!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MILLISECOND + 1000 * leaps


MAX_TIME: Final = 10**20
"""Numbers from here on are no time in any unit."""


def in_milliseconds(time: int) -> int:
    """Return a time in milliseconds that may be in seconds, micro- or nanoseconds, by its size.

    As milliseconds, anything from 1973 to 5138 is taken as it is.

    Raises:
        ValueError: it is beyond all of these.
    """
    if abs(time) >= MAX_TIME:
        raise ValueError("not a time: a number of too many digits")
    if 10**8 <= time < 10**11:
        return time * 1000
    while time >= 10**14:
        time //= 1000
    return time


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND: Final = dt.timedelta(milliseconds=1)


MAX_MENDED: Final = 100_000
"""Values that are mended in one text: fifty for each event of a full request."""

_UP_TO_A_HALF: Final = re.compile(
    rb"((?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(?!u[dD][89a-fA-F]).){0,20000}+)"
    rb"(?:(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|(.?))",
    re.DOTALL,
)
"""Text up to a half of a surrogate pair (group 2), or to what is no escape (3), or the end.

One match takes thousands of pieces: a body full of escapes must not cost a call for each of them.
And no more than thousands: other threads have their turn only between two matches.
"""

_UP_TO_NO_NUMBER: Final = re.compile(
    rb'((?:[^"NI0-9-]++'
    rb'|"(?:[^"\\]++|\\.){0,100}+"'  # a text, whatever it holds
    rb"|-?[0-9]{1,200}+(?:\.[0-9]++)?+(?:[eE](?:-[0-9]++|\+?[0-9]{1,2}+))?+(?![0-9.eE+-])"
    rb"|N(?!aN)|I(?!nfinity)|-(?!Infinity|[0-9])){0,5000}+)"
    rb"(?:(NaN|-?Infinity)|(-?[0-9][0-9.eE+-]*+)"
    rb'|("(?:[^"\\]++|\\.){0,200000}+(?:"|.*+\Z)))?',
    re.DOTALL,
)
"""JSON up to what is no number (group 2), or may be beyond all floats (3), or a long text (4).

In pieces as above, but for one long text; all that follows one that is longer still, or has no end,
counts as part of it.
"""


def mend(raw: bytes) -> bytes:
    """Return JSON in which a writer's slip costs the value, and not all that came with it.

    Python, Java and JavaScript writers cut strings between the halves of an emoji, which becomes
    U+FFFD, and write ``NaN``, ``Infinity`` and numbers beyond any float, which become null. Takes
    time in proportion to the length; for what could not be decoded.
    """
    return _UP_TO_NO_NUMBER.sub(_mend_number, mend_surrogates(raw), MAX_MENDED)


def mend_surrogates(raw: bytes) -> bytes:
    """Return JSON with U+FFFD for each half of a surrogate pair, which is not text."""
    return _UP_TO_A_HALF.sub(_mend_surrogate, raw, MAX_MENDED) if b"\\u" in raw else raw


def _mend_surrogate(found: re.Match[bytes]) -> bytes:
    return found[1] + (b"\\ufffd" if found[2] else found[3])


def _mend_number(found: re.Match[bytes]) -> bytes:
    before, no_number, number, text = found.groups(b"")
    if no_number or (number and not _is_number(number)):
        return before + b"null"
    return before + number + text


def _is_number(token: bytes) -> bool:
    try:
        _anything.decode(token)
    except msgspec.DecodeError:
        return False
    return True
