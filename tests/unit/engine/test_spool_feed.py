"""The feed in virtual time: order per user, nobody stuck, nothing twice, memory bounded."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool import feed as feed_module
from amplitude_intercom.engine.spool.accounts import LAST_BATCH, SPOOL
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.feed import PER_USER, Feed, LoadedBytes
from amplitude_intercom.engine.spool.queue import Queue
from amplitude_intercom.engine.spool.rows import DeadLetterQuery
from amplitude_intercom.engine.spool.sqlite.database import Job, T
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.user_state import UserState, state_of_user
from amplitude_intercom.engine.spool.writer import InlineWriter
from support.spools import OneSync, database_of, kept, opened
from support.virtual import EPOCH_S, current, run

UNKNOWN = Failure(DeadReason.USER_NOT_FOUND, 404)
FAILING = Failure(DeadReason.USER_FAILING, 500)
REFUSED = Failure(DeadReason.REFUSED, 422)
HOUR_S = 3600.0


class LateWriter(InlineWriter):
    """Runs jobs in order as the thread does: answers come late, some fail, and others go on."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        super().__init__(database_of(store))
        self._chance = chance
        self._free_at_s = 0.0

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        loop = current()
        future: asyncio.Future[T] = loop.create_future()
        self._free_at_s = max(self._free_at_s, loop.time()) + self._chance.choice([0, 0, 0.002])
        loop.call_at(self._free_at_s, self._run, job, future)
        return future

    def _run(self, job: Job[T], future: asyncio.Future[T]) -> None:
        done = super().submit(job)
        error = done.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())


