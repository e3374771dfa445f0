"""A sync's deliveries in virtual time: actors do what a test says, all else is the real thing."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered
from amplitude_intercom.engine.delivery.endings import (
    Deferred,
    Ending,
    GoOn,
    PutBack,
    Unknown,
    ending_of,
)
from amplitude_intercom.engine.delivery.feed import Feed
from amplitude_intercom.engine.delivery.health import Blame, Health
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes, SyncBytes
from amplitude_intercom.engine.delivery.loading import PER_USER, Loading
from amplitude_intercom.engine.delivery.memory_bounds import MOST_RETRIES
from amplitude_intercom.engine.delivery.scheduler import Scheduler, View
from amplitude_intercom.engine.delivery.settlement import Settlement
from amplitude_intercom.engine.delivery.turn_ends import TurnEnds
from amplitude_intercom.engine.delivery.turns import MOST_EVENTS, Turn
from amplitude_intercom.engine.delivery.users_in_memory import EVENTS
from amplitude_intercom.engine.delivery.waiting import Retries, is_due
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.accounts import LAST_BATCH, SPOOL
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.record_queue import Queue
from amplitude_intercom.engine.spool.settling import Settling
from amplitude_intercom.engine.spool.spool import Spool, SpoolPart, T, Work
from amplitude_intercom.engine.spool.sqlite.database import Database
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.user_state import UserState, state_of_user
from amplitude_intercom.engine.spool.writer import InlineWriter
from amplitude_intercom.transports.reasons import RefusalReason
from support import simulation
from support.spools import append_of, kept, recount
from support.virtual import current

SYNC = "simulated"
HOUR_S = 3600.0

UNKNOWN = Failure(DeadReason.USER_NOT_FOUND, 404)
REFUSED = Failure(DeadReason.REFUSED, 422)


def failing(blame: Blame, *, is_sick: bool = False) -> NotAnswered:
    """Return evidence of a call that has failed."""
    failure = Failure(DeadReason.USER_FAILING, 500)
    return NotAnswered(Cause.FAILED, EVENTS, failure, blame, is_sick)


OWN = failing(Blame.OWN)
NOT_KNOWN = failing(Blame.NOT_KNOWN)

Said = Failure | NotAnswered | int | str | None
"""What comes of a record's call: nothing (it is delivered), a failure (unknown, or refused),
evidence of a failed call, an instant (Unix ms) before which it may not leave, or that its turn
cannot be had: the endpoint that its user turned out to need, empty where none is known."""


class Fault(Exception):
    """A fault of the program that belongs to no record."""


def store_of(queues: type[Queue] = Queue, settlings: type[Settling] = Settling) -> type[Store]:
    """Return a class of stores with queues and settlings of these classes."""

    class StoreOfTheTest(Store):
        queue_type = queues
        settling_type = settlings

    return StoreOfTheTest


class LateWriter(InlineWriter[Store]):
    """Does work in order as the thread does: answers come late, some fail, and others go on."""

    def __init__(self, database: Database[Store], chance: random.Random, fails: float) -> None:
        super().__init__(database)
        self._chance = chance
        self._fails = fails
        self._free_at_s = 0.0

    def stand_still(self, for_s: float) -> None:
        """Run nothing for so long."""
        self._free_at_s = current().time() + for_s

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        loop = current()
        future: asyncio.Future[T] = loop.create_future()
        self._free_at_s = max(self._free_at_s, loop.time()) + self._chance.choice([0, 0, 0.002])
        loop.call_at(self._free_at_s, self._run, work, future)
        return future

    def _run(self, work: Work[T], future: asyncio.Future[T]) -> None:
        error: BaseException | None = SpoolError(RefusalReason.SPOOL_FAILING, "for once")
        if self._chance.random() >= self._fails:
            done = super().submit(work)
            error = done.exception()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())


class FailingDisk(InlineWriter[Store]):
    """Does work; some of the commits fail, and nothing of them is kept."""

    def __init__(self, database: Database[Store], chance: random.Random, fails: float) -> None:
        super().__init__(database)
        self._chance = chance
        self._fails = fails

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        if self._chance.random() >= self._fails:
            return super().submit(work)

        def fail(store: Store) -> T:
            work(store)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        return super().submit(fail)


class StandingDisk(InlineWriter[Store]):
    """Does work; none while it stands still, and all of them, in order, when it goes on."""

    def __init__(self, database: Database[Store]) -> None:
        super().__init__(database)
        self.stands_still = False
        self._waiting: list[tuple[Work[Any], asyncio.Future[Any]]] = []

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        if not self.stands_still:
            return super().submit(work)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        return future

    def go_on(self) -> None:
        self.stands_still = False
        for work, future in self._waiting:
            future.set_result(super().submit(work).result())
        self._waiting.clear()


class Rig:
    """A spool on disk, its feed, and actors that do what ``answer`` says."""

    def __init__(
        self,
        folder: Path,
        *,
        read_ahead: int = 64,
        turns: int = 64,
        attempts: int = 5,
        seed: float = 0,
        late: bool = False,
        fails: float = 0.0,
        budget: LoadedBytes | None = None,
        loading: type[Loading] = Loading,
        scheduler: type[Scheduler] = Scheduler,
        store_type: type[Store] = Store,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.chance = random.Random(seed)
        settings = simulation.settings(folder)
        small = msgspec.structs.replace(settings.spool, reserve_bytes=0)
        settings = msgspec.structs.replace(settings, spool=small)
        now_ms = current().wall_ms
        self.spool = Spool(folder, settings, now_ms=now_ms, inline=True, store_type=store_type)
        self.database = self.spool._database
        if late:
            self.spool.writer = LateWriter(self.database, self.chance, fails)
        self.db.execute("PRAGMA synchronous = OFF")  # these are about order, not about power cuts
        self.store.begin()
        self.taker = self.store.takers.id_for(SYNC)
        self.store.commit()
        self.mine = SpoolPart(self.spool, self.taker, settings.sync[0].name)
        self.spool._takers[SYNC] = self.mine
        self.health = Health()
        self.health.delay_s = lambda _: 1.0
        self.scheduler = scheduler()
        self.budget = budget or LoadedBytes()
        self.bytes = SyncBytes(self.budget)
        self.loading = loading(
            SYNC,
            self.taker,
            self.scheduler,
            self.health,
            self.bytes,
            read_ahead=read_ahead,
            writes_contacts=True,
            now_ms=now_ms,
        )
        self.news = asyncio.Event()
        retries = Retries(attempts, HOUR_S, self.chance.random)
        self.settlement = Settlement(
            self.mine,
            self.bytes,
            retries,
            many=(turns + 1) // 2,
            now_ms=now_ms,
            look_at_table=self.loading.look_at_table,
        )
        ends = TurnEnds(
            self.mine,
            self.scheduler,
            self.bytes,
            retries,
            now_ms=now_ms,
            look_at_table=self.loading.look_at_table,
        )
        self.feed = Feed(
            self.mine,
            self.scheduler,
            self.loading,
            self.settlement,
            ends,
            now_ms=now_ms,
            changed=self.news.set,
        )
        self.turns = turns
        self.read_ahead = read_ahead
        self.accepted: dict[str, list[int]] = {}
        self.delivered: dict[str, list[int]] = {}
        self.at_s: dict[int, float] = {}
        self.calls: Counter[str] = Counter()
        self.called: list[tuple[int, float]] = []
        """Records of which a call was made, and when."""
        self.at_work: dict[str, Turn] = {}
        self.most_loaded = 0
        self.faults = 0
        self.fault_kinds: tuple[type[Exception], ...] = (Fault,)
        self.answer: Callable[[Record], Said] = lambda _: None
        self.call_s: Callable[[], float] = lambda: 0.01
        self.most_retries = 1 << 30
        self.confirms = True
        """Whether every charge is confirmed, a little later."""
        self.not_before_ms: dict[int, int] = {}
        self.deferrals: Counter[str] = Counter()
        self._scope: anyio.CancelScope | None = None

    # --- intake ---------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        return self.database.store

    @property
    def db(self) -> Any:
        return self.store.db

    def append(self, *users: str, kind: Kind = Kind.EVENT, raw: bytes = b"{}") -> list[int]:
        """Append a record of each user; return their ids."""
        store = self.store
        last_batch = store.accounts.value(SPOOL, LAST_BATCH)
        new = append_of(*(kept(user, raw, kind) for user in users), sync=SYNC)
        store.begin()
        store.append([new], current().wall_ms())
        store.commit()
        rows = self.db.execute(
            "SELECT id, count FROM inbox WHERE id > ? ORDER BY id", (last_batch,)
        )
        ids = [batch * SLOTS + slot for batch, count in rows for slot in range(count)]
        for user, id_ in zip(users, ids, strict=True):
            self.accepted.setdefault(user, []).append(id_)
        self.spool.notify([SYNC])
        return ids

    # --- delivery -------------------------------------------------------------------------

    async def deliver(
        self, until: Callable[[], Coroutine[Any, Any, None]], *, is_killed: bool = False
    ) -> None:
        """Deliver until ``until`` returns, then stop and finish what is at work; or do not."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._deliver)
            await until()
            if is_killed:
                tasks.cancel_scope.cancel()
            else:
                self.feed.stop()
        await self.spool.close()

    async def _deliver(self) -> None:
        """Deliver, and again after each break-down, as the pipeline does."""
        while True:
            with anyio.CancelScope() as self._scope:
                await self._deliver_once()
                return
            self.at_work.clear()
            self.scheduler.forget_all()
            self.settlement.forget_turns()
            if self.feed.is_stopping:
                return
            await anyio.sleep(1)

    async def _deliver_once(self) -> None:
        async with anyio.create_task_group() as actors:
            actors.start_soon(self._choose, actors)
            await self._feed()
            actors.cancel_scope.cancel()

    async def _feed(self) -> None:
        while True:
            try:
                await self.feed.run()
            except self.fault_kinds:
                self.faults += 1
                await anyio.sleep(1)
            else:
                return

    def break_down(self) -> None:
        """Stop all that is at work, as a fault of an actor does."""
        assert self._scope is not None
        self._scope.cancel()

    async def _choose(self, actors: Any) -> None:
        scheduler = self.scheduler
        while True:
            self.news.clear()
            view = View(self.health.open_circuits, self.most_retries)
            while scheduler.at_work.calls < self.turns and (turn := scheduler.choose(view)):
                assert turn.user not in self.at_work, "two turns at once"
                self.at_work[turn.user] = turn
                actors.start_soon(self._work, turn)
                self.feed.more_may_be_wanted()
            self.most_loaded = max(self.most_loaded, self.loaded)
            await self.news.wait()

    async def _work(self, turn: Turn) -> None:
        left = list(turn.records)
        ending: Ending | None = None
        while left and ending is None:
            ending = await self._one(turn, left)
        if isinstance(ending, Deferred):
            self.deferrals[turn.user] += 1
        del self.at_work[turn.user]
        self.settlement.end(turn, ending or GoOn(succeeded=turn.has_succeeded))

    async def _one(self, turn: Turn, left: list[Record]) -> Ending | None:
        """Make the call of the first record that is left; return how the turn ends, if it does."""
        record = left[0]
        at_ms = self.not_before_ms.get(record.id, 0)
        if self.feed.is_stopping:
            return PutBack(left)
        if at_ms and not is_due(at_ms, current().wall_ms()):
            return Deferred(left, at_ms)
        turn.note_departure()
        await anyio.sleep(self.call_s())
        self.calls[turn.user] += 1
        self.called.append((record.id, current().now_s))
        match self.answer(record):
            case None:
                self._take(record)
                turn.has_succeeded = True
            case Failure(reason=DeadReason.USER_NOT_FOUND) as failure:
                return Unknown(left, failure)
            case Failure() as failure:
                self.settlement.bury(record, failure)
            case NotAnswered() as evidence:
                if evidence.blame is Blame.OWN and self.confirms:
                    charge = partial(
                        self.settlement.charge, turn.user, evidence.endpoint, stands=True
                    )
                    current().call_later(0.1, charge)
                return ending_of(evidence, left)
            case int(until_ms):
                return Deferred(left, until_ms)
            case str(endpoint):
                return PutBack(left, endpoint or None)
        left.pop(0)
        return None

    def _take(self, record: Record) -> None:
        self.delivered.setdefault(record.user_key, []).append(record.id)
        self.at_s[record.id] = current().now_s
        self.settlement.deliver(record)

    # --- looking --------------------------------------------------------------------------

    @property
    def loaded(self) -> int:
        """Records in memory."""
        users = self.scheduler.of(SYNC).users.values()
        under_way = sum(len(turn.records) for turn in self.at_work.values())
        return sum(len(user.records) for user in users) + under_way

    @property
    def bound(self) -> int:
        """Records that may be in memory: those of users that may have a turn, those behind what
        is at work, and those of users that were parked."""
        behind = self.turns * (2 * PER_USER + MOST_EVENTS)
        return self.read_ahead + behind + MOST_RETRIES * PER_USER

    @property
    def pending(self) -> int:
        return self.counters["pending"]

    @property
    def counters(self) -> Counter[str]:
        return self.mine.counters

    async def settled(self) -> None:
        with anyio.fail_after(400 * HOUR_S):
            while self.pending:
                await self.feed.progress()

    async def free(self) -> None:
        """Wait until nothing of any user is left, in memory or on disk."""
        await self.settled()
        await anyio.sleep(10)
        assert self.bytes.held == self.budget.total == 0
        assert self.loaded == self.scheduler.of(SYNC).at_work == 0
        assert self.db.execute("SELECT count(*) FROM users").fetchone() == (0,)

    def dead(self) -> dict[int, str]:
        letters = self.store.letters.find(self.taker, DeadLetterQuery())
        return {letter.id: letter.reason for letter in letters}

    def check_balance(self) -> None:
        counters = self.counters
        settled = counters["delivered"] + counters["dead"] + counters["pending"]
        assert counters["received"] == settled
        counted = {name: counters[name] for name in ("pending", "dead")}
        assert recount(self.store, self.taker) == counted

    def failures(self, user: str) -> int:
        return self.store.users.failures(self.taker, user)

    def attempts(self, id_: int) -> int:
        return self.store.records.attempts(id_)

    def state(self, user: str) -> UserState:
        return state_of_user(self.store, self.taker, user)

    def called_at_s(self, id_: int) -> list[float]:
        return [at_s for called, at_s in self.called if called == id_]

    def stand_still(self, for_s: float) -> None:
        """Let the disk do nothing for so long."""
        assert isinstance(self.spool.writer, LateWriter)
        self.spool.writer.stand_still(for_s)

    def open_circuit(self) -> None:
        self.health.of(EVENTS).circuit.open(current().now_s)
        self.feed.more_may_be_wanted()

    def close_circuit(self) -> None:
        self.health.of(EVENTS).circuit.close()
        self.feed.more_may_be_wanted()
        self.news.set()


def of_ann(said: Said, rig: Rig, calls: int = 1 << 30) -> Callable[[Record], Said]:
    """Return what to answer where so many calls of ann come to something, and others are well."""
    return lambda record: said if record.user_key == "ann" and rig.calls["ann"] <= calls else None


def unknown_until_identified() -> Callable[[Record], Said]:
    """Return what to answer for users that Intercom knows from their first identify on."""
    known = set()

    def answer(record: Record) -> Said:
        if record.kind is Kind.IDENTIFY:
            known.add(record.user_key)
        return None if record.user_key in known else UNKNOWN

    return answer


# --- random histories ---------------------------------------------------------------------
