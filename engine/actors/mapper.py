"""The mapper actor: works out what each loaded record takes, and sends it to its user's lane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from engine.actor import Actor
from engine.envelope import Envelope, Plan, Record, Verdict
from engine.errors import Failure
from engine.event_names import EventNames
from engine.mapping import Rules, event_body
from engine.spool import Spool
from engine.spool.seconds import Claim


class Outlet(Protocol):
    """Where envelopes go: the lanes."""

    def put(self, envelopes: Sequence[Envelope]) -> None: ...


_log = structlog.get_logger(__name__)

Planned = tuple[Record, Plan | Verdict]


def _name_of(plan: Plan | Verdict) -> str:
    event = plan.event if isinstance(plan, Plan) else None
    return str(event["event_name"]) if event else ""


def _no_place(plan: Plan | Verdict) -> Verdict:
    name = _name_of(plan)
    return Verdict("reject", "event_type_limit", f"{name!r} would be one name too many")


def _claim(record: Record, event: Mapping[str, Any]) -> Claim:
    name, second = event["event_name"], event["created_at"]
    return Claim(record.claim_id, record.user_key, name, second, record.raw)


def _not_before_ms(event: Mapping[str, Any], second: int) -> int:
    """Return when an event may leave: one that was moved ahead, not before its second begins."""
    return second * 1000 if second > event["created_at"] else 0


class MapperActor(Actor[list[Record], Envelope]):
    """Batches of records in, envelopes out; what makes no call is settled here."""

    def __init__(
        self,
        rules: Rules,
        spool: Spool,
        names: EventNames,
        lanes: Outlet,
        adjusted: Counter[str],
    ) -> None:
        """``adjusted`` counts what is changed on the way, by reason."""
        super().__init__()
        self._rules = rules
        self._names = names
        self._adjusted = adjusted
        self._spool = spool
        self._feed = spool.feed
        self._lanes = lanes

    async def handle(self, records: list[Record]) -> None:
        planned = await self._admit([(record, self._plan(record)) for record in records])
        bodies = await self._bodies(planned)
        self._lanes.put(
            [
                Envelope(record, plan, *bodies.get(record.id, ()))
                for record, plan in planned
                if isinstance(plan, Plan)
            ]
        )
        for record, plan in planned:
            if isinstance(plan, Verdict):
                await self._settle(record, plan)

    async def _admit(self, planned: Sequence[Planned]) -> Sequence[Planned]:
        """Turn down events whose name has no place in the workspace any more."""
        names = dict.fromkeys(name for _, plan in planned if (name := _name_of(plan)))
        refused = await self._names.admit(names) if names else set()
        if not refused:
            return planned
        return [
            (record, _no_place(plan) if _name_of(plan) in refused else plan)
            for record, plan in planned
        ]

    async def _bodies(self, planned: Sequence[Planned]) -> dict[int, tuple[bytes, int]]:
        """Return by record the event's body and when it may leave, which its second decides."""
        events = [
            (record, plan.event)
            for record, plan in planned
            if isinstance(plan, Plan) and plan.event is not None
        ]
        if not events:
            return {}
        given = await self._spool.claim_seconds([_claim(*one) for one in events])
        self._adjusted.update("same_second" for one in given if one.crowded)
        return {
            record.id: (event_body(event, second), _not_before_ms(event, second))
            for (record, event), (second, _) in zip(events, given, strict=True)
        }

    async def _settle(self, record: Record, verdict: Verdict) -> None:
        if self._feed.is_halted(record.user_key):
            await self._feed.release(record)
        elif verdict.verdict == "drop":
            await self._feed.drop(record, verdict.reason)
        else:
            await self._feed.bury(record, Failure(verdict.reason, message=verdict.message))

    def _plan(self, record: Record) -> Plan | Verdict:
        """Map one record. What the rules did not foresee must not stop the records behind it."""
        try:
            plan = self._rules.plan(record)
            if isinstance(plan, Plan) and plan.adjustments:
                self._adjusted.update(one.reason for one in plan.adjustments)
            return plan
        except Exception as error:
            _log.exception("mapping failed", record=record.id)
            return Verdict("reject", "internal", f"{type(error).__name__}: {error}")
