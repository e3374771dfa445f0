"""The user-upserter actor: brings contacts up to date, before the event behind it goes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from amplitude_intercom.engine.actor import Actor
from amplitude_intercom.engine.contacts import Contacts
from amplitude_intercom.engine.envelope import Envelope
from amplitude_intercom.engine.errors import ParkUser, Undeliverable
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.gate import GateClosed
from amplitude_intercom.engine.spool.spool import TakerSpool


class UserUpserter(Actor[list[Envelope], list[Envelope]]):
    """One lane's contact writes, in order with the lane's events.

    What needs no contact written is passed on at once, all that waits of it. The outbox has no
    buffer, so a send returns when the event sender is done with all before it. An empty list is
    sent for just that: no contact is written while an earlier event is still out, or not settled.

    Updates of one user that wait without an event of that user between them become one write.
    """

    def __init__(
        self,
        contacts: Contacts,
        spool: TakerSpool,
        outbox: MemoryObjectSendStream[list[Envelope]],
    ) -> None:
        super().__init__(outbox)
        self._contacts = contacts
        self._spool = spool
        self._feed = spool.feed
        self._ahead: deque[Envelope] = deque()
        self._alone: set[int] = set()

    async def run(self, inbox: MemoryObjectReceiveStream[list[Envelope]]) -> None:
        """As any actor, but with a look at what else is waiting."""
        self._inbox = inbox
        await super().run(inbox)

    async def handle(self, envelopes: list[Envelope]) -> None:
        self._ahead.extend(envelopes)
        while self._ahead:
            self._look_ahead()
            if self._ahead[0].plan.contact is None:
                await self.pass_on(self._take_events())
            else:
                await self._bring_up_to_date(self._ahead.popleft())

    def _look_ahead(self) -> None:
        with suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                self._ahead.extend(self._inbox.receive_nowait())

    def _take_events(self) -> list[Envelope]:
        """Take what goes out before a contact is to be written again."""
        taken = []
        while self._ahead and self._ahead[0].plan.contact is None:
            taken.append(self._ahead.popleft())
        return taken

    async def _bring_up_to_date(self, envelope: Envelope) -> None:
        await self.pass_on([])
        await self._feed.caught_up(envelope.record.user_key)
        if await self._update(envelope):
            await self.pass_on([envelope])

    async def _update(self, envelope: Envelope) -> bool:
        """Write the contact; return whether an event is left to be sent."""
        record = envelope.record
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
            return False
        merged = self._take_along(envelope)
        try:
            await self._write(envelope, merged)
        except (GateClosed, ParkUser, Undeliverable) as error:
            await self._give_back(merged, error)
        except Exception as fault:
            await self._give_back(merged, Undeliverable(internal_failure(fault, record=record.id)))
        else:
            return envelope.event is not None
        return False

    async def _write(self, envelope: Envelope, merged: Sequence[Envelope]) -> None:
        """Write the contact, and settle the updates, or keep the contact for the event behind."""
        updates = [envelope.plan.contact for envelope in merged if envelope.plan.contact]
        upserted = await self._contacts.upsert(updates)
        self._alone.discard(envelope.record.id)
        if envelope.event is None:
            records = [envelope.record for envelope in merged]
            self._feed.adjusted.update(reason for envelope in merged for reason in envelope.reasons)
            await self._feed.settle_update(records, upserted.contact, delivered=upserted.called)
        else:
            await self._spool.remember(envelope.record.user_key, upserted.contact)

    async def _give_back(self, merged: Sequence[Envelope], error: Exception) -> None:
        """Settle the first of some updates that failed together; the others wait again."""
        self._ahead.extendleft(reversed(merged[1:]))
        await self._fail(merged[0], error, merged=len(merged) > 1)

    def _take_along(self, envelope: Envelope) -> list[Envelope]:
        """Return an update with those of its user that wait right behind it, and need no event."""
        if envelope.event is not None or envelope.record.id in self._alone:
            return [envelope]
        merged = [envelope]
        others: deque[Envelope] = deque()
        event_seen = False
        for waiting in self._ahead:
            mine = waiting.record.user_key == envelope.record.user_key
            event_seen = event_seen or (mine and waiting.event is not None)
            (merged if mine and not event_seen else others).append(waiting)
        self._ahead = others
        return merged

    async def _fail(self, envelope: Envelope, error: Exception, *, merged: bool) -> None:
        """Settle a failed update; one that failed with others is tried again by itself."""
        record = envelope.record
        if isinstance(error, ParkUser):
            await self._feed.park(record, error.failure)
        elif isinstance(error, Undeliverable) and merged:
            self._alone.add(record.id)
            self._ahead.appendleft(envelope)
        elif isinstance(error, Undeliverable):
            self._alone.discard(record.id)
            await self._feed.bury(record, error.failure)
        else:
            await self._feed.release(record)
