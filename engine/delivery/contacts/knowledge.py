"""What is known of a contact, as answers come. Without I/O.

Rules
=====
1. What was known at the beginning is about the contact that was known then. One that is created in
   its stead gets the user's properties. Another one that turns up has properties of its own, for
   whoever made it: of the user's it gets those that it has no value of.
2. A field is known as it was written last, or read, or left out because it was refused: then it is
   not tried again before its value is another.
3. A field that is about to be written is unsure until a write of it is confirmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from amplitude_intercom.engine.delivery.contacts.resolving import Way
from amplitude_intercom.engine.delivery.contacts.working_out import same, with_base
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.spool.known import Held, Known


class Knowledge:
    """What is known of one user's contact, and what one taker has made of its properties."""

    def __init__(
        self,
        rules: ContactRules,
        taker: str,
        selection: int,
        before: Known,
        held: Mapping[str, Held],
        noted: Known | None = None,
    ) -> None:
        """``selection``: its number. ``before``: what is known at the beginning, with the
        properties that can be counted on (``held``); ``noted``: the same, with what was made
        durable since of a write that is about to be made."""
        self._rules = rules
        self._taker = taker
        self._selection = selection
        self.before = before
        known = noted or before
        # One that is created in the stead of a lost one has no fields yet.
        self.known = msgspec.structs.replace(known, fields={}) if before.is_lost else known
        self._own = dict(held)
        """The user's properties, whatever contact it goes to."""
        counted = held if before.is_lost else countable(before, taker, held, rules.properties)
        self.held = dict(counted)
        """Those that count on what this one holds, or on nothing, where it is to be made."""
        self._is_read = False
        self._refused: dict[str, Any] = {}

    @property
    def had_contact(self) -> bool:
        """Whether a contact of the user was known at the beginning."""
        return bool(self.before.contact_id)

    @property
    def has_to_be_read(self) -> bool:
        """Whether what the contact holds goes before what is known of the user's properties."""
        return not self._is_read and self._taker in self.known.unread and bool(self._own)

    def turn_to(self, way: Way) -> None:
        """Take in which contact it is now."""
        found = about(self.before, way)
        self._is_read = False
        self.known = msgspec.structs.replace(
            self.known, fields=found.fields, unsure=found.unsure, unread=found.unread
        )
        self.held = countable(found, self._taker, self._own, self._rules.properties)

    def read(self, contact: Mapping[str, Any]) -> None:
        """Take in what the contact holds."""
        fields = {**self.known.fields, **self._rules.fields_of_contact(contact)}
        self.known = msgspec.structs.replace(self.known, fields=fields)
        self._is_read = True
        theirs = with_base(self.held, self._rules, contact)
        self.held = {name: self._better(name, held) for name, held in theirs.items()}

    def _better(self, name: str, theirs: Held) -> Held:
        """Return a property as a contact has it, or where it has no value, or the same, as the user
        had it."""
        own = self._own.get(name)
        is_own = own and (theirs.value is None or same(theirs.value, own.value))
        return own if own and is_own else theirs

    def intend(self, names: Iterable[str], way: Way) -> bool:
        """Take in which fields are about to be written; return whether anything of it, or of what
        they count on, is new."""
        before = self.known
        known = with_unsure(before, names)
        self.known = self._of(way, known, self.held)
        return self.known != before

    def confirm(
        self, sent: Mapping[str, Any], properties: dict[str, Held], *, created: bool
    ) -> None:
        """Take in that the fields that were sent are there, on behalf of properties."""
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
        """Take in that a field was refused with this value, and is left out."""
        self._refused[name] = value
        fields = {**self.known.fields, **self._refused}
        self.known = msgspec.structs.replace(self.known, fields=fields)
        self.leave_out(name)

    def leave_out(self, name: str) -> None:
        """Take in that a field is not written."""
        unsure = [n for n in self.known.unsure if n != name]
        self.known = msgspec.structs.replace(self.known, unsure=unsure)

    def at_end(self, way: Way, properties: Mapping[str, Held]) -> Known:
        """Return what is to be kept: of the contact it went to, with properties as worked out."""
        return self._of(way, self.known, {**self.held, **properties})

    def _of(self, way: Way, known: Known, held: dict[str, Held]) -> Known:
        """Return what is known, of the contact that it goes to; where that is none yet, of the one
        that was lost."""
        contact_id = way.contact_id or self.before.contact_id
        return msgspec.structs.replace(
            known,
            contact_id=contact_id,
            is_lost=bool(contact_id and not way.contact_id),
            properties={**known.properties, self._taker: held},
            unread=[taker for taker in known.unread if taker != self._taker],
            selections={**known.selections, self._taker: self._selection},
        )


def with_unsure(known: Known, names: Iterable[str]) -> Known:
    """Return what is known, where fields are about to be written."""
    return msgspec.structs.replace(known, unsure=sorted({*known.unsure, *names}))


def countable(
    known: Known, taker: str, held: Mapping[str, Held], fields: Mapping[str, str]
) -> dict[str, Held]:
    """Return the properties that can be counted on without a look at the contact: all, or where
    they are unread, those that a write without an answer has counted on. ``fields``: of them."""
    if taker not in known.unread:
        return dict(held)
    return {source: found for source, found in held.items() if fields.get(source) in known.unsure}


def unread(known: Known) -> Known:
    """Return what is known, where nothing of it is what the contact holds, for all that is said."""
    return msgspec.structs.replace(known, fields={}, unread=sorted(known.properties))


def about(before: Known, way: Way) -> Known:
    """Return what was known before of the contact that a way has come to, or of none."""
    if way.contact_id and way.contact_id == before.contact_id:
        return before
    found = msgspec.structs.replace(before, fields={}, unsure=[], unread=[])
    return unread(found) if way.is_another else found
