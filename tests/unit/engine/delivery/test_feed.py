"""The feed in virtual time: order per user, nobody stuck, nothing twice, memory bounded.

The spool, the scheduler and what is loaded are the real ones; actors do what a test says.
"""

from __future__ import annotations

import gc
import random
import sqlite3
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.backoff import FIRST_WAIT_S
from amplitude_intercom.engine.delivery.endings import (
    GoOn,
    PutBack,
)
from amplitude_intercom.engine.delivery.health import Blame
from amplitude_intercom.engine.delivery.loaded_bytes import READ_AHEAD_BYTES, LoadedBytes
from amplitude_intercom.engine.delivery.loading import LONGEST_NAP_S, PER_USER, Loading
from amplitude_intercom.engine.delivery.memory_bounds import LOAD_ROWS, MOST_RETRIES
from amplitude_intercom.engine.delivery.scheduler import Incoming, Scheduler
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.users_in_memory import EVENTS
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import SpoolDamaged
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.spool.contract import Loaded, Transaction, Wanted
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.record_queue import Queue
from amplitude_intercom.engine.spool.settling import Settling
from amplitude_intercom.engine.spool.user_state import Deferral
from support.deliveries import (
    HOUR_S,
    NOT_KNOWN,
    OWN,
    REFUSED,
    SYNC,
    UNKNOWN,
    FailingDisk,
    Fault,
    Rig,
    Said,
    StandingDisk,
    failing,
    of_ann,
    store_of,
    unknown_until_identified,
)
from support.virtual import EPOCH_S, current, in_virtual_time


