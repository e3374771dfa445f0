"""From an Amplitude event to what Intercom takes. Pure: the same event gives the same bytes.

Intercom's rules that are kept here, and where they are from:

- an event has ``event_name``, ``created_at`` in Unix seconds and one of ``user_id`` (the contact's
  ``external_id``) and ``email`` (API description 2.16, ``POST /events``);
- names of events and metadata keys have no ``.`` and no ``$``, keys none of
  ``~`!@#%^&*'{}|\\"`` (help article 175 "Set up event tracking"); what is illegal
  becomes ``-`` in names and ``_`` in keys;
- texts have at most 255 characters (help articles 175 and 179);
- surplus metadata keys are ignored in the order sent, so the selection's order is the priority;
- nested values are not supported, but a rich link ``{url, value}`` and an amount of money
  ``{amount, currency}`` are (API description 2.16); an empty object or array makes Intercom ignore
  the event, so both are left out;
- contacts take a closed set of standard fields, all else goes into ``custom_attributes`` as text,
  number or boolean (API description 2.16; intercom-node #215).
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine import config
from engine.envelope import ContactUpdate, Identity, Kind, Plan, Record, Verdict
from engine.user_properties import select, split
from transports import amplitude

MAX_TEXT: Final = 255
MAX_ID: Final = 255
LOOP_PREFIX: Final = "[Intercom] "
ATTRIBUTE_PREFIX: Final = "custom_attributes."

STANDARD_FIELDS: Final = frozenset(
    {
        "name",
        "email",
        "phone",
        "avatar",
        "signed_up_at",
        "last_seen_at",
        "owner_id",
        "unsubscribed_from_emails",
        "role",
        "external_id",
        "language_override",
    }
)
"""Fields of the contact itself (API description 2.16)."""

DATE_FIELDS: Final = frozenset({"signed_up_at", "last_seen_at"})

_ILLEGAL_IN_NAME = re.compile(r"[.$]")
_ILLEGAL_IN_KEY = re.compile(r"[.$~`!@#%^&*'{}|\\\"\x00]")

ZERO_DECIMAL: Final = frozenset(
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split()
)
THREE_DECIMAL: Final = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})
"""Currencies whose minor unit is not a hundredth (ISO 4217, table A.1)."""

_CURRENCY = re.compile(r"[A-Za-z]{3}")
_encoder = msgspec.json.Encoder()


class Rules:
    """One sync's mapping, compiled from its settings."""

    def __init__(self, sync: config.Sync) -> None:
        self._sync = sync
        self._field = sync.mapping.identifier
        scope, _, name = sync.mapping.source.partition(".")
        self._scope, self._name = scope, name
        self._metadata = [_metadata_source(item) for item in sync.events.metadata]
        self._properties = {
            source.removeprefix("user."): field_name(target)
            for source, target in map(config.source_and_target, sync.users.properties)
        }

    # --- who ------------------------------------------------------------------------------

    @property
    def identity_in_head(self) -> bool:
        """Whether the identity can be told from an event's head alone."""
        return self._scope in ("user_id", "device_id")

    def identity_of_head(self, head: amplitude.Head) -> str:
        """Return the contact's key, or an empty text where there is none."""
        value = head.user_id if self._scope == "user_id" else head.device_id
        return self._normal(value)

    def identity_of_event(self, event: amplitude.Event) -> str:
        """Return the contact's key, or an empty text where there is none."""
        if self._scope == "user":
            properties = event.user_properties
            given = split(properties).operations.get("$set", {})
            return self._normal(given.get(self._name, properties.get(self._name)))
        if self._scope == "event":
            return self._normal(event.event_properties.get(self._name))
        return self._normal(event.fields.get(self._scope))

    def _normal(self, value: Any) -> str:
        """E-mails compare without case and outer space; ids are taken as they are."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return ""
        text = str(value)
        return text.strip().lower() if self._field == "email" else text

    # --- what -----------------------------------------------------------------------------

    def plan(self, record: Record) -> Plan | Verdict:
        """Return what delivering a record takes, or why it makes no call. Never raises."""
        try:
            event = amplitude.decode_event(record.raw)
        except ValueError as error:
            return Verdict("reject", "invalid_field", str(error))
        key = record.user_key
        if len(key) > MAX_ID or "\x00" in key or (self._field == "email" and "@" not in key):
            return Verdict("reject", "invalid_identity", f"{self._field}: {key[:MAX_TEXT]!r}")
        identity = Identity(self._field, key)
        contact = self._contact(event, identity, record.id)
        if record.kind is Kind.IDENTIFY or not self._sends(event):
            return Plan(identity, contact) if contact else Verdict("drop", "unchanged")
        body, adjustments = self._event(event, identity, record.accepted_at_ms)
        return Plan(identity, contact, body, tuple(adjustments))

    def _sends(self, event: amplitude.Event) -> bool:
        """Whether the event itself goes out: asked again here, since a replay may be old."""
        return self._sync.events.enabled and event.event_type != amplitude.IDENTIFY

    def _contact(
        self, event: amplitude.Event, identity: Identity, record_id: int
    ) -> ContactUpdate | None:
        identify = event.event_type == amplitude.IDENTIFY
        if not self._sync.users.enabled or not (identify or self.updates_on_events):
            return None
        operations = select(split(event.user_properties).operations, self._properties)
        if not operations and not identify:
            return None
        return ContactUpdate(identity, operations, record_id)

    @property
    def updates_on_events(self) -> bool:
        """Whether events that carry selected user properties update the contact too."""
        users = self._sync.users
        return users.enabled and users.trigger == "any_update" and bool(self._properties)

    def carries_update(self, event: amplitude.Event) -> bool:
        """Whether an event has anything to say about selected user properties."""
        return bool(select(split(event.user_properties).operations, self._properties))

    # --- events ---------------------------------------------------------------------------

    def _event(
        self, event: amplitude.Event, identity: Identity, accepted_at_ms: int
    ) -> tuple[dict[str, Any], list[str]]:
        metadata, adjustments = self._metadata_of(event)
        body: dict[str, Any] = {
            "event_name": _ILLEGAL_IN_NAME.sub("-", event.event_type),
            "created_at": created_at_s(event.time_ms, accepted_at_ms),
            "user_id" if identity.field == "external_id" else "email": identity.value,
        }
        if metadata:
            body["metadata"] = metadata
        return body, adjustments

    def _metadata_of(self, event: amplitude.Event) -> tuple[dict[str, Any], list[str]]:
        sources = {"event": event.event_properties, "user": event.user_properties}
        metadata: dict[str, Any] = {}
        adjustments: list[str] = []
        taken: set[str] = set()
        for scope, source, target in self._metadata:
            value = sources[scope].get(source)
            if scope == "event" and source in self._sync.events.money:
                currency = event.event_properties.get(self._sync.events.money[source])
                value = money(value, currency) or value
            key = _ILLEGAL_IN_KEY.sub("_", target)
            fitted, note = fit(value)
            if note:
                adjustments.append(f"metadata.{key}: {note}")
            if fitted is None:
                continue
            if len(metadata) == self._sync.events.metadata_limit:
                adjustments.append(f"metadata.{key}: left out, {len(metadata)} keys are there")
            elif key.lower() in taken:
                adjustments.append(f"metadata.{key}: left out, equal to another key but for case")
            else:
                taken.add(key.lower())
                metadata[key] = fitted
        return metadata, adjustments

    # --- contacts -------------------------------------------------------------------------

    @property
    def properties(self) -> Mapping[str, str]:
        """Selected user properties and the contact field that each goes to."""
        return self._properties

    def contact_fields(self, properties: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the contact's fields for a user's properties, flat, and what was adjusted.

        Custom attributes are named ``custom_attributes.NAME``; ``contact_body`` nests them.
        """
        fields: dict[str, Any] = {}
        adjustments: list[str] = []
        for source, name in self._properties.items():
            value = properties.get(source)
            fitted, note = fit(_as_date(value) if name in DATE_FIELDS else value, nested=False)
            if note:
                adjustments.append(f"{name}: {note}")
            if fitted is not None:
                fields[name] = fitted
        return fields, adjustments

    def properties_of_contact(self, contact: Mapping[str, Any]) -> dict[str, Any]:
        """Return the selected properties as a contact read from Intercom holds them."""
        custom = contact.get("custom_attributes") or {}
        flat = {**contact, **{ATTRIBUTE_PREFIX + name: value for name, value in custom.items()}}
        return {
            source: flat[name]
            for source, name in self._properties.items()
            if flat.get(name) not in (None, "")
        }


