"""The spool on the event loop: every wait for the disk is awaited here.

Rules
=====
1. One spool holds all syncs and relays of a daemon; each has its own part of it (``SpoolPart``).
2. Work is a function of the store. ``do`` does it in a transaction of the writer, beside other
   work, and returns after the commit.
3. Work that only reads is done on a connection of its own (``look``), so that no
   commit waits for it.
4. A failing disk delays deliveries (``persist``) and refuses batches (``append``): neither is lost.
5. A batch of which nothing is kept costs no commit: its counts are written with the next batch.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog

from amplitude_intercom.engine.errors import SpoolDamaged, SpoolError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.accounts import LAST_BATCH, SPOOL, under
from amplitude_intercom.engine.spool.appends import Appends
from amplitude_intercom.engine.spool.connection import Damaged
from amplitude_intercom.engine.spool.contract import Claim, Given
from amplitude_intercom.engine.spool.retention import RetentionRounds, retention_of
from amplitude_intercom.engine.spool.rows import Append, Appended, Part
from amplitude_intercom.engine.spool.sqlite.database import Database, run_group
from amplitude_intercom.engine.spool.sqlite.opened_files import OpenedFiles
from amplitude_intercom.engine.spool.sqlite.reserve import Reserve
from amplitude_intercom.engine.spool.sqlite.snapshots import look
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME, SpoolFile, connect, failing
from amplitude_intercom.engine.spool.store import (
    Limits,
    Store,
    limits_of,
    reading_store,
    wall_clock_ms,
)
from amplitude_intercom.engine.spool.table_reads import parked
from amplitude_intercom.engine.spool.tally import ADJUSTED, TakerTally
from amplitude_intercom.engine.spool.unwritten_counts import UnwrittenCounts
from amplitude_intercom.engine.spool.writer import InlineWriter, ThreadWriter, Writer
from amplitude_intercom.transports.reasons import RefusalReason

T = TypeVar("T")
Work = Callable[[Store], T]

FAILING_DISK_NAP_S = 1.0
TRIES_IF_DAMAGED = 10
"""Tries of work on damaged rows before it is given up: a disk may fail for a moment."""

CLOSE_WITHIN_S = 3.0
"""Seconds that the end waits for the last counts, and then for the last work."""

TIDY_EVERY_S = 60.0
"""Seconds between two rounds of retention."""


_log = structlog.get_logger(__name__)


_UNREADABLE = (sqlite3.Error, ValueError, Damaged)
"""The errors of a file that cannot be used: damaged bytes read as anything."""


def open_database(
    path: Path,
    limits: Limits,
    reserve_bytes: int,
    now_ms: Callable[[], int] = wall_clock_ms,
    store_type: type[Store] = Store,
) -> Database[Store]:
    """Open a spool's tables; create the file if there is none.

    Raises:
        SpoolError: it cannot be opened.
    """

    def opener(*, recover: bool) -> tuple[Store, SpoolFile]:
        connection = connect(path)
        try:
            store = store_type(connection, limits, now_ms=now_ms)
            if recover:
                run_group(store, [lambda opened: opened.recover()])
        except _UNREADABLE as error:
            connection.close()
            raise failing(path, error) from error
        return store, SpoolFile(connection)

    return Database(opener, Reserve(path, reserve_bytes))


class Spool:
    """The spool of one daemon, open."""

    def __init__(
        self,
        data_dir: Path,
        settings: Settings,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        inline: bool = False,
        store_type: type[Store] = Store,
    ) -> None:
        """Open the file; ``inline`` runs transactions in the caller's thread (virtual time).

        ``store_type``: the class of its tables; tests bring one that fails.

        Raises:
            SpoolError: it cannot be opened.
        """
        self.path = data_dir / FILE_NAME
        self.now_ms = now_ms
        self._inline = inline
        reserve_bytes = settings.spool.reserve_bytes
        self._limits = limits_of(settings)
        self._database = open_database(self.path, self._limits, reserve_bytes, now_ms, store_type)
        self.writer: Writer[Store] = (
            InlineWriter(self._database) if inline else ThreadWriter(self._database)
        )
        self._database.watch(OpenedFiles(self.path))
        self._appends = Appends(self.writer, now_ms)
        self._rounds = RetentionRounds(retention_of(settings), self.do, now_ms)
        self._unwritten = UnwrittenCounts()
        self._takers: dict[str, SpoolPart] = {}
        self.hangs = False
        """Whether the disk was not done at the end."""
        self.jobs_wait = asyncio.Event()
        """Set when a job is added; the job runner clears it."""

    def job_added(self) -> None:
        """Tell the job runner that a job was added."""
        self.jobs_wait.set()

    async def close(self) -> None:
        """Finish what was submitted and close the file; a hanging disk is left alone in time."""
        # No batch follows that could take the counts along.
        tallies = {spool.taker: spool.tally.take() for spool in self._takers.values()}
        last = _counting(self._unwritten.take(), tallies)
        try:
            with anyio.move_on_after(CLOSE_WITHIN_S):
                await self.do(last) if last else None
        except SpoolError as error:
            _log.warning("what was only counted is not on disk", cause=str(error))
        self.hangs = not await self.writer.close(CLOSE_WITHIN_S)
        if self.hangs:
            _log.error("the disk hangs: the spool is left as it is", path=str(self.path))

    async def open_for(self, names: Sequence[str]) -> Mapping[str, SpoolPart]:
        """Return the part of each taker, by name; add takers that are new.

        Raises:
            SpoolError: the disk fails.
        """
        # One commit for all of them: a thousand syncs start within seconds.
        takers = await self.do(lambda store: [store.takers.id_for(name) for name in names])
        for name, taker in zip(names, takers, strict=True):
            if name not in self._takers:
                self._takers[name] = SpoolPart(self, taker, name)
        return {name: self._takers[name] for name in names}

    async def follow(self, settings: Settings) -> None:
        """Take over from newer settings all that concerns syncs; raise ``SpoolError`` if the disk
        fails."""
        await self.do(lambda store: self._limits.follow(limits_of(settings)))
        self._rounds.follow(retention_of(settings))

    # --- taking in ------------------------------------------------------------------------

    def append(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when it is on disk.

        The future raises ``SpoolError`` if nothing of it is stored.
        """
        # Ahead of the batch, so that both share a commit (rule 5).
        if self._unwritten:
            self._write_counts()
        return self._appends.put(batch)

    def _write_counts(self) -> None:
        counts = self._unwritten.begin()

        def written(done: asyncio.Future[Appended]) -> None:
            failed = done.cancelled() or done.exception() is not None
            self._unwritten.end(counts.number, failed=failed)

        self._appends.put(counts).add_done_callback(written)

    def count_only(self, parts: Iterable[Part]) -> None:
        """Count a batch of which nothing is kept; the next kept batch takes the counts along."""
        self._unwritten.add(parts)

    def notify(self, takers: Iterable[str]) -> None:
        """Tell deliveries and relays that something was appended."""
        for name in takers:
            if name in self._takers:
                self._takers[name].appended()

    async def keep_tidy(self) -> None:
        """Apply retention for ever, in slices, so that no other work waits for long."""
        while True:
            # A failing disk fails every kind of row; a fault in one kind is that kind's alone.
            while await self._rounds.go_on(is_failing=lambda: self.trouble is not None):
                pass
            await anyio.sleep(TIDY_EVERY_S)

    # --- looking and doing ----------------------------------------------------------------

    async def do(self, work: Work[T]) -> T:
        """Do work on the store; return once its changes are durable.

        Raises:
            SpoolError: nothing of it was done.
        """
        return await self.writer.submit(work)

    async def look(self, work: Work[T]) -> T:
        """Do work that only reads, on a connection of its own (rule 3).

        Raises:
            SpoolError: the file cannot be read.
        """
        looked = partial(look, self.path, reading_store, work)
        return await (self.do(work) if self._inline else self.off_loop(looked))

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Do work that waits for the disk, without holding the event loop up."""
        return work() if self._inline else await asyncio.to_thread(work)

    @property
    def trouble(self) -> SpoolError | None:
        """The reason for which the spool takes nothing in, or fails; None: it is well."""
        return self._database.trouble

    @property
    def damage(self) -> SpoolError | None:
        """The latest error of the database about damage in its file."""
        return self._database.damage

    @property
    def last_batch(self) -> int:
        """The number of the last batch of the inbox that is on disk, of all takers."""
        return self._database.store.accounts.committed(SPOOL)[LAST_BATCH]

    @staticmethod
    def used_bytes(store: Store) -> int:
        """Return the bytes of the file in use."""
        assert isinstance(store.db, sqlite3.Connection)
        return SpoolFile(store.db).used_bytes()

    def why_full(self, name: str) -> str:
        """Return the reason for which a taker has no free bytes; empty: it has some."""
        return self._database.store.intake.why_full(name)

    def counters(self, name: str, taker: int) -> Counter[str]:
        """Return a taker's counters, with the counts that are not written yet."""
        store = self._database.store
        total = store.accounts.committed(taker).copy()
        total.update(self._unwritten.of(name, store.intake.counted_to))
        return total

    async def with_checkpoints(self, work: Work[T]) -> T:
        """Do work on checkpoints: those of batches that only count are written first.

        Raises:
            SpoolError: nothing of it was done.
        """
        uncounted = self._unwritten.take()

        def counted(store: Store) -> T:
            for part in uncounted:
                store.intake.count_only(part)
            return work(store)

        try:
            return await self.do(counted)
        except SpoolError:
            self._unwritten.put_back(uncounted)
            raise

    async def compact(self) -> None:
        """Give the free pages of the file back to the disk, in slices.

        Raises:
            SpoolError: the disk fails.
        """
        while await self.do(lambda _: self._database.file.give_back()):
            pass

    async def size_bytes(self) -> int:
        """Return the size of the file."""
        return await self.do(lambda _: self._database.file.size_bytes())


