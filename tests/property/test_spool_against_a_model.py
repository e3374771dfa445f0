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
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.accounts import DIED, INBOX, SPOOL, TAKEN_ALONG, WAITING
from amplitude_intercom.engine.spool.batches import SLOTS, Kept
from amplitude_intercom.engine.spool.contract import Loaded, Wanted
from amplitude_intercom.engine.spool.delivery_times import AFTER_RETRY, FIRST_ATTEMPT, LATE
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.letter_ends import discard
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.record_queue import Queue
from amplitude_intercom.engine.spool.replaying import replay
from amplitude_intercom.engine.spool.retention import take_along
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.settling import Settling
from amplitude_intercom.engine.spool.sqlite.spool_file import connect
from amplitude_intercom.engine.spool.store import Limits, Store
from support.faulty_disk import after_power_cut
from support.spools import all_of, part_of, recount

SYNCS = ("one", "two")
USERS = ("ann", "bob", "cid")
ENDPOINTS = ("contacts", "events")
PER_USER = 3
UPDATES = 5
WINDOW_MS = 1_000
TRIED_AGAIN_MS = 60_000
FAULTY_DIR = os.environ.get("FAULTY_DIR")
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "80"))
CUTS: list[int] = []
UNKNOWN = Failure(DeadReason.USER_NOT_FOUND, 404)
FAILING = Failure(DeadReason.USER_FAILING, 500)
NEVER_TRIED = Stranger(0, 0, 0)

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
SOME_ENDPOINTS = st.sets(st.sampled_from(ENDPOINTS))
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
    """A user whose records wait.

    ``wake_at_ms`` None: it is worked off. With ``waits_for`` it waits for an endpoint, with a
    ``reason`` it is parked, else it is deferred.
    """

    wake_at_ms: int | None = None
    reason: str = ""
    failures: int = 0
    since_ms: int = 0
    waits_for: str = ""
    unknown: Stranger = NEVER_TRIED

    def wake(self, at_ms: int) -> None:
        """Be due earlier; whoever is worked off, or waits for an endpoint, is not."""
        if self.wake_at_ms is not None and not self.waits_for:
            self.wake_at_ms = min(self.wake_at_ms, at_ms)

    def set_back(self, by_ms: int) -> None:
        """Wait as long as before, by a clock that was set back."""
        if self.wake_at_ms is not None:
            self.wake_at_ms -= by_ms
        refusals, attempt_at_ms, tried_at_ms = self.unknown
        self.unknown = Stranger(refusals, attempt_at_ms - by_ms, tried_at_ms - by_ms)

    def work_off(self) -> None:
        self.wake_at_ms, self.waits_for = None, ""


