"""From an Amplitude event to what Intercom takes. Pure: the same event gives the same bytes.

- An event has ``event_name``, ``created_at`` in Unix seconds and one of ``user_id`` (the contact's
  ``external_id``) and ``email`` (API description 2.16, ``POST /events``).
- Surplus metadata keys are ignored in the order sent, so the selection's order is the priority (API
  description 2.16), and keys are told apart without case (help article 175).
- A contact takes a closed set of standard fields; all else is a custom attribute, which has to
  exist and has a type (API description 2.16, ``POST /contacts``).
- No limit of a request's size is known; 256 kB are kept to.

What becomes of a single value is ``engine.fitting``'s, of a price ``engine.money``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec

from engine import config
from engine.envelope import ContactUpdate, Identity, Kind, Plan, Record, Verdict
from engine.fitting import (
    Adjustment,
    Style,
    fit_attribute,
    fit_key,
    fit_name,
    is_date_key,
    is_plain,
    spread,
    type_for,
)
from engine.money import is_exact, money
from engine.selection import dig
from engine.user_properties import select, split
from transports import amplitude
from transports.amplitude import Content, in_milliseconds

NAMES_KEPT: Final = 1_024
"""Event names of which it is remembered how they are sent."""

MAX_ID: Final = 255
MAX_BODY_BYTES: Final = 256_000
MOST_BYTES_A_KEY: Final = 6 * 3 * 255 + 64
"""A key and its value as JSON, at most: three texts (a link has two), six bytes a character."""

LOOP_PREFIX: Final = "[Intercom] "
ATTRIBUTE_PREFIX: Final = "custom_attributes."

_encoder = msgspec.json.Encoder()

STANDARD_TYPES: Final[Mapping[str, str]] = {
    "role": "role",
    "external_id": "string",
    "email": "email",
    "phone": "string",
    "name": "string",
    "avatar": "url",
    "owner_id": "integer",
    "signed_up_at": "date",
    "last_seen_at": "date",
    "unsubscribed_from_emails": "boolean",
}
"""Fields of the contact itself that can be written, and their types (API description 2.14)."""


class Types(Protocol):
    """What is known of a workspace's custom attributes."""

    def type_of(self, name: str) -> str | None:
        """Return an attribute's type, empty where it is not known; None: there is no such one."""
        ...


class AnyAttribute:
    """Nothing is known, so everything may be there."""

    def type_of(self, name: str) -> str | None:
        return ""


