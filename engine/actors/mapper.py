"""The mapper actor: works out what each loaded record takes, and sends it to its user's lane."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from amplitude_intercom.engine.actor import Actor, runs
from amplitude_intercom.engine.envelope import Adjustment, Envelope, Plan, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.event_names import EventNames
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import AdjustmentReason, DeadReason
from amplitude_intercom.engine.rules.bodies import event_body
from amplitude_intercom.engine.rules.planning import SyncRules
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject, Verdict
from amplitude_intercom.engine.spool.claims import claim_of
from amplitude_intercom.engine.spool.spool import TakerSpool


class Outlet(Protocol):
    """Where envelopes go: the lanes."""

    def put(self, envelopes: Sequence[Envelope]) -> None: ...


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


class MapperActor(Actor[list[Record], Envelope]):
    """Batches of records in, envelopes out; what makes no call is settled here."""

    def __init__(
        self,
        rules: SyncRules,
        spool: TakerSpool,
        names: EventNames,
        lanes: Outlet,
    ) -> None:
        super().__init__(bury=spool.feed.bury)
        self._rules = rules
        self._names = names
        self._spool = spool
        self._feed = spool.feed
        self._lanes = lanes

    async def handle(self, records: list[Record]) -> None:
        for run in runs([len(record.raw) for record in records]):
            if run.start:
                await asyncio.sleep(0)
            await self._pass_on(records[run.start : run.stop])

    async def _pass_on(self, records: Sequence[Record]) -> None:
        planned, bodies = await self._prepare(records)
        self._lanes.put(
            [
                Envelope(record, _noted(verdict.value, crowded), *body)
                for record, verdict in planned
                if isinstance(verdict, Keep)
                for *body, crowded in [bodies.get(record.id, (None, 0, False))]
            ]
        )
        for record, verdict in planned:
            if not isinstance(verdict, Keep):
                await self.attempt(record, self._settle(record, verdict))

    async def _prepare(self, records: Sequence[Record]) -> tuple[Sequence[Planned], Bodies]:
        """Plan records together, or each by itself where a fault stops them together."""
        try:
            planned = await self._admit([(record, self._plan(record)) for record in records])
            return planned, await self._bodies(planned)
        except Exception as fault:
            if len(records) == 1:
                return [(records[0], _internal(fault, records[0]))], {}
        alone = [await self._prepare([record]) for record in records]
        every = [outcome for planned, _ in alone for outcome in planned]
        return every, {id_: body for _, bodies in alone for id_, body in bodies.items()}

    async def _admit(self, planned: Sequence[Planned]) -> Sequence[Planned]:
        """Turn down events for whose names the workspace has no more slots."""
        names = dict.fromkeys(name for _, verdict in planned if (name := _name_of(verdict)))
        refused = await self._names.admit(names) if names else set()
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

    async def _settle(self, record: Record, verdict: Drop | Reject) -> None:
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
        elif isinstance(verdict, Drop):
            await self._feed.drop(record, verdict.reason)
        else:
            await self._feed.bury(record, Failure(verdict.reason, message=verdict.message))

    def _plan(self, record: Record) -> Verdict[Plan]:
        """Map one record. What the rules did not foresee must not stop the records behind it."""
        try:
            return self._rules.plan(record)
        except Exception as fault:
            return _internal(fault, record)


def _internal(fault: Exception, record: Record) -> Reject:
    failure = internal_failure(fault, record=record.id)
    return Reject(failure.reason, failure.message)
