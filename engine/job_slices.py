"""One slice of a job in a transaction: letters replayed or discarded, records re-keyed, buried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.relay.relayed_form import relayed_again
from amplitude_intercom.engine.rules.admission import Admission, Admitted
from amplitude_intercom.engine.rules.verdicts import Drop, Keep, Verdict
from amplitude_intercom.engine.settings import Relay as RelaySettings
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.spool import replaying
from amplitude_intercom.engine.spool.batches import Kept
from amplitude_intercom.engine.spool.job_requests import ask_job
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind, JobRow, JobState, NewMapping
from amplitude_intercom.engine.spool.letter_ends import discard
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery, Position
from amplitude_intercom.engine.spool.rekeying import rekey
from amplitude_intercom.engine.spool.relay_requests import Relayed
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.amplitude_heads import decode_head

SLICE: Final = 500
"""Dead letters that one transaction settles: other transactions wait for it."""

STILL_DEAD: Final = "still dead"
"""The count of letters that stay: no event, no user, damaged, or an internal fault."""

UNKEYED: Final = ""
"""The mapping kept for a sync while a re-keying runs: some records have old keys, some new ones."""


class Slice(NamedTuple):
    """The result of one slice; ``cursor``: the position of the last record or letter read.

    ``ends_as``: the state in which a job ends with its last slice.
    """

    cursor: str
    counts: Mapping[str, int]
    is_last: bool
    ends_as: JobState = JobState.DONE


class JobSync(Protocol):
    """A sync as jobs see it (``engine.delivery.stream.Stream``)."""

    @property
    def sync(self) -> Sync:
        """Its settings."""
        ...

    @property
    def admission(self) -> Admission:
        """The rules by which its events are kept."""
        ...


class JobTakers(Protocol):
    """The takers of today's settings (``engine.running_takers.RunningTakers``)."""

    @property
    def settings(self) -> Settings:
        """The settings, for the relays in them."""
        ...

    @property
    def streams(self) -> Mapping[str, JobSync]:
        """The syncs, by name."""
        ...


class JobSlices:
    """Does slices of jobs for the syncs and relays of today's settings."""

    def __init__(self, takers: JobTakers, now_ms: Callable[[], int]) -> None:
        self._takers = takers
        self._now_ms = now_ms

    def is_enabled(self, taker: str) -> bool:
        """Return whether a replayed letter of a taker would be sent."""
        found = self._relay(taker) or self._sync(taker)
        return found is not None and found.enabled

    def _relay(self, taker: str) -> RelaySettings | None:
        relays = self._takers.settings.relay
        return next((relay for relay in relays if relay.taker == taker), None)

    def _sync(self, taker: str) -> Sync | None:
        found = self._takers.streams.get(taker)
        return None if found is None else found.sync

    def follow_mappings(self, store: Store, syncs: Iterable[Sync]) -> list[JobRow]:
        """Ask for re-keyings where ``[sync.mapping]`` has changed; return those that are open."""
        now_ms = self._now_ms()
        found = [_follow_mapping(store, sync, now_ms) for sync in syncs]
        return [job for job in found if job is not None]

    def do_next(self, store: Store) -> tuple[JobRow, bool] | None:
        """Do a slice of the oldest waiting job; return the job, and whether the slice was its last.

        None: no job waits.
        """
        job = store.jobs.next()
        if job is None:
            return None
        done = self._do(store, job, store.takers.known_id(job.sync))
        store.jobs.advance(job, done.cursor, done.counts)
        if done.is_last:
            store.jobs.end(job.id, done.ends_as, self._now_ms())
        return job, done.is_last

    def _do(self, store: Store, job: JobRow, taker: int) -> Slice:
        match job.query:
            case Expiry() as expiry:
                return _expire(store, taker, expiry, job.cursor, self._now_ms())
            case NewMapping() as mapping:
                return self._rekey(store, taker, job, mapping)
            case query:
                return self._letters(store, taker, job, query)

    def _letters(self, store: Store, taker: int, job: JobRow, query: DeadLetterQuery) -> Slice:
        up_to = Position.read(job.up_to)
        letters, last = store.letters.page(
            taker, query, Position.read(job.cursor), SLICE, up_to=up_to
        )
        meant = [letter for letter in letters if letter.id <= up_to.id]
        counts = self._settle(store, job, taker, meant) if meant else {}
        return Slice(str(last or up_to), counts, is_last=last is None)

    def _settle(
        self, store: Store, job: JobRow, taker: int, letters: Sequence[DeadLetter]
    ) -> Counter[str]:
        if job.kind is JobKind.DISCARD:
            return Counter({"discarded": discard(store, taker, letters)})
        relay, found = self._relay(job.sync), self._takers.streams.get(job.sync)
        if relay is not None and relay.enabled:
            return relay_again(
                store, taker, letters, self._now_ms(), drops_oldest=relay.drops_oldest
            )
        if found is not None and found.sync.enabled:
            return replay(store, taker, letters, found.admission, self._now_ms())
        # It was disabled, or went from the settings, since the job was asked for.
        return Counter({STILL_DEAD: len(letters)})

    def _rekey(self, store: Store, taker: int, job: JobRow, mapping: NewMapping) -> Slice:
        found = self._takers.streams.get(job.sync)
        # The sync has gone, or has another mapping by now: the keys of this job would be no keys of
        # that mapping. What is kept stays UNKEYED, so that a new job follows, from the beginning.
        if found is None or _mapping_of(found.sync) != mapping:
            return Slice(job.cursor, {}, is_last=True, ends_as=JobState.CANCELLED)
        cursor, up_to = Position.read(job.cursor), Position.read(job.up_to)
        done = rekey(store, store.ends(taker), cursor.id, up_to.id, found.admission.user_of)
        if done.is_last:
            store.meta.set(_mapping_key(taker), _text_of(mapping))
        counts = {"rekeyed": done.count} if done.count else {}
        return Slice(str(Position(0, done.last_id)), counts, done.is_last)


