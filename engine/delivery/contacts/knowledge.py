"""What is known of a contact, as answers come. Without I/O.

Rules
=====
1. What was known at the beginning is about the contact that was known then. Another one that is
   there has properties of its own; one that is created gets the user's.
2. A field is known as it was written last, or read, or left out because it was refused: then it is
   not tried again before its value is another.
3. A field that is about to be written is unsure until a write of it is confirmed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from amplitude_intercom.engine.delivery.contacts.resolving import Way
from amplitude_intercom.engine.delivery.contacts.working_out import with_base
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.spool.rows import Held, Known


class Knowledge:
    """What is known of one user's contact, and what one taker has made of its properties."""

    def __init__(
        self, rules: ContactRules, taker: int, before: Known, unsure: Collection[str] = ()
    ) -> None:
        """``before``: what is known at the beginning; ``unsure``: fields of which a write that was
        made earlier has no answer."""
        self._rules = rules
        self._taker = str(taker)
        self._before = before
        self._unsure = frozenset(unsure)
        # One that is created in the stead of a lost one has no fields yet.
        self.known = msgspec.structs.replace(before, fields={}) if before.is_lost else before
        self._own = self.held = dict(before.properties.get(self._taker, {}))
        """The user's properties, whatever contact it goes to; and those that count on this one."""
        self._refused: dict[str, Any] = {}

    @property
    def was_there(self) -> bool:
        """Whether a contact of the user was known."""
        return bool(self._before.contact_id)

    @property
    def holds_base(self) -> bool:
        """Whether the properties are as they were at the beginning, for this contact."""
        return self.held == self.known.properties.get(self._taker, {})

    def turn_to(self, way: Way) -> None:
        """Take in which contact it is now."""
        before = self._before
        is_the_same = way.contact_id and way.contact_id == before.contact_id
        # One that turns up after a create without an answer is the one that we have created.
        may_be_made = before.is_lost and self._unsure
        is_another = way.is_another and not is_the_same and not may_be_made
        self.known = msgspec.structs.replace(
            self.known,
            fields=dict(before.fields) if is_the_same else {},
            unsure=list(before.unsure) if is_the_same else [],
            properties={} if is_another else before.properties,
        )
        self.held = {} if is_another else dict(self._own)

    def read(self, contact: Mapping[str, Any]) -> None:
        """Take in what the contact holds."""
        fields = {**self.known.fields, **self._rules.fields_of_contact(contact)}
        self.known = msgspec.structs.replace(self.known, fields=fields)
        self.held = with_base(self.held, self._rules, contact)

    def intend(self, names: Iterable[str], way: Way) -> None:
        """Take in which fields are about to be written."""
        known = with_unsure(self.known, names)
        self.known = self._of(way, known, self.held)

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
        unsure = [n for n in self.known.unsure if n != name or n in self._unsure]
        self.known = msgspec.structs.replace(self.known, fields=fields, unsure=unsure)

    def at_end(self, way: Way, properties: Mapping[str, Held]) -> Known:
        """Return what is to be kept: of the contact it went to, with properties as worked out."""
        return self._of(way, self.known, {**self.held, **properties})

    def _of(self, way: Way, known: Known, held: dict[str, Held]) -> Known:
        """Return what is known, of the contact that it goes to; where that is none yet, of the one
        that was lost."""
        contact_id = way.contact_id or self._before.contact_id
        return msgspec.structs.replace(
            known,
            contact_id=contact_id,
            is_lost=bool(contact_id and not way.contact_id),
            owner=way.owner,
            properties={**known.properties, self._taker: held},
        )


def with_unsure(known: Known, names: Iterable[str]) -> Known:
    """Return what is known, where fields are about to be written."""
    return msgspec.structs.replace(known, unsure=sorted({*known.unsure, *names}))
