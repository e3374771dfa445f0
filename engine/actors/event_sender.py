"""The event-sender actor: one call for each event, and the meaning of each answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from amplitude_intercom.engine.actor import Actor
from amplitude_intercom.engine.delivery.calls import NotAnswered, NotNow, TurnCalls, Undeliverable
from amplitude_intercom.engine.delivery.contacts.upserting import ensure, merged_into
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    GoOn,
    PutBack,
    Unknown,
    ending_of,
)
from amplitude_intercom.engine.delivery.stream import SyncDelivery
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import is_due
from amplitude_intercom.engine.envelope import Envelope
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason, Failure
from amplitude_intercom.engine.spool.known_contacts import ContactKey
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer


def refusal_of(answer: Answer) -> Failure | None:
    """Return why an event was not taken, or None for a 2xx (its body is empty: nothing to read)."""
    if answer.status < 300:
        return None
    said = intercom.parse_error(answer)
    return Failure(_reason(answer), answer.status, said.code, said.message, said.request_id)


def _reason(answer: Answer) -> DeadReason:
    if answer.status == 404:
        return DeadReason.USER_NOT_FOUND
    if intercom.says_ambiguous(answer):
        return DeadReason.CONTACT_AMBIGUOUS
    if intercom.says_too_many_names(answer):
        return DeadReason.EVENT_TYPE_LIMIT
    return DeadReason.REFUSED


ASKED_BEFORE: Final = "Intercom did not know the user when it was asked last; not asked again yet"


def _is_unknown(refusal: Failure | None) -> bool:
    return refusal is not None and refusal.reason is DeadReason.USER_NOT_FOUND


def _to(target: ContactKey, body: bytes) -> bytes:
    """Return the body of an event that names another user."""
    event = msgspec.json.decode(body)
    others = {name: event[name] for name in event if name not in ("user_id", "email", "id")}
    named = "email" if target.field == "email" else "user_id"
    return msgspec.json.encode({named: target.value, **others})


class EventSender(Actor[Turn, None]):
    """The events of turns, one at a time."""

    def __init__(self, deliveries: Mapping[str, SyncDelivery]) -> None:
        super().__init__()
        self._deliveries = deliveries

    async def handle(self, turn: Turn) -> None:
        delivery = self._deliveries[turn.sync]
        ending: Ending | None = None
        while turn.envelopes and ending is None:
            ending = await self._send_next(delivery, turn)
        delivery.end(turn, ending or GoOn(turn.left, turn.has_succeeded))

    async def _send_next(self, delivery: SyncDelivery, turn: Turn) -> Ending | None:
        """Send the next event of a turn; return how the turn ends, if it does."""
        envelope = turn.envelopes[0]
        if delivery.feed.is_stopping:
            return PutBack(turn.unsettled)
        not_before_ms = envelope.not_before_ms
        if not_before_ms and not is_due(not_before_ms, delivery.now_ms()):
            return Deferred(turn.unsettled, not_before_ms)
        try:
            return await _Sending(delivery, turn, envelope).run()
        except NotNow as error:
            return ending_of(error.evidence, turn.unsettled)
        except Undeliverable as error:
            delivery.settlement.bury(envelope.record, error.failure)
        except Exception as fault:
            failure = internal_failure(fault, record=envelope.record.id)
            delivery.settlement.bury(envelope.record, failure)
        turn.envelopes.pop(0)
        return None


class _Sending:
    """One event on its way."""

    def __init__(self, delivery: SyncDelivery, turn: Turn, envelope: Envelope) -> None:
        self._delivery = delivery
        self._turn = turn
        self._envelope = envelope
        self._name = str((envelope.plan.event or {}).get("event_name", ""))
        self._unknown_user = delivery.sync.events.unknown_user
        self._missing = delivery.workspace.missing_contacts
        self._key = delivery.contacts.key_of(envelope.plan.identity)

    async def run(self) -> Ending | None:
        """Send it, and settle it; return how the turn ends, if it does.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: Intercom does not take it, and never will.
        """
        refusal = await self._send()
        if refusal is None:
            self._turn.has_succeeded = True
            self._missing.forget(self._key)
            self._delivery.settlement.deliver(self._envelope.record, self._envelope.reasons)
        elif not _is_unknown(refusal) or self._unknown_user == "dead_letter":
            raise Undeliverable(refusal)
        elif self._unknown_user == "drop":
            self._delivery.settlement.drop(self._envelope.record, DropReason.UNKNOWN_USER)
        else:
            return Unknown(self._turn.unsettled, refusal)
        self._turn.envelopes.pop(0)
        return None

    def _said_before(self) -> Failure | None:
        """Return why it is not sent: its user was not there when Intercom was asked last."""
        if self._unknown_user == "park":
            return None
        found = self._missing.of(self._key)
        # A user that is only unknown is created.
        if found is None or (self._unknown_user == "create" and _is_unknown(found)):
            return None
        if self._unknown_user == "create":
            return found
        return Failure(DeadReason.USER_NOT_FOUND, message=ASKED_BEFORE)

    async def _send(self) -> Failure | None:
        """Send the event; where its user is unknown and may be created, do so and send it again."""
        names = self._delivery.workspace.names
        if names.is_refused(self._name):
            text = f"refused before, not tried again yet: {self._name}"
            return Failure(DeadReason.EVENT_TYPE_LIMIT, message=text)
        if said := self._said_before():
            return said
        assert self._envelope.event is not None
        refusal = await self._send_to_contact(self._envelope.event)
        may_create = self._unknown_user == "create" or self._envelope.record.may_create
        if _is_unknown(refusal) and may_create:
            await self._create()
            refusal = await self._call(self._envelope.event)
        if refusal and _is_unknown(refusal):
            self._note_missing(refusal)
        if refusal and refusal.reason is DeadReason.EVENT_TYPE_LIMIT:
            names.refuse(self._name)
        return refusal

    async def _send_to_contact(self, event: bytes) -> Failure | None:
        """Send the event to its user's contact: under the user's name, or that of the user that it
        was merged into. (By the contact's id it would go to any user that has it.)"""
        merged_users = self._delivery.workspace.merged_users
        if target := merged_users.of(self._key):
            refusal = await self._call(_to(self._key._replace(value=target), event))
            if not _is_unknown(refusal):
                return refusal
            merged_users.forget(self._key)
        refusal = await self._call(event)
        if not _is_unknown(refusal):
            return refusal
        calls = TurnCalls(self._delivery.calls, self._turn)
        owner = await merged_into(self._delivery.contacts, self._envelope.plan.identity, calls)
        if owner and owner != target:
            refusal = await self._call(_to(self._key._replace(value=owner), event))
            if not _is_unknown(refusal):
                merged_users.note(self._key, owner)
        return refusal

    async def _create(self) -> None:
        """Create the user.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: there is a contact that cannot be had; that is believed for a while.
        """
        contacts, identity = self._delivery.contacts, self._envelope.plan.identity
        try:
            await ensure(contacts, identity, TurnCalls(self._delivery.calls, self._turn))
        except Undeliverable as error:
            self._missing.note(self._key, error.failure, self._delivery.unknown_wait_s)
            raise

    def _note_missing(self, refusal: Failure) -> None:
        """Take in that Intercom does not know the user."""
        if self._unknown_user in ("drop", "dead_letter"):
            self._missing.note(self._key, refusal, self._delivery.unknown_wait_s)

    async def _call(self, body: bytes) -> Failure | None:
        request = intercom.send_event(body)
        outcome = await self._delivery.calls.call(request, self._turn)
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        return refusal_of(outcome.answer)
