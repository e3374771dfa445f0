"""The event-sender actor: one call for each event, and what each answer to it means."""

from __future__ import annotations

from collections import deque
from typing import Literal

from amplitude_intercom.engine.actor import Actor
from amplitude_intercom.engine.contacts import Contacts
from amplitude_intercom.engine.envelope import Envelope, Record
from amplitude_intercom.engine.errors import Failure, ParkUser, Undeliverable
from amplitude_intercom.engine.event_names import EventNames
from amplitude_intercom.engine.gate import Gate, GateClosed
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.intercom import Answer

UnknownUser = Literal["park", "create", "dead_letter", "drop"]


def refusal_of(answer: Answer) -> Failure | None:
    """Return why an event was not taken, or None for a 2xx (its body is empty: nothing to read)."""
    if answer.status < 300:
        return None
    said = intercom.parse_error(answer)
    return Failure(
        _reason(answer),
        answer.status,
        said.code,
        said.message,
        said.request_id,
    )


def _reason(answer: Answer) -> DeadReason:
    if answer.status == 404:
        return DeadReason.USER_NOT_FOUND
    if intercom.says_ambiguous(answer):
        return DeadReason.CONTACT_AMBIGUOUS
    if intercom.says_too_many_names(answer):
        return DeadReason.EVENT_TYPE_LIMIT
    return DeadReason.REFUSED


class EventSender(Actor[list[Envelope], None]):
    """One lane's events, one at a time."""

    def __init__(
        self,
        gate: Gate,
        contacts: Contacts,
        spool: TakerSpool,
        unknown_user: UnknownUser,
        names: EventNames,
    ) -> None:
        """``names`` is shared by all lanes of a sync."""
        super().__init__(bury=spool.feed.bury)
        self._gate = gate
        self._contacts = contacts
        self._spool = spool
        self._feed = spool.feed
        self._unknown_user = unknown_user
        self._names = names

    async def handle(self, envelopes: list[Envelope]) -> None:
        ahead = deque(envelopes)
        while ahead:
            envelope = ahead.popleft()
            if self._is_early(envelope):
                ahead = await self._defer(envelope, ahead)
            elif envelope.event is not None:
                await self.attempt(envelope.record, self._deliver(envelope, envelope.event))

    def _is_early(self, envelope: Envelope) -> bool:
        if not envelope.not_before_ms or self._feed.is_halted(envelope.record.user_key):
            return False
        return not self._feed.is_due(envelope.not_before_ms)

    async def _defer(self, early: Envelope, ahead: deque[Envelope]) -> deque[Envelope]:
        """Put an event back until its second begins, with what its user has behind it.

        Return what others have: they go on as soon as that is one commit.
        """
        user = early.record.user_key
        mine = [envelope.record for envelope in ahead if envelope.record.user_key == user]
        work = self._feed.defer([early.record, *mine], early.not_before_ms)
        if await self.attempt(early.record, work):
            return deque(envelope for envelope in ahead if envelope.record.user_key != user)
        return ahead

    async def _deliver(self, envelope: Envelope, event: bytes) -> None:
        record = envelope.record
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
            return
        try:
            refusal = await self._send(envelope, event)
        except GateClosed:
            await self._feed.release(record)
        except ParkUser as error:
            await self._feed.park(record, error.failure)
        except Undeliverable as error:
            await self._feed.bury(record, error.failure)
        else:
            await self._settle(envelope, refusal)

    async def _send(self, envelope: Envelope, event: bytes) -> Failure | None:
        """Send an event; where the user is unknown and may be created, create it and send again."""
        user, name = envelope.record.user_key, _name_of(envelope)
        if self._names.is_refused(name):
            return Failure(
                DeadReason.EVENT_TYPE_LIMIT, message=f"refused before, not tried again yet: {name}"
            )
        refusal = await self._call(envelope.record, event)
        may_create = self._unknown_user == "create" or envelope.record.may_create
        if refusal and refusal.reason == DeadReason.USER_NOT_FOUND and may_create:
            created = await self._contacts.ensure(envelope.plan.identity)
            await self._spool.remember(user, created.contact)
            refusal = await self._call(envelope.record, event)
        if refusal and refusal.reason == DeadReason.EVENT_TYPE_LIMIT:
            self._names.refuse(name)
        return refusal

    async def _call(self, record: Record, event: bytes) -> Failure | None:
        """Make the call. One that is delivered keeps its place until it is settled."""
        request, places = intercom.send_event(event), self._feed.places
        answer = await self._gate.call(request, record.user_key, places=places)
        delivered = False
        try:
            refusal = refusal_of(answer)
            delivered = refusal is None
            return refusal
        finally:
            if not delivered:
                places.release()

    async def _settle(self, envelope: Envelope, refusal: Failure | None) -> None:
        record = envelope.record
        if refusal is not None and refusal.reason == DeadReason.USER_NOT_FOUND:
            await self._spool.lose_contact(record.user_key)
        if refusal is None:
            self._feed.adjusted.update(envelope.reasons)
            self._feed.deliver(record)
        elif refusal.reason != DeadReason.USER_NOT_FOUND or self._unknown_user == "dead_letter":
            await self._feed.bury(record, refusal)
        elif self._unknown_user == "drop":
            await self._feed.drop(record, DropReason.UNKNOWN_USER)
        else:
            await self._feed.park(record, refusal)


def _name_of(envelope: Envelope) -> str:
    return str((envelope.plan.event or {}).get("event_name", ""))
