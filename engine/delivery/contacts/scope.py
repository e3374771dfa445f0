"""One sync's contacts in its workspace: their keys, rules, and the facts that are kept of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import msgspec

from amplitude_intercom.engine.delivery.contacts.selected_properties import SelectedProperties
from amplitude_intercom.engine.delivery.workspaces import Workspace
from amplitude_intercom.engine.envelope import Adjustment, Identity
from amplitude_intercom.engine.reasons import AdjustmentReason
from amplitude_intercom.engine.rules.contacts import ContactRules
from amplitude_intercom.engine.settings import Users
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known


class Upserted(msgspec.Struct, frozen=True):
    """The result of some updates.

    ``called``: whether the contact was written, now or before; else nothing had changed. ``known``:
    the facts about the contact. ``claim_ids``: of the records that are updated with it.
    """

    called: bool
    key: ContactKey
    known: Known
    claim_ids: list[int]


class ContactScope(NamedTuple):
    """The workspace of a sync's contacts, and the rules and settings by which they are written.

    ``unknown_attributes`` counts the attributes that the workspace does not have.
    """

    spool: TakerSpool
    workspace: Workspace
    rules: ContactRules
    selection: SelectedProperties
    now_ms: Callable[[], int]
    users: Users
    unknown_attributes: Counter[str]

    @property
    def taker(self) -> str:
        """The sync's taker, as contacts name the owner of properties."""
        return str(self.spool.taker)

    def key_of(self, identity: Identity) -> ContactKey:
        """Return the key of a user's contact."""
        return ContactKey(self.workspace.number, identity.field, identity.value)

    async def keep(self, upserted: Upserted) -> None:
        """Keep the facts about a contact, and that its records are updated."""
        await self.spool.persist(partial(self.write, upserted, and_stay=True))

    def write(self, upserted: Upserted, store: Transaction, *, and_stay: bool) -> None:
        """Keep the facts about a contact, in a transaction.

        ``and_stay``: some of its records are not settled in this transaction; the spool notes that
        their updates are done.
        """
        store.contacts.remember(upserted.key, upserted.known, self.now_ms())
        if and_stay:
            store.settling(self.spool.taker).note_updated(upserted.claim_ids)

    def count_adjusted(self, adjustments: Iterable[Adjustment]) -> None:
        """Count the adjustments of a write."""
        self.spool.tally.adjust(adjustment.reason for adjustment in adjustments)
        for adjustment in adjustments:
            if adjustment.reason is AdjustmentReason.UNKNOWN_ATTRIBUTE:
                self.unknown_attributes[adjustment.where] += 1