class History:
    """One random history of several processes, with what has come of all of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        chance = self.chance = random.Random(seed)
        self.folder = folder / str(seed)
        self.users = [f"u{i}" for i in range(chance.choice([1, 2, 5, 12]))]
        self.accepted: dict[str, list[int]] = {user: [] for user in self.users}
        self.delivered: dict[str, list[int]] = {user: [] for user in self.users}
        self.kinds: dict[int, Kind] = {}
        self.not_before_ms: dict[int, int] = {}
        self.has_strangers = chance.random() < 0.5
        self.read_ahead = chance.choice([1, 2, 7, 40, 300])
        self.turns = chance.choice([1, 2, 5, 300])
        self.early = chance.choice([0, 0, 0.05, 0.5])

    async def live(self, *, last: bool) -> None:
        """Live one life: its process ends, well or not; the last one delivers all."""
        chance = self.chance
        breaks = chance.random() < 0.5
        rig = Rig(
            self.folder,
            read_ahead=self.read_ahead,
            turns=self.turns,
            seed=chance.random(),
            late=chance.random() < 0.5,
            fails=0.0 if breaks else 0.03,
        )
        trouble = 0.0 if last else chance.choice([0.0, 0.05, 0.3])
        rig.answer = partial(self._answer, trouble)
        rig.not_before_ms = self.not_before_ms
        rig.call_s = lambda: chance.choice([0, 0, 0.01, 1.0])
        await rig.deliver(
            partial(self._take_in, rig, last=last, breaks=breaks),
            is_killed=breaks and not last and chance.random() < 0.5,
        )
        for user, ids in rig.delivered.items():
            self.delivered[user] += ids
        again = Rig(self.folder)
        again.check_balance()
        assert rig.most_loaded <= rig.bound
        if last:
            self._check(again.dead())
        await again.spool.close()

    def _answer(self, trouble: float, record: Record) -> Said:
        left_early = current().wall_ms() < self.not_before_ms.get(record.id, 0)
        assert not left_early
        if self.chance.random() >= trouble:
            return None
        if self.has_strangers and record.kind is Kind.EVENT:
            return UNKNOWN
        endpoint = EVENTS if record.kind is Kind.EVENT else "PUT /contacts/{id}"
        said: list[Said] = [OWN, OWN, NOT_KNOWN, REFUSED, endpoint, ""]
        return self.chance.choice(said)

    async def _take_in(self, rig: Rig, *, last: bool, breaks: bool) -> None:
        chance = self.chance
        for _ in range(chance.randrange(8)):
            self._append_some(rig)
            await anyio.sleep(chance.choice([0, 0.01, 3, 60]))
            if breaks and chance.random() < 0.3:
                rig.break_down()
            if chance.random() < 0.1:
                rig.open_circuit()
                await anyio.sleep(chance.choice([0.1, 30]))
                rig.close_circuit()
        if last:
            await rig.free()
        else:
            await anyio.sleep(chance.choice([0, 0.5, 30]))

    def _append_some(self, rig: Rig) -> None:
        chance, users = self.chance, self.users
        who = chance.choice(users)
        batch = [
            who if chance.random() < 0.5 else chance.choice(users)
            for _ in range(chance.choice([1, 5, 40, 120]))
        ]
        kind = chance.choice([Kind.EVENT, Kind.EVENT, Kind.IDENTIFY])
        for id_, user in zip(rig.append(*batch, kind=kind), batch, strict=True):
            self.accepted[user].append(id_)
            self.kinds[id_] = kind
            if kind is Kind.EVENT and chance.random() < self.early:
                at_ms = current().wall_ms() + chance.choice([1, 500, 60_000])
                self.not_before_ms[id_] = at_ms

    def _check(self, dead: dict[int, str]) -> None:
        for user in self.users:
            expected = [id_ for id_ in self.accepted[user] if id_ not in dead]
            delivered = list(self.delivered[user])
            if self.has_strangers:  # an identify may go before the events of a user who is unknown
                expected.sort(key=self.kinds.__getitem__)
                delivered.sort(key=self.kinds.__getitem__)
            assert delivered == expected, user


def lives_of(seed: int, folder: Path) -> None:
    """Walk through one random history; repeat it with ``lives_of(seed, tmp_path)``."""
    history = History(seed, folder)
    for last in (False, False, True):
        in_virtual_time(history.live)(last=last)


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_each_users_records_are_delivered_once_in_the_order_of_acceptance(
    first: int, tmp_path: Path
) -> None:
    for seed in range(first, first + 20):
        try:
            lives_of(seed, tmp_path)
        except BaseException as error:
            error.add_note(f"repeat with lives_of({seed}, tmp_path)")
            raise


# --- crowds, and what is in memory --------------------------------------------------------


@in_virtual_time
async def test_a_crowded_user_does_not_hold_up_the_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path, read_ahead=128, turns=4)
    rig.append(*["crowd"] * 1000, *[f"u{i}" for i in range(50)])
    rig.call_s = lambda: 1.0
    crowd = rig.accepted.pop("crowd")
    others = [id_ for ids in rig.accepted.values() for id_ in ids]
    await rig.deliver(rig.free)
    assert max(rig.at_s[i] for i in others) < 20
    assert rig.delivered["crowd"] == crowd
    assert rig.most_loaded <= rig.bound


@in_virtual_time
async def test_many_crowded_users_do_not_hold_up_later_ones(tmp_path: Path) -> None:
    rig = Rig(tmp_path, read_ahead=128, turns=4)
    rig.append(*[f"crowd{i // 200}" for i in range(12 * 200)])
    rig.call_s = lambda: 1.0

    async def later() -> None:
        await anyio.sleep(320)
        rig.append("late")
        await rig.free()
        assert current().now_s > 450

    await rig.deliver(later)
    (late,) = rig.delivered["late"]
    assert rig.at_s[late] < 320 + PER_USER
    assert rig.most_loaded <= rig.bound


@in_virtual_time
async def test_many_parked_users_that_are_due_do_not_hold_up_later_ones(
    tmp_path: Path,
) -> None:
    """Calls of theirs hang, so that few of them are tried in a minute."""
    rig = Rig(tmp_path, read_ahead=100, turns=8)
    rig.most_retries = 4
    rig.append(*(f"hanging-{n}" for n in range(500)))
    rig.answer = lambda record: OWN if record.user_key != "late" else None

    async def until() -> None:
        await anyio.sleep(5)
        assert len(rig.calls) == 500
        rig.call_s = lambda: 30.0
        await anyio.sleep(170)
        rig.append("late")
        asked_s = current().now_s
        while "late" not in rig.delivered:
            await rig.feed.progress()
        assert current().now_s < asked_s + 60

    await rig.deliver(until)


@in_virtual_time
async def test_however_many_parked_users_wake_at_once_memory_is_bounded(tmp_path: Path) -> None:
    rig = Rig(tmp_path, read_ahead=100, turns=4)
    is_down = True
    rig.answer = lambda _: failing(rig.chance.choice(list(Blame))) if is_down else None
    rig.confirms = False
    rig.append(*[f"u{i % 200}" for i in range(200 * 30)])

    async def until() -> None:
        nonlocal is_down
        await anyio.sleep(30)
        is_down = False
        await rig.free()

    await rig.deliver(until)
    assert rig.most_loaded <= rig.bound < 200 * 30
    assert rig.delivered == rig.accepted


@pytest.mark.parametrize("read_ahead", [1, 2, 3])
@in_virtual_time
async def test_the_smallest_read_ahead_still_delivers(read_ahead: int, tmp_path: Path) -> None:
    rig = Rig(tmp_path, read_ahead=read_ahead, turns=2)
    rig.append(*["ann", "bob", "cid"] * 200)
    await rig.deliver(rig.free)
    assert rig.most_loaded <= rig.bound
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_large_records_are_bounded_in_bytes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, read_ahead=2048)
    size = READ_AHEAD_BYTES // 16
    most = 0

    def answer(_: Record) -> None:
        nonlocal most
        most = max(most, rig.budget.total)

    rig.answer = answer
    rig.append(*["ann"] * 40, *["bob"] * 40, raw=bytes(size))
    await rig.deliver(rig.free)
    assert most <= READ_AHEAD_BYTES + size
    assert rig.calls == {"ann": 40, "bob": 40}


@in_virtual_time
async def test_loaded_records_of_several_syncs_are_bounded_together(tmp_path: Path) -> None:
    together = LoadedBytes()
    rigs = [Rig(tmp_path / f"{n}", read_ahead=2048, budget=together) for n in range(3)]
    size = READ_AHEAD_BYTES // 16
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
    assert most <= READ_AHEAD_BYTES + len(rigs) * size
    assert [rig.calls.total() for rig in rigs] == [40, 40, 40]
    assert together.total == 0


class WatchedRecord(Record, frozen=True, weakref=True, gc=True):
    """A record of which can be told whether anybody still has it."""


@in_virtual_time
async def test_a_feed_that_waits_keeps_no_settled_record(tmp_path: Path) -> None:
    watched: list[weakref.ref[Record]] = []

    class WatchingQueue(Queue):
        def _read_queue(self, *wanted: Any) -> tuple[list[Record], int, bool]:
            taken, last_id, more = super()._read_queue(*wanted)
            found = [WatchedRecord(*msgspec.structs.astuple(record)) for record in taken]
            watched.extend(weakref.ref(record) for record in found)
            return list(found), last_id, more

    rig = Rig(tmp_path, store_type=store_of(WatchingQueue))
    rig.append("ann", "bob", "ann")
    (_, refused), _ = rig.accepted["ann"], rig.accepted["bob"]
    rig.answer = lambda record: REFUSED if record.id == refused else None

    async def until() -> None:
        await rig.free()
        gc.collect()
        assert [reference() for reference in watched] == [None] * 3

    await rig.deliver(until)


# --- users that wait ----------------------------------------------------------------------


@in_virtual_time
async def test_a_parked_user_wakes_when_it_is_due_and_others_do_not_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "bob", "ann", "bob")
    rig.answer = of_ann(OWN, rig, calls=2)
    wakes: list[float] = []

    async def until() -> None:
        while rig.pending:
            await rig.feed.progress()
            (wake,) = rig.db.execute("SELECT max(wake_at_ms) FROM users").fetchone()
            if wake:
                wakes.append(round(wake / 1000 - EPOCH_S, 3))

    await rig.deliver(until)
    assert max(rig.at_s[i] for i in rig.delivered["bob"]) < 0.1
    assert rig.delivered["ann"] == rig.accepted["ann"]
    assert rig.calls["ann"] == 4
    first = rig.called_at_s(rig.accepted["ann"][0])
    for called, wake in zip(first[1:], sorted(set(wakes)), strict=True):
        assert wake <= called < wake + 0.1


@in_virtual_time
async def test_a_deferred_user_goes_on_at_its_time_without_a_failure_and_others_do_not_wait(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.append(*["ann", "bob"] * 5)
    ann, bob = rig.accepted["ann"], rig.accepted["bob"]
    rig.not_before_ms[ann[2]] = current().wall_ms() + 40_000

    async def until() -> None:
        await anyio.sleep(20)
        assert rig.delivered == {"ann": ann[:2], "bob": bob}
        assert rig.failures("ann") == 0
        assert rig.store.users.parked_since_ms(rig.taker) is None
        assert rig.state("ann").deferred == Deferral(rig.not_before_ms[ann[2]], 0, "")
        assert rig.loaded == rig.bytes.held == 0
        await rig.settled()
        assert rig.state("ann").deferred is None

    await rig.deliver(until)
    assert rig.delivered["ann"] == ann
    assert 40 <= rig.at_s[ann[2]] < 40.1
    assert rig.deferrals == {"ann": 1}
    assert rig.calls == {"ann": 5, "bob": 5}


@in_virtual_time
async def test_deferring_forgives_a_failing_user_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "ann")
    first, second = rig.accepted["ann"]
    rig.answer = of_ann(OWN, rig, calls=2)

    async def until() -> None:
        await anyio.sleep(1)
        assert rig.failures("ann") == 1
        rig.not_before_ms[first] = current().wall_ms() + 500_000
        await anyio.sleep(450)
        assert rig.deferrals["ann"] == 1
        assert rig.failures("ann") == 1
        await rig.settled()

    await rig.deliver(until)
    assert rig.delivered["ann"] == [first, second]
    assert rig.calls["ann"] == 4


@in_virtual_time
async def test_after_a_clock_was_set_back_nobody_leaves_before_its_second(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "bob")
    rig.not_before_ms = dict.fromkeys(
        [*rig.accepted["ann"], *rig.accepted["bob"]], current().wall_ms() + 30_000
    )

    async def until() -> None:
        await anyio.sleep(1)
        current().wall_offset_s = -20.0
        await anyio.sleep(40)
        assert not rig.delivered, "their second begins ten seconds later"
        await anyio.sleep(11)
        assert rig.delivered == rig.accepted

    await rig.deliver(until)


@pytest.mark.parametrize("kind", ["deferred", "parked"])
@in_virtual_time
async def test_nobody_waits_for_a_clock_that_was_set_back_far(kind: str, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (id_,) = rig.append("ann")
    if kind == "parked":
        rig.answer = of_ann(OWN, rig, calls=1)
    else:
        rig.not_before_ms[id_] = current().wall_ms() + 30_000

    async def until() -> None:
        await anyio.sleep(1)
        current().wall_offset_s = -86_400.0
        with anyio.fail_after(240 if kind == "parked" else 40):
            await rig.settled()

    await rig.deliver(until)


@in_virtual_time
async def test_a_turn_that_could_not_be_had_charges_nobody_and_keeps_the_order(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, turns=1)
    rig.append("ann", "bob", "ann")
    asked = iter([""] * 5)
    rig.answer = lambda _: next(asked, None)
    await rig.deliver(rig.free)
    assert rig.delivered == rig.accepted
    first, *_ = rig.accepted["ann"]
    assert [called for called, _ in rig.called[:6]] == [first] * 6


@in_virtual_time
async def test_a_user_that_keeps_failing_loses_one_record_and_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "ann", "ann")
    bad, *rest = rig.accepted["ann"]
    rig.answer = lambda record: OWN if record.id == bad else None

    async def until() -> None:
        await rig.settled()
        assert rig.dead() == {bad: "user_failing"}
        rig.check_balance()

    await rig.deliver(until)
    assert rig.calls["ann"] == 5 + 2
    assert rig.delivered["ann"] == rest


@in_virtual_time
async def test_once_a_record_has_had_its_attempts_its_user_goes_on_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    bad, good = rig.append("ann", "ann")
    rig.answer = lambda record: OWN if record.id == bad else None
    await rig.deliver(rig.settled)
    assert rig.at_s[good] < rig.called_at_s(bad)[-1] + 1


@in_virtual_time
async def test_a_success_forgives_the_failures_before_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    first, second = rig.append("ann", "ann")

    def answer(record: Record) -> Said:
        fails = 4 if record.id == first else 1
        return NOT_KNOWN if sum(id_ == record.id for id_, _ in rig.called) <= fails else None

    rig.answer = answer
    await rig.deliver(rig.settled)
    times = [at_s for id_, at_s in rig.called if id_ == second]
    assert 0.8 * FIRST_WAIT_S < times[1] - times[0] < 1.2 * FIRST_WAIT_S


# --- what is found out later --------------------------------------------------------------


@in_virtual_time
async def test_a_charge_counts_only_once_it_stands(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (id_,) = rig.append("ann")
    rig.answer = lambda _: OWN
    rig.confirms = False

    async def until() -> None:
        await anyio.sleep(1)
        assert rig.attempts(id_) == 0
        rig.settlement.charge("ann", EVENTS, stands=True)
        await anyio.sleep(1)
        assert rig.attempts(id_) == 1
        rig.settlement.charge("ann", EVENTS, stands=True)
        await anyio.sleep(1)
        assert rig.attempts(id_) == 1, "one failure was charged twice"

    await rig.deliver(until)


@in_virtual_time
async def test_a_charge_that_is_cancelled_costs_no_attempt_however_often(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (id_,) = rig.append("ann")
    rig.answer = of_ann(OWN, rig, calls=20)
    rig.confirms = False

    async def until() -> None:
        while rig.pending:
            await rig.feed.progress()
            rig.settlement.charge("ann", EVENTS, stands=False)
            assert rig.attempts(id_) == 0

    await rig.deliver(until)
    assert rig.calls["ann"] == 21
    assert rig.delivered["ann"] == [id_]


@in_virtual_time
async def test_a_charge_that_stands_before_its_failure_is_written_is_not_lost(
    tmp_path: Path,
) -> None:
    """A slow commit, and a success of another user that is seen meanwhile."""
    rig = Rig(tmp_path, late=True)
    (id_,) = rig.append("ann")
    rig.confirms = False

    def answer(_: Record) -> Said:
        rig.stand_still(0.5)
        current().call_later(0.1, partial(rig.settlement.charge, "ann", EVENTS, stands=True))
        return OWN

    rig.answer = answer

    async def until() -> None:
        await anyio.sleep(5)
        assert rig.failures("ann") == 1
        assert rig.attempts(id_) == 1

    await rig.deliver(until)


@in_virtual_time
async def test_a_user_that_is_hastened_is_tried_at_that_instant(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (id_,) = rig.append("ann")
    rig.answer = of_ann(NOT_KNOWN, rig, calls=1)

    async def until() -> None:
        await anyio.sleep(0.5)
        rig.settlement.hasten("ann", 0.5)
        await rig.settled()

    await rig.deliver(until)
    first, second = rig.called_at_s(id_)
    assert second == pytest.approx(first + 1.0, abs=0.05)


@in_virtual_time
async def test_hastening_lets_nobody_wait_for_longer(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann")
    rig.answer = of_ann(NOT_KNOWN, rig, calls=1)

    async def until() -> None:
        await anyio.sleep(0.5)
        rig.settlement.hasten("ann", 500.0)
        rig.settlement.hasten("nobody", 0.0)
        await rig.settled()
        assert current().now_s < 8

    await rig.deliver(until)


@in_virtual_time
async def test_a_user_that_is_hastened_before_its_failure_is_written_does_not_wait(
    tmp_path: Path,
) -> None:
    """Deliveries wait for others, and a turn that ends waits with them."""
    rig = Rig(tmp_path)
    bob, ann = rig.append("bob", "ann")

    def answer(record: Record) -> Said:
        if record.id == ann and len(rig.called_at_s(ann)) == 1:
            current().call_later(0.001, rig.settlement.hasten, "ann", 1.0)
            return NOT_KNOWN
        return None

    rig.answer = answer
    await rig.deliver(rig.settled)
    first, second = rig.called_at_s(ann)
    assert rig.at_s[bob] <= first
    assert second < first + 2


# --- users that are unknown ---------------------------------------------------------------


@in_virtual_time
async def test_an_identify_behind_an_unknown_user_wakes_it_at_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.answer = unknown_until_identified()
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
    rig = Rig(tmp_path)
    rig.answer = unknown_until_identified()
    rig.append("ann")
    rig.append("ann", kind=Kind.IDENTIFY)
    rig.append("ann")
    first, identify, last = rig.accepted["ann"]

    async def until() -> None:
        await rig.settled()
        assert current().now_s < 0.2

    await rig.deliver(until)
    assert rig.delivered["ann"] == [identify, first, last]


def test_an_identify_that_was_loaded_at_a_crash_still_wakes_its_unknown_user(
    tmp_path: Path,
) -> None:
    """Parked, and the process died before what was loaded behind came back."""
    ids: list[int] = []

    @in_virtual_time
    async def first() -> None:
        rig = Rig(tmp_path)
        rig.append("ann")
        rig.append("ann", kind=Kind.IDENTIFY)
        rig.append("ann")
        ids.extend(rig.accepted["ann"])
        now_ms, store = current().wall_ms(), rig.store
        store.begin()
        wanted = Wanted(limit=100, limit_bytes=1 << 20, per_user=100, now_ms=now_ms)
        one, _, three = store.queue(rig.taker).load(wanted).records
        settling = store.settling(rig.taker)
        settling.park(one, [three.id], UNKNOWN, now_ms + 1_800_000, now_ms)
        settling.note_unknown("ann", Stranger(1, now_ms + 1_800_000, now_ms))
        store.commit()
        await rig.spool.close()

    @in_virtual_time
    async def second() -> None:
        rig = Rig(tmp_path)
        one, identify, three = ids
        await rig.deliver(rig.settled)
        assert rig.delivered["ann"] == [identify, one, three]
        assert max(rig.at_s.values()) < 1

    first()
    second()


@in_virtual_time
async def test_an_unknown_users_events_expire_after_the_window(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.answer = of_ann(UNKNOWN, rig)
    rig.append(*["ann"] * 500, "bob")

    async def until() -> None:
        await rig.settled()
        assert HOUR_S * 0.8 < current().now_s < HOUR_S * 1.5
        assert set(rig.dead().values()) == {"user_not_found"}
        assert len(rig.dead()) == 500
        rig.check_balance()

    await rig.deliver(until)
    assert rig.calls["ann"] <= 8


@in_virtual_time
async def test_the_window_begins_with_the_first_refusal_not_with_acceptance(
    tmp_path: Path,
) -> None:
    """Deliveries that stood still for a day must not cost an event its retries."""
    rig = Rig(tmp_path)
    rig.append("ann", "ann")
    await anyio.sleep(24 * HOUR_S)
    rig.answer = of_ann(UNKNOWN, rig, calls=4)
    await rig.deliver(rig.settled)
    assert len(rig.delivered["ann"]) == 2
    assert current().now_s > 24.3 * HOUR_S


@pytest.mark.parametrize("said", [REFUSED, NOT_KNOWN, OWN])
@in_virtual_time
async def test_identifies_that_fail_in_between_take_no_attempt_of_an_event_away(
    said: Said, tmp_path: Path
) -> None:
    """The attempts keep their window, however often the user is tried."""

    rig = Rig(tmp_path)
    (event,) = rig.append("ann")

    def answer(record: Record) -> Said:
        if record.kind is Kind.EVENT:
            return UNKNOWN
        return REFUSED if len(rig.called_at_s(record.id)) > 2 else said

    rig.answer = answer

    async def until() -> None:
        for _ in range(15):
            await anyio.sleep(150)
            rig.append("ann", kind=Kind.IDENTIFY)
        await anyio.sleep(150)
        assert event not in rig.dead(), "it had less than its window"
        await rig.settled()
        assert rig.dead()[event] == "user_not_found"
        rig.check_balance()

    await rig.deliver(until)
    assert HOUR_S * 0.8 < current().now_s < HOUR_S * 3


@in_virtual_time
async def test_a_new_event_of_an_unknown_user_has_it_tried_at_once_only_a_minute_after_the_last(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.answer = of_ann(UNKNOWN, rig)
    (first,) = rig.append("ann")

    async def until() -> None:
        await anyio.sleep(30)
        rig.append("ann")
        await anyio.sleep(10)
        assert rig.calls["ann"] == 1
        await anyio.sleep(25)
        rig.append("ann")
        await anyio.sleep(1)
        assert rig.calls["ann"] == 2
        rig.append(*["ann"] * 20)
        await anyio.sleep(30)
        assert rig.calls["ann"] == 2

    await rig.deliver(until)
    assert len(rig.called_at_s(first)) == 2


# --- ends, starts and faults --------------------------------------------------------------


@in_virtual_time
async def test_a_damaged_last_record_ends_the_wait_for_all_to_be_settled(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann")
    rig.db.execute("UPDATE inbox SET events = x'7b7c'")
    await rig.deliver(rig.settled)
    assert rig.delivered == {}
    assert rig.counters["dead"] == 1


def test_records_left_at_a_stop_are_delivered_in_order_by_the_next_feed(tmp_path: Path) -> None:
    users = ["ann"] * 100 + ["bob"] * 3
    seen: list[Rig] = []

    @in_virtual_time
    async def first() -> None:
        rig = Rig(tmp_path)
        seen.append(rig)
        rig.append(*users)
        rig.call_s = lambda: 1.0
        await rig.deliver(lambda: anyio.sleep(5.5))
        assert sum(rig.calls.values()) < 20

    @in_virtual_time
    async def second() -> None:
        rig = Rig(tmp_path)
        seen.append(rig)
        await rig.deliver(rig.settled)

    first()
    second()
    for user, count in Counter(users).items():
        delivered = seen[0].delivered.get(user, []) + seen[1].delivered.get(user, [])
        assert delivered == sorted(set(delivered))
        assert len(delivered) == count


@in_virtual_time
async def test_answered_records_are_settled_when_delivery_is_cancelled(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "bob")
    rig.call_s = iter([0.0, 9.0]).__next__

    with anyio.move_on_after(0.01):
        await rig.deliver(lambda: anyio.sleep(1))
    assert rig.delivered == {"ann": rig.accepted["ann"]}
    assert rig.pending == 1


@in_virtual_time
async def test_refused_records_are_settled_when_delivery_is_cancelled(tmp_path: Path) -> None:
    """At that very moment."""
    rig = Rig(tmp_path)
    rig.append("ann")

    def answer(_: Record) -> Said:
        rig.break_down()
        return REFUSED

    rig.answer = answer
    await rig.deliver(lambda: anyio.sleep(0.5), is_killed=True)
    again = Rig(tmp_path)
    assert again.counters["dead"] == 1
    await again.spool.close()


@in_virtual_time
async def test_an_adjustment_counts_once_though_delivery_is_cancelled_in_a_commit(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, late=True)
    (id_,) = rig.append("ann")
    rig.mine.tally.adjust(["text_cut"] * 3)

    async def until() -> None:
        while id_ not in rig.at_s:
            await anyio.sleep(0.001)
        rig.stand_still(1.0)
        await anyio.sleep(0.5)

    await rig.deliver(until, is_killed=True)
    again = Rig(tmp_path)
    assert again.counters["delivered"] == 1
    assert again.counters["adjusted:text_cut"] == 3
    await again.spool.close()


@in_virtual_time
async def test_a_failing_disk_holds_deliveries_up_and_loses_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.append(*["ann", "bob", "cid"] * 40)
    chance = random.Random(7)
    rig.answer = lambda _: NOT_KNOWN if chance.random() < 0.1 else None
    rig.spool.writer = FailingDisk(rig.database, chance, 0.2)
    await rig.deliver(rig.free)
    assert rig.delivered == rig.accepted


@pytest.mark.parametrize(
    "fault", [sqlite3.DatabaseError("database disk image is malformed"), ValueError("a bug")]
)
@in_virtual_time
async def test_a_record_that_cannot_be_settled_keeps_no_other_from_it(
    fault: Exception, tmp_path: Path
) -> None:
    """They are settled together, but not at any price."""

    class StuckSettling(Settling):
        def deliver(self, records: Sequence[Record], now_ms: int) -> None:
            if stuck in [record.id for record in records] and rig.counters["delivered"] < 19:
                raise fault
            super().deliver(records, now_ms)

    rig = Rig(tmp_path, store_type=store_of(settlings=StuckSettling))
    rig.append(*(f"user-{n}" for n in range(20)))
    (stuck,) = rig.accepted["user-7"]
    rig.fault_kinds = (type(fault), SpoolDamaged)
    with anyio.fail_after(60):
        await rig.deliver(rig.settled)
    assert rig.counters["delivered"] == 20
    assert {user for user, calls in rig.calls.items() if calls > 1} <= {"user-7"}


@in_virtual_time
async def test_an_adjustment_counts_once_though_the_first_commit_fails(
    tmp_path: Path,
) -> None:
    failures = 1

    class FailingSettling(Settling):
        def deliver(self, records: Sequence[Record], now_ms: int) -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise sqlite3.OperationalError("disk I/O error")
            super().deliver(records, now_ms)

    rig = Rig(tmp_path, store_type=store_of(settlings=FailingSettling))
    rig.mine.tally.adjust(["text_cut"] * 3)
    rig.append("ann")
    counted: list[int] = []

    async def until() -> None:
        await rig.settled()
        rig.append("ann")
        await rig.settled()
        counted.append(rig.counters["adjusted:text_cut"])

    await rig.deliver(until)
    assert counted == [3]


class RigOfEnds(Rig):
    """Its actors let each turn end in a way of its own, by its user."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: list[Transaction] = []

    async def _work(self, turn: Turn) -> None:
        settlement, records = self.settlement, turn.records
        match turn.user:
            case "delivered":
                settlement.deliver(records[0])
            case "dead":
                settlement.bury(records[0], REFUSED)
            case "dropped":
                settlement.drop(records[0], DropReason.UNKNOWN_USER)
            case user:
                is_new = user == "updated"
                await settlement.settle_update(records, self.kept.append, delivered=is_new)
        del self.at_work[turn.user]
        settlement.end(turn, GoOn())


