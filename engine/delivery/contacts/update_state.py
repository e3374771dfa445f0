"""One update of a contact on its way: the fields to be written, and the lessons of each answer.

Rules
=====
1. The contact is as the spool knows it at the beginning, until an answer says otherwise.
2. A field is unsure from the moment at which a write of it is about to leave. Whether that is
   durable already is known here (``work_out``); making it durable is the caller's business.
3. A contact that is there is read before its first write, where operations need its values.

Without I/O. ``upserting`` makes the calls, ``resolving`` decides by each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.delivery.contacts.beginning import Begun, creating
from amplitude_intercom.engine.delivery.contacts.drafts import Draft, needs_base
from amplitude_intercom.engine.delivery.contacts.learned_contact import LearnedContact
from amplitude_intercom.engine.delivery.contacts.resolving import (
    CONTESTED,
    Action,
    NextStep,
    Resolution,
    resolve,
)
from amplitude_intercom.engine.delivery.contacts.scope import ContactScope, Upserted
from amplitude_intercom.engine.delivery.contacts.working_out import properties_of, work_out
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.spool.known_contacts import Held, Known
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer


class UpdateState:
    """How far some updates of one user are; see the module's docstring."""

    def __init__(
        self, scope: ContactScope, identity: Identity, updates: Sequence[ContactUpdate]
    ) -> None:
        self._scope = scope
        self._own_key = scope.key_of(identity)
        self.key = self._own_key
        """The key by which the contact is known: another user's, if the two were merged."""
        self.updates = list(updates)
        """The updates that are not done."""
        self.is_by_email = identity.field == "email"
        """Whether the contact is searched for before it is created."""
        self.resolution = Resolution(identity=identity, archived=scope.users.archived)
        self.contact: LearnedContact
        self._draft = Draft({}, {}, [])
        self._is_noted = False
        """Whether it is durable already that the draft is about to be written."""
        self._last_sent: dict[str, Any] = {}

    @property
    def adjustments(self) -> list[Adjustment]:
        """The changes that written values needed, and the values that were left out."""
        said = {(found.reason, found.where): found for found in self.resolution.left_out}
        said |= {(found.reason, found.where): found for found in self._draft.adjustments}
        return list(said.values())

    @property
    def is_parted(self) -> bool:
        """Whether the contact is known by another user's key, and is not that user's any more."""
        has_parted = not self.resolution.owner and not self.resolution.is_merge_target
        return has_parted and self.key != self._own_key

    def result(self, *, called: bool) -> Upserted:
        """Return the result of the updates."""
        known = self.contact.at_end(self.resolution, self._draft.properties)
        claim_ids = [update.claim_id for update in self.updates if update.claim_id]
        return Upserted(called, self.key, known, claim_ids)

    # --- the beginning --------------------------------------------------------------------

    def begin(self, begun: Begun) -> None:
        """Start from the contact as the spool knows it."""
        self.key, self.updates = begun.key, begun.updates
        if begun.known.is_lost:
            self.resolution = msgspec.structs.replace(self.resolution, contact_id="", owner="")
        self.start_from(begun.known, begun.held, begun.noted)
        if begun.draft is not None:
            self._draft, self._is_noted = begun.draft, True

    def start_from(
        self, known: Known, held: dict[str, Held] | None = None, noted: Known | None = None
    ) -> None:
        """Take over the facts known at the beginning, and those ``noted`` since."""
        scope = self._scope
        if held is None:
            types = scope.workspace.attributes
            held = properties_of(scope.rules, types, scope.selection, scope.taker, known)
        number = scope.selection.number
        self.contact = LearnedContact(scope.rules, scope.taker, number, known, held, noted)
        if not known.is_lost:
            owner = "" if self.key == self._own_key else self.key.value
            self.resolution = msgspec.structs.replace(
                self.resolution, contact_id=known.contact_id, owner=owner
            )

    def start_apart(self, own: Known, answer: Answer) -> None:
        """Start again from the user's own contact, which is not another user's any more."""
        self.key = self._own_key
        self.start_from(own)
        if self.resolution.contact_id:  # it is the user's own again
            self.contact.turn_to(self.resolution)
            self.contact.read(answer.contact)

    # --- writing --------------------------------------------------------------------------

    def work_out(self) -> bool:
        """Work out the fields to be written; return whether they are to be made durable first."""
        # The transaction that began it has noted the first draft: another commit would cost an
        # fsync for each update.
        if self._is_noted:
            self._is_noted = False
            return False
        scope = self._scope
        self._draft = work_out(
            scope.rules,
            scope.workspace.attributes,
            self.updates,
            self.contact.held,
            self.contact.known,
            newer_wins=scope.users.newer_wins,
            without=self.resolution.without,
        )
        return self.contact.intend(self._draft.changes, self.resolution)

    def begin_create(self, step: Action) -> dict[str, Any]:
        """Note that a contact is about to be created; return its fields."""
        changes = {name: value for name, value in self._draft.changes.items() if value is not None}
        if step is Action.CREATE_BARE:
            changes = {}
        elif step is Action.CREATE_EMPTY:
            changes = {name: changes[name] for name in CONTESTED if name in changes}
        self._last_sent = changes
        return changes

    def begin_put(self) -> dict[str, Any]:
        """Note that the contact is about to be written; return the fields."""
        identity = self.resolution.identity
        self._last_sent = dict(self._draft.changes)
        if self.resolution.adopts:
            self._last_sent[identity.field] = identity.value
        return self._last_sent

    # --- answers --------------------------------------------------------------------------

    def take(self, did: Action, answer: Answer) -> NextStep:
        """Take in an answer; return the next step."""
        before = self.resolution
        self.resolution, step = resolve(before, did, answer, set(self._last_sent))
        self._learn(before, did, answer, is_done=step is Action.DONE)
        return step

    def _learn(self, before: Resolution, did: Action, answer: Answer, *, is_done: bool) -> None:
        resolution, contact = self.resolution, self.contact
        if (
            not contact.had_contact
            and before.was_there is None
            and resolution.was_there is not None
        ):
            self._scope.workspace.create_or_find.note(was_there=resolution.was_there)
        if resolution.contact_id != before.contact_id:
            contact.turn_to(resolution)
        if did in (Action.CREATE, Action.PUT) and is_done:
            # A contact that was created holds what was sent, and nothing else, so all fields are
            # known.
            created = did is Action.CREATE
            contact.confirm(self._last_sent, self._draft.properties, created=created)
        elif resolution.is_looked_at and not before.is_looked_at:
            contact.read(answer.contact)
        for name in resolution.without - before.without:
            self._leave_out(name, answer)

    def _leave_out(self, name: str, answer: Answer) -> None:
        # An attribute that the workspace does not have concerns all users; a value that is refused
        # is this user's alone, and another value of it is tried again.
        if missing := intercom.unknown_attribute(answer):
            self._scope.workspace.attributes.learn_missing(missing)
            self.contact.leave_out(name)
        else:
            self.contact.refuse(name, self._last_sent.get(name))

    def with_base(self, step: NextStep) -> NextStep:
        """Return the next step: a look, where the write needs to know the contact first."""
        if step is Action.PUT and not self.updates:
            return Action.DONE  # a contact that is there is all that was wanted
        if step is Action.PUT and not self.resolution.is_looked_at:
            # An `$add` to a value that another system has written must begin with that value.
            must_look = self.contact.has_to_be_read or needs_base(self.updates, self.contact.held)
            return Action.LOOK if must_look else step
        if step is Action.CREATE:
            return creating(self.updates, is_by_email=self.is_by_email)
        return step
