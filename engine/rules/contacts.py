"""User properties as the fields of a contact.

A contact has a closed set of standard fields. Any other name is a custom attribute, which must
exist in the workspace and has a type (API description 2.16, ``POST /contacts``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from amplitude_intercom.engine.envelope import Adjusted, Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules import paths
from amplitude_intercom.engine.rules.attribute_values import fit_attribute, type_for
from amplitude_intercom.engine.rules.bodies import ATTRIBUTE_PREFIX, MOST_THAT_FIT, cut_to_size
from amplitude_intercom.engine.rules.fitting import Style
from amplitude_intercom.engine.rules.operations import CLEAR_ALL, select, split
from amplitude_intercom.engine.rules.user_properties import UNCHANGED, keep
from amplitude_intercom.engine.settings import Users, source_and_target
from amplitude_intercom.transports.amplitude import IDENTIFY
from amplitude_intercom.transports.amplitude_events import Content, Event

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
"""Standard fields that can be written, with their types (API description 2.14)."""

NEVER_CLEARED: Final = frozenset({"role", "external_id"})
"""Fields that null does not clear: a role is never null, an external id stays (recordings)."""


class Types(Protocol):
    """The custom attributes of a workspace, as far as they are known."""

    def type_of(self, name: str) -> str | None:
        """Return an attribute's type, empty if it is not known; None without such an attribute."""
        ...

    def options_of(self, name: str) -> Collection[str]:
        """Return the only values that an attribute takes; empty if it takes any of its type."""
        ...


class AnyAttribute:
    """``Types`` of an unknown workspace, in which every attribute may exist."""

    def type_of(self, name: str) -> str | None:
        return ""

    def options_of(self, name: str) -> Collection[str]:
        return ()


class Field(NamedTuple):
    """A selected user property, and the contact field that it fills."""

    source: str
    name: str
    attribute: str
    """The name of the custom attribute; empty for a standard field."""
    data_type: str
    """The type of a standard field; empty for a custom attribute."""


