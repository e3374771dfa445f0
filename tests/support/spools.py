"""Spools taken apart: a store of a test's own, and one sync's part of it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.batches import Kept, entry_of, packs
from amplitude_intercom.engine.spool.connection import Connection
from amplitude_intercom.engine.spool.contract import Loaded, Wanted, Woken
from amplitude_intercom.engine.spool.letters import DeadRow
from amplitude_intercom.engine.spool.record_queue import Queue
from amplitude_intercom.engine.spool.rows import Append, Appended, Part
from amplitude_intercom.engine.spool.settling import Settling
from amplitude_intercom.engine.spool.sqlite.database import Database, run_group
from amplitude_intercom.engine.spool.sqlite.reserve import Reserve
from amplitude_intercom.engine.spool.sqlite.spool_file import SpoolFile, connect
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.engine.spool.tables import Tables

SYNC = "s"


def kept(user: str, raw: bytes = b"{}", kind: Kind = Kind.EVENT, key: bytes | None = None) -> Kept:
    """Return an event that a sync keeps."""
    return Kept(kind, user, raw, key)


def part_of(
    rows: Iterable[Kept] = (),
    dead: Sequence[DeadRow] = (),
    dropped: Counter[str] | None = None,
    *,
    sync: str = SYNC,
) -> Part:
    """Return what a sync keeps of a batch, as the filter would hand it over."""
    events, counts = list(rows), Counter(dropped or {})
    received = len(events) + len(dead) + counts.total()
    packed = packs([entry_of(one) for one in events], [one.raw for one in events])
    return Part(sync, received, packed, list(dead), counts)  # type: ignore[arg-type]  # words do


def append_of(*rows: Kept, sync: str = SYNC) -> Append:
    """Return a batch that one sync takes."""
    return Append([part_of(rows, sync=sync)])


def sqlite_of(db: Connection) -> sqlite3.Connection:
    """Return a connection as SQLite's own, with all that only SQLite has."""
    assert isinstance(db, sqlite3.Connection)
    return db


class Found:
    """What was loaded. ``records``: all of them, in the order in which they were."""

    def __init__(self, loaded: Loaded) -> None:
        self.queued = loaded.records
        self.refilled: dict[str, list[Record]] = loaded.refilled
        self.woken: list[Woken] = loaded.woken
        self.records = all_of(loaded)
        self.last_id = loaded.last_id
        self.worked_off_now = list(loaded.worked_off)
        self.next_wake_ms = loaded.next_wake_ms
        self.next_retry_ms = loaded.next_retry_ms
        self.awaited = list(loaded.awaited)
        self.more = loaded.more

    @property
    def worked_off(self) -> list[str]:
        """The users of whom more may be aside: a feed asks for it when these are done."""
        woken = [one.user for one in self.woken]
        return [
            *(user for user, found in self.refilled.items() if found),
            *woken,
            *self.worked_off_now,
        ]


def all_of(loaded: Loaded) -> list[Record]:
    """Return all records that were loaded, in the order in which they were."""
    found = [record for records in loaded.refilled.values() for record in records]
    found += [record for woken in loaded.woken for record in woken.records]
    return found + loaded.records


class OneSync:
    """One sync's part of a store; each method is a transaction of its own."""

    def __init__(self, store: Store, sync: str = SYNC) -> None:
        self.store = store
        self.sync = sync
        self.last_id = 0
        """Up to where a test has read the queue, where it goes on reading."""
        store.begin()
        self.taker = store.takers.id_for(sync)
        store.commit()

    @property
    def queue(self) -> Queue:
        """The sync's records; for use between ``store.begin`` and ``store.commit``."""
        return self.store.queue(self.taker)

    @property
    def settling(self) -> Settling:
        """How the sync's records end or wait; for use as ``queue`` is."""
        return self.store.settling(self.taker)

    @property
    def counters(self) -> Counter[str]:
        """The sync's committed counters."""
        return self.store.accounts.committed(self.taker)

    def append(self, *rows: Kept, now_ms: int = 1) -> Appended:
        """Append events; raise what the spool answers where it refuses them."""
        self.store.begin()
        (done,) = self.store.append([append_of(*rows, sync=self.sync)], now_ms)
        self.store.commit()
        if isinstance(done, SpoolError):
            raise done
        return done

    def load(
        self,
        after_id: int = 0,
        *,
        now_ms: int = 1,
        per_user: int = 100,
        limit: int = 100,
        limit_bytes: int = 1 << 20,
        **wanted: Any,
    ) -> Found:
        """Load as a feed does that has nothing loaded; ``wanted`` are further fields of it."""
        self.store.begin()
        loaded = self.queue.load(
            Wanted(limit, limit_bytes, per_user, now_ms, after_id=after_id, **wanted)
        )
        self.store.commit()
        return Found(loaded)

    def refill(self, *users: str, limit: int = 1, now_ms: int = 1) -> list[Record]:
        """Load what is next of users that are worked off, of whom nothing is loaded."""
        found = self.load(now_ms=now_ms, per_user=limit, empty=users, parked=0, reads_queue=False)
        return [record for records in found.refilled.values() for record in records]

    def deliver(self, *records: Record, now_ms: int = 1) -> None:
        """Settle records as delivered."""
        self.store.begin()
        self.settling.deliver(records, now_ms)
        self.store.commit()


def opened(path: Path, limits: Limits | None = None, **changes: object) -> Store:
    """Open a store of a test's own; ``changes`` are fields of its limits."""
    found = limits or Limits(window_ms=1_000)
    changed = msgspec.structs.replace(found, **changes)
    store = Store(connect(path), changed, now_ms=lambda: 60_000)
    run_group(store, [Store.recover])
    return store


def database_of(store: Store) -> Database[Store]:
    """A database that has this store, keeps no reserve, and opens the same again."""
    file = SpoolFile(store.db)  # type: ignore[arg-type]  # it is SQLite's
    return Database(lambda *, recover: (store, file), Reserve(Path("unused"), 0))


def recount(tables: Tables, taker: int) -> dict[str, int]:
    """Count the rows themselves: what ``pending`` and ``dead`` must be."""

    def one(query: str) -> int:
        (count,) = tables.db.execute(query, (taker,)).fetchone()
        return int(count or 0)

    packed = one(
        "SELECT sum(b.count) FROM inbox b JOIN takers t ON t.id = b.taker"
        " WHERE b.taker = ? AND b.id > t.unpacked_to"
    )
    pending = one("SELECT count(*) FROM records WHERE taker = ?") + packed
    pending += tables.relayed.waiting_of(taker)
    return {
        "pending": pending,
        "dead": one("SELECT count(*) FROM dead_letters WHERE taker = ?"),
    }
