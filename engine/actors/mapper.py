"""The mapper actor: works out the calls of each record of a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream

from amplitude_intercom.engine.actor import Actor, Outbox, hand_over, runs
from amplitude_intercom.engine.delivery.endings import GoOn, PutBack
from amplitude_intercom.engine.delivery.event_names import EventNames
from amplitude_intercom.engine.delivery.stream import SyncDelivery
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.workspaces import ME
from amplitude_intercom.engine.envelope import Adjustment, Envelope, Plan, Record
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason, Failure
from amplitude_intercom.engine.rules.bodies import event_body
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject, Verdict
from amplitude_intercom.engine.spool.contract import claim_of

Planned = tuple[Record, Verdict[Plan]]

Bodies = dict[int, tuple[bytes, int, bool]]
"""By the ids of records: the body of the event, when it may leave (Unix ms; 0: now), and whether it
shares its second with a different one."""

CROWDED = Adjustment(
    AdjustmentReason.SAME_SECOND, "created_at", "no second was free, it shares its own"
)


def _name_of(verdict: Verdict[Plan]) -> str:
    """Return the name of the event that is to be sent; empty where none is."""
    event = verdict.value.event if isinstance(verdict, Keep) else None
    return str(event["event_name"]) if event else ""


def _one_name_too_many(name: str) -> Reject:
    return Reject(DeadReason.EVENT_TYPE_LIMIT, f"{name!r} would be one name too many")


def _noted(plan: Plan, crowded: bool) -> Plan:
    if not crowded:
        return plan
    return msgspec.structs.replace(plan, adjustments=(*plan.adjustments, CROWDED))


def _not_before_ms(event: Mapping[str, Any], second: int) -> int:
    """Return when an event may leave: one that was moved ahead, not before its second begins."""
    return second * 1000 if second > event["created_at"] else 0


class Mapper(Actor[list[Turn], Turn]):
    """Turns in, the same with envelopes out; records without a call are settled here.

    All turns in the inbox are taken together: the seconds of its events are claimed in one commit.
    Turns that begin with a contact write go to the user-upserter, others straight to the sender.
    """

    def __init__(
        self, deliveries: Mapping[str, SyncDelivery], writes: Outbox[Turn], events: Outbox[Turn]
    ) -> None:
        super().__init__(writes)
        self._deliveries = deliveries
        self._events = events

    async def work(self, inbox: MemoryObjectReceiveStream[list[Turn]]) -> None:
        """As any actor, but with all that waits."""
        self._inbox = inbox
        await super().work(inbox)

    async def handle(self, turns: list[Turn]) -> None:
        by_sync: dict[str, list[Turn]] = {}
        for turn in [*turns, *self._more()]:
            by_sync.setdefault(turn.sync, []).append(turn)
        if len(by_sync) == 1:
            await self._map_all(*by_sync.popitem())
            return
        async with anyio.create_task_group() as tasks:  # their claims share a commit
            for sync, mine in by_sync.items():
                tasks.start_soon(self._map_all, sync, mine)

    async def _map_all(self, sync: str, turns: Sequence[Turn]) -> None:
        """Map turns of one sync."""
        for run in runs([sum(len(record.raw) for record in turn.records) for turn in turns]):
            if run.start:
                await asyncio.sleep(0)
            await self._map(self._deliveries[sync], turns[run.start : run.stop])

    def _more(self) -> list[Turn]:
        more: list[Turn] = []
        while True:
            try:
                more += self._inbox.receive_nowait()
            except (anyio.WouldBlock, anyio.EndOfStream):
                return more

    async def _map(self, delivery: SyncDelivery, turns: Sequence[Turn]) -> None:
        records = [record for turn in turns for record in turn.records]
        planned, bodies = await _Mapping(delivery).prepare(records)
        verdicts = {record.id: verdict for record, verdict in planned}
        for turn in turns:
            for record in turn.records:
                verdict = verdicts[record.id]
                if isinstance(verdict, Keep):
                    *body, crowded = bodies.get(record.id, (None, 0, False))
                    turn.put(Envelope(record, _noted(verdict.value, crowded), *body))
                elif isinstance(verdict, Drop):
                    delivery.settlement.drop(record, verdict.reason)
                else:
                    delivery.settlement.bury(
                        record, Failure(verdict.reason, message=verdict.message)
                    )
            if not turn.envelopes:
                delivery.end(turn, GoOn(turn.left))
            elif not delivery.has_entered:
                delivery.end(turn, PutBack(turn.unsettled, ME))
            elif turn.envelopes[0].plan.contact is not None:
                await self.pass_on(turn)
            else:
                await hand_over(self._events, turn)


class _Mapping:
    """Some records of one sync, as they are mapped together."""

    def __init__(self, delivery: SyncDelivery) -> None:
        self._rules = delivery.rules
        self._names = delivery.workspace.names if delivery.has_entered else None
        self._spool = delivery.spool

    async def prepare(self, records: Sequence[Record]) -> tuple[Sequence[Planned], Bodies]:
        """Plan records together, or each by itself where a fault stops them together."""
        try:
            planned = [(record, self._plan(record)) for record in records]
            if self._names is None:  # records without a call are settled all the same
                return planned, {}
            admitted = await self._admit(planned, self._names)
            return admitted, await self._bodies(admitted)
        except Exception as fault:
            if len(records) == 1:
                return [(records[0], _internal(fault, records[0]))], {}
        alone = [await self.prepare([record]) for record in records]
        every = [outcome for planned, _ in alone for outcome in planned]
        return every, {id_: body for _, bodies in alone for id_, body in bodies.items()}

    async def _admit(self, planned: Sequence[Planned], of: EventNames) -> Sequence[Planned]:
        """Turn down events with names for which the workspace has no more slots."""
        names = dict.fromkeys(name for _, verdict in planned if (name := _name_of(verdict)))
        refused = await of.admit(names) if names else set()
        if not refused:
            return planned
        return [
            (
                record,
                _one_name_too_many(name) if (name := _name_of(verdict)) in refused else verdict,
            )
            for record, verdict in planned
        ]

    async def _bodies(self, planned: Sequence[Planned]) -> Bodies:
        """Return by record the event's body and when it may leave, which its second decides."""
        events = [
            (record, verdict.value.event)
            for record, verdict in planned
            if isinstance(verdict, Keep) and verdict.value.event is not None
        ]
        if not events:
            return {}
        given = await self._spool.claim_seconds([claim_of(*outcome) for outcome in events])
        return {
            record.id: (event_body(event, second), _not_before_ms(event, second), crowded)
            for (record, event), (second, crowded) in zip(events, given, strict=True)
        }

    def _plan(self, record: Record) -> Verdict[Plan]:
        """Map one record. A fault of the rules must not stop the records behind it."""
        try:
            return self._rules.plan(record)
        except Exception as fault:
            return _internal(fault, record)


def _internal(fault: Exception, record: Record) -> Reject:
    failure = internal_failure(fault, record=record.id)
    return Reject(failure.reason, failure.message)
