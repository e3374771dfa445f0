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
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from engine import config, paths
from engine.envelope import ContactUpdate, Identity, Kind, Plan, Record, Verdict
from engine.fitting import (
    DATE_ENDING,
    Adjustment,
    Spread,
    Style,
    fit_attribute,
    fit_key,
    fit_name,
    is_blank,
    is_plain,
    spread,
    type_for,
)
from engine.money import is_exact, money
from engine.selection import Predicate, Selection
from engine.user_properties import CLEAR_ALL, UNCHANGED, keep, select, split
from transports import amplitude
from transports.amplitude import Content

TYPES_KEPT: Final = 1_024
"""Event types of which it is remembered whether and under which name they are sent."""

MAX_ID: Final = 255
MAX_BODY_BYTES: Final = 256_000
MOST_THAT_FIT: Final = (MAX_BODY_BYTES - 4_096) // (4 * 3 * 255 + 64)
"""Keys that fit whatever they hold: three texts (a link has two), four bytes a character."""

_IDENTIFY: Final = Kind.IDENTIFY
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

NEVER_CLEARED: Final = frozenset({"role", "external_id"})
"""Fields that null does not clear: a role is never null, an external id stays (recordings)."""


class Types(Protocol):
    """What is known of a workspace's custom attributes."""

    def type_of(self, name: str) -> str | None:
        """Return an attribute's type, empty where it is not known; None: there is no such one."""
        ...


class AnyAttribute:
    """Nothing is known, so everything may be there."""

    def type_of(self, name: str) -> str | None:
        return ""


class TypeRule(msgspec.Struct, frozen=True):
    """What becomes of the events of one type: ``reason`` is why none is sent, or empty.

    Else those that ``predicate`` matches are sent as ``name``, which ``note`` explains.
    """

    reason: str = ""
    predicate: Predicate | None = None
    name: str = ""
    note: Adjustment | None = None
    always: bool = False
    """Whether all of them are, whatever they hold."""


class Source(NamedTuple):
    """A selected metadata property: where it is from, and the key that it goes to."""

    path: paths.Path
    key: str
    dated: bool
    currency: paths.Path | None
    """Where the currency is, if it is an amount."""


class Field(NamedTuple):
    """A selected user property, and the contact's field that it goes to."""

    source: str
    name: str
    attribute: str
    """The custom attribute's name; empty for a standard field."""
    data_type: str
    """Of a standard field."""


