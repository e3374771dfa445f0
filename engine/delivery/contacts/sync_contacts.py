"""One sync's contacts: what the actors ask for, and what is kept of each contact afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from amplitude_intercom.engine.delivery.contacts.notes import Scope
from amplitude_intercom.engine.delivery.contacts.selection import Selection
from amplitude_intercom.engine.delivery.contacts.upserting import Upsert, Upserted
from amplitude_intercom.engine.delivery.contacts.writing import Writing
from amplitude_intercom.engine.delivery.turn_calls import TurnCalls
from amplitude_intercom.engine.delivery.workspace import Workspace
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.settings import Users
from amplitude_intercom.engine.spool.rows import ContactKey
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.engine.spool.store import Store


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
        """Keep what is known of a contact, and that records are updated, for they stay."""

        def work(store: Store) -> None:
            self.write(upserted, store)
            store.settling(self._spool.taker).note_updated(upserted.claim_ids)

        await self._spool.persist(work)

    def write(self, upserted: Upserted, store: Store) -> None:
        """Keep what is known of a contact, in somebody's transaction."""
        store.contacts.remember(upserted.key, upserted.known, self._now_ms())

    async def merged_into(self, identity: Identity) -> str:
        """Return the id of the contact that a user was merged into, as far as that is known; else
        an empty text."""
        own = self.key_of(identity)
        key, known = await self._spool.persist(lambda store: store.contacts.find(own))
        return "" if key == own or known.is_lost else known.contact_id

    async def lose(self, identity: Identity) -> None:
        """Take in that the contact that is known of a user is not there."""
        key, now_ms = self.key_of(identity), self._now_ms()

        def work(store: Store) -> None:
            known = store.contacts.get(key)
            if known is not None and known.contact_id and not known.is_lost:
                lost = msgspec.structs.replace(known, is_lost=True, owner="")
                store.contacts.remember(key, lost, now_ms)

        await self._spool.persist(work)

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
