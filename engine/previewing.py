"""What a sync would make of an event, or a relay of its letter: without a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from amplitude_intercom.engine.delivery.contacts.drafts import cannot_be_created, needs_base
from amplitude_intercom.engine.delivery.contacts.learned_contact import with_base
from amplitude_intercom.engine.delivery.contacts.working_out import work_out
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes
from amplitude_intercom.engine.envelope import Adjustment, ContactUpdate, Identity, Plan, Record
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.relay.relayed_form import ORIGIN
from amplitude_intercom.engine.rules.bodies import contact_body, creation_body, event_body
from amplitude_intercom.engine.rules.contacts import AnyAttribute, Types
from amplitude_intercom.engine.rules.explanations import SelectorFinding
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.contract import Claim, claim_of
from amplitude_intercom.engine.spool.known_contacts import Known
from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.engine.spool.store import Store, wall_clock_ms
from amplitude_intercom.engine.token_facts import contact_key
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_heads import decode_head
from amplitude_intercom.transports.intercom import Request


class Past:
    """The facts of a spool that a request depends on; for a new event there are none."""

    def second(self, claim: Claim) -> int:
        """Return the second that an event has, or would be given."""
        return claim.second

    def contact(self, identity: Identity) -> Known:
        """Return the known facts about a user's contact."""
        return Known()

    @property
    def taker(self) -> str:
        """The number of the sync in the spool, by which properties are kept; empty: of none."""
        return ""


class SpooledPast(Past):
    """The facts of one spool; seconds that it gives are remembered from event to event."""

    def __init__(self, store: Store, sync: Sync, promised: dict[bytes, int]) -> None:
        self._store = store
        self._promised = promised
        self._delivery = sync.delivery
        self._taker = store.takers.known_id(sync.name)
        self._sync = sync

    def second(self, claim: Claim) -> int:
        if not self._delivery.same_second_window_s:
            return claim.second
        shift_s = self._delivery.same_second_shift_s
        return self._store.claims(self._sync.name).foresee(claim, self._promised, shift_s)

    def contact(self, identity: Identity) -> Known:
        key = contact_key(self._store, self._sync, identity.value)
        known = self._store.contacts.find(key)[1]
        return Known() if known.is_lost else known

    @property
    def taker(self) -> str:
        return str(self._taker)


class Foreseen(msgspec.Struct, frozen=True):
    """What would come of an event: ``send``, ``drop`` or ``reject``, and why, with the calls.

    ``selectors``: the selection's, each with what it wants and what the event has.
    """

    verdict: Literal["send", "drop", "reject"]
    reason: str = ""
    message: str = ""
    requests: Sequence[Request] = ()
    adjustments: Sequence[Adjustment] = ()
    selectors: Sequence[SelectorFinding] = ()


