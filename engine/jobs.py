"""Does what jobs ask for, a slice of dead letters at a time, while deliveries go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.pipeline import Pipeline
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Verdict
from amplitude_intercom.engine.spool.batches import Kept
from amplitude_intercom.engine.spool.jobs import DeadLetterJob, JobKind, JobState
from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterQuery
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.amplitude import decode_head
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

SLICE: Final = 500
"""Dead letters that one transaction settles: others wait for so many at most."""

FAILING_DISK_NAP_S: Final = 1.0

STILL_DEAD: Final = "still dead"
"""What is counted of a letter that is no event, is damaged, or met a fault of ours: it stays."""


class JobRunner:
    """Runs the jobs of one spool, one after the other."""

    def __init__(
        self, spool: Spool, pipelines: Mapping[str, Pipeline], now_ms: Callable[[], int]
    ) -> None:
        self._spool = spool
        self._pipelines = pipelines
        self._now_ms = now_ms
        self._asked = anyio.Event()
        self._changed = anyio.Event()
        self._is_over = False

    async def ask(
        self, kind: JobKind, sync: str, query: DeadLetterQuery, *, who: str, why: str = ""
    ) -> DeadLetterJob:
        """Make a job of it; it is done soon, or at the next start. An empty query means nothing.

        Raises:
            SettingsError: the sync is disabled, and a replay would drop every letter.
            SpoolError: it cannot be kept.
        """
        pipeline = self._pipelines[sync]
        if query.is_empty:
            query = DeadLetterQuery(ids=[])
        if kind is JobKind.REPLAY and not pipeline.sync.enabled:
            raise SettingsError(f"sync `{sync}` is disabled: enable it, then replay")
        taker = pipeline.spool.taker

        def job(store: Store) -> DeadLetterJob:
            matching = store.matching(taker, query)
            upper_id, now_ms = store.letters.last_id(taker), self._now_ms()
            return store.jobs.add(
                lambda id_: DeadLetterJob(
                    id_, kind, sync, query, upper_id, matching, who, why, now_ms
                )
            )

        made = await self._spool.do(job)
        _log.info("job", job=made.id, kind=made.kind, sync=sync, letters=made.expected, who=who)
        self._asked.set()
        return made

    async def ended(self, id_: int) -> DeadLetterJob:
        """Wait until a job has ended; return it.

        Raises:
            SpoolError: the spool cannot be read.
        """
        while True:
            if self._is_over:
                raise SpoolError(RefusalReason.DRAINING, f"job {id_} goes on at the next start")
            changed = self._changed
            job = await self._spool.do(lambda store: store.jobs.get(id_))
            assert job is not None
            if job.ended:
                return job
            await changed.wait()

    async def get(self, id_: int) -> DeadLetterJob | None:
        """Return a job; None: there is none of this number.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.get(id_))

    async def latest(self, limit: int = 100) -> list[DeadLetterJob]:
        """Return the jobs that were asked for last.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.latest(limit))

    async def cancel(self, id_: int) -> bool:
        """End a job after the slice that is under way; False: it had ended.

        Raises:
            SpoolError: it cannot be kept.
        """
        now_ms = self._now_ms()
        done = await self._spool.do(lambda store: store.jobs.end(id_, JobState.CANCELLED, now_ms))
        self._tell()
        return done

    async def run(self) -> None:
        """Do what is asked for, for ever, beginning with what was left undone."""
        try:
            while True:
                await self._work_off()
        finally:
            self._is_over = True
            self._tell()

    async def _work_off(self) -> None:
        """Do all that is asked for, then wait for more."""
        self._asked = anyio.Event()
        try:
            while await self._step():
                self._tell()
                await anyio.lowlevel.checkpoint()  # others have their turn
        except SpoolError:
            await anyio.sleep(FAILING_DISK_NAP_S)
        else:
            await self._asked.wait()

    async def _step(self) -> bool:
        """Do a slice; False: there was nothing to do. A job with a fault of ours ends with that."""
        try:
            return await self._spool.do(self._slice)
        except SpoolError:
            raise
        except Exception as fault:
            internal_failure(fault, during="the first job that waits")
            now_ms = self._now_ms()
            return await self._spool.do(lambda store: store.jobs.fail_first(now_ms))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _slice(self, store: Store) -> bool:
        """Do a slice of the first job that there is, in a transaction; False: there is none."""
        job = store.jobs.next()
        if job is None:
            return False
        taker = store.known_taker(job.sync)
        letters, _ = store.letters.page(taker, job.query, job.cursor, SLICE)
        meant = [letter for letter in letters if letter.id <= job.upper_id]
        if meant:
            counts = self._do(store, job, taker, meant)
            store.jobs.advance(job, meant[-1].id, counts)
        if not meant or len(meant) < len(letters):
            store.jobs.end(job.id, JobState.DONE, self._now_ms())
        return True

    def _do(
        self, store: Store, job: DeadLetterJob, taker: int, letters: Sequence[DeadLetter]
    ) -> Counter[str]:
        if job.kind is JobKind.DISCARD:
            return Counter({"discarded": store.discard(taker, letters)})
        pipeline = self._pipelines.get(job.sync)
        if pipeline is None:  # the sync has left the settings meanwhile
            return Counter({STILL_DEAD: len(letters)})
        counts = replay(store, taker, letters, pipeline.rules.admission, self._now_ms())
        pipeline.spool.feed.notify()
        return counts


def replay(
    store: Store,
    taker: int,
    letters: Sequence[DeadLetter],
    admission: Admission,
    now_ms: int,
) -> Counter[str]:
    """Send dead letters through today's filter again; return how many went where.

    ``replayed``, ``dropped:REASON`` where today's selection drops one, or ``still dead``. What is
    replayed goes behind all that its user has waiting.
    """
    counts: Counter[str] = Counter()
    kept: list[tuple[DeadLetter, Kept]] = []
    for letter in letters:
        if letter.reason == DeadReason.CORRUPT:
            counts[STILL_DEAD] += 1  # what it says now is not what was accepted
            continue
        match _judged(admission, letter):
            case Keep((kind, user)):
                event = Kept(kind, user, letter.raw, None, letter.claim_id, letter.accepted_at_ms)
                kept.append((letter, event))
            case Drop(reason):
                counts[f"dropped:{reason}"] += store.discard(taker, [letter], reason)
            case _:
                counts[STILL_DEAD] += 1
    counts["replayed"] += store.replay(taker, kept, now_ms)
    return +counts


def _judged(admission: Admission, letter: DeadLetter) -> Verdict[Admitted] | None:
    """Return what today's filter says of a letter; None where it met a fault of ours."""
    try:
        return admission.judge(decode_head(letter.raw), letter.raw)
    except Exception as fault:
        internal_failure(fault, dead_letter=letter.id)
        return None
