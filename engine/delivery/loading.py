"""What of one sync is in memory: how much more is wanted, and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.health import Health
from amplitude_intercom.engine.delivery.lines import EVENTS, Key, Lines
from amplitude_intercom.engine.delivery.scheduler import Incoming, Scheduler
from amplitude_intercom.engine.delivery.turns import MOST_UPDATES
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.spool.contract import Loaded, Transaction, Wanted

PER_USER: Final = 32
"""Records of one user that are loaded at once: one busy user must not fill the read-ahead."""

READ_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""Bytes of events that all syncs together may have loaded."""

LEAST_BYTES: Final = 128 * 1024
"""Bytes that one sync may have loaded, whatever the others have."""

MOST_PROBES: Final = 64
"""Users that were parked of which something is loaded: however many are due, they come bit by bit,
and what is queued is loaded beside them."""

KEPT_PROBES: Final = MOST_PROBES // 4
"""Of these, so many may wait for an endpoint that is out: others need another one."""

MOST_PROBE_BYTES: Final = LEAST_BYTES // 2
"""Bytes of their events, by which they are loaded bit by bit as well."""

KEPT_BYTES: Final = LEAST_BYTES // 8
"""Bytes that may wait for an endpoint that is out, where they are all that keeps others from being
loaded: as many endpoints as there are must leave some of ``LEAST_BYTES``."""

LOAD_ROWS: Final = 256
LONGEST_NAP_S: Final = 5.0
"""Between looks at the wall clock while a user is parked: it may be set while we wait."""

CLOCK_STEP_MS: Final = 1_000
"""A clock that is behind by more was set back; parked users must not wait for it to catch up."""


class LoadedBytes:
    """How many bytes of events are loaded, of all syncs: they have one budget."""

    def __init__(self) -> None:
        self.total = 0

    def free_for(self, held: int) -> int:
        """Return how many more a sync may load that holds so many."""
        return max(READ_AHEAD_BYTES - self.total, LEAST_BYTES - held)


class _Aside(NamedTuple):
    """What the last look at the users that are aside has found: when the first of them is due that
    was not parked, and that was; and for which endpoints some wait."""

    next_wake_ms: int | None = None
    next_probe_ms: int | None = None
    awaited: frozenset[str] = frozenset()