@dataclass
class Letter:
    user: str
    raw: bytes
    reason: str
    accepted_at_ms: int
    attempts: int | None = None
    """None: what it says of them is not looked at."""


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

    def full(self) -> list[str]:
        return sorted(user for user, records in self.out.items() if len(records) >= PER_USER)

    def empty(self) -> list[str]:
        """Return whose loaded records are all done, though more of them may be aside."""
        worked_off = [user for user, row in self.aside.items() if row.wake_at_ms is None]
        return sorted(user for user in worked_off if not self.out.get(user))

    def refill(self, user: str, limit: int, limit_bytes: int) -> list[int]:
        """Return what is next of a user that is worked off; of identifies more than of others."""
        limit = min(PER_USER, limit)
        found = self.read_aside(user, limit, limit_bytes)
        if len(found) < limit or not all(map(self.is_identify, found)):
            return found
        more = self.read_aside(user, UPDATES, limit_bytes)
        return list(takewhile(self.is_identify, more))

    def is_identify(self, record_id: int) -> bool:
        return self.pending[record_id].kind is Kind.IDENTIFY

    def read_aside(
        self, user: str, limit: int, limit_bytes: int, kinds: Container[Kind] = tuple(Kind)
    ) -> list[int]:
        """Return what is next of a user that is aside, up to what reaches a limit; what is met of
        it and damaged is dead."""
        waiting = [
            i
            for i, item in sorted(self.pending.items())
            if item.user == user and item.aside and not self.is_packed(i) and item.kind in kinds
        ]
        while waiting:
            count, left = 0, limit_bytes
            while count < min(limit, len(waiting)) and (not count or left > 0):
                left -= len(self.pending[waiting[count]].raw)
                count += 1
            met, waiting = waiting[:count], waiting[count:]
            for i in met:
                if self.pending[i].damaged:
                    self.bury(i, "corrupt")
            if intact := [i for i in met if i in self.pending]:
                return intact
        return []

    def wake_one(
        self, user: str, limit: int, limit_bytes: int, open_: set[str]
    ) -> tuple[list[int], bool]:
        """Return with what a user goes on that is due, and whether it may be created for that."""
        row = self.aside[user]
        waited_for = row.waits_for
        row.work_off()
        if waited_for and waited_for not in open_ and not row.reason:
            return self.read_aside(user, limit, limit_bytes), False
        head = self.read_aside(user, 1, 1)
        if head and row.reason == UNKNOWN.reason:
            makers = self.read_aside(user, 1, 1, (Kind.IDENTIFY, Kind.EVENT_WITH_UPDATE))
            if makers and self.pending[makers[0]].kind == Kind.IDENTIFY:
                return makers, False
            return head, bool(makers)
        return head, False

    def due(
        self, now_ms: int, limit: int, parked: int, open_: set[str], probes: set[str]
    ) -> list[str]:
        """Return whose time has come: deferred users, parked ones, and those whose endpoint is well
        again, or is to be tried by one of them."""

        def first(most: int, which: Callable[[Aside], bool]) -> list[str]:
            found = [
                (row.wake_at_ms, user)
                for user, row in self.aside.items()
                if row.wake_at_ms is not None and which(row)
            ]
            return [user for _, user in sorted(found)[:most]]

        def is_due(row: Aside) -> bool:
            return not row.waits_for and (row.wake_at_ms or 0) <= now_ms

        for row in self.aside.values():  # a parked user is due by its own time
            if row.reason and row.waits_for not in open_:
                row.waits_for = ""
        found = first(limit, lambda row: is_due(row) and not row.reason)
        found += first(min(limit, parked), lambda row: is_due(row) and bool(row.reason))
        for endpoint in ENDPOINTS:
            most = 1 if endpoint in probes else 0
            most = most if endpoint in open_ else limit
            found += first(most, lambda row, of=endpoint: row.waits_for == of)  # type: ignore[misc]
        return found

    def next_ms(self, *, parked: bool) -> int | None:
        return min(
            (
                row.wake_at_ms
                for row in self.aside.values()
                if row.wake_at_ms is not None and not row.waits_for and bool(row.reason) is parked
            ),
            default=None,
        )

    def goes_behind(self, id_: int, now_ms: int) -> None:
        """Let a record wait behind its user's; where that is unknown, it may be tried for it."""
        item = self.pending[id_]
        item.aside = True
        row = self.aside.get(item.user)
        if row is not None and row.reason == UNKNOWN.reason and self.helps(item, row):
            row.wake(now_ms)

    @staticmethod
    def helps(item: Item | Record, row: Aside) -> bool:
        waited = item.accepted_at_ms >= row.unknown.tried_at_ms + TRIED_AGAIN_MS
        return item.kind != Kind.EVENT or waited

    def put_aside(self, user: str) -> None:
        """Let all that is loaded of a user wait."""
        for record in self.out.pop(user, ()):
            if record.id in self.pending:
                self.pending[record.id].aside = True

    def has_update_aside(self, user: str) -> bool:
        return any(
            item.user == user and item.aside and item.kind != Kind.EVENT
            for item in self.pending.values()
        )

    def wake_for_update(self, user: str, now_ms: int) -> None:
        row = self.aside.get(user)
        if row is not None and row.reason == UNKNOWN.reason and self.has_update_aside(user):
            row.wake(now_ms)

    def bury(self, id_: int, reason: str, attempts: int | None = None) -> None:
        item = self.pending.pop(id_)
        self.dead[id_] = Letter(item.user, item.raw, reason, item.accepted_at_ms, attempts)

    def restart(self) -> None:
        """Forget what a process that ended would forget, and stand where the next one starts."""
        self.last_id = 0
        self.out.clear()
        for row in self.aside.values():
            if row.wake_at_ms is None:
                row.wake_at_ms = 0
        for i, item in self.pending.items():
            if item.user in self.aside and not item.aside and not self.is_packed(i):
                item.aside = True
                if item.kind != Kind.EVENT:
                    self.wake_for_update(item.user, 0)


