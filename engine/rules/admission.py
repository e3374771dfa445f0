"""The admission of events to a sync: kept for a user, dropped, or rejected.

An unselected event type costs a decoded head and one look-up. An event is decoded whole only if a
``where`` clause, the mapping or the trigger needs its properties.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.rules.explanations import SelectorFinding
from amplitude_intercom.engine.rules.selection import Predicate, Selection
from amplitude_intercom.engine.rules.user_keys import UserKeys
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject, Verdict
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.transports.amplitude import (
    GROUP_IDENTIFY,
    IDENTIFY,
    RESERVED_TYPES,
    BadEvent,
    Head,
    check_head,
)
from amplitude_intercom.transports.amplitude_events import Event, decode_event
from amplitude_intercom.transports.amplitude_heads import check_time, decode_types

TYPE_VERDICTS_KEPT: Final = 4_096
"""Event types with a cached verdict."""

LONGEST_TYPE_KEPT: Final = 128
"""Characters of an event type in the cache, which bounds the cache to 2 MB."""

LOOP_PREFIX: Final = "[Intercom] "

Admitted = tuple[Kind, str]
"""The kind and the user key of a kept event."""


class Admission:
    """The admission rules of one sync."""

    def __init__(self, sync: Sync, user_keys: UserKeys, contacts: ContactRules) -> None:
        self._user_keys = user_keys
        self._contacts = contacts
        self._selection = Selection(sync.events.select)
        self._loop_guard = sync.events.loop_guard
        off = None if sync.enabled else DropReason.SYNC_DISABLED
        self._events_off = off or (None if sync.events.enabled else DropReason.EVENTS_DISABLED)
        self._users_off = off or (None if sync.users.enabled else DropReason.USERS_DISABLED)
        self._updates = contacts.updates_on_events and not self._users_off
        self._known = lru_cache(TYPE_VERDICTS_KEPT)(self._drop_by_type)
        self._all_kept = lru_cache(TYPE_VERDICTS_KEPT)(self._keeps_all)

    @property
    def needed(self) -> frozenset[str]:
        """The top-level fields that the selection reads of an event."""
        return self._selection.needed

    def of_type(self, event_type: str) -> Predicate | Drop:
        """Return the predicate of an event type, or the reason for sending no event of it."""
        if event_type == IDENTIFY:
            return Drop(DropReason.USERS_DISABLED)  # the only reason for no update
        if event_type == GROUP_IDENTIFY:
            return Drop(DropReason.GROUP_IDENTIFY)
        if self._events_off:
            return Drop(self._events_off)
        predicate = self._selection.lookup(event_type)
        if predicate is None:
            return Drop(DropReason.NOT_SELECTED)
        if event_type in RESERVED_TYPES:
            return Drop(DropReason.RESERVED_NAME)
        if self._loop_guard and event_type.startswith(LOOP_PREFIX):
            return Drop(DropReason.LOOP_GUARD)
        return predicate

    def drop_by_type(self, event_type: str | None) -> DropReason | None:
        """Return the reason for dropping all events of a type; None if some may be kept."""
        if event_type and len(event_type) > LONGEST_TYPE_KEPT:
            return self._drop_by_type(event_type)
        return self._known(event_type)

    def _drop_by_type(self, event_type: str | None) -> DropReason | None:
        if not event_type:
            return None
        if event_type == IDENTIFY:
            return self._users_off
        found = self.of_type(event_type)
        if not isinstance(found, Drop):
            return None
        may_update = found.reason in (self._events_off, DropReason.NOT_SELECTED)
        return None if may_update and self._updates else found.reason

    def _keeps_all(self, event_type: str) -> bool:
        """Return whether every event of a type is sent, and heads have the user keys."""
        found = self.of_type(event_type)
        sends_all = not isinstance(found, Drop) and found.always
        return sends_all and self._user_keys.in_head and not self._updates

    def judge(
        self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
    ) -> Verdict[Admitted]:
        """Return the verdict on an event; a kept one has a kind and a user key.

        ``checked`` says that the event's source has validated the head.
        """
        if isinstance(head, BadEvent):
            return self._judge_bad(head, raw)
        event_type = head.event_type
        is_plain = checked and event_type and len(event_type) <= LONGEST_TYPE_KEPT
        if is_plain and self._all_kept(event_type):
            user = self._user_keys.of_head(head)
            return Keep((Kind.EVENT, user)) if user else Drop(DropReason.NO_IDENTITY)
        reason = self.drop_by_type(event_type)
        if reason:
            return Drop(reason)
        if event_type == IDENTIFY:
            return self._admit(head, raw, Kind.IDENTIFY, None, checked=checked)
        predicate = self._selection.lookup(event_type) if event_type else None
        if predicate is None or self._events_off:
            return self._judge_unsent(head, raw, self._events_off or DropReason.NOT_SELECTED)
        if predicate.always and not self._updates:
            return self._admit(head, raw, Kind.EVENT, None, checked=checked)
        event = _decode(raw)
        if isinstance(event, Reject):
            return event
        if not predicate.matches(event.fields):
            return self._judge_unsent(head, raw, DropReason.FILTERED_OUT)
        kind = Kind.EVENT
        if self._updates and self._contacts.carries_update(event):
            kind = Kind.EVENT_WITH_UPDATE
        return self._admit(head, raw, kind, event)

    def explain(self, raw: bytes) -> list[SelectorFinding]:
        """Return why the selection takes an event or not; empty where it cannot be read, or is no
        event to select."""
        try:
            event = decode_event(raw)
        except ValueError:
            return []
        event_type = event.fields.get("event_type")
        if not isinstance(event_type, str) or event_type in (IDENTIFY, GROUP_IDENTIFY):
            return []
        return self._selection.explain(event_type, event.fields)

    def user_of(self, raw: bytes) -> str:
        """Return the user key of any event, valid or not; empty if it cannot be read."""
        return self._user_keys.of_raw(raw)

    def _judge_bad(self, bad: BadEvent, raw: bytes) -> Drop | Reject:
        """Return a drop for an unselected type, else a reject: a fault matters only if selected."""
        types = decode_types([raw])
        reason = self.drop_by_type(types[0]) if types else None
        return Drop(reason) if reason else _rejected(bad)

    def _judge_unsent(self, head: Head, raw: bytes, reason: DropReason) -> Verdict[Admitted]:
        """Return the verdict on an unsent event, which may still update its user by the trigger."""
        if not head.event_type:
            return Reject(DeadReason.MISSING_FIELD, "event_type is missing")
        if self._updates:
            event = _decode(raw)
            if isinstance(event, Reject):
                return event
            if self._contacts.carries_update(event):
                return self._admit(head, raw, Kind.IDENTIFY, event)
        return Drop(reason)

    def _admit(
        self, head: Head, raw: bytes, kind: Kind, event: Event | None, *, checked: bool = False
    ) -> Verdict[Admitted]:
        if not checked:
            problem = check_head(head, min_id_length=1) or check_time(head)
            if problem is not None:
                return _rejected(problem)
        if self._user_keys.in_head:
            user = self._user_keys.of_head(head)
        else:
            decoded = event or _decode(raw)
            if isinstance(decoded, Reject):
                return decoded
            user = self._user_keys.of_event(decoded)
        return Keep((kind, user)) if user else Drop(DropReason.NO_IDENTITY)


def _rejected(bad: BadEvent) -> Reject:
    return Reject(DeadReason(bad.reason), bad.message)


def _decode(raw: bytes) -> Event | Reject:
    try:
        return decode_event(raw)
    except ValueError as error:
        return Reject(DeadReason.INVALID_FIELD, str(error))
