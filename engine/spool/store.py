"""All that is asked of a spool's tables, as plain synchronous methods.

The store runs inside somebody's transaction: ``begin``, any number of methods, ``commit`` (or
``rollback``). It has no clock and no thread of its own, so a test can walk it step by step.

Counters change in the transaction that changes the rows they count. Hence, after every commit:

    received = delivered + dropped (all reasons) + dead + pending

Beside these are ``dead:REASON``, which dead letters are made of, and ``adjusted:REASON``, values
that were changed on the way to Intercom.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure, SpoolError
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.spool.claims import Seconds
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.directory import ContactDirectory
from amplitude_intercom.engine.spool.meta import Meta
from amplitude_intercom.engine.spool.rows import (
    MOST_ROWS,
    Append,
    Appended,
    DeadLetter,
    DeadLetterPage,
    DeadLetterQuery,
    DeadRow,
    Loaded,
    Row,
    check_order,
    checksum,
    cut,
    dead_letter,
    holds,
    insert_many,
    is_counted,
    row_checksum,
)
from amplitude_intercom.engine.spool.schema import PAGE_BYTES, fold
from amplitude_intercom.engine.spool.seen import Seen
from amplitude_intercom.engine.spool.settled import SettledLines
from amplitude_intercom.engine.spool.user_state import UserState, state_of_user
from amplitude_intercom.transports.reasons import RefusalReason

GIVE_BACK_PAGES = 128
LEAST_FREE_PAGES = 2048
"""Free pages that are given back at once, and up to how many are kept for what comes."""

REFILL_LEVEL = 0.95
"""Share of the cap below which a spool that was full takes events again."""


KINDS = frozenset(map(int, Kind))
"""Kinds of records that this version knows."""


def is_settled(counter: str) -> bool:
    """Return whether a counter is one of those that settled events add up to."""
    return counter in ("delivered", "dead") or counter.startswith("dropped:")


def under(counters: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Return the counters whose names begin so, without that beginning, those of 0 left out."""
    return {
        name.removeprefix(prefix): count
        for name, count in sorted(counters.items())
        if name.startswith(prefix) and count > 0
    }


_RECORD = "id, kind, user_key, accepted_at_ms, attempts, first_failed_at_ms, claim_id, crc, raw"