def event_body(event: Mapping[str, Any], second: int | None = None) -> bytes:
    """Return the body of ``POST /events``; ``second`` replaces the event's own ``created_at``."""
    return _encoder.encode(event if second is None else {**event, "created_at": second})


def field_name(target: str) -> str:
    """Return the flat name of a contact's field: standard ones as they are, else an attribute's."""
    return target if target in STANDARD_FIELDS else ATTRIBUTE_PREFIX + target


def contact_body(fields: Mapping[str, Any]) -> bytes:
    """Return the body of a contact write for flat fields."""
    body = {k: v for k, v in fields.items() if not k.startswith(ATTRIBUTE_PREFIX)}
    custom = {
        k.removeprefix(ATTRIBUTE_PREFIX): v
        for k, v in fields.items()
        if k.startswith(ATTRIBUTE_PREFIX)
    }
    return _encoder.encode({**body, "custom_attributes": custom} if custom else body)


def creation_body(identity: Identity, fields: Mapping[str, Any]) -> bytes:
    """Return the body that creates a user with these fields."""
    return contact_body({"role": "user", identity.field: identity.value, **fields})


def _metadata_source(item: str | config.Rename) -> tuple[str, str, str]:
    """Return scope, property and target of a selected metadata property."""
    source, target = config.source_and_target(item)
    scope, dot, name = source.partition(".")
    if dot and scope in ("user", "event"):
        return scope, name, target
    return "event", source, target


