"""The knowledge of a contact during an update, as answers come. Without I/O.

Rules
=====
1. The knowledge at the beginning concerns the contact that was known then. A contact created in its
   place gets the user's properties. Another existing contact keeps its own properties, and gets
   only those of the user's for which it has no value.
2. A field is known as last written, read or refused. A refused field is not tried again until its
   value changes.
3. A field is unsure from before its write until a write of it is confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from amplitude_intercom.engine.delivery.contacts.resolving import Resolution
from amplitude_intercom.engine.rules.contacts import ContactRules, same
from amplitude_intercom.engine.spool.known_contacts import Held, Known


class LearnedContact:
    """The knowledge of one user's contact, and one taker's properties of the user."""

    def __init__(
        self,
        rules: ContactRules,
        taker: str,
        selection: int,
        before: Known,
        held: Mapping[str, Held],
        noted: Known | None = None,
    ) -> None:
        """``selection`` is the selection's number. ``before`` holds the facts at the beginning,
        ``held`` the taker's properties; ``noted`` is ``before`` with the durable intent of a write.
        """
        self._rules = rules
        self._taker = taker
        self._selection = selection
        self.before = before
        known = noted or before
        # A contact that is created in place of a lost one has no fields yet.
        self.known = msgspec.structs.replace(known, fields={}) if before.is_lost else known
        self._own = dict(held)
        """The user's properties, for any contact."""
        counted = held if before.is_lost else countable(before, taker, held, rules.properties)
        self.held = dict(counted)
        """Those that count on the values of this one, or on none, where it is to be made."""
        self._is_read = False
        self._refused: dict[str, Any] = {}

    @property
    def had_contact(self) -> bool:
        """Whether a contact of the user was known at the beginning."""
        return bool(self.before.contact_id)

    @property
    def has_to_be_read(self) -> bool:
        """Whether the contact must be read, because its properties take precedence."""
        return not self._is_read and self._taker in self.known.unread and bool(self._own)

    def turn_to(self, resolution: Resolution) -> None:
        """Turn to the contact that the update has come to."""
        found = about(self.before, resolution)
        self._is_read = False
        self.known = msgspec.structs.replace(
            self.known, fields=found.fields, unsure=found.unsure, unread=found.unread
        )
        self.held = countable(found, self._taker, self._own, self._rules.properties)

    def read(self, contact: Mapping[str, Any]) -> None:
        """Note the values of a contact that was read."""
        fields = {**self.known.fields, **self._rules.fields_of_contact(contact)}
        self.known = msgspec.structs.replace(self.known, fields=fields)
        self._is_read = True
        theirs = with_base(self.held, self._rules, contact)
        self.held = {name: self._better(name, held) for name, held in theirs.items()}

    def _better(self, name: str, theirs: Held) -> Held:
        """Return the user's property if the contact has none or the same, else the contact's."""
        own = self._own.get(name)
        # A value of the contact's goes first where another system has set it; one that is the same
        # keeps the time of the user's event.
        is_own = own and (theirs.value is None or same(theirs.value, own.value))
        return own if own and is_own else theirs

    def intend(self, names: Iterable[str], resolution: Resolution) -> bool:
        """Note the fields that are about to be written; return whether that is new knowledge."""
        before = self.known
        known = with_unsure(before, names)
        self.known = self._of(resolution, known, self.held)
        return self.known != before

    def confirm(
        self, sent: Mapping[str, Any], properties: dict[str, Held], *, created: bool
    ) -> None:
        """Note a confirmed write of fields, made for ``properties``."""
        fields = {**self.known.fields, **sent}
        self.held = properties
        if created:  # it holds nothing else
            self.held = with_base(properties, self._rules, {})
            fields = {**dict.fromkeys(self._rules.fields_of_contact({})), **sent}
        fields |= self._refused
        fields.pop(self._rules.identifier, None)
        unsure = [name for name in self.known.unsure if name not in sent]
        self.known = msgspec.structs.replace(self.known, fields=fields, unsure=unsure)

    def refuse(self, name: str, value: Any) -> None:
        """Note that a field was refused with a value, and leave it out."""
        self._refused[name] = value
        fields = {**self.known.fields, **self._refused}
        self.known = msgspec.structs.replace(self.known, fields=fields)
        self.leave_out(name)

    def leave_out(self, name: str) -> None:
        """Note that a field is not written."""
        unsure = [n for n in self.known.unsure if n != name]
        self.known = msgspec.structs.replace(self.known, unsure=unsure)

    def at_end(self, resolution: Resolution, properties: Mapping[str, Held]) -> Known:
        """Return the knowledge to store, of the update's contact and with its properties."""
        return self._of(resolution, self.known, {**self.held, **properties})

    def _of(self, resolution: Resolution, known: Known, held: dict[str, Held]) -> Known:
        """Return the knowledge of the update's contact; of the lost contact until there is one."""
        contact_id = resolution.contact_id or self.before.contact_id
        return msgspec.structs.replace(
            known,
            contact_id=contact_id,
            is_lost=bool(contact_id and not resolution.contact_id),
            properties={**known.properties, self._taker: held},
            unread=[taker for taker in known.unread if taker != self._taker],
            selections={**known.selections, self._taker: self._selection},
        )


def with_base(
    held: Mapping[str, Held], rules: ContactRules, contact: Mapping[str, Any]
) -> dict[str, Held]:
    """Return properties with those that were not known as a contact has them."""
    theirs = rules.properties_of_contact(contact)
    base = {name: Held(theirs.get(name)) for name in rules.properties}
    return {**base, **held}


def with_unsure(known: Known, names: Iterable[str]) -> Known:
    """Return the knowledge with fields that are about to be written."""
    return msgspec.structs.replace(known, unsure=sorted({*known.unsure, *names}))


def countable(
    known: Known, taker: str, held: Mapping[str, Held], fields: Mapping[str, str]
) -> dict[str, Held]:
    """Return the properties that hold without reading the contact.

    These are all, or for an unread taker those that a write without an answer has used. ``fields``
    has the contact field of each property.
    """
    if taker not in known.unread:
        return dict(held)
    return {source: found for source, found in held.items() if fields.get(source) in known.unsure}


def unread(known: Known) -> Known:
    """Return the knowledge of a contact with unknown values."""
    return msgspec.structs.replace(known, fields={}, unread=sorted(known.properties))


def about(before: Known, resolution: Resolution) -> Known:
    """Return the earlier knowledge of an update's contact, or of none."""
    if resolution.contact_id and resolution.contact_id == before.contact_id:
        return before
    found = msgspec.structs.replace(before, fields={}, unsure=[], unread=[])
    return unread(found) if resolution.is_another else found