class Rules:
    """One sync's mapping, compiled from its settings."""

    def __init__(self, sync: config.Sync) -> None:
        self._sync = sync
        self._field = sync.mapping.identifier
        self._source = paths.parse(sync.mapping.source)
        self.identity_in_head = not self._source.scope
        """Whether the identity can be told from an event's head alone."""
        self._style = Style(sync.mapping.nested, sync.mapping.arrays, sync.mapping.stringify)
        self._compile_events(sync.events)
        self._compile_users(sync.users)
        self._decode = amplitude.content_decoder(self._top_level_keys())

    def _compile_events(self, events: config.Events) -> None:
        self._selection = Selection(events.select)
        self._rule_of_type = lru_cache(TYPES_KEPT)(self._type_rule)
        self._metadata = [_metadata_source(item, events.money) for item in events.metadata]
        self._limit = events.metadata_limit
        self._max_ahead_s, self._max_age_s = events.max_ahead_s, events.max_age_s
        self._looked_up = [_looked_up(source) for source in self._metadata]
        keys = {source.key.lower() for source in self._metadata}
        self._all_fit = len(keys) == len(self._metadata) <= self._limit
        """Whether no two keys are alike and the limit holds, unless an object is spread."""

    def _compile_users(self, users: config.Users) -> None:
        chosen = map(config.source_and_target, users.properties)
        self._properties = {
            source.removeprefix("user."): field_name(target) for source, target in chosen
        }
        self._fields = [_field(source, name) for source, name in self._properties.items()]
        found = [paths.parse(f"user.{source}") for source in self._properties]
        self._stand_ins = {path.name: path.field for path in found if path.field}
        self.updates_on_events = (
            users.enabled and users.trigger == "any_update" and bool(self._properties)
        )
        """Whether events that carry selected user properties update the contact too."""

    def _top_level_keys(self) -> set[str]:
        """Return the fields of an event itself that may have to be read."""
        keys = {*self._selection.needed, *self._stand_ins.values()}
        for source in self._metadata:
            keys.add(source.path.field)
            keys.update(paths.top_level_keys(source.currency) if source.currency else ())
        return keys - {""}

    # --- who ------------------------------------------------------------------------------

    def identity_of_head(self, head: amplitude.Head) -> str:
        """Return the contact's key, or an empty text where there is none."""
        value = head.user_id if self._source.name == "user_id" else head.device_id
        return self._normal(value)

    def identity_of_event(self, event: amplitude.Event) -> str:
        """Return the contact's key, or an empty text where there is none."""
        return self._normal(paths.read(self._source, event.fields))

    def identity_of_bad(self, raw: bytes) -> str:
        """Return the key of an event that cannot be taken, as far as it can be read."""
        try:
            if self.identity_in_head:
                user = self.identity_of_head(amplitude.legible(raw))
            else:
                user = self.identity_of_event(amplitude.decode_event(raw))
            user.encode()
        except Exception:  # it is bad: anything may be wrong with it
            return ""
        return user if len(user) <= amplitude.MAX_TEXT else ""

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
        """Return what delivering a record takes, or why it makes no call. Never raises.

        Today's settings apply, whatever they were when the record was accepted.
        """
        try:
            event = self._decode(record.raw)
        except ValueError as error:
            return Verdict("reject", "invalid_field", str(error))
        if not event.event_type:
            return Verdict("reject", "missing_field", "event_type is missing")
        identity = Identity(self._field, record.user_key)
        if not _is_acceptable(identity):
            shown = record.user_key[:MAX_ID]
            return Verdict("reject", "invalid_identity", f"{self._field}: {shown!r}")
        adjustments: list[Adjustment] = []
        contact = self._contact(event, identity, record.id, adjustments)
        rule = self._rule(event.event_type)
        always = rule.always and record.kind is not _IDENTIFY
        reason = "" if always else self._why_not_sent(rule, event, record.kind)
        if reason:
            if contact is None:
                return Verdict("drop", reason)
            return Plan(identity, contact, adjustments=tuple(adjustments))
        if not rule.name:
            return Verdict("reject", "invalid_field", "event_type is blank")
        created_at = self._created_at(event, record.accepted_at_ms, adjustments)
        if isinstance(created_at, Verdict):
            return created_at
        body = self._event(rule, event, identity, created_at, adjustments)
        return Plan(identity, contact, body, tuple(adjustments))

    def _rule(self, event_type: str) -> TypeRule:
        if len(event_type) > amplitude.MAX_TEXT:  # not to be remembered
            return self._type_rule(event_type)
        return self._rule_of_type(event_type)

    def _type_rule(self, event_type: str) -> TypeRule:
        reason, predicate = self._why_not_type(event_type), self._selection.lookup(event_type)
        if reason or predicate is None:
            return TypeRule(reason or "not_selected")
        wanted = self._sync.events.rename.get(event_type, event_type)
        if is_blank(wanted):
            return TypeRule("", predicate)
        name = fit_name(wanted)
        note = None
        if name != wanted:
            note = Adjustment("name_cleaned", "event_name", f"sent as {name!r}")
        return TypeRule("", predicate, name, note, predicate.always)

    def _why_not_type(self, event_type: str) -> str:
        if event_type == amplitude.IDENTIFY:
            return "users_disabled"  # the only reason for which one makes no update
        if event_type == amplitude.GROUP_IDENTIFY:
            return "group_identify"
        if not self._sync.events.enabled:
            return "events_disabled"
        is_loop = self._sync.events.loop_guard and event_type.startswith(LOOP_PREFIX)
        return "loop_guard" if is_loop else ""

    def _why_not_sent(self, rule: TypeRule, event: Content, kind: Kind) -> str:
        """Return the reason for which the event itself is not sent, or an empty text."""
        if kind is _IDENTIFY and not self._sync.users.enabled:
            return "users_disabled"
        predicate = rule.predicate
        if predicate is None:
            return rule.reason
        if not predicate.always and not predicate.matches(event.fields):
            return "filtered_out"
        return "not_selected" if kind is _IDENTIFY else ""  # kept for its update alone

    def _contact(
        self, event: Content, identity: Identity, record_id: int, adjustments: list[Adjustment]
    ) -> ContactUpdate | None:
        identify = event.event_type == amplitude.IDENTIFY
        if not (self.updates_on_events or (identify and self._sync.users.enabled)):
            return None
        operations, problems = self._operations(event)
        if not operations and not identify:
            return None
        for problem in problems:
            adjustments.append(Adjustment("operation_refused", "user_properties", problem))
        return ContactUpdate(identity, operations, record_id)

    def carries_update(self, event: amplitude.Event) -> bool:
        """Whether an event has anything to say about selected user properties."""
        return bool(self._operations(event)[0])

    def _operations(
        self, event: Content | amplitude.Event
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return what an event does to selected user properties, and what of it cannot be done."""
        if event.leaves_user_alone:
            return {}, ()
        found = split(event.user_properties)
        operations = select(found.operations, self._properties)
        if self._stand_ins:
            self._add_fields(event.fields, operations)
        return operations, found.problems

    def _add_fields(self, fields: Mapping[str, Any], operations: dict[str, Any]) -> None:
        """Set the properties that an event has as fields of its own, unless an operation does."""
        for source, field in self._stand_ins.items():
            value = fields.get(field)
            named = any(source in names for op, names in operations.items() if op != CLEAR_ALL)
            if value is not None and not named:
                operations["$set"] = {**operations.get("$set", {}), source: value}

    # --- events ---------------------------------------------------------------------------

    def _created_at(
        self, event: Content, accepted_at_ms: int, adjustments: list[Adjustment]
    ) -> int | Verdict:
        """Return an event's Unix second: its own time, as far as that can be.

        A clock that is ahead would put events into Intercom's future; the bound is the moment of
        acceptance and not of sending, so that a retry says the same.
        """
        time_ms = event.time_ms
        if time_ms is None:
            return accepted_at_ms // 1000
        if time_ms is not event.time and event.time_was_guessed:
            adjustments.append(Adjustment("time_unit", "created_at", "not in milliseconds"))
        second: int = time_ms // 1000
        accepted_s = accepted_at_ms // 1000
        if second > accepted_s + self._max_ahead_s:
            what = f"{second - accepted_s} s ahead, the moment of acceptance instead"
            adjustments.append(Adjustment("time_ahead", "created_at", what))
            return accepted_s
        oldest_s = self._max_age_s
        if second < 0 or second < accepted_s - oldest_s:
            age = f"{accepted_s - second} s before it was accepted"
            return Verdict("reject", "too_old", f"{age}; sync.events.max_age_s is {oldest_s:.0f}")
        return second

    def _event(
        self,
        rule: TypeRule,
        event: Content,
        identity: Identity,
        created_at: int,
        adjustments: list[Adjustment],
    ) -> dict[str, Any]:
        if rule.note is not None:
            adjustments.append(rule.note)
        body: dict[str, Any] = {
            "event_name": rule.name,
            "created_at": created_at,
            "user_id" if identity.field == "external_id" else "email": identity.value,
        }
        metadata = self._metadata_of(event, adjustments)
        if metadata:
            body["metadata"] = metadata
            if len(metadata) > MOST_THAT_FIT:
                _fit_size(body, metadata, adjustments)
        return body

    def _metadata_of(self, event: Content, adjustments: list[Adjustment]) -> dict[str, Any]:
        """Return an event's metadata. Most values go as they are, and are put in at once."""
        metadata: dict[str, Any] = {}
        taken: set[str] | None = None if self._all_fit else set()
        style, properties = self._style, event.event_properties
        flat: bool | None = None
        for name, key, simple, alone, dated, source in self._looked_up:
            value = properties.get(name) if simple else None
            if value is None:
                if alone:
                    if flat is None:
                        flat = "." in "".join(properties)
                    if not flat:
                        continue
                value = self._value(event, source, adjustments)
                if value is None:
                    continue
            plain = not dated and is_plain(value, style)
            if plain and taken is None:
                metadata[key] = value
                continue
            if taken is None:
                taken = set(map(str.lower, metadata))
            found: Spread = [(key, value, None)] if plain else spread(key, value, style, dated)
            self._put(metadata, taken, found, adjustments)
        return metadata

    def _put(
        self,
        metadata: dict[str, Any],
        taken: set[str],
        found: Spread,
        adjustments: list[Adjustment],
    ) -> None:
        """Add keys, unless there is one like it, or as many as there may be."""
        for key, value, note in found:
            if note is not None:
                adjustments.append(Adjustment(note.reason, f"metadata.{key}", note.what))
            if value is None:
                continue
            folded = key.lower()
            if folded in taken:
                what = "left out, equal to another key but for case"
                adjustments.append(Adjustment("key_collision", f"metadata.{key}", what))
            elif len(metadata) >= self._limit:
                what = f"left out, {len(metadata)} keys are there"
                adjustments.append(Adjustment("too_many_keys", f"metadata.{key}", what))
                break  # one of them is named: an object can have many
            else:
                taken.add(folded)
                metadata[key] = value

    def _value(self, event: Content, source: Source, adjustments: list[Adjustment]) -> Any:
        """Return what an event has for a source, wherever it has it; None where it has nothing."""
        scope, name, field = source.path
        if scope == "event":
            value = paths.find(event.event_properties, name)
        else:
            value = paths.find(paths.user_properties(event.user_properties), name)
        if value is None and field:
            value = event.fields.get(field)
        if value is None or source.currency is None:
            return value
        return self._money(event, source, source.currency, value, adjustments)

    def _money(
        self,
        event: Content,
        source: Source,
        currency: paths.Path,
        value: Any,
        adjustments: list[Adjustment],
    ) -> Any:
        """Return a price as an amount in minor units, or as it is where it is none."""
        amount = money(value, paths.read(currency, event.fields))
        if amount is None:
            what = f"no amount in the currency that `{currency.name}` says, sent as it is"
            adjustments.append(Adjustment("not_money", f"metadata.{source.key}", what))
            return value
        if not is_exact(value, amount):
            what = f"rounded to {amount['amount']} of the minor unit"
            adjustments.append(Adjustment("amount_rounded", f"metadata.{source.key}", what))
        return amount

    # --- contacts -------------------------------------------------------------------------

    @property
    def properties(self) -> Mapping[str, str]:
        """Selected user properties and the contact field that each goes to."""
        return self._properties

    def attributes_of(self, properties: Mapping[str, Any]) -> dict[str, str]:
        """Return the custom attributes that a user's properties would fill, and of which type."""
        found: dict[str, str] = {}
        for source, _, attribute, _ in self._fields:
            value = properties.get(source)
            if value is not None and attribute:
                data_type = type_for(source, value, self._style)
                if data_type is not None:
                    found[attribute] = data_type
        return found

    def contact_fields(
        self, properties: Mapping[str, Any], types: Types
    ) -> tuple[dict[str, Any], list[Adjustment]]:
        """Return the contact's fields for a user's properties, flat, and what was adjusted.

        Custom attributes are named ``custom_attributes.NAME``; ``contact_body`` nests them. The
        field that identifies the contact is not among them, nor a role beside an external id,
        which only users have.
        """
        fields: dict[str, Any] = {}
        adjustments: list[Adjustment] = []
        for source, name, attribute, standard_type in self._fields:
            value = properties.get(source)
            if value is None or name == self._field:
                continue
            data_type = types.type_of(attribute) if attribute else standard_type
            if data_type is None:
                what = "left out, the workspace has no such attribute"
                adjustments.append(Adjustment("unknown_attribute", name, what))
                continue
            fitted, note = fit_attribute(source, value, data_type, self._style)
            if note is not None:
                adjustments.append(Adjustment(note.reason, name, note.what))
            if fitted is not None:
                fields[name] = fitted
        if "role" in fields and (self._field == "external_id" or "external_id" in fields):
            role = fields.pop("role")
            if role != "user":
                what = "left out, whoever has an external id is a user"
                adjustments.append(Adjustment("type_mismatch", "role", what))
        if len(fields) > MOST_THAT_FIT:
            _fit_size(fields, fields, adjustments)
        return fields, adjustments

    def properties_of_contact(self, contact: Any) -> dict[str, Any]:
        """Return the selected properties as a contact read from Intercom holds them.

        Whatever was answered: what is no contact holds none.
        """
        contact = contact if isinstance(contact, dict) else {}
        custom = contact.get("custom_attributes")
        custom = custom if isinstance(custom, dict) else {}
        found: dict[str, Any] = {}
        for source, name, attribute, _ in self._fields:
            value, _ = keep(custom.get(attribute) if attribute else contact.get(name))
            if value is not None and value != "" and value is not UNCHANGED:
                found[source] = value
        return found


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


def _fit_size(
    body: dict[str, Any], droppable: dict[str, Any], adjustments: list[Adjustment]
) -> None:
    """Take the last keys out of ``droppable``, which is in ``body``, until that is small enough."""
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


def can_be_cleared(name: str, types: Types) -> bool:
    """Return whether a flat field can be set to null: the workspace has it, and it may be empty."""
    if name.startswith(ATTRIBUTE_PREFIX):
        return types.type_of(name.removeprefix(ATTRIBUTE_PREFIX)) is not None
    return name not in NEVER_CLEARED


def contact_body(fields: Mapping[str, Any]) -> bytes:
    """Return the body of a contact write for flat fields."""
    body: dict[str, Any] = {}
    custom: dict[str, Any] = {}
    for name, value in fields.items():
        if name.startswith(ATTRIBUTE_PREFIX):
            custom[name[len(ATTRIBUTE_PREFIX) :]] = value
        else:
            body[name] = value
    if custom:
        body["custom_attributes"] = custom
    return _encoder.encode(body)


def creation_body(identity: Identity, fields: Mapping[str, Any]) -> bytes:
    """Return the body that creates a user with these fields."""
    return contact_body({"role": "user", identity.field: identity.value, **fields})


def _field(source: str, name: str) -> Field:
    if name.startswith(ATTRIBUTE_PREFIX):
        return Field(source, name, name.removeprefix(ATTRIBUTE_PREFIX), "")
    return Field(source, name, "", STANDARD_TYPES[name])


def _metadata_source(item: str | config.Rename, currencies: Mapping[str, str]) -> Source:
    written, target = config.source_and_target(item)
    path = paths.parse(written, "event")
    key = fit_key(target)
    dated = key.endswith(DATE_ENDING) or (isinstance(item, config.Rename) and item.as_ == "date")
    named = currencies.get(path.name) if path.scope == "event" else None
    currency = None if named is None else paths.parse(f"event.{named}")
    return Source(path, key, dated, currency)


def _looked_up(source: Source) -> tuple[str, str, bool, bool, bool, Source]:
    """Return what is looked at first: the name of a property, the key, and three bits.

    First, whether an event property of that name is the value as it is; second, whether without one
    there is no other, unless keys have dots; third, whether it is a date.
    """
    scope, name, field = source.path
    simple = scope == "event" and source.currency is None
    alone = simple and not field and "." not in name
    return name, source.key, simple, alone, source.dated, source