def created_at_s(time_ms: int | None, accepted_at_ms: int) -> int:
    """Return an event's Unix second: its own time, never later than when it was accepted.

    A clock that is ahead would put events into Intercom's future; the bound is the moment of
    acceptance and not of sending, so that a retry says the same.
    """
    own = accepted_at_ms if time_ms is None else min(time_ms, accepted_at_ms)
    return max(0, own) // 1000


def fit(value: Any, *, nested: bool = True) -> tuple[Any, str]:
    """Return a value as Intercom takes it, or None, and what was done to it.

    ``nested``: whether rich links and money may pass (metadata yes, attributes no).
    """
    if value is None or isinstance(value, bool | int):
        return value, ""
    if isinstance(value, float):
        return (value, "") if math.isfinite(value) else (None, "not a finite number, left out")
    if isinstance(value, str):
        if len(value) <= MAX_TEXT:
            return value, ""
        return value[:MAX_TEXT], f"cut from {len(value)} to {MAX_TEXT} characters"
    if nested and (_is_money(value) or _is_rich_link(value)):
        return value, ""
    if not value:
        return None, ""
    return None, "nested, left out"


def _is_money(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"amount", "currency"}
        and type(value["amount"]) is int
        and value["amount"] >= 0
        and isinstance(value["currency"], str)
        and len(value["currency"]) == 3
    )


def _is_rich_link(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"url", "value"}
        and all(isinstance(v, str) and len(v) <= MAX_TEXT for v in value.values())
        and value["url"].startswith(("http://", "https://"))
    )


def money(value: Any, currency: Any) -> dict[str, Any] | None:
    """Return a monetary amount in the currency's minor unit, exactly, or None if it is none.

    ``19.99`` and ``USD`` give 1999 of ``usd``; halves round to even. Negative amounts are not
    amounts to Intercom (API description 2.16: "a positive integer").
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        return None
    code = currency.upper()
    digits = 0 if code in ZERO_DECIMAL else 3 if code in THREE_DECIMAL else 2
    try:
        # One rounding, of the number as written: scaling first would round to 28 digits before.
        amount = decimal.Decimal(str(value)).quantize(decimal.Decimal(1).scaleb(-digits))
        minor = int(amount.scaleb(digits))
    except (decimal.DecimalException, ValueError, OverflowError):
        return None  # no number, not a finite one, or one that no price has
    return {"amount": minor, "currency": code.lower()} if 0 <= minor < 2**53 else None


def _as_date(value: Any) -> Any:
    """Return Unix seconds of a date in whatever way it is written; anything else unchanged."""
    if isinstance(value, str):
        try:
            return amplitude.parse_time(value) // 1000
        except ValueError:
            return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 10**11:
        return int(value) // 1000
    return value
