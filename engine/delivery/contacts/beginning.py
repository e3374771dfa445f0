"""The beginning of an update: what the spool knows of the contact, and which call comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from amplitude_intercom.engine.delivery.contacts.drafts import Draft, cannot_be_created
from amplitude_intercom.engine.delivery.contacts.resolving import Action
from amplitude_intercom.engine.envelope import ContactUpdate
from amplitude_intercom.engine.spool.known import ContactKey, Held, Known


class Begun(NamedTuple):
    """What is known at the beginning, and under which ``key``: ``updates`` that are not done, what
    comes ``first``, and what they come to, where that is a write; what was ``noted`` of it then.
    ``held``: the properties that can be counted on."""

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