def _mapping_key(taker: int) -> str:
    return f"mapping {taker}"


def _mapping_of(sync: Sync) -> NewMapping:
    return NewMapping(sync.mapping.identifier, sync.mapping.source)


def _text_of(mapping: NewMapping) -> str:
    return f"{mapping.identifier} {mapping.source}"


def _follow_mapping(store: Store, sync: Sync, now_ms: int) -> JobRow | None:
    """Return the open re-keying of a sync, a new one if ``[sync.mapping]`` has changed."""
    taker, new = store.takers.id_for(sync.name), _mapping_of(sync)
    key, text = _mapping_key(taker), _text_of(new)
    before = store.meta.get(key)
    waiting = store.accounts.value(taker, "pending")
    if before == text:
        return None
    asked = store.jobs.rekeying(sync.name)
    if asked is not None and not asked.ended:
        if asked.query == new:
            return asked
        store.jobs.end(asked.id, JobState.CANCELLED, now_ms)
    if before is None or not waiting:
        store.meta.set(key, text)
        return None
    store.meta.set(key, UNKEYED)
    return ask_job(store, JobKind.REKEY, taker, new, waiting, who="settings", now_ms=now_ms)


def _expire(store: Store, taker: int, expiry: Expiry, cursor: str, now_ms: int) -> Slice:
    count, more = store.settling(taker).expire(
        expiry.user, expiry.failure, expiry.accepted_until_ms, now_ms
    )
    return Slice(cursor, {f"dead:{expiry.failure.reason}": count}, is_last=not more)


def replay(
    store: Store,
    taker: int,
    letters: Sequence[DeadLetter],
    admission: Admission,
    now_ms: int,
) -> Counter[str]:
    """Send dead letters through today's filter again; return counts by outcome.

    Outcomes: ``replayed``, ``dropped:REASON`` (today's selection drops it), ``still dead``. A
    replayed event goes behind all waiting records of its user.
    """
    counts: Counter[str] = Counter()
    kept: list[tuple[DeadLetter, Kept]] = []
    for letter in letters:
        if letter.reason == DeadReason.CORRUPT:
            counts[STILL_DEAD] += 1  # its bytes are no longer the accepted ones
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
                counts[f"dropped:{reason}"] += discard(store, taker, [letter], reason)
            case _:
                counts[STILL_DEAD] += 1
    counts["replayed"] += replaying.replay(store, taker, kept, now_ms)
    return +counts


def relay_again(
    store: Store, taker: int, letters: Sequence[DeadLetter], now_ms: int, *, drops_oldest: bool
) -> Counter[str]:
    """Send dead letters of a relay on again; return counts by outcome."""
    found = [
        (letter, _as_request(letter, drops_oldest=drops_oldest))
        for letter in letters
        if letter.reason != DeadReason.CORRUPT
    ]
    requests = [(letter, request) for letter, request in found if request is not None]
    counts = Counter({STILL_DEAD: len(letters) - len(requests)})
    counts["replayed"] = replaying.relay_again(
        store, store.relaying, taker, requests, store.intake.share_bytes(), now_ms
    )
    return +counts


def _as_request(letter: DeadLetter, *, drops_oldest: bool) -> Relayed | None:
    """Return a letter of a relay as a request; None: it cannot be one."""
    try:
        return relayed_again(letter, drops_oldest=drops_oldest)
    except Exception as fault:
        internal_failure(fault, dead_letter=letter.id)
        return None


def _judged(admission: Admission, letter: DeadLetter) -> Verdict[Admitted] | None:
    """Return the verdict of today's filter on a letter; None: an internal fault."""
    try:
        return admission.judge(decode_head(letter.raw), letter.raw)
    except Exception as fault:
        internal_failure(fault, dead_letter=letter.id)
        return None
