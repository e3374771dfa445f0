"""The user-upserter actor: brings contacts up to date, before the events behind them go out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from amplitude_intercom.engine.actor import Actor, Outbox
from amplitude_intercom.engine.delivery.calls import NotNow, TurnCalls, Undeliverable
from amplitude_intercom.engine.delivery.contact_locks import ContactLocks
from amplitude_intercom.engine.delivery.contacts.scope import Upserted
from amplitude_intercom.engine.delivery.contacts.upserting import upsert
from amplitude_intercom.engine.delivery.endings import GoOn, ending_of
from amplitude_intercom.engine.delivery.stream import SyncDelivery
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.envelope import Envelope
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, Failure

OF_THE_CONTACT: Final = frozenset(
    [DeadReason.CONTACT_ARCHIVED, DeadReason.CONTACT_GONE, DeadReason.CONTACT_AMBIGUOUS]
)
"""Reasons for which no update of a user is taken, whatever its values."""


def _failure_of(fault: Exception, some: Sequence[Envelope]) -> Failure:
    """Return why updates are not written, and will not be."""
    if isinstance(fault, Undeliverable):
        return fault.failure
    return internal_failure(fault, record=some[0].record.id)


class UserUpserter(Actor[Turn, Turn]):
    """The contact writes of turns: the updates in front become one.

    Where that is refused they are halved, until the one that is refused by itself is found.
    """

    def __init__(self, deliveries: Mapping[str, SyncDelivery], outbox: Outbox[Turn]) -> None:
        super().__init__(outbox)
        self._deliveries = deliveries

    async def handle(self, turn: Turn) -> None:
        delivery = self._deliveries[turn.sync]
        updates = turn.take_updates()
        if updates and not await self._write_all(delivery, turn, updates):
            return
        if turn.envelopes:
            await self.pass_on(turn)
        else:
            delivery.end(turn, GoOn(turn.left, turn.has_succeeded))

    async def _write_all(
        self, delivery: SyncDelivery, turn: Turn, updates: Sequence[Envelope]
    ) -> bool:
        """Write updates of one contact; return whether the turn goes on."""
        waiting = deque([list(updates)])
        key = delivery.contacts.key_of(updates[0].plan.identity)
        try:
            with delivery.workspace.locks() as locks:
                await locks.take(key)
                while waiting:
                    await self._write_next(delivery, turn, waiting, locks)
        except NotNow as error:
            left = [envelope for some in waiting for envelope in some]
            back = [envelope.record for envelope in left if envelope.event is None]
            delivery.end(turn, ending_of(error.evidence, [*back, *turn.unsettled]))
            return False
        return True

    async def _write_next(
        self,
        delivery: SyncDelivery,
        turn: Turn,
        waiting: deque[list[Envelope]],
        locks: ContactLocks,
    ) -> None:
        """Write the updates that come first, and settle them.

        Raises:
            NotNow: a call has no answer; they wait still.
        """
        some = waiting[0]
        try:
            upserted = await self._upsert(delivery, turn, some, locks)
        except NotNow:
            raise
        except Exception as fault:
            waiting.popleft()
            self._halve(delivery, turn, some, waiting, _failure_of(fault, some))
        else:
            waiting.popleft()
            await self._settle(delivery, turn, some, upserted)

    def _halve(
        self,
        delivery: SyncDelivery,
        turn: Turn,
        some: list[Envelope],
        waiting: deque[list[Envelope]],
        failure: Failure,
    ) -> None:
        if len(some) == 1 or failure.reason in OF_THE_CONTACT:
            for envelope in some:
                delivery.settlement.bury(envelope.record, failure)
                turn.drop_event_of(envelope)
        else:
            middle = len(some) // 2
            waiting.extendleft([some[middle:], some[:middle]])

    async def _upsert(
        self, delivery: SyncDelivery, turn: Turn, some: Sequence[Envelope], locks: ContactLocks
    ) -> Upserted:
        updates = [envelope.plan.contact for envelope in some if envelope.plan.contact]
        calls = TurnCalls(delivery.calls, turn)
        upserted = await upsert(delivery.contacts, updates, calls, locks)
        turn.has_succeeded = turn.has_succeeded or upserted.called
        key = delivery.contacts.key_of(updates[0].identity)
        delivery.workspace.missing_contacts.forget(key)
        if upserted.key == key:
            delivery.workspace.merged_users.forget(key)
        return upserted

    async def _settle(
        self, delivery: SyncDelivery, turn: Turn, some: Sequence[Envelope], upserted: Upserted
    ) -> None:
        """Settle written updates, each by itself if need be."""
        try:
            await self._settle_together(delivery, turn, some, upserted)
        except Exception as fault:
            failure = internal_failure(fault, record=some[0].record.id)
            if len(some) == 1:  # that its update is done is not kept, so its event must not go out
                delivery.settlement.bury(some[0].record, failure)
                turn.drop_event_of(some[0])
                return
            for envelope in some:
                await self._settle(delivery, turn, [envelope], upserted)

    async def _settle_together(
        self, delivery: SyncDelivery, turn: Turn, some: Sequence[Envelope], upserted: Upserted
    ) -> None:
        """Settle updates, or keep the contact for the event behind."""
        if some[0].event is not None:
            await delivery.contacts.keep(upserted)
            return
        only_some = len(some) < len(upserted.claim_ids)
        await delivery.settlement.settle_update(
            [envelope.record for envelope in some],
            partial(delivery.contacts.write, upserted, and_stay=only_some),
            delivered=upserted.called,
            reasons=[reason for envelope in some for reason in envelope.reasons],
        )