class Rules:
    """One sync's mapping, compiled from its settings."""

    def __init__(self, sync: config.Sync) -> None:
        self._sync = sync
        self._field = sync.mapping.identifier
        scope, _, name = sync.mapping.source.partition(".")
        self._scope, self._name = scope, name
        self.identity_in_head = scope in ("user_id", "device_id")
        """Whether the identity can be told from an event's head alone."""
        self._style = Style(sync.mapping.nested, sync.mapping.arrays, sync.mapping.stringify)
        self._metadata = [_metadata_source(item) for item in sync.events.metadata]
        self._amounts = sync.events.money
        targets = {target.lower() for _, _, target, _ in self._metadata}
        distinct = len(targets) == len(self._metadata)
        self._plain_limit = sync.events.metadata_limit if distinct else 0
        self._properties = {
            source.removeprefix("user."): field_name(target)
            for source, target in map(config.source_and_target, sync.users.properties)
        }

        users = sync.users
        self.updates_on_events = (
            users.enabled and users.trigger == "any_update" and bool(self._properties)
        )
        """Whether events that carry selected user properties update the contact too."""
        self._fit_name = lru_cache(NAMES_KEPT)(fit_name)

    # --- who ------------------------------------------------------------------------------

    def identity_of_head(self, head: amplitude.Head) -> str:
        """Return the contact's key, or an empty text where there is none."""
        value = head.user_id if self._scope == "user_id" else head.device_id
        return self._normal(value)

    def identity_of_event(self, event: amplitude.Event) -> str:
        """Return the contact's key, or an empty text where there is none."""
        if self._scope == "user":
            return self._normal(_user_value(event, self._name))
        if self._scope == "event":
            return self._normal(dig(event.event_properties, self._name))
        return self._normal(event.fields.get(self._scope))

    def _normal(self, value: Any) -> str:
        """E-mails compare without case and outer space; ids are taken as they are."""
        if type(value) is str:
            text = value
        elif type(value) is int:
            text = _digits(value)
        else:
            return ""
        return text.strip().lower() if self._field == "email" else text

    # --- what -----------------------------------------------------------------------------

    def plan(self, record: Record) -> Plan | Verdict:
        """Return what delivering a record takes, or why it makes no call. Never raises."""
        try:
            event = amplitude.decode_content(record.raw)
        except ValueError as error:
            return Verdict("reject", "invalid_field", str(error))
        if not event.event_type:
            return Verdict("reject", "missing_field", "event_type is missing")
        identity = Identity(self._field, record.user_key)
        if not _is_acceptable(identity):
            shown = record.user_key[:MAX_ID]
            return Verdict("reject", "invalid_identity", f"{self._field}: {shown!r}")
        contact, adjustments = self._contact(event, identity, record.id)
        if record.kind is Kind.IDENTIFY or not self._sends(event):
            if contact is None:
                return Verdict("drop", "unchanged")
            return Plan(identity, contact, adjustments=tuple(adjustments))
        created_at = self._created_at(event, record.accepted_at_ms, adjustments)
        if isinstance(created_at, Verdict):
            return created_at
        body = self._event(event, identity, created_at, adjustments)
        return Plan(identity, contact, body, tuple(adjustments))

    def _sends(self, event: Content) -> bool:
        """Whether the event itself goes out: asked again here, since a replay may be old."""
        return self._sync.events.enabled and event.event_type != amplitude.IDENTIFY

    def _contact(
        self, event: Content, identity: Identity, record_id: int
    ) -> tuple[ContactUpdate | None, list[Adjustment]]:
        identify = event.event_type == amplitude.IDENTIFY
        if not self._sync.users.enabled or not (identify or self.updates_on_events):
            return None, []
        found = split(event.user_properties)
        operations = select(found.operations, self._properties)
        if not operations and not identify:
            return None, []
        problems = [Adjustment("operation_refused", "user_properties", p) for p in found.problems]
        return ContactUpdate(identity, operations, record_id), problems

    def carries_update(self, event: amplitude.Event) -> bool:
        """Whether an event has anything to say about selected user properties."""
        return bool(select(split(event.user_properties).operations, self._properties))

    # --- events ---------------------------------------------------------------------------

    def _created_at(
        self, event: Content, accepted_at_ms: int, adjustments: list[Adjustment]
    ) -> int | Verdict:
        """Return an event's Unix second: its own time, as far as that can be.

        A clock that is ahead would put events into Intercom's future; the bound is the moment of
        acceptance and not of sending, so that a retry says the same.
        """
        if event.time_ms is None:
            return accepted_at_ms // 1000
        time_ms = in_milliseconds(event.time_ms)
        if time_ms != event.time_ms:
            adjustments.append(Adjustment("time_unit", "created_at", "not in milliseconds"))
        second, accepted_s = time_ms // 1000, accepted_at_ms // 1000
        if second > accepted_s + self._sync.events.max_ahead_s:
            what = f"{second - accepted_s} s ahead, the moment of acceptance instead"
            adjustments.append(Adjustment("time_ahead", "created_at", what))
            return accepted_s
        oldest_s = self._sync.events.max_age_s
        if second < max(0, accepted_s - oldest_s):
            age = f"{accepted_s - second} s before it was accepted"
            return Verdict("reject", "too_old", f"{age}; sync.events.max_age_s is {oldest_s:.0f}")
        return second

    def _event(
        self,
        event: Content,
        identity: Identity,
        created_at: int,
        adjustments: list[Adjustment],
    ) -> dict[str, Any]:
        wanted = self._sync.events.rename.get(event.event_type, event.event_type)
        name = self._fit_name(wanted)
        if name != wanted:
            adjustments.append(Adjustment("name_cleaned", "event_name", f"sent as {name!r}"))
        body: dict[str, Any] = {
            "event_name": name,
            "created_at": created_at,
            "user_id" if identity.field == "external_id" else "email": identity.value,
        }
        metadata = self._metadata_of(event, adjustments)
        if metadata:
            body["metadata"] = metadata
            _fit_size(body, metadata, adjustments)
        return body

    def _metadata_of(self, event: Content, adjustments: list[Adjustment]) -> dict[str, Any]:
        """Return an event's metadata: at once where it is as most is, else value by value."""
        found = self._plain_metadata(event)
        return self._fitted_metadata(event, adjustments) if found is None else found

    def _plain_metadata(self, event: Content) -> dict[str, Any] | None:
        """Return the metadata where every value goes as it is; None where one has to be fitted."""
        metadata: dict[str, Any] = {}
        properties, style, amounts = event.event_properties, self._style, self._amounts
        for scope, source, target, dated in self._metadata:
            value = properties.get(source) if scope == "event" else _user_value(event, source)
            if value is None:
                if "." in source and dig(properties, source) is not None:
                    return None
            elif dated or source in amounts or not is_plain(value, style):
                return None
            else:
                metadata[target] = value
        return metadata if len(metadata) <= self._plain_limit else None

    def _fitted_metadata(self, event: Content, adjustments: list[Adjustment]) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        taken: set[str] = set()
        properties = event.event_properties
        for scope, source, target, dated in self._metadata:
            value = properties.get(source) if scope == "event" else _user_value(event, source)
            if value is None and scope == "event":
                value = dig(properties, source)
            if value is None:
                continue
            if scope == "event" and source in self._amounts:
                value = self._money(event, source, target, value, adjustments)
            if not dated and is_plain(value, self._style):
                self._put(metadata, taken, target, value, adjustments)
                continue
            for wanted, (fitted, note) in spread(target, value, self._style):
                key = wanted if wanted == target else fit_key(wanted)
                if note is not None:
                    adjustments.append(Adjustment(note.reason, f"metadata.{key}", note.what))
                if fitted is not None:
                    self._put(metadata, taken, key, fitted, adjustments)
                    if key != wanted:
                        what = f"{wanted[:MAX_ID]!r}, with `_` for what keys cannot have"
                        adjustments.append(Adjustment("key_cleaned", f"metadata.{key}", what))
        return metadata

    def _put(
        self,
        metadata: dict[str, Any],
        taken: set[str],
        key: str,
        value: Any,
        adjustments: list[Adjustment],
    ) -> None:
        """Add a key, unless there is one like it, or as many as there may be."""
        if key.lower() in taken:
            what = "left out, equal to another key but for case"
            adjustments.append(Adjustment("key_collision", f"metadata.{key}", what))
        elif len(metadata) == self._sync.events.metadata_limit:
            what = f"left out, {len(metadata)} keys are there"
            adjustments.append(Adjustment("too_many_keys", f"metadata.{key}", what))
        else:
            taken.add(key.lower())
            metadata[key] = value

    def _money(
        self,
        event: Content,
        source: str,
        target: str,
        value: Any,
        adjustments: list[Adjustment],
    ) -> Any:
        """Return a price as an amount in minor units, or as it is where it is none."""
        currency = self._sync.events.money[source]
        amount = money(value, dig(event.event_properties, currency))
        if amount is None:
            what = f"no amount in the currency that `{currency}` says, sent as it is"
            adjustments.append(Adjustment("not_money", f"metadata.{target}", what))
            return value
        if not is_exact(value, amount):
            what = f"rounded to {amount['amount']} of the minor unit"
            adjustments.append(Adjustment("amount_rounded", f"metadata.{target}", what))
        return amount

    # --- contacts -------------------------------------------------------------------------

    @property
    def properties(self) -> Mapping[str, str]:
        """Selected user properties and the contact field that each goes to."""
        return self._properties

    def attributes_of(self, properties: Mapping[str, Any]) -> dict[str, str]:
        """Return the custom attributes that a user's properties would fill, and of which type."""
        found: dict[str, str] = {}
        for source, name in self._properties.items():
            value = properties.get(source)
            if value is not None and name.startswith(ATTRIBUTE_PREFIX):
                data_type = type_for(source, value, self._style)
                if data_type is not None:
                    found[name.removeprefix(ATTRIBUTE_PREFIX)] = data_type
        return found

    def contact_fields(
        self, properties: Mapping[str, Any], types: Types
    ) -> tuple[dict[str, Any], list[Adjustment]]:
        """Return the contact's fields for a user's properties, flat, and what was adjusted.

        Custom attributes are named ``custom_attributes.NAME``; ``contact_body`` nests them. The
        field that identifies the contact is not among them.
        """
        fields: dict[str, Any] = {}
        adjustments: list[Adjustment] = []
        for source, name in self._properties.items():
            value = properties.get(source)
            if value is None or name == self._field:
                continue
            data_type = type_of(name, types)
            if data_type is None:
                what = "left out, the workspace has no such attribute"
                adjustments.append(Adjustment("unknown_attribute", name, what))
                continue
            fitted, note = fit_attribute(source, value, data_type, self._style)
            if note is not None:
                adjustments.append(Adjustment(note.reason, name, note.what))
            if fitted is not None:
                fields[name] = fitted
        _fit_size(fields, fields, adjustments)
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


