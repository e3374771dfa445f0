"""The event-sender actor: one call for each event, and what each answer to it means."""

from __future__ import annotations

from typing import Final, Literal

import anyio

from engine.actor import Actor
from engine.contacts import Contacts
from engine.envelope import Envelope
from engine.errors import DeadLetter, Failure, ParkUser
from engine.gate import Gate, GateClosed
from engine.spool import Spool
from transports import intercom
from transports.intercom import Answer

RECHECK_S: Final = 3600.0

UnknownUser = Literal["park", "create", "dead_letter", "drop"]


def refusal_of(answer: Answer) -> Failure | None:
    """Return why an event was not taken, or None for a 2xx (its body is empty: nothing to read)."""
    if answer.status < 300:
        return None
    said = intercom.parse_error(answer)
    return Failure(
        _reason(answer.status, said.code, said.message),
        answer.status,
        said.code,
        said.message,
        said.request_id,
    )


def _reason(status: int, code: str, message: str) -> str:
    if status == 404:
        return "user_not_found"
    if status in (400, 409) and "multiple existing users" in message.lower():
        return "contact_ambiguous"
    if "active event names" in message or code == "custom_data_limit_reached":
        return "event_type_limit"
    return "refused"


class RefusedNames:
    """Event names that Intercom does not take, because it has as many as it can have.

    No call is made for one until an hour has passed: somebody may have archived others (help
    article 5245634).
    """

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def add(self, name: str) -> None:
        """Remember a name that was refused just now."""
        now_s = anyio.current_time()
        self._until_s = {known: until for known, until in self._until_s.items() if until > now_s}
        self._until_s[name.lower()] = now_s + RECHECK_S

    def __contains__(self, name: str) -> bool:
        return self._until_s.get(name.lower(), 0.0) > anyio.current_time()


class EventSender(Actor[Envelope | None, None]):
    """One lane's events, one at a time."""

    def __init__(
        self,
        gate: Gate,
        contacts: Contacts,
        spool: Spool,
        unknown_user: UnknownUser,
        refused_names: RefusedNames,
    ) -> None:
        """``refused_names`` is shared by all lanes of a sync."""
        super().__init__()
        self._gate = gate
        self._contacts = contacts
        self._spool = spool
        self._feed = spool.feed
        self._unknown_user = unknown_user
        self._refused_names = refused_names

    async def handle(self, envelope: Envelope | None) -> None:
        if envelope is None or envelope.event is None:
            return
        record = envelope.record
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
            return
        try:
            refusal = await self._send(envelope, envelope.event)
        except GateClosed:
            await self._feed.release(record)
        except ParkUser as error:
            await self._feed.park(record, error.failure)
        except DeadLetter as error:
            await self._feed.bury(record, error.failure)
        else:
            await self._settle(envelope, refusal)

    async def _send(self, envelope: Envelope, event: bytes) -> Failure | None:
        """Send an event; where the user is unknown and may be created, create it and send again."""
        user, name = envelope.record.user_key, _name_of(envelope)
        if name in self._refused_names:
            return Failure(
                "event_type_limit", message=f"refused before, not tried again yet: {name}"
            )
        refusal = refusal_of(await self._gate.call(intercom.send_event(event), user))
        may_create = self._unknown_user == "create" or envelope.record.may_create
        if refusal and refusal.reason == "user_not_found" and may_create:
            created = await self._contacts.ensure(envelope.plan.identity)
            await self._spool.remember(user, created.contact)
            refusal = refusal_of(await self._gate.call(intercom.send_event(event), user))
        if refusal and refusal.reason == "event_type_limit":
            self._refused_names.add(name)
        return refusal

    async def _settle(self, envelope: Envelope, refusal: Failure | None) -> None:
        record = envelope.record
        if refusal is not None and refusal.reason == "user_not_found":
            await self._spool.lose_contact(record.user_key)
        if refusal is None:
            await self._feed.deliver(record)
        elif refusal.reason != "user_not_found" or self._unknown_user == "dead_letter":
            await self._feed.bury(record, refusal)
        elif self._unknown_user == "drop":
            await self._feed.drop(record, "unknown_user")
        else:
            await self._feed.park(record, refusal)


def _name_of(envelope: Envelope) -> str:
    return str((envelope.plan.event or {}).get("event_name", ""))
