"""Bringing updates to a user's contact: the calls, and what is made durable before and after them.

Rules
=====
1. What is known of a contact is read, and what the updates come to worked out, in one transaction;
   it notes in the same one which fields are about to be written (``unsure``), before the call.
2. An answer that confirms a write makes its values known, the properties those after the updates,
   and the records updated, in one commit of the caller's.
3. A retry works everything out again from what is durable, and writes absolute values again. So an
   operation takes effect once, whatever has become of an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import msgspec

from amplitude_intercom.engine.delivery.contacts.knowledge import Knowledge, with_unsure
from amplitude_intercom.engine.delivery.contacts.resolving import CONTESTED, Do, Step, Way, resolve
from amplitude_intercom.engine.delivery.contacts.working_out import (
    Draft,
    cannot_be_created,
    needs_base,
    work_out,
)
from amplitude_intercom.engine.delivery.turn_calls import TurnCalls
from amplitude_intercom.engine.delivery.workspace import Workspace
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.errors import Failure, Undeliverable
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.settings import Users
from amplitude_intercom.engine.spool.rows import ContactKey, Held, Known
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer, Request

MAX_CALLS: Final = 12
"""Calls that one update may take, and one more for each field that is left out: still more means
that the answers lead in a circle."""


class Upserted(msgspec.Struct, frozen=True):
    """What updates came to: whether a call was needed, and what is to be kept of the contact.

    ``claim_ids``: of the records that are updated with it.
    """

    called: bool
    key: ContactKey
    known: Known
    claim_ids: list[int]


class Contacts:
    """One sync's contacts, in its workspace."""

    def __init__(
        self,
        spool: TakerSpool,
        workspace: Workspace,
        rules: ContactRules,
        users: Users,
        *,
        now_ms: Callable[[], int],
        unknown_attributes: Counter[str],
    ) -> None:
        """``unknown_attributes`` counts those that the workspace does not have."""
        self.spool = spool
        self.workspace = workspace
        self.rules = rules
        self.users = users
        self.now_ms = now_ms
        self.newer_wins = users.newer_wins and users.trigger == "any_update"
        self.archived: Literal["unarchive", "dead_letter"] = users.archived
        self.unknown_attributes = unknown_attributes

    def key_of(self, identity: Identity) -> ContactKey:
        """Return what a user's contact is known by."""
        return ContactKey(self.workspace.number, identity.field, identity.value)

    async def upsert(self, updates: Sequence[ContactUpdate], calls: TurnCalls) -> Upserted:
        """Bring the updates of one user to its contact, in their order, in one write.

        What is known of the contact afterwards is returned, for the caller to keep: together with
        the settling of what it settles by it.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: Intercom does not take it, and never will.
        """
        await self.workspace.attributes.make_ready(
            self.rules.attributes_of(_arguments(updates)),
            calls,
            creates=self.users.create_missing_attributes,
            refresh_s=self.users.refresh_attributes_s,
        )
        upsert = _Upsert(self, updates[0].identity, updates, calls)
        upserted = await upsert.run()
        self._count(upsert.adjustments)
        return upserted

    async def ensure(self, identity: Identity, calls: TurnCalls) -> None:
        """Make sure that a contact exists, without touching one that does; and keep which it is.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: it cannot be had.
        """
        way = await _Upsert(self, identity, (), calls).ensure()
        key, now_ms = self.key_of(identity), self.now_ms()

        def work(store: Store) -> None:
            # A turn of another sync may have written it meanwhile: what that one knows stays.
            known = store.contacts.get(key) or Known()
            if known.contact_id != way.contact_id:
                properties = {} if way.is_another else known.properties
                known = msgspec.structs.replace(known, fields={}, properties=properties)
            found = msgspec.structs.replace(
                known, contact_id=way.contact_id, is_lost=False, owner=way.owner
            )
            store.contacts.remember(key, found, now_ms)

        await self.spool.persist(work)

    async def keep(self, upserted: Upserted) -> None:
        """Keep what is known of a contact, and that records are updated."""
        await self.spool.persist(partial(self.write, upserted))

    def write(self, upserted: Upserted, store: Store) -> None:
        """Keep the same, in somebody's transaction."""
        store.contacts.remember(upserted.key, upserted.known, self.now_ms())
        store.settling(self.spool.taker).note_updated(upserted.claim_ids)

    async def merged_into(self, identity: Identity) -> str:
        """Return the id of the contact that a user was merged into, as far as that is known; else
        an empty text."""
        known = await self.spool.persist(lambda store: store.contacts.get(self.key_of(identity)))
        return known.contact_id if known and known.owner and not known.is_lost else ""

    async def lose(self, identity: Identity) -> None:
        """Take in that the contact that is known of a user is not there."""
        key, now_ms = self.key_of(identity), self.now_ms()

        def work(store: Store) -> None:
            known = store.contacts.get(key)
            if known is not None and known.contact_id and not known.is_lost:
                lost = msgspec.structs.replace(known, is_lost=True)
                store.contacts.remember(key, lost, now_ms)

        await self.spool.persist(work)

    def _count(self, adjustments: Iterable[Adjustment]) -> None:
        self.spool.adjustments.count(adjustment.reason for adjustment in adjustments)
        for adjustment in adjustments:
            if adjustment.reason is AdjustmentReason.UNKNOWN_ATTRIBUTE:
                self.unknown_attributes[adjustment.where] += 1


