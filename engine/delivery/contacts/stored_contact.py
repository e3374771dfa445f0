"""The durable knowledge of one user's contact, read and written before and after its calls.

Each function is the work of one transaction. A transaction may run more than once, so nothing here
changes anything but the store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from amplitude_intercom.engine.delivery.contacts.beginning import Begun, creating
from amplitude_intercom.engine.delivery.contacts.drafts import needs_base
from amplitude_intercom.engine.delivery.contacts.learned_contact import (
    about,
    countable,
    unread,
    with_unsure,
)
from amplitude_intercom.engine.delivery.contacts.resolving import Action, Resolution
from amplitude_intercom.engine.delivery.contacts.scope import ContactScope
from amplitude_intercom.engine.delivery.contacts.working_out import properties_of, work_out
from amplitude_intercom.engine.envelope import ContactUpdate, Identity
from amplitude_intercom.engine.spool.contract import Transaction
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known, own_after


class StoredContact:
    """The transactions about one user's contact."""

    def __init__(self, scope: ContactScope, identity: Identity) -> None:
        self._scope = scope
        self._is_by_email = identity.field == "email"
        self.own_key = scope.key_of(identity)

    def key_of(self, owner: str) -> ContactKey:
        """Return the key of another user's contact."""
        return self.own_key._replace(value=owner)

    def key_of_contact(self, contact_id: str) -> ContactKey:
        """Return the key of a contact by its id, for one that may become any user's."""
        # Two users that are about to share it have keys of their own, and would not meet.
        return ContactKey(self.own_key.workspace, "id", contact_id)

    def own(self, store: Transaction) -> Known:
        """Return the knowledge under the user's own key."""
        return store.contacts.get(self.own_key) or Known()

    def keep(self, store: Transaction, key: ContactKey, known: Known) -> None:
        """Store the knowledge of a contact."""
        store.contacts.remember(key, known, self._scope.now_ms())

    # --- before a write -------------------------------------------------------------------

    def begin(
        self,
        store: Transaction,
        updates: Sequence[ContactUpdate],
        without: Collection[str],
        has: Callable[[ContactKey], bool],
    ) -> Begun:
        """Read the knowledge, work out the updates ``without`` some fields, and note the intent.

        If the turn does not have the contact to itself (``has``), only its key is returned.
        """
        scope = self._scope
        key, known = store.contacts.find(self.own_key)
        known = scope.selection.current(known, scope.taker, scope.rules.properties)
        # Another turn may have merged the user since this one took its contact.
        if not has(key):
            return Begun(key, known, known, {}, list(updates), Action.DONE, None)
        if key != self.own_key:
            # What is written is kept under the other key. The own one would be forgotten as unused,
            # and with it the way there.
            store.contacts.use(self.own_key, scope.now_ms())
        # A record that is tried again or replayed may have its update done: once is enough.
        done = store.settling(scope.spool.taker).updated([update.claim_id for update in updates])
        updates = [update for update in updates if update.claim_id not in done]
        held = properties_of(
            scope.rules, scope.workspace.attributes, scope.selection, scope.taker, known
        )
        counted = countable(known, scope.taker, held, scope.rules.properties)
        must_look = needs_base(updates, counted) or len(counted) < len(held)
        first = self._first(known, updates, must_look=must_look)
        if not updates or first not in (Action.PUT, Action.CREATE):
            return Begun(key, known, known, held, updates, first, None)
        # A contact that is created holds nothing of what is known of a former one.
        bare = msgspec.structs.replace(known, fields={})
        draft = work_out(
            scope.rules,
            scope.workspace.attributes,
            updates,
            held,
            known if first is Action.PUT else bare,
            newer_wins=scope.users.newer_wins,
            without=without,
        )
        # Before the write leaves: after a kill nobody can say whether it has arrived.
        noted = with_unsure(known, draft.changes)
        if noted != known:
            is_new = known == Known()
            store.contacts.remember(key, noted, scope.now_ms(), is_new=is_new)
        return Begun(key, known, noted, held, updates, first, draft)

    def _first(self, known: Known, updates: Sequence[ContactUpdate], *, must_look: bool) -> Action:
        """Return the first step."""
        if known.contact_id and not known.is_lost:
            return Action.LOOK if must_look else Action.PUT
        if not self._is_by_email and self._scope.workspace.create_or_find.finds_first:
            return Action.FIND
        return creating(updates, is_by_email=self._is_by_email)

    # --- after an answer ------------------------------------------------------------------

    def give_up(self, store: Transaction, key: ContactKey, before: Known) -> None:
        """Note that the intended write was refused, so its fields are not unsure."""
        known = store.contacts.get(key)
        if known is None:
            return
        # A field that was unsure before stays so: an earlier write of it has no answer.
        unsure = [name for name in known.unsure if name in before.unsure]
        if unsure != known.unsure:
            self.keep(store, key, msgspec.structs.replace(known, unsure=unsure))

    def lose(self, store: Transaction) -> None:
        """Note that the user's own contact is missing, or another user's."""
        known = self.own(store)
        if known.contact_id and not known.is_lost:
            self.keep(store, self.own_key, msgspec.structs.replace(known, is_lost=True))

    def keep_found(self, store: Transaction, resolution: Resolution) -> None:
        """Note the contact that was found for the user."""
        known = msgspec.structs.replace(self.own(store), owner="")
        found = msgspec.structs.replace(
            about(known, resolution), contact_id=resolution.contact_id, is_lost=False
        )
        self.keep(store, self.own_key, found)

    def join(self, store: Transaction, at: ContactKey, resolution: Resolution) -> None:
        """Note that the user under ``at`` was merged into another, which has the contact now."""
        target = self.key_of(resolution.owner)
        theirs = store.contacts.get(target) or Known()
        if theirs.is_lost or theirs.contact_id != resolution.contact_id:
            found = msgspec.structs.replace(theirs, contact_id=resolution.contact_id, is_lost=False)
            theirs = msgspec.structs.replace(found, unsure=[], owner="")
        # The merge may have changed what the contact holds, so it is read before it is counted on.
        self.keep(store, target, unread(theirs))
        merged = store.contacts.get(at) or Known()
        merged = msgspec.structs.replace(
            merged, contact_id=resolution.contact_id, owner=resolution.owner
        )
        self.keep(store, at, msgspec.structs.replace(merged, is_lost=False, unsure=[]))

    def part(self, store: Transaction, target: ContactKey, *, is_lost: bool) -> Known:
        """Note that the user no longer shares a contact with the one it was merged into.

        ``is_lost`` says that the shared contact is missing. Returns the user's own knowledge.
        """
        own, theirs = self.own(store), store.contacts.get(target) or Known()
        if is_lost:
            contact_id = theirs.contact_id or own.contact_id
            lost = msgspec.structs.replace(theirs, contact_id=contact_id, is_lost=True)
            self.keep(store, target, lost)
        known = own_after(own, theirs)
        self.keep(store, self.own_key, known)
        return known
