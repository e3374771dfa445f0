"""One spool's tables in somebody's transaction: ``begin``, any number of methods, ``commit``.

The tables are told apart by subject (``inbox``, ``records``, ``users``, ``dead_letters``, …); here
is what concerns several of them at once. There is no thread, so a test can walk it step by step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import DeadReason, DropReason, Failure
from amplitude_intercom.engine.spool import fullness
from amplitude_intercom.engine.spool.accounts import (
    DEAD,
    INBOX,
    SPOOL,
    Accounts,
    under,
)
from amplitude_intercom.engine.spool.arrivals import Arrivals
from amplitude_intercom.engine.spool.batches import SLOTS, Kept, Pack, entry_of, packs
from amplitude_intercom.engine.spool.claims import Claims, renew
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.directory import ContactDirectory
from amplitude_intercom.engine.spool.inbox import Inbox
from amplitude_intercom.engine.spool.insert_ids import InsertIds, key_of
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind, JobRow, Jobs, NewMapping
from amplitude_intercom.engine.spool.meta import Checkpoints, EventNamesTable, Meta, Workspaces
from amplitude_intercom.engine.spool.queue import Queue
from amplitude_intercom.engine.spool.records import Records
from amplitude_intercom.engine.spool.relayed import RelayedRequests
from amplitude_intercom.engine.spool.relaying import Relaying
from amplitude_intercom.engine.spool.requests import Relayed
from amplitude_intercom.engine.spool.rows import (
    Append,
    Appended,
    DeadLetter,
    DeadLetterPage,
    DeadLetterQuery,
    DeadRow,
    Part,
    Position,
    dead_letter,
    is_counted,
)
from amplitude_intercom.engine.spool.settled import SettledLines
from amplitude_intercom.engine.spool.settling import Settling, Tables
from amplitude_intercom.engine.spool.takers import Takers, spoken
from amplitude_intercom.engine.spool.users import Users
from amplitude_intercom.transports.reasons import RefusalReason

MINUTE_MS: Final = 60_000
INSERT_IDS: Final = "insert_ids"
CONTACTS: Final = "contacts"


def wall_clock_ms() -> int:
    """Return Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Limits(msgspec.Struct, frozen=True):
    """What a store needs of the settings. ``claims``: by taker, window (ms) and shift (s)."""

    max_bytes: int = 1 << 40
    window_ms: int = 0
    claims: Mapping[str, tuple[int, int]] = {}
    longest_wait_ms: int = 1 << 40
    """How long a user is parked or deferred at most."""


NO_CLAIMS: Final = (0, 60)


