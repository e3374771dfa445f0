"""The store against a dict: whatever is done in whatever order, and wherever it is cut off.

Two syncs share the spool, and most batches. What is packed is told apart in the model by the ids of
its records, which are known from the moment of acceptance.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool import recovery
from amplitude_intercom.engine.spool.accounts import INBOX, SPOOL, TAKEN_ALONG, WAITING
from amplitude_intercom.engine.spool.batches import SLOTS, Kept
from amplitude_intercom.engine.spool.queue import Queue
from amplitude_intercom.engine.spool.retention import take_along
from amplitude_intercom.engine.spool.rows import Append, Appended, DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.sqlite.files import connect
from amplitude_intercom.engine.spool.store import Limits, Store
from support.faulty_disk import after_power_cut
from support.spools import part_of

SYNCS = ("one", "two")
USERS = ("ann", "bob", "cid")
PER_USER = 3
WINDOW_MS = 1_000
FAULTY_DIR = os.environ.get("FAULTY_DIR")
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "120"))
CUTS: list[int] = []
UNKNOWN = Failure(DeadReason.USER_NOT_FOUND, 404)
FAILING = Failure(DeadReason.USER_FAILING, 500)

KEYS = st.none() | st.sampled_from([b"k1", b"k2", b"k3"])
ROWS = st.lists(
    st.tuples(st.sampled_from(Kind), st.sampled_from(USERS), st.binary(max_size=30), KEYS).map(
        lambda fields: Kept(*fields)
    ),
    max_size=8,
)
DEAD_ROWS = st.lists(
    st.builds(
        DeadRow,
        st.just("invalid_json"),
        st.just("not JSON"),
        st.binary(max_size=8),
        KEYS,
        st.just("http"),
        st.none() | st.integers(1, 9),
    ),
    max_size=2,
)
DROPPED = st.dictionaries(st.sampled_from(["not_selected", "loop_guard"]), st.integers(0, 3))
PICK = st.integers(0, 1_000)
SYNC = st.sampled_from(SYNCS)
PARTS = st.dictionaries(SYNC, st.tuples(ROWS, DEAD_ROWS, DROPPED), min_size=1)


@dataclass
class Item:
    """A record as the model knows it; ``aside`` mirrors the mark on its row."""

    kind: Kind
    user: str
    raw: bytes
    accepted_at_ms: int
    aside: bool = False
    key: bytes | None = None
    attempts: int = 0
    first_failed_at_ms: int = 0
    damaged: bool = False


@dataclass
class Aside:
    """A user whose records wait; ``wake_at_ms`` None: being worked off."""

    wake_at_ms: int | None
    reason: str
    failures: int
    since_ms: int


@dataclass
class Letter:
    user: str
    raw: bytes
    reason: str
    accepted_at_ms: int


@dataclass
class Model:
    """What is durable of one sync, and what only the running feed would know."""

    pending: dict[int, Item] = field(default_factory=dict)
    dead: dict[int, Letter] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    seen: dict[bytes, int] = field(default_factory=dict)
    aside: dict[str, Aside] = field(default_factory=dict)
    unpacked_to: int = 0
    last_id: int = 0
    out: dict[str, list[Record]] = field(default_factory=dict)
    halted: set[str] = field(default_factory=set)
    draining: set[str] = field(default_factory=set)

    def is_packed(self, id_: int) -> bool:
        return id_ // SLOTS > self.unpacked_to

    def unpack(self, to: int) -> None:
        """Drop what was accepted before, and bury what is damaged, of batches up to one."""
        for i, item in sorted(self.pending.items()):
            if not self.unpacked_to < i // SLOTS <= to:
                continue
            if item.damaged:
                self.bury(i, "corrupt")
            elif not self.is_new(item.key, item.accepted_at_ms):
                del self.pending[i]
                self.counts["dropped:duplicate"] += 1
        self.unpacked_to = to

    def is_new(self, key: bytes | None, at_ms: int) -> bool:
        if key is None:
            return True
        before_ms = self.seen.get(key)
        if before_ms is not None and before_ms > at_ms - WINDOW_MS:
            return False
        self.seen[key] = at_ms
        return True

    def out_ids(self) -> set[int]:
        return {record.id for records in self.out.values() for record in records}

    def next_of(self, user: str, *, aside: bool = False) -> list[int]:
        """Return what may go out of a user next, in order."""
        out = self.out_ids()
        return [
            i
            for i, item in sorted(self.pending.items())
            if item.user == user and i not in out and not item.damaged and item.aside >= aside
        ]

    def has_update_aside(self, user: str) -> bool:
        return any(
            item.user == user and item.aside and item.kind != Kind.EVENT
            for item in self.pending.values()
        )

    def hasten(self, user: str, now_ms: int) -> None:
        row = self.aside.get(user)
        if (
            row is not None
            and row.wake_at_ms is not None
            and row.reason == "user_not_found"
            and self.has_update_aside(user)
        ):
            row.wake_at_ms = min(row.wake_at_ms, now_ms)

    def bury(self, id_: int, reason: str) -> None:
        item = self.pending.pop(id_)
        self.dead[id_] = Letter(item.user, item.raw, reason, item.accepted_at_ms)

    def restart(self) -> None:
        """Forget what a process that ended would forget, and stand where the next one starts."""
        self.last_id = 0
        self.out.clear()
        self.halted.clear()
        self.draining.clear()
        for i, item in self.pending.items():
            if item.user in self.aside and not item.aside and not self.is_packed(i):
                item.aside = True
                if item.kind != Kind.EVENT:
                    self.hasten(item.user, 0)
        for row in self.aside.values():
            if row.wake_at_ms is None:
                row.wake_at_ms = 0


class SpoolMachine(RuleBasedStateMachine):
    """Steps a store and the model side by side; every rule is one transaction."""

    store: Store
    db: sqlite3.Connection

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spool-model-", dir=FAULTY_DIR))
        self.generation = 0
        self.now_ms = 1_000_000
        self.models = {sync: Model() for sync in SYNCS}
        self.sync = SYNCS[0]
        self.highest = 0
        self._open()

    @rule(sync=SYNC)
    def turn_to(self, sync: str) -> None:
        """The steps that follow are about this sync."""
        self.sync = sync

    @property
    def model(self) -> Model:
        return self.models[self.sync]

    @property
    def taker(self) -> int:
        return self.store.known_taker(self.sync)

    @property
    def queue(self) -> Queue:
        return self.store.queue(self.taker)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            if sys.exc_info()[0] is None:
                self._deliver_all_that_is_left()
            self.store.close()
            shutil.rmtree(self.folder)

    @property
    def path(self) -> Path:
        return self.folder / str(self.generation) / "spool.db"

    def _open(self) -> None:
        self.db = connect(self.path)
        limits = Limits(max_bytes=1 << 30, window_ms=WINDOW_MS)
        self.store = Store(self.db, limits, now_ms=lambda: self.now_ms)
        self.store.begin()
        recovery.recover(self.store)
        for sync in SYNCS:
            self.store.taker(sync)
        self.store.commit()

    # --- intake ---------------------------------------------------------------------------

    @rule(batches=st.lists(PARTS, min_size=1, max_size=3))
    def append(self, batches: list[dict[str, Any]]) -> None:
        appends = [
            Append([part_of(*what, sync=sync) for sync, what in parts.items()]) for parts in batches
        ]
        self.store.begin()
        got = self.store.append(appends, self.now_ms)
        self.store.commit()
        for parts, done in zip(batches, got, strict=True):
            accepted = dropped = dead = 0
            for sync, (rows, dead_rows, counts) in parts.items():
                model = self.models[sync]
                new = [row for row in dead_rows if model.is_new(row.insert_key, self.now_ms)]
                duplicates = len(dead_rows) - len(new)
                model.counts.update({f"dropped:{reason}": n for reason, n in counts.items()})
                model.counts["dropped:duplicate"] += duplicates
                model.counts["received"] += len(rows) + len(dead_rows) + sum(counts.values())
                accepted += len(rows)
                dropped += sum(counts.values()) + duplicates
                dead += len(new)
            assert done == Appended(accepted, dropped, dead)
        self._take_in([(sync, *what) for parts in batches for sync, what in parts.items()])

    def _take_in(self, parts: list[tuple[str, list[Kept], list[DeadRow], dict[str, int]]]) -> None:
        """Note under which ids the spool has what it was given: in the order of acceptance."""
        for sync in SYNCS:
            model, taker = self.models[sync], self.store.known_taker(sync)
            mine = [(rows, dead) for name, rows, dead, _ in parts if name == sync]
            batches = self.db.execute(
                "SELECT id, count FROM inbox WHERE taker = ? AND id > ? ORDER BY id",
                (taker, self.highest),
            ).fetchall()
            expected = [rows for rows, _ in mine if rows]
            assert [count for _, count in batches] == [len(rows) for rows in expected]
            for (batch, _), rows in zip(batches, expected, strict=True):
                for slot, row in enumerate(rows):
                    model.pending[batch * SLOTS + slot] = Item(
                        row.kind, row.user_key, row.raw, self.now_ms, key=row.insert_key
                    )
            letters = self.db.execute(
                "SELECT id, raw, reason FROM dead_letters WHERE taker = ? AND id > ? ORDER BY id",
                (taker, self.highest * SLOTS + SLOTS - 1),
            ).fetchall()
            for i, raw, reason in letters:
                model.dead[i] = Letter("", raw, reason, self.now_ms)
        self.highest = self._highest()

    def _highest(self) -> int:
        (highest,) = self.db.execute(
            "SELECT value FROM counters WHERE name = 'last_batch' UNION ALL SELECT 0 LIMIT 1"
        ).fetchone()
        return int(highest)

    @rule(ms=st.sampled_from([1, 50, 400, WINDOW_MS, 5_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    # --- loading --------------------------------------------------------------------------

    @rule(limit=st.integers(1, 8), limit_bytes=st.sampled_from([1, 40, 100_000]))
    def load(self, limit: int, limit_bytes: int) -> None:
        model = self.model
        due = {
            user
            for user, row in model.aside.items()
            if row.wake_at_ms is not None and row.wake_at_ms <= self.now_ms
        }
        crowded = [user for user, records in model.out.items() if len(records) >= PER_USER]
        self.store.begin()
        found = self.queue.load(
            model.last_id,
            limit=limit,
            limit_bytes=limit_bytes,
            per_user=PER_USER,
            crowded=crowded,
            halted=set(model.halted),
            now_ms=self.now_ms,
        )
        self.store.commit()
        assert len(found.records) <= limit
        model.unpack(self.store.takers.unpacked_to(self.taker))
        self._find_damaged()
        by_user: dict[str, list[int]] = {}
        for record in found.records:
            by_user.setdefault(record.user_key, []).append(record.id)
        woken_bytes = sum(len(r.raw) for r in found.records if r.user_key in due - model.halted)
        if len(due) <= limit and woken_bytes < limit_bytes:
            self._wake_all(due - model.halted, by_user)
        else:
            self._wake_all({u for u in due - model.halted if u in by_user}, by_user)
            model.aside = {u: row for u, row in model.aside.items() if self._is_aside(u)}
        self._read(found.records, found.last_id, set(found.draining), by_user)
        if not found.more:
            assert not [i for i, x in model.pending.items() if i > model.last_id and not x.aside]
        wakes = [
            row.wake_at_ms
            for user, row in model.aside.items()
            if row.wake_at_ms is not None and user not in model.halted
        ]
        assert found.next_wake_ms == min(wakes, default=None)

    def _is_aside(self, user: str) -> bool:
        return bool(
            self.db.execute(
                "SELECT TRUE FROM users WHERE taker = ? AND user_key = ?", (self.taker, user)
            ).fetchone()
        )

    def _wake_all(self, users: set[str], by_user: dict[str, list[int]]) -> None:
        """A user that is due goes on with one record, or is free where nothing of it waits."""
        for user in users:
            row = self.model.aside[user]
            waiting = self.model.next_of(user, aside=True)
            if not waiting:
                del self.model.aside[user]
                continue
            updates = [i for i in waiting if self.model.pending[i].kind != Kind.EVENT]
            identify_helps = updates and self.model.pending[updates[0]].kind == Kind.IDENTIFY
            unknown = row.reason == "user_not_found"
            first = updates if unknown and identify_helps else waiting
            assert by_user.get(user) == first[:1], f"{user} is due and was not woken in order"
            row.wake_at_ms = None

    def _read(
        self, records: list[Record], last_id: int, draining: set[str], by_user: dict[str, list[int]]
    ) -> None:
        model = self.model
        for user, ids in by_user.items():
            if user not in model.aside:
                assert ids == model.next_of(user)[: len(ids)], "out of order"
            else:
                assert len(ids) == 1, "more than a probe"
        for user in draining - model.aside.keys():
            model.aside[user] = Aside(None, "", 0, self.now_ms)
        first, model.last_id = model.last_id, max(model.last_id, last_id)
        self._find_damaged()
        self._hand_out(records)
        out = model.out_ids()
        for i, item in model.pending.items():
            if first < i <= last_id and i not in out and not item.aside:
                assert item.user in model.aside, f"{i} was skipped"
                item.aside = True
                if item.kind != Kind.EVENT:
                    model.hasten(item.user, self.now_ms)
        model.draining |= draining

    def _hand_out(self, records: list[Record]) -> None:
        for record in records:
            item = self.model.pending[record.id]
            assert record.id not in self.model.out_ids(), "handed out twice"
            assert (record.kind, record.user_key, record.raw) == (item.kind, item.user, item.raw)
            assert record.accepted_at_ms == item.accepted_at_ms
            assert (record.attempts, record.first_failed_at_ms) == (
                item.attempts,
                item.first_failed_at_ms,
            )
            self.model.out.setdefault(item.user, []).append(record)

    def _find_damaged(self) -> None:
        """Damaged records become dead letters when they are met, whenever that is."""
        met = self.store.letters.find(self.taker, DeadLetterQuery(reason="corrupt"))
        for letter in met:
            if letter.id in self.model.pending:
                assert self.model.pending[letter.id].damaged
                self.model.bury(letter.id, "corrupt")
            self.model.dead[letter.id].raw = letter.raw
            self.model.dead[letter.id].accepted_at_ms = letter.accepted_at_ms

    def _to_refill(self) -> list[str]:
        return sorted(user for user in self.model.draining if not self.model.out.get(user))

    @precondition(lambda self: self._to_refill())
    @rule(pick=PICK, limit=st.integers(1, 4), limit_bytes=st.sampled_from([1, 40, 100_000]))
    def refill(self, pick: int, limit: int, limit_bytes: int) -> None:
        users = self._to_refill()
        user = users[pick % len(users)]
        expected = self.model.next_of(user, aside=True)
        self.store.begin()
        records = self.queue.refill(user, limit, limit_bytes)
        self.store.commit()
        ids = [record.id for record in records]
        assert ids == expected[: len(ids)], "out of order"
        assert len(ids) <= limit
        assert bool(ids) == bool(expected), "a user that waits was let go"
        self._find_damaged()
        self._hand_out(records)
        if ids:
            row = self.model.aside[user]
            row.failures, row.reason = 0, ""
        else:
            self.model.draining.discard(user)
            del self.model.aside[user]

    # --- settling -------------------------------------------------------------------------

    def _lanes(self) -> list[str]:
        return sorted(user for user, records in self.model.out.items() if records)

    def _head(self, pick: int) -> Record:
        lanes = self._lanes()
        return self.model.out[lanes[pick % len(lanes)]][0]

    def _let_go(self, record: Record) -> None:
        model, user = self.model, record.user_key
        model.out[user].remove(record)
        if not model.out[user] and user in model.halted:
            model.halted.discard(user)
            model.draining.discard(user)

    @precondition(lambda self: self._lanes())
    @rule(pick=PICK, how=st.sampled_from(["deliver", "deliver", "drop", "bury"]))
    def settle(self, pick: int, how: str) -> None:
        record = self._head(pick)
        if record.user_key in self.model.halted:
            self._release(record)
            return
        self.store.begin()
        if how == "deliver":
            self.queue.deliver([record.id], self.now_ms)
        elif how == "drop":
            self.queue.drop([record.id], "unchanged")
        else:
            self.queue.bury(record, FAILING, self.now_ms)
        self.store.commit()
        if how == "bury":
            self.model.bury(record.id, "user_failing")
        else:
            del self.model.pending[record.id]
            self.model.counts["delivered" if how == "deliver" else "dropped:unchanged"] += 1
        self._let_go(record)

    def _release(self, record: Record) -> None:
        self.store.begin()
        self.queue.release(record, self.now_ms)
        self.store.commit()
        if record.id in self.model.pending:
            self.model.pending[record.id].aside = True
        self.model.hasten(record.user_key, self.now_ms)
        self._let_go(record)

    @precondition(lambda self: self._lanes())
    @rule(pick=PICK, unknown=st.booleans(), wait_ms=st.sampled_from([1, 300, 3_000]))
    def park(self, pick: int, unknown: bool, wait_ms: int) -> None:
        record = self._head(pick)
        user = record.user_key
        if user in self.model.halted:
            self._release(record)
            return
        failure = UNKNOWN if unknown and record.kind == Kind.EVENT else FAILING
        self.store.begin()
        failures = self.queue.failures(user)
        self.queue.park(record, failure, self.now_ms + wait_ms, self.now_ms)
        self.store.commit()
        item, row = self.model.pending[record.id], self.model.aside.get(user)
        assert failures == (row.failures if row else 0)
        item.aside, item.attempts = True, item.attempts + 1
        item.first_failed_at_ms = item.first_failed_at_ms or self.now_ms
        since_ms = row.since_ms if row and row.failures else self.now_ms
        self.model.aside[user] = Aside(
            self.now_ms + wait_ms, failure.reason, failures + 1, since_ms
        )
        self.model.hasten(user, self.now_ms)
        self.model.halted.add(user)
        self._let_go(record)

    @precondition(lambda self: self._lanes())
    @rule(pick=PICK, wait_ms=st.sampled_from([0, 10, 300, 3_000]), with_next=st.booleans())
    def defer(self, pick: int, wait_ms: int, with_next: bool) -> None:
        """Put what a user has next back until a set time, without a failure."""
        model, head = self.model, self._head(pick)
        user = head.user_key
        if user in model.halted:
            self._release(head)
            return
        records = model.out[user][: 1 + with_next]
        self.store.begin()
        self.queue.defer(records, self.now_ms + wait_ms, self.now_ms)
        self.store.commit()
        row = model.aside.setdefault(user, Aside(None, "", 0, self.now_ms))
        row.wake_at_ms = self.now_ms + wait_ms
        model.halted.add(user)
        for record in records:
            model.pending[record.id].aside = True
            self._let_go(record)

    @rule(user=st.sampled_from(USERS))
    def wake(self, user: str) -> None:
        self.store.begin()
        self.store.users.wake(self.taker, user, self.now_ms)
        self.store.commit()
        row = self.model.aside.get(user)
        if row and row.wake_at_ms is not None:
            row.wake_at_ms = min(row.wake_at_ms, self.now_ms)

    @rule(user=st.sampled_from(USERS), window_ms=st.sampled_from([0, 300, 5_000]))
    def expire(self, user: str, window_ms: int) -> None:
        before_ms = self.now_ms - window_ms
        row = self.model.aside.get(user)
        is_parked = row and row.wake_at_ms is not None and row.reason == UNKNOWN.reason
        self.store.begin()
        self.queue.expire(user, UNKNOWN, before_ms, self.now_ms)
        self.store.commit()
        for i in self._expiring(user, before_ms) if is_parked else ():
            if not self.model.pending[i].damaged:
                self.model.bury(i, "user_not_found")
        self._find_damaged()

    def _expiring(self, user: str, before_ms: int) -> list[int]:
        return [
            i
            for i, item in self.model.pending.items()
            if item.user == user
            and item.aside
            and item.kind == Kind.EVENT
            and item.accepted_at_ms <= before_ms
        ]

    # --- dead letters ---------------------------------------------------------------------

    @precondition(lambda self: self.model.dead)
    @rule(pick=PICK, again=st.booleans(), user=st.sampled_from(USERS))
    def replay_or_discard(self, pick: int, again: bool, user: str) -> None:
        letters = self.store.letters.find(self.taker, DeadLetterQuery())
        letter = letters[pick % len(letters)]
        self.store.begin()
        if again:
            event = Kept(
                Kind.EVENT,
                letter.user_key or user,
                letter.raw,
                None,
                letter.claim_id,
                letter.accepted_at_ms,
            )
            assert self.store.replay(self.taker, [(letter, event)], self.now_ms) == 1
            assert self.store.replay(self.taker, [(letter, event)], self.now_ms) == 0
        else:
            assert self.store.discard(self.taker, [letter]) == 1
            assert self.store.discard(self.taker, [letter]) == 0
            self.model.counts["dropped:discarded"] += 1
        self.store.commit()
        del self.model.dead[letter.id]
        if again:
            batch = self._highest()
            assert batch > self.highest
            self.highest = batch
            self.model.pending[batch * SLOTS] = Item(
                Kind.EVENT, event.user_key, event.raw, letter.accepted_at_ms
            )

    # --- leaving ---------------------------------------------------------------------------

    @rule(limit=st.integers(1, 5))
    def bytes_are_taken_along(self, limit: int) -> None:
        """Nothing is seen of it, but that batches go which one record held."""
        self.store.begin()
        take_along(self.store, self.taker, self.store.takers.unpacked_to(self.taker), limit)
        self.store.commit()

    @precondition(lambda self: not self.model.out_ids())
    @rule(limit=st.integers(1, 6))
    def records_are_taken_out(self, limit: int) -> None:
        """Whoever is moved to another sync goes in order, and all of it in the end."""
        model = self.model
        self.store.begin()
        records = self.queue.take_out(limit)
        self.store.accounts.add(self.taker, "received", -len(records))
        self.store.commit()
        model.unpack(self.store.takers.unpacked_to(self.taker))
        self._find_damaged()
        left = [i for i, item in sorted(model.pending.items()) if not item.damaged]
        assert [record.id for record in records] == left[: len(records)]
        assert bool(records) == bool(left)
        for record in records:
            assert record.raw == model.pending.pop(record.id).raw
        model.counts["received"] -= len(records)
        if not records:
            model.aside.clear()
        model.last_id = 0

    # --- ends -----------------------------------------------------------------------------

    @rule(rows=ROWS, crash=st.booleans())
    def what_is_not_committed_never_was(self, rows: list[Kept], crash: bool) -> None:
        self.store.begin()
        self.store.append([Append([part_of(rows, sync=sync) for sync in SYNCS])], self.now_ms)
        self.queue.load(
            self.model.last_id,
            limit=8,
            limit_bytes=100,
            per_user=PER_USER,
            crowded=(),
            halted=set(self.model.halted),
            now_ms=self.now_ms,
        )
        for i, item in list(self.model.pending.items())[:3]:
            record = Record(i, item.kind, item.user, item.accepted_at_ms, item.raw)
            self.queue.park(record, UNKNOWN, 0, self.now_ms)
            self.queue.bury(record, FAILING, self.now_ms)
        letters = self.store.letters.find(self.taker, DeadLetterQuery(), limit=1)
        self.store.discard(self.taker, letters)
        if crash:
            self._crash()
        else:
            self.store.rollback()

    @rule()
    def crash(self) -> None:
        self._crash()

    def _crash(self) -> None:
        """Go on with the files as a crash leaves them now; on a faulty disk, as a power cut does.

        A crash leaves what was written; a power cut only what was fsynced, and some of the rest.
        """
        old = self.path
        self.generation += 1
        if FAULTY_DIR:
            after_power_cut(old.parent, self.path.parent, random.Random(self.generation))
            CUTS.append(self.generation)
        else:
            self.path.parent.mkdir()
            shutil.copy(old, self.path)
            shutil.copy(f"{old}-wal", f"{self.path}-wal")
        self.store.close()
        self._open()
        self._restart()

    def _restart(self) -> None:
        for model in self.models.values():
            model.restart()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self._open()
        self._restart()

    @precondition(lambda self: self.model.pending)
    @rule(pick=PICK)
    def a_record_is_damaged_on_disk(self, pick: int) -> None:
        ids = sorted(self.model.pending)
        i = ids[pick % len(ids)]
        damage = (
            "UPDATE inbox SET entries = replace(entries, '[[', '[ [') WHERE id = ?"
            if self.model.is_packed(i)
            else "UPDATE records SET crc = crc + 1 WHERE id = ?"
        )
        lost = [i]
        if self.model.is_packed(i):  # the index of a batch is all of its events'
            lost = [other for other in ids if other // SLOTS == i // SLOTS]
        self.store.close()
        other = sqlite3.connect(self.path)
        with other:
            other.execute(damage, (i // SLOTS if self.model.is_packed(i) else i,))
        other.close()
        for id_ in lost:
            self.model.pending[id_].damaged = True
        self._open()
        self._restart()

    @precondition(lambda self: any(self.model.is_packed(i) for i in self.model.pending))
    @rule(pick=PICK)
    def an_event_of_a_packed_batch_is_damaged_on_disk(self, pick: int) -> None:
        ids = sorted(i for i in self.model.pending if self.model.is_packed(i))
        i = ids[pick % len(ids)]
        if self.model.pending[i].damaged:
            return  # a byte that is flipped twice is whole again
        before = [x for x in sorted(self.model.pending) if i // SLOTS * SLOTS <= x < i]
        start = sum(len(self.model.pending[x].raw) + 1 for x in before)
        if not self.model.pending[i].raw or len(before) < i % SLOTS:
            return  # nothing of it can be flipped, or it is not known where it begins
        self.store.close()
        other = sqlite3.connect(self.path)
        with other:
            (events,) = other.execute(
                "SELECT events FROM inbox WHERE id = ?", (i // SLOTS,)
            ).fetchone()
            flipped = bytearray(events)
            flipped[start] ^= 1
            other.execute("UPDATE inbox SET events = ? WHERE id = ?", (bytes(flipped), i // SLOTS))
        other.close()
        self.model.pending[i].damaged = True
        self._open()
        self._restart()

    def _deliver_all_that_is_left(self) -> None:
        """Nothing that is pending may be out of reach for good."""
        for self.sync in SYNCS:
            for _ in range(10_000):
                if not self.model.pending:
                    break
                self.now_ms += 5_000
                self.load(8, 100_000)
                while self._to_refill():
                    self.refill(0, 4, 100_000)
                while self._lanes():
                    self.settle(0, "deliver")
                self.accounts_balance()
            assert not self.model.pending, "stuck"
        left = self.db.execute("SELECT count(*) FROM inbox").fetchone()
        assert left == (0,), "a batch outlives its last record"

    # --- what holds after every commit ----------------------------------------------------

    @invariant()
    def accounts_balance(self) -> None:
        if not hasattr(self, "store"):
            return
        for sync, model in self.models.items():
            taker = self.store.known_taker(sync)
            counters = self.store.accounts.committed(taker)
            settled = sum(n for name, n in counters.items() if name.startswith("dropped:"))
            settled += counters["delivered"] + counters["dead"] + counters["pending"]
            assert counters["received"] == settled
            recount = {name: counters[name] for name in ("pending", "dead")}
            assert self.store.recount(taker) == recount
            assert recount == {"pending": len(model.pending), "dead": len(model.dead)}
            reasons = Counter(letter.reason for letter in model.dead.values())
            assert self.store.dead_by_reason(taker) == reasons
            for name in ("received", "delivered", *model.counts):
                assert counters[name] == model.counts[name], name
            self._minutes_add_up(taker, counters)
            self._rows_are_the_models(taker, model)
            self._groups_count_letters(taker, model)
        self._bytes_are_those_of_the_rows()

    def _minutes_add_up(self, taker: int, counters: Counter[str]) -> None:
        rows = self.db.execute(
            "SELECT name, sum(value) FROM minutes WHERE taker = ? GROUP BY name", (taker,)
        )
        assert {name: n for name, n in rows if n} == {k: n for k, n in counters.items() if n}

    def _groups_count_letters(self, taker: int, model: Model) -> None:
        counted = Counter[str]()
        for group in self.store.letters.groups(taker):
            counted[group.reason] += group.count
        kept = self.db.execute(
            "SELECT reason, count(*) FROM dead_letters WHERE taker = ? GROUP BY reason", (taker,)
        )
        assert counted == Counter(dict(kept.fetchall()))

    def _bytes_are_those_of_the_rows(self) -> None:
        accounts = self.store.accounts
        for sync in SYNCS:
            taker = self.store.known_taker(sync)
            (packed,), (along,) = (
                self.db.execute(query, (taker,)).fetchone()
                for query in (
                    "SELECT coalesce(sum(size_bytes), 0) FROM inbox WHERE taker = ?",
                    "SELECT coalesce(sum(length(raw)), 0) FROM records WHERE taker = ?",
                )
            )
            held = (accounts.value(taker, INBOX), accounts.value(taker, TAKEN_ALONG))
            assert held == (packed, along)
        takers = [self.store.known_taker(sync) for sync in SYNCS]
        total = sum(accounts.value(t, n) for t in takers for n in (INBOX, TAKEN_ALONG))
        assert accounts.value(SPOOL, WAITING) == total

    def _rows_are_the_models(self, taker: int, model: Model) -> None:
        rows: dict[int, Any] = {
            i: rest
            for i, *rest in self.db.execute(
                "SELECT id, user_key, attempts, first_failed_at_ms, set_aside FROM records"
                " WHERE taker = ?",
                (taker,),
            )
        }
        assert rows == {
            i: [item.user, item.attempts, item.first_failed_at_ms, item.aside]
            for i, item in model.pending.items()
            if not model.is_packed(i)
        }
        letters = {
            letter.id: (letter.raw, letter.reason, letter.accepted_at_ms)
            for letter in self.store.letters.find(taker, DeadLetterQuery())
        }
        assert letters == {
            i: (letter.raw, letter.reason, letter.accepted_at_ms)
            for i, letter in model.dead.items()
        }
        aside = {
            user: (wake, reason, failures, since)
            for user, wake, reason, failures, since in self.db.execute(
                "SELECT user_key, wake_at_ms, reason, failures, since_ms FROM users"
                " WHERE taker = ?",
                (taker,),
            )
        }
        assert aside == {
            user: (row.wake_at_ms, row.reason, row.failures, row.since_ms)
            for user, row in model.aside.items()
        }


def test_the_store_does_what_a_dict_would() -> None:
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=45,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if FAULTY_DIR:
        print(f"{len(CUTS)} power cuts")
