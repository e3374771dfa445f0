"""Bringing updates to a user's contact: the calls, and what is made durable before them.

Rules
=====
1. What is known of a contact is read, and what the updates come to worked out, in one transaction.
   Before a call that writes, the same or another one notes which fields are about to be written
   (``unsure``).
2. An answer that confirms a write makes its values known, the properties those after the updates,
   and the records updated, in one commit of the caller's.
3. A retry works everything out again from what is durable, and writes absolute values again. So an
   operation takes effect once, whatever has become of an answer.
4. A contact is written by one turn at a time; one that two users have, since one was merged into
   the other, too. (Not where one sync finds it by its external id, and another by its e-mail.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from amplitude_intercom.engine.delivery.calls import TurnCalls, Undeliverable
from amplitude_intercom.engine.delivery.contacts.knowledge import Knowledge
from amplitude_intercom.engine.delivery.contacts.notes import Notes, Scope, creating
from amplitude_intercom.engine.delivery.contacts.resolving import CONTESTED, Do, Step, Way, resolve
from amplitude_intercom.engine.delivery.contacts.working_out import Draft, needs_base
from amplitude_intercom.engine.delivery.contacts.writing import Writing
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body
from amplitude_intercom.engine.spool.contract import Transaction
from amplitude_intercom.engine.spool.known import ContactKey, Held, Known
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer, Request

Result = TypeVar("Result")

MAX_CALLS: Final = 12
"""Calls that updates of one user may take, and one more for each field that is left out: still more
means that the answers lead in a circle."""


class Upserted(msgspec.Struct, frozen=True):
    """What updates came to: whether a call was needed, and what is to be kept of the contact.

    ``claim_ids``: of the records that are updated with it.
    """

    called: bool
    key: ContactKey
    known: Known
    claim_ids: list[int]


class Upsert:
    """Some updates of one user on their way; lives for a few calls."""

    def __init__(
        self,
        scope: Scope,
        identity: Identity,
        updates: Sequence[ContactUpdate],
        calls: TurnCalls,
        writing: Writing,
    ) -> None:
        """``writing``: what the turn writes; it may become more."""
        self._scope = scope
        self._identity = identity
        self._notes = Notes(scope, identity)
        self._key = self._notes.own_key
        self._updates = list(updates)
        self._calls = calls
        self._writing = writing
        self._made = 0
        self._is_by_email = identity.field == "email"
        """Whether it is to be searched for before it is created."""
        self._way = Way(identity=identity, archived=scope.archived)
        self._knowledge: Knowledge
        self._draft = Draft({}, {}, [])
        self._is_noted = False
        """Whether it is durable already that the draft is about to be written."""
        self._last_sent: dict[str, Any] = {}

    @property
    def adjustments(self) -> list[Adjustment]:
        """What the values that were written had to become, and what was left out."""
        said = {(found.reason, found.where): found for found in self._way.left_out}
        said |= {(found.reason, found.where): found for found in self._draft.adjustments}
        return list(said.values())

    # --- the two ways in ------------------------------------------------------------------

    async def run(self) -> Upserted:
        """Bring the updates to the contact.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
            Undeliverable: Intercom does not take them.
        """
        first = await self._begin()
        if not self._updates:  # all of it was done before
            return Upserted(True, self._key, self._knowledge.before, [])
        await self._go(first)
        known = self._knowledge.at_end(self._way, self._draft.properties)
        claim_ids = [update.claim_id for update in self._updates if update.claim_id]
        return Upserted(self._made > 0, self._key, known, claim_ids)

    async def ensure(self) -> None:
        """Have the contact there, and keep which it is.

        Raises:
            NotNow, Undeliverable: see ``run``.
        """
        known = await self._persist(self._notes.own)
        self._start_from(msgspec.structs.replace(known, is_lost=bool(known.contact_id), owner=""))
        await self._go(creating((), is_by_email=self._is_by_email))
        await self._persist(partial(self._notes.keep_found, way=self._way))

    async def look(self) -> ContactKey:
        """Find out what has become of the contact that is known, without creating another; return
        whose key it is known by.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
        """
        self._start_from(await self._persist(self._notes.own))
        step: Step = Do.LOOK
        while step is Do.LOOK:
            request = await self._prepare(step)
            assert request is not None
            step = await self._take(step, await self._calls.call(request))
        if step is not Do.DONE:
            await self._persist(self._notes.lose)
        return self._notes.key_of(self._way.owner) if self._way.owner else self._notes.own_key

    async def _persist(self, work: Callable[[Transaction], Result]) -> Result:
        return await self._scope.spool.persist(work)

    # --- what is known --------------------------------------------------------------------

    async def _begin(self) -> Do:
        """Read what is known, and start from it, with the contact to ourselves; return what comes
        first.

        Raises:
            NotNow: another turn writes the contact.
        """
        begin = partial(
            self._notes.begin,
            updates=self._updates,
            without=self._way.without,
            has=self._writing.has,
        )
        begun = await self._persist(begin)
        while not self._writing.has(begun.key):
            await self._writing.take(begun.key)
            begun = await self._persist(begin)
        self._key, self._updates = begun.key, begun.updates
        if begun.known.is_lost:
            self._way = msgspec.structs.replace(self._way, contact_id="", owner="")
        self._start_from(begun.known, begun.held, begun.noted)
        if begun.draft is not None:
            self._draft, self._is_noted = begun.draft, True
        return begun.first

    def _start_from(
        self, known: Known, held: dict[str, Held] | None = None, noted: Known | None = None
    ) -> None:
        """Take in what is known at the beginning, and what was ``noted`` since."""
        scope = self._scope
        if held is None:
            held = scope.properties_of(known)
        number = scope.selection.number
        self._knowledge = Knowledge(scope.rules, scope.taker, number, known, held, noted)
        if not known.is_lost:
            owner = "" if self._key == self._notes.own_key else self._key.value
            self._way = msgspec.structs.replace(self._way, contact_id=known.contact_id, owner=owner)

    # --- the loop -------------------------------------------------------------------------

    async def _go(self, step: Step) -> None:
        """Do one thing after another until the contact is as it should be."""
        while step is not Do.DONE:
            if self._made >= MAX_CALLS + len(self._way.without):
                text = "Intercom's answers lead in a circle"
                step = Failure(DeadReason.CONTACT_GONE, message=text)
            if isinstance(step, Failure):
                before = self._knowledge.before
                await self._persist(partial(self._notes.give_up, key=self._key, before=before))
                raise Undeliverable(step)
            request = await self._prepare(step)
            if request is None:
                return
            self._made += 1
            step = await self._take(step, await self._calls.call(request))

    async def _prepare(self, step: Do) -> Request | None:
        """Return the request of a step; None: there is nothing to be written."""
        way = self._way
        match step:
            case Do.FIND:
                return intercom.find_contact(self._identity.value)
            case Do.SEARCH:
                self._is_by_email = False
                return intercom.search_contacts(self._identity.value)
            case Do.LOOK:
                if way.is_another:  # it may have no name, and two users may find it so
                    await self._writing.take(self._notes.key_of_contact(way.contact_id))
                return intercom.get_contact(way.contact_id)
            case Do.UNARCHIVE:
                return intercom.unarchive_contact(way.contact_id)
            case Do.CREATE | Do.CREATE_EMPTY | Do.CREATE_BARE:
                self._last_sent = await self._to_be_created(step)
                return intercom.create_contact(creation_body(self._identity, self._last_sent))
        await self._intend()
        self._last_sent = dict(self._draft.changes)
        if way.adopts:
            self._last_sent[self._identity.field] = self._identity.value
        if not self._last_sent:
            return None
        return intercom.update_contact(way.contact_id, contact_body(self._last_sent))

    async def _to_be_created(self, step: Do) -> dict[str, Any]:
        """Return the fields that a contact is created with, once that is durable."""
        if step is Do.CREATE_BARE:
            return {}
        await self._intend()
        changes = {name: value for name, value in self._draft.changes.items() if value is not None}
        if step is Do.CREATE:
            return changes
        return {name: changes[name] for name in CONTESTED if name in changes}

    async def _intend(self) -> None:
        """Work out what is to be written, and make durable that it is about to be."""
        if self._is_noted:
            self._is_noted = False
            return
        knowledge = self._knowledge
        self._draft = self._scope.work_out(
            self._updates, knowledge.held, knowledge.known, self._way.without
        )
        if not knowledge.intend(self._draft.changes, self._way):
            return
        await self._persist(partial(self._notes.keep, key=self._key, known=knowledge.known))

    async def _take(self, did: Do, answer: Answer) -> Step:
        """Take in an answer; return what is next."""
        before = self._way
        self._way, step = resolve(before, did, answer, set(self._last_sent))
        self._learn(before, did, answer, is_done=step is Do.DONE)
        if step is Do.JOIN:
            return await self._join()
        has_parted = not self._way.owner and not self._way.is_heir
        if has_parted and self._key != self._notes.own_key:
            await self._part(answer)
        elif self._way.disowned != before.disowned:
            await self._persist(self._notes.lose)  # so that it is not written once more
        return self._with_base(step)

    def _learn(self, before: Way, did: Do, answer: Answer, *, is_done: bool) -> None:
        """Take in what an answer says of the contact."""
        way, knowledge = self._way, self._knowledge
        if not knowledge.had_contact and before.was_there is None and way.was_there is not None:
            self._scope.workspace.first_contacts.note(was_there=way.was_there)
        if way.contact_id != before.contact_id:
            knowledge.turn_to(way)
        if did in (Do.CREATE, Do.PUT) and is_done:
            created = did is Do.CREATE
            knowledge.confirm(self._last_sent, self._draft.properties, created=created)
        elif way.is_looked_at and not before.is_looked_at:
            knowledge.read(answer.contact)
        for name in way.without - before.without:
            self._leave_out(name, answer)

    def _leave_out(self, name: str, answer: Answer) -> None:
        if missing := intercom.unknown_attribute(answer):
            self._scope.workspace.attributes.learn_missing(missing)
            self._knowledge.leave_out(name)
        else:
            self._knowledge.refuse(name, self._last_sent.get(name))

    def _with_base(self, step: Step) -> Step:
        """Return what is next: before a write, what has to be known for it."""
        if step is Do.PUT and not self._updates:
            return Do.DONE  # a contact that is there is all that was wanted
        knowledge = self._knowledge
        if step is Do.PUT and not self._way.is_looked_at:
            must_look = knowledge.has_to_be_read or needs_base(self._updates, knowledge.held)
            return Do.LOOK if must_look else step
        if step is Do.CREATE:
            return creating(self._updates, is_by_email=self._is_by_email)
        return step

    # --- users that were merged -----------------------------------------------------------

    async def _join(self) -> Step:
        """Go on with what is known of the contact of the user that ours was merged into.

        Raises:
            NotNow: another turn writes that contact.
        """
        await self._writing.take(self._notes.key_of(self._way.owner))
        await self._persist(partial(self._notes.join, at=self._key, way=self._way))
        return await self._begin() if self._updates else Do.DONE

    async def _part(self, answer: Answer) -> None:
        """Go on with a contact of our own: the one of the user that ours was merged into is not
        there any more, or another's."""
        heir, self._key = self._key, self._notes.own_key
        is_lost = not self._way.contact_id
        self._start_from(await self._persist(partial(self._notes.part, heir=heir, is_lost=is_lost)))
        if self._way.contact_id:  # it is the user's own again
            self._knowledge.turn_to(self._way)
            self._knowledge.read(answer.contact)
