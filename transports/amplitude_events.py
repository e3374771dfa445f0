"""Reading a whole Amplitude event in one normal form, HTTP V2's, from any dialect. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

import msgspec

from amplitude_intercom.transports.amplitude_heads import diagnose
from amplitude_intercom.transports.amplitude_times import NUMBER, kind_of, parse_time
from amplitude_intercom.transports.mending import mend

_anything = msgspec.json.Decoder()


class Event(msgspec.Struct):
    """An event in normal form. ``fields`` holds all of it, with normalised top-level names."""

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
        raise ValueError(f"an event is an object, this is {kind_of(decoded)}")
    time_ms = _time_of(decoded)
    _normalize(decoded, time_ms)
    event_type = decoded.get("event_type")
    return Event(event_type if isinstance(event_type, str) else "", time_ms, decoded)


def _decode_mended(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    """Return decoded JSON, mended where needed; raises as the decoder does."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        mended = mend(raw)
        if mended == raw:
            raise
        return decoder.decode(mended)


class Content(msgspec.Struct, gc=False):
    """The part of an event that mapping needs, as ``content_decoder`` reads it.

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
            return bool(NUMBER.fullmatch(digits)) and int(digits) != self.time_ms
        return written is not None and written != self.time_ms

    def _written_time(self) -> Any:
        times = (self.time, self.event_time, self.timestamp, self.client_event_time)
        return next((time for time in times if time is not None), None)


def content_decoder(fields: Iterable[str] = ()) -> Callable[[bytes], Content]:
    """Return a function that reads the content of an event in any dialect.

    ``fields`` are top-level fields to read beside the properties, by their names in HTTP V2; others
    are skipped. The function raises ValueError for a text that is no JSON object, and for a time
    that cannot be read.
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
        raise ValueError(diagnose(raw, error).message) from None


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
