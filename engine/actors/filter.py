"""The filter actor: has the spool keep what a sync's rules admit of a batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.actor import Actor, internal_failure, runs
from amplitude_intercom.engine.actors.source import Share
from amplitude_intercom.engine.errors import Failure, SpoolError
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.rules.insert_keys import dead_key, insert_key, project_hash
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject
from amplitude_intercom.engine.settings import ANY_KEY, Sync
from amplitude_intercom.engine.spool.rows import Append, Appended, DeadRow, Row
from amplitude_intercom.engine.spool.settled import log_dropped_raw
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.transports.amplitude import (
    KEPT_BYTES,
    MAX_EVENT_BYTES,
    BadEvent,
    Head,
    decode_types,
    read_head,
    too_large,
)
from amplitude_intercom.transports.contract import Batch, Receipt
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

TRY_AGAIN_S = 1.0
"""Between two attempts to append the rest of a batch of which some is stored."""

COMMITS_AHEAD = 64
"""Batches that may wait for their fsync while the next ones are filtered."""


def only_project(sync: Sync) -> str:
    """Return the one API key whose events a sync takes; empty where there are several, or any."""
    keys = [key.reveal() for key in sync.amplitude_api_keys]
    return keys[0] if len(keys) == 1 and keys[0] != ANY_KEY else ""


class FilterActor(Actor[Share, None]):
    """Filters batches and appends what is left; acknowledges when that is on disk."""

    def __init__(
        self,
        admission: Admission,
        spool: Spool,
        *,
        project: str = "",
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        """``project``: the API key of batches that come without one."""
        super().__init__()
        self._admission = admission
        self._project = project
        self._max_event_bytes = max_event_bytes
        self._spool = spool
        self._room = anyio.Semaphore(COMMITS_AHEAD)
        self._few_are_kept = True

    async def run(self, inbox: MemoryObjectReceiveStream[Share]) -> None:
        """As any actor; ends when all that was appended is on disk, or refused."""
        async with anyio.create_task_group() as self._tasks:
            await super().run(inbox)
            for _ in range(COMMITS_AHEAD):  # all of them are free: nothing is on its way
                await self._room.acquire()

    async def handle(self, share: Share) -> None:
        try:
            append = await self.admit(share.batch)
            await self._append(append, share)
        except Exception as fault:
            self._refuse(share, fault)
        except BaseException:
            self._refuse_cancelled(share)
            raise

    async def _append(self, append: Append, share: Share) -> None:
        if not append.rows and not append.dead:
            self._spool.count_only(append)
            share.tally.acknowledge(Receipt(0, 0, append.received, 0))
            return
        try:
            self._room.acquire_nowait()
        except anyio.WouldBlock:
            await self._room.acquire()
        future = self._spool.append(append)
        future.add_done_callback(lambda done: self._appended(done, append, share))

    def _appended(self, done: asyncio.Future[Appended], append: Append, share: Share) -> None:
        self._room.release()
        error = done.exception()
        if error is None:
            self._acknowledge(share, append, [done.result()])
        elif isinstance(error, Exception) and not isinstance(error, SpoolError):
            self._begin_singly(append, share, error)
        else:
            self._refuse(share, error)

    def _begin_singly(self, append: Append, share: Share, fault: Exception) -> None:
        try:
            self._tasks.start_soon(self._append_singly, append, share, fault)
        except RuntimeError:  # this actor has been cancelled, and takes no more tasks
            self._refuse(share, fault)

    async def _append_singly(self, append: Append, share: Share, fault: Exception) -> None:
        """Append a batch in parts, where some of its events make the spool fail for all of them.

        It is refused only while nothing of it is stored: a sender that is refused sends it again.
        Once some is, the rest is tried until the spool takes it. Cancelled in between, it is
        refused though: nobody is to wait for ever, and a sender that asks twice may get it twice.
        """
        internal_failure(fault, batch=share.batch.origin)
        counted = Append(append.received, [], [], append.dropped, append.checkpoints)
        counted.received -= len(append.rows) + len(append.dead)
        parts: list[Appended] = []
        try:
            await self._append_halves([*append.rows, *append.dead], share.batch, parts)
        except Exception as error:
            self._refuse(share, error)
            return
        except BaseException:
            self._refuse_cancelled(share)
            raise
        self._spool.count_only(counted)
        self._acknowledge(share, append, parts)

    async def _append_halves(
        self, rows: Sequence[Row | DeadRow], batch: Batch, parts: list[Appended]
    ) -> None:
        """Append rows together; where that fails one half and then the other, down to each alone.

        One that cannot be appended becomes a dead letter. ``parts`` is added to.
        """
        try:
            await self._append_surely(rows, parts)
            return
        except SpoolError:
            raise
        except Exception as error:
            fault = error
        if len(rows) > 1:
            half = len(rows) // 2
            await self._append_halves(rows[:half], batch, parts)
            await self._append_halves(rows[half:], batch, parts)
            return
        failure = internal_failure(fault, batch=batch.origin)
        letter = self._dead_row(failure, rows[0].raw, None, batch, _index_of(rows[0], batch))
        while True:
            try:
                await self._append_surely([letter], parts)
                return
            except Exception:
                if not parts:
                    raise
            await anyio.sleep(TRY_AGAIN_S)

    async def _append_surely(self, rows: Sequence[Row | DeadRow], parts: list[Appended]) -> None:
        """Append rows as one; where others are stored already, wait until the disk takes them."""
        kept = [row for row in rows if isinstance(row, Row)]
        dead = [row for row in rows if isinstance(row, DeadRow)]
        while True:
            try:
                parts.append(await self._spool.append(Append(len(rows), kept, dead, Counter())))
                return
            except SpoolError:
                if not parts:
                    raise
            await anyio.sleep(TRY_AGAIN_S)

    def _acknowledge(self, share: Share, append: Append, parts: Sequence[Appended]) -> None:
        share.tally.acknowledge(
            Receipt(
                sum(part.accepted for part in parts),
                sum(part.duplicates for part in parts),
                append.dropped.total(),
                sum(part.dead for part in parts),
            )
        )
        self._spool.feed.notify()
        if logs.debugging():
            kept = sum(part.accepted for part in parts)
            _log.debug("batch taken in", of=append.received, kept=kept, origin=share.batch.origin)

    def _refuse_cancelled(self, share: Share) -> None:
        share.tally.refuse(
            Refused(RefusalReason.DRAINING if self._spool.feed.stopping else RefusalReason.INTERNAL)
        )

    @staticmethod
    def _refuse(share: Share, error: BaseException) -> None:
        """Refuse a batch: nothing of it is stored, so it may come again."""
        if isinstance(error, SpoolError):
            share.tally.refuse(Refused(error.reason, str(error)))
        elif isinstance(error, Exception):
            failure = internal_failure(error, batch=share.batch.origin)
            share.tally.refuse(Refused(RefusalReason.INTERNAL, failure.message))
        else:
            share.tally.refuse(error)

    async def admit(self, batch: Batch) -> Append:
        """Return what is kept of a batch, and count the rest."""
        first, *others = runs(list(map(len, batch.raws)))
        admitted = self._admit_run(batch, first)
        for run in others:
            await asyncio.sleep(0)
            part = self._admit_run(batch, run)
            admitted.received += part.received
            admitted.rows += part.rows
            admitted.dead += part.dead
            admitted.dropped.update(part.dropped)
        return admitted

    def _admit_run(self, batch: Batch, run: range) -> Append:
        """Return what is kept of some events of a batch.

        A barrier round each event would cost every one of them; so there is one round all of them,
        and where it is needed they are looked at once more, each by itself.
        """
        dropped: Counter[DropReason] = Counter()
        indexes = self._undecided(batch, run, dropped)
        admitted = Append(len(run), [], [], Counter(dropped), batch.checkpoints)
        try:
            self._admit_each(batch, indexes, admitted)
        except Exception:
            admitted = Append(len(run), [], [], dropped, batch.checkpoints)
            for index in indexes:
                self._admit_alone(batch, index, admitted)
        self._few_are_kept = len(admitted.rows) < len(run) / 2
        return admitted

    def _admit_alone(self, batch: Batch, index: int, into: Append) -> None:
        try:
            self._admit_each(batch, (index,), into)
        except Exception as fault:
            failure = internal_failure(fault, batch=batch.origin)
            into.dead.append(self._dead_row(failure, batch.raws[index], None, batch, index))

    def _admit_each(self, batch: Batch, indexes: Iterable[int], into: Append) -> None:
        raws, heads, derive, checked = batch.raws, batch.heads, batch.derive_ids, batch.checked
        judge, keep = self._admission.judge, into.rows.append
        project = project_hash(batch.api_key or self._project)
        debugging = logs.debugging()
        for index in indexes:
            head, raw = self._read(raws[index]) if heads is None else (heads[index], raws[index])
            verdict = judge(head, raw, checked=checked)
            if isinstance(verdict, Keep):
                key = insert_key(head, raw, project, derive=derive)  # type: ignore[arg-type]  # it was read
                keep(Row(*verdict.value, raw, key))
            elif isinstance(verdict, Drop):
                into.dropped[verdict.reason] += 1
                if debugging:
                    log_dropped_raw(raw, verdict.reason)
            else:
                digest = head.digest if isinstance(head, BadEvent) else b""
                key = dead_key(digest or raw, project)
                kept = raw[:KEPT_BYTES] if digest else raw
                into.dead.append(self._dead_row(verdict, kept, key, batch, index))

    def _read(self, raw: bytes) -> tuple[Head | BadEvent, bytes]:
        """Return an event's head, and its bytes as they can be kept."""
        if len(raw) <= self._max_event_bytes:
            return read_head(raw)
        return too_large(raw, self._max_event_bytes), raw

    def _dead_row(
        self, why: Reject | Failure, raw: bytes, key: bytes | None, batch: Batch, index: int | None
    ) -> DeadRow:
        line = batch.lines[index] if batch.lines and index is not None else None
        user = self._admission.user_of_bad(raw)
        return DeadRow(why.reason, why.message, raw, key, batch.origin, line, user)

    def _undecided(self, batch: Batch, run: range, dropped: Counter[DropReason]) -> Iterable[int]:
        """Return the indexes of events that their type alone does not decide on; count the others.

        Of most streams most is not selected. Where that was so of the last run, the type is all
        that is read of an event at first; else everything is read at once.
        """
        if batch.heads is not None or not self._few_are_kept or logs.debugging():
            return run
        types = decode_types(batch.raws[run.start : run.stop])
        if types is None:
            return run
        reasons = {t: reason for t in set(types) if (reason := self._admission.drop_by_type(t))}
        if not reasons:
            return run
        counts = Counter(types)
        for event_type, reason in reasons.items():
            dropped[reason] += counts[event_type]
        if len(reasons) == len(counts):
            return ()
        return [i for i, event_type in zip(run, types, strict=True) if event_type not in reasons]


def _index_of(row: Row | DeadRow, batch: Batch) -> int | None:
    """Return the index of a row in its batch; what was mended at reading is read once more."""
    same = (index for index, raw in enumerate(batch.raws) if raw is row.raw)
    mended = (index for index, raw in enumerate(batch.raws) if read_head(raw)[1] == row.raw)
    return next(same, None) if batch.heads is not None else next(chain(same, mended), None)
