"""The mapper actor: works out what each loaded record takes, and sends it to its user's lane."""

from __future__ import annotations

from typing import Protocol

import structlog

from engine.actor import Actor
from engine.envelope import Envelope, Plan, Record, Verdict
from engine.errors import Failure
from engine.mapping import Rules
from engine.spool.feed import Feed


class Outlet(Protocol):
    """Where envelopes go: the lanes."""

    async def send(self, envelope: Envelope) -> None: ...


_log = structlog.get_logger(__name__)


class MapperActor(Actor[list[Record], Envelope]):
    """Batches of records in, envelopes out; what makes no call is settled here."""

    def __init__(self, rules: Rules, feed: Feed, lanes: Outlet) -> None:
        super().__init__()
        self._rules = rules
        self._feed = feed
        self._lanes = lanes

    async def handle(self, records: list[Record]) -> None:
        for record in records:
            await self._route(record)

    async def _route(self, record: Record) -> None:
        planned = self._plan(record)
        if isinstance(planned, Plan):
            await self._lanes.send(Envelope(record, planned))
        elif self._feed.is_halted(record.user_key):
            await self._feed.release(record)
        elif planned.verdict == "drop":
            await self._feed.drop(record, planned.reason)
        else:
            await self._feed.bury(record, Failure(planned.reason, message=planned.message))

    def _plan(self, record: Record) -> Plan | Verdict:
        """Map one record. What the rules did not foresee must not stop the records behind it."""
        try:
            return self._rules.plan(record)
        except Exception as error:
            _log.exception("mapping failed", record=record.id)
            return Verdict("reject", "internal", f"{type(error).__name__}: {error}")