@in_virtual_time
async def test_every_way_in_which_a_record_ends_is_counted_and_lets_go_of_it(
    tmp_path: Path,
) -> None:
    rig = RigOfEnds(tmp_path)
    rig.append("delivered", "dead", "dropped")
    rig.append("updated", "unchanged", "updated", kind=Kind.IDENTIFY)

    async def until() -> None:
        await rig.settled()
        await anyio.sleep(1)
        assert rig.dead() == {rig.accepted["dead"][0]: "refused"}
        assert rig.counters["delivered"] == 1 + 2
        assert rig.counters[f"dropped:{DropReason.UNKNOWN_USER}"] == 1
        assert rig.counters[f"dropped:{DropReason.UNCHANGED}"] == 1
        assert rig.kept == [rig.store] * 2
        assert rig.loaded == rig.bytes.held == 0
        assert sum(rig.settlement.latency.value.counts) == 4

    await rig.deliver(until)


@in_virtual_time
async def test_failed_work_is_raised_to_its_waiter_and_stops_no_other_work(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.append("ann", "bob")
    told: list[Any] = []

    def fail(_: Transaction) -> None:
        raise ValueError("a bug")

    async def settle(work: Callable[[Transaction], Any]) -> None:
        try:
            told.append(await rig.settlement.write(work))
        except ValueError as fault:
            told.append(fault)

    async def until() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle, lambda _: "well")
            tasks.start_soon(settle, fail)
            tasks.start_soon(settle, lambda _: "well as well")
        await rig.settled()

    await rig.deliver(until)
    well, fault, well_too = told
    assert (well, str(fault), well_too) == ("well", "a bug", "well as well")
    assert rig.delivered == rig.accepted
    assert rig.faults == 0


