"""Does what jobs ask for, a slice of records or dead letters at a time, while deliveries go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import anyio
import structlog

from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.errors import SettingsError, SpoolDamaged, SpoolError
from amplitude_intercom.engine.faults import describe, internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.relay.keeping import relayed_again
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Verdict
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.spool.batches import Kept
from amplitude_intercom.engine.spool.jobs import (
    Expiry,
    JobKind,
    JobRow,
    JobState,
    NewMapping,
)
from amplitude_intercom.engine.spool.rekeying import rekey
from amplitude_intercom.engine.spool.requests import Relayed
from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.takers import spoken
from amplitude_intercom.transports.amplitude_heads import decode_head
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

SLICE: Final = 500
"""Dead letters that one transaction settles: others wait for so many at most."""

FAILING_DISK_NAP_S: Final = 1.0

STILL_DEAD: Final = "still dead"
"""What is counted of a letter that stays: it is no event, names nobody, is damaged, or met a fault
of ours."""

UNKEYED: Final = ""
"""The mapping that is kept of a sync while its records are keyed anew: they are of two."""


class _Slice(NamedTuple):
    """What a slice of a job has done; ``cursor``: the last that it looked at."""

    cursor: str
    counts: Mapping[str, int]
    is_last: bool


class JobRunner:
    """Runs the jobs of one spool, one after the other."""

    def __init__(
        self,
        spool: Spool,
        streams: Mapping[str, Stream],
        now_ms: Callable[[], int],
        relays: Mapping[str, RelaySettings] = {},
    ) -> None:
        """``streams``, ``relays``: whose records and dead letters there are, by taker."""
        self._spool = spool
        self._streams = streams
        self._relays = relays
        self._now_ms = now_ms
        self._changed = anyio.Event()
        self._is_over = False
        self.rekeying: dict[str, int] = {}
        """Syncs that deliver nothing while their records are keyed anew, with the job's number."""
        self.stopped: dict[str, str] = {}
        """Those of them for which that has failed: the fault of this program, by sync."""

    async def ask(
        self, kind: JobKind, sync: str, query: DeadLetterQuery, *, who: str, why: str = ""
    ) -> JobRow:
        """Make a job of it; it is done soon, or at the next start. An empty query means nothing.

        Raises:
            SettingsError: the sync is disabled, and a replay would drop every letter.
            SpoolError: it cannot be kept.
        """
        if query.is_empty:
            query = DeadLetterQuery(ids=[])
        if kind is JobKind.REPLAY and not self._is_enabled(sync):
            raise SettingsError(f"{spoken(sync)} is disabled: enable it, then replay")
        now_ms = self._now_ms()

        def job(store: Store) -> JobRow:
            taker = store.taker(sync)
            expected = store.matching(taker, query)
            return store.ask_job(kind, taker, query, expected, who=who, why=why, now_ms=now_ms)

        made = await self._spool.do(job)
        _log.info("job", job=made.id, kind=made.kind, sync=sync, letters=made.expected, who=who)
        self._spool.job_added()
        return made

    def _is_enabled(self, taker: str) -> bool:
        """Whether what is replayed of a taker would be sent; one that has gone sends nothing."""
        if taker in self._relays:
            return self._relays[taker].enabled
        stream = self._streams.get(taker)
        return stream is not None and stream.sync.enabled

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
        """Return a job; None: there is none of this number.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.get(id_))

    async def latest(self, limit: int = 100) -> list[JobRow]:
        """Return the jobs that were asked for last.

        Raises:
            SpoolError: the spool cannot be read.
        """
        return await self._spool.look(lambda store: store.jobs.latest(limit))

    async def cancel(self, id_: int) -> bool:
        """End a job after the slice that is under way; False: it had ended.

        Raises:
            SettingsError: nobody cancels this one.
            SpoolError: it cannot be kept.
        """
        job = await self._spool.do(lambda store: store.jobs.get(id_))
        if job is not None and job.kind is JobKind.REKEY:
            raise SettingsError(f"sync `{job.sync}` delivers nothing before job {id_} is done")
        now_ms = self._now_ms()
        done = await self._spool.do(lambda store: store.jobs.end(id_, JobState.CANCELLED, now_ms))
        self._tell()
        return done

    # --- keys of records ------------------------------------------------------------------

    async def follow_mappings(self) -> None:
        """Ask for records to be keyed anew where ``[sync.mapping]`` is not what it was for them.

        Raises:
            SpoolError: the disk fails.
        """
        streams = self._streams.values()
        asked = await self._spool.do(lambda store: self._follow_mappings(store, streams))
        for job in asked:
            _log.warning(
                "sync.mapping has changed: records that wait are keyed anew before they are sent",
                job=job.id,
                sync=job.sync,
                records=job.expected,
            )
        self.rekeying = {job.sync: job.id for job in asked}

    def _follow_mappings(self, store: Store, streams: Iterable[Stream]) -> list[JobRow]:
        found = [_follow_mapping(store, stream, self._now_ms()) for stream in streams]
        return [job for job in found if job is not None]

    async def keyed(self, sync: str) -> bool:
        """Wait until a sync's records have the keys of today's mapping; False: that is not so."""
        while sync in self.rekeying and not self._is_over:
            await self._changed.wait()
        return not self._is_over

    def end(self) -> None:
        """Do no more slices; what is left is done at the next start."""
        self._is_over = True
        self._tell()

    # --- doing it -------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is asked for, for ever, beginning with what was left undone."""
        try:
            while True:
                await self._work_off()
        finally:
            self.end()

    async def _work_off(self) -> None:
        """Do all that is asked for, then wait for more."""
        self._spool.jobs_wait.clear()
        try:
            while not self._is_over and await self._step():
                self._tell()
                await anyio.lowlevel.checkpoint()  # others have their turn
        except SpoolError:
            await anyio.sleep(FAILING_DISK_NAP_S)
        else:
            await self._spool.jobs_wait.wait()

    async def _step(self) -> bool:
        """Do a slice; False: there was nothing to do. A job with a fault of ours ends with that."""
        try:
            done = await self._spool.do(self._slice)
        except Exception as fault:
            if isinstance(fault, SpoolError) and not isinstance(fault, SpoolDamaged):
                raise  # of the disk, which concerns everybody
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

    def _slice(self, store: Store) -> tuple[JobRow, bool] | None:
        """Do a slice of the first job that there is, in a transaction; None: there is none.

        Returns the job, and whether that was its last.
        """
        job = store.jobs.next()
        if job is None:
            return None
        done = self._do(store, job, store.known_taker(job.sync))
        store.jobs.advance(job, done.cursor, done.counts)
        if done.is_last:
            store.jobs.end(job.id, JobState.DONE, self._now_ms())
        return job, done.is_last

    def _do(self, store: Store, job: JobRow, taker: int) -> _Slice:
        match job.query:
            case Expiry() as expiry:
                return _expire(store, taker, expiry, job.cursor, self._now_ms())
            case NewMapping() as mapping:
                return self._rekey(store, taker, job, mapping)
            case query:
                return self._letters(store, taker, job, query)

    def _letters(self, store: Store, taker: int, job: JobRow, query: DeadLetterQuery) -> _Slice:
        up_to = Position.read(job.up_to)
        letters, last = store.letters.page(
            taker, query, Position.read(job.cursor), SLICE, up_to=up_to
        )
        meant = [letter for letter in letters if letter.id <= up_to.id]
        counts = self._settle(store, job, taker, meant) if meant else {}
        return _Slice(str(last or up_to), counts, is_last=last is None)

    def _settle(
        self, store: Store, job: JobRow, taker: int, letters: Sequence[DeadLetter]
    ) -> Counter[str]:
        if job.kind is JobKind.DISCARD:
            return Counter({"discarded": store.discard(taker, letters)})
        if not self._is_enabled(job.sync):  # since that was asked for
            return Counter({STILL_DEAD: len(letters)})
        if job.sync in self._relays:
            drops_oldest = self._relays[job.sync].drops_oldest
            return relay_again(store, taker, letters, self._now_ms(), drops_oldest=drops_oldest)
        admission = self._streams[job.sync].rules.admission
        return replay(store, taker, letters, admission, self._now_ms())

    def _rekey(self, store: Store, taker: int, job: JobRow, mapping: NewMapping) -> _Slice:
        stream = self._streams.get(job.sync)
        if stream is None:  # its mapping stays unknown, so that it is asked for again
            return _Slice(job.cursor, {}, is_last=True)
        user_of = stream.rules.admission.user_of
        cursor, up_to = Position.read(job.cursor), Position.read(job.up_to)
        done = rekey(store, taker, cursor.id, up_to.id, user_of)
        if done.is_last:
            store.meta.set(_mapping_key(taker), _text_of(mapping))
        counts = {"rekeyed": done.count} if done.count else {}
        return _Slice(str(Position(0, done.last_id)), counts, done.is_last)


