"""Batches of ``forward`` that a running daemon takes and delivers.

Rules
=====
1. Batches are handed over one after the other, in pieces that a request can have; each is on disk
   before the next one leaves. So an interrupted run is resumed from the checkpoints in the daemon's
   spool, and nothing before them is read again.
2. Each piece brings a checkpoint of the run's own: its number. Where an answer is lost, that says
   whether the piece has landed. If it says no, the piece is sent again; if it was only late, its
   events are duplicates by their insert ids, and are not delivered twice.
3. Such a checkpoint goes with its run: a run that is stopped waits a moment for the piece that is
   under way, which would land behind it. One that a killed run has left goes after a day.
4. The daemon has other events too. What this run's events became is said where no others were
   counted meanwhile; else what its receipts say, and the change of the sync's counters beside it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

import anyio

from amplitude_intercom.engine.commands.deliverer import summary, waiting_line
from amplitude_intercom.engine.console.api_v1.batch_values import (
    MOST_CHECKPOINTS,
    MOST_EVENTS,
    BatchReceipt,
    CheckpointChange,
    CutEvent,
    HandedBatch,
    PendingFacts,
)
from amplitude_intercom.engine.errors import EngineError
from amplitude_intercom.engine.spool.accounts import under
from amplitude_intercom.engine.spool.store import wall_clock_ms
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.amplitude import BadEvent
from amplitude_intercom.transports.contract import Batch, Intake, Receipt, Ticket

T = TypeVar("T")

PIECE_BYTES: Final = 3_000_000
"""Bytes of events that are handed over at once, or one larger event."""

MOST_EVENT_BYTES: Final = 12_000_000
"""The largest event that fits into a request."""

LAST_ANSWER_S: Final = 5.0
"""Seconds for which a daemon is asked at the end of a run."""

LAST_PIECE_S: Final = 2.0
"""Seconds for which a run that is stopped waits for the piece that is under way."""

PROGRESS_S: Final = 0.25
FIRST_LOOK_S: Final = 0.05
LOOK_EVERY_S: Final = 1.0
"""Pauses between looks whether all is settled; they grow from the first to the second."""

RUN: Final = "handed "
"""The name of a run's own checkpoint begins so."""

OLD_MS: Final = 24 * 3_600_000
_LONGEST_ORIGIN: Final = 4_096


class EventTooLarge(EngineError):
    """An event is larger than what a daemon can be handed at once."""


class DaemonSide(Protocol):
    """One sync of a daemon (``daemon_sync.DaemonSync``)."""

    @property
    def trouble(self) -> str:
        """Why there is no good answer now."""
        ...

    async def hand(
        self, batch: HandedBatch, has_landed: Callable[[], Awaitable[bool]]
    ) -> BatchReceipt | None:
        """Hand a batch over; return once it is on disk. None: so it is, but the answer was lost."""
        ...

    async def checkpoints(self, source: str = "") -> dict[str, str]:
        """Return the checkpoints of the sync, or that of one source."""
        ...

    async def change_checkpoints(self, change: CheckpointChange) -> None:
        """Forget checkpoints, and keep others in their place."""
        ...

    async def pending(self, up_to: int | None, *, parked: bool = False) -> PendingFacts:
        """Return what waits up to a batch; None: in all."""
        ...

    async def glance(self) -> PendingFacts | None:
        """Return what waits in all; None: there is no good answer now."""
        ...

    async def status(self) -> SyncStatus:
        """Return the accounting of the sync."""
        ...