@in_virtual_time
async def test_an_adjustment_counts_though_the_update_that_was_to_count_it_fails(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    (id_,) = rig.append("ann")

    def fail(_: Transaction) -> None:
        raise TypeError("no JSON")

    rig.mine.tally.adjust(["text_cut"] * 3)

    async def until() -> None:
        record = Record(id_, Kind.EVENT, "ann", current().wall_ms(), b"{}")
        with pytest.raises(TypeError):
            await rig.settlement.settle_update([record], fail, delivered=True)
        rig.append("bob")
        await rig.settled()

    await rig.deliver(until)
    again = Rig(tmp_path)
    assert again.counters["adjusted:text_cut"] == 3
    await again.spool.close()


@in_virtual_time
async def test_deliveries_share_commits(tmp_path: Path) -> None:
    settled: list[int] = []

    class CountingSettling(Settling):
        def deliver(self, records: Sequence[Record], now_ms: int) -> None:
            settled.append(len(records))
            super().deliver(records, now_ms)

    rig = Rig(tmp_path, store_type=store_of(settlings=CountingSettling))
    rig.append(*(f"user-{n % 10}" for n in range(50)))
    rig.call_s = lambda: 0.001
    await rig.deliver(rig.settled)
    assert sum(settled) == 50
    assert len(settled) <= 5


@in_virtual_time
async def test_answered_and_unsettled_records_are_bounded_by_the_turns_at_work(
    tmp_path: Path,
) -> None:
    """A kill repeats it, so it is bounded: here the disk stands still for a while."""
    rig = Rig(tmp_path, turns=5)
    rig.append(*(f"user-{n}" for n in range(40)))
    disk = rig.spool.writer = StandingDisk(rig.spool._database)

    async def until() -> None:
        await anyio.sleep(0.005)  # what is loaded first is loaded
        disk.stands_still = True
        await anyio.sleep(30)
        assert rig.calls.total() == 5
        disk.go_on()
        await rig.settled()

    await rig.deliver(until)
    assert rig.calls.total() == 40


@in_virtual_time
async def test_a_delivered_record_is_not_buried_with_expiring_ones(tmp_path: Path) -> None:
    """A crowded user's event is answered, and the next turns out to be of nobody, at once."""
    rig = Rig(tmp_path, attempts=1)
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


@pytest.mark.parametrize("seed", range(10))
@in_virtual_time
async def test_a_feed_that_faults_begins_anew_and_neither_loses_nor_doubles(
    seed: int, tmp_path: Path
) -> None:
    """While turns are at work, and users wait."""

    is_faulty = True

    class FaultyQueue(Queue):
        def load(self, wanted: Wanted) -> Loaded:
            if is_faulty and rig.chance.random() < 0.2:
                raise Fault
            return super().load(wanted)

    store_type = store_of(FaultyQueue)
    late = seed % 2 == 1
    rig = Rig(tmp_path, read_ahead=8, turns=6, seed=seed, late=late, store_type=store_type)
    chance = rig.chance
    rig.call_s = lambda: chance.choice([0.01, 0.1, 3.0])
    rig.answer = lambda _: chance.choice([NOT_KNOWN, OWN, *[None] * 8]) if is_faulty else None
    rig.confirms = False
    rig.append(*(f"user-{n % 7}" for n in range(200)))

    async def until() -> None:
        nonlocal is_faulty
        await anyio.sleep(60)
        is_faulty = False
        await rig.free()
        rig.check_balance()

    await rig.deliver(until)
    assert rig.faults > 1
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_a_feed_that_stops_after_a_fault_sends_nothing_more(tmp_path: Path) -> None:
    faults = iter([False, True])

    class FaultyQueue(Queue):
        def load(self, wanted: Wanted) -> Loaded:
            if next(faults, False):
                raise Fault
            return super().load(wanted)

    rig = Rig(tmp_path, turns=1, store_type=store_of(FaultyQueue))
    rig.append("ann", "bob", "cid")
    rig.call_s = lambda: 5.0

    async def until() -> None:
        await anyio.sleep(1)
        rig.append("dan")
        await anyio.sleep(3)
        assert rig.faults == 0  # it is raised when nothing is at work any more
        await anyio.sleep(1.5)
        assert rig.faults == 1

    await rig.deliver(until)
    assert rig.delivered == {"ann": rig.accepted["ann"]}


# --- circuits -----------------------------------------------------------------------------

MANY = 5_000


def crowd(kind: Kind) -> list[str]:
    word = "event" if kind is Kind.EVENT else "identify"
    return [f"{word}-{n}" for n in range(MANY)]


@in_virtual_time
async def test_behind_events_that_wait_for_a_circuit_identifies_go_on_and_memory_is_bounded(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, read_ahead=512, turns=32)
    rig.open_circuit()
    rig.append(*crowd(Kind.EVENT))
    rig.append(*crowd(Kind.EVENT))
    rig.append("event-0", *(f"identify-{n}" for n in range(500)), kind=Kind.IDENTIFY)

    async def until() -> None:
        await anyio.sleep(60)
        assert len(rig.delivered) == 500
        assert all(user.startswith("identify") for user in rig.delivered)
        assert rig.loaded <= LOAD_ROWS
        rig.check_balance()
        rig.close_circuit()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted
    assert rig.most_loaded <= 2 * LOAD_ROWS + rig.bound
    assert rig.most_loaded < MANY


def test_events_that_wait_for_a_circuit_go_in_order_after_a_restart(tmp_path: Path) -> None:
    accepted: dict[str, list[int]] = {}
    delivered: dict[str, list[int]] = {}

    @in_virtual_time
    async def first() -> None:
        rig = Rig(tmp_path, read_ahead=512, turns=32)
        rig.append(*crowd(Kind.EVENT))
        rig.append(*crowd(Kind.EVENT), "new")
        accepted.update(rig.accepted)

        async def until() -> None:
            await anyio.sleep(0.1)
            rig.open_circuit()
            await anyio.sleep(2)
            assert 0 < len(rig.delivered) < 500
            assert rig.pending > 2 * MANY - 500

        await rig.deliver(until, is_killed=True)
        delivered.update(rig.delivered)

    @in_virtual_time
    async def second() -> None:
        rig = Rig(tmp_path, read_ahead=512, turns=32)
        rig.open_circuit()

        async def until() -> None:
            await anyio.sleep(30)
            assert rig.delivered == {}
            assert rig.loaded <= LOAD_ROWS
            rig.close_circuit()
            await rig.free()

        await rig.deliver(until)
        for user, ids in rig.delivered.items():
            delivered[user] = delivered.get(user, []) + ids
        assert delivered == accepted

    first()
    second()


@in_virtual_time
async def test_of_those_that_wait_for_a_circuit_a_probe_is_loaded_though_all_are_aside(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, read_ahead=4, turns=4)
    rig.append(*(f"u{n}" for n in range(100)))
    rig.open_circuit()

    async def until() -> None:
        await anyio.sleep(5)
        turn = rig.scheduler.choose_probe(EVENTS, lambda _: False)
        assert turn is not None
        rig.settlement.end(turn, PutBack(turn.records))
        await anyio.sleep(1)
        rig.close_circuit()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_parked_users_that_are_due_while_a_circuit_is_open_do_not_fill_memory(
    tmp_path: Path,
) -> None:
    """As many as nobody knows, and then an outage."""
    rig = Rig(tmp_path, read_ahead=512, turns=32)
    rig.append(*crowd(Kind.EVENT))
    rig.answer = lambda record: UNKNOWN if rig.calls[record.user_key] == 1 else None

    async def until() -> None:
        await anyio.sleep(100)
        assert set(rig.calls.values()) == {1}
        assert len(rig.calls) == MANY
        rig.open_circuit()
        await anyio.sleep(100)
        assert rig.loaded <= rig.bound < MANY
        rig.close_circuit()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_behind_updates_that_wait_for_a_circuit_events_go_on_and_memory_is_bounded(
    tmp_path: Path,
) -> None:
    """Which endpoint an update needs turns out in its turn."""
    rig = Rig(tmp_path, read_ahead=512, turns=32)
    endpoint = "PUT /contacts/{id}"
    circuit = rig.health.of(endpoint).circuit
    circuit.open(0.0)
    rig.append(*crowd(Kind.IDENTIFY), kind=Kind.IDENTIFY)
    rig.append("identify-0", *(f"event-{n}" for n in range(500)))
    rig.call_s = lambda: 0.001
    rig.answer = lambda record: (
        endpoint if circuit.is_open and record.kind is Kind.IDENTIFY else None
    )

    async def until() -> None:
        await anyio.sleep(60)
        assert len(rig.delivered) == 500
        assert all(user.startswith("event") for user in rig.delivered)
        assert rig.loaded <= LOAD_ROWS
        circuit.close()
        rig.feed.more_may_be_wanted()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted
    assert rig.most_loaded <= 2 * LOAD_ROWS + rig.bound


@in_virtual_time
async def test_a_user_that_was_charged_keeps_its_back_off_where_others_are_well(
    tmp_path: Path,
) -> None:
    """The failures of an outage were heard of, and 14 minutes became one second."""
    rig = Rig(tmp_path)
    rig.append("ann")
    rig.answer = of_ann(OWN, rig)

    async def until() -> None:
        await anyio.sleep(1)
        calls = rig.calls["ann"]
        rig.settlement.hasten("ann", 0.0)
        await anyio.sleep(1)
        assert rig.calls["ann"] == calls == 1

    await rig.deliver(until)


@in_virtual_time
async def test_a_feed_with_a_full_read_ahead_does_not_poll_while_a_user_is_due(
    tmp_path: Path,
) -> None:
    """It looked a thousand times a second."""
    rig = Rig(tmp_path, read_ahead=2)
    rig.append("ann")
    rig.answer = of_ann(NOT_KNOWN, rig)

    async def until() -> None:
        await anyio.sleep(1)  # ann waits for its next try
        full = Loaded([], [], {}, 0, [], 1, None, [], False)
        rig.loading.take(full, Wanted(1, 1, 1, 0))
        many = [Record(n, Kind.EVENT, "bob", 1, b"{}") for n in range(1, 4)]
        rig.scheduler.hold(SYNC)
        rig.scheduler.add(SYNC, Incoming("bob", many))
        assert rig.loading.due_in_s() == LONGEST_NAP_S
        rig.scheduler.withdraw(SYNC, (EVENTS, False), 0, 0)

    await rig.deliver(until)


LARGE = b"{" + b" " * 100_000 + b"}"
OTHERS_BYTES = 12 << 20
"""What other syncs have loaded."""


@pytest.mark.parametrize("users", [300, 3])
@in_virtual_time
async def test_behind_large_events_that_wait_for_a_circuit_identifies_go_on(
    tmp_path: Path, users: int
) -> None:
    """They filled all that may be loaded, and nothing else was until the outage was over."""

    rig = Rig(tmp_path, read_ahead=512, turns=32)
    rig.budget.total += OTHERS_BYTES
    rig.open_circuit()
    for n in range(300):
        rig.append(f"event-{n % users}", raw=LARGE)
    rig.append(*(f"identify-{n}" for n in range(50)), kind=Kind.IDENTIFY)

    async def until() -> None:
        await anyio.sleep(60)
        assert len(rig.delivered) == 50
        assert rig.bytes.held <= READ_AHEAD_BYTES
        rig.feed.more_may_be_wanted()
        await anyio.sleep(1)
        turn = rig.scheduler.choose_probe(EVENTS, lambda _: False)
        assert turn is not None
        rig.settlement.end(turn, PutBack(turn.records))
        rig.close_circuit()
        rig.budget.total -= OTHERS_BYTES
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_large_events_of_parked_users_leave_memory_for_others_in_an_outage(
    tmp_path: Path,
) -> None:
    """Parked users are not put aside again: so what is loaded of them has to be little."""
    rig = Rig(tmp_path, turns=32)
    rig.budget.total += OTHERS_BYTES
    for n in range(300):
        rig.append(f"event-{n}", raw=LARGE)
    rig.answer = lambda record: (
        UNKNOWN if rig.calls[record.user_key] == 1 and record.kind is Kind.EVENT else None
    )

    async def until() -> None:
        await anyio.sleep(4)
        assert len(rig.calls) == 300
        rig.open_circuit()
        await anyio.sleep(HOUR_S)
        rig.append(*(f"identify-{n}" for n in range(50)), kind=Kind.IDENTIFY)
        await anyio.sleep(10)
        assert all(f"identify-{n}" in rig.delivered for n in range(50))
        rig.close_circuit()
        rig.budget.total -= OTHERS_BYTES
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_records_appended_during_a_load_are_loaded_next(tmp_path: Path) -> None:
    """What was found out of the queue was taken for true after it, too."""
    rig = Rig(tmp_path)
    wanted = rig.loading.want()
    assert wanted is not None
    found = rig.loading.load(rig.store, wanted)
    rig.loading.more_is_queued()
    rig.loading.take(found, wanted)
    assert rig.loading.wanted() is not None
    await rig.spool.close()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Kind.IDENTIFY, Kind.IDENTIFY),
        (Kind.EVENT_WITH_UPDATE, Kind.EVENT_WITH_UPDATE),
        (Kind.EVENT, Kind.EVENT_WITH_UPDATE),
    ],
)
@pytest.mark.parametrize("said", [UNKNOWN, NOT_KNOWN, OWN])
@in_virtual_time
async def test_a_user_that_fails_keeps_its_back_off_though_an_update_waits(
    tmp_path: Path, first: Kind, then: Kind, said: Said
) -> None:
    """A hundred calls a second were made, for the update that was to make the user known."""

    rig = Rig(tmp_path)
    rig.append("ann", kind=first)
    rig.append("ann", kind=then)
    rig.answer = lambda record: said

    async def until() -> None:
        await anyio.sleep(300)
        assert rig.calls["ann"] <= 12

    await rig.deliver(until)


