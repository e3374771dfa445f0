"""The filter actor: decides what of a batch a sync keeps, and has the spool keep it.

An event type that nobody selected costs its decoded head and one dict look-up. Only what a
``where`` clause or the mapping has to see is decoded whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream

from engine import logs
from engine.actor import Actor, internal_failure, runs
from engine.actors.source import ANY_KEY, Share
from engine.config import Sync
from engine.envelope import Kind
from engine.errors import Failure, SpoolError
from engine.mapping import LOOP_PREFIX, Rules
from engine.selection import Selection
from engine.spool import Spool
from engine.spool.rows import Append, Appended, DeadRow, Row
from engine.spool.settled import log_dropped_raw
from transports import Batch, Receipt
from transports.amplitude import (
    GROUP_IDENTIFY,
    IDENTIFY,
    KEPT_BYTES,
    MAX_EVENT_BYTES,
    RESERVED_TYPES,
    BadEvent,
    Event,
    Head,
    check_head,
    check_time,
    decode_event,
    decode_types,
    read_head,
    too_large,
)
from transports.errors import Refused

_log = structlog.get_logger(__name__)

TYPES_KEPT = 4_096
"""Event types whose verdict is remembered."""

LONGEST_TYPE_KEPT = 128
"""Characters of such a type: 2 MB of them at most, and nobody's real types are longer."""

TRY_AGAIN_S = 1.0
"""Between two attempts to append the rest of a batch of which some is stored."""

COMMITS_AHEAD = 64
"""Batches that may wait for their fsync while the next ones are filtered."""


Admitted = tuple[Kind, str]
"""What a kept event is, and the key of its user."""


