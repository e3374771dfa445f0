"""The spool's file: compacted on request."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, stream_of
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.status import Compacted


class Compacts(Protocol):
    """What compacts the spool's file (``engine.upkeep.Upkeep``)."""

    async def compact(self) -> Compacted:
        """Give the free pages of the spool's file back to the disk."""
        ...


class EngineWithUpkeep(RunningEngine, Protocol):
    """An engine with the operator's side of it."""

    @property
    def upkeep(self) -> Compacts:
        """The operator's side of the engine."""
        ...


class SpoolFileApi:
    """Asks the upkeep of one engine."""

    def __init__(self, engine: EngineWithUpkeep) -> None:
        self._engine = engine

    def operations(self) -> list[Operation]:
        """Return the operations."""
        return [
            operation(
                "POST",
                "/syncs/{sync}/spool/compact",
                self._compact,
                Nothing,
                Compacted,
                refusals=(ProblemType.NOT_FOUND,),
            )
        ]

    async def _compact(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Give the space that the spool's file does not need back to the disk; all syncs share the
        file."""
        stream_of(self._engine, request)
        done = await self._engine.upkeep.compact()
        freed = done.before_bytes - done.after_bytes
        request[CHANGE] = RequestChange("spool compacted", f"{freed} bytes")
        return ApiAnswer(done)
