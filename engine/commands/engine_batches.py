"""Batches of ``forward`` that an engine in this process takes and delivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from amplitude_intercom.engine.commands.deliverer import summary, waiting_line
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.status import Status
from amplitude_intercom.transports.contract import Intake


class OwnEngine(Protocol):
    """An engine (``engine.app.Engine``) that runs in this process."""

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The syncs, by name."""
        ...

    @property
    def intake(self) -> Intake:
        """The intake for sources."""
        ...

    async def settled(self) -> None:
        """Wait until nothing is pending in any sync that delivers."""
        ...

    async def status(self) -> Status:
        """Return the accounting."""
        ...

    async def finish(self, deadline_s: float) -> bool:
        """Drain, and cancel at the deadline."""
        ...


class EngineBatches:
    """The engine of this process as ``forward`` hands batches to it (``Deliverer``)."""

    goes_on = "kept for the next run"

    def __init__(self, engine: OwnEngine, sync: str, drain_deadline_s: float) -> None:
        """Count from now on. ``drain_deadline_s``: of the calls under way at the end."""
        self.sync = sync
        self.intake = engine.intake
        self._engine = engine
        self._stream = engine.streams[sync]
        self._drain_deadline_s = drain_deadline_s
        self._before = self._stream.spool.counters

    @property
    def pending(self) -> int:
        return self._stream.spool.counters["pending"]

    @property
    def kept_before(self) -> int:
        return self.pending

    @property
    def settled_so_far(self) -> int:
        counters = self._stream.spool.counters
        return counters["received"] - counters["pending"]

    @property
    def health(self) -> str:
        return self._stream.gate.state if self._stream.gate is not None else "well"

    @property
    def trouble(self) -> str:
        return str(self._stream.spool.trouble or "")

    @property
    def delivers(self) -> bool:
        return self._stream.delivery is not None

    async def look(self) -> None:
        """What it is asked, it says as it is now."""

    async def progress(self) -> None:
        if self._stream.delivery is not None:
            await self._stream.delivery.feed.progress()

    async def parked(self) -> int:
        return await self._stream.spool.parked()

    async def checkpoints(self) -> dict[str, str]:
        return await self._stream.spool.checkpoints()

    async def forget_checkpoints(
        self, sources: Sequence[str], kept: Mapping[str, str] | None = None
    ) -> None:
        await self._stream.spool.forget_checkpoints(sources, kept)

    async def include_earlier(self) -> None:
        """All that waits is waited for anyway."""

    async def settled(self) -> None:
        await self._engine.settled()

    async def why_waiting(self) -> list[str]:
        return [waiting_line(sync) for sync in (await self._engine.status()).syncs]

    async def end(self) -> dict[str, Any]:
        await self._engine.finish(self._drain_deadline_s)  # settles what was under way
        spool = self._stream.spool
        counts = summary(self._before, spool.counters)
        counts["adjusted"] = dict(sorted(spool.tally.adjusted_since_start.items()))
        return counts
