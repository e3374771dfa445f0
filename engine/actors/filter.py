"""The filter actor: has the spool keep the events that each taker's rules admit."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Protocol

import anyio
import msgspec
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.actor import Actor, runs
from amplitude_intercom.engine.actors.offers import Offer, RelayFilter, SyncFilter
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DropReason, Failure
from amplitude_intercom.engine.relay.relayed_form import relayed_of
from amplitude_intercom.engine.rules.insert_keys import dead_key, insert_key, project_hash
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Reject
from amplitude_intercom.engine.spool.batches import Entry, Pack, packs
from amplitude_intercom.engine.spool.letters import DeadRow
from amplitude_intercom.engine.spool.rows import Append, Appended, Part
from amplitude_intercom.engine.spool.settled_lines import log_dropped_raw
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES, BadEvent, Head, too_large
from amplitude_intercom.transports.amplitude_heads import decode_types, read_head
from amplitude_intercom.transports.contract import Batch, Receipt
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.lines import KEPT_BYTES
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

COMMITS_AHEAD = 64
"""Batches that may wait for their fsync while the next ones are filtered."""


class _Admitted(msgspec.Struct):
    """The events that one taker keeps of some."""

    entries: list[Entry]
    raws: list[bytes]
    dead: list[DeadRow]
    dropped: Counter[DropReason]

    def add(self, other: _Admitted) -> None:
        self.entries += other.entries
        self.raws += other.raws
        self.dead += other.dead
        self.dropped.update(other.dropped)


def _nothing() -> _Admitted:
    return _Admitted([], [], [], Counter())


class IntakeSpool(Protocol):
    """The spool as the filter uses it (``engine.spool.spool.Spool``)."""

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when it is on disk.

        The future raises ``SpoolError`` if nothing of it is stored.
        """
        ...

    def count_only(self, parts: Iterable[Part]) -> None:
        """Count a batch of which nothing is kept; written with the next batch."""
        ...

    def notify(self, takers: Iterable[str]) -> None:
        """Tell deliveries and relays that something was appended."""
        ...


