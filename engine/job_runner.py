"""Runs jobs, one after the other, a slice a transaction, so that deliveries go on beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.errors import SettingsError, SpoolDamaged, SpoolError
from amplitude_intercom.engine.internal_faults import describe, internal_failure
from amplitude_intercom.engine.job_slices import JobSlices, JobTakers
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.asked_once import Once
from amplitude_intercom.engine.spool.job_requests import Chosen, ask_job, ask_once
from amplitude_intercom.engine.spool.jobs import (
    JobKind,
    JobRow,
    JobState,
)
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import matching
from amplitude_intercom.engine.spool.takers import spoken
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

FAILING_DISK_NAP_S: Final = 1.0


class JobRunner:
    """Runs the jobs of one spool, one after the other."""

    def __init__(self, spool: Spool, takers: JobTakers, now_ms: Callable[[], int]) -> None:
        self._spool = spool
        self._slices = JobSlices(takers, now_ms)
        self._now_ms = now_ms
        self._changed = anyio.Event()
        self._is_over = False
        self.rekeying: dict[str, int] = {}
        """Syncs that deliver nothing before their records are re-keyed, with the job's number."""
        self.stopped: dict[str, str] = {}
        """Failed re-keyings: the fault of this program, by sync."""

    async def ask(
        self, kind: JobKind, sync: str, query: DeadLetterQuery, *, who: str, why: str = ""
    ) -> JobRow:
        """Keep a job; it runs soon, or after the next start. An empty query matches nothing.

        Raises:
            SettingsError: the sync is disabled, and a replay would drop every letter.
            SpoolError: the job cannot be kept.
        """
        if query.is_empty:
            query = DeadLetterQuery(ids=[])
        self._refuse_replay_of_disabled(kind, sync)
        now_ms = self._now_ms()

        def job(store: Store) -> JobRow:
            taker = store.takers.id_for(sync)
            expected = matching(store, taker, query).number
            return ask_job(store, kind, taker, query, expected, who=who, why=why, now_ms=now_ms)

        return self._made(await self._spool.do(job))

    async def ask_once(
        self, kind: JobKind, sync: str, chosen: Chosen, *, who: str, why: str, once: Once | None
    ) -> JobRow | None:
        """Keep a job about dead letters that were seen, unless ``once`` was asked before; then
        return the job of then; None: it was asked with another content, or its job is forgotten.

        Raises:
            SettingsError: the sync is disabled, and a replay would drop every letter.
            SelectionEnded: the last letter that was seen has gone.
            SpoolError: the job cannot be kept.
        """
        self._refuse_replay_of_disabled(kind, sync)
        now_ms = self._now_ms()

        def job(store: Store) -> tuple[JobRow | None, bool]:
            taker = store.takers.id_for(sync)
            return ask_once(store, kind, taker, chosen, once, who=who, why=why, now_ms=now_ms)

        found, is_new = await self._spool.do(job)
        return self._made(found) if found is not None and is_new else found

    def _refuse_replay_of_disabled(self, kind: JobKind, sync: str) -> None:
        if kind is JobKind.REPLAY and not self._slices.is_enabled(sync):
            raise SettingsError(f"{spoken(sync)} is disabled: enable it, then replay")

    def _made(self, job: JobRow) -> JobRow:
        _log.info(
            "job", job=job.id, kind=job.kind, sync=job.sync, letters=job.expected, who=job.who
        )
        self._spool.job_added()
        return job

    async def ended(self, id_: int) -> JobRow:
        """Wait until a job has ended; return it.

        Raises:
            SpoolError: the spool cannot be read.
        """
        while True:
            if self._is_over:
                raise SpoolError(RefusalReason.DRAINING, f"job {id_} goes on at the next start")
            changed = self._changed
            job = await self._spool.do(lambda store: store.jobs.get(id_))
            if job is None:
                raise SpoolDamaged(RefusalReason.SPOOL_FAILING, f"job {id_} cannot be read")
            if job.ended:
                return job
            await changed.wait()

    async def get(self, id_: int) -> JobRow | None:
        """Return a job; None: no job has this number.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.get(id_))

    async def latest(self, limit: int = 100) -> list[JobRow]:
        """Return the latest jobs, the newest first.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.latest(limit))

    async def cancel(self, id_: int) -> bool:
        """End a job after its present slice; return False for one that had ended.

        Raises:
            SettingsError: a re-keying cannot be cancelled.
            SpoolError: the job cannot be kept.
        """
        job = await self._spool.do(lambda store: store.jobs.get(id_))
        if job is not None and job.kind is JobKind.REKEY:
            raise SettingsError(f"sync `{job.sync}` delivers nothing before job {id_} is done")
        now_ms = self._now_ms()
        done = await self._spool.do(lambda store: store.jobs.end(id_, JobState.CANCELLED, now_ms))
        self._tell()
        return done

    # --- keys of records ------------------------------------------------------------------

    async def follow_mappings(self, syncs: Sequence[Sync]) -> None:
        """Ask for a re-keying of each of these syncs whose ``[sync.mapping]`` has changed.

        Raises:
            SpoolError: the disk fails.
        """
        asked = await self._spool.do(lambda store: self._slices.follow_mappings(store, syncs))
        for job in asked:
            _log.warning(
                "sync.mapping has changed: records that wait are keyed anew before they are sent",
                job=job.id,
                sync=job.sync,
                records=job.expected,
            )
        for sync in syncs:
            self.rekeying.pop(sync.name, None)
            self.stopped.pop(sync.name, None)
        self.rekeying |= {job.sync: job.id for job in asked}
        self._spool.job_added()
        self._tell()

    async def keyed(self, sync: str) -> bool:
        """Wait until a sync's records have the keys of today's mapping; return False at the end."""
        while sync in self.rekeying and not self._is_over:
            await self._changed.wait()
            # News at each turn of the loop kept a cancel, of a change of settings, from coming.
            await anyio.lowlevel.checkpoint_if_cancelled()
        return not self._is_over

    def end(self) -> None:
        """Do no more slices; the next start goes on with them."""
        self._is_over = True
        self._tell()

    # --- doing it -------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs for ever, the unfinished ones of the last process first."""
        try:
            while True:
                await self._work_off()
        finally:
            self.end()

    async def _work_off(self) -> None:
        """Finish all open jobs, then wait for more."""
        self._spool.jobs_wait.clear()
        try:
            while not self._is_over and await self._step():
                self._tell()
                await anyio.lowlevel.checkpoint()  # deliveries run between two slices
        except SpoolError:
            await anyio.sleep(FAILING_DISK_NAP_S)
        else:
            await self._spool.jobs_wait.wait()

    async def _step(self) -> bool:
        """Do a slice; return False if no job is open. An internal fault ends its job."""
        try:
            done = await self._spool.do(self._slices.do_next)
        except Exception as fault:
            if isinstance(fault, SpoolError) and not isinstance(fault, SpoolDamaged):
                raise  # the disk fails, whatever the job
            internal_failure(fault, during="the first job that waits")
            return await self._fail_first(describe(fault))
        if done is None:
            return False
        job, is_last = done
        if job.kind is JobKind.REPLAY:
            self._spool.notify([job.sync])
        if is_last and self.rekeying.get(job.sync) == job.id:
            del self.rekeying[job.sync]
        return True

    async def _fail_first(self, fault: str) -> bool:
        now_ms = self._now_ms()
        failed = await self._spool.do(lambda store: store.jobs.fail_first(now_ms))
        self.stopped |= {sync: fault for sync, job in self.rekeying.items() if job == failed}
        return failed is not None

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
