"""The durable knowledge of one user's contact, read and written before and after its calls.

Each function is the work of one transaction. A transaction may run more than once, so nothing here
changes anything but the store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from amplitude_intercom.engine.delivery.contacts.knowledge import (
    about,
    countable,
    unread,
    with_unsure,
)
from amplitude_intercom.engine.delivery.contacts.resolving import Do, Way
from amplitude_intercom.engine.delivery.contacts.selection import Selection
from amplitude_intercom.engine.delivery.contacts.working_out import (
    Draft,
    as_written,
    cannot_be_created,
    needs_base,
    work_out,
)
from amplitude_intercom.engine.delivery.workspace import Workspace
from amplitude_intercom.engine.envelope import ContactUpdate, Identity
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.known import ContactKey, Held, Known, own_after


class Scope(NamedTuple):
    """The workspace of a sync's contacts, and the rules for writing them."""

    spool: TakerSpool
    workspace: Workspace
    rules: ContactRules
    selection: Selection
    now_ms: Callable[[], int]
    newer_wins: bool
    archived: Literal["unarchive", "dead_letter"]

    @property
    def taker(self) -> str:
        """The sync's key in a contact's ``properties``."""
        return str(self.spool.taker)

    def key_of(self, identity: Identity) -> ContactKey:
        """Return the key of a user's contact."""
        return ContactKey(self.workspace.number, identity.field, identity.value)

    def properties_of(self, known: Known) -> dict[str, Held]:
        """Return the sync's properties that hold for a known contact."""
        held = self.selection.properties_of(known, self.taker)
        if len(known.properties) < 2:
            return held  # no other sync writes it
        return as_written(self.rules, self.workspace.attributes, held, known)

    def work_out(
        self,
        updates: Sequence[ContactUpdate],
        held: Mapping[str, Held],
        known: Known,
        without: Collection[str],
    ) -> Draft:
        """Return the result of updates, ``without`` some fields."""
        types, newer_wins = self.workspace.attributes, self.newer_wins
        draft = work_out(self.rules, types, updates, held, known, newer_wins=newer_wins)
        if not without:
            return draft
        changes = {name: value for name, value in draft.changes.items() if name not in without}
        return msgspec.structs.replace(draft, changes=changes)


class Begun(NamedTuple):
    """The begin of an update: the knowledge of the contact under ``key``, and the ``first`` step.

    ``updates`` are those not done yet. ``draft`` is their result if the first step is a write, and
    ``noted`` the knowledge with that write's intent. ``held`` has the sync's properties.
    """

    key: ContactKey
    known: Known
    noted: Known
    held: dict[str, Held]
    updates: list[ContactUpdate]
    first: Do
    draft: Draft | None


class Notes:
    """The transactions about one user's contact."""

    def __init__(self, scope: Scope, identity: Identity) -> None:
        self._scope = scope
        self._is_by_email = identity.field == "email"
        self.own_key = scope.key_of(identity)

    def key_of(self, owner: str) -> ContactKey:
        """Return the key of another user's contact."""
        return self.own_key._replace(value=owner)

    def key_of_contact(self, contact_id: str) -> ContactKey:
        """Return the key of a contact by its id, for one that may become any user's."""
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
        if not has(key):
            return Begun(key, known, known, {}, list(updates), Do.DONE, None)
        if key != self.own_key:
            store.contacts.use(self.own_key, scope.now_ms())
        done = store.settling(scope.spool.taker).updated([update.claim_id for update in updates])
        updates = [update for update in updates if update.claim_id not in done]
        held = scope.properties_of(known)
        counted = countable(known, scope.taker, held, scope.rules.properties)
        must_look = needs_base(updates, counted) or len(counted) < len(held)
        first = self._first(known, updates, must_look=must_look)
        if not updates or first not in (Do.PUT, Do.CREATE):
            return Begun(key, known, known, held, updates, first, None)
        bare = msgspec.structs.replace(known, fields={})
        draft = scope.work_out(updates, held, known if first is Do.PUT else bare, without)
        noted = with_unsure(known, draft.changes)
        if noted != known:
            is_new = known == Known()
            store.contacts.remember(key, noted, scope.now_ms(), is_new=is_new)
        return Begun(key, known, noted, held, updates, first, draft)

    def _first(self, known: Known, updates: Sequence[ContactUpdate], *, must_look: bool) -> Do:
        """Return the first step."""
        if known.contact_id and not known.is_lost:
            return Do.LOOK if must_look else Do.PUT
        if not self._is_by_email and self._scope.workspace.first_contacts.looks_first:
            return Do.FIND
        return creating(updates, is_by_email=self._is_by_email)

    # --- after an answer ------------------------------------------------------------------

    def give_up(self, store: Transaction, key: ContactKey, before: Known) -> None:
        """Note that the intended write was refused, so its fields are not unsure."""
        known = store.contacts.get(key)
        if known is None:
            return
        unsure = [name for name in known.unsure if name in before.unsure]
        if unsure != known.unsure:
            self.keep(store, key, msgspec.structs.replace(known, unsure=unsure))

    def lose(self, store: Transaction) -> None:
        """Note that the user's own contact is missing, or another user's."""
        known = self.own(store)
        if known.contact_id and not known.is_lost:
            self.keep(store, self.own_key, msgspec.structs.replace(known, is_lost=True))

    def keep_found(self, store: Transaction, way: Way) -> None:
        """Note the contact that was found for the user."""
        known = msgspec.structs.replace(self.own(store), owner="")
        found = msgspec.structs.replace(about(known, way), contact_id=way.contact_id, is_lost=False)
        self.keep(store, self.own_key, found)

    def join(self, store: Transaction, at: ContactKey, way: Way) -> None:
        """Note that the user under ``at`` was merged into another, which has the contact now."""
        heir = self.key_of(way.owner)
        theirs = store.contacts.get(heir) or Known()
        if theirs.is_lost or theirs.contact_id != way.contact_id:
            found = msgspec.structs.replace(theirs, contact_id=way.contact_id, is_lost=False)
            theirs = msgspec.structs.replace(found, unsure=[], owner="")
        self.keep(store, heir, unread(theirs))
        merged = store.contacts.get(at) or Known()
        merged = msgspec.structs.replace(merged, contact_id=way.contact_id, owner=way.owner)
        self.keep(store, at, msgspec.structs.replace(merged, is_lost=False, unsure=[]))

    def part(self, store: Transaction, heir: ContactKey, *, is_lost: bool) -> Known:
        """Note that the user no longer shares a contact with the one it was merged into.

        ``is_lost`` says that the shared contact is missing. Returns the user's own knowledge.
        """
        own, theirs = self.own(store), store.contacts.get(heir) or Known()
        if is_lost:
            contact_id = theirs.contact_id or own.contact_id
            lost = msgspec.structs.replace(theirs, contact_id=contact_id, is_lost=True)
            self.keep(store, heir, lost)
        known = own_after(own, theirs)
        self.keep(store, self.own_key, known)
        return known


def creating(updates: Sequence[ContactUpdate], *, is_by_email: bool) -> Do:
    """Return the first step of creating a contact.

    By e-mail it is a search, because several contacts may have the e-mail, and the refusal of a
    create names only one of them.
    """
    if is_by_email:
        return Do.SEARCH
    if not updates:
        return Do.CREATE_BARE
    return Do.CREATE_EMPTY if cannot_be_created(updates) else Do.CREATE
