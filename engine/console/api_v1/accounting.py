"""The accounting of the daemon and of its syncs: ``/status`` and ``/syncs``, for reading."""

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
from amplitude_intercom.engine.console.api_v1.pages import Page, PageQuery, page_by_name
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, TakerNames, stream_of
from amplitude_intercom.engine.console.api_v1.status_values import DaemonStatus
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.status import Status, SyncStatus
from amplitude_intercom.transports.own_version import own_version


class StatusOfAll(TakerNames, Protocol):
    """What puts the accounting together (``engine.overview.Overview``)."""

    @property
    def ready(self) -> bool:
        """Whether at least one sync takes events."""
        ...

    @property
    def unready(self) -> dict[str, str]:
        """The reasons for which events are refused now, by sync."""
        ...

    @property
    def stopped(self) -> dict[str, str]:
        """The faults that stop syncs now, by sync."""
        ...

    async def status(self) -> Status:
        """Return the accounting."""
        ...


class EngineWithStatus(RunningEngine, Protocol):
    """An engine with its accounting."""

    @property
    def overview(self) -> StatusOfAll:
        """The state of the engine."""
        ...


class Accounting:
    """Asks the overview of one engine."""

    def __init__(self, engine: EngineWithStatus) -> None:
        self._engine = engine

    def operations(self) -> list[Operation]:
        """Return the operations."""
        return [
            operation("GET", "/status", self._status, Nothing, DaemonStatus),
            operation("GET", "/syncs", self._syncs, PageQuery, Page[SyncStatus]),
            operation(
                "GET",
                "/syncs/{sync}",
                self._sync,
                Nothing,
                SyncStatus,
                refusals=(ProblemType.NOT_FOUND,),
            ),
        ]

    async def _status(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return the accounting of all syncs and relays, and the state of the daemon."""
        overview = self._engine.overview
        status = await overview.status()
        return ApiAnswer(
            DaemonStatus(
                **msgspec.structs.asdict(status),
                version=own_version(),
                time_ms=self._engine.spool.now_ms(),
                ready=overview.ready,
                unready=overview.unready,
                stopped=overview.stopped,
            )
        )

    async def _syncs(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the accounting of syncs, in the order of their names."""
        every = {one.name: one for one in (await self._engine.overview.status()).syncs}
        names, next_ = page_by_name(every, request.path, query)
        return ApiAnswer(Page([every[name] for name in names], next_))

    async def _sync(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return the accounting of one sync."""
        name = stream_of(self._engine, request).sync.name
        found = {one.name: one for one in (await self._engine.overview.status()).syncs}
        return ApiAnswer(found[name])