@in_virtual_time
async def test_a_user_put_aside_behind_a_circuit_goes_on_when_it_closes(
    tmp_path: Path,
) -> None:
    """Without anything else to wake the feed: nobody looked at the table again."""
    rig = Rig(tmp_path, read_ahead=512, turns=4)
    rig.append(*(f"u{n}" for n in range(600)))
    rig.call_s = lambda: 1.0

    async def until() -> None:
        await anyio.sleep(0.5)
        rig.open_circuit()
        await anyio.sleep(60)
        rig.close_circuit()
        await anyio.sleep(400)
        assert rig.pending == 0

    await rig.deliver(until)


@in_virtual_time
async def test_parked_users_behind_a_circuit_leave_their_slots_to_those_of_other_endpoints(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, turns=8)
    events = [f"event-{n}" for n in range(2 * MOST_RETRIES)]
    rig.append(*events)
    rig.append("identify", kind=Kind.IDENTIFY)
    rig.answer = lambda record: OWN if rig.calls[record.user_key] == 1 else None

    async def until() -> None:
        await anyio.sleep(5)
        rig.open_circuit()
        await anyio.sleep(HOUR_S)
        assert rig.delivered.keys() == {"identify"}
        rig.close_circuit()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_large_events_that_stay_for_retries_keep_no_other_from_being_loaded(
    tmp_path: Path,
) -> None:
    """Of each sync one stays in memory, so that a hundred syncs have more than there is."""
    rig = Rig(tmp_path)
    rig.budget.total += READ_AHEAD_BYTES
    rig.append("ann", raw=b"{" + b" " * 200_000 + b"}")
    rig.open_circuit()

    async def until() -> None:
        await anyio.sleep(30)
        rig.append(*(f"identify-{n}" for n in range(9)), kind=Kind.IDENTIFY)
        await anyio.sleep(30)
        assert len(rig.delivered) == 9
        rig.budget.total -= READ_AHEAD_BYTES
        rig.close_circuit()
        await rig.free()

    await rig.deliver(until)


