"""One taker's records: which are delivered next.

Records are read in the order of their ids. Those of batches that are unpacked come first (after a
restart, or where a batch was more than was asked for), then the inbox is unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.spool.accounts import Accounts
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.insert_ids import key_of
from amplitude_intercom.engine.spool.records import Damage, sliced
from amplitude_intercom.engine.spool.rows import Loaded, Woken
from amplitude_intercom.engine.spool.settled import SettledLines
from amplitude_intercom.engine.spool.settling import Settling, Tables
from amplitude_intercom.engine.spool.unpacking import unpack
from amplitude_intercom.engine.spool.users import Due

MOST_STRAYS: Final = 500
"""Records that are read at once of those that wait behind nobody."""

TRIED_AGAIN_AFTER_MS: Final = 60_000
"""A new event of a user that is unknown has it tried at once, where that was not tried for so long:
people sign up."""


class Wanted(msgspec.Struct, frozen=True):
    """What is to be loaded, at most.

    ``parked``: users that were parked. ``full``: users of whom ``per_user`` are loaded. ``empty``:
    users of whom all that was loaded is done, and more is aside. ``open``: endpoints whose circuit
    is open; ``probes``: those of them for which a probe is looked for. ``reads_queue``: whether
    users that are not aside are wanted. ``set_back_ms``: by how much the wall clock was set back;
    parked users wait as long as before. ``queue_first``: what is queued comes before what is aside,
    so that neither can have all of it where that alternates.
    """

    limit: int
    limit_bytes: int
    per_user: int
    now_ms: int
    parked: int = 1 << 30
    after_id: int = 0
    full: Collection[str] = ()
    empty: Sequence[str] = ()
    open: Collection[str] = ()
    probes: Collection[str] = ()
    reads_queue: bool = True
    set_back_ms: int = 0
    queue_first: bool = False


class Queue:
    """One taker's records, inside somebody's transaction."""

    def __init__(
        self,
        db: Connection,
        tables: Tables,
        settling: Settling,
        accounts: Accounts,
        lines: SettledLines,
        name: str,
    ) -> None:
        self._db = db
        self.taker = settling.taker
        self._name = name
        self._tables = tables
        self._settling = settling
        self._accounts = accounts
        self._lines = lines
        self._open: tuple[int, bytes] = (0, b"")
        """The batch that was read last, while some of it is left to be read."""

    # --- reading for delivery -------------------------------------------------------------

    def load(self, wanted: Wanted) -> Loaded:
        """Return records to deliver next: of users that are worked off, of those that are due, and
        then of the queue.

        Records of users that are aside go aside too. A user in ``full``, or one of whom this call
        meets more than ``per_user``, is worked off from now on.
        """
        if wanted.set_back_ms:
            self._tables.users.wake_earlier(self.taker, wanted.set_back_ms)
        bounds = _Bounds(wanted.limit, wanted.limit_bytes)
        crowd = _Crowd(wanted.full, wanted.per_user)
        queued = self._read_queue(wanted, bounds, crowd) if wanted.queue_first else None
        refilled = self._refill(wanted, bounds)
        woken = self._wake(wanted, bounds)
        records, last_id, more = queued or self._read_queue(wanted, bounds, crowd)
        users = self._tables.users
        return Loaded(
            records,
            woken,
            refilled,
            last_id,
            crowd.new,
            users.next_wake_ms(self.taker, parked=False),
            users.next_wake_ms(self.taker, parked=True),
            users.awaited(self.taker),
            more,
        )

    def _refill(self, wanted: Wanted, bounds: _Bounds) -> dict[str, list[Record]]:
        """Return the next records of users that are worked off; of one that is free, none."""
        found: dict[str, list[Record]] = {}
        for user in wanted.empty:
            if bounds.are_reached:
                break
            limit = min(wanted.per_user, bounds.limit)
            found[user] = self._aside(user, limit, bounds.limit_bytes)
            bounds.take(found[user])
            if not found[user]:
                self._tables.users.free(self.taker, user)
        return found

    def _wake(self, wanted: Wanted, bounds: _Bounds) -> list[Woken]:
        """Return records of users whose time has come, or whose endpoint is well again."""
        woken: list[Woken] = []
        for due in self._due(wanted, bounds.limit):
            if bounds.are_reached:
                break  # they are still due, and woken when there are free bytes
            records = self._wake_one(due, min(wanted.per_user, bounds.limit), bounds.limit_bytes)
            bounds.take(records)
            if records:
                failing = due.failures > 0 and due.reason != DeadReason.USER_NOT_FOUND
                woken.append(Woken(due.user, records, bool(due.reason), failing))
        return woken

    def _due(self, wanted: Wanted, limit: int) -> list[Due]:
        users = self._tables.users
        found = users.due(self.taker, wanted.now_ms, limit, parked=False)
        most_parked = min(limit, wanted.parked)
        found += users.due(self.taker, wanted.now_ms, most_parked, parked=True)
        for endpoint in users.awaited(self.taker):
            if endpoint not in wanted.open:
                found += users.waiting_for(self.taker, endpoint, limit)
            elif endpoint in wanted.probes:
                found += users.waiting_for(self.taker, endpoint, 1)
        return found

    def _wake_one(self, due: Due, limit: int, limit_bytes: int) -> list[Record]:
        """Wake a user: one that waited for an endpoint with what may be loaded of it, any other
        with its first record, or the identify that makes it known.

        An event of an unknown user had its turn and was answered 404; what can help it is an
        identify that came later, so that one goes first.
        """
        self._tables.users.work_off(self.taker, due.user)
        if due.waited_for and not due.reason:
            found = self._aside(due.user, limit, limit_bytes)
        else:
            found = self._aside(due.user, 1, 1)
        if found and due.reason == DeadReason.USER_NOT_FOUND:
            found = self._make_known(due.user, found)
        if not found:
            self._tables.users.free(self.taker, due.user)
        return found

    def _make_known(self, user: str, head: list[Record]) -> list[Record]:
        """Return what helps an unknown user: the identify that waits, or its first event, with the
        right to create the user, where an event waits that has an update with it."""
        makers = self._aside(user, 1, 1, f"AND r.kind <> {Kind.EVENT:d}")
        if not makers:
            return head
        if makers[0].kind is Kind.IDENTIFY:
            return makers
        return [msgspec.structs.replace(record, may_create=True) for record in head]

    def _aside(self, user: str, limit: int, limit_bytes: int, also: str = "") -> list[Record]:
        """Return the next records of a user that is aside; none only where none is left."""
        while True:
            found = self._tables.records.aside(self.taker, user, limit, limit_bytes, also)
            intact = self._settling.intact(found)
            if intact or not found:
                return intact

    # --- the queue ------------------------------------------------------------------------

    def _read_queue(
        self, wanted: Wanted, bounds: _Bounds, crowd: _Crowd
    ) -> tuple[list[Record], int, bool]:
        if not wanted.reads_queue or bounds.are_reached:
            return [], wanted.after_id, True
        found = self._next(wanted, bounds, crowd)
        bounds.take(found[0])
        return found

    def _next(
        self, wanted: Wanted, bounds: _Bounds, crowd: _Crowd
    ) -> tuple[list[Record], int, bool]:
        """Return the next records of the queue, the last id read, and whether more wait."""
        inbox, after_id = self._tables.inbox, wanted.after_id
        unpacked_to = self._tables.takers.unpacked_to(self.taker)
        batch: int | None = after_id // SLOTS
        if after_id == _last_id(after_id // SLOTS):
            batch = inbox.next_id(self.taker, after_id // SLOTS)
        while batch is not None and batch <= unpacked_to:
            if rows := self._tables.records.queued(self.taker, batch, after_id, bounds.limit):
                return self._read(batch, rows, bounds, crowd, wanted.now_ms)
            batch = inbox.next_id(self.taker, batch)
        if batch is None:
            return [], max(after_id, _last_id(unpacked_to)), False
        return self._unpack(unpacked_to, bounds, crowd, wanted.now_ms)

    def _read(
        self,
        batch: int,
        rows: Sequence[Sequence[object]],
        bounds: _Bounds,
        crowd: _Crowd,
        now_ms: int,
    ) -> tuple[list[Record], int, bool]:
        """Return records of a batch that is unpacked, up to the one that reaches the bytes."""
        if self._open[0] != batch:
            self._open = (batch, self._tables.inbox.events_of(batch))
        found, last_id, limit_bytes = [], 0, bounds.limit_bytes
        for read in sliced(rows, self._open[1]):
            found.append(read)
            last_id = read.id
            limit_bytes -= len(read.raw)
            if limit_bytes <= 0:
                break
        if len(found) == len(rows) < bounds.limit:
            last_id, self._open = _last_id(batch), (0, b"")
        taken, aside = self._sort(self._settling.intact(found), crowd, now_ms)
        self._tables.records.set_aside(aside)
        return taken, last_id, True

    def _unpack(
        self, unpacked_to: int, bounds: _Bounds, crowd: _Crowd, now_ms: int
    ) -> tuple[list[Record], int, bool]:
        """Unpack the next batches of the inbox; what is more than the limits is left as a row."""
        inbox = self._tables.inbox
        batches = inbox.next(self.taker, unpacked_to, bounds.limit, bounds.limit_bytes)
        found = unpack(batches)
        self._tables.takers.set_unpacked_to(self.taker, batches[-1].id)
        self._bury_damaged(found.damaged)
        rows = found.rows
        if found.keys:
            rows = self._without_duplicates(rows, found.keys)
        last_id = _last_id(batches[-1].id)
        records = [record for record, *_ in rows]
        fit = bounds.fitting(records)
        if fit < len(records):
            last_id = records[fit - 1].id
        taken, aside = self._sort(records[:fit], crowd, now_ms)
        lost = self._insert(rows, set(aside), now_ms)
        if lost:
            taken = [record for record in taken if record.id not in lost]
        if len(rows) - len(lost) < sum(batch.count for batch in batches):
            self._settling.let_go_batches({batch.id for batch in batches})
        more = fit < len(records) or inbox.next_id(self.taker, batches[-1].id) is not None
        return taken, last_id, more

    def _insert(
        self, rows: Sequence[tuple[Record, int, int]], aside: set[int], now_ms: int
    ) -> set[int]:
        """Insert records; return the ids of those that cannot be, which become dead letters.

        What was not foreseen costs the one that it concerns: where they cannot be inserted
        together, each is by itself.
        """
        try:
            self._db.execute("SAVEPOINT inserting")
            self._tables.records.insert(self.taker, rows, aside)
            self._db.execute("RELEASE SAVEPOINT inserting")
        except Exception as fault:
            if isinstance(fault, self._db.Error) and not isinstance(fault, self._db.IntegrityError):
                raise
            self._db.execute("ROLLBACK TO SAVEPOINT inserting")
            self._db.execute("RELEASE SAVEPOINT inserting")
            if len(rows) > 1:
                return {id_ for row in rows for id_ in self._insert([row], aside, now_ms)}
            record = rows[0][0]
            failure = internal_failure(fault, record=record.id)
            self._accounts.add(self.taker, "pending", -1)
            plain = Record(record.id, Kind.EVENT, record.user_key, now_ms, record.raw)
            self._settling.keep(plain, failure, now_ms)  # its own numbers may be what is wrong
            return {record.id}
        return set()

    def _without_duplicates(
        self, rows: list[tuple[Record, int, int]], hashed: dict[int, bytes]
    ) -> list[tuple[Record, int, int]]:
        """Return the rows of events that were not accepted before; the others are dropped."""
        keys = {id_: key_of(self.taker, key) for id_, key in hashed.items()}
        at_ms = {record.id: record.accepted_at_ms for record, *_ in rows}
        new = self._tables.insert_ids.add(keys, at_ms)
        if len(new) == len(keys):
            return rows
        kept = [row for row in rows if row[0].id not in keys or row[0].id in new]
        self._accounts.add(self.taker, "pending", len(kept) - len(rows))
        self._accounts.add(self.taker, f"dropped:{DropReason.DUPLICATE}", len(rows) - len(kept))
        held = {row[0].id for row in kept}
        self._lines.duplicates(self._name, (row[0] for row in rows if row[0].id not in held))
        return kept

    def _sort(
        self, records: Sequence[Record], crowd: _Crowd, now_ms: int
    ) -> tuple[list[Record], list[int]]:
        """Return records that may go out, and the ids of those that wait behind their user's."""
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
            elif crowd.takes(user):
                taken.append(record)
            else:
                aside.append(record.id)
                crowd.is_aside(user)
        for user in crowd.new:
            users.work_off(self.taker, user)
        return taken, aside

    def _bury_damaged(self, damaged: Sequence[Damage]) -> None:
        """Bury what of packed batches is damaged: it never was a record."""
        self._accounts.add(self.taker, "pending", -len(damaged))
        for damage in damaged:
            self._settling.bury_damage(damage)

    # --- other work on all of them --------------------------------------------------------

    def find_strays(self) -> None:
        """Let a user be due whose records wait behind nobody: its row was damaged, or they were."""
        while found := self._tables.records.strays(self.taker, MOST_STRAYS):
            users = [record.user_key for record in self._settling.intact(found)]
            for user in dict.fromkeys(users):
                self._tables.users.defer(self.taker, user, 0)

    def take_out(self, limit: int) -> list[Record]:
        """Take the first records away, those of the inbox last; the caller accounts for them.

        None only where none is left.
        """
        while True:
            found = self._tables.records.first(self.taker, limit)
            if records := self._settling.intact(found):
                self._settling.delete([record.id for record in records])
                return records
            if found:
                continue  # all of them were damaged, and are dead letters now
            unpacked_to = self._tables.takers.unpacked_to(self.taker)
            if self._tables.inbox.next_id(self.taker, unpacked_to) is None:
                self._tables.users.free_all(self.taker)
                return []
            self._unpack(unpacked_to, _Bounds(limit, 1 << 24), _Crowd((), limit), 0)

    def rekey(self, after_id: int, limit: int, user_of: Callable[[bytes], str]) -> tuple[int, int]:
        """Give records behind an id to the users that their events name, who are due then.

        Returns the last id that was looked at, and how many there were.
        """
        found = self._tables.records.first(self.taker, limit, after_id)
        users: dict[str, None] = {}
        for record in self._settling.intact(found):
            users[user := user_of(record.raw)] = None
            self._tables.records.rekey(record, user)
        for user in users:
            self._tables.users.defer(self.taker, user, 0)
        return (found[-1].id, len(found)) if found else (after_id, 0)