def _counting(
    uncounted: Sequence[Part], tallies: Mapping[int, Mapping[str, int]]
) -> Work[None] | None:
    """Return the work that counts batches and tallies; None: there are none."""
    if not uncounted and not any(tallies.values()):
        return None

    def work(store: Store) -> None:
        for part in uncounted:
            store.intake.count_only(part)
        for taker, tally in tallies.items():
            store.count_tally(taker, tally)

    return work


class SpoolPart:
    """One taker's part of the spool (``contract.TakerSpool``)."""

    def __init__(self, spool: Spool, taker: int, name: str) -> None:
        self.spool = spool
        self.taker = taker
        self.name = name
        self.workspace = 0
        """The number of its workspace; 0 before that is known."""
        self.has_been_fed = False
        self._now_ms = spool.now_ms
        self.tally = TakerTally(under(self.counters, ADJUSTED))
        self.appended: Callable[[], None] = lambda: None
        """Called when something was appended."""

    @property
    def counters(self) -> Counter[str]:
        """The taker's counters, with the counts that are not written yet."""
        return self.spool.counters(self.name, self.taker)

    async def persist(self, work: Work[T], tries: int = TRIES_IF_DAMAGED) -> T:
        """Do work until it is durable; a failing disk delays it.

        Raises:
            SpoolDamaged: the rows that it needs are damaged, at each of ``tries``.
        """
        while True:
            try:
                return await self.spool.do(work)
            except SpoolError as error:
                # A disk may recover by itself; damaged rows do not, so only those use up the tries.
                tries -= isinstance(error, SpoolDamaged)
                if not tries:
                    raise
                await anyio.sleep(FAILING_DISK_NAP_S)

    async def attempt(self, work: Work[T]) -> T:
        """Do work once, until it is durable.

        Raises:
            SpoolError: nothing of it was done.
        """
        return await self.spool.do(work)

    async def recover(self) -> None:
        """Bring the tables to the state that a start finds: the last delivery was broken off."""
        await self.persist(lambda store: store.recover_taker(self.taker))

    def job_added(self) -> None:
        """Tell the job runner that a transaction has asked for a job."""
        self.spool.job_added()

    @property
    def trouble(self) -> SpoolError | None:
        """The reason for which nothing is taken in for this taker; None: it is well."""
        trouble = self.spool.trouble
        if trouble is None and (why := self.spool.why_full(self.name)):
            return SpoolError(RefusalReason.SPOOL_FULL, why)
        return trouble

    async def parked(self) -> int:
        """Return the number of records that wait with parked users."""
        return await self.spool.do(lambda store: parked(store, self.taker))

    async def checkpoints(self) -> dict[str, str]:
        """Return the checkpoints of the sources that can be read again, by source."""
        return await self.spool.with_checkpoints(lambda store: store.checkpoints.of(self.taker))

    async def forget_checkpoints(
        self, sources: Sequence[str], kept: Mapping[str, str] | None = None
    ) -> None:
        """Forget the checkpoints of some sources; ``kept`` replaces those of others."""

        def work(store: Store) -> None:
            store.checkpoints.forget(self.taker, sources)
            store.checkpoints.set(self.taker, kept or {})

        await self.spool.with_checkpoints(work)

    async def event_names(self, workspace: int) -> dict[str, int]:
        """Return the event names that were sent, with the day of the last time."""
        return await self.persist(lambda store: store.event_names.of(workspace))

    async def keep_event_names(self, workspace: int, last_days: Mapping[str, int]) -> None:
        """Replace the kept event names."""
        kept = dict(last_days)
        await self.persist(lambda store: store.event_names.keep(workspace, kept))

    async def claim_seconds(self, claims: Sequence[Claim]) -> list[Given]:
        """Give each event a second that no other one has; for good."""
        now_ms = self._now_ms()
        return await self.persist(lambda store: store.claims(self.name).claim(claims, now_ms))