class Filter:
    """One sync's decision on an event: a row to keep, a dead letter, or a reason to drop it."""

    def __init__(self, sync: Sync, rules: Rules, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._rules = rules
        self.max_event_bytes = max_event_bytes
        self.project = _only_project(sync)
        """Whose events a batch without API key holds, where that can be told; else empty."""
        self._selection = Selection(sync.events.select)
        self._loop_guard = sync.events.loop_guard
        self._events_drop = _off(sync.enabled, sync.events.enabled, "events_disabled")
        self._users_drop = _off(sync.enabled, sync.users.enabled, "users_disabled")
        self._updates = rules.updates_on_events and not self._users_drop
        self._known_drops = lru_cache(TYPES_KEPT)(self._drop_by_type)

    def _drop_by_type(self, event_type: str | None) -> str:
        if not event_type:
            return ""
        if event_type == IDENTIFY:
            return self._users_drop
        if event_type == GROUP_IDENTIFY:
            return "group_identify"
        if self._selection.lookup(event_type) is None or self._events_drop:
            return "" if self._updates else self._events_drop or "not_selected"
        if event_type in RESERVED_TYPES:
            return "reserved_name"
        return "loop_guard" if self._loop_guard and event_type.startswith(LOOP_PREFIX) else ""

    def drop_by_type(self, event_type: str | None) -> str:
        """Return why an event of a type is dropped whatever it holds; empty: it has to be seen."""
        if event_type and len(event_type) > LONGEST_TYPE_KEPT:
            return self._drop_by_type(event_type)
        return self._known_drops(event_type)

    def judge(
        self, head: Head | BadEvent, raw: bytes, *, checked: bool = False
    ) -> Admitted | BadEvent | str:
        """Return what it is kept as, what is wrong with the event, or the reason to drop it.

        ``checked``: its source has found nothing wrong with its head.
        """
        if isinstance(head, BadEvent):
            return self._judge_bad(head, raw)
        event_type = head.event_type
        reason = self.drop_by_type(event_type)
        if reason:
            return reason
        if event_type == IDENTIFY:
            return self._admit(head, raw, Kind.IDENTIFY, None, checked=checked)
        predicate = self._selection.lookup(event_type) if event_type else None
        if predicate is None or self._events_drop:
            return self._judge_unselected(head, raw)
        if predicate.always and not self._updates:
            return self._admit(head, raw, Kind.EVENT, None, checked=checked)
        event = _decode(raw)
        if isinstance(event, BadEvent):
            return event
        if not predicate.matches(event.fields):
            return self._judge_unselected(head, raw, "filtered_out")
        kind = Kind.EVENT
        if self._updates and self._rules.carries_update(event):
            kind = Kind.EVENT_WITH_UPDATE
        return self._admit(head, raw, kind, event)

    def user_of_bad(self, raw: bytes) -> str:
        """Return the key of a bad event's user; empty where it cannot be read."""
        return self._rules.identity_of_bad(raw)

    def _judge_bad(self, bad: BadEvent, raw: bytes) -> BadEvent | str:
        """What nobody has selected is dropped, whatever else is wrong with it."""
        types = decode_types([raw])
        return (self.drop_by_type(types[0]) if types else "") or bad

    def _judge_unselected(
        self, head: Head, raw: bytes, reason: str = "not_selected"
    ) -> Admitted | BadEvent | str:
        """An event that is not sent may still change its user, where the trigger says so."""
        if not head.event_type:
            return BadEvent("missing_field", "event_type", "event_type is missing")
        if self._updates:
            event = _decode(raw)
            if isinstance(event, BadEvent):
                return event
            if self._rules.carries_update(event):
                return self._admit(head, raw, Kind.IDENTIFY, event)
        return self._events_drop or reason

    def _admit(
        self, head: Head, raw: bytes, kind: Kind, event: Event | None, *, checked: bool = False
    ) -> Admitted | BadEvent | str:
        if not checked:
            problem = check_head(head, min_id_length=1) or check_time(head)
            if problem is not None:
                return problem
        if self._rules.identity_in_head:
            user = self._rules.identity_of_head(head)
        else:
            decoded = event or _decode(raw)
            if isinstance(decoded, BadEvent):
                return decoded
            user = self._rules.identity_of_event(decoded)
        return (kind, user) if user else "no_identity"


def _only_project(sync: Sync) -> str:
    keys = [key.reveal() for key in sync.amplitude_api_keys]
    return keys[0] if len(keys) == 1 and keys[0] != ANY_KEY else ""


def _off(sync_enabled: bool, enabled: bool, reason: str) -> str:
    if not sync_enabled:
        return "sync_disabled"
    return "" if enabled else reason


def _decode(raw: bytes) -> Event | BadEvent:
    try:
        return decode_event(raw)
    except ValueError as error:
        return BadEvent("invalid_field", "", str(error))


def project_hash(api_key: str) -> hashlib.blake2b:
    """Return the beginning of every key of a project's events."""
    text = f"{len(api_key)} {api_key} "
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


def insert_key(head: Head, raw: bytes, project: hashlib.blake2b, *, derive: bool) -> bytes | None:
    """Return what an event is known by again: its insert id in its project and on its device.

    One without device id has one of its own user's, as at Amplitude (HTTP V2 page). One without
    insert id is known by its content, or not at all where ``derive`` is off: two equal requests are
    two events.
    """
    unique, device = head.unique_id, head.device_id
    if not unique:
        return _key(project, b"content ", raw) if derive else None
    if device:
        text = f"device {len(device)} {device}{unique}"
    else:
        user = head.user_id or ""
        text = f"user {len(user)} {user}{unique}"
    return _key(project, text.encode("utf-8", "surrogatepass"))


def dead_key(bad: BadEvent, raw: bytes, project: hashlib.blake2b) -> bytes:
    """Return what a dead letter is known by again: all of its content, so never what mends it."""
    return _key(project, b"dead ", bad.digest or raw)


def _key(project: hashlib.blake2b, text: bytes, content: bytes = b"") -> bytes:
    key = project.copy()
    key.update(text)
    if content:
        key.update(content)
    return key.digest()


class FilterActor(Actor[Share, None]):
    """Filters batches and appends what is left; acknowledges when that is on disk."""

    def __init__(self, decide: Filter, spool: Spool) -> None:
        super().__init__()
        self._filter = decide
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
            append = await self.sift(share.batch)
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
        counted = Append(append.received, [], [], append.dropped, append.marks)
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
        letter = self._internal_row(failure, rows[0].raw, batch, _place_of(rows[0], batch))
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
        share.tally.refuse(Refused("draining" if self._spool.feed.stopping else "internal"))

    @staticmethod
    def _refuse(share: Share, error: BaseException) -> None:
        """Refuse a batch: nothing of it is stored, so it may come again."""
        if isinstance(error, SpoolError):
            share.tally.refuse(Refused(error.reason, str(error)))
        elif isinstance(error, Exception):
            failure = internal_failure(error, batch=share.batch.origin)
            share.tally.refuse(Refused("internal", failure.message))
        else:
            share.tally.refuse(error)

    async def sift(self, batch: Batch) -> Append:
        """Return what is kept of a batch, and count the rest."""
        first, *others = runs(list(map(len, batch.raws)))
        sifted = self._sift_run(batch, first)
        for run in others:
            await asyncio.sleep(0)
            part = self._sift_run(batch, run)
            sifted.received += part.received
            sifted.rows += part.rows
            sifted.dead += part.dead
            sifted.dropped.update(part.dropped)
        return sifted

    def _sift_run(self, batch: Batch, run: range) -> Append:
        """Return what is kept of some events of a batch.

        A barrier round each event would cost every one of them; so there is one round all of them,
        and where it is needed they are looked at once more, each by itself.
        """
        dropped: Counter[str] = Counter()
        indexes = self._worth_a_look(batch, run, dropped)
        sifted = Append(len(run), [], [], Counter(dropped), batch.marks)
        try:
            self._sift(batch, indexes, sifted)
        except Exception:
            sifted = Append(len(run), [], [], dropped, batch.marks)
            for index in indexes:
                self._sift_alone(batch, index, sifted)
        self._few_are_kept = len(sifted.rows) < len(run) / 2
        return sifted

    def _sift_alone(self, batch: Batch, index: int, into: Append) -> None:
        try:
            self._sift(batch, (index,), into)
        except Exception as fault:
            failure = internal_failure(fault, batch=batch.origin)
            into.dead.append(self._internal_row(failure, batch.raws[index], batch, index))

    def _sift(self, batch: Batch, indexes: Iterable[int], into: Append) -> None:
        raws, heads, derive, checked = batch.raws, batch.heads, batch.derive_ids, batch.checked
        judge, most, keep = self._filter.judge, self._filter.max_event_bytes, into.rows.append
        project = project_hash(batch.api_key or self._filter.project)
        debugging = logs.debugging()
        head: Head | BadEvent
        for index in indexes:
            raw = raws[index]
            if heads is not None:
                head = heads[index]  # and its source has decided on its size
            elif len(raw) <= most:
                head, raw = read_head(raw)
            else:
                head = too_large(raw, most)
            found = judge(head, raw, checked=checked)
            if isinstance(found, tuple):
                key = insert_key(head, raw, project, derive=derive)  # type: ignore[arg-type]  # it was read
                keep(Row(*found, raw, key))
            elif isinstance(found, str):
                into.dropped[found] += 1
                if debugging:
                    log_dropped_raw(raw, found)
            else:
                into.dead.append(self._dead_row(found, raw, project, batch, index))

    def _dead_row(
        self, bad: BadEvent, raw: bytes, project: hashlib.blake2b, batch: Batch, index: int
    ) -> DeadRow:
        line = batch.lines[index] if batch.lines else None
        key, kept = dead_key(bad, raw, project), raw[: KEPT_BYTES if bad.digest else None]
        user = self._filter.user_of_bad(raw)
        return DeadRow(bad.reason, bad.message, kept, key, batch.origin, line, user)

    def _internal_row(
        self, failure: Failure, raw: bytes, batch: Batch, index: int | None = None
    ) -> DeadRow:
        line = batch.lines[index] if batch.lines and index is not None else None
        user = self._filter.user_of_bad(raw)
        return DeadRow(failure.reason, failure.message, raw, None, batch.origin, line, user)

    def _worth_a_look(self, batch: Batch, run: range, dropped: Counter[str]) -> Iterable[int]:
        """Return the places of events that their type alone does not decide on; count the others.

        Of most streams most is not selected. Where that was so of the last run, the type is all
        that is read of an event at first; else everything is read at once.
        """
        if batch.heads is not None or not self._few_are_kept or logs.debugging():
            return run
        types = decode_types(batch.raws[run.start : run.stop])
        if types is None:
            return run
        reasons = {t: reason for t in set(types) if (reason := self._filter.drop_by_type(t))}
        if not reasons:
            return run
        counts = Counter(types)
        for event_type, reason in reasons.items():
            dropped[reason] += counts[event_type]
        if len(reasons) == len(counts):
            return ()
        return [i for i, event_type in zip(run, types, strict=True) if event_type not in reasons]


def _place_of(row: Row | DeadRow, batch: Batch) -> int | None:
    """Return where a row is in its batch: what was mended when it was read is read once more."""
    same = (place for place, raw in enumerate(batch.raws) if raw is row.raw)
    mended = (place for place, raw in enumerate(batch.raws) if read_head(raw)[1] == row.raw)
    return next(same, None) if batch.heads is not None else next(chain(same, mended), None)