@in_virtual_time
async def test_a_fault_before_anything_is_written_stops_a_feed_as_any_other(
    tmp_path: Path,
) -> None:
    """What had come was lost with it, and the feed waited for ever for turns that had ended."""
    faults = iter([True])

    class FaultyLoading(Loading):
        def want(self) -> Wanted | None:
            if current().now_s > 0.5 and next(faults, False):
                raise Fault
            return super().want()

    rig = Rig(tmp_path, turns=2, loading=FaultyLoading)
    rig.append("ann", "bob", "cid")
    rig.call_s = lambda: 1.0

    async def until() -> None:
        await rig.free()

    await rig.deliver(until)
    assert rig.faults == 1
    assert set(rig.delivered) == {"ann", "bob", "cid"}


@in_virtual_time
async def test_one_user_at_a_time_is_loaded_to_try_an_endpoint_of_contacts(
    tmp_path: Path,
) -> None:
    """Which endpoint an update needs turns out in its turn: until then nobody waits for it."""
    endpoint = "PUT /contacts/{id}"
    faults = iter([True])
    loads: list[float] = []
    is_counting = False

    class CountingQueue(Queue):
        def load(self, wanted: Wanted) -> Loaded:
            if is_counting:
                loads.append(current().now_s)
                if next(faults, False):
                    raise Fault  # which empties memory
            return super().load(wanted)

    rig = Rig(tmp_path, read_ahead=512, turns=32, store_type=store_of(CountingQueue))
    circuit = rig.health.of(endpoint).circuit
    circuit.open(0.0)
    rig.append(*(f"identify-{n}" for n in range(600)), kind=Kind.IDENTIFY)
    rig.answer = lambda _: endpoint if circuit.is_open else None

    async def until() -> None:
        nonlocal is_counting
        await anyio.sleep(30)
        is_counting = True
        rig.turns = 0  # as where a pause keeps turns from being chosen
        rig.append("another", kind=Kind.IDENTIFY)
        await anyio.sleep(30)
        assert rig.faults == 1
        assert len(loads) < 20
        rig.turns = 32
        circuit.close()
        rig.feed.more_may_be_wanted()
        rig.news.set()
        await rig.free()

    await rig.deliver(until)
    assert rig.delivered == rig.accepted


