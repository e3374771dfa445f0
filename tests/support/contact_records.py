"""What has happened in a history of contacts, in order, and what must be true because of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.transports.sandbox.contacts import Contact
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import contact_model
from support.contact_history import EMAIL, SELECTABLE, History, Plan
from support.contact_model import UNSURE, Held, Properties, Update, as_field, same


class Sent(msgspec.Struct, eq=False):
    """An event or identify that was accepted.

    ``calls``: how many its workspace had seen before it. ``poison``: the path where it is refused.
    """

    n: int
    calls: int
    plan: Plan
    user: str
    update: Update
    is_event: bool
    poison: str = ""
    was_dead: bool = False
    is_dead: bool = False
    """Its update is not applied, at last."""
    is_open: bool = False
    """Whether its update was applied is not known."""


class Happened(msgspec.Struct, eq=False):
    """What others did to a user's contact."""

    what: str
    workspace: int
    user: str
    contact_id: str
    at_s: float


class Chosen(msgspec.Struct, eq=False):
    """A property was selected; ``waiting``: updates of it may still have been on their way."""

    plan: Plan
    name: str
    waiting: bool


class Records:
    """What was sent and what others did; ``workspaces`` by number."""

    def __init__(self, history: History, workspaces: Sequence[Sandbox]) -> None:
        self.history = history
        self.workspaces = workspaces
        self.sent: list[Sent] = []
        self.log: list[Sent | Happened | Chosen] = []
        self.others: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
        """What others have written last, by workspace and contact."""
        self.made: set[tuple[str, str]] = set()
        """Contacts and the syncs that made them, in a calm history."""

    def add(self, sent: Sent) -> None:
        """Note what is accepted."""
        self.sent.append(sent)
        self.log.append(sent)

    def choose(self, *, waiting: Collection[str]) -> None:
        """Select what is to be selected later; ``waiting``: syncs with something on its way."""
        for plan in self.history.plans:
            if plan.later:
                self.log.append(Chosen(plan, plan.later, plan.name in waiting))
                plan.selected = [plan.later, *plan.selected]
                plan.later = ""

    # --- dead letters -------------------------------------------------------------------------

    def note_dead(self, letter: DeadLetter) -> Sent:
        """Note whether the update of a dead letter was applied."""
        n = int(msgspec.json.decode(letter.raw)["insert_id"].rpartition("/")[2])
        sent = self.sent[n]
        sent.was_dead = True
        if letter.reason == "user_not_found" or (
            letter.reason == "refused" and sent.poison == "/events"
        ):
            return sent  # the event is dead, its update was applied before
        sent.is_dead = True
        sent.is_open = sent.is_open or self._may_be_done(sent, letter.reason)
        return sent

    def _may_be_done(self, sent: Sent, reason: str) -> bool:
        """Return whether the write of a dead update may have been done, for all we know."""
        if (reason, sent.poison) == ("refused", "/contacts"):
            return False
        if reason in ("contact_archived", "contact_gone") and not sent.is_event:
            return self.history.loses_answers
        return True

    def replay(self, letters: Sequence[DeadLetter]) -> None:
        """Note that dead letters are sent again: in their order, behind all that was accepted."""
        for letter in sorted(letters, key=lambda letter: letter.id):
            sent = self.note_dead(letter)
            if sent.is_dead or sent.is_open:
                self.log.remove(sent)
                self.log.append(sent)
                sent.is_dead = False
                sent.update = sent.update._replace(
                    selected=tuple(sent.plan.selected), newer_wins=sent.plan.newer_wins
                )

    # --- what must be -------------------------------------------------------------------------

    def contact_of(self, workspace: int, user: str) -> Contact | None:
        """Return a user's contact: a live one rather than any other, or where it was merged to."""
        contacts = self.workspaces[workspace].contacts
        field = self.history.identifier
        found = [each for each in contacts.values() if getattr(each, field) == user]
        if not found:
            return None
        ranks = ("live", "archived", "deleted", "merged")
        contact = min(found, key=lambda each: ranks.index(each.state))
        while contact.state == "merged":
            contact = contacts[contact.merged_into]
        return contact

    def is_ours(self, workspace: int, contact: Contact) -> bool:
        """Return whether we have created a contact."""
        journal = self.workspaces[workspace].journal
        return any(e.outcome == "created" and e.contact_id == contact.id for e in journal)

    def is_known(self, plan: Plan, user: str) -> bool:
        """Return whether a contact of a user is there, and was met by us."""
        met = any(
            sent.user == user
            and sent.plan.workspace == plan.workspace
            and contact_model.names_of(sent.update)
            for sent in self.sent
        )
        return met and self.contact_of(plan.workspace, user) is not None

    def properties(self, plan: Plan, user: str) -> Properties:
        """Return what the properties of a user must be by now."""
        found: Properties = {}
        base = partial(self.base, plan.workspace, user)
        earlier: set[str] = set()
        dead: set[str] = set()
        chosen: set[str] = set()
        for entry in self.log:
            match entry:
                case Sent() if entry.plan is plan and entry.user == user:
                    found = self._after(entry, found, base)
                    names = contact_model.names_of(entry.update._replace(selected=SELECTABLE))
                    earlier |= names
                    dead |= names if entry.was_dead else set()
                case Happened() if (entry.workspace, entry.user) == (plan.workspace, user):
                    found = self._after_others(entry, found, plan)
                case Chosen() if entry.plan is plan:
                    chosen.add(entry.name)
                    if entry.waiting and entry.name in earlier:
                        found = {**found, entry.name: Held(UNSURE)}
        # A replay of what was dead before brings what is selected by then.
        return {**found, **dict.fromkeys(chosen & dead, Held(UNSURE))}

    def _after(self, sent: Sent, found: Properties, base: Callable[[str], Any]) -> Properties:
        if sent.is_open:
            return contact_model.perhaps(sent.update, found)
        return found if sent.is_dead else contact_model.apply(sent.update, found, base)

    def _after_others(self, happened: Happened, found: Properties, plan: Plan) -> Properties:
        if happened.what == "archived":
            return contact_model.read_again(found)
        if happened.what == "appeared" and not self._had_come(happened):
            return found
        return contact_model.moved(found, [*plan.selected, *filter(None, [plan.later])])

    def _had_come(self, happened: Happened) -> bool:
        """Return whether an update of a user was accepted before something happened."""
        earlier = self.log[: self.log.index(happened)]
        return any(isinstance(e, Sent) and e.user == happened.user for e in earlier)

    def base(self, workspace: int, user: str, name: str) -> Any:
        """Return what a contact held before us: nothing, where we have created it."""
        contact = self.contact_of(workspace, user)
        if contact is None:
            return None
        theirs = self.others[workspace, contact.id]
        if self.is_ours(workspace, contact):
            return UNSURE if name in theirs else None
        return theirs.get(name)

    def most_calls(self, sent: Sent, before: Properties, *, known: bool) -> int:
        """Return the most calls for the contact that law 5 allows for an update by itself."""
        contact = self.contact_of(sent.plan.workspace, sent.user)
        reads = contact_model.needs_base(sent.update, before)
        names = contact_model.names_of(sent.update)
        if not known:
            return 2 + (reads or EMAIL in names)  # whose address it is has to be looked at
        after = self.properties(sent.plan, sent.user)
        ours = contact is not None and (contact.id, sent.plan.name) in self.made
        unknown = Held(None) if ours else None
        for name in names & after.keys():
            old = before.get(name, unknown)
            if old is None or UNSURE in (old.value, after[name].value):
                return 1 + reads
            if not same(as_field(old.value), as_field(after[name].value)):
                return 1 + reads
        return 0