class Preview:
    """The verdict of one sync on an event, by the code that delivers it."""

    def __init__(self, sync: Sync, known: KnownAttributes | None = None) -> None:
        """``known``: the workspace's attributes; without them, any attribute may exist."""
        self.sync = sync
        self.rules = SyncRules(sync)
        self._known = known
        self._types: Types = known or AnyAttribute()

    def of(self, raw: bytes) -> Foreseen:
        """Return what would come of an event."""
        return self.judge(decode_head(raw), raw)

    def judge(self, head: Head | BadEvent, raw: bytes) -> Foreseen:
        """Return the same for an event whose head is decoded."""
        verdict = self.rules.admission.judge(head, raw)
        if isinstance(verdict, Keep):
            found = self._of_record(Record(0, *verdict.value, wall_clock_ms(), raw), Past())
        else:
            found = _turned_down(verdict)
        selectors = self.rules.admission.explain(raw)
        return msgspec.structs.replace(found, selectors=selectors)

    def replayed(self, letter: DeadLetter, past: Past) -> Foreseen:
        """Return the same for a dead letter, were it replayed now; each for itself."""
        if letter.reason == DeadReason.CORRUPT:
            what = "what it says was not accepted so"
            return _turned_down(Reject(DeadReason.CORRUPT, what))
        verdict = self.rules.admission.judge(decode_head(letter.raw), letter.raw)
        if letter.reason == DeadReason.TOO_LARGE and isinstance(verdict, Reject):
            what = "only its beginning is kept"
            return _turned_down(Reject(DeadReason.TOO_LARGE, what))
        if not isinstance(verdict, Keep):
            return _turned_down(verdict)
        record = Record(
            letter.id,
            *verdict.value,
            letter.accepted_at_ms,
            letter.raw,
            claim_id=letter.claim_id,
        )
        return self._of_record(record, past)

    def _of_record(self, record: Record, past: Past) -> Foreseen:
        verdict = self.rules.plan(record)
        if not isinstance(verdict, Keep):
            return _turned_down(verdict)
        requests, adjustments = self._requests(verdict.value, record, past)
        return Foreseen("send", "", "", requests, adjustments)

    def _requests(
        self, plan: Plan, record: Record, past: Past
    ) -> tuple[list[Request], list[Adjustment]]:
        """Return the calls that follow from the known facts, and the adjustments."""
        requests: list[Request] = []
        adjustments = list(plan.adjustments)
        if plan.contact is not None:
            updates, others = self._update(plan.contact, past)
            requests += updates
            adjustments += others
        if plan.event is not None:
            event = plan.event
            second = past.second(claim_of(record, event))
            requests.append(intercom.send_event(event_body(event, second)))
        return requests, adjustments

    def _update(self, update: ContactUpdate, past: Past) -> tuple[list[Request], list[Adjustment]]:
        """Return the calls that bring an update to its contact, where none is unforeseen.

        A user of whom nothing is known is taken for new, and a contact that has to be read for one
        that holds nothing.
        """
        identity, known = update.identity, past.contact(update.identity)
        held = known.properties.get(past.taker, {})
        requests: list[Request] = []
        if known.contact_id and needs_base([update], held):
            requests.append(intercom.get_contact(known.contact_id))
        elif not known.contact_id and cannot_be_created([update]):
            requests.append(intercom.create_contact(creation_body(identity, {})))
        if requests:
            held = with_base(held, self.rules.contacts, {})
        draft = work_out(
            self.rules.contacts,
            self._types,
            [update],
            held,
            known,
            newer_wins=self.sync.users.newer_wins,
        )
        values = {n: h.value for n, h in draft.properties.items() if h.value is not None}
        made = list(self._creations(self.rules.contacts.attributes_of(values)))
        requests = [*made, *requests]
        if known.contact_id or requests[len(made) :]:
            contact_id = known.contact_id or "NEW"
            if draft.changes:
                requests.append(intercom.update_contact(contact_id, contact_body(draft.changes)))
        else:
            sent = {name: value for name, value in draft.changes.items() if value is not None}
            requests.append(intercom.create_contact(creation_body(identity, sent)))
        return requests, draft.adjustments

    def _creations(self, wanted: dict[str, str]) -> Iterator[Request]:
        """Yield the calls that create missing attributes, once each, if the settings ask for it."""
        if self._known is None or not self.sync.users.create_missing_attributes:
            return
        for name, data_type in wanted.items():
            if self._known.type_of(name) is None:
                self._known.add(name, data_type)
                yield intercom.create_attribute(name, data_type)


def relay_replayed(letter: DeadLetter) -> Foreseen:
    """Return what a replay of a relay's dead letter would do now."""
    path = letter.origin.removeprefix(ORIGIN)
    return Foreseen("send", requests=[Request("POST", path, letter.raw)])


def _turned_down(verdict: Drop | Reject) -> Foreseen:
    if isinstance(verdict, Drop):
        return Foreseen("drop", verdict.reason)
    return Foreseen("reject", verdict.reason, verdict.message)
