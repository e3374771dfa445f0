"""Loading one sync's records into memory: when, how many, of which users.

Rules
=====
1. Records are loaded in the transaction that settles (``delivery.feed``), as a ``Wanted`` says.
   Deciding that changes nothing: it can be asked as often as needed.
2. There are four reasons to load: something was appended; users in memory have no records left, but
   more on disk; the time of a user that is aside has come; an endpoint is well again, or may be
   probed.
3. Nothing is loaded beyond ``delivery.memory_bounds``.
4. The queue and the users that are aside come first in turns, so that neither can take all the
   space.
5. Waits of parked users follow a wall clock that was set back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.health import Health
from amplitude_intercom.engine.delivery.loaded_bytes import SyncBytes
from amplitude_intercom.engine.delivery.memory_bounds import LOAD_ROWS, MemoryBounds
from amplitude_intercom.engine.delivery.scheduler import Incoming, Scheduler
from amplitude_intercom.engine.delivery.turns import MOST_UPDATES
from amplitude_intercom.engine.delivery.users_in_memory import EVENTS, UsersInMemory
from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.spool.contract import Loaded, Transaction, Wanted

PER_USER: Final = 32
"""Records of one user that are loaded at once: one busy user must not fill the read-ahead."""

LONGEST_NAP_S: Final = 5.0
"""Seconds between looks at the wall clock while a user is parked: it may be set meanwhile."""

CLOCK_STEP_MS: Final = 1_000
"""A clock that is behind by more was set back; parked users must not wait for it to catch up."""


class AsideUsers(NamedTuple):
    """The users that are aside, as the last load has found them.

    ``next_wake_ms``: when the first of them is due that was not parked; ``next_retry_ms``: and that
    was. ``awaited``: the endpoints for which some wait.
    """

    next_wake_ms: int | None = None
    next_retry_ms: int | None = None
    awaited: frozenset[str] = frozenset()

    def are_due(self, now_ms: int, *, with_retries: bool) -> bool:
        """Return whether the time of one of them has come."""
        if self.next_wake_ms is not None and self.next_wake_ms <= now_ms:
            return True
        return with_retries and self.next_retry_ms is not None and self.next_retry_ms <= now_ms


class Loading:
    """The loading of one sync; see the module's docstring."""

    def __init__(
        self,
        sync: str,
        taker: int,
        scheduler: Scheduler,
        health: Health,
        loaded: SyncBytes,
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
        self._loaded = loaded
        self._bounds = MemoryBounds(lambda: scheduler.of(sync), health, loaded, read_ahead)
        self._writes_contacts = writes_contacts
        self._now_ms = now_ms
        self._last_id = 0
        self._is_more_queued = True
        self._looks_at_table = True
        self._aside = AsideUsers()
        self._trying: dict[str, str] = {}
        """By endpoint with an open circuit, the user that was loaded last to probe it."""
        self._queue_first = False
        self._clock = _WallClock(now_ms)

    def __repr__(self) -> str:
        ready = self._users.ready()
        return f"Loading({ready} records wait, {self._loaded.held} bytes, up to {self._last_id})"

    @property
    def _users(self) -> UsersInMemory:
        return self._scheduler.of(self._sync)

    # --- deciding -------------------------------------------------------------------------

    def more_is_queued(self) -> None:
        """Note that something was appended."""
        self._is_more_queued = True
        self._looks_at_table = True

    def look_at_table(self) -> None:
        """Note that users may be due that were not."""
        self._looks_at_table = True

    def due_in_s(self) -> float:
        """Return the seconds until something is to be loaded, as far as that is known."""
        self._clock.update()
        if self.wanted() is not None or self._bounds.are_exceeded():
            return 0.0
        if self._bounds.space() is None:
            # Another sync may let bytes go, and tells no other sync.
            return LONGEST_NAP_S
        wakes_ms = [self._aside.next_wake_ms]
        # A retry that cannot be loaded would make each wait end at once.
        if self._bounds.retries()[0] > 0:
            wakes_ms.append(self._aside.next_retry_ms)
        in_ms = [at_ms - self._now_ms() for at_ms in wakes_ms if at_ms is not None]
        return min(LONGEST_NAP_S, max(0.001, min(in_ms) / 1000)) if in_ms else math.inf

    def want(self) -> Wanted | None:
        """Return the records to load now, and expect them to be loaded; None: none.

        From now on ``more_is_queued`` and ``look_at_table`` are about the next load.
        """
        self._clock.update()
        wanted = self.wanted()
        if wanted is None:
            return None
        self._queue_first = wanted.queue_first
        self._is_more_queued = self._is_more_queued and not wanted.reads_queue
        # Set false before the load, so that news that come during it count for the next one.
        self._looks_at_table = False
        return wanted

    def wanted(self) -> Wanted | None:
        """Return the records that would be loaded now; None: none. Changes nothing."""
        space = self._bounds.space()
        if space is None:
            return None
        free, free_bytes = space
        open_circuits = self._health.open_circuits
        now_ms = self._now_ms()
        empty = list(islice(self._users.empty, LOAD_ROWS))
        probes = self._probes_wanted()
        parked, parked_bytes = self._bounds.retries()
        is_well_again = any(endpoint not in open_circuits for endpoint in self._aside.awaited)
        reads_queue = self._is_more_queued and self._can_deliver(open_circuits)
        is_due = self._aside.are_due(now_ms, with_retries=parked > 0)
        is_due = is_due or self._looks_at_table or self._clock.set_back_ms > 0
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
            full=self._users.full_users(PER_USER),
            empty=empty,
            open_circuits=open_circuits,
            probes=probes,
            reads_queue=reads_queue,
            set_back_ms=self._clock.set_back_ms,
            queue_first=not self._queue_first,
        )

    def _probes_wanted(self) -> list[str]:
        """Return the endpoints that a user who is aside may probe."""
        if not self._aside.awaited:
            return []
        wanting = self._health.wanting_probe(loop_time_s())
        return [e for e in wanting if e in self._aside.awaited and not self._has_probe(e)]

    def _has_probe(self, endpoint: str) -> bool:
        """Return whether a user in memory waits for an endpoint, or may turn out to need it."""
        # Which endpoint an update needs is known in its turn only: without the second half all who
        # wait for an endpoint of contacts would be loaded, one after the other.
        users = self._users
        return users.waits_for(endpoint) or users.is_busy(self._trying.get(endpoint, ""))

    def _can_deliver(self, open_circuits: list[str]) -> bool:
        """Return whether some of the queue may be delivered, or is to be tried."""
        # During an outage of all that a sync needs the queue stays packed on disk. Without a user
        # that waits there would be none to probe.
        if EVENTS not in open_circuits or not self._users.waits_for(EVENTS):
            return True
        of_contacts = any("/contacts" in endpoint for endpoint in open_circuits)
        return self._writes_contacts and not of_contacts

    # --- loading --------------------------------------------------------------------------

    def load(self, store: Transaction, wanted: Wanted) -> Loaded:
        """Load wanted records, in a transaction."""
        return store.queue(self._taker).load(wanted)

    def take(self, loaded: Loaded, wanted: Wanted) -> None:
        """Give the scheduler the loaded records."""
        self._clock.follow(wanted.set_back_ms)
        self._last_id = loaded.last_id
        # Something may have been appended while this was loaded: that note must not be lost.
        self._is_more_queued |= wanted.reads_queue and loaded.more
        awaited = frozenset(loaded.awaited)
        self._aside = AsideUsers(loaded.next_wake_ms, loaded.next_retry_ms, awaited)
        for user, records in loaded.refilled.items():
            self._add(Incoming(user, records, bool(records)))
        for woken in loaded.woken:
            if woken.tries:
                self._trying[woken.tries] = woken.user
            self._add(Incoming(woken.user, woken.records, True, woken.is_retry, woken.failing))
        fresh: dict[str, list[Record]] = {}
        for record in loaded.records:
            fresh.setdefault(record.user_key, []).append(record)
        for user, records in fresh.items():
            self._add(Incoming(user, records))
        for user in loaded.worked_off:
            self._add(Incoming(user, (), True))

    def _add(self, incoming: Incoming) -> None:
        self._loaded.hold(incoming.records)
        self._scheduler.add(self._sync, incoming)

    def begin_anew(self) -> None:
        """Forget all that was loaded."""
        self._loaded.let_all_go()
        # Users that were in memory are in the queue again, in front of all that was read.
        self._last_id = 0
        self._is_more_queued = self._looks_at_table = True
        self._aside = AsideUsers()
        self._trying.clear()

    # --- putting aside --------------------------------------------------------------------

    def withdraw(self) -> list[tuple[str, str, list[Record]]]:
        """Take users out of memory that cannot have a turn, where they are too many.

        Returns each with its endpoint and its records.
        """
        return [
            (queue[0], user, records)
            for queue, *keep in self._bounds.kept()
            for user, records in self._scheduler.withdraw(self._sync, queue, *keep)
        ]

    def note_withdrawn(self, records: list[Record]) -> None:
        """Note that it is durable that a user waits for an endpoint."""
        self._loaded.let_go(records)
        # `awaited` does not have the endpoint before the next look.
        self._looks_at_table = True


class _WallClock:
    """By how much the wall clock was set back, as far as parked users have not followed it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._looked_at_ms: int | None = None
        self._looked_at_s = 0.0
        self.set_back_ms = 0

    def update(self) -> None:
        """Compare it with the loop's clock, which is never set."""
        now_ms, now_s = self._now_ms(), loop_time_s()
        if self._looked_at_ms is not None:
            expected_ms = self._looked_at_ms + int((now_s - self._looked_at_s) * 1000)
            if expected_ms - now_ms > CLOCK_STEP_MS:
                self.set_back_ms += expected_ms - now_ms
        self._looked_at_ms, self._looked_at_s = now_ms, now_s

    def follow(self, by_ms: int) -> None:
        """Note that users have followed it by so much."""
        self.set_back_ms -= by_ms
