"""One sync's contacts: what the actors ask for, and what is kept of each contact afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from amplitude_intercom.engine.delivery.calls import TurnCalls
from amplitude_intercom.engine.delivery.contacts.notes import Scope
from amplitude_intercom.engine.delivery.contacts.selection import Selection
from amplitude_intercom.engine.delivery.contacts.upserting import Upsert, Upserted
from amplitude_intercom.engine.delivery.contacts.writing import Writing
from amplitude_intercom.engine.delivery.workspace import Workspace
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.settings import Users
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.known import ContactKey


class Contacts:
    """One sync's contacts, in its workspace."""

    def __init__(
        self,
        spool: TakerSpool,
        workspace: Workspace,
        rules: ContactRules,
        selection: Selection,
        users: Users,
        *,
        now_ms: Callable[[], int],
        unknown_attributes: Counter[str],
    ) -> None:
        """``unknown_attributes`` counts those that the workspace does not have."""
        self._scope = Scope(
            spool,
            workspace,
            rules,
            selection,
            now_ms,
            newer_wins=users.newer_wins,
            archived=users.archived,
        )
        self._spool = spool
        self._workspace = workspace
        self._users = users
        self._now_ms = now_ms
        self._unknown_attributes = unknown_attributes

    def key_of(self, identity: Identity) -> ContactKey:
        """Return what a user's contact is known by."""
        return self._scope.key_of(identity)

    async def upsert(
        self, updates: Sequence[ContactUpdate], calls: TurnCalls, writing: Writing
    ) -> Upserted:
        """Bring the updates of one user to its contact, in their order, in one write.

        What is known of the contact afterwards is returned, for the caller to keep: together with
        the settling of what it settles by it.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
            Undeliverable: Intercom does not take it, and never will.
        """
        if any(map(self._scope.rules.writes_attributes, updates)):
            await self._make_attributes_ready(updates, calls)
        upsert = Upsert(self._scope, updates[0].identity, updates, calls, writing)
        upserted = await upsert.run()
        self._count(upsert.adjustments)
        return upserted

    async def _make_attributes_ready(
        self, updates: Sequence[ContactUpdate], calls: TurnCalls
    ) -> None:
        creates = self._users.create_missing_attributes
        wanted = self._scope.rules.attributes_of(_arguments(updates)) if creates else {}
        await self._workspace.attributes.make_ready(
            calls, creates=wanted, refresh_s=self._users.refresh_attributes_s
        )

    async def ensure(self, identity: Identity, calls: TurnCalls) -> None:
        """Make sure that a contact exists, without touching one that does; and keep which it is.

        Raises:
            NotNow: a call has no answer, or another turn writes it.
            Undeliverable: it cannot be had.
        """
        with self._workspace.writing() as writing:
            await writing.take(self.key_of(identity))
            await Upsert(self._scope, identity, (), calls, writing).ensure()

    async def keep(self, upserted: Upserted) -> None:
        """Keep what is known of a contact, and that records are updated."""
        await self._spool.persist(partial(self.write, upserted, and_stay=True))

    def write(self, upserted: Upserted, store: Transaction, *, and_stay: bool) -> None:
        """Keep what is known of a contact, in somebody's transaction; where its records, or some of
        them, are not settled in the same one, that they are updated."""
        store.contacts.remember(upserted.key, upserted.known, self._now_ms())
        if and_stay:
            store.settling(self._spool.taker).note_updated(upserted.claim_ids)

    async def merged_into(self, identity: Identity, calls: TurnCalls) -> str:
        """Return the identifier of the user that one was merged into, whom Intercom has just said
        not to know; an empty text: it was not.

        The contact that is known of it is looked at, once: it may be merged, or another's, or gone.

        Raises:
            NotNow: a call has no answer, or another turn writes the contact.
        """
        own = self.key_of(identity)
        key, known = await self._spool.persist(lambda store: store.contacts.find(own))
        if key == own and known.contact_id and not known.is_lost:
            with self._workspace.writing() as writing:
                await writing.take(own)
                key = await Upsert(self._scope, identity, (), calls, writing).look()
        return "" if key == own else key.value

    def _count(self, adjustments: Iterable[Adjustment]) -> None:
        self._spool.adjustments.count(adjustment.reason for adjustment in adjustments)
        for adjustment in adjustments:
            if adjustment.reason is AdjustmentReason.UNKNOWN_ATTRIBUTE:
                self._unknown_attributes[adjustment.where] += 1


def _arguments(updates: Iterable[ContactUpdate]) -> dict[str, Any]:
    """Return values as updates name them: what is written is of these kinds."""
    return {
        name: value
        for update in updates
        for argument in update.operations.values()
        if isinstance(argument, dict)
        for name, value in argument.items()
    }
