"""One taker's records: which are delivered next, and how they are settled.

Records are read in the order of their ids. Those of batches that are unpacked come first (after a
restart, or where a batch was more than was asked for), then the inbox is unpacked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.spool.accounts import INBOX, TAKEN_ALONG, Accounts
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.inbox import Inbox
from amplitude_intercom.engine.spool.insert_ids import InsertIds, key_of
from amplitude_intercom.engine.spool.records import Damage, Records, sliced
from amplitude_intercom.engine.spool.rows import Loaded, dead_letter
from amplitude_intercom.engine.spool.settled import SettledLines
from amplitude_intercom.engine.spool.takers import Takers
from amplitude_intercom.engine.spool.unpacking import unpack
from amplitude_intercom.engine.spool.users import Users

DAMAGED = "the checksum does not match: damaged on disk"


class Tables(msgspec.Struct, frozen=True):
    """The tables that a queue moves its records between."""

    takers: Takers
    inbox: Inbox
    records: Records
    users: Users
    insert_ids: InsertIds
    letters: DeadLetters


class Queue:
    """One taker's records, inside somebody's transaction."""

    def __init__(
        self,
        db: Connection,
        taker: int,
        name: str,
        tables: Tables,
        accounts: Accounts,
        lines: SettledLines,
    ) -> None:
        self._db = db
        self.taker = taker
        self._name = name
        self._takers = tables.takers
        self._inbox = tables.inbox
        self._records = tables.records
        self._users = tables.users
        self._insert_ids = tables.insert_ids
        self._letters = tables.letters
        self._accounts = accounts
        self._lines = lines
        self._open: tuple[int, bytes] = (0, b"")
        """The batch that was read last, while some of it is left to be read."""

    # --- reading for delivery -------------------------------------------------------------

    def load(
        self,
        after_id: int,
        *,
        limit: int,
        limit_bytes: int,
        per_user: int,
        crowded: Collection[str],
        halted: Collection[str],
        now_ms: int,
    ) -> Loaded:
        """Return records to deliver next: one of each parked user that is due, then the queue.

        Records of users that are set aside go aside too. A user in ``crowded``, or one of whom
        this call meets more than ``per_user``, is set aside to be worked off with ``refill``.
        ``halted`` users are not woken: some of their records are still on their way back.
        """
        woken: list[Record] = []
        for user, reason in self._users.due(self.taker, now_ms, limit):
            if limit_bytes <= 0:
                break  # they are still due, and woken when there are free bytes
            if user not in halted:
                found = self._probe(user, reason)
                woken += found
                limit_bytes -= sum(len(record.raw) for record in found)
        limit -= len(woken)
        crowd = _Crowd(crowded, per_user)
        records: list[Record] = []
        last_id, more = after_id, True
        if limit > 0 and limit_bytes > 0:
            records, last_id, more = self._next(after_id, limit, limit_bytes, crowd, now_ms)
        draining = [record.user_key for record in woken] + crowd.new
        next_wake_ms = self._users.next_wake_ms(self.taker, halted)
        return Loaded(woken + records, last_id, draining, next_wake_ms, more)

    def _probe(self, user: str, reason: str) -> list[Record]:
        """Wake a user with one record: its first, or the identify that makes it known.

        An event of an unknown user had its turn and was answered 404; what can help it is an
        identify that came later, so that one goes first.
        """
        self._users.work_off(self.taker, user)
        found = self._aside(user, 1, 1)
        if found and reason == DeadReason.USER_NOT_FOUND:
            found = self._make_known(user, found)
        if not found:
            self._users.free(self.taker, user)
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

    def refill(self, user: str, limit: int, limit_bytes: int) -> list[Record]:
        """Return the next records of a user that is being worked off; none: it is free again."""
        records = self._aside(user, limit, limit_bytes)
        if records:
            self._users.forgive(self.taker, user)
        else:
            self._users.free(self.taker, user)
        return records

    def _aside(self, user: str, limit: int, limit_bytes: int, also: str = "") -> list[Record]:
        """Return the next records of a user that is aside; none only where none is left."""
        while True:
            found = self._records.aside(self.taker, user, limit, limit_bytes, also)
            intact = self._intact(found)
            if intact or not found:
                return intact

    def _next(
        self, after_id: int, limit: int, limit_bytes: int, crowd: _Crowd, now_ms: int
    ) -> tuple[list[Record], int, bool]:
        """Return the next records of the queue, the last id read, and whether more wait."""
        unpacked_to = self._takers.unpacked_to(self.taker)
        batch: int | None = after_id // SLOTS
        if after_id == _last_id(after_id // SLOTS):
            batch = self._inbox.next_id(self.taker, after_id // SLOTS)
        while batch is not None and batch <= unpacked_to:
            if rows := self._records.queued(self.taker, batch, after_id, limit):
                return self._read(batch, rows, limit, limit_bytes, crowd, now_ms)
            batch = self._inbox.next_id(self.taker, batch)
        if batch is None:
            return [], max(after_id, _last_id(unpacked_to)), False
        return self._unpack(unpacked_to, limit, limit_bytes, crowd, now_ms)

    def _read(
        self,
        batch: int,
        rows: Sequence[Sequence[object]],
        limit: int,
        limit_bytes: int,
        crowd: _Crowd,
        now_ms: int,
    ) -> tuple[list[Record], int, bool]:
        """Return records of a batch that is unpacked, up to the one that reaches the bytes."""
        if self._open[0] != batch:
            self._open = (batch, self._inbox.events_of(batch))
        found, last_id = [], 0
        for read in sliced(rows, self._open[1]):
            found.append(read)
            last_id = read.id
            limit_bytes -= len(read.raw)
            if limit_bytes <= 0:
                break
        if len(found) == len(rows) < limit:
            last_id, self._open = _last_id(batch), (0, b"")
        taken, aside = self._sort(self._intact(found), crowd, now_ms)
        self._records.set_aside(aside)
        return taken, last_id, True

    def _unpack(
        self, unpacked_to: int, limit: int, limit_bytes: int, crowd: _Crowd, now_ms: int
    ) -> tuple[list[Record], int, bool]:
        """Unpack the next batches of the inbox; what is more than the limits is left as a row."""
        batches = self._inbox.next(self.taker, unpacked_to, limit, limit_bytes)
        found = unpack(batches)
        self._takers.set_unpacked_to(self.taker, batches[-1].id)
        self._bury_damaged(found.damaged)
        rows = found.rows
        if found.keys:
            rows = self._without_duplicates(rows, found.keys)
        last_id = _last_id(batches[-1].id)
        records = [record for record, *_ in rows]
        fit = _fitting(records, limit, limit_bytes)
        if fit < len(records):
            last_id = records[fit - 1].id
        taken, aside = self._sort(records[:fit], crowd, now_ms)
        lost = self._insert(rows, set(aside), now_ms)
        if lost:
            taken = [record for record in taken if record.id not in lost]
        if len(rows) - len(lost) < sum(batch.count for batch in batches):
            self._let_go_batches({batch.id for batch in batches})
        more = fit < len(records) or self._inbox.next_id(self.taker, batches[-1].id) is not None
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
            self._records.insert(self.taker, rows, aside)
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
            self._keep(plain, failure, now_ms)  # its own numbers may be what is wrong
            return {record.id}
        return set()

    def _without_duplicates(
        self, rows: list[tuple[Record, int, int]], hashed: dict[int, bytes]
    ) -> list[tuple[Record, int, int]]:
        """Return the rows of events that were not accepted before; the others are dropped."""
        keys = {id_: key_of(self.taker, key) for id_, key in hashed.items()}
        at_ms = {record.id: record.accepted_at_ms for record, *_ in rows}
        new = self._insert_ids.add(keys, at_ms)
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
        aside_users = self._users.waiting_of(self.taker, (r.user_key for r in records))
        taken: list[Record] = []
        aside: list[int] = []
        for record in records:
            user = record.user_key
            reason = aside_users.get(user)
            if reason is None and not crowd.takes(user):
                reason = aside_users[user] = ""
                self._users.set_aside(self.taker, user, None, 0, "", now_ms)
            if reason is None:
                taken.append(record)
                continue
            aside.append(record.id)
            if record.kind != Kind.EVENT and reason == DeadReason.USER_NOT_FOUND:
                self._users.wake(self.taker, user, now_ms)
        return taken, aside

    def _intact(self, found: Iterable[Record | Damage]) -> list[Record]:
        """Return the records whose checksum holds; the others become dead letters."""
        intact = []
        for read in found:
            if isinstance(read, Record):
                intact.append(read)
            else:
                self._delete([read.id])
                self._bury_damage(read)
        return intact

    def _bury_damaged(self, damaged: Sequence[Damage]) -> None:
        """Bury what of packed batches is damaged: it never was a record."""
        self._accounts.add(self.taker, "pending", -len(damaged))
        for damage in damaged:
            self._bury_damage(damage)

    def _bury_damage(self, damage: Damage) -> None:
        failure = Failure(DeadReason.CORRUPT, message=DAMAGED)
        record = Record(damage.id, Kind.EVENT, damage.user, damage.at_ms, damage.raw)
        self._keep(record, failure, damage.at_ms)

    def find_strays(self) -> None:
        """Let a user be due whose records wait behind nobody: its row was damaged, or they were."""
        while found := self._records.strays(self.taker, MOST_STRAYS):
            users = [record.user_key for record in self._intact(found)]
            for user in dict.fromkeys(users):
                self._users.set_aside(self.taker, user, 0, 0, "", 0)

    # --- settling -------------------------------------------------------------------------

    def deliver(self, ids: Sequence[int], now_ms: int) -> None:
        """Settle records as delivered."""
        delivered = self._delete(ids)
        self._accounts.add(self.taker, "delivered", delivered)
        self._takers.note_delivery(self.taker, now_ms)

    def drop(self, ids: Sequence[int], reason: str) -> None:
        """Settle records as dropped by a rule."""
        self._accounts.add(self.taker, f"dropped:{reason}", self._delete(ids))

    def bury(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Settle a record as a dead letter, which keeps the record's id."""
        if self._delete([record.id]):
            charged = msgspec.structs.replace(record, attempts=record.attempts + 1)
            self._keep(charged, failure, now_ms)

    def _keep(self, record: Record, failure: Failure, now_ms: int) -> None:
        letter = dead_letter(record, failure, now_ms)
        if self._letters.has(letter.id):  # damage has given its id to a second one
            letter = msgspec.structs.replace(letter, id=self._accounts.take_batches(1) * SLOTS)
        self._letters.insert(self.taker, letter)
        self._accounts.count_dead(self.taker, failure.reason, 1)
        self._lines.dead(self._name, record, failure)

    def _delete(self, ids: Sequence[int]) -> int:
        """Delete records, and their batches where these were the last of them."""
        if self._accounts.value(self.taker, TAKEN_ALONG):
            self._accounts.resize(self.taker, TAKEN_ALONG, -self._records.own_bytes(ids))
        deleted = self._records.delete(ids)
        self._accounts.add(self.taker, "pending", -deleted)
        self._let_go_batches({id_ // SLOTS for id_ in ids})
        return deleted

    def _let_go_batches(self, batches: Iterable[int]) -> None:
        for taker, size_bytes in self._inbox.let_go(batches):
            self._accounts.resize(taker, INBOX, -size_bytes)

    def take_out(self, limit: int) -> list[Record]:
        """Take the first records away, those of the inbox last; the caller accounts for them.

        None only where none is left.
        """
        while True:
            found = self._records.first(self.taker, limit)
            if records := self._intact(found):
                self._delete([record.id for record in records])
                return records
            if found:
                continue  # all of them were damaged, and are dead letters now
            unpacked_to = self._takers.unpacked_to(self.taker)
            if self._inbox.next_id(self.taker, unpacked_to) is None:
                self._users.free_all(self.taker)
                return []
            self._unpack(unpacked_to, limit, 1 << 24, _Crowd((), limit), 0)

    def rekey(self, after_id: int, limit: int, user_of: Callable[[bytes], str]) -> tuple[int, int]:
        """Give records behind an id to the users that their events name, who are due then.

        Returns the last id that was looked at, and how many there were.
        """
        found = self._records.first(self.taker, limit, after_id)
        users: dict[str, None] = {}
        for record in self._intact(found):
            users[user := user_of(record.raw)] = None
            self._records.rekey(record, user)
        for user in users:
            self._users.set_aside(self.taker, user, 0, 0, "", 0)
        return (found[-1].id, len(found)) if found else (after_id, 0)

    # --- waiting --------------------------------------------------------------------------

    def park(self, record: Record, failure: Failure, wake_at_ms: int, now_ms: int) -> None:
        """Charge a failed attempt to a record, and let its user wait until ``wake_at_ms``."""
        self._records.charge(record.id, now_ms)
        self._lines.parked(self._name, record, failure, wake_at_ms)
        self.park_user(record.user_key, failure.reason, wake_at_ms, now_ms)

    def park_user(self, user: str, reason: str, wake_at_ms: int, now_ms: int) -> None:
        """Let a user's records wait until ``wake_at_ms``; counts one failure of the user."""
        self._users.set_aside(self.taker, user, wake_at_ms, 1, reason, now_ms)
        self._users.hasten(self.taker, user, now_ms)

    def defer(self, records: Sequence[Record], until_ms: int, now_ms: int) -> None:
        """Let a user's records wait until ``until_ms``: no failure, and it forgives none."""
        self._records.set_aside(record.id for record in records)
        self._users.defer(self.taker, records[0].user_key, until_ms, now_ms)

    def release(self, record: Record, now_ms: int) -> None:
        """Put back a record that was loaded before its user was parked."""
        self._records.set_aside([record.id])
        self._users.hasten(self.taker, record.user_key, now_ms)

    def expire(
        self, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> tuple[int, bool]:
        """Bury some of a user's events that have waited for the whole retry window.

        None where the user is not parked for that reason: then some of them may be under way.
        Returns how many there were, and whether more of them are left.
        """
        if not self._users.is_parked(self.taker, user, failure.reason):
            return 0, False
        also = f"AND r.kind = {Kind.EVENT:d} AND r.accepted_at_ms <= {accepted_until_ms:d}"
        found = self._records.aside(self.taker, user, MOST_EXPIRED, 1 << 24, also)
        for record in self._intact(found):
            self.bury(record, failure, now_ms)
        return len(found), bool(self._records.aside(self.taker, user, 1, 1, also))

    def failures(self, user: str) -> int:
        """Return how often in a row this user's calls have failed."""
        return self._users.failures(self.taker, user)

    def wake_earlier(self, by_ms: int) -> None:
        """Follow a clock that was set back: parked users wait as long as they were meant to."""
        self._users.wake_earlier(self.taker, by_ms)


MOST_STRAYS = 500
"""Records that are read at once of those that wait behind nobody."""

MOST_EXPIRED = 500
"""Records of one user that one transaction buries."""


class _Crowd:
    """How many records of each user may still be loaded; ``new``: those of whom there are more."""

    def __init__(self, crowded: Collection[str], per_user: int) -> None:
        self._loaded = Counter(dict.fromkeys(crowded, per_user))
        self._per_user = per_user
        self.new: list[str] = []

    def takes(self, user: str) -> bool:
        """Count one more record of a user; False: it has too many, and is to be worked off."""
        if self._loaded[user] >= self._per_user:
            self.new.append(user)
            return False
        self._loaded[user] += 1
        return True


def _last_id(batch: int) -> int:
    """Return the id behind which nothing of a batch is left to be read."""
    return batch * SLOTS + SLOTS - 1


def _fitting(records: Sequence[Record], limit: int, limit_bytes: int) -> int:
    """Return how many records fit the limits, the one that reaches the bytes included."""
    for count, record in enumerate(records[:limit], start=1):
        limit_bytes -= len(record.raw)
        if limit_bytes <= 0:
            return count
    return min(len(records), limit)
