"""Bringing updates to a user's contact: the calls, and the commits before them.

Rules
=====
1. One transaction reads the known facts about a contact and works out the result of the updates.
   Before a call that writes, the same or another one notes which fields are about to be written
   (``unsure``).
2. An answer that confirms a write makes its values known, the properties those after the updates,
   and the records updated, in one commit of the caller's.
3. A retry works everything out again from durable facts, and writes absolute values again. So an
   operation takes effect once, whatever has become of an answer.
4. A contact is written by one turn at a time; one that two users have, since one was merged into
   the other, too. (Not where one sync finds it by its external id, and another by its e-mail.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from amplitude_intercom.engine.delivery.calls import TurnCalls, Undeliverable
from amplitude_intercom.engine.delivery.contact_locks import ContactLocks
from amplitude_intercom.engine.delivery.contacts.beginning import creating
from amplitude_intercom.engine.delivery.contacts.resolving import Action, NextStep
from amplitude_intercom.engine.delivery.contacts.scope import ContactScope, Upserted
from amplitude_intercom.engine.delivery.contacts.stored_contact import StoredContact
from amplitude_intercom.engine.delivery.contacts.update_state import UpdateState
from amplitude_intercom.engine.envelope import ContactUpdate, Identity
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body
from amplitude_intercom.engine.spool.contract import Transaction
from amplitude_intercom.engine.spool.known_contacts import ContactKey
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer, Request

Result = TypeVar("Result")

MAX_CALLS: Final = 12
"""Calls that updates of one user may take, and one more for each field that is left out: still more
means that the answers lead in a circle."""


async def upsert(
    scope: ContactScope, updates: Sequence[ContactUpdate], calls: TurnCalls, locks: ContactLocks
) -> Upserted:
    """Bring the updates of one user to its contact, in their order, in one write.

    The caller keeps the result, together with the settling of the records.

    Raises:
        NotNow: a call has no answer, or another turn writes the contact.
        Undeliverable: Intercom does not take it, and never will.
    """
    if any(map(scope.rules.writes_attributes, updates)):
        await _make_attributes_ready(scope, updates, calls)
    upsert = Upsert(scope, updates[0].identity, updates, calls, locks)
    upserted = await upsert.run()
    scope.count_adjusted(upsert.state.adjustments)
    return upserted


async def _make_attributes_ready(
    scope: ContactScope, updates: Sequence[ContactUpdate], calls: TurnCalls
) -> None:
    creates = scope.users.create_missing_attributes
    wanted = scope.rules.attributes_of(_arguments(updates)) if creates else {}
    await scope.workspace.attributes.make_ready(
        calls, creates=wanted, refresh_s=scope.users.refresh_attributes_s
    )


def _arguments(updates: Iterable[ContactUpdate]) -> dict[str, Any]:
    """Return values as updates name them: the values that are written are of these kinds."""
    return {
        name: value
        for update in updates
        for argument in update.operations.values()
        if isinstance(argument, dict)
        for name, value in argument.items()
    }


async def ensure(scope: ContactScope, identity: Identity, calls: TurnCalls) -> None:
    """Create a contact unless it is there, without a change to one that is; keep which it is.

    Raises:
        NotNow: a call has no answer, or another turn writes the contact.
        Undeliverable: it cannot be had.
    """
    with scope.workspace.locks() as locks:
        await locks.take(scope.key_of(identity))
        await Upsert(scope, identity, (), calls, locks).ensure()


async def merged_into(scope: ContactScope, identity: Identity, calls: TurnCalls) -> str:
    """Return the identifier of the user that an unknown user was merged into; empty: none.

    The contact that is known of it is read once: it may be merged, another user's, or gone.

    Raises:
        NotNow: a call has no answer, or another turn writes the contact.
    """
    own = scope.key_of(identity)
    key, known = await scope.spool.persist(lambda store: store.contacts.find(own))
    if key == own and known.contact_id and not known.is_lost:
        with scope.workspace.locks() as locks:
            await locks.take(own)
            key = await Upsert(scope, identity, (), calls, locks).look()
    return "" if key == own else key.value


class Upsert:
    """Some updates of one user on their way; lives for a few calls."""

    def __init__(
        self,
        scope: ContactScope,
        identity: Identity,
        updates: Sequence[ContactUpdate],
        calls: TurnCalls,
        locks: ContactLocks,
    ) -> None:
        """``locks``: the contacts that the turn writes; it may take more."""
        self._scope = scope
        self._identity = identity
        self._stored = StoredContact(scope, identity)
        self._calls = calls
        self._locks = locks
        self._made = 0
        self.state = UpdateState(scope, identity, updates)

    # --- the ways in ----------------------------------------------------------------------

    async def run(self) -> Upserted:
        """Bring the updates to the contact.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
            Undeliverable: Intercom does not take them.
        """
        first = await self._begin()
        if not self.state.updates:  # all of it was done before
            return Upserted(True, self.state.key, self.state.contact.before, [])
        await self._go(first)
        return self.state.result(called=self._made > 0)

    async def ensure(self) -> None:
        """Have the contact there, and keep which it is.

        Raises:
            NotNow, Undeliverable: see ``run``.
        """
        known = await self._persist(self._stored.own)
        lost = msgspec.structs.replace(known, is_lost=bool(known.contact_id), owner="")
        self.state.start_from(lost)
        await self._go(creating((), is_by_email=self.state.is_by_email))
        await self._persist(partial(self._stored.keep_found, resolution=self.state.resolution))

    async def look(self) -> ContactKey:
        """Look at the contact that is known, without creating another.

        Returns the key by which it is known from now on.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
        """
        self.state.start_from(await self._persist(self._stored.own))
        step: NextStep = Action.LOOK
        while step is Action.LOOK:
            request = await self._prepare(step)
            assert request is not None
            step = await self._take(step, await self._calls.call(request))
        if step is not Action.DONE:
            await self._persist(self._stored.lose)
        owner = self.state.resolution.owner
        return self._stored.key_of(owner) if owner else self._stored.own_key

    async def _persist(self, work: Callable[[Transaction], Result]) -> Result:
        return await self._scope.spool.persist(work)

    async def _begin(self) -> Action:
        """Read the known facts, and start from them, with the contact to this turn alone.

        Returns the first action.

        Raises:
            NotNow: another turn writes the contact.
        """
        begin = partial(
            self._stored.begin,
            updates=self.state.updates,
            without=self.state.resolution.without,
            has=self._locks.has,
        )
        begun = await self._persist(begin)
        # Which contact it is may change while another turn writes it: what was read before is
        # believed only once this turn has it.
        while not self._locks.has(begun.key):
            await self._locks.take(begun.key)
            begun = await self._persist(begin)
        self.state.begin(begun)
        return begun.first

    # --- the loop -------------------------------------------------------------------------

    async def _go(self, step: NextStep) -> None:
        """Do one thing after another until the contact is as it should be."""
        state = self.state
        while step is not Action.DONE:
            # A bound of its own, though each rule of `resolving` has one: what Intercom answers
            # cannot be foreseen.
            if self._made >= MAX_CALLS + len(state.resolution.without):
                text = "Intercom's answers lead in a circle"
                step = Failure(DeadReason.CONTACT_GONE, message=text)
            if isinstance(step, Failure):
                before = state.contact.before
                # Refused for good: the fields are not unsure any more, and must not be written with
                # the next update for that reason.
                await self._persist(partial(self._stored.give_up, key=state.key, before=before))
                raise Undeliverable(step)
            request = await self._prepare(step)
            if request is None:
                return
            self._made += 1
            step = await self._take(step, await self._calls.call(request))

    async def _prepare(self, step: Action) -> Request | None:
        """Return the request of a step; None: there is nothing to be written."""
        state, contact_id = self.state, self.state.resolution.contact_id
        match step:
            case Action.FIND:
                return intercom.find_contact(self._identity.value)
            case Action.SEARCH:
                # Searched once; if nothing was found, the create is next.
                state.is_by_email = False
                return intercom.search_contacts(self._identity.value)
            case Action.LOOK:
                if state.resolution.is_another:  # it may have no name, and two users may find it so
                    await self._locks.take(self._stored.key_of_contact(contact_id))
                return intercom.get_contact(contact_id)
            case Action.UNARCHIVE:
                return intercom.unarchive_contact(contact_id)
            case Action.CREATE | Action.CREATE_EMPTY | Action.CREATE_BARE:
                if step is not Action.CREATE_BARE:
                    await self._intend()
                return intercom.create_contact(
                    creation_body(self._identity, state.begin_create(step))
                )
        await self._intend()
        fields = state.begin_put()
        return intercom.update_contact(contact_id, contact_body(fields)) if fields else None

    async def _intend(self) -> None:
        """Work out the fields to be written, and make the intention durable."""
        state = self.state
        # Durable before the call: if its answer is lost, the next start knows which fields may
        # differ.
        if state.work_out():
            keep = partial(self._stored.keep, key=state.key, known=state.contact.known)
            await self._persist(keep)

    async def _take(self, did: Action, answer: Answer) -> NextStep:
        """Take in an answer; return the next step."""
        state, disowned = self.state, self.state.resolution.disowned
        step = state.take(did, answer)
        if step is Action.JOIN:
            return await self._join()
        if state.is_parted:
            await self._part(answer)
        elif state.resolution.disowned != disowned:
            # Else the next event of the user would have the other user's contact written again.
            await self._persist(self._stored.lose)
        return state.with_base(step)

    # --- users that were merged -----------------------------------------------------------

    async def _join(self) -> NextStep:
        """Go on with the contact of the user that this one was merged into.

        Raises:
            NotNow: another turn writes that contact.
        """
        resolution = self.state.resolution
        # From now on two users write one contact, and their turns do not know of each other.
        await self._locks.take(self._stored.key_of(resolution.owner))
        await self._persist(partial(self._stored.join, at=self.state.key, resolution=resolution))
        return await self._begin() if self.state.updates else Action.DONE

    async def _part(self, answer: Answer) -> None:
        """Go on with a contact of the user's own: the one that it was merged into is gone, or
        another user's."""
        is_lost = not self.state.resolution.contact_id
        part = partial(self._stored.part, target=self.state.key, is_lost=is_lost)
        self.state.start_apart(await self._persist(part), answer)
