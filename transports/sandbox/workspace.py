"""The state of a local Intercom: contacts, attributes and events. No calls, no clock of its own.

- Contacts are immutable values. An update stores a new one, so a lagging index holds old ones.
- The *store* answers at once. The *index*, for search and list, gets a contact some time later.

The facts come from the project's reference on Intercom. "(recordings)" marks a fact that was seen
in 422 real exchanges, "(API description)" one of Intercom's own, "(a choice)" one without a source.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

import msgspec

from amplitude_intercom.transports.sandbox.attributes import DataAttributes
from amplitude_intercom.transports.sandbox.contacts import Contact, Directory
from amplitude_intercom.transports.sandbox.refusals import Refusal


class StoredEvent(msgspec.Struct, frozen=True):
    """An event that was stored; duplicates are not. ``metadata`` has the kept keys only."""

    contact_id: str
    name: str
    created_at: int
    metadata: Mapping[str, Any]
    stored_at_s: float = 0.0


class Rules(msgspec.Struct, frozen=True):
    """Rules that differ between workspaces, or are undocumented.

    Args:
        strict_email: refuse a new external id with a known e-mail (undocumented, so off).
        teammates: ids that ``owner_id`` may have.
        keeps_duplicates: keep an event that is sent again as another one ("may" be ignored, says
            the API description).
        event_lag_s: lag of the list of a contact's events (undocumented, so 0).
        workspace_id: the id that ``GET /me`` returns; two sandboxes are two workspaces by it.
    """

    max_event_names: int = 120
    metadata_keys_kept: int = 20
    strict_email: bool = False
    region: str = "US"
    teammates: Collection[str] = ("1",)
    keeps_duplicates: bool = False
    event_lag_s: float = 0.0
    workspace_id: str = "sandbox1"


class RuleChoices(TypedDict, total=False):
    """Those ``Rules`` that differ from the usual ones."""

    max_event_names: int
    metadata_keys_kept: int
    strict_email: bool
    region: str
    teammates: Collection[str]
    keeps_duplicates: bool
    event_lag_s: float
    workspace_id: str


class WorkspaceState:
    """The stored contacts, attributes and events of one workspace."""

    def __init__(
        self, rules: Rules, contacts: Directory, attributes: DataAttributes, rng: random.Random
    ) -> None:
        """``rng``: of the ids of contacts."""
        self.rules = rules
        self.contacts = contacts
        self.attributes = attributes
        self.rng = rng
        self.events: list[StoredEvent] = []
        self.event_names: set[str] = set()
        """Active event names, in lower case."""
        self._stored: set[tuple[str, str, int]] = set()

    def add_contact(self, at_s: float, **fields: Any) -> Contact:
        """Store a new contact; ``id`` and both times may be given."""
        times = {"created_at": int(at_s), "updated_at": int(at_s)}
        contact_id = f"{int(at_s):08x}{self.rng.getrandbits(64):016x}"
        made = {"id": contact_id, **times, **fields}
        return self.contacts.put(Contact(**made), at_s)

    def change_contact(self, contact: Contact, at_s: float, **fields: Any) -> Contact:
        """Store a contact with other fields, and return it."""
        changed = msgspec.structs.replace(contact, updated_at=int(at_s), **fields)
        return self.contacts.put(changed, at_s)

    def merge_contacts(self, one: Contact, into: Contact, at_s: float) -> None:
        """Let one contact disappear in another."""
        self.change_contact(one, at_s, state="merged", merged_into=into.id)

    def add_event(self, event: StoredEvent) -> bool:
        """Store an event unless it is a duplicate; return whether it was stored.

        Raises:
            Refusal: its name would be one too many.
        """
        self._count_name(event.name.lower())
        # The identity by which Intercom drops duplicates: contact, name and second.
        identity = (event.contact_id, event.name.lower(), event.created_at)
        if identity in self._stored and not self.rules.keeps_duplicates:
            return False
        self._stored.add(identity)
        self.events.append(event)
        return True

    def _count_name(self, name: str) -> None:
        if name in self.event_names:
            return
        if len(self.event_names) >= self.rules.max_event_names:
            limit = self.rules.max_event_names
            raise Refusal(422, "422", f"Cannot have more than {limit} active event names")
        self.event_names.add(name)
