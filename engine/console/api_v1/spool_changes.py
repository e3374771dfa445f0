"""Changes of the spool: its file compacted on request, what is left of syncs moved or dropped."""

from __future__ import annotations

from typing import Protocol

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.status import Compacted


class SpoolKeeper(Protocol):
    """What looks after the spool (``engine.upkeep.Upkeep``)."""

    async def compact(self) -> Compacted:
        """Give the free pages of the spool's file back to the disk."""
        ...

    async def move_left(self, old: str, new: str) -> int:
        """Give the records and letters of a sync that has left to another."""
        ...

    async def drop_left(self, old: str) -> int:
        """Settle everything of a sync or relay that has left as dropped."""
        ...


class EngineWithSpoolKeeper(Protocol):
    """An engine with its spool's keeper."""

    @property
    def upkeep(self) -> SpoolKeeper:
        """The keeper."""
        ...


class MoveLeft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to give all that is left of a sync to another."""

    old: str
    new: str


class DropLeft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to drop all that is left of a sync, or of a relay (``relay:NAME``)."""

    old: str


class LeftRecords(msgspec.Struct, frozen=True):
    """The number of records and dead letters that were moved or dropped."""

    records: int


class SpoolChanges:
    """Has the keeper of one engine change its spool."""

    def __init__(self, engine: EngineWithSpoolKeeper) -> None:
        self._engine = engine

    def operations(self) -> list[Operation]:
        """Return the operations."""
        conflict = (ProblemType.CONFLICT,)
        return [
            operation("POST", "/spool/compact", self._compact, Nothing, Compacted),
            operation("POST", "/spool/move", self._move, MoveLeft, LeftRecords, refusals=conflict),
            operation("POST", "/spool/drop", self._drop, DropLeft, LeftRecords, refusals=conflict),
        ]

    async def _compact(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Give the space that the spool's file does not need back to the disk."""
        done = await self._engine.upkeep.compact()
        freed = done.before_bytes - done.after_bytes
        request[CHANGE] = RequestChange("spool compacted", f"{freed} bytes")
        return ApiAnswer(done)

    async def _move(self, request: web.Request, asked: MoveLeft) -> ApiAnswer:
        """Give the records of the sync `old`, which is gone from the settings, to `new`."""
        try:
            moved = await self._engine.upkeep.move_left(asked.old, asked.new)
        except SettingsError as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        what = f"{moved} records of {asked.old} to {asked.new}"
        request[CHANGE] = RequestChange("left records moved", what)
        return ApiAnswer(LeftRecords(moved))

    async def _drop(self, request: web.Request, asked: DropLeft) -> ApiAnswer:
        """Drop the records of the sync or relay `old`, which is gone from the settings."""
        try:
            dropped = await self._engine.upkeep.drop_left(asked.old)
        except SettingsError as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        request[CHANGE] = RequestChange("left records dropped", f"{dropped} records of {asked.old}")
        return ApiAnswer(LeftRecords(dropped))