def _is_acceptable(identity: Identity) -> bool:
    """Whether Intercom can find somebody by this; how long an id may be is not documented."""
    value = identity.value
    if not value or len(value) > MAX_ID or not value.isprintable() or not value.strip():
        return False
    if identity.field != "email":
        return True
    local, at, domain = value.rpartition("@")
    return bool(local and at and domain) and " " not in value


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # more digits than Python is willing to write: nobody's id
        return ""


def _user_value(event: Content | amplitude.Event, name: str) -> Any:
    """Return a property that an event itself says of its user: a plain key, or one that it sets."""
    given = event.user_properties
    sets = given.get("$set")
    found = dig(sets, name) if isinstance(sets, dict) else None
    return found if found is not None else dig(given, name)


def _fit_size(
    body: dict[str, Any], droppable: dict[str, Any], adjustments: list[Adjustment]
) -> None:
    """Take the last keys out of ``droppable``, which is in ``body``, until that is small enough."""
    if len(droppable) * MOST_BYTES_A_KEY < MAX_BODY_BYTES:
        return
    while droppable and len(_encoder.encode(body)) > MAX_BODY_BYTES:
        name, _ = droppable.popitem()
        adjustments.append(Adjustment("too_large", name, "left out, the request is too large"))


def event_body(event: Mapping[str, Any], second: int | None = None) -> bytes:
    """Return the body of ``POST /events``; ``second`` replaces the event's own ``created_at``."""
    if second is None or second == event["created_at"]:
        return _encoder.encode(event)
    return _encoder.encode({**event, "created_at": second})


def field_name(target: str) -> str:
    """Return the flat name of a contact's field: standard ones as they are, else an attribute's."""
    return target if target in STANDARD_TYPES else ATTRIBUTE_PREFIX + target


def type_of(name: str, types: Types) -> str | None:
    """Return the type of a flat field; None: the workspace has no such attribute."""
    if name.startswith(ATTRIBUTE_PREFIX):
        return types.type_of(name.removeprefix(ATTRIBUTE_PREFIX))
    return STANDARD_TYPES[name]


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


def _metadata_source(item: str | config.Rename) -> tuple[str, str, str, bool]:
    """Return scope, property and key of a selected metadata property, and if that is a date's."""
    source, target = config.source_and_target(item)
    scope, dot, name = source.partition(".")
    key = fit_key(target)
    if dot and scope in ("user", "event"):
        return scope, name, key, is_date_key(key)
    return "event", source, key, is_date_key(key)
