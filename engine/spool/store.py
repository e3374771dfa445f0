"""The tables of a spool in a transaction: ``begin``, any amount of work, ``commit``.

Rules
=====
1. Everything between ``begin`` and ``commit`` is durable together, or not at all. Counters, sizes
   and the log's lines are kept in memory until the commit, and dropped at a rollback.
2. A rollback drops all that was read as well: it may be of a batch that never was.
3. There is no thread here, so a test can walk through a transaction step by step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import ClassVar, Final

import msgspec

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.settings import MAX_SHIFT_S, Settings
from amplitude_intercom.engine.spool import recovery
from amplitude_intercom.engine.spool.accounts import MINUTE_MS
from amplitude_intercom.engine.spool.arrivals import Arrivals
from amplitude_intercom.engine.spool.claims import Claims
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.job_requests import ask_job
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.record_queue import Queue
from amplitude_intercom.engine.spool.relaying import Relaying
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.settling import Settling
from amplitude_intercom.engine.spool.store_intake import StoreIntake
from amplitude_intercom.engine.spool.tables import Tables
from amplitude_intercom.engine.spool.tally import ADJUSTED
from amplitude_intercom.transports.reasons import RefusalReason


def wall_clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Limits(msgspec.Struct):
    """The settings of a store. ``claims``: window (ms) and shift (s) of each taker."""

    max_bytes: int = 1 << 40
    window_ms: int = 0
    claims: Mapping[str, tuple[int, int]] = {}
    longest_wait_ms: int = 1 << 40
    """The longest time that a user is parked or deferred."""

    def follow(self, newer: Limits) -> None:
        """Take over from newer settings all that concerns syncs."""
        self.claims, self.longest_wait_ms = newer.claims, newer.longest_wait_ms


def limits_of(settings: Settings) -> Limits:
    """Return the limits of a store, from the settings."""
    by_sync = {sync.name: sync.delivery for sync in settings.sync}
    claims = {
        name: (int(delivery.same_second_window_s * 1000), delivery.same_second_shift_s)
        for name, delivery in by_sync.items()
    }
    window_ms = int(settings.spool.dedupe_window_s * 1000)
    waits_s = [sync.delivery.retry_window_s for sync in settings.sync]
    longest_wait_ms = int(1000 * max(waits_s, default=0.0)) + MAX_SHIFT_S * 1000
    return Limits(settings.spool.max_bytes, window_ms, claims, longest_wait_ms)


NO_CLAIMS: Final = (0, 60)


class Store(Tables):
    """The tables with their transactions. The module's docstring has the rules."""

    queue_type: ClassVar[type[Queue]] = Queue
    settling_type: ClassVar[type[Settling]] = Settling

    def __init__(
        self,
        db: Connection,
        limits: Limits,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        super().__init__(db, limits.window_ms)
        self._limits = limits
        self._now_ms = now_ms
        self.relaying = Relaying(self.relayed, self.letters, self.takers, self.accounts, self.lines)
        self.intake = StoreIntake(self, self.relaying, limits.max_bytes)
        self._queues: dict[int, Queue] = {}
        self._ends: dict[int, RecordEnds] = {}
        self._settlings: dict[int, Settling] = {}
        """Kept, because work asks for one with each record that it settles."""

    # --- transactions ---------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction."""
        self.db.execute("BEGIN")

    def commit(self) -> None:
        """Make everything since ``begin`` durable.

        Raises:
            Exception: nothing of it is; as the database says it.
        """
        # These write too, so they come before the counters, and those before the commit.
        for ends in self._ends.values():
            ends.let_go_emptied()
        self.takers.write_deliveries()
        self.count_sizes()
        self.accounts.write(self._now_ms() // MINUTE_MS)
        self.db.execute("COMMIT")
        # From here on nothing may fail: it is durable, and the caller is told so.
        self.accounts.commit()
        self.intake.committed()
        self.lines.write()

    def rollback(self) -> None:
        """Forget everything since ``begin``."""
        self.accounts.rollback()
        self.takers.forget_deliveries()
        self.intake.rolled_back()
        self.forget_sizes()
        self.lines.forget()
        self._ends.clear()
        self._settlings.clear()
        # These refer to the former, which know of batches that were emptied.
        self._queues.clear()
        # The next batch may get the id of one that never was.
        self.inbox.close_all()
        # A disk that fails here as well is nothing new: the next ``begin`` fails, and says so.
        with suppress(Exception):
            self.db.execute("ROLLBACK")
        with suppress(Exception):
            self.takers.read_ids()

    def close(self) -> None:
        """Close the connection."""
        close = getattr(self.db, "close", None)
        if close is not None:
            close()

    def recover(self) -> None:
        """Bring the tables to the state in which a process may start with them."""
        recovery.recover(self, self.ends, self._latest_wake_ms())

    def recover_taker(self, taker: int) -> None:
        """Bring the tables to that state for one taker, whose last delivery was broken off."""
        recovery.recover_taker(self, self.ends(taker), self._latest_wake_ms())

    def _latest_wake_ms(self) -> int:
        return self._now_ms() + self._limits.longest_wait_ms

    # --- intake ---------------------------------------------------------------------------

    def append(self, batches: Sequence[Append], now_ms: int) -> list[Appended | SpoolError]:
        """Append batches; see ``StoreIntake``."""
        return self.intake.append(batches, now_ms)

    def set_refusal(self, reason: RefusalReason | None) -> None:
        """Refuse appends for this reason from now on; None: accept them again."""
        self.intake.set_refusal(reason)

    # --- the records of one taker ---------------------------------------------------------

    def queue(self, taker: int) -> Queue:
        """Return the waiting records of a taker."""
        if taker not in self._queues:
            ends = self.ends(taker)
            self._queues[taker] = self.queue_type(self, ends, Arrivals(self, ends))
        return self._queues[taker]

    def settling(self, taker: int) -> Settling:
        """Return the records of a taker, as they end or wait."""
        found = self._settlings.get(taker)
        if found is None:
            found = self._settlings[taker] = self.settling_type(self, self.ends(taker))
        return found

    def ends(self, taker: int) -> RecordEnds:
        """Return the records of a taker, as they leave the table."""
        found = self._ends.get(taker)
        if found is None:
            name = self.takers.name_of(taker)
            found = self._ends[taker] = RecordEnds(
                taker, name, self.inbox, self.records, self.letters, self.accounts, self.lines
            )
        return found

    def claims(self, name: str) -> Claims:
        """Return the claims of a taker."""
        window_ms, shift_s = self._limits.claims.get(name, NO_CLAIMS)
        is_short = self.intake.refusal is RefusalReason.DISK_FULL
        return Claims(self.db, self.takers.known_id(name), window_ms, shift_s, is_short=is_short)

    def count_tally(self, taker: int, tally: Mapping[str, int]) -> None:
        """Add what a delivery has counted: adjustments to the counters, calls by the minute."""
        for name, count in tally.items():
            if name.startswith(ADJUSTED):
                self.accounts.add(taker, name, count)
            else:
                self.accounts.add_to_minute(taker, {name: count})

    def ask_expiry(
        self, taker: int, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> None:
        """Ask for a job that goes on with ``Settling.expire``."""
        expiry = Expiry(user, accepted_until_ms, failure)
        ask_job(self, JobKind.EXPIRE, taker, expiry, 0, who="delivery", now_ms=now_ms)


def reading_store(db: Connection) -> Store:
    """Return the tables for reading alone."""
    return Store(db, Limits())