class Store:
    """One spool's tables; see the module's docstring."""

    def __init__(
        self,
        db: Connection,
        limits: Limits,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.db = db
        self.queue_type, self.settling_type = Queue, Settling  # a test's may fail
        self._limits = limits
        self._now_ms = now_ms
        self.takers = Takers(db)
        self.inbox = Inbox(db)
        self.records = Records(db)
        self.users = Users(db)
        self.letters = DeadLetters(db)
        self.insert_ids = InsertIds(db, limits.window_ms)
        self.contacts = ContactDirectory(db)
        self.event_names = EventNamesTable(db)
        self.workspaces = Workspaces(db)
        self.checkpoints = Checkpoints(db)
        self.jobs = Jobs(db)
        self.meta = Meta(db)
        self.relayed = RelayedRequests(db)
        self.accounts = Accounts(db)
        self._lines = SettledLines()
        self.relaying = Relaying(
            self.relayed, self.letters, self.takers, self.accounts, self._lines
        )
        self._fullness = fullness.Fullness(limits.max_bytes)
        self._shut: RefusalReason | None = None
        self._counting_to = 0
        self.counted_to = 0
        """The last of those batches that are only counted that is in the counters."""
        self._tables = Tables(
            self.takers, self.inbox, self.records, self.users, self.insert_ids, self.letters
        )
        self._queues: dict[int, Queue] = {}
        self._settlings: dict[int, Settling] = {}
        self._ids: dict[str, int] = {taker.name: taker.id for taker in self.takers.all()}

    # --- transactions ---------------------------------------------------------------------

    def begin(self) -> None:
        self.db.execute("BEGIN")

    def commit(self) -> None:
        """Make everything since ``begin`` durable.

        Raises:
            Exception: nothing of it is; as the database says it.
        """
        for settling in self._settlings.values():
            settling.let_go_emptied()
        self.takers.write_deliveries()
        self._count_sizes()
        self.accounts.write(self._now_ms() // MINUTE_MS)
        self.db.execute("COMMIT")
        self.accounts.commit()
        self.counted_to = self._counting_to
        self._fullness.look(self._ids.values(), self.accounts)
        self._lines.write()

    def _count_sizes(self) -> None:
        for taker, by in self.letters.bytes_added.items():
            self.accounts.add(taker, DEAD, by)
        self.letters.bytes_added.clear()
        self.accounts.add(SPOOL, INSERT_IDS, self.insert_ids.added)
        self.accounts.add(SPOOL, CONTACTS, self.contacts.added)
        self.insert_ids.added = self.contacts.added = 0

    def rollback(self) -> None:
        """Forget everything since ``begin``.

        A disk that fails here as well is nothing new: the next ``begin`` fails, and so comes back.
        """
        self.accounts.rollback()
        self.takers.forget_deliveries()
        self._counting_to = self.counted_to
        self.letters.bytes_added.clear()
        self.insert_ids.added = self.contacts.added = 0
        self._lines.forget()
        self._settlings.clear()
        self._queues.clear()  # what they have read may be of a batch that never was
        self._ids = {}
        with suppress(Exception):
            self.db.execute("ROLLBACK")
        with suppress(Exception):
            self._ids = {taker.name: taker.id for taker in self.takers.all()}

    def close(self) -> None:
        """Close the connection."""
        close = getattr(self.db, "close", None)
        if close is not None:
            close()

    def latest_wake_ms(self) -> int:
        """Return the last instant until which a user may wait that waits now."""
        return self._now_ms() + self._limits.longest_wait_ms

    # --- takers ---------------------------------------------------------------------------

    def taker(self, name: str) -> int:
        """Return a taker's number, a new one where it has none yet."""
        if name not in self._ids:
            self._ids[name] = self.takers.add(name)
        return self._ids[name]

    def known_taker(self, name: str) -> int:
        """Return a taker's number; one that nothing has where it was never any."""
        found = self._ids.get(name)
        return -1 if found is None else found

    def forget_queue(self, taker: int) -> None:
        """Let a taker's records be read anew."""
        self._queues.pop(taker, None)

    def queue(self, taker: int) -> Queue:
        """Return a taker's records, as they are read."""
        if taker not in self._queues:
            name, settling = self.takers.name_of(taker), self.settling(taker)
            arrivals = Arrivals(self.db, self._tables, settling, self.accounts, self._lines, name)
            self._queues[taker] = self.queue_type(self._tables, settling, arrivals)
        return self._queues[taker]

    def settling(self, taker: int) -> Settling:
        """Return a taker's records, as they end or wait."""
        found = self._settlings.get(taker)
        if found is None:
            name = self.takers.name_of(taker)
            found = self.settling_type(taker, name, self._tables, self.accounts, self._lines)
            self._settlings[taker] = found
        return found

    def claims(self, name: str) -> Claims:
        """Return a taker's claims."""
        window_ms, shift_s = self._limits.claims.get(name, NO_CLAIMS)
        is_short = self._shut is RefusalReason.DISK_FULL
        return Claims(self.db, self.known_taker(name), window_ms, shift_s, is_short=is_short)

    # --- intake ---------------------------------------------------------------------------

    def shut_intake(self, reason: RefusalReason | None) -> None:
        """Refuse appends for this reason from now on; None: no more."""
        self._shut = reason
        self.insert_ids.is_short = reason is RefusalReason.DISK_FULL

    def why_full(self, name: str) -> str:
        """Return why a taker is refused for want of free bytes (last commit), or nothing."""
        return self._fullness.refused.get(self.known_taker(name), "")

    def append(self, batches: Sequence[Append], now_ms: int) -> list[Appended | SpoolError]:
        """Append what takers keep of each batch: all of them, or none.

        One that is refused has changed nothing.
        """
        results: list[Appended | SpoolError] = []
        new: list[tuple[int, Pack]] = []
        for batch in batches:
            refusal = self._refusal(batch)
            if refusal is None:
                for part in batch.parts:
                    new += self._pending(self.taker(part.taker), part.packs)
                    self._take_in(part, now_ms)
            results.append(refusal or self._count(batch, now_ms))
            self._counting_to = max(self._counting_to, batch.number)
        self._put_in(new, now_ms)
        return results

    def _refusal(self, batch: Append) -> SpoolError | None:
        """Refuse a batch of which a taker cannot keep its part."""
        for part in batch.parts:
            if part.keeps_nothing:
                continue
            if self._shut:
                return SpoolError(self._shut)
            if part.needs_free_bytes and (
                why := self._fullness.why_not(
                    self.taker(part.taker), self._ids.values(), self.accounts
                )
            ):
                return SpoolError(RefusalReason.SPOOL_FULL, f"{spoken(part.taker)}: {why}")
        return None

    def _take_in(self, part: Part, now_ms: int) -> None:
        """Keep the request that a relay has of a batch."""
        if part.relayed is not None:
            share_bytes = self._fullness.share_bytes(len(self._ids))
            self.relaying.take_in(self.taker(part.taker), part.relayed, share_bytes, now_ms)

    def _pending(self, taker: int, new: Sequence[Pack]) -> list[tuple[int, Pack]]:
        """Count packs of a taker that are to be put into the inbox."""
        for pack in new:
            self.accounts.add(taker, "pending", pack.count)
            self.accounts.resize(taker, INBOX, pack.size_bytes)
        return [(taker, pack) for pack in new]

    def _put_in(self, new: Sequence[tuple[int, Pack]], now_ms: int) -> None:
        if new:
            self.inbox.append(self.accounts.take_batches(len(new)), new, now_ms)

    def _count(self, batch: Append, now_ms: int) -> Appended:
        accepted = dropped = dead = 0
        for part in batch.parts:
            taker = self.taker(part.taker)
            buried = self._bury_unread(taker, part.dead, now_ms) if part.dead else 0
            self.count_only(part)
            accepted += sum(pack.count for pack in part.packs)
            accepted += part.relayed.count if part.relayed is not None else 0
            dropped += part.dropped.total() + len(part.dead) - buried
            dead += buried
        return Appended(accepted, dropped, dead)

    def count_only(self, part: Part) -> None:
        """Count what one taker was brought, and what of it a rule dropped."""
        taker = self.taker(part.taker)
        self.accounts.add(taker, "received", part.received)
        for reason, count in part.dropped.items():
            self.accounts.add(taker, f"dropped:{reason}", count)
        self.checkpoints.set(taker, part.checkpoints)

    def count_adjusted(self, taker: int, adjusted: Mapping[str, int]) -> None:
        """Count values that were changed on the way to Intercom, by reason."""
        for reason, count in adjusted.items():
            self.accounts.add(taker, f"adjusted:{reason}", count)

    def _bury_unread(self, taker: int, rows: Sequence[DeadRow], now_ms: int) -> int:
        """Keep what is no event as dead letters; return how many of them are new."""
        first = self.accounts.take_batches(-(-len(rows) // SLOTS)) * SLOTS
        by_id = dict(enumerate(rows, first))
        keys = {
            id_: key_of(taker, row.insert_key)
            for id_, row in by_id.items()
            if row.insert_key is not None
        }
        new = self.insert_ids.add(keys, dict.fromkeys(keys, now_ms))
        buried = 0
        for id_, row in by_id.items():
            if id_ in keys and id_ not in new:
                self.accounts.add(taker, f"dropped:{DropReason.DUPLICATE}", 1)
                self._lines.duplicate_at_the_door(self.takers.name_of(taker), row)
                continue
            failure = Failure(DeadReason(row.reason), message=row.message)
            record = Record(id_, Kind.EVENT, row.user_key, now_ms, row.raw)
            letter = dead_letter(record, failure, now_ms)
            placed = msgspec.structs.replace(letter, origin=row.origin, line=row.line)
            self.letters.insert(taker, placed)
            self.accounts.count_dead(taker, row.reason, 1)
            self._lines.dead_at_the_door(self.takers.name_of(taker), id_, row)
            buried += 1
        return buried

    # --- dead letters ---------------------------------------------------------------------

    def replay(self, taker: int, letters: Sequence[tuple[DeadLetter, Kept]], now_ms: int) -> int:
        """Queue dead letters again, behind all that waits; return how many were still there.

        They are a batch of their own, without insert keys: what was accepted once is no duplicate.
        """
        gone = self._take_out(taker, [letter.id for letter, _ in letters])
        kept = [kept for letter, kept in letters if letter.id in gone]
        self.put_in(taker, kept, now_ms)
        return len(kept)

    def put_in(self, taker: int, kept: Sequence[Kept], now_ms: int) -> None:
        """Put events that were accepted before behind all that waits of a taker."""
        new = packs([entry_of(event) for event in kept], [event.raw for event in kept])
        self._put_in(self._pending(taker, new), now_ms)
        renew(self.db, [event.claim_id for event in kept], now_ms)

    def relay_again(
        self, taker: int, letters: Sequence[tuple[DeadLetter, Relayed]], now_ms: int
    ) -> int:
        """Queue dead letters of a relay again, behind all that waits; return how many."""
        gone = self._take_out(taker, [letter.id for letter, _ in letters])
        share_bytes = self._fullness.share_bytes(len(self._ids))
        for letter, request in letters:
            if letter.id in gone:
                self.relaying.take_in(taker, request, share_bytes, now_ms)
        return len(gone)

    def discard(
        self, taker: int, letters: Sequence[DeadLetter], reason: str = DropReason.DISCARDED
    ) -> int:
        """Settle dead letters as dropped; return how many were still there."""
        gone = self._take_out(taker, [letter.id for letter in letters])
        self.accounts.add(taker, f"dropped:{reason}", len(gone))
        for letter in letters:
            if letter.id in gone:
                self._lines.dropped(self.takers.name_of(taker), letter, reason)
        return len(gone)

    def forget_letters(self, taker: int, ids: Sequence[int], reason: str) -> int:
        """Settle dead letters as dropped, by their ids; return how many were still there."""
        if logs.debugging():
            for letter in self.letters.find(taker, DeadLetterQuery(ids=list(ids))):
                self._lines.dropped(self.takers.name_of(taker), letter, reason)
        gone = self._take_out(taker, ids)
        self.accounts.add(taker, f"dropped:{reason}", len(gone))
        return len(gone)

    def dead_bytes(self) -> int:
        """Return what the dead letters of all takers take up."""
        return sum(self.accounts.value(taker, DEAD) for taker in self.accounts.takers())

    def oldest_packed_ms(self) -> int | None:
        """Return when the first batch was accepted that is still packed, of any taker."""
        found = [
            first[1]
            for taker in self.takers.all()
            if (first := self.inbox.first_packed(taker.id, taker.unpacked_to))
        ]
        return min(found, default=None)

    def _take_out(self, taker: int, ids: Sequence[int]) -> set[int]:
        gone = self.letters.remove(taker, ids)
        for reason in gone.values():
            self.accounts.count_dead(taker, reason, -1)
        return set(gone)

    def dead_letter_page(
        self, taker: int, query: DeadLetterQuery, after: Position, limit: int
    ) -> DeadLetterPage:
        """Return some of the dead letters that a query means, and how many there are in all."""
        found, last = self.letters.page(taker, query, after, limit)
        return DeadLetterPage(found, self.matching(taker, query), str(last) if last else "")

    def matching(self, taker: int, query: DeadLetterQuery) -> int:
        """Return how many dead letters a query means; not all are counted where they are many."""
        if is_counted(query):
            return self.accounts.committed(taker)[
                f"dead:{query.reason}" if query.reason else "dead"
            ]
        return self.letters.count(taker, query)[0]

    def ask_job(
        self,
        kind: JobKind,
        taker: int,
        query: DeadLetterQuery | Expiry | NewMapping,
        expected: int,
        *,
        who: str,
        why: str = "",
        now_ms: int,
    ) -> JobRow:
        """Keep a job about what a taker has now: ``expected`` records or letters."""
        sync = self.takers.name_of(taker)
        highest_id = (self.accounts.last_batch() + 1) * SLOTS - 1
        up_to = str(Position(self.letters.last_failed_ms(taker), highest_id))
        return self.jobs.add(
            lambda id_: JobRow(id_, kind, sync, query, up_to, expected, who, why, now_ms)
        )

    def ask_expiry(
        self, taker: int, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> None:
        """Ask for a job that goes on with ``Settling.expire``."""
        expiry = Expiry(user, accepted_until_ms, failure)
        self.ask_job(JobKind.EXPIRE, taker, expiry, 0, who="delivery", now_ms=now_ms)

    # --- looking at it --------------------------------------------------------------------

    def recount(self, taker: int) -> dict[str, int]:
        """Count the rows themselves: what ``pending`` and ``dead`` must be."""

        def one(query: str) -> int:
            (count,) = self.db.execute(query, (taker,)).fetchone()
            return int(count or 0)

        packed = one(
            "SELECT sum(b.count) FROM inbox b JOIN takers t ON t.id = b.taker"
            " WHERE b.taker = ? AND b.id > t.unpacked_to"
        )
        pending = one("SELECT count(*) FROM records WHERE taker = ?") + packed
        pending += self.relayed.waiting_of(taker)
        return {
            "pending": pending,
            "dead": one("SELECT count(*) FROM dead_letters WHERE taker = ?"),
        }

    def dead_by_reason(self, taker: int) -> dict[str, int]:
        """Return how many dead letters there are, by reason, as of the last commit."""
        return under(self.accounts.committed(taker), "dead:")

    def parked(self, taker: int) -> int:
        """Return how many records wait with a parked user. Takes a while where there are many."""
        (count,) = self.db.execute(
            "SELECT count(*) FROM records r JOIN users u"
            " ON u.taker = r.taker AND u.user_key = r.user_key"
            " WHERE r.set_aside = 1 AND r.taker = ? AND u.wake_at_ms IS NOT NULL",
            (taker,),
        ).fetchone()
        return int(count)

    def first_waiting_ms(self, taker: int) -> int | None:
        """Return when the first record was accepted that waits, those of parked users left out."""
        unpacked_to = self.takers.unpacked_to(taker)
        times = [
            self.db.execute(
                "SELECT r.accepted_at_ms FROM inbox b JOIN records r"
                f" ON r.id >= b.id * {SLOTS} AND r.id < (b.id + 1) * {SLOTS}"
                " WHERE b.taker = ? AND b.id <= ? AND r.set_aside = 0 ORDER BY r.id LIMIT 1",
                (taker, unpacked_to),
            ).fetchone(),
            self.db.execute(
                "SELECT min((SELECT accepted_at_ms FROM records r WHERE r.set_aside = 1"
                " AND r.taker = u.taker AND r.user_key = u.user_key ORDER BY r.id LIMIT 1))"
                " FROM users u WHERE u.taker = ? AND u.reason = ''",
                (taker,),
            ).fetchone(),
        ]
        packed = self.inbox.first_packed(taker, unpacked_to)
        found = [row[0] for row in times if row and isinstance(row[0], int)]
        return min([*found, *([packed[1]] if packed else [])], default=None)
