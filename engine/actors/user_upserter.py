"""The user-upserter actor: brings contacts up to date, before the event behind it goes out."""

from __future__ import annotations

from anyio.streams.memory import MemoryObjectSendStream

from engine.actor import Actor
from engine.contacts import Contacts
from engine.envelope import ContactUpdate, Envelope
from engine.errors import DeadLetter, ParkUser
from engine.gate import GateClosed
from engine.spool.feed import Feed


class UserUpserter(Actor[Envelope, Envelope | None]):
    """One lane's contact writes, in order with the lane's events.

    Its outbox has no buffer, so a send returns when the event sender is done with all before it.
    ``None`` is sent for just that: no contact is written while an earlier event is still out.
    """

    def __init__(
        self,
        contacts: Contacts,
        feed: Feed,
        outbox: MemoryObjectSendStream[Envelope | None],
    ) -> None:
        super().__init__(outbox)
        self._contacts = contacts
        self._feed = feed

    async def handle(self, envelope: Envelope) -> None:
        update = envelope.plan.contact
        if update is not None:
            await self.pass_on(None)
            if not await self._upsert(envelope, update):
                return
        await self.pass_on(envelope)

    async def _upsert(self, envelope: Envelope, update: ContactUpdate) -> bool:
        """Write the contact; return whether an event is left to be sent."""
        record = envelope.record
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
            return False
        try:
            called = await self._contacts.upsert(update)
        except GateClosed:
            await self._feed.release(record)
        except ParkUser as error:
            await self._feed.park(record, error.failure)
        except DeadLetter as error:
            await self._feed.bury(record, error.failure)
        else:
            if envelope.event is not None:
                return True
            if called:
                await self._feed.deliver(record)
            else:
                await self._feed.drop(record, "unchanged")
        return False