def _arguments(updates: Iterable[ContactUpdate]) -> dict[str, Any]:
    """Return values as updates name them: what is written is of these kinds."""
    return {
        name: value
        for update in updates
        for argument in update.operations.values()
        if isinstance(argument, dict)
        for name, value in argument.items()
    }


class _Begun(NamedTuple):
    """What is known at the beginning: ``updates`` that are not done, what comes ``first``, and what
    they come to, where that is a write. ``unsure``: fields that were unsure before."""

    known: Known
    unsure: list[str]
    updates: list[ContactUpdate]
    first: Do
    draft: Draft | None


class _Upsert:
    """Some updates of one user on their way; lives for a few calls."""

    def __init__(
        self,
        contacts: Contacts,
        identity: Identity,
        updates: Sequence[ContactUpdate],
        calls: TurnCalls,
    ) -> None:
        self._contacts = contacts
        self._rules = contacts.rules
        self._identity = identity
        self._key = contacts.key_of(identity)
        self._taker = contacts.spool.taker
        self._updates = list(updates)
        self._calls = calls
        self._made = 0
        self._is_searched = False
        self._unsure_before: list[str] = []
        self._knowledge = Knowledge(self._rules, contacts.spool.taker, Known())
        self._way = Way(identity=identity, archived=contacts.archived)
        self._draft = Draft({}, {}, [])
        self._is_intended = False
        """Whether it is durable already that the draft is about to be written."""
        self._sent: dict[str, Any] = {}

    @property
    def adjustments(self) -> list[Adjustment]:
        """What the values that were written had to become, and what was left out."""
        said = {(found.reason, found.where): found for found in self._way.left_out}
        said |= {(found.reason, found.where): found for found in self._draft.adjustments}
        return list(said.values())

    # --- the two ways in ------------------------------------------------------------------

    async def run(self) -> Upserted:
        begun = await self._contacts.spool.persist(self._begin)
        self._unsure_before, self._updates = begun.unsure, begun.updates
        self._start_from(begun.known)
        if not self._updates:  # all of it was done before
            return self._upserted()
        if begun.draft is not None:
            self._draft, self._is_intended = begun.draft, True
        return await self._go(begun.first)

    def _start_from(self, known: Known) -> None:
        """Take in what is known at the beginning."""
        self._knowledge = Knowledge(self._rules, self._taker, known, self._unsure_before)
        if not known.is_lost:
            self._way = msgspec.structs.replace(
                self._way, contact_id=known.contact_id, owner=known.owner
            )

    async def ensure(self) -> Way:
        """Have the contact there; return which it is.

        Raises:
            NotNow, Undeliverable: see ``Contacts.ensure``.
        """
        known = await self._contacts.spool.persist(
            lambda store: store.contacts.get(self._key) or Known()
        )
        lost = msgspec.structs.replace(known, is_lost=bool(known.contact_id))
        self._start_from(lost)
        await self._go(Do.CREATE_BARE)
        return self._way

    def _begin(self, store: Store) -> _Begun:
        """Read what is known, work out what the updates come to, and note what is about to be
        written: in a transaction, maybe more than once."""
        claim_ids = [update.claim_id for update in self._updates]
        done = store.records.updated(self._taker, claim_ids)
        updates = [update for update in self._updates if update.claim_id not in done]
        known = store.contacts.use(self._key, self._contacts.now_ms()) or Known()
        held = known.properties.get(str(self._taker), {})
        first = self._first(known, updates, held)
        if not updates or first not in (Do.PUT, Do.CREATE):
            return _Begun(known, known.unsure, updates, first, None)
        bare = msgspec.structs.replace(known, fields={})
        draft = self._work_out(updates, held, known if first is Do.PUT else bare)
        intended = with_unsure(known, draft.changes)
        if intended != known:
            store.contacts.remember(self._key, intended, self._contacts.now_ms())
        return _Begun(intended, known.unsure, updates, first, draft)

    def _work_out(
        self, updates: Sequence[ContactUpdate], held: dict[str, Held], known: Known
    ) -> Draft:
        return work_out(
            self._rules,
            self._contacts.workspace.attributes,
            updates,
            held,
            known,
            newer_wins=self._contacts.newer_wins,
        )

    def _first(
        self, known: Known, updates: Sequence[ContactUpdate], held: Mapping[str, Held]
    ) -> Do:
        """Return what comes first."""
        if known.contact_id and not known.is_lost:
            return Do.LOOK if needs_base(updates, held) else Do.PUT
        by_id = self._identity.field == "external_id"
        if by_id and self._contacts.workspace.first_contacts.looks_first:
            return Do.FIND
        return self._create(updates, held)

    def _create(self, updates: Sequence[ContactUpdate], held: Mapping[str, Held]) -> Do:
        """Return how the contact is created. An e-mail may be several contacts': a create would be
        told of one of them, so it is searched for before."""
        if self._identity.field == "email" and not self._is_searched:
            return Do.SEARCH
        return Do.CREATE_EMPTY if cannot_be_created(updates, held) else Do.CREATE

    # --- the loop -------------------------------------------------------------------------

    async def _go(self, step: Step) -> Upserted:
        """Do one thing after another until the contact is as it should be.

        Raises:
            NotNow, Undeliverable: see ``Contacts.upsert``.
        """
        while step is not Do.DONE:
            if isinstance(step, Failure):
                await self._give_up()
                raise Undeliverable(step)
            request = await self._prepare(step)
            if request is None:
                break
            self._count_call()
            answer = await self._calls.call(request)
            step = self._take(step, answer)
        return self._upserted()

    async def _give_up(self) -> None:
        """Take in that what was about to be written is not there: it was refused."""
        key, now_ms, before = self._key, self._contacts.now_ms(), set(self._unsure_before)

        def work(store: Store) -> None:
            known = store.contacts.get(key)
            if known is not None and not before.issuperset(known.unsure):
                unsure = [name for name in known.unsure if name in before]
                kept = msgspec.structs.replace(known, unsure=unsure)
                store.contacts.remember(key, kept, now_ms)

        await self._contacts.spool.persist(work)

    def _count_call(self) -> None:
        self._made += 1
        if self._made > MAX_CALLS + len(self._way.without):
            text = "Intercom's answers lead in a circle"
            raise Undeliverable(Failure(DeadReason.CONTACT_GONE, message=text))

    async def _prepare(self, step: Do) -> Request | None:
        """Return the request of a step; None: there is nothing to be written."""
        way = self._way
        match step:
            case Do.FIND:
                return intercom.find_contact(self._identity.value)
            case Do.SEARCH:
                self._is_searched = True
                return intercom.search_contacts(self._identity.value)
            case Do.LOOK:
                return intercom.get_contact(way.contact_id)
            case Do.UNARCHIVE:
                return intercom.unarchive_contact(way.contact_id)
            case Do.CREATE_BARE:
                self._sent = {}
                return intercom.create_contact(creation_body(self._identity, {}))
            case Do.CREATE_EMPTY:
                changes = self._drafted().changes
                self._sent = {name: changes[name] for name in CONTESTED if changes.get(name)}
                return intercom.create_contact(creation_body(self._identity, self._sent))
            case Do.CREATE:
                await self._intend()
                self._sent = {n: v for n, v in self._draft.changes.items() if v is not None}
                return intercom.create_contact(creation_body(self._identity, self._sent))
        await self._intend()
        self._sent = dict(self._draft.changes)
        if way.adopts:
            self._sent[self._identity.field] = self._identity.value
        if not self._sent:
            return None
        return intercom.update_contact(way.contact_id, contact_body(self._sent))

    def _drafted(self) -> Draft:
        """Return what the updates come to by what is known now."""
        draft = self._work_out(self._updates, self._knowledge.held, self._knowledge.known)
        for name in self._way.without:
            draft.changes.pop(name, None)
        return draft

    async def _intend(self) -> None:
        """Work out what is to be written, and make durable that it is about to be."""
        if self._is_intended:
            self._is_intended = False
            return
        self._draft = self._drafted()
        knowledge = self._knowledge
        if knowledge.holds_base and set(knowledge.known.unsure).issuperset(self._draft.changes):
            return
        knowledge.intend(self._draft.changes, self._way)
        key, now_ms, kept = self._key, self._contacts.now_ms(), knowledge.known
        await self._contacts.spool.persist(lambda store: store.contacts.remember(key, kept, now_ms))

    def _take(self, did: Do, answer: Answer) -> Step:
        """Take in an answer; return what is next."""
        before, knowledge = self._way, self._knowledge
        self._way, step = resolve(before, did, answer, set(self._sent))
        way = self._way
        if not knowledge.was_there and before.was_there is None and way.was_there is not None:
            self._contacts.workspace.first_contacts.note(was_there=way.was_there)
        if way.contact_id != before.contact_id:
            knowledge.turn_to(way)
        if did in (Do.CREATE, Do.PUT):
            if step is Do.DONE:
                created = did is Do.CREATE
                knowledge.confirm(self._sent, self._draft.properties, created=created)
        elif way.is_looked_at and not before.is_looked_at:
            knowledge.read(answer.contact)
        for name in way.without - before.without:
            self._leave_out(name, answer)
        return self._with_base(step)

    def _leave_out(self, name: str, answer: Answer) -> None:
        if missing := intercom.unknown_attribute(answer):
            self._contacts.workspace.attributes.learn_missing(missing)
        else:
            self._knowledge.refuse(name, self._sent.get(name))

    def _with_base(self, step: Step) -> Step:
        """Return what is next: before a write, what has to be known for it."""
        if step is Do.PUT and not self._updates:
            return Do.DONE  # a contact that is there is all that was wanted
        held = self._knowledge.held
        if step is Do.PUT and not self._way.is_looked_at and needs_base(self._updates, held):
            return Do.LOOK
        if step is Do.CREATE:
            return self._create(self._updates, held)
        return step

    def _upserted(self) -> Upserted:
        known = self._knowledge.at_end(self._way, self._draft.properties)
        claim_ids = [update.claim_id for update in self._updates if update.claim_id]
        called = self._made > 0 or not self._updates
        return Upserted(called, self._key, known, claim_ids)
