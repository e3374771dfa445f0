"""The beginning of an update: the contact as the spool knows it, and the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from amplitude_intercom.engine.delivery.contacts.drafts import Draft, cannot_be_created
from amplitude_intercom.engine.delivery.contacts.resolving import Action
from amplitude_intercom.engine.envelope import ContactUpdate
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Held, Known


class Begun(NamedTuple):
    """The known facts at the beginning, and their ``key``.

    ``noted``: the same with the fields that are about to be written. ``held``: the properties that
    can be counted on. ``updates``: those that are not done. ``first``: the first action; ``draft``:
    the result of the updates, if that is a write.
    """

    key: ContactKey
    known: Known
    noted: Known
    held: dict[str, Held]
    updates: list[ContactUpdate]
    first: Action
    draft: Draft | None


def creating(updates: Sequence[ContactUpdate], *, is_by_email: bool) -> Action:
    """Return how a contact is created. An e-mail may be several contacts': a create would be told
    of one of them, so it is searched for before."""
    if is_by_email:
        return Action.SEARCH
    if not updates:
        return Action.CREATE_BARE
    return Action.CREATE_EMPTY if cannot_be_created(updates) else Action.CREATE