class ContactRules:
    """``[sync.users]``, compiled."""

    def __init__(self, users: Users, style: Style, identifier: str) -> None:
        self._enabled = users.enabled
        self._style = style
        self.identifier = identifier
        """The field by which contacts are found: ``external_id`` or ``email``."""
        chosen = map(source_and_target, users.properties)
        self._properties = {
            source.removeprefix("user."): field_name(target) for source, target in chosen
        }
        self._fields = [_field(source, name) for source, name in self._properties.items()]
        self._custom = frozenset(field.source for field in self._fields if field.attribute)
        found = [paths.parse(f"user.{source}") for source in self._properties]
        self._stand_ins = {path.name: path.field for path in found if path.field}
        self.updates_on_events = (
            users.enabled and users.trigger == "any_update" and bool(self._properties)
        )
        """Whether events with selected user properties update the contact, as identifies do."""

    @property
    def needed(self) -> set[str]:
        """The top-level fields that these rules read of an event."""
        return set(self._stand_ins.values())

    def update(
        self,
        event: Content,
        identity: Identity,
        claim_id: int,
        accepted_at_ms: int,
        *,
        is_replayed: bool = False,
    ) -> tuple[ContactUpdate | None, Sequence[Adjustment]]:
        """Return an event's update of its contact, if it makes one, with its adjustments.

        The update's time is the event's own, but no later than its acceptance. The time orders
        updates, instead of their arrival, if events update contacts too, because clients send
        events in no order, and for a replayed record.
        """
        identify = event.event_type == IDENTIFY
        if not (self.updates_on_events or (identify and self._enabled)):
            return None, ()
        operations, problems = self._operations(event)
        if not operations and not identify:
            return None, ()
        refused = AdjustmentReason.OPERATION_REFUSED
        adjustments = [Adjustment(refused, "user_properties", problem) for problem in problems]
        at_ms = accepted_at_ms if event.time_ms is None else min(event.time_ms, accepted_at_ms)
        by_time = self.updates_on_events or is_replayed
        return ContactUpdate(identity, operations, claim_id, at_ms, by_time), adjustments

    def carries_update(self, event: Event) -> bool:
        """Return whether an event changes selected user properties."""
        return bool(self._operations(event)[0])

    def _operations(self, event: Content | Event) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return an event's operations on selected user properties, and its problems."""
        if event.leaves_user_alone:
            return {}, ()
        found = split(event.user_properties)
        operations = select(found.operations, self._properties)
        if self._stand_ins:
            self._add_fields(event.fields, operations)
        return operations, found.problems

    def _add_fields(self, fields: Mapping[str, Any], operations: dict[str, Any]) -> None:
        """Set properties from top-level fields of the event, unless an operation names them."""
        for source, field in self._stand_ins.items():
            value = fields.get(field)
            named = any(source in names for op, names in operations.items() if op != CLEAR_ALL)
            if value is not None and not named:
                operations["$set"] = {**operations.get("$set", {}), source: value}

    @property
    def properties(self) -> Mapping[str, str]:
        """Selected user properties, each with the contact field that it fills."""
        return self._properties

    def writes_attributes(self, update: ContactUpdate) -> bool:
        """Return whether an update names a property that fills a custom attribute."""
        named = update.operations
        return CLEAR_ALL in named or not all(map(self._custom.isdisjoint, named.values()))

    def attributes_of(self, properties: Mapping[str, Any]) -> dict[str, str]:
        """Return the custom attributes that a user's properties fill, with the types to create."""
        found: dict[str, str] = {}
        for source, _, attribute, _ in self._fields:
            value = properties.get(source)
            if value is not None and attribute:
                data_type = type_for(source, value, self._style)
                if data_type is not None:
                    found[attribute] = data_type
        return found

    def contact_fields(self, properties: Mapping[str, Any], types: Types) -> Adjusted:
        """Return the contact's fields for a user's properties, flat, and the adjustments.

        Custom attributes are named ``custom_attributes.NAME``; ``contact_body`` nests them. The
        identifying field is left out, and so is a role beside an external id, because only users
        have one.
        """
        fields: dict[str, Any] = {}
        adjustments: list[Adjustment] = []
        for source, name, attribute, standard_type in self._fields:
            value = properties.get(source)
            if value is None or name == self.identifier:
                continue
            data_type = types.type_of(attribute) if attribute else standard_type
            if data_type is None:
                what = "left out, the workspace has no such attribute"
                adjustments.append(Adjustment(AdjustmentReason.UNKNOWN_ATTRIBUTE, name, what))
                continue
            fitted, note = fit_attribute(source, value, data_type, self._style)
            if note is not None:
                adjustments.append(Adjustment(note.reason, name, note.what))
            if fitted is None:
                continue
            options = types.options_of(attribute) if attribute else ()
            if options and fitted not in options:
                what = "left out, the attribute has no such option"
                adjustments.append(Adjustment(AdjustmentReason.TYPE_MISMATCH, name, what))
                continue
            fields[name] = fitted
        if "role" in fields and (self.identifier == "external_id" or "external_id" in fields):
            role = fields.pop("role")
            if role != "user":
                what = "left out, whoever has an external id is a user"
                adjustments.append(Adjustment(AdjustmentReason.TYPE_MISMATCH, "role", what))
        if len(fields) > MOST_THAT_FIT:
            adjustments += cut_to_size(fields, fields)
        return fields, adjustments

    def properties_of_contact(self, contact: Any) -> dict[str, Any]:
        """Return the selected properties of a contact that was read from Intercom.

        A value that is no contact has none.
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

    def fields_of_contact(self, contact: Any) -> dict[str, Any]:
        """Return the selected fields of a contact that was read from Intercom, flat."""
        contact = contact if isinstance(contact, dict) else {}
        custom = contact.get("custom_attributes")
        custom = custom if isinstance(custom, dict) else {}
        found = {}
        for _, name, attribute, _ in self._fields:
            value = custom.get(attribute) if attribute else contact.get(name)
            found[name] = None if value == "" else value
        found.pop(self.identifier, None)
        return found


def field_name(target: str) -> str:
    """Return the flat name of a contact's field, with a prefix for a custom attribute."""
    return target if target in STANDARD_TYPES else ATTRIBUTE_PREFIX + target


def can_be_cleared(name: str, types: Types) -> bool:
    """Return whether the workspace has a flat field, and null clears it."""
    if name.startswith(ATTRIBUTE_PREFIX):
        return types.type_of(name.removeprefix(ATTRIBUTE_PREFIX)) is not None
    return name not in NEVER_CLEARED


def _field(source: str, name: str) -> Field:
    if name.startswith(ATTRIBUTE_PREFIX):
        return Field(source, name, name.removeprefix(ATTRIBUTE_PREFIX), "")
    return Field(source, name, "", STANDARD_TYPES[name])


def same(first: Any, other: Any) -> bool:
    """Return whether two field values are the same to Intercom: ``True`` is not 1."""
    return type(first) is type(other) and bool(first == other)