class FilterActor(Actor[Offer, None]):
    """Filters batches and appends the rest; acknowledges when that is on disk."""

    def __init__(self, spool: IntakeSpool, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__()
        self._max_event_bytes = max_event_bytes
        self._spool = spool
        self._commits = anyio.Semaphore(COMMITS_AHEAD)
        self.draining = False
        """Whether what is cancelled now is cancelled because the engine ends."""

    async def run(self, inbox: MemoryObjectReceiveStream[Offer]) -> None:
        """As any actor; ends when all that was appended is on disk, or refused."""
        await super().run(inbox)
        await self._all_on_disk()

    async def _all_on_disk(self) -> None:
        """Wait until nothing that was appended is on its way."""
        for _ in range(COMMITS_AHEAD):
            await self._commits.acquire()
        for _ in range(COMMITS_AHEAD):
            self._commits.release()

    async def handle(self, offer: Offer) -> None:
        try:
            if not offer.takers:  # whoever sent it waits for all that was sent before
                await self._all_on_disk()
            parts = [await self._part(offer.batch, taker) for taker in offer.takers]
            await self._append(Append(parts), offer)
        except Exception as fault:
            _refuse(offer, fault)
        except BaseException:
            reason = RefusalReason.DRAINING if self.draining else RefusalReason.INTERNAL
            offer.ticket.refuse(Refused(reason))
            raise

    async def _append(self, append: Append, offer: Offer) -> None:
        if all(part.keeps_nothing for part in append.parts):
            self._spool.count_only(append.parts)
            offer.ticket.acknowledge(_receipt(append, Appended(0, _dropped(append).total(), 0)))
            return
        try:
            self._commits.acquire_nowait()
        except anyio.WouldBlock:
            await self._commits.acquire()
        future = self._spool.append(append)
        future.add_done_callback(lambda done: self._appended(done, append, offer))

    def _appended(self, done: asyncio.Future[Appended], append: Append, offer: Offer) -> None:
        self._commits.release()
        error = done.exception()
        if error is not None:
            _refuse(offer, error)
            return
        appended = done.result()
        offer.ticket.acknowledge(_receipt(append, appended))
        self._spool.notify(part.taker for part in append.parts if part.packs or part.relayed)
        if logs.debugging():
            of = sum(part.received for part in append.parts)
            takers = [taker.name for taker in offer.takers]
            what = {"of": of, "kept": appended.accepted, "syncs": takers}
            _log.debug("batch taken in", **what, origin=offer.batch.origin)

    async def _part(self, batch: Batch, taker: SyncFilter | RelayFilter) -> Part:
        """Return the part of a batch that a taker keeps."""
        if isinstance(taker, SyncFilter):
            return await self.admit(batch, taker)
        relayed = relayed_of(batch, drops_oldest=taker.drops_oldest)
        return Part(taker.name, len(batch.raws), [], [], Counter(), relayed=relayed)

    async def admit(self, batch: Batch, sync: SyncFilter) -> Part:
        """Return the part of a batch that a sync keeps, and count the rest."""
        first, *others = runs(list(map(len, batch.raws)))
        admitted = self._admit_run(batch, first, sync)
        for run in others:
            await asyncio.sleep(0)
            admitted.add(self._admit_run(batch, run, sync))
        kept = self._packs(batch, sync, admitted)
        return Part(
            sync.name, len(batch.raws), kept, admitted.dead, admitted.dropped, batch.checkpoints
        )

    def _packs(self, batch: Batch, sync: SyncFilter, admitted: _Admitted) -> list[Pack]:
        """Return kept events as rows of the inbox; one that cannot be packed is a dead letter."""
        try:
            return packs(admitted.entries, admitted.raws)
        except Exception:
            found: list[Pack] = []
            for entry, raw in zip(admitted.entries, admitted.raws, strict=True):
                try:
                    found += packs([entry], [raw])
                except Exception as fault:
                    failure = internal_failure(fault, batch=batch.origin)
                    index = _index_of(raw, batch)
                    admitted.dead.append(_dead_row(sync, failure, raw, None, batch, index))
            return found

    def _admit_run(self, batch: Batch, run: range, sync: SyncFilter) -> _Admitted:
        """Return the kept ones of some events of a batch.

        A barrier round each event would cost every one of them; so there is one round all of them,
        and where it is needed they are looked at once more, each by itself.
        """
        dropped: Counter[DropReason] = Counter()
        indexes = self._undecided(batch, run, dropped, sync)
        admitted = _Admitted([], [], [], Counter(dropped))
        try:
            self._admit_each(batch, indexes, sync, admitted)
        except Exception:
            admitted = _Admitted([], [], [], dropped)
            for index in indexes:
                self._admit_alone(batch, index, sync, admitted)
        sync.few_are_kept = len(admitted.raws) < len(run) / 2
        return admitted

    def _admit_alone(self, batch: Batch, index: int, sync: SyncFilter, into: _Admitted) -> None:
        found = _nothing()
        try:
            self._admit_each(batch, (index,), sync, found)
        except Exception as fault:
            failure = internal_failure(fault, batch=batch.origin)
            letter = _dead_row(sync, failure, batch.raws[index], None, batch, index)
            found = _Admitted([], [], [letter], Counter())
        into.add(found)

    def _admit_each(
        self, batch: Batch, indexes: Iterable[int], sync: SyncFilter, into: _Admitted
    ) -> None:
        raws, heads, derive, checked = batch.raws, batch.heads, batch.derive_ids, batch.checked
        judge, keep, keep_raw = sync.admission.judge, into.entries.append, into.raws.append
        project = project_hash(batch.api_key or sync.project)
        debugging, crc32 = logs.debugging(), zlib.crc32
        for index in indexes:
            head, raw = self._read(raws[index]) if heads is None else (heads[index], raws[index])
            verdict = judge(head, raw, checked=checked)
            if isinstance(verdict, Keep):
                key = insert_key(head, raw, project, derive=derive)  # type: ignore[arg-type]  # it was read
                kind, user = verdict.value
                keep(Entry(kind, user, key, len(raw), crc32(raw)))
                keep_raw(raw)
            elif isinstance(verdict, Drop):
                into.dropped[verdict.reason] += 1
                if debugging:
                    log_dropped_raw(raw, verdict.reason, sync=sync.name)
            else:
                digest = head.digest if isinstance(head, BadEvent) else b""
                key = dead_key(digest or raw, project)
                kept = raw[:KEPT_BYTES] if digest else raw
                into.dead.append(_dead_row(sync, verdict, kept, key, batch, index))

    def _read(self, raw: bytes) -> tuple[Head | BadEvent, bytes]:
        """Return an event's head, and its bytes as they can be kept."""
        if len(raw) <= self._max_event_bytes:
            return read_head(raw)
        return too_large(raw, self._max_event_bytes), raw

    def _undecided(
        self, batch: Batch, run: range, dropped: Counter[DropReason], sync: SyncFilter
    ) -> Sequence[int]:
        """Return the indexes of events that their type alone does not decide on; count the others.

        Of most streams most is not selected. Where that was so of the last run, the type is all
        that is read of an event at first; else everything is read at once.
        """
        if batch.heads is not None or not sync.few_are_kept or logs.debugging():
            return run
        types = decode_types(batch.raws[run.start : run.stop])
        if types is None:
            return run
        drop_by_type = sync.admission.drop_by_type
        reasons = {t: reason for t in set(types) if (reason := drop_by_type(t))}
        if not reasons:
            return run
        counts = Counter(types)
        for event_type, reason in reasons.items():
            dropped[reason] += counts[event_type]
        if len(reasons) == len(counts):
            return ()
        return [i for i, event_type in zip(run, types, strict=True) if event_type not in reasons]


def _dropped(append: Append) -> Counter[str]:
    """Return the numbers of events that rules drop, by reason."""
    dropped: Counter[str] = Counter()
    for part in append.parts:
        dropped.update(part.dropped)
    return dropped


def _receipt(append: Append, appended: Appended) -> Receipt:
    """Return the receipt of a batch that is on disk."""
    dropped = _dropped(append)
    if again := appended.dropped - dropped.total():  # bad events that were buried before
        dropped[DropReason.DUPLICATE] += again
    return Receipt(
        appended.accepted, appended.dropped, appended.dead, dropped, appended.dead_by_reason
    )


def _dead_row(
    sync: SyncFilter,
    why: Reject | Failure,
    raw: bytes,
    key: bytes | None,
    batch: Batch,
    index: int | None,
) -> DeadRow:
    line = batch.lines[index] if batch.lines and index is not None else None
    user = _storable(sync.admission.user_of(raw))
    return DeadRow(
        why.reason, _storable(why.message), raw, key, _storable(batch.origin), line, user
    )


def _index_of(raw: bytes, batch: Batch) -> int | None:
    """Return the index of an event in its batch; what was mended at reading is read once more."""
    same = (index for index, came in enumerate(batch.raws) if came is raw)
    mended = (index for index, came in enumerate(batch.raws) if read_head(came)[1] == raw)
    return next(same, None) if batch.heads is not None else next(chain(same, mended), None)


def _storable(text: str) -> str:
    """Return a text as a database can have it: a file's name need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _refuse(offer: Offer, error: BaseException) -> None:
    """Refuse a batch: nothing of it is stored, so it may come again."""
    if isinstance(error, SpoolError):
        offer.ticket.refuse(Refused(error.reason, error.detail))
    elif isinstance(error, Exception):
        failure = internal_failure(error, batch=offer.batch.origin)
        offer.ticket.refuse(Refused(RefusalReason.INTERNAL, failure.message))
    else:
        offer.ticket.refuse(error)