class Loading:
    """One sync's share of what is loaded."""

    def __init__(
        self,
        sync: str,
        taker: int,
        scheduler: Scheduler,
        health: Health,
        budget: LoadedBytes,
        *,
        read_ahead: int,
        writes_contacts: bool,
        now_ms: Callable[[], int],
    ) -> None:
        """``read_ahead``: records of users that may have a turn, at most."""
        self._sync = sync
        self._taker = taker
        self._scheduler = scheduler
        self._health = health
        self._budget = budget
        self._read_ahead = read_ahead
        self._writes_contacts = writes_contacts
        self._now_ms = now_ms
        self._held_bytes = 0
        self._last_id = 0
        self._is_more_queued = True
        self._looks_at_table = True
        self._aside = _Aside()
        self._trying: dict[str, str] = {}
        """By endpoints that are out, the user that was loaded last to try them."""
        self._queue_first = False
        self._clock = _Clock(now_ms)

    def __repr__(self) -> str:
        ready = self._lines.ready()
        return f"Loading({ready} records wait, {self._held_bytes} bytes, up to {self._last_id})"

    @property
    def _lines(self) -> Lines:
        return self._scheduler.of(self._sync)

    @property
    def held_bytes(self) -> int:
        """Bytes of the events that are loaded."""
        return self._held_bytes

    # --- what is wanted -------------------------------------------------------------------

    def more_is_queued(self) -> None:
        """Take in that something was appended."""
        self._is_more_queued = True
        self._looks_at_table = True

    def look_at_table(self) -> None:
        """Take in that users may be due that were not."""
        self._looks_at_table = True

    def due_in_s(self) -> float:
        """Return in how many seconds something is to be loaded, as far as it is known."""
        if self.wanted() is not None or self._has_too_many():
            return 0.0
        if self._space() is None:
            return LONGEST_NAP_S  # another sync may let bytes go, and says so to nobody
        wakes_ms = [self._aside.next_wake_ms]
        if self._probes_free[0] > 0:
            wakes_ms.append(self._aside.next_probe_ms)
        in_ms = [at_ms - self._now_ms() for at_ms in wakes_ms if at_ms is not None]
        return min(LONGEST_NAP_S, max(0.001, min(in_ms) / 1000)) if in_ms else math.inf

    @property
    def _probes_free(self) -> tuple[int, int]:
        """How many users that were parked may be loaded, and how many bytes of them."""
        probes, size = self._lines.probes()
        free, free_bytes = MOST_PROBES - probes, MOST_PROBE_BYTES - size
        return (free, free_bytes) if free > 0 and free_bytes > 0 else (0, 0)

    def _space(self) -> tuple[int, int] | None:
        """Return how many records and bytes may be loaded; None: too few to be worth it."""
        free = self._read_ahead - self._lines.ready(self._health.open_circuits)
        free_bytes = self._free_bytes
        enough = (min(LOAD_ROWS, self._read_ahead) + 1) // 2
        return (free, free_bytes) if free >= enough and free_bytes > 0 else None

    @property
    def _free_bytes(self) -> int:
        """How many bytes may be loaded, whatever waits for endpoints that are out."""
        shut = sum(map(self._lines.bytes_behind, self._health.open_circuits))
        return self._budget.free_for(self._held_bytes - shut)

    def _is_due(self, now_ms: int) -> bool:
        wake_ms, probe_ms, _ = self._aside
        if wake_ms is not None and wake_ms <= now_ms:
            return True
        return probe_ms is not None and probe_ms <= now_ms and self._probes_free[0] > 0

    def wanted(self) -> Wanted | None:
        """Return what is to be loaded now; None: nothing."""
        space = self._space()
        if space is None:
            return None
        free, free_bytes = space
        open_ = self._health.open_circuits
        now_ms = self._now_ms()
        empty = list(islice(self._lines.empty, LOAD_ROWS))
        probes = self._probes_wanted()
        parked, parked_bytes = self._probes_free
        is_well_again = any(endpoint not in open_ for endpoint in self._aside.awaited)
        reads_queue = self._is_more_queued and self._can_deliver(open_)
        is_due = self._looks_at_table or self._is_due(now_ms) or self._clock.look() > 0
        if not (empty or probes or is_due or is_well_again or reads_queue):
            return None
        return Wanted(
            limit=min(free, LOAD_ROWS),
            limit_bytes=free_bytes,
            per_user=PER_USER,
            updates=MOST_UPDATES,
            now_ms=now_ms,
            parked=parked,
            parked_bytes=parked_bytes,
            after_id=self._last_id,
            full=self._lines.full_users(PER_USER),
            empty=empty,
            open=open_,
            probes=probes,
            reads_queue=reads_queue,
        )

    def wanted_now(self) -> Wanted | None:
        """Return what is to be loaded now, the queue first every other time; None: nothing.

        What is said from now on (something was appended, users may be due) is about the next time.
        """
        wanted = self.wanted()
        if wanted is None:
            return None
        self._queue_first = not self._queue_first
        self._is_more_queued = self._is_more_queued and not wanted.reads_queue
        self._looks_at_table = False
        return msgspec.structs.replace(
            wanted, set_back_ms=self._clock.look(), queue_first=self._queue_first
        )

    def _probes_wanted(self) -> list[str]:
        """Return the endpoints for which somebody aside may find out whether they are well."""
        if not self._aside.awaited:
            return []
        wanting = self._health.wanting_probe(loop_time_s())
        return [e for e in wanting if e in self._aside.awaited and not self._has_probe(e)]

    def _has_probe(self, endpoint: str) -> bool:
        """Return whether somebody waits for an endpoint, or may on its way turn out to need it."""
        lines = self._lines
        return lines.waits_for(endpoint) or lines.is_busy(self._trying.get(endpoint, ""))

    def _can_deliver(self, open_: list[str]) -> bool:
        """Return whether some of what is queued may be delivered, or found out to be."""
        if EVENTS not in open_ or not self._lines.waits_for(EVENTS):
            return True
        return self._writes_contacts and not any("/contacts" in endpoint for endpoint in open_)

    # --- loading --------------------------------------------------------------------------

    def load(self, store: Transaction, wanted: Wanted) -> Loaded:
        """Load what is wanted, in a transaction."""
        return store.queue(self._taker).load(wanted)

    def take(self, loaded: Loaded, wanted: Wanted) -> None:
        """Take in what was loaded, as it was wanted."""
        self._clock.follow(wanted.set_back_ms)
        add = self._scheduler.add
        self._last_id = loaded.last_id
        self._is_more_queued |= wanted.reads_queue and loaded.more
        self._aside = _Aside(loaded.next_wake_ms, loaded.next_probe_ms, frozenset(loaded.awaited))
        for user, records in loaded.refilled.items():
            self._hold(records)
            add(self._sync, Incoming(user, records, bool(records)))
        for woken in loaded.woken:
            self._hold(woken.records)
            if woken.tries:
                self._trying[woken.tries] = woken.user
            add(
                self._sync,
                Incoming(woken.user, woken.records, True, woken.is_probe, woken.failing),
            )
        fresh: dict[str, list[Record]] = {}
        for record in loaded.records:
            fresh.setdefault(record.user_key, []).append(record)
        self._hold(loaded.records)
        for user, records in fresh.items():
            add(self._sync, Incoming(user, records))
        for user in loaded.crowded:
            add(self._sync, Incoming(user, (), True))

    def _hold(self, records: Iterable[Record]) -> None:
        size = sum(len(record.raw) for record in records)
        self._held_bytes += size
        self._budget.total += size

    def let_go(self, records: Iterable[Record]) -> None:
        """Take in that records are no longer in memory."""
        size = sum(len(record.raw) for record in records)
        self._held_bytes -= size
        self._budget.total -= size

    def has_withdrawn(self, records: Iterable[Record]) -> None:
        """Take in that records of a user wait for an endpoint now, which a look will show."""
        self.let_go(records)
        self._looks_at_table = True

    def begin_anew(self) -> None:
        """Forget what was loaded."""
        self._budget.total -= self._held_bytes
        self._held_bytes = self._last_id = 0
        self._is_more_queued = self._looks_at_table = True
        self._aside = _Aside()
        self._trying.clear()

    def _kept(self) -> Iterator[tuple[Key, int, int]]:
        """Yield the lines that stand still, and how many records and bytes may wait in each."""
        is_short = self._budget.free_for(self._held_bytes) <= 0
        size = KEPT_BYTES if is_short else READ_AHEAD_BYTES
        for endpoint in self._health.open_circuits:
            yield (endpoint, False), min(LOAD_ROWS, self._read_ahead), size
            yield (endpoint, True), KEPT_PROBES, size

    def _has_too_many(self) -> bool:
        """Return whether there are users to be withdrawn."""
        return any(self._lines.holds_more(*kept) for kept in self._kept())

    def withdraw(self) -> list[tuple[str, str, list[Record]]]:
        """Take users out of memory that cannot have a turn, where they are too many; return each
        with its endpoint and its records."""
        return [
            (line[0], user, records)
            for line, *keep in self._kept()
            for user, records in self._scheduler.withdraw(self._sync, line, *keep)
        ]


class _Clock:
    """By how much the wall clock was set back, and users still have to follow it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._looked_at_ms: int | None = None
        self._looked_at_s = 0.0
        self._set_back_ms = 0

    def look(self) -> int:
        """Return by how much (ms)."""
        now_ms, now_s = self._now_ms(), loop_time_s()
        if self._looked_at_ms is not None:
            expected_ms = self._looked_at_ms + int((now_s - self._looked_at_s) * 1000)
            if expected_ms - now_ms > CLOCK_STEP_MS:
                self._set_back_ms += expected_ms - now_ms
        self._looked_at_ms, self._looked_at_s = now_ms, now_s
        return self._set_back_ms

    def follow(self, by_ms: int) -> None:
        """Take in that users have followed it by so much."""
        self._set_back_ms -= by_ms