class Store:
    """One spool's tables; see the module's docstring."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        max_bytes: int,
        window_ms: int,
        twin_window_ms: int = 0,
        same_second_shift_s: int = 60,
        recover: bool = True,
    ) -> None:
        """Take an open connection; ``recover``: the last process may have ended in the middle."""
        self._db = connection
        self._max_bytes = max_bytes
        self.seen = Seen(connection, window_ms)
        self.seconds = Seconds(connection, twin_window_ms, same_second_shift_s)
        self.contacts = ContactDirectory(connection)
        self.letters = DeadLetters(connection)
        self.meta = Meta(connection)
        self._counters = self._read_counters()
        self._delivered_at_ms: int | None = None
        self._deltas: Counter[str] = Counter()
        self._settled = SettledLines()
        self._full = False
        self._shut: RefusalReason | None = None
        self._room_bytes: int | None = None
        self._ids_taken = False
        if recover:
            connection.execute("BEGIN")
            self.recover()
            self._recover_reasons()
            connection.execute("COMMIT")
            self._counters = self._read_counters()
        self._next_id = self._read_next_id()

    def _read_counters(self) -> Counter[str]:
        return Counter(dict(self._db.execute("SELECT name, value FROM counters")))

    def _recover_reasons(self) -> None:
        """Count the dead letters by reason, where an earlier version has left that undone."""
        counts = [n for name, n in self._counters.items() if name.startswith("dead:")]
        if sum(counts) == self._counters["dead"] and min(counts, default=0) >= 0:
            return
        self._db.execute("DELETE FROM counters WHERE name GLOB 'dead:*'")
        self._db.execute(
            "INSERT INTO counters SELECT 'dead:' || reason, count(*) FROM dead_letters"
            " GROUP BY reason"
        )

    def recover(self) -> None:
        """Set right what the last delivery left in the middle, so that each user goes on in order.

        Users that were being worked off start over. What was loaded of a user that is aside stands
        in the queue before all that is set aside of it, and must not be overtaken by it; only rows
        behind the last reader's place are looked at. What waits behind nobody is queued again.
        """
        self._db.execute("UPDATE users_aside SET wake_at_ms = 0 WHERE wake_at_ms IS NULL")
        self._db.execute(
            "UPDATE records SET set_aside = 0"
            " WHERE set_aside = 1 AND user_key NOT IN (SELECT user_key FROM users_aside)"
        )
        overtaken = self._db.execute(
            "UPDATE records SET set_aside = 1 WHERE set_aside = 0 AND id <"
            " (SELECT max(id) FROM records INDEXED BY records_set_aside WHERE set_aside = 1)"
            " AND user_key IN (SELECT user_key FROM users_aside) RETURNING user_key, kind"
        ).fetchall()
        for user in {user for user, kind in overtaken if kind != Kind.EVENT}:
            self._hasten(user, 0)

    def close(self) -> None:
        """Close the file; SQLite folds the WAL into it."""
        self._db.close()

    # --- the disk -------------------------------------------------------------------------

    def shut_intake(self, reason: RefusalReason | None) -> None:
        """Refuse appends for this reason from now on; None: no more."""
        self._shut = reason

    def fold(self) -> None:
        """Move what the WAL holds into the file, and empty the WAL.

        Raises:
            sqlite3.Error: it cannot be done now.
        """
        if not fold(self._db):
            raise sqlite3.OperationalError("the write-ahead log is being read by somebody")

    def claim_room(self) -> None:
        """Let the file have the room that its newest pages need while they are in the WAL.

        The WAL is then written from its beginning again, and need not grow.
        """
        self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def has_much_free(self) -> bool:
        """Whether free pages should go back to the disk.

        Pages are moved for it, so it waits until more of the file is free than used, or until
        the disk has no room left.
        """
        free = self._free_pages()
        if self._shut:
            return free > 0
        return free > max(LEAST_FREE_PAGES, self.used_bytes() // PAGE_BYTES)

    def give_back(self) -> int:
        """Give some free pages back to the disk; return how many."""
        pages = min(GIVE_BACK_PAGES, self._free_pages())
        for _ in range(pages):  # Python's module stops after one, whatever number it is given
            self._db.execute("PRAGMA incremental_vacuum(1)")
        return pages

    def file_bytes(self) -> int:
        """Return the size of the file, once its log is folded into it."""
        return int(self._db.execute("PRAGMA page_count").fetchone()[0]) * PAGE_BYTES

    def _free_pages(self) -> int:
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0])

    # --- transactions ---------------------------------------------------------------------

    def begin(self) -> None:
        self._db.execute("BEGIN")
        self._room_bytes = None
        self._ids_taken = False

    def commit(self) -> None:
        """Make everything since ``begin`` durable.

        Raises:
            sqlite3.Error: nothing of it is.
        """
        if self._ids_taken:
            self.meta.set("next_id", str(self._next_id))
        if self._delivered_at_ms is not None:
            self.meta.set("delivered_at_ms", str(self._delivered_at_ms))
            self._delivered_at_ms = None
        self.seen.prune()
        if self._deltas:
            self._db.executemany(
                "INSERT INTO counters (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                list(self._deltas.items()),
            )
        full = self._full and self._is_over(REFILL_LEVEL)
        self._db.execute("COMMIT")
        self._full = full
        fresh = Counter(self._counters)
        fresh.update(self._deltas)
        self._counters = fresh  # replaced, never changed: other threads may be reading it
        self._deltas.clear()
        self._settled.write()

    def rollback(self) -> None:
        """Forget everything since ``begin``; the places that were taken stay unused.

        A disk that fails here as well is no news: the next ``begin`` fails, and so comes back here.
        """
        self._deltas.clear()
        self._settled.forget()
        self._delivered_at_ms = None
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    @property
    def counters(self) -> Counter[str]:
        """The committed counters; not to be changed."""
        return self._counters

    def used_bytes(self) -> int:
        """Return the bytes of the file that hold something."""
        return self.file_bytes() - self._free_pages() * PAGE_BYTES

    # --- places ---------------------------------------------------------------------------

    def _read_next_id(self) -> int:
        """Return a place that no record ever had: dead letters keep theirs for ever."""
        kept = self.meta.get("next_id") or ""
        (highest,) = self._db.execute(
            "SELECT max(ifnull((SELECT max(id) FROM records), 0),"
            " ifnull((SELECT max(id) FROM dead_letters), 0))"
        ).fetchone()
        return max(int(kept) if kept.isdecimal() else 1, int(highest) + 1)

    def _take_ids(self, count: int) -> int:
        first = self._next_id
        self._next_id += count
        self._ids_taken = True
        return first

    # --- intake ---------------------------------------------------------------------------

    def append(self, batches: Sequence[Append], now_ms: int) -> list[Appended | SpoolError]:
        """Append what is new of each batch, behind everything that is there.

        One that is refused, ``spool_full`` or ``disk_full``, has changed nothing.
        """
        refusals = [self._refusal(batch) for batch in batches]
        taken = [b for b, refusal in zip(batches, refusals, strict=True) if refusal is None]
        new = self.seen.new_of(taken, now_ms)
        if records := [row for rows, _ in new for row in rows]:
            self._insert_records(records, now_ms)
        for _, dead in new:
            for letter in dead:
                self._bury_unread(letter, now_ms)
        appended = iter([self._count(batch, *of) for batch, of in zip(taken, new, strict=True)])
        return [next(appended) if refusal is None else refusal for refusal in refusals]

    def _refusal(self, batch: Append) -> SpoolError | None:
        """Refuse on a full disk, or at the cap, and from then on until some room is back.

        Refusals that came and went by the batch would let a later batch overtake an earlier one.
        """
        if not batch.rows and not batch.dead:
            return None
        if self._shut:
            return SpoolError(self._shut)
        if self._room_bytes is None:  # once a transaction; it counts what it adds itself
            self._full = self._is_over(REFILL_LEVEL if self._full else 1.0)
            self._room_bytes = self._max_bytes - self.used_bytes()
        self._full = self._full or self._room_bytes <= 0
        if self._full:
            return SpoolError(
                RefusalReason.SPOOL_FULL, f"`spool.max_bytes` = {self._max_bytes} is reached"
            )
        self._room_bytes -= sum([len(row.raw) for row in batch.rows])
        self._room_bytes -= sum([len(row.raw) for row in batch.dead])
        return None

    def _count(self, batch: Append, rows: Sequence[Row], dead: Sequence[DeadRow]) -> Appended:
        duplicates = len(batch.rows) + len(batch.dead) - len(rows) - len(dead)
        self.count_only(batch)
        self._deltas["pending"] += len(rows)
        for letter in dead:
            self._count_dead(letter.reason)
        self._deltas["dropped:duplicate"] += duplicates
        if duplicates and logs.debugging():
            self._settled.duplicates(batch.rows, rows)
            self._settled.duplicates(batch.dead, dead)
        return Appended(len(rows), duplicates, len(dead))

    def _is_over(self, level: float) -> bool:
        return self.used_bytes() >= self._max_bytes * level

    @property
    def full(self) -> bool:
        """Whether appends are refused for want of room, as of the last commit."""
        return self._full

    def count_only(self, batch: Append) -> None:
        """Count a batch of which nothing is kept."""
        self._deltas["received"] += batch.received
        self._count_dropped(batch.dropped)
        self.meta.set_marks(batch.checkpoints)

    def _count_dropped(self, dropped: Counter[DropReason]) -> None:
        for reason, count in dropped.items():
            self._deltas[f"dropped:{reason}"] += count

    def _count_dead(self, reason: str, count: int = 1) -> None:
        self._deltas["dead"] += count
        self._deltas[f"dead:{reason}"] += count

    def count_adjusted(self, adjusted: Mapping[str, int]) -> None:
        """Count values that were changed on the way to Intercom, by reason."""
        for reason, count in adjusted.items():
            self._deltas[f"adjusted:{reason}"] += count

    def _insert_records(self, rows: Sequence[Row], at_ms: int, claim_id: int | None = None) -> int:
        """Insert records at the next places; return the first of these."""
        first = self._take_ids(len(rows))
        insert_many(
            self._db,
            "INSERT INTO records (id, kind, user_key, accepted_at_ms, claim_id, crc, raw)",
            7,
            [
                (
                    i,
                    int(row.kind),  # the module looks for an adapter of what is not quite an int
                    row.user_key,
                    at_ms,
                    claim_id or i,
                    row_checksum(i, row, at_ms),
                    row.raw,
                )
                for i, row in enumerate(rows, first)
            ],
        )
        return first

    def _bury_unread(self, row: DeadRow, now_ms: int) -> None:
        failure = Failure(DeadReason(row.reason), message=row.message)
        record = Record(self._take_ids(1), Kind.EVENT, row.user_key, now_ms, row.raw)
        letter = dead_letter(record, failure, now_ms)
        self.letters.insert(msgspec.structs.replace(letter, origin=row.origin, line=row.line))
        self._settled.dead_at_the_door(record.id, row)

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
        for user in self._due(now_ms, limit, halted):
            if limit_bytes <= 0:
                break  # they are still due, and woken when there is room
            found = self._probe(user)
            woken += found
            limit_bytes -= sum(len(record.raw) for record in found)
        limit -= len(woken)
        records, last_id, crowd, more = self._read_queue(
            after_id, limit, limit_bytes, per_user, crowded, now_ms
        )
        (next_wake,) = self._db.execute("SELECT min(wake_at_ms) FROM users_aside").fetchone()
        draining = [record.user_key for record in woken] + crowd
        return Loaded(woken + records, last_id, draining, next_wake, more)

    def _due(self, now_ms: int, limit: int, halted: Collection[str]) -> list[str]:
        due = self._db.execute(
            "SELECT user_key FROM users_aside WHERE wake_at_ms <= ? ORDER BY wake_at_ms LIMIT ?",
            (now_ms, limit),
        ).fetchall()
        return [user for (user,) in due if user not in halted]

    def _probe(self, user: str) -> list[Record]:
        """Wake a user with one record: its first, or the identify that makes it known.

        An event of an unknown user had its turn and was answered 404; what can help it is an
        identify that came later, so that one goes first.
        """
        self._db.execute("UPDATE users_aside SET wake_at_ms = NULL WHERE user_key = ?", (user,))
        unknown = self._db.execute(
            "SELECT TRUE FROM users_aside WHERE user_key = ? AND reason = 'user_not_found'", (user,)
        ).fetchone()
        found = self._waiting(user, 1, 1)
        if unknown and found:
            found = self._make_known(user, found)
        if not found:
            self._db.execute("DELETE FROM users_aside WHERE user_key = ?", (user,))
        return found

    def _make_known(self, user: str, head: list[Record]) -> list[Record]:
        """Return what helps an unknown user: the identify that waits, or its first event, with the
        right to create the user, where an event waits that has an update with it."""
        makers = self._waiting(user, 1, 1, f"AND kind <> {Kind.EVENT:d}")
        if not makers:
            return head
        if makers[0].kind is Kind.IDENTIFY:
            return makers
        return [msgspec.structs.replace(record, may_create=True) for record in head]

    def refill(self, user: str, limit: int, limit_bytes: int) -> list[Record]:
        """Return the next records of a user that is being worked off; none: it is free again."""
        records = self._waiting(user, limit, limit_bytes)
        if records:
            self._db.execute(
                "UPDATE users_aside SET failures = 0, reason = '' WHERE user_key = ?", (user,)
            )
        else:
            self._db.execute("DELETE FROM users_aside WHERE user_key = ?", (user,))
        return records

    def _waiting(self, user: str, limit: int, limit_bytes: int, also: str = "") -> list[Record]:
        """Return the next records of a user that is aside; none only where none is left."""
        while True:
            cursor = self._db.execute(
                f"SELECT {_RECORD} FROM records WHERE set_aside = 1 AND user_key = ? {also}"  # noqa: S608 - constants
                " ORDER BY id LIMIT ?",
                (user, limit),
            )
            rows, _ = cut(cursor, limit_bytes)
            intact = list(self._intact(rows))
            if intact or not rows:
                return intact

    def _read_queue(
        self,
        after_id: int,
        limit: int,
        limit_bytes: int,
        per_user: int,
        crowded: Collection[str],
        now_ms: int,
    ) -> tuple[list[Record], int, list[str], bool]:
        rows, more = self._next_rows(after_id, limit, limit_bytes)
        taken: list[Any] = []
        aside: list[int] = []
        loaded: Counter[str] = Counter(dict.fromkeys(crowded, per_user))
        crowd: list[str] = []
        for row in rows:
            id_, kind, user, user_aside = row[0], row[1], row[2], row[-1]
            if user_aside is not None or user in crowd:
                aside.append(id_)
                if kind != Kind.EVENT and user_aside == DeadReason.USER_NOT_FOUND:
                    self.wake(user, now_ms)
            elif loaded[user] >= per_user:
                aside.append(id_)
                crowd.append(user)
                self._set_user_aside(user, None, 0, "", now_ms)
            else:
                loaded[user] += 1
                taken.append(row)
        self.set_aside(aside)
        last_id = rows[-1][0] if rows else after_id
        return list(self._intact(taken)), last_id, crowd, more

    def _next_rows(self, after_id: int, limit: int, limit_bytes: int) -> tuple[list[Any], bool]:
        columns = ", ".join(f"r.{name}" for name in _RECORD.split(", "))
        cursor = self._db.execute(
            f"SELECT {columns}, u.reason FROM records r"  # noqa: S608 - constants
            " LEFT JOIN users_aside u ON u.user_key = r.user_key"
            " WHERE r.id > ? AND r.set_aside = 0 ORDER BY r.id LIMIT ?",
            (after_id, limit),
        )
        rows, is_cut = cut(cursor, limit_bytes)
        check_order(after_id, (row[0] for row in rows))
        return rows, is_cut or len(rows) == limit

    def _intact(self, rows: Iterable[Any]) -> Iterator[Record]:
        """Yield the records whose checksum holds; the others become dead letters."""
        for id_, kind, user, at_ms, attempts, failed_at_ms, claim_id, crc, raw, *_ in rows:
            whole = type(attempts) is type(failed_at_ms) is type(claim_id) is int
            known = kind in KINDS
            if whole and known and holds(crc, checksum, id_, kind, user, at_ms, raw):
                yield Record(id_, Kind(kind), user, at_ms, raw, attempts, failed_at_ms, claim_id)
            else:
                self._bury_corrupt(id_, user, at_ms, raw)

    def _bury_corrupt(self, id_: int, user: Any, at_ms: Any, raw: Any) -> None:
        """Bury what is left of a record: any field may be anything."""
        failure = Failure(
            DeadReason.CORRUPT, message="the checksum does not match: damaged on disk"
        )
        kept = raw if isinstance(raw, bytes) else str(raw).encode()
        at_ms = at_ms if isinstance(at_ms, int) else 0
        self._delete([id_])
        record = Record(id_, Kind.EVENT, str(user), at_ms, kept)
        self._keep(dead_letter(record, failure, at_ms))
        self._count_dead(failure.reason)
        self._settled.dead(record, failure)

    # --- settling -------------------------------------------------------------------------

    def note_delivery(self, now_ms: int) -> None:
        """Keep the time of the last delivery."""
        self._delivered_at_ms = now_ms

    def deliver(self, ids: Sequence[int]) -> None:
        """Settle records as delivered."""
        self._deltas["delivered"] += self._delete(ids)

    def drop(self, id_: int, reason: str) -> None:
        """Settle a record as dropped by a rule."""
        self._deltas[f"dropped:{reason}"] += self._delete([id_])

    def bury(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Settle a record as a dead letter, which keeps the record's place as its id."""
        if not self._delete([record.id]):
            return
        charged = msgspec.structs.replace(record, attempts=record.attempts + 1)
        self._keep(dead_letter(charged, failure, now_ms))
        self._count_dead(failure.reason)
        self._settled.dead(charged, failure)

    def _keep(self, letter: DeadLetter) -> None:
        """Keep a dead letter, under another id where damage has put its own to a second one."""
        if self.letters.has(letter.id):
            letter = msgspec.structs.replace(letter, id=self._take_ids(1))
        self.letters.insert(letter)

    def park(self, record: Record, failure: Failure, wake_at_ms: int, now_ms: int) -> None:
        """Charge a failed attempt to a record, and let its user wait until ``wake_at_ms``."""
        self._db.execute(
            "UPDATE records SET set_aside = 1, attempts = attempts + 1,"
            " first_failed_at_ms = iif(first_failed_at_ms = 0, ?, first_failed_at_ms)"
            " WHERE id = ?",
            (now_ms, record.id),
        )
        self._settled.parked(record, failure, wake_at_ms)
        self.park_user(record.user_key, failure.reason, wake_at_ms, now_ms)

    def park_user(self, user: str, reason: str, wake_at_ms: int, now_ms: int) -> None:
        """Let a user's records wait until ``wake_at_ms``; counts one failure of the user."""
        self._set_user_aside(user, wake_at_ms, 1, reason, now_ms)
        self._hasten(user, now_ms)

    def defer(self, records: Sequence[Record], until_ms: int, now_ms: int) -> None:
        """Let a user's records wait until ``until_ms``: no failure, and it forgives none."""
        self.set_aside([record.id for record in records])
        self._db.execute(
            "INSERT INTO users_aside (user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, 0, '', ?)"
            " ON CONFLICT (user_key) DO UPDATE SET wake_at_ms = excluded.wake_at_ms",
            (records[0].user_key, until_ms, now_ms),
        )

    def release(self, record: Record, now_ms: int) -> None:
        """Put back a record that was loaded before its user was parked."""
        self.set_aside([record.id])
        self._hasten(record.user_key, now_ms)

    def _hasten(self, user: str, now_ms: int) -> None:
        """Wake a user whom Intercom did not know, if an identify that makes it known waits."""
        self._db.execute(
            "UPDATE users_aside SET wake_at_ms = ?1 WHERE user_key = ?2 AND wake_at_ms > ?1"
            " AND reason = 'user_not_found' AND EXISTS (SELECT 1 FROM records"
            " WHERE set_aside = 1 AND user_key = ?2 AND kind <> ?3)",
            (now_ms, user, Kind.EVENT),
        )

    def expire(self, user: str, failure: Failure, accepted_before_ms: int, now_ms: int) -> int:
        """Bury a waiting user's events that have waited for the whole retry window."""
        rows = self._db.execute(
            f"SELECT {_RECORD} FROM records WHERE set_aside = 1 AND user_key = ?1"  # noqa: S608 - constants
            " AND accepted_at_ms <= ?2 AND kind = ?3 ORDER BY id LIMIT 1000",
            (user, accepted_before_ms, Kind.EVENT),
        ).fetchall()
        for record in self._intact(rows):
            self.bury(record, failure, now_ms)
        return len(rows)

    def failures(self, user: str) -> int:
        """Return how often in a row this user's calls have failed."""
        row = self._db.execute(
            "SELECT failures FROM users_aside WHERE user_key = ?", (user,)
        ).fetchone()
        return row[0] if row else 0

    def set_aside(self, ids: Iterable[int]) -> None:
        """Let records wait behind their user's."""
        self._db.executemany(
            "UPDATE records SET set_aside = 1 WHERE id = ?", [(id_,) for id_ in ids]
        )

    def wake(self, user: str, now_ms: int) -> None:
        """Make a parked user due; one that is being worked off stays so."""
        self._db.execute(
            "UPDATE users_aside SET wake_at_ms = ? WHERE user_key = ? AND wake_at_ms > ?",
            (now_ms, user, now_ms),
        )

    def wake_earlier(self, by_ms: int) -> None:
        """Follow a clock that was set back: parked users wait as long as they were meant to."""
        self._db.execute("UPDATE users_aside SET wake_at_ms = wake_at_ms - ?", (by_ms,))

    def _set_user_aside(
        self, user: str, wake_at_ms: int | None, failures: int, reason: str, now_ms: int
    ) -> None:
        self._db.execute(
            "INSERT INTO users_aside (user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms, reason = excluded.reason,"
            " since_ms = iif(failures = 0, excluded.since_ms, since_ms),"
            " failures = failures + excluded.failures",
            (user, wake_at_ms, failures, reason, now_ms),
        )

    def _delete(self, ids: Sequence[int]) -> int:
        deleted = 0
        for start in range(0, len(ids), MOST_ROWS):
            some = ids[start : start + MOST_ROWS]
            holes = ", ".join("?" * len(some))
            cursor = self._db.execute(f"DELETE FROM records WHERE id IN ({holes})", some)  # noqa: S608 - placeholders
            deleted += cursor.rowcount
        self._deltas["pending"] -= deleted
        return deleted

    # --- dead letters ---------------------------------------------------------------------

    def replay(self, letter: DeadLetter, row: Row) -> int:
        """Queue a dead letter again, behind all that waits, and return its new place (0: gone)."""
        if not self._exhume(letter.id):
            return 0
        first = self._insert_records([row], letter.accepted_at_ms, letter.claim_id)
        self._deltas["pending"] += 1
        return first

    def discard(self, letter: DeadLetter, reason: str = DropReason.DISCARDED) -> bool:
        """Settle a dead letter as dropped."""
        gone = self._exhume(letter.id)
        if gone:
            self._deltas[f"dropped:{reason}"] += 1
            self._settled.dropped(letter, reason)
        return gone

    def _exhume(self, id_: int) -> bool:
        reason = self.letters.remove(id_)
        if reason is None:
            return False
        self._count_dead(reason, -1)
        return True

    def dead_letter_page(self, query: DeadLetterQuery, after_id: int, limit: int) -> DeadLetterPage:
        """Return some of the dead letters that a query means, and how many there are in all."""
        found, more = self.letters.page(query, after_id, limit)
        if is_counted(query):
            name = f"dead:{query.reason}" if query.reason else "dead"
            return DeadLetterPage(found, self._counters[name], more)
        return DeadLetterPage(found, self.letters.count(query), more)

    # --- looking at it --------------------------------------------------------------------

    def recount(self) -> dict[str, int]:
        """Count the rows themselves: what ``pending`` and ``dead`` must be."""
        (pending,) = self._db.execute("SELECT count(*) FROM records").fetchone()
        (dead,) = self._db.execute("SELECT count(*) FROM dead_letters").fetchone()
        return {"pending": pending, "dead": dead}

    @property
    def dead_by_reason(self) -> dict[str, int]:
        """Return how many dead letters there are, by reason, as of the last commit."""
        return under(self._counters, "dead:")

    def users_aside(self) -> dict[str, int]:
        """Return how many users are parked, by reason."""
        return {reason: count for reason, (count, _) in self.parked_users().items()}

    def parked_users(self) -> dict[str, tuple[int, int]]:
        """Return how many users are parked by reason, and when the first of them failed first.

        One whose next try is out at this moment counts too.
        """
        rows = self._db.execute(
            "SELECT reason, count(*), min(since_ms) FROM users_aside"
            " WHERE reason <> '' GROUP BY reason"
        )
        return {reason: (count, since_ms) for reason, count, since_ms in rows}

    def parked(self) -> int:
        """Return how many records wait with a parked user. Takes a while where there are many."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM records WHERE set_aside = 1 AND user_key IN"
            " (SELECT user_key FROM users_aside WHERE wake_at_ms IS NOT NULL)"
        ).fetchone()
        return int(count)

    def user(self, user: str) -> UserState:
        """Return what is known of one user; reads a bounded part of the tables."""
        return state_of_user(self._db, user)

    def first_waiting(self, from_id: int = 0) -> tuple[int, int] | None:
        """Return id and time of acceptance of the first record that waits in the queue.

        ``from_id``: where an earlier call found it; records ahead of that are settled or aside for
        good. What waits with users that are aside is not in the queue.
        """
        row = self._db.execute(
            "SELECT id, accepted_at_ms FROM records WHERE id >= ? AND set_aside = 0"
            " ORDER BY id LIMIT 1",
            (from_id,),
        ).fetchone()
        return (row[0], row[1]) if row else None

    def first_crowded_ms(self) -> int | None:
        """Return when the first record was accepted of users that are worked off bit by bit."""
        (first_ms,) = self._db.execute(
            "SELECT min((SELECT accepted_at_ms FROM records r WHERE r.set_aside = 1"
            " AND r.user_key = u.user_key ORDER BY r.id LIMIT 1))"
            " FROM users_aside u WHERE u.reason = ''"
        ).fetchone()
        return first_ms if isinstance(first_ms, int) else None