class DaemonBatches:
    """A sync of a running daemon as ``forward`` hands batches to it (``Deliverer``)."""

    goes_on = "the daemon goes on with them"
    kept_before = 0
    """What waits from before is the daemon's."""

    def __init__(
        self, daemon: DaemonSide, sync: str, *, now_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        """``begin`` has to be called first."""
        self.sync = sync
        self._daemon = daemon
        self._now_ms = now_ms
        self._run = f"{RUN}{uuid.uuid4().hex}"
        self._number = 0
        self._up_to = 0
        self._own: Counter[str] = Counter()
        self._accepted_since = 0
        self._is_settled = False

    async def begin(self) -> None:
        """Look at the sync as it is before the run.

        Raises:
            DaemonUnavailable: it cannot be asked.
            SettingsError: the daemon has no such sync.
        """
        self._facts: PendingFacts = await self._daemon.pending(None)
        self._before = await self._daemon.status()
        oldest_ms = self._now_ms() - OLD_MS
        stale = [
            source
            for source, position in (await self._daemon.checkpoints()).items()
            if source.startswith(RUN) and _time_ms(position) < oldest_ms
        ]
        if stale:
            await self._daemon.change_checkpoints(CheckpointChange(forget=stale))

    # --- how it is ------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return self._facts.pending + self._accepted_since

    @property
    def settled_so_far(self) -> int:
        return self._facts.received - self._facts.pending

    @property
    def health(self) -> str:
        return self._facts.health

    @property
    def trouble(self) -> str:
        return self._daemon.trouble or self._facts.trouble

    @property
    def delivers(self) -> bool:
        return self._facts.delivers

    async def look(self) -> None:
        facts = await self._daemon.glance()
        if facts is not None:
            self._facts, self._accepted_since = facts, 0

    async def progress(self) -> None:
        await anyio.sleep(PROGRESS_S)
        await self.look()

    async def parked(self) -> int:
        return (await self._daemon.pending(None, parked=True)).parked or 0

    async def checkpoints(self) -> dict[str, str]:
        return await self._daemon.checkpoints()

    async def forget_checkpoints(
        self, sources: Sequence[str], kept: Mapping[str, str] | None = None
    ) -> None:
        change = CheckpointChange(forget=list(sources), keep=dict(kept or {}))
        await self._daemon.change_checkpoints(change)

    # --- handing over ---------------------------------------------------------------------

    @property
    def intake(self) -> Intake:
        return self

    def takes(self, api_key: str) -> bool:
        """Batches name their sync."""
        return False

    async def send(self, batch: Batch) -> Ticket:
        """Hand a batch over; return once all of it is on disk.

        Raises:
            DaemonUnavailable: the daemon has gone, or refuses it for good.
            EventTooLarge: an event of it cannot be handed over.
            SettingsError: the daemon has no such sync.
        """
        counts: Counter[str] = Counter()
        for piece in pieces(batch):
            counts.update(await self._hand(piece))
        self._own.update(counts)
        self._accepted_since += counts["accepted"]
        dropped, dead = under(counts, "dropped:"), under(counts, "dead:")
        ticket = Ticket()
        ticket.acknowledge(
            Receipt(counts["accepted"], sum(dropped.values()), sum(dead.values()), dropped, dead)
        )
        return ticket

    async def _hand(self, piece: HandedBatch) -> Counter[str]:
        """Hand a piece over; return what became of it."""
        self._number += 1
        number = self._number
        piece.checkpoints[self._run] = f"{number} {self._now_ms()}"

        async def has_landed() -> bool:
            position = (await self._daemon.checkpoints(self._run)).get(self._run, "")
            return position.startswith(f"{number} ")

        receipt = await _to_its_end(self._daemon.hand(piece, has_landed))
        if receipt is None:
            last = (await self._daemon.pending(None)).batch
            receipt = BatchReceipt(len(piece.events), {}, {}, last)
        if receipt.accepted:
            self._up_to = max(self._up_to, receipt.batch)
        counts = Counter(received=len(piece.events), accepted=receipt.accepted)
        counts.update({f"dropped:{reason}": n for reason, n in receipt.dropped.items()})
        counts.update({f"dead:{reason}": n for reason, n in receipt.dead.items()})
        return counts

    # --- the end --------------------------------------------------------------------------

    async def include_earlier(self) -> None:
        self._up_to = max(self._up_to, (await self._daemon.pending(None)).batch)

    async def settled(self) -> None:
        pause_s = FIRST_LOOK_S
        while self._up_to:
            facts = await self._daemon.pending(self._up_to)
            if not facts.waits:
                break
            if not facts.delivers:
                return
            await anyio.sleep(pause_s)
            pause_s = min(LOOK_EVERY_S, 2 * pause_s)
        self._is_settled = True

    async def why_waiting(self) -> list[str]:
        return [waiting_line(await self._daemon.status())]

    async def end(self) -> dict[str, Any]:
        after: SyncStatus | None = None
        with anyio.move_on_after(LAST_ANSWER_S), suppress(EngineError):
            await self._daemon.change_checkpoints(CheckpointChange(forget=[self._run]))
            after = await self._daemon.status()
        return self._counts(after)

    def _counts(self, after: SyncStatus | None) -> dict[str, Any]:
        own = self._own
        if after is None:
            return {**_own_counts(own), "pending": 0 if self._is_settled else self.pending}
        change = summary(_counters(self._before), _counters(after))
        change["adjusted"] = _change(self._before.adjusted, after.adjusted)
        pending = 0 if self._is_settled else change.pop("pending")
        if not self._before.pending and change["received"] == own["received"]:
            return {**change, "pending": pending}
        change.pop("pending", None)
        return {**_own_counts(own), "pending": pending, "meanwhile": change}


async def _to_its_end(handing: Coroutine[Any, Any, T]) -> T:
    """Await a hand-over; a cancel waits for its end, for ``LAST_PIECE_S`` at most."""
    task = asyncio.ensure_future(handing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.move_on_after(LAST_PIECE_S, shield=True):
            await asyncio.wait({task})
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it is no news: the run is stopped
        raise


def pieces(batch: Batch) -> Iterator[HandedBatch]:
    """Return the pieces of a batch that are handed over one after the other.

    Raises:
        EventTooLarge: an event fits into none.
    """
    checkpoints = list(batch.checkpoints.items())
    most = MOST_CHECKPOINTS - 1  # one is the run's own
    while len(checkpoints) > most:
        yield HandedBatch(events=[], checkpoints=dict(checkpoints[:most]))
        del checkpoints[:most]
    start = 0
    while start < len(batch.raws) or checkpoints:
        end = _end_of_piece(batch, start)
        yield _piece(batch, range(start, end), dict(checkpoints))
        start, checkpoints = end, []


def _end_of_piece(batch: Batch, start: int) -> int:
    left = PIECE_BYTES
    for at in range(start, min(len(batch.raws), start + MOST_EVENTS)):
        length = len(batch.raws[at])
        if length > MOST_EVENT_BYTES:
            where = f"{batch.origin}, line {batch.lines[at]}" if batch.lines else batch.origin
            raise EventTooLarge(
                f"{where}: an event of {length:,} bytes; a running daemon is handed up to"
                f" {MOST_EVENT_BYTES:,}: stop it, and run this again"
            )
        left -= length
        if left < 0 and at > start:
            return at
    return min(len(batch.raws), start + MOST_EVENTS)


def _piece(batch: Batch, some: range, checkpoints: dict[str, str]) -> HandedBatch:
    heads = [None if batch.heads is None else batch.heads[at] for at in some]
    origin = batch.origin.encode("utf-8", "backslashreplace").decode()
    return HandedBatch(
        events=[batch.raws[at] for at in some],
        lines=[batch.lines[at] for at in some] if batch.lines is not None else None,
        cut=[
            CutEvent(at, head.digest, head.message[:200])
            for at, head in enumerate(heads)
            if isinstance(head, BadEvent) and head.digest
        ],
        origin=origin[:_LONGEST_ORIGIN],
        checkpoints=checkpoints,
    )


def _time_ms(position: str) -> int:
    _, _, time_ms = position.partition(" ")
    return int(time_ms) if time_ms.isascii() and time_ms.isdecimal() else 0


def _counters(status: SyncStatus) -> Counter[str]:
    """Return a sync's accounting as the counters that it was made of."""
    return Counter(
        {
            "received": status.received,
            "delivered": status.delivered,
            "dead": status.dead,
            "pending": status.pending,
            **{f"dropped:{reason}": n for reason, n in status.dropped.items()},
            **{f"dead:{reason}": n for reason, n in status.dead_by_reason.items()},
        }
    )


def _change(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {word: n - before.get(word, 0) for word, n in after.items() if n != before.get(word, 0)}


def _own_counts(own: Mapping[str, int]) -> dict[str, Any]:
    """Return what the receipts of a run say; ``delivered`` they do not."""
    dead = under(own, "dead:")
    return {
        "received": own.get("received", 0),
        "accepted": own.get("accepted", 0),
        "delivered": None,
        "dropped": under(own, "dropped:"),
        "dead": sum(dead.values()),
        "dead_by_reason": dead,
        "adjusted": {},
    }
