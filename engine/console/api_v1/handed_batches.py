"""Batches that another process hands over, as a source does: `forward` beside a running daemon.

Rules
=====
1. A batch goes the way of every source's: the same rules, the same refusals, and an answer only
   once it is on disk. Its checkpoints are in the same commit.
2. A batch whose answer was lost may have landed. Whoever sends a checkpoint of its own with each
   batch reads it again: the list of checkpoints is read behind every batch that came before.
   Insert ids, derived from the content where there are none, hold for the rest: what is handed over
   twice within ``spool.dedupe_window_s`` is not delivered twice.
3. Batches are events, so they are in the accounting, and no change that the audit notes. Nor are
   checkpoints: each run of `forward` forgets some, and would push changes by people out.
4. Bodies are bounded in bytes and, before they are decoded, in elements. Few are held at once.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.batch_values import (
    BatchReceipt,
    Checkpoint,
    CheckpointChange,
    CheckpointsLeft,
    HandedBatch,
    PendingFacts,
)
from amplitude_intercom.engine.console.api_v1.operations import ApiAnswer, Operation, operation
from amplitude_intercom.engine.console.api_v1.pages import Page, PageQuery, cursor_of, position_of
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, stream_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.guard import CHANGE
from amplitude_intercom.engine.console.problems import Problem, ProblemType, not_now, refused_value
from amplitude_intercom.engine.spool.letters import Id
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import parked, waits_up_to
from amplitude_intercom.transports.amplitude import BadEvent, Head, too_large
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.contract import Batch, Intake
from amplitude_intercom.transports.errors import Refused, UnknownSync

MOST_BYTES: Final = 16_777_216
MOST_ELEMENTS: Final = 60_000
"""Commas in the body of a batch: more than the JSON of as many events, lines and checkpoints."""

AT_ONCE: Final = 2
"""Batches that are held and handled at once; others wait, and are not read meanwhile."""

LOOK_S: Final = 5.0
"""Seconds for which is looked whether something waits, or how much of it is parked."""


class CheckpointQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of checkpoints; of one ``source`` alone where that is given."""

    source: str = ""


class PendingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``up_to``: a batch, as a receipt has named it; None: all. ``parked``: they are counted."""

    up_to: Id | None = None
    parked: bool = False


class BatchIntake(Intake, Protocol):
    """The intake for sources (``engine.actors.source.SourceActor``)."""

    async def catch_up(self) -> None:
        """Wait until the batches that were sent so far are on disk, or refused."""
        ...


class DeliveredSyncs(Protocol):
    """What knows which syncs are delivered (``engine.running_takers.RunningTakers``)."""

    def delivers(self, name: str) -> bool:
        """Whether a sync is delivered."""
        ...


class EngineWithIntake(RunningEngine, Protocol):
    """An engine that takes events in."""

    @property
    def takers(self) -> DeliveredSyncs:
        """The syncs and relays that run."""
        ...

    @property
    def intake(self) -> BatchIntake:
        """The intake for sources."""
        ...


class HandedBatches:
    """Hands batches to one engine."""

    def __init__(self, engine: EngineWithIntake) -> None:
        self._engine = engine
        self._reads = Reads(engine.spool, LOOK_S)

    def operations(self) -> list[Operation]:
        """Return the operations."""
        checkpoints, missing = "/syncs/{sync}/checkpoints", (ProblemType.NOT_FOUND,)
        return [
            operation(
                "POST",
                "/syncs/{sync}/batches",
                self._hand,
                HandedBatch,
                BatchReceipt,
                refusals=missing,
                most_bytes=MOST_BYTES,
                most_elements=MOST_ELEMENTS,
                at_once=AT_ONCE,
            ),
            operation(
                "GET",
                checkpoints,
                self._list,
                CheckpointQuery,
                Page[Checkpoint],
                refusals=missing,
            ),
            operation(
                "PATCH",
                checkpoints,
                self._change,
                CheckpointChange,
                CheckpointsLeft,
                refusals=missing,
            ),
            operation(
                "GET",
                "/syncs/{sync}/pending",
                self._pending,
                PendingQuery,
                PendingFacts,
                refusals=missing,
            ),
        ]

    async def _hand(self, request: web.Request, given: HandedBatch) -> ApiAnswer:
        """Take a batch of raw events in for a sync; answer once it is on disk."""
        request[CHANGE] = None
        stream = stream_of(self._engine, request)
        batch = _batch_of(given, stream.sync.name, self._engine.settings.max_event_bytes)
        try:
            receipt = await (await self._engine.intake.send(batch)).wait()
        except UnknownSync as error:  # a reload has taken it away meanwhile
            raise Problem(ProblemType.NOT_FOUND, str(error)) from None
        except Refused as error:
            raise not_now(str(error), 1, reason=error.reason) from None
        return ApiAnswer(
            BatchReceipt(
                receipt.accepted,
                dict(receipt.dropped_by_reason),
                dict(receipt.dead_by_reason),
                self._engine.spool.last_batch,
            )
        )

    async def _list(self, request: web.Request, query: CheckpointQuery) -> ApiAnswer:
        """Return the checkpoints of a sync, in the order of their sources."""
        name, list_name = stream_of(self._engine, request).sync.name, query.list_name(request.path)
        after = position_of(list_name, query.cursor, str)
        await self._engine.intake.catch_up()

        def read(store: Store) -> list[tuple[str, str]]:
            taker = store.takers.known_id(name)
            if query.source:
                position = store.checkpoints.get(taker, query.source)
                return [] if position is None else [(query.source, position)]
            return store.checkpoints.page(taker, after, query.limit + 1)

        found = await self._engine.spool.with_checkpoints(read)
        some = found[: query.limit]
        next_ = cursor_of(list_name, some[-1][0]) if len(found) > len(some) else None
        return ApiAnswer(Page([Checkpoint(*one) for one in some], next_))

    async def _change(self, request: web.Request, change: CheckpointChange) -> ApiAnswer:
        """Forget checkpoints of a sync, so that their sources are read anew, and keep others."""
        request[CHANGE] = None
        name = stream_of(self._engine, request).sync.name

        def work(store: Store) -> int:
            taker = store.takers.known_id(name)
            store.checkpoints.forget(taker, change.forget)
            store.checkpoints.set(taker, change.keep)
            return store.checkpoints.count(taker)

        return ApiAnswer(CheckpointsLeft(await self._engine.spool.with_checkpoints(work)))

    async def _pending(self, request: web.Request, query: PendingQuery) -> ApiAnswer:
        """Return whether anything of a sync waits that came with a batch or before it."""
        stream = stream_of(self._engine, request)
        name, last = stream.sync.name, query.up_to

        def read(store: Store) -> tuple[int, bool, int | None]:
            taker = store.takers.known_id(name)
            pending = store.accounts.committed(taker)["pending"]
            waits = pending > 0 and (last is None or waits_up_to(store, taker, last))
            return pending, waits, parked(store, taker) if query.parked else None

        batch = self._engine.spool.last_batch
        pending, waits, parked_ = await self._reads.look(read)
        if not waits:  # the counters, in memory, are to say so too: they follow the disk
            await self._engine.spool.do(lambda store: None)
        return ApiAnswer(
            PendingFacts(
                waits,
                batch,
                stream.spool.counters["received"],
                pending,
                parked_,
                self._engine.takers.delivers(name),
                stream.gate.state if stream.gate is not None else "well",
                str(stream.spool.trouble or ""),
            )
        )


def _batch_of(given: HandedBatch, sync: str, max_event_bytes: int) -> Batch:
    """Return a batch as sources send them.

    Raises:
        Problem: its parts do not fit each other.
    """
    raws = given.events
    if given.lines is not None and len(given.lines) != len(raws):
        raise refused_value("/lines", f"expected one for each of the {len(raws)} events")
    cut = {one.index: one for one in given.cut}
    if any(index >= len(raws) for index in cut):
        raise refused_value("/cut", "there is no event of this index")
    batch = Batch(None, raws, sync=sync, derive_ids=True, origin=given.origin, lines=given.lines)
    batch.checkpoints = given.checkpoints
    if cut:
        read = [
            (BadEvent("too_large", "", cut[at].why, digest=cut[at].digest), raw)
            if at in cut
            else _read(raw, max_event_bytes)
            for at, raw in enumerate(raws)
        ]
        batch.heads, batch.raws = [head for head, _ in read], [raw for _, raw in read]
    return batch


def _read(raw: bytes, max_event_bytes: int) -> tuple[Head | BadEvent, bytes]:
    return read_head(raw) if len(raw) <= max_event_bytes else (too_large(raw, max_event_bytes), raw)