class Rig:
    """A spool on disk, its feed, and lanes that do what ``answer`` says."""

    def __init__(
        self,
        path: Path,
        *,
        read_ahead: int = 64,
        max_in_flight: int = 64,
        attempts: int = 5,
        seed: int = 0,
        late: bool = False,
        loaded_bytes: LoadedBytes | None = None,
    ) -> None:
        self.chance = random.Random(seed)
        self.store = opened(path)
        self.db = self.store.db
        self.db.execute("PRAGMA synchronous = OFF")  # these are about order, not about power cuts
        self.sync = OneSync(self.store)
        self.writer = (
            LateWriter(self.store, self.chance) if late else InlineWriter(database_of(self.store))
        )
        self.loaded_bytes = loaded_bytes or LoadedBytes()
        self.feed = Feed(
            self.writer,
            self.sync.taker,
            read_ahead=read_ahead,
            max_in_flight=max_in_flight,
            attempts=attempts,
            window_s=HOUR_S,
            now_ms=lambda: current().wall_ms(),
            loaded_bytes=self.loaded_bytes,
            jitter=self.chance.random,
        )
        self.read_ahead = read_ahead
        self.accepted: dict[str, list[int]] = {}
        self.delivered: dict[str, list[int]] = {}
        self.at_s: dict[int, float] = {}
        self.calls: Counter[str] = Counter()
        self.called_at_s: dict[str, list[float]] = {}
        self.out: set[int] = set()
        self.most_loaded = 0
        self.buffer = 2
        self.answer: Callable[[Record], Failure | None] = lambda _: None
        self.call_s: Callable[[], float] = lambda: 0.01
        self.not_before_ms: dict[int, int] = {}
        self.deferrals: Counter[str] = Counter()

    # --- intake ---------------------------------------------------------------------------

    def append(self, *users: str, kind: Kind = Kind.EVENT, raw: bytes = b"{}") -> list[int]:
        """Append a record of each user; return their ids."""
        last_batch = self.store.accounts.value(SPOOL, LAST_BATCH)
        self.sync.append(*(kept(user, raw, kind) for user in users), now_ms=current().wall_ms())
        rows = self.db.execute(
            "SELECT id, count FROM inbox WHERE id > ? ORDER BY id", (last_batch,)
        )
        ids = [batch * SLOTS + slot for batch, count in rows for slot in range(count)]
        for user, id_ in zip(users, ids, strict=True):
            self.accepted.setdefault(user, []).append(id_)
        self.feed.notify()
        return ids

    def have(self, queues: type[Queue]) -> None:
        """Let the store's queues be of this kind from now on."""

        class OtherStore(Store):
            def queue(self, taker: int) -> Queue:
                found = super().queue(taker)
                found.__class__ = queues
                return found

        self.store.__class__ = OtherStore

    # --- delivery -------------------------------------------------------------------------

    async def deliver(self, until: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run feed and lanes until ``until`` returns, then stop and drain them."""
        outbox, inbox = anyio.create_memory_object_stream[list[Record]](self.buffer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.feed.run, outbox)
            tasks.start_soon(self._route, inbox)
            await until()
            self.feed.stop()
        await self.writer.close()

    async def _route(self, inbox: Any) -> None:
        lanes: dict[str, Any] = {}
        with ExitStack() as ends:
            async with inbox, anyio.create_task_group() as tasks:
                async for records in inbox:
                    self.most_loaded = max(self.most_loaded, self.feed.loaded)
                    for record in records:
                        assert record.id not in self.out, "handed out twice"
                        self.out.add(record.id)
                        if record.user_key not in lanes:
                            # As large as the real ones: what is loaded always fits into a lane.
                            lane, received = anyio.create_memory_object_stream[Record](
                                self.read_ahead
                            )
                            lanes[record.user_key] = ends.enter_context(lane)
                            tasks.start_soon(self._lane, received)
                        lanes[record.user_key].send_nowait(record)
                for lane in lanes.values():
                    lane.close()

    async def _lane(self, inbox: Any) -> None:
        async with inbox:
            async for record in inbox:
                await self._one(record)

    async def _one(self, record: Record) -> None:
        user = record.user_key
        if self.feed.is_halted(user):
            self.out.discard(record.id)
            await self.feed.release(record)
            return
        if not self.feed.is_due(self.not_before_ms.get(record.id, 0)):
            self.out.discard(record.id)
            self.deferrals[user] += 1
            await self.feed.defer([record], self.not_before_ms[record.id])
            return
        await self.feed.places.acquire()
        delay_s = self.call_s()
        if delay_s:
            await anyio.sleep(delay_s)
        self.calls[user] += 1
        self.called_at_s.setdefault(user, []).append(current().now_s)
        refusal = self.answer(record)
        self.out.discard(record.id)
        if refusal is not None:
            self.feed.places.release()
        if refusal is None:
            self.delivered.setdefault(user, []).append(record.id)
            self.at_s[record.id] = current().now_s
            self.feed.deliver(record)
        elif refusal is REFUSED:
            await self.feed.bury(record, refusal)
        else:
            await self.feed.park(record, refusal)

    # --- looking --------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return self.counters["pending"]

    @property
    def counters(self) -> Counter[str]:
        return self.sync.counters

    async def settled(self) -> None:
        with anyio.fail_after(400 * HOUR_S):
            while self.pending:
                await self.feed.progress()

    def dead(self) -> dict[int, str]:
        return dead_of(self.sync)

    def balanced(self) -> None:
        check_balance(self.sync)

    def failures(self, user: str) -> int:
        return self.store.users.failures(self.sync.taker, user)

    def state(self, user: str) -> UserState:
        return state_of_user(self.store, self.sync.taker, user)


def dead_of(sync: OneSync) -> dict[int, str]:
    letters = sync.store.letters.find(sync.taker, DeadLetterQuery())
    return {letter.id: letter.reason for letter in letters}


def check_balance(sync: OneSync) -> None:
    counters = sync.counters
    settled = counters["delivered"] + counters["dead"] + counters["pending"]
    assert counters["received"] == settled
    counted = {name: counters[name] for name in ("pending", "dead")}
    assert sync.store.recount(sync.taker) == counted


def lives_of(seed: int, folder: Path) -> None:
    """One random history, over several processes; repeat it with ``lives_of(seed, tmp_path)``."""
    chance = random.Random(seed)
    users = [f"u{i}" for i in range(chance.choice([1, 2, 5, 12]))]
    accepted: dict[str, list[int]] = {user: [] for user in users}
    delivered: dict[str, list[int]] = {user: [] for user in users}
    kinds: dict[int, Kind] = {}
    not_before_ms: dict[int, int] = {}
    strangers = chance.random() < 0.5
    read_ahead = chance.choice([1, 2, 7, 40, 300])
    max_in_flight = chance.choice([1, 2, 5, 300])
    early = chance.choice([0, 0, 0.05, 0.5])
    path = folder / f"{seed}.db"
    finished = False

    async def life(last: bool) -> None:
        nonlocal finished
        rig = Rig(
            path,
            read_ahead=read_ahead,
            max_in_flight=max_in_flight,
            seed=chance.random(),
            late=chance.random() < 0.5,
        )
        rig.buffer = chance.choice([0, 2])
        trouble = 0.0 if last else chance.choice([0.0, 0.05, 0.3])

        def answer(record: Record) -> Failure | None:
            assert current().wall_ms() >= not_before_ms.get(record.id, 0), "left early"
            if chance.random() >= trouble:
                return None
            if strangers and record.kind == Kind.EVENT:
                return UNKNOWN
            return chance.choice([FAILING, FAILING, FAILING, REFUSED])

        rig.answer = answer
        rig.not_before_ms = not_before_ms
        rig.call_s = lambda: chance.choice([0, 0, 0.01, 1.0])

        async def intake() -> None:
            for _ in range(chance.randrange(8)):
                who = chance.choice(users)
                batch = [
                    who if chance.random() < 0.5 else chance.choice(users)
                    for _ in range(chance.choice([1, 5, 40, 120]))
                ]
                kind = chance.choice([Kind.EVENT, Kind.EVENT, Kind.IDENTIFY])
                for id_, user in zip(rig.append(*batch, kind=kind), batch, strict=True):
                    accepted[user].append(id_)
                    kinds[id_] = kind
                    if kind is Kind.EVENT and chance.random() < early:
                        not_before_ms[id_] = current().wall_ms() + chance.choice([1, 500, 60_000])
                await anyio.sleep(chance.choice([0, 0.01, 3, 60]))
            if last:
                await rig.settled()
            else:
                await anyio.sleep(chance.choice([0, 0.5, 30]))

        await rig.deliver(intake)
        again = OneSync(opened(path))
        dead = dead_of(again)
        check_balance(again)
        again.store.close()
        assert rig.most_loaded <= read_ahead
        assert rig.feed.loaded == 0
        for user, ids in rig.delivered.items():
            delivered[user] += ids
        if last:
            finished = True
            for user in users:
                expected = [i for i in accepted[user] if i not in dead]
                if strangers:  # an identify may go before the events of a user who is unknown
                    expected.sort(key=kinds.__getitem__)
                    delivered[user].sort(key=kinds.__getitem__)
                assert delivered[user] == expected, user

    for number in range(3):
        run(lambda last=number == 2: life(last))
    assert finished


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_each_users_records_are_delivered_in_the_order_of_acceptance(
    first: int, tmp_path: Path
) -> None:
    for seed in range(first, first + 20):
        try:
            lives_of(seed, tmp_path)
        except BaseException as error:
            error.add_note(f"repeat with lives_of({seed}, tmp_path)")
            raise


def in_virtual_time(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def wrapper(tmp_path: Path) -> None:
        run(lambda: test(tmp_path))

    wrapper.__name__ = test.__name__
    return wrapper


@in_virtual_time
async def test_a_crowded_user_does_not_hold_up_the_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db", read_ahead=128)
    rig.append(*["crowd"] * 1000, *[f"u{i}" for i in range(50)])
    rig.call_s = lambda: 1.0
    crowd = rig.accepted.pop("crowd")
    others = [id_ for ids in rig.accepted.values() for id_ in ids]
    await rig.deliver(rig.settled)
    assert max(rig.at_s[i] for i in others) < 60
    assert rig.delivered["crowd"] == crowd
    assert rig.most_loaded <= 128


@in_virtual_time
async def test_many_crowded_users_leave_room_for_those_who_come_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db", read_ahead=128)
    rig.append(*[f"crowd{i // 200}" for i in range(12 * 200)])
    rig.call_s = lambda: 1.0

    async def later() -> None:
        await anyio.sleep(320)
        rig.append("late")
        await rig.settled()
        assert current().now_s > 450

    await rig.deliver(later)
    (late,) = rig.delivered["late"]
    assert rig.at_s[late] < 320 + PER_USER
    assert rig.most_loaded <= 128


@in_virtual_time
async def test_however_many_parked_users_wake_at_once_memory_is_bounded(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db", read_ahead=100)
    down = True
    rig.answer = lambda _: FAILING if down else None
    rig.append(*[f"u{i % 60}" for i in range(60 * 40)])

    async def until() -> None:
        nonlocal down
        await anyio.sleep(30)
        down = False
        await rig.settled()

    await rig.deliver(until)
    assert rig.most_loaded <= 100
    assert all(ids == sorted(ids) for ids in rig.delivered.values())


@pytest.mark.parametrize("read_ahead", [1, 2, 3])
def test_the_smallest_read_ahead_still_delivers(read_ahead: int, tmp_path: Path) -> None:
    async def main() -> None:
        rig = Rig(tmp_path / "s.db", read_ahead=read_ahead)
        rig.append(*["ann", "bob"] * 50)
        await rig.deliver(rig.settled)
        assert rig.most_loaded <= read_ahead
        assert all(ids == sorted(ids) for ids in rig.delivered.values())

    run(main)


@in_virtual_time
async def test_large_records_are_bounded_in_bytes(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db", read_ahead=2048)
    size = feed_module.READ_AHEAD_BYTES // 16
    most = 0

    def answer(_: Record) -> None:
        nonlocal most
        most = max(most, rig.loaded_bytes.total)

    rig.answer = answer
    rig.append(*["ann"] * 40, *["bob"] * 40, raw=bytes(size))
    await rig.deliver(rig.settled)
    assert most <= feed_module.READ_AHEAD_BYTES + size
    assert rig.calls == {"ann": 40, "bob": 40}
    assert rig.loaded_bytes.total == 0


@in_virtual_time
async def test_what_several_syncs_have_loaded_is_bounded_together(tmp_path: Path) -> None:
    together = LoadedBytes()
    rigs = [Rig(tmp_path / f"{n}.db", read_ahead=2048, loaded_bytes=together) for n in range(3)]
    size = feed_module.READ_AHEAD_BYTES // 16
    most = 0

    def answer(_: Record) -> None:
        nonlocal most
        most = max(most, together.total)

    async with anyio.create_task_group() as tasks:
        for rig in rigs:
            rig.answer = answer
            rig.append(*["ann"] * 20, *["bob"] * 20, raw=bytes(size))
            tasks.start_soon(rig.deliver, rig.settled)
    # Each may go beyond it by the record that reaches the bound; and none is starved for good.
    assert most <= feed_module.READ_AHEAD_BYTES + len(rigs) * size
    assert [rig.calls.total() for rig in rigs] == [40, 40, 40]
    assert together.total == 0


@in_virtual_time
async def test_a_parked_user_wakes_when_it_is_due_and_others_do_not_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "bob", "ann", "bob")
    rig.answer = lambda r: FAILING if r.user_key == "ann" and rig.calls["ann"] < 3 else None
    wakes: list[float] = []

    async def until() -> None:
        while rig.pending:
            await rig.feed.progress()
            (wake,) = rig.db.execute("SELECT max(wake_at_ms) FROM users").fetchone()
            if wake:
                wakes.append(round(wake / 1000 - EPOCH_S, 3))

    await rig.deliver(until)
    assert max(rig.at_s[i] for i in rig.delivered["bob"]) < 0.1
    assert rig.delivered["ann"] == sorted(rig.delivered["ann"])
    assert rig.calls["ann"] == 4
    due = sorted(set(wakes))
    for called, wake in zip(rig.called_at_s["ann"][1:3], due, strict=True):
        assert wake <= called < wake + 0.1


@in_virtual_time
async def test_a_deferred_user_goes_on_at_its_time_without_a_failure_and_others_do_not_wait(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append(*["ann"] * 5, *["bob"] * 5)
    ann, bob = rig.accepted["ann"], rig.accepted["bob"]
    rig.not_before_ms[ann[2]] = current().wall_ms() + 40_000

    async def until() -> None:
        await anyio.sleep(20)
        assert rig.delivered == {"ann": ann[:2], "bob": bob}
        assert rig.failures("ann") == 0
        assert rig.store.users.parked(rig.sync.taker) == {}
        assert rig.state("ann").waiting.second_at_ms == rig.not_before_ms[ann[2]]
        assert rig.feed.loaded == 0
        await rig.settled()
        assert rig.state("ann").waiting.second_at_ms is None

    await rig.deliver(until)
    assert rig.delivered["ann"] == ann
    assert 40 <= rig.at_s[ann[2]] < 40.1
    assert rig.deferrals == {"ann": 1}
    assert rig.calls == {"ann": 5, "bob": 5}


@in_virtual_time
async def test_deferring_forgives_a_failing_user_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "ann")
    first, second = rig.accepted["ann"]
    rig.answer = lambda _: FAILING if rig.calls["ann"] < 3 else None
    rig.not_before_ms[first] = current().wall_ms() + 500_000

    async def until() -> None:
        rig.not_before_ms[first] = 0
        await anyio.sleep(1)
        assert rig.failures("ann") == 1
        rig.not_before_ms[first] = current().wall_ms() + 500_000
        await anyio.sleep(450)
        assert rig.failures("ann") == 1
        await rig.settled()

    await rig.deliver(until)
    assert rig.delivered["ann"] == [first, second]
    assert rig.calls["ann"] == 4


@in_virtual_time
async def test_nobody_waits_for_a_clock_that_was_set_back_far(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "bob")
    (ann,), (bob,) = rig.accepted["ann"], rig.accepted["bob"]
    rig.not_before_ms = {ann: current().wall_ms() + 30_000, bob: current().wall_ms() + 30_000}

    async def until() -> None:
        await anyio.sleep(1)
        current().wall_offset_s = -20.0
        await anyio.sleep(40)
        assert not rig.delivered, "their second begins ten seconds later"
        await anyio.sleep(11)
        assert rig.delivered == {"ann": [ann], "bob": [bob]}
        rig.append("cid")
        (cid,) = rig.accepted["cid"]
        rig.not_before_ms[cid] = current().wall_ms() + 30_000
        await anyio.sleep(1)
        current().wall_offset_s = -86_400.0
        with anyio.fail_after(40):
            await rig.settled()

    await rig.deliver(until)


@in_virtual_time
async def test_an_identify_behind_an_unknown_user_wakes_it_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    known = False

    def answer(record: Record) -> Failure | None:
        nonlocal known
        known = known or record.kind == Kind.IDENTIFY
        return None if known else UNKNOWN

    rig.answer = answer
    events, identify = rig.append("ann", "ann", "ann"), []

    async def until() -> None:
        await anyio.sleep(100)
        identify.extend(rig.append("ann", kind=Kind.IDENTIFY))
        asked_s = current().now_s
        await rig.settled()
        assert current().now_s < asked_s + 0.2

    await rig.deliver(until)
    assert rig.delivered["ann"] == [*identify, *events]


@in_virtual_time
async def test_an_identify_that_was_loaded_already_wakes_an_unknown_user_at_once(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path / "s.db")
    known = False

    def answer(record: Record) -> Failure | None:
        nonlocal known
        known = known or record.kind == Kind.IDENTIFY
        return None if known else UNKNOWN

    rig.answer = answer
    rig.append("ann")
    rig.append("ann", kind=Kind.IDENTIFY)
    rig.append("ann")
    first, identify, last = rig.accepted["ann"]

    async def until() -> None:
        await rig.settled()
        assert current().now_s < 0.2

    await rig.deliver(until)
    assert rig.delivered["ann"] == [identify, first, last]


@in_virtual_time
async def test_an_unknown_users_events_expire_after_the_window(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.answer = lambda record: UNKNOWN if record.user_key == "ann" else None
    rig.append(*["ann"] * 500, "bob")

    async def until() -> None:
        await rig.settled()
        assert HOUR_S * 0.8 < current().now_s < HOUR_S * 1.5
        assert set(rig.dead().values()) == {"user_not_found"}
        assert len(rig.dead()) == 500
        rig.balanced()

    await rig.deliver(until)
    assert rig.calls["ann"] <= 8


@in_virtual_time
async def test_the_window_begins_with_the_first_refusal_not_with_acceptance(
    tmp_path: Path,
) -> None:
    """Deliveries that stood still for a day must not cost an event its retries."""
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "ann")
    await anyio.sleep(24 * HOUR_S)
    rig.answer = lambda _: UNKNOWN if rig.calls["ann"] < 3 else None
    await rig.deliver(rig.settled)
    assert len(rig.delivered["ann"]) == 2


@in_virtual_time
async def test_a_user_that_keeps_failing_loses_one_record_and_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "ann", "ann")
    bad, *rest = rig.accepted["ann"]
    rig.answer = lambda record: FAILING if record.id == bad else None

    async def until() -> None:
        await rig.settled()
        assert rig.dead() == {bad: "user_failing"}
        rig.balanced()

    await rig.deliver(until)
    assert rig.calls["ann"] == 5 + 2
    assert rig.delivered["ann"] == rest


@in_virtual_time
async def test_a_probe_answered_before_the_feed_may_go_on_is_not_forgotten(tmp_path: Path) -> None:
    """The lane may park a user while its batch is still on its way out of ``run``."""
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "ann")
    first, second = rig.accepted["ann"]
    rig.sync.load()  # as the process did that ended since
    await rig.feed.park(Record(first, Kind.EVENT, "ann", 0, b""), FAILING)
    await anyio.sleep(200)

    class Outbox:
        """Takes a batch, and lets it be answered before ``send`` returns."""

        def __init__(self) -> None:
            self.sent: list[int] = []

        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *_: object) -> None: ...

        async def send(self, records: list[Record]) -> None:
            self.sent += [record.id for record in records]
            for record in records:
                if len(self.sent) == 1:
                    await rig.feed.park(record, FAILING)
                else:
                    rig.feed.deliver(record)

    outbox = Outbox()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rig.feed.run, outbox)
        await anyio.sleep(5)
        assert outbox.sent == [first], "a parked user went on before it was due"
        await rig.settled()
        rig.feed.stop()
    assert outbox.sent == [first, first, second]
    await rig.writer.close()


@in_virtual_time
async def test_a_damaged_last_record_ends_the_wait_for_all_to_be_settled(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann")
    rig.db.execute("UPDATE inbox SET events = x'7b7c'")
    await rig.deliver(rig.settled)
    assert rig.delivered == {}
    assert rig.counters["dead"] == 1


def test_what_is_left_at_a_stop_is_delivered_in_order_by_the_next_feed(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    users = ["ann"] * 100 + ["bob"] * 3
    seen: list[Rig] = []

    async def first() -> None:
        rig = Rig(path)
        seen.append(rig)
        rig.append(*users)
        rig.call_s = lambda: 1.0
        await rig.deliver(lambda: anyio.sleep(5.5))
        assert sum(rig.calls.values()) < 20

    async def second() -> None:
        rig = Rig(path)
        seen.append(rig)
        await rig.deliver(rig.settled)

    run(first)
    run(second)
    for user, count in Counter(users).items():
        delivered = seen[0].delivered.get(user, []) + seen[1].delivered.get(user, [])
        assert delivered == sorted(set(delivered))
        assert len(delivered) == count


def test_an_identify_that_was_loaded_at_a_crash_still_wakes_its_unknown_user(
    tmp_path: Path,
) -> None:
    """Parked, and the process died before what was loaded behind came back."""
    path = tmp_path / "s.db"
    ids: list[int] = []

    async def first() -> None:
        rig = Rig(path)
        rig.append("ann")
        rig.append("ann", kind=Kind.IDENTIFY)
        rig.append("ann")
        ids.extend(rig.accepted["ann"])
        one, _, three = rig.sync.load().records
        rig.store.begin()
        rig.sync.queue.park(one, UNKNOWN, 1 << 52, 0)
        rig.store.records.set_aside([three.id])
        rig.store.commit()
        rig.store.close()

    async def second() -> None:
        rig = Rig(path)
        one, identify, three = ids
        await rig.deliver(rig.settled)
        assert rig.delivered["ann"] == [identify, one, three]
        assert max(rig.at_s.values()) < 1

    run(first)
    run(second)


@in_virtual_time
async def test_a_failing_disk_holds_deliveries_up_and_loses_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    chance = random.Random(7)
    rig.append(*["ann", "bob", "cid"] * 40)
    expected = {user: rig.accepted[user] for user in ("ann", "bob", "cid")}
    rig.answer = lambda _: FAILING if chance.random() < 0.1 else None
    commit = rig.store.commit

    class FailingStore(Store):
        def commit(self) -> None:
            if chance.random() < 0.2:
                raise sqlite3.OperationalError("disk I/O error")
            commit()

    rig.store.__class__ = FailingStore
    await rig.deliver(rig.settled)
    assert rig.delivered == expected


@in_virtual_time
async def test_a_record_that_cannot_be_settled_keeps_no_other_from_it(tmp_path: Path) -> None:
    """They are settled together, but not at any price."""
    rig = Rig(tmp_path / "s.db")
    rig.append(*(f"user-{n}" for n in range(20)))
    (stuck,) = rig.accepted["user-7"]

    class StuckQueue(Queue):
        def deliver(self, ids: Sequence[int], now_ms: int) -> None:
            if stuck in ids and rig.counters["delivered"] < 19:
                raise sqlite3.DatabaseError("database disk image is malformed")
            super().deliver(ids, now_ms)

    rig.have(StuckQueue)

    with anyio.fail_after(60):
        await rig.deliver(rig.settled)
    assert rig.counters["delivered"] == 20


@in_virtual_time
async def test_what_was_adjusted_is_counted_once_though_the_first_commit_fails(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path / "s.db")
    failures = 1

    class FailingQueue(Queue):
        def deliver(self, ids: Sequence[int], now_ms: int) -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise sqlite3.OperationalError("disk I/O error")
            super().deliver(ids, now_ms)

    rig.have(FailingQueue)
    rig.feed.adjusted["text_cut"] += 3
    rig.append("ann")
    counted: list[int] = []

    async def until() -> None:
        await rig.settled()
        rig.append("ann")
        await rig.settled()
        counted.append(rig.counters["adjusted:text_cut"])

    await rig.deliver(until)
    assert counted == [3]


@in_virtual_time
async def test_deliveries_share_commits_and_no_lane_waits_for_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append(*["ann"] * 50)
    rig.call_s = lambda: 0.001
    settled: list[int] = []

    class CountingQueue(Queue):
        def deliver(self, ids: Sequence[int], now_ms: int) -> None:
            settled.append(len(ids))
            super().deliver(ids, now_ms)

    rig.have(CountingQueue)
    await rig.deliver(rig.settled)
    assert sum(settled) == 50
    assert len(settled) <= 4


@in_virtual_time
async def test_what_is_answered_and_not_on_disk_counts_as_in_flight(tmp_path: Path) -> None:
    """A kill repeats it, so it is bounded: here the disk stands still for a while."""
    rig = Rig(tmp_path / "s.db", max_in_flight=5)
    rig.append(*(f"user-{n}" for n in range(40)))
    stands_still = True

    class StillQueue(Queue):
        def deliver(self, ids: Sequence[int], now_ms: int) -> None:
            if stands_still:
                raise sqlite3.OperationalError("disk I/O error")
            super().deliver(ids, now_ms)

    rig.have(StillQueue)

    async def until() -> None:
        nonlocal stands_still
        await anyio.sleep(30)
        assert rig.calls.total() == 5
        stands_still = False
        await rig.settled()

    await rig.deliver(until)
    assert rig.calls.total() == 40


@in_virtual_time
async def test_what_is_answered_is_settled_when_delivery_is_cancelled(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "bob")
    rig.answer = lambda record: None if record.user_key == "ann" else pytest.fail("not sent")
    rig.call_s = iter([0.0, 9.0]).__next__

    with anyio.move_on_after(0.01):
        await rig.deliver(lambda: anyio.sleep(1))
    assert rig.pending == 1


@in_virtual_time
async def test_what_was_delivered_is_not_buried_with_what_expires(tmp_path: Path) -> None:
    """A crowded user's event is answered, and the next turns out to be of nobody, at once."""
    rig = Rig(tmp_path / "s.db", attempts=1)
    rig.append(*["ann"] * (PER_USER + 8))
    ids = rig.accepted["ann"]
    last, unknown = ids[PER_USER], ids[PER_USER + 1]
    rig.answer = lambda record: UNKNOWN if record.id >= unknown else None
    rig.call_s = lambda: 2 * HOUR_S if rig.calls["ann"] == PER_USER - 1 else 0.001
    dead: dict[int, str] = {}

    async def until() -> None:
        await rig.settled()
        dead.update(rig.dead())

    await rig.deliver(until)
    assert rig.delivered["ann"][-1] == last
    assert set(dead) == set(ids[PER_USER + 1 :])
    assert rig.counters["delivered"] == PER_USER + 1


class WatchedRecord(Record, weakref=True, gc=True):
    """A record of which can be told whether anybody still has it."""


@in_virtual_time
async def test_a_feed_that_waits_keeps_nothing_of_what_it_has_settled(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db")
    rig.append("ann", "bob")
    watched: list[weakref.ref[Record]] = []

    class WatchingQueue(Queue):
        def _sort(self, *records_and_more: Any) -> tuple[list[Record], list[int]]:
            taken, aside = super()._sort(*records_and_more)
            found = [WatchedRecord(*msgspec.structs.astuple(record)) for record in taken]
            watched.extend(weakref.ref(record) for record in found)
            return list(found), aside

    rig.have(WatchingQueue)
    outbox, inbox = anyio.create_memory_object_stream[list[Record]](2)
    with inbox:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.feed.run, outbox)
            for record in await inbox.receive():
                await rig.feed.places.acquire()
                rig.feed.deliver(record)
            del record
            await rig.settled()
            await anyio.sleep(1)
            gc.collect()
            assert [reference() for reference in watched] == [None, None]
            rig.feed.stop()