def _mapping_key(taker: int) -> str:
    return f"mapping {taker}"


def _text_of(mapping: NewMapping) -> str:
    return f"{mapping.identifier} {mapping.source}"


def _follow_mapping(store: Store, stream: Stream, now_ms: int) -> JobRow | None:
    """Return the job that keys a sync's records anew, where that is needed."""
    taker, mapping = stream.spool.taker, stream.sync.mapping
    new = NewMapping(mapping.identifier, mapping.source)
    key, text = _mapping_key(taker), _text_of(new)
    before = store.meta.get(key)
    waiting = store.accounts.value(taker, "pending")
    if before == text:
        return None
    if before is None or not waiting:
        store.meta.set(key, text)
        return None
    asked = store.jobs.rekeying(stream.sync.name)
    if asked is not None and not asked.ended:
        if asked.query == new:
            return asked
        store.jobs.end(asked.id, JobState.CANCELLED, now_ms)
    store.meta.set(key, UNKEYED)
    return store.ask_job(JobKind.REKEY, taker, new, waiting, who="settings", now_ms=now_ms)


def _expire(store: Store, taker: int, expiry: Expiry, cursor: str, now_ms: int) -> _Slice:
    count, more = store.settling(taker).expire(
        expiry.user, expiry.failure, expiry.accepted_until_ms, now_ms
    )
    return _Slice(cursor, {f"dead:{expiry.failure.reason}": count}, is_last=not more)


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
                event = Kept(
                    kind,
                    user,
                    letter.raw,
                    None,
                    letter.claim_id,
                    letter.accepted_at_ms,
                    bool(letter.updated),
                )
                kept.append((letter, event))
            case Drop(reason) if reason is not DropReason.NO_IDENTITY:
                counts[f"dropped:{reason}"] += store.discard(taker, [letter], reason)
            case _:
                counts[STILL_DEAD] += 1
    counts["replayed"] += store.replay(taker, kept, now_ms)
    return +counts


def relay_again(
    store: Store, taker: int, letters: Sequence[DeadLetter], now_ms: int, *, drops_oldest: bool
) -> Counter[str]:
    """Send dead letters of a relay on again; return how many went where."""
    found = [
        (letter, _as_request(letter, drops_oldest=drops_oldest))
        for letter in letters
        if letter.reason != DeadReason.CORRUPT
    ]
    requests = [(letter, request) for letter, request in found if request is not None]
    counts = Counter({STILL_DEAD: len(letters) - len(requests)})
    counts["replayed"] = store.relay_again(taker, requests, now_ms)
    return +counts


def _as_request(letter: DeadLetter, *, drops_oldest: bool) -> Relayed | None:
    """Return a letter of a relay as a request; None where it cannot be one, or met a fault."""
    try:
        return relayed_again(letter, drops_oldest=drops_oldest)
    except Exception as fault:
        internal_failure(fault, dead_letter=letter.id)
        return None


def _judged(admission: Admission, letter: DeadLetter) -> Verdict[Admitted] | None:
    """Return what today's filter says of a letter; None where it met a fault of ours."""
    try:
        return admission.judge(decode_head(letter.raw), letter.raw)
    except Exception as fault:
        internal_failure(fault, dead_letter=letter.id)
        return None
