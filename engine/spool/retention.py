"""Retention: each kind of memory is forgotten by a rule of its own, in slices, on a timer.

    insert ids    outlived after ``dedupe_window_s``; beyond their bytes the oldest go
    dead letters  after ``dead_letters_days``; beyond their bytes the oldest go; counted as dropped
    contacts      beyond their number the least recently used go
    claims        outlived after ``same_second_window_s``, unless their event may still be sent
    minutes       become hours after two days; hours go after 90
    batches       unpacked ones go, after records set aside have taken their bytes along

A kind that fails is skipped until the next time. None of this can close intake. A clock that was
ahead of time does no harm: its stamps are made younger, so those rows are forgotten one window from
now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool import letter_ends
from amplitude_intercom.engine.spool.accounts import (
    CONTACTS,
    INBOX,
    INSERT_IDS,
    MINUTE_MS,
    SPOOL,
    TAKEN_ALONG,
)
from amplitude_intercom.engine.spool.claims import forget_outlived
from amplitude_intercom.engine.spool.insert_ids import ROW_BYTES
from amplitude_intercom.engine.spool.tables import Tables

SLICE: Final = 500
"""Rows that one transaction forgets, which bounds the wait of other transactions."""

HOUR: Final = 60
MINUTES_KEPT: Final = 48 * HOUR
HOURS_KEPT: Final = 90 * 24 * HOUR
DAY_MS: Final = 86_400_000


Do = Callable[[Callable[[Tables], bool]], Awaitable[bool]]
"""Does work in a transaction; returns its result after the commit."""


class Retention(msgspec.Struct, frozen=True):
    """The bounds of each kind of memory, in time and size."""

    window_ms: int
    insert_ids_max_bytes: int
    dead_letters_max_age_ms: int
    dead_letters_max_bytes: int
    max_contacts: int
    claims_window_ms: int


def retention_of(settings: Settings) -> Retention:
    """Return the retention of a spool, from the settings."""
    spool = settings.spool
    windows_s = [sync.delivery.same_second_window_s for sync in settings.sync]
    return Retention(
        window_ms=int(spool.dedupe_window_s * 1000),
        insert_ids_max_bytes=spool.dedupe_max_bytes,
        dead_letters_max_age_ms=int(spool.dead_letters_days * DAY_MS),
        dead_letters_max_bytes=spool.dead_letters_max_bytes,
        max_contacts=spool.max_contacts,
        claims_window_ms=int(max(windows_s, default=0.0) * 1000),
    )


class Tidying:
    """Forgets slice by slice. Each call of ``slice`` runs in one transaction of the caller's."""

    def __init__(self, retention: Retention) -> None:
        self._keep = retention
        self._claims_to = 0
        self._claim_slices = 0
        self._unpacked_before: Mapping[int, int] = {}
        self._left = self._duties()

    def follow(self, retention: Retention) -> None:
        """Keep by newer settings from the next slice on."""
        self._keep = retention

    def _duties(self) -> list[Callable[[Tables, int], bool]]:
        return [
            self._insert_ids,
            self._dead_letters,
            self._contacts,
            self._claims,
            self._minutes,
            self._hours,
            self._batches,
        ]

    def slice(self, tables: Tables, now_ms: int) -> bool:
        """Forget one slice; return False when all kinds are done for this time."""
        return True if self._left[0](tables, now_ms) else self.skip()

    @property
    def kind(self) -> str:
        """The kind that is being forgotten."""
        return self._left[0].__name__.strip("_")

    def skip(self) -> bool:
        """Go on with the next kind; return False after the last one."""
        _, *later = self._left
        self._left = later or self._duties()
        return bool(later)

    def _insert_ids(self, tables: Tables, now_ms: int) -> bool:
        excess = tables.accounts.value(SPOOL, INSERT_IDS)
        excess -= self._keep.insert_ids_max_bytes // ROW_BYTES
        if excess > 0:
            return tables.insert_ids.forget_first(min(SLICE, excess)) == SLICE
        cutoff_ms = min(now_ms, tables.oldest_packed_ms() or now_ms) - self._keep.window_ms
        return tables.insert_ids.forget_oldest(SLICE, cutoff_ms, now_ms) == SLICE

    def _dead_letters(self, tables: Tables, now_ms: int) -> bool:
        excess = tables.dead_bytes() - self._keep.dead_letters_max_bytes
        if excess <= 0:
            return self._old_letters(tables, now_ms)
        gone: dict[int, list[int]] = {}
        for taker, id_, size_bytes in tables.letters.oldest(SLICE):
            if excess > 0:
                gone.setdefault(taker, []).append(id_)
                excess -= size_bytes
        for taker, ids in gone.items():
            letter_ends.forget(tables, taker, ids, DropReason.EXPIRED_LETTER)
        return bool(gone)

    def _old_letters(self, tables: Tables, now_ms: int) -> bool:
        """Forget letters beyond their age, of the first taker with such letters.

        Letters stamped by a clock ahead of time are made younger.
        """
        cutoff_ms = now_ms - self._keep.dead_letters_max_age_ms
        left = SLICE
        for taker in tables.takers.all():
            ids = tables.letters.failed_until(taker.id, cutoff_ms, SLICE)
            if ids and letter_ends.forget(tables, taker.id, ids, DropReason.EXPIRED_LETTER):
                return True  # not for damaged letters, which the index finds and which stay
            left -= tables.letters.make_younger(taker.id, now_ms, left)
            if left <= 0:
                return True
        return False

    def _contacts(self, tables: Tables, now_ms: int) -> bool:
        tables.contacts.make_older(now_ms)
        excess = tables.accounts.value(SPOOL, CONTACTS) - self._keep.max_contacts
        return excess > 0 and tables.contacts.forget_unused(min(SLICE, excess), now_ms) == SLICE

    def _claims(self, tables: Tables, now_ms: int) -> bool:
        cutoff_ms = min(now_ms, tables.oldest_packed_ms() or now_ms) - self._keep.claims_window_ms
        self._claims_to, _ = forget_outlived(tables.db, self._claims_to, SLICE, cutoff_ms, now_ms)
        self._claim_slices = (self._claim_slices + 1) % CLAIM_SLICES
        return self._claims_to > 0 and self._claim_slices > 0

    def _minutes(self, tables: Tables, now_ms: int) -> bool:
        return tables.accounts.make_hours(now_ms // MINUTE_MS - MINUTES_KEPT, SLICE) == SLICE

    def _hours(self, tables: Tables, now_ms: int) -> bool:
        return tables.accounts.forget_hours(now_ms // MINUTE_MS - HOURS_KEPT, SLICE) == SLICE

    def _batches(self, tables: Tables, now_ms: int) -> bool:
        """Have records set aside take their bytes along, from batches unpacked a while ago."""
        moved = 0
        takers = tables.takers.all()
        for taker in takers:
            if moved < SLICE and tables.users.any(taker.id):
                before = self._unpacked_before.get(taker.id, 0)
                moved += take_along(tables, taker.id, before, SLICE - moved)
        if moved < SLICE:
            self._unpacked_before = {taker.id: taker.unpacked_to for taker in takers}
        return moved == SLICE


class RetentionRounds:
    """Rounds over all kinds of memory, each slice in a transaction of its own."""

    def __init__(self, retention: Retention, do: Do, now_ms: Callable[[], int]) -> None:
        """``do``: does work in a transaction, as ``Spool.do``."""
        self._tidying = Tidying(retention)
        self._do = do
        self._now_ms = now_ms

    def follow(self, retention: Retention) -> None:
        """Keep by newer settings from the next slice on."""
        self._tidying.follow(retention)

    async def go_on(self, *, is_failing: Callable[[], bool]) -> bool:
        """Forget one slice; return False at the end of the round.

        ``is_failing``: returns whether the disk fails, for every kind of row.
        """
        try:
            return await self._do(lambda tables: self._tidying.slice(tables, self._now_ms()))
        except Exception as fault:
            if is_failing():
                return False
            # A fault in one kind of row must not keep retention from all others.
            internal_failure(fault, forgetting=self._tidying.kind)
            return self._tidying.skip()


def take_along(tables: Tables, taker: int, up_to: int, limit: int) -> int:
    """Have up to ``limit`` records set aside take their bytes along; return their number.

    ``up_to`` is the last batch to read. A batch without pointing records is deleted.
    """
    moved = 0
    for batch in tables.inbox.ids(taker, up_to, BATCHES):
        rows: Sequence[tuple[int, bytes]] = tables.records.pointing_aside(batch, limit - moved)
        for id_, raw in rows:
            tables.records.take_along(id_, raw)
            tables.accounts.resize(taker, TAKEN_ALONG, len(raw))
        moved += len(rows)
        for holder, size_bytes in tables.inbox.let_go([batch]) if rows else ():
            tables.accounts.resize(holder, INBOX, -size_bytes)
        if moved >= limit:
            break
    return moved


CLAIM_SLICES: Final = 40
"""Slices of claims that are examined each time: those of a day are examined within hours."""

BATCHES: Final = 200
"""Batches of one taker that are read at a time."""
