"""The event-sender actor: one call for each event, and what each answer to it means."""

from __future__ import annotations

from collections.abc import Mapping

from amplitude_intercom.engine.actor import Actor
from amplitude_intercom.engine.delivery.calls import NotAnswered, NotNow
from amplitude_intercom.engine.delivery.contacts import TurnCalls
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    GoOn,
    PutBack,
    Unknown,
    ending_of,
)
from amplitude_intercom.engine.delivery.stream import Delivery
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.waiting import is_due
from amplitude_intercom.engine.envelope import Envelope
from amplitude_intercom.engine.errors import Failure, Undeliverable
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
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


class EventSender(Actor[Turn, None]):
    """The events of turns, one at a time."""

    def __init__(self, deliveries: Mapping[str, Delivery]) -> None:
        super().__init__()
        self._deliveries = deliveries

    async def handle(self, turn: Turn) -> None:
        delivery = self._deliveries[turn.sync]
        ending: Ending | None = None
        while turn.envelopes and ending is None:
            ending = await self._send_next(delivery, turn)
        delivery.end(turn, ending or GoOn(turn.left, turn.has_succeeded))

    async def _send_next(self, delivery: Delivery, turn: Turn) -> Ending | None:
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

    def __init__(self, delivery: Delivery, turn: Turn, envelope: Envelope) -> None:
        self._delivery = delivery
        self._turn = turn
        self._envelope = envelope
        self._name = str((envelope.plan.event or {}).get("event_name", ""))
        self._unknown_user = delivery.sync.events.unknown_user

    async def run(self) -> Ending | None:
        """Send it, and settle it; return how the turn ends, if it does.

        Raises:
            NotNow: a call has no answer.
            Undeliverable: Intercom does not take it, and never will.
        """
        refusal = await self._send()
        if refusal is None:
            self._turn.has_succeeded = True
            self._delivery.settlement.deliver(self._envelope.record, self._envelope.reasons)
        elif refusal.reason is not DeadReason.USER_NOT_FOUND:
            raise Undeliverable(refusal)
        else:
            await self._delivery.spool.lose_contact(self._turn.user)
            if self._unknown_user == "dead_letter":
                raise Undeliverable(refusal)
            if self._unknown_user != "drop":
                return Unknown(self._turn.unsettled, refusal)
            self._delivery.settlement.drop(self._envelope.record, DropReason.UNKNOWN_USER)
        self._turn.envelopes.pop(0)
        return None

    async def _send(self) -> Failure | None:
        """Send the event; where its user is unknown and may be created, do so and send it again."""
        names = self._delivery.names
        if names.is_refused(self._name):
            text = f"refused before, not tried again yet: {self._name}"
            return Failure(DeadReason.EVENT_TYPE_LIMIT, message=text)
        refusal = await self._call()
        may_create = self._unknown_user == "create" or self._envelope.record.may_create
        if refusal and refusal.reason is DeadReason.USER_NOT_FOUND and may_create:
            calls = TurnCalls(self._delivery.gate, self._turn)
            created = await self._delivery.contacts.ensure(self._envelope.plan.identity, calls)
            await self._delivery.spool.remember(self._turn.user, created.contact)
            refusal = await self._call()
        if refusal and refusal.reason is DeadReason.EVENT_TYPE_LIMIT:
            names.refuse(self._name)
        return refusal

    async def _call(self) -> Failure | None:
        assert self._envelope.event is not None
        request = intercom.send_event(self._envelope.event)
        outcome = await self._delivery.gate.call(request, self._turn)
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        return refusal_of(outcome.answer)