@in_virtual_time
async def test_a_second_fault_while_a_feed_winds_down_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """Turns stayed at work, and as many calls less were made from then on."""
    faults = iter([True, True, True])

    class FaultyScheduler(Scheduler):
        def go_on(self, *args: Any, **more: Any) -> None:
            if current().now_s > 0.5 and next(faults, False):
                raise Fault
            super().go_on(*args, **more)

    rig = Rig(tmp_path, turns=4, scheduler=FaultyScheduler)
    rig.append(*(f"u{n}" for n in range(20)))
    rig.call_s = lambda: 1.0

    async def until() -> None:
        await rig.settled()
        await anyio.sleep(10)
        assert rig.faults >= 1
        assert (rig.scheduler.at_work.calls, rig.scheduler.at_work.undeparted) == (0, 0)
        assert rig.scheduler.of(SYNC).at_work == 0

    await rig.deliver(until)
    assert set(rig.delivered) == set(rig.accepted)


@in_virtual_time
async def test_wanted_records_are_loaded_though_a_write_beside_them_fails(
    tmp_path: Path,
) -> None:
    """Both are one transaction: what is not written in it is not loaded either."""
    rig = Rig(tmp_path)

    def fail(_: Transaction) -> None:
        raise ValueError("a bug")

    async def until() -> None:
        await anyio.sleep(1)
        rig.append("ann")
        with pytest.raises(ValueError, match="a bug"):
            await rig.settlement.write(fail)
        await anyio.sleep(5)
        assert rig.delivered == rig.accepted

    await rig.deliver(until)
