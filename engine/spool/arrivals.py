"""The arriving records of one taker, in the order of their ids.

Rules
=====
1. Records of unpacked batches come first: they are there after a restart, or if a batch was larger
   than the bounds. Then the inbox is unpacked, batch by batch.
2. A batch is unpacked whole, because it is one row; records beyond the bounds stay as rows.
3. Duplicates are found here, by insert key, and dropped: from pending to dropped in one commit.
4. A record goes aside if its user waits, or if its user has enough loaded records.
5. An identify of an unknown user has that user tried at once. So has a new event, if the last try
   is a minute old: people sign up.
6. A record that cannot be inserted becomes a dead letter, and costs no other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.insert_ids import key_of
from amplitude_intercom.engine.spool.load_bounds import Bounds, UserBounds
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.records import DamagedRecord, sliced
from amplitude_intercom.engine.spool.tables import Tables
from amplitude_intercom.engine.spool.unpacking import unpack

TRIED_AGAIN_AFTER_MS: Final = 60_000
"""The age of an unknown user's last try from which a new event has it tried at once (rule 5)."""


class Arrivals:
    """The arriving records of one taker, in the caller's transaction."""

    def __init__(self, tables: Tables, ends: RecordEnds) -> None:
        self._db = tables.db
        self.taker = ends.taker
        self._tables = tables
        self._ends = ends
        self._accounts = tables.accounts
        self._lines = tables.lines

    def next(
        self, after_id: int, now_ms: int, bounds: Bounds, per_user: UserBounds
    ) -> tuple[list[Record], int, bool]:
        """Return the next records after an id, the last id read, and whether more wait."""
        inbox = self._tables.inbox
        unpacked_to = self._tables.takers.unpacked_to(self.taker)
        batch: int | None = after_id // SLOTS
        # It was read to its end, so no look-up is spent on it.
        if after_id == _last_id(after_id // SLOTS):
            batch = inbox.next_id(self.taker, after_id // SLOTS)
        while batch is not None and batch <= unpacked_to:
            if rows := self._tables.records.queued(self.taker, batch, after_id, bounds.limit):
                return self._read(batch, rows, bounds, per_user, now_ms)
            batch = inbox.next_id(self.taker, batch)
        if batch is None:
            return [], max(after_id, _last_id(unpacked_to)), False
        return self.unpack(unpacked_to, bounds, per_user, now_ms)

    def _read(
        self,
        batch: int,
        rows: Sequence[Sequence[object]],
        bounds: Bounds,
        per_user: UserBounds,
        now_ms: int,
    ) -> tuple[list[Record], int, bool]:
        """Return records of an unpacked batch, up to the one that reaches the bytes."""
        found, last_id, limit_bytes = [], 0, bounds.limit_bytes
        for read in sliced(rows, self._tables.inbox.events_of(batch)):
            found.append(read)
            last_id = read.id
            # With the one that reaches the bytes, so that each load brings a record at least.
            limit_bytes -= len(read.raw)
            if limit_bytes <= 0:
                break
        # The batch is read to its end: its bytes need not stay in memory.
        if len(found) == len(rows) < bounds.limit:
            last_id = _last_id(batch)
            self._tables.inbox.close(batch)
        taken, aside = self._sort(self._ends.intact(found), per_user, now_ms)
        self._tables.records.set_aside(aside)
        return taken, last_id, True

    def unpack(
        self, unpacked_to: int, bounds: Bounds, per_user: UserBounds, now_ms: int
    ) -> tuple[list[Record], int, bool]:
        """Unpack the next batches of the inbox (rule 2)."""
        inbox = self._tables.inbox
        batches = inbox.next(self.taker, unpacked_to, bounds.limit, bounds.limit_bytes)
        found = unpack(batches)
        self._tables.takers.set_unpacked_to(self.taker, batches[-1].id)
        self._bury_damaged(found.damaged)
        rows = found.rows
        # Replayed events have no insert keys: then the table of insert ids is not touched.
        if found.keys:
            rows = self._without_duplicates(rows, found.keys)
        last_id = _last_id(batches[-1].id)
        records = [record for record, *_ in rows]
        # All of a batch is unpacked, because it is one row. Records beyond the bounds stay as rows,
        # and are the first to be read the next time.
        fit = bounds.fitting(records)
        if fit < len(records):
            last_id = records[fit - 1].id
        taken, aside = self._sort(records[:fit], per_user, now_ms)
        # After the sorting, so that each record is inserted in its final state: one write, not two.
        lost = self._insert(rows, set(aside), now_ms)
        if lost:
            taken = [record for record in taken if record.id not in lost]
        if len(rows) - len(lost) < sum(batch.count for batch in batches):
            self._ends.let_go_batches({batch.id for batch in batches})
        more = fit < len(records) or inbox.next_id(self.taker, batches[-1].id) is not None
        return taken, last_id, more

    def _insert(
        self, rows: Sequence[tuple[Record, int, int]], aside: set[int], now_ms: int
    ) -> set[int]:
        """Insert records; return the ids of those that became dead letters instead (rule 6).

        Records that cannot be inserted together are inserted one by one.
        """
        try:
            self._db.execute("SAVEPOINT inserting")
            self._tables.records.insert(self.taker, rows, aside)
            self._db.execute("RELEASE SAVEPOINT inserting")
        except Exception as fault:
            # An error of the disk or the file concerns every record: the whole transaction fails.
            if isinstance(fault, self._db.Error) and not isinstance(fault, self._db.IntegrityError):
                raise
            self._db.execute("ROLLBACK TO SAVEPOINT inserting")
            self._db.execute("RELEASE SAVEPOINT inserting")
            if len(rows) > 1:
                return {id_ for row in rows for id_ in self._insert([row], aside, now_ms)}
            record = rows[0][0]
            failure = internal_failure(fault, record=record.id)
            self._accounts.add(self.taker, "pending", -1)
            # The record's own numbers may be the cause, so the dead letter gets plain ones.
            plain = Record(record.id, Kind.EVENT, record.user_key, now_ms, record.raw)
            self._ends.keep(plain, failure, now_ms)
            return {record.id}
        return set()

    def _without_duplicates(
        self, rows: list[tuple[Record, int, int]], hashed: dict[int, bytes]
    ) -> list[tuple[Record, int, int]]:
        """Return the rows of new events; duplicates are dropped (rule 3)."""
        # The taker is a part of the key: another sync may have taken the same event.
        keys = {id_: key_of(self.taker, key) for id_, key in hashed.items()}
        at_ms = {record.id: record.accepted_at_ms for record, *_ in rows}
        new = self._tables.insert_ids.add(keys, at_ms)
        if len(new) == len(keys):
            return rows
        kept = [row for row in rows if row[0].id not in keys or row[0].id in new]
        self._accounts.add(self.taker, "pending", len(kept) - len(rows))
        self._accounts.add(self.taker, f"dropped:{DropReason.DUPLICATE}", len(rows) - len(kept))
        held = {row[0].id for row in kept}
        self._lines.duplicates(self._ends.name, (row[0] for row in rows if row[0].id not in held))
        return kept

    def _sort(
        self, records: Sequence[Record], per_user: UserBounds, now_ms: int
    ) -> tuple[list[Record], list[int]]:
        """Return the records that may go out, and the ids of those that go aside (rule 4)."""
        users = self._tables.users
        aside_users = users.waiting_of(self.taker, (record.user_key for record in records))
        taken: list[Record] = []
        aside: list[int] = []
        for record in records:
            user = record.user_key
            behind = aside_users.get(user)
            if behind is not None:
                aside.append(record.id)
                if behind.reason == DeadReason.USER_NOT_FOUND and _helps(
                    record, behind.tried_at_ms
                ):
                    users.wake(self.taker, user, now_ms)
            elif per_user.take(user):
                taken.append(record)
            else:
                aside.append(record.id)
                per_user.note_aside(user)
        # After the loop: one row a user is enough, however many of its records went aside.
        for user in per_user.worked_off:
            users.work_off(self.taker, user)
        return taken, aside

    def _bury_damaged(self, damaged: Sequence[DamagedRecord]) -> None:
        """Bury the damaged entries of packed batches; none of them ever was a record."""
        self._accounts.add(self.taker, "pending", -len(damaged))
        for damage in damaged:
            self._ends.bury_damage(damage)


def _helps(record: Record, tried_at_ms: int) -> bool:
    """Return whether a record is a reason to try an unknown user again (rule 5)."""
    if record.kind is not Kind.EVENT:
        return True
    return record.accepted_at_ms >= tried_at_ms + TRIED_AGAIN_AFTER_MS


def _last_id(batch: int) -> int:
    """Return the last id that a record of a batch may have."""
    return batch * SLOTS + SLOTS - 1