class Step:
    """One thing that may be done, with arguments out of strategies; ``weight``: how often."""

    def __init__(
        self,
        work: Callable[..., None],
        weight: int,
        when: Callable[[Any], object],
        arguments: dict[str, st.SearchStrategy[Any]],
    ) -> None:
        self.work = work
        self.weight = weight
        self.when = when
        self.arguments = arguments

    def __repr__(self) -> str:
        return self.work.__name__


STEPS: list[Step] = []


def step(
    weight: int = 1, when: Callable[[Any], object] = lambda self: True, **arguments: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a step. Rules of a state machine are all as likely, and each of them is left out of
    half of all runs: what needs five of them in a row would hardly ever come."""

    def declare(work: Callable[..., None]) -> Callable[..., None]:
        STEPS.append(Step(work, weight, when, arguments))
        return work

    return declare


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

    @rule(data=st.data())
    def do(self, data: st.DataObject) -> None:
        """Do one of the steps that can be done now."""
        ready = [one for one in STEPS for _ in range(one.weight) if one.when(self)]
        chosen = data.draw(st.sampled_from(ready))
        chosen.work(self, **{name: data.draw(of) for name, of in chosen.arguments.items()})

    @property
    def model(self) -> Model:
        return self.models[self.sync]

    @property
    def taker(self) -> int:
        return self.store.takers.known_id(self.sync)

    @property
    def queue(self) -> Queue:
        return self.store.queue(self.taker)

    @property
    def settling(self) -> Settling:
        return self.store.settling(self.taker)

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
        self.store.recover()
        for sync in SYNCS:
            self.store.takers.id_for(sync)
        self.store.commit()

    # --- intake ---------------------------------------------------------------------------

    @step(weight=4, batches=st.lists(PARTS, min_size=1, max_size=3))
    def append(self, batches: list[dict[str, Any]]) -> None:
        appends = [
            Append([part_of(*what, sync=sync) for sync, what in parts.items()]) for parts in batches
        ]
        self.store.begin()
        got = self.store.append(appends, self.now_ms)
        self.store.commit()
        for parts, done in zip(batches, got, strict=True):
            accepted = dropped = 0
            dead: Counter[str] = Counter()
            for sync, (rows, dead_rows, counts) in parts.items():
                model = self.models[sync]
                new = [row for row in dead_rows if model.is_new(row.insert_key, self.now_ms)]
                duplicates = len(dead_rows) - len(new)
                model.counts.update({f"dropped:{reason}": n for reason, n in counts.items()})
                model.counts["dropped:duplicate"] += duplicates
                model.counts["received"] += len(rows) + len(dead_rows) + sum(counts.values())
                accepted += len(rows)
                dropped += sum(counts.values()) + duplicates
                dead.update(row.reason for row in new)
            assert done == Appended(accepted, dropped, dead.total(), dead)
        self._take_in([(sync, *what) for parts in batches for sync, what in parts.items()])

    def _take_in(self, parts: list[tuple[str, list[Kept], list[DeadRow], dict[str, int]]]) -> None:
        """Note under which ids the spool has what it was given: in the order of acceptance."""
        for sync in SYNCS:
            model, taker = self.models[sync], self.store.takers.known_id(sync)
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
                        Kind(row.kind), row.user_key, row.raw, self.now_ms, key=row.insert_key
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

    @step(
        weight=4,
        ms=st.sampled_from([1, 50, 400, WINDOW_MS, 5_000, TRIED_AGAIN_MS - 1, TRIED_AGAIN_MS]),
    )
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @step(sync=SYNC)
    def turn_to(self, sync: str) -> None:
        """The steps that follow are about this sync."""
        self.sync = sync

    # --- loading --------------------------------------------------------------------------

    @step(
        weight=10,
        limit=st.integers(1, 8),
        limit_bytes=st.sampled_from([1, 40, 100_000]),
        parked=st.sampled_from([0, 1, 64]),
        parked_bytes=st.sampled_from([0, 1, 100_000]),
        refills=st.integers(0, len(USERS)),
        open_=SOME_ENDPOINTS,
        probes=SOME_ENDPOINTS,
        reads_queue=st.sampled_from([True, True, True, False]),
        set_back_ms=st.sampled_from([0, 0, 0, 100]),
        queue_first=st.booleans(),
    )
    def load(
        self,
        limit: int = 8,
        limit_bytes: int = 100_000,
        parked: int = 64,
        parked_bytes: int = 100_000,
        refills: int = len(USERS),
        open_: set[str] = frozenset(),  # type: ignore[assignment]
        probes: set[str] = frozenset(),  # type: ignore[assignment]
        reads_queue: bool = True,
        set_back_ms: int = 0,
        queue_first: bool = False,
    ) -> None:
        model = self.model
        wanted = Wanted(
            limit,
            limit_bytes,
            PER_USER,
            self.now_ms,
            parked=parked,
            parked_bytes=parked_bytes,
            after_id=model.last_id,
            updates=UPDATES,
            full=model.full(),
            empty=model.empty()[:refills],
            open_circuits=open_,
            probes=probes & open_,
            reads_queue=reads_queue,
            set_back_ms=set_back_ms,
            queue_first=queue_first,
        )
        self.store.begin()
        found = self.queue.load(wanted)
        self.store.commit()
        assert len(all_of(found)) <= limit + UPDATES
        for row in model.aside.values():
            row.set_back(set_back_ms)
        left = (limit, limit_bytes)
        parts = [self._refills, self._wakes]
        for part in [self._reads, *parts] if queue_first else [*parts, self._reads]:
            left = part(wanted, found, left)
        self._find_damaged()
        self._hand_out(all_of(found))
        assert found.next_wake_ms == model.next_ms(parked=False)
        assert found.next_retry_ms == model.next_ms(parked=True)
        awaited = {row.waits_for for row in model.aside.values() if row.waits_for}
        assert found.awaited == sorted(awaited)

    def _refills(self, wanted: Wanted, found: Loaded, left: tuple[int, int]) -> tuple[int, int]:
        """Users that are worked off go on, and are free where nothing is left of them."""
        model, expected = self.model, {}
        for user in wanted.empty:
            if min(left) <= 0:
                break
            expected[user] = model.refill(user, *left)
            left = self._less(left, expected[user])
            if not expected[user]:
                del model.aside[user]
        assert {user: _ids(records) for user, records in found.refilled.items()} == expected
        return left

    def _wakes(self, wanted: Wanted, found: Loaded, left: tuple[int, int]) -> tuple[int, int]:
        """Whoever is due goes on, and is free where nothing of it waits."""
        model, expected = self.model, []
        open_, probes = set(wanted.open_circuits), set(wanted.probes)
        parked_bytes = wanted.parked_bytes
        for user in model.due(self.now_ms, left[0], wanted.parked, open_, probes):
            if min(left) <= 0:
                break
            row = model.aside[user]
            if row.reason and not row.waits_for and parked_bytes <= 0:
                continue
            ids, may_create = model.wake_one(user, min(PER_USER, left[0]), left[1], open_)
            left = self._less(left, ids)
            if row.reason:
                parked_bytes -= sum(len(model.pending[i].raw) for i in ids)
            if ids:
                is_failing = row.failures > 0 and row.reason != UNKNOWN.reason
                expected.append((user, ids, may_create, bool(row.reason), is_failing))
            else:
                del model.aside[user]
        assert [
            (
                one.user,
                _ids(one.records),
                any(record.may_create for record in one.records),
                one.is_retry,
                one.failing,
            )
            for one in found.woken
        ] == expected
        return left

    def _reads(self, wanted: Wanted, found: Loaded, left: tuple[int, int]) -> tuple[int, int]:
        """Of what is queued, users that are not aside have theirs, up to a number of each."""
        model, after_id = self.model, wanted.after_id
        if not wanted.reads_queue or min(left) <= 0:
            assert (found.records, found.worked_off) == ([], {})
            assert (found.last_id, found.more) == (model.last_id, True)
            return left
        model.unpack(self.store.takers.unpacked_to(self.taker))
        read = [
            i
            for i, item in sorted(model.pending.items())
            if after_id < i <= found.last_id and not item.aside
        ]
        assert len(read) <= left[0]
        assert self._less(left, read[:-1])[1] > 0
        for i in read:
            if model.pending[i].damaged:
                model.bury(i, "corrupt")
        loaded = Counter(dict.fromkeys(wanted.full, PER_USER))
        taken: list[int] = []
        crowded: dict[str, None] = {}
        for i in read:
            if i not in model.pending:
                continue
            user = model.pending[i].user
            if user in model.aside or user in crowded:
                model.goes_behind(i, self.now_ms)
            elif loaded[user] < PER_USER:
                loaded[user] += 1
                taken.append(i)
            else:
                crowded[user] = None
                model.goes_behind(i, self.now_ms)
        for user in crowded:
            model.aside[user] = Aside()
        assert _ids(found.records) == taken, "skipped, or out of order"
        assert list(found.worked_off) == list(crowded)
        model.last_id = found.last_id
        queued = [i for i, x in model.pending.items() if i > model.last_id and not x.aside]
        if found.more:
            assert found.last_id > after_id, "it stands still"
        else:
            assert not queued
        return self._less(left, taken)

    def _less(self, left: tuple[int, int], ids: list[int]) -> tuple[int, int]:
        """Return how many records and bytes may still be loaded after these."""
        return left[0] - len(ids), left[1] - sum(len(self.model.pending[i].raw) for i in ids)

    def _hand_out(self, records: list[Record]) -> None:
        for record in records:
            item = self.model.pending[record.id]
            assert record.id not in self.model.out_ids(), "handed out twice"
            for other in self.model.out.get(item.user, ()):
                assert other.id < record.id, "out of order"
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

    # --- settling -------------------------------------------------------------------------

    def _lanes(self) -> list[str]:
        return sorted(user for user, records in self.model.out.items() if records)

    def _head(self, pick: int) -> Record:
        lanes = self._lanes()
        return self.model.out[lanes[pick % len(lanes)]][0]

    def _let_go(self, record: Record) -> None:
        self.model.out[record.user_key].remove(record)

    @step(
        weight=6,
        when=lambda self: self._lanes(),
        pick=PICK,
        how=st.sampled_from(["deliver", "deliver", "drop", "bury"]),
    )
    def settle(self, pick: int, how: str) -> None:
        """What was given up meanwhile is settled already."""
        record = self._head(pick)
        self.store.begin()
        if how == "deliver":
            self.settling.deliver([record], self.now_ms)
        elif how == "drop":
            self.settling.drop([record.id], "unchanged")
        else:
            self.settling.bury(record, FAILING, self.now_ms)
        self.store.commit()
        self._let_go(record)
        if record.id not in self.model.pending:
            return
        if how == "bury":
            self.model.bury(record.id, "user_failing", record.attempts + 1)
        else:
            del self.model.pending[record.id]
            self.model.counts["delivered" if how == "deliver" else "dropped:unchanged"] += 1

    @step(
        weight=10,
        when=lambda self: self._lanes(),
        pick=PICK,
        why=st.sampled_from(["unknown", "failing", "not its own"]),
        wait_ms=st.sampled_from([1, 300, 200_000, 900_000]),
        charged=st.booleans(),
        refusals=st.integers(1, 3),
    )
    def park(self, pick: int, why: str, wait_ms: int, charged: bool, refusals: int) -> None:
        """A user that waits after a failure takes all that is loaded of it along."""
        model, record = self.model, self._head(pick)
        user, wake_at_ms = record.user_key, self.now_ms + wait_ms
        failure, is_own = UNKNOWN if why == "unknown" else FAILING, why != "not its own"
        others = _ids(model.out[user][1:])
        unknown = Stranger(refusals, wake_at_ms, self.now_ms)
        self.store.begin()
        assert self.settling.failures(user) == (
            model.aside[user].failures if user in model.aside else 0
        )
        if charged:
            self.settling.charge(record.id, self.now_ms)
        if is_own:
            self.settling.park(record, others, failure, wake_at_ms, self.now_ms)
        else:
            ids = [record.id, *others]
            self.settling.defer_after_failure(user, ids, wake_at_ms, self.now_ms)
        if failure is UNKNOWN:
            self.settling.note_unknown(user, unknown)
            self.settling.wake_for_update(user, self.now_ms)
        self.store.commit()
        if charged:
            self._charge(record.id)
        row = model.aside.setdefault(user, Aside())
        if not row.failures:
            row.since_ms = self.now_ms
        row.failures += 1
        row.wake_at_ms, row.waits_for = wake_at_ms, ""
        row.reason = failure.reason if is_own else row.reason
        model.put_aside(user)
        if failure is UNKNOWN:
            row.unknown = unknown
            model.wake_for_update(user, self.now_ms)

    @step(
        weight=6,
        when=lambda self: self._lanes(),
        pick=PICK,
        kind=st.sampled_from([Kind.EVENT, *Kind]),
        ms=st.sampled_from([1, TRIED_AGAIN_MS - 1, TRIED_AGAIN_MS]),
        restarts=st.booleans(),
    )
    def a_stranger_is_heard_of(self, pick: int, kind: Kind, ms: int, restarts: bool) -> None:
        """Something comes for a user that waits, and is read at once, or by the next process."""
        user = self._head(pick).user_key
        self.park(pick, "unknown", 900_000, charged=True, refusals=1)
        self.now_ms += ms
        self.append([{self.sync: ([Kept(kind, user, b"{}", None)], [], {})}])
        if restarts:
            self.reopen()
        self.load()

    def _charge(self, id_: int) -> int:
        item = self.model.pending.get(id_)
        if item is None:
            return 0
        item.attempts += 1
        item.first_failed_at_ms = item.first_failed_at_ms or self.now_ms
        return item.attempts

    def _rows(self) -> list[int]:
        """Return what is unpacked: it may wait, or be under way."""
        return sorted(i for i in self.model.pending if not self.model.is_packed(i))

    @step(weight=2, when=lambda self: self._rows(), pick=PICK, gives_up=st.booleans())
    def charge(self, pick: int, gives_up: bool) -> None:
        """A failure is found out to be the record's own, wherever it is by then."""
        model, ids = self.model, self._rows()
        i = ids[pick % len(ids)]
        self.store.begin()
        charged = self.settling.charge(i, self.now_ms)
        if gives_up:
            self.settling.give_up(i, FAILING, self.now_ms)
        self.store.commit()
        assert charged == self._charge(i)
        if not gives_up:
            return
        item = model.pending[i]
        if item.damaged:
            model.bury(i, "corrupt")
            self._find_damaged()
            return
        user = model.aside.get(item.user)
        if user is not None and user.wake_at_ms is not None:
            model.bury(i, "user_failing", charged)
            user.wake(self.now_ms)

    @step(when=lambda self: not self._rows())
    def what_is_gone_is_not_given_up(self) -> None:
        self.store.begin()
        assert self.settling.charge(1, self.now_ms) == 0
        self.settling.give_up(1, FAILING, self.now_ms)
        self.store.commit()

    @step(
        weight=6,
        when=lambda self: self._lanes(),
        pick=PICK,
        wait_ms=st.sampled_from([0, 10, 300, 3_000]),
        waits_for=st.sampled_from(["", *ENDPOINTS]),
    )
    def defer(self, pick: int, wait_ms: int, waits_for: str) -> None:
        """Put all that is loaded of a user back until a set time, or for an endpoint."""
        model, user = self.model, self._head(pick).user_key
        until_ms = self.now_ms + wait_ms
        self.store.begin()
        self.settling.defer(user, _ids(model.out[user]), until_ms, waits_for)
        self.store.commit()
        row = model.aside.setdefault(user, Aside())
        row.wake_at_ms, row.waits_for = until_ms, waits_for
        model.put_aside(user)

    @step(when=lambda self: self.model.aside, user=st.sampled_from(USERS))
    def forgive(self, user: str) -> None:
        self.store.begin()
        self.settling.forgive(user)
        self.store.commit()
        if row := self.model.aside.get(user):
            row.failures, row.reason, row.unknown = 0, "", NEVER_TRIED

    @step(
        when=lambda self: self.model.aside,
        user=st.sampled_from(USERS),
        refusals=st.integers(0, 3),
        ago_ms=st.integers(0, 60_000),
    )
    def note_unknown(self, user: str, refusals: int, ago_ms: int) -> None:
        """Whoever does not wait is not noted."""
        unknown = Stranger(refusals, self.now_ms, self.now_ms - ago_ms)
        self.store.begin()
        self.settling.note_unknown(user, unknown)
        noted = self.settling.unknown(user)
        self.store.commit()
        row = self.model.aside.get(user)
        if row:
            row.unknown = unknown
        assert noted == (unknown if row else NEVER_TRIED)

    @step(
        when=lambda self: self.model.aside,
        user=st.sampled_from(USERS),
        window_ms=st.sampled_from([0, 300, 5_000]),
    )
    def expire(self, user: str, window_ms: int) -> None:
        before_ms = self.now_ms - window_ms
        row = self.model.aside.get(user)
        is_parked = row and row.wake_at_ms is not None and row.reason == UNKNOWN.reason
        self.store.begin()
        self.settling.expire(user, UNKNOWN, before_ms, self.now_ms)
        self.store.commit()
        for i in self._expiring(user, before_ms) if is_parked else ():
            item = self.model.pending[i]
            if not item.damaged:
                tried = max(0, row.unknown.refusals - 1) if row else 0
                self.model.bury(i, "user_not_found", max(item.attempts, tried) + 1)
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

    @step(
        when=lambda self: self.model.dead,
        pick=PICK,
        again=st.booleans(),
        user=st.sampled_from(USERS),
    )
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
            assert replay(self.store, self.taker, [(letter, event)], self.now_ms) == 1
            assert replay(self.store, self.taker, [(letter, event)], self.now_ms) == 0
        else:
            assert discard(self.store, self.taker, [letter]) == 1
            assert discard(self.store, self.taker, [letter]) == 0
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

    @step(when=lambda self: self._rows(), limit=st.integers(1, 5))
    def bytes_are_taken_along(self, limit: int) -> None:
        """Nothing is seen of it, but that batches go which one record held."""
        self.store.begin()
        take_along(self.store, self.taker, self.store.takers.unpacked_to(self.taker), limit)
        self.store.commit()

    @step(when=lambda self: not self.model.out_ids(), limit=st.integers(1, 6))
    def records_are_taken_out(self, limit: int) -> None:
        """Whoever is moved to another sync goes in order, and all of it in the end."""
        model, unpacked_to = self.model, self.model.unpacked_to
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
            row = model.aside.get(record.user_key)
            was_packed = record.id // SLOTS > unpacked_to
            if row and row.reason == UNKNOWN.reason and was_packed and model.helps(record, row):
                row.wake(0)
        model.counts["received"] -= len(records)
        if not records:
            model.aside.clear()
        model.last_id = 0

    # --- ends -----------------------------------------------------------------------------

    @step(rows=ROWS, crash=st.booleans())
    def what_is_not_committed_never_was(self, rows: list[Kept], crash: bool) -> None:
        self.store.begin()
        self.store.append([Append([part_of(rows, sync=sync) for sync in SYNCS])], self.now_ms)
        model = self.model
        self.queue.load(
            Wanted(8, 100, PER_USER, self.now_ms, after_id=model.last_id, empty=model.empty())
        )
        for i, item in list(self.model.pending.items())[:3]:
            record = Record(i, item.kind, item.user, item.accepted_at_ms, item.raw)
            self.settling.charge(i, self.now_ms)
            self.settling.park(record, (), UNKNOWN, 0, self.now_ms)
            self.settling.note_unknown(item.user, Stranger(1, 2, 3))
            self.settling.bury(record, FAILING, self.now_ms)
        letters = self.store.letters.find(self.taker, DeadLetterQuery(), limit=1)
        discard(self.store, self.taker, letters)
        if crash:
            self._crash()
        else:
            self.store.rollback()

    @step()
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

    @step()
    def reopen(self) -> None:
        self.store.close()
        self._open()
        self._restart()

    @step(when=lambda self: self.model.pending, pick=PICK)
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

    @step(when=lambda self: any(self.model.is_packed(i) for i in self.model.pending), pick=PICK)
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
                if not self.model.pending and not self.model.aside:
                    break
                self.now_ms += 100_000
                self.load()
                while self._lanes():
                    self.settle(0, "deliver")
                self.accounts_balance()
            assert not self.model.pending, "stuck"
            assert not self.model.aside, "nothing of them waits, and they do"
        left = self.db.execute("SELECT count(*) FROM inbox").fetchone()
        assert left == (0,), "a batch outlives its last record"

    # --- what holds after every commit ----------------------------------------------------

    @invariant()
    def accounts_balance(self) -> None:
        if not hasattr(self, "store"):
            return
        for sync, model in self.models.items():
            taker = self.store.takers.known_id(sync)
            counters = self.store.accounts.committed(taker)
            settled = sum(n for name, n in counters.items() if name.startswith("dropped:"))
            settled += counters["delivered"] + counters["dead"] + counters["pending"]
            assert counters["received"] == settled
            counted = {name: counters[name] for name in ("pending", "dead")}
            assert recount(self.store, taker) == counted
            assert counted == {"pending": len(model.pending), "dead": len(model.dead)}
            reasons = Counter(letter.reason for letter in model.dead.values())
            assert self.store.accounts.dead_by_reason(taker) == reasons
            for name in ("received", "delivered", *model.counts):
                assert counters[name] == model.counts[name], name
            self._minutes_add_up(taker, counters)
            self._rows_are_the_models(taker, model)
            self._whoever_waits_has_nothing_loaded(model)
            self._groups_count_letters(taker, model)
        self._bytes_are_those_of_the_rows()

    def _whoever_waits_has_nothing_loaded(self, model: Model) -> None:
        for user, row in model.aside.items():
            assert row.wake_at_ms is None or not model.out.get(user)

    def _minutes_add_up(self, taker: int, counters: Counter[str]) -> None:
        rows = self.db.execute(
            "SELECT name, sum(value) FROM minutes WHERE taker = ? GROUP BY name", (taker,)
        )
        found = Counter[str](dict(rows.fetchall()))
        alone = {FIRST_ATTEMPT, AFTER_RETRY, *(n for n in found if n.startswith((LATE, DIED)))}
        assert +found == +Counter({**counters, **{name: found[name] for name in alone}})
        late = sum(n for name, n in found.items() if name.startswith(LATE))
        assert counters["delivered"] == late == found[FIRST_ATTEMPT] + found[AFTER_RETRY]

    def _groups_count_letters(self, taker: int, model: Model) -> None:
        counted = Counter[str]()
        for group in self.store.letters.groups.of(taker):
            counted[group.reason] += group.count
        kept = self.db.execute(
            "SELECT reason, count(*) FROM dead_letters WHERE taker = ? GROUP BY reason", (taker,)
        )
        assert counted == Counter(dict(kept.fetchall()))

    def _bytes_are_those_of_the_rows(self) -> None:
        accounts = self.store.accounts
        for sync in SYNCS:
            taker = self.store.takers.known_id(sync)
            (packed,), (along,) = (
                self.db.execute(query, (taker,)).fetchone()
                for query in (
                    "SELECT coalesce(sum(size_bytes), 0) FROM inbox WHERE taker = ?",
                    "SELECT coalesce(sum(length(raw)), 0) FROM records WHERE taker = ?",
                )
            )
            held = (accounts.value(taker, INBOX), accounts.value(taker, TAKEN_ALONG))
            assert held == (packed, along)
        takers = [self.store.takers.known_id(sync) for sync in SYNCS]
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
            letter.id: (letter.raw, letter.reason, letter.accepted_at_ms, letter.attempts)
            for letter in self.store.letters.find(taker, DeadLetterQuery())
        }
        assert letters == {
            i: (
                letter.raw,
                letter.reason,
                letter.accepted_at_ms,
                letters[i][3] if letter.attempts is None else letter.attempts,
            )
            for i, letter in model.dead.items()
        }
        aside = {
            user: Aside(wake_at_ms, reason, failures, since_ms, waits_for, Stranger(*unknown))
            for user, wake_at_ms, reason, failures, since_ms, waits_for, *unknown in (
                self.db.execute(
                    "SELECT user_key, wake_at_ms, reason, failures, since_ms, waits_for, refusals,"
                    " attempt_at_ms, tried_at_ms FROM users WHERE taker = ?",
                    (taker,),
                )
            )
        }
        assert aside == model.aside


def _ids(records: Sequence[Record]) -> list[int]:
    return [record.id for record in records]


@pytest.mark.timeout(1800)
def test_the_store_behaves_like_its_model() -> None:
    run_state_machine_as_test(
        SpoolMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=80,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if FAULTY_DIR:
        print(f"{len(CUTS)} power cuts")