class _Bounds:
    """How much may still be loaded: records, and bytes."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes

    @property
    def are_reached(self) -> bool:
        return self.limit <= 0 or self.limit_bytes <= 0

    def take(self, records: Sequence[Record]) -> None:
        self.limit -= len(records)
        self.limit_bytes -= sum(len(record.raw) for record in records)

    def fitting(self, records: Sequence[Record]) -> int:
        """Return how many records fit, the one that reaches the bytes included."""
        left = self.limit_bytes
        for count, record in enumerate(records[: self.limit], start=1):
            left -= len(record.raw)
            if left <= 0:
                return count
        return min(len(records), self.limit)


class _Crowd:
    """How many records of each user may still be loaded; ``new``: those of whom there are more."""

    def __init__(self, full: Collection[str], per_user: int) -> None:
        self._loaded = Counter(dict.fromkeys(full, per_user))
        self._per_user = per_user
        self.new: dict[str, None] = {}

    def takes(self, user: str) -> bool:
        """Count one more record of a user; False: it has too many, and is to be worked off."""
        if user in self.new or self._loaded[user] >= self._per_user:
            return False
        self._loaded[user] += 1
        return True

    def is_aside(self, user: str) -> None:
        """Take in that a record of a user went aside for that."""
        self.new[user] = None


def _helps(record: Record, tried_at_ms: int) -> bool:
    """Return whether a record is a reason to try a user again that Intercom does not know."""
    if record.kind is not Kind.EVENT:
        return True
    return record.accepted_at_ms >= tried_at_ms + TRIED_AGAIN_AFTER_MS


def _last_id(batch: int) -> int:
    """Return the id behind which nothing of a batch is left to be read."""
    return batch * SLOTS + SLOTS - 1
