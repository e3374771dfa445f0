"""The plan of a record: the calls that deliver it, from the event as it was accepted.

The same record and settings give the same bytes. The current settings apply, not those at the time
of acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Adjustment, Kind, Plan, Record
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.rules.events import EventRules
from amplitude_intercom.engine.rules.fitting import Style
from amplitude_intercom.engine.rules.selection import Predicate
from amplitude_intercom.engine.rules.user_keys import UserKeys
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject, Verdict
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.transports.amplitude import MAX_AMPLITUDE_TEXT
from amplitude_intercom.transports.amplitude_events import Content, content_decoder

TYPE_RULES_KEPT: Final = 1_024
"""Event types with a cached ``TypeRule``."""

_IDENTIFY: Final = Kind.IDENTIFY


class TypeRule(msgspec.Struct, frozen=True):
    """The rule for events of one type.

    With a ``reason`` none is sent. Without, those that ``predicate`` matches are sent as ``name``.
    """

    reason: DropReason | None = None
    predicate: Predicate | None = None
    name: str = ""
    adjustments: Sequence[Adjustment] = ()
    """The changes to the name."""
    always: bool = False
    """Whether every event of the type is sent, without a look at its properties."""


class SyncRules:
    """One sync's rules, compiled from its settings."""

    def __init__(self, sync: Sync) -> None:
        mapping = sync.mapping
        style = Style(mapping.nested, mapping.arrays, mapping.stringify)
        self._users_enabled = sync.users.enabled
        self.user_keys = UserKeys(mapping)
        self.events = EventRules(sync.events, style)
        self.contacts = ContactRules(sync.users, style, self.user_keys.field)
        self.admission = Admission(sync, self.user_keys, self.contacts)
        self._rule_of_type = lru_cache(TYPE_RULES_KEPT)(self._type_rule)
        needed = self.admission.needed | self.events.needed | self.contacts.needed
        self._decode = content_decoder(needed)

    def plan(self, record: Record) -> Verdict[Plan]:
        """Return the plan of a record, or the reason for no call. Never raises."""
        try:
            event = self._decode(record.raw)
        except ValueError as error:
            return Reject(DeadReason.INVALID_FIELD, str(error))
        if not event.event_type:
            return Reject(DeadReason.MISSING_FIELD, "event_type is missing")
        identity = self.user_keys.identity(record.user_key)
        if type(identity) is Reject:  # `isinstance` takes five times as long if it is not one
            return identity
        claim_id = record.claim_id or record.id
        contact, of_contact = self.contacts.update(
            event,
            identity,
            claim_id,
            record.accepted_at_ms,
            is_replayed=claim_id != record.id,
        )
        is_short = len(event.event_type) <= MAX_AMPLITUDE_TEXT  # the cache holds no long text
        rule = (self._rule_of_type if is_short else self._type_rule)(event.event_type)
        always = rule.always and record.kind is not _IDENTIFY
        reason = None if always else self._why_not_sent(rule, event, record.kind)
        if reason:
            if contact is None:
                return Drop(reason)
            return Keep(Plan(identity, contact, adjustments=tuple(of_contact)))
        if not rule.name:
            return Reject(DeadReason.INVALID_FIELD, "event_type is blank")
        timed = self.events.created_at(event, record.accepted_at_ms)
        if type(timed) is Reject:
            return timed
        created_at, of_time = timed
        fields, of_event = self.events.fields(rule.name, event, identity, created_at)
        adjustments = tuple(of_event)
        if of_contact or of_time or rule.adjustments:
            adjustments = (*of_contact, *of_time, *rule.adjustments, *of_event)
        return Keep(Plan(identity, contact, fields, adjustments))

    def _type_rule(self, event_type: str) -> TypeRule:
        found = self.admission.of_type(event_type)
        if isinstance(found, Drop):
            return TypeRule(found.reason)
        name, adjustments = self.events.name_of(event_type)
        return TypeRule(None, found, name, adjustments, bool(name) and found.always)

    def _why_not_sent(self, rule: TypeRule, event: Content, kind: Kind) -> DropReason | None:
        """Return the reason for which the event itself is not sent, if any."""
        if kind is _IDENTIFY and not self._users_enabled:
            return DropReason.USERS_DISABLED
        if rule.predicate is None:
            return rule.reason
        if not rule.always and not rule.predicate.matches(event.fields):
            return DropReason.FILTERED_OUT
        return DropReason.NOT_SELECTED if kind is _IDENTIFY else None  # only its update was kept
