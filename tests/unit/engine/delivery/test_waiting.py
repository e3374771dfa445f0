"""How long users wait after a failure, and what is written of it, on a store of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from amplitude_intercom.engine.backoff import GROWTH, LONGEST_WAIT_S
from amplitude_intercom.engine.delivery import waiting
from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered
from amplitude_intercom.engine.delivery.health import Blame
from amplitude_intercom.engine.delivery.waiting import SICK_ATTEMPTS, SICK_MOST_S, Retries
from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.spool.jobs import Expiry, JobKind
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.settling import MOST_EXPIRED
from amplitude_intercom.engine.spool.store import Store
from support.spools import OneSync, kept, opened, recount

T = TypeVar("T")
HOUR_MS = 3_600_000
WINDOW_MS = 4 * HOUR_MS
ATTEMPTS = 10
BEGAN_MS = 1_800_000_000_000
RETRIES = Retries(ATTEMPTS, WINDOW_MS / 1000, lambda: 0.5)
NO_WINDOW = Retries(1, WINDOW_MS / 1000, lambda: 0.5)
FAILURE = Failure(DeadReason.USER_FAILING, 500)
NOT_FOUND = Failure(DeadReason.USER_NOT_FOUND, 404)


def failed(blame: Blame, *, is_sick: bool = False) -> NotAnswered:
    return NotAnswered(Cause.FAILED, "POST /events", FAILURE, blame, is_sick)


class Rig:
    """Users of one store whose first records fail, at instants that a test names."""

    def __init__(self, path: Path) -> None:
        self.sync = OneSync(opened(path))
        self.store = self.sync.store
        self.now_ms = BEGAN_MS

    def load(self, *users: str, kind: Kind = Kind.EVENT) -> list[Record]:
        """Append an event of each user, and load what is queued and not aside behind all before."""
        self.sync.append(*(kept(user, kind=kind) for user in users), now_ms=self.now_ms)
        wanted = Wanted(
            limit=2_000,
            limit_bytes=1 << 20,
            per_user=2_000,
            now_ms=0,
            after_id=self.sync.last_id,
        )
        loaded = self.write(lambda store: store.queue(self.sync.taker).load(wanted))
        self.sync.last_id = loaded.last_id
        return loaded.records

    def write(self, work: Callable[[Store], T]) -> T:
        """Do something in a transaction of its own."""
        self.store.begin()
        done = work(self.store)
        self.store.commit()
        return done

    def fail(self, record: Record, evidence: NotAnswered, others: tuple[int, ...] = ()) -> float:
        """Let a user wait; return how many seconds."""
        taker, now_ms = self.sync.taker, self.now_ms
        self.write(
            lambda store: waiting.fail(store, taker, record, others, evidence, RETRIES, now_ms)
        )
        return (self.wakes_ms(record.user_key) - now_ms) / 1000

    def charge(self, record: Record, evidence: NotAnswered) -> None:
        taker, now_ms = self.sync.taker, self.now_ms
        self.write(lambda store: waiting.charge(store, taker, record.id, evidence, RETRIES, now_ms))

    def park_unknown(
        self, record: Record, others: tuple[int, ...] = (), retries: Retries = RETRIES
    ) -> bool:
        taker, now_ms = self.sync.taker, self.now_ms
        return self.write(
            lambda store: waiting.park_unknown(
                store, taker, record, others, NOT_FOUND, retries, now_ms
            )
        )

    def wakes_ms(self, user: str) -> int:
        query = "SELECT wake_at_ms FROM users WHERE user_key = ?"
        (at_ms,) = self.store.db.execute(query, (user,)).fetchone()
        return int(at_ms)

    def unknown(self, user: str = "ann") -> Stranger:
        return self.store.users.unknown(self.sync.taker, user)

    def attempts(self, record: Record) -> int:
        return self.store.records.attempts(record.id)

    def aside(self, user: str = "ann") -> list[int]:
        found = self.store.records.aside(self.sync.taker, user, 2_000, 1 << 20)
        return [record.id for record in found if isinstance(record, Record)]

    def dead(self) -> dict[int, str]:
        letters = self.store.letters.find(self.sync.taker, DeadLetterQuery())
        return {letter.id: letter.reason for letter in letters}

    def reason(self, user: str = "ann") -> str:
        return self.store.users.waiting_of(self.sync.taker, [user])[user].reason

    def check_balance(self) -> None:
        counters = self.sync.counters
        counted = {name: counters[name] for name in ("pending", "dead")}
        assert recount(self.store, self.sync.taker) == counted
        assert counters["received"] == counters["pending"] + counters["dead"]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "s.db")
    yield made
    made.check_balance()
    made.store.close()


def growths(waits: list[float]) -> list[float]:
    return [later / earlier for earlier, later in pairwise(waits)]


# --- the numbers --------------------------------------------------------------------------


def test_waits_of_a_user_s_own_grow_and_fill_the_window() -> None:
    waits = [RETRIES.own_wait_s(n, is_sick=False) for n in range(1, ATTEMPTS)]
    assert growths(waits) == pytest.approx([GROWTH] * (ATTEMPTS - 2), rel=0.05)
    assert sum(waits) == pytest.approx(WINDOW_MS / 1000)


def test_at_a_sick_endpoint_there_are_forty_attempts_and_no_wait_is_over_ten_minutes() -> None:
    assert RETRIES.most_attempts(is_sick=False) == ATTEMPTS
    assert RETRIES.most_attempts(is_sick=True) == SICK_ATTEMPTS == 40
    waits = [RETRIES.own_wait_s(n, is_sick=True) for n in range(1, SICK_ATTEMPTS)]
    assert max(waits) == SICK_MOST_S == 600
    assert waits[0] == RETRIES.own_wait_s(1, is_sick=False)


def test_a_setting_of_more_attempts_than_a_sick_endpoint_has_is_kept() -> None:
    assert Retries(100, 3_600.0, lambda: 0.5).most_attempts(is_sick=True) == 100


def test_attempts_of_an_unknown_user_grow_over_the_window_and_then_go_on_evenly() -> None:
    waits = [RETRIES.unknown_wait_ms(n) for n in range(1, ATTEMPTS + 3)]
    assert growths([float(wait) for wait in waits[: ATTEMPTS - 1]]) == pytest.approx(
        [GROWTH] * (ATTEMPTS - 2), rel=0.05
    )
    assert sum(waits[: ATTEMPTS - 1]) == pytest.approx(WINDOW_MS, rel=0.001)
    assert waits[ATTEMPTS - 1 :] == [WINDOW_MS // ATTEMPTS] * 3


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_all_attempts_take_a_tenth_less_or_more_than_the_window(jitter: float) -> None:
    retries = Retries(ATTEMPTS, WINDOW_MS / 1000, lambda: jitter)
    window_ms = sum(retries.unknown_wait_ms(n) for n in range(1, ATTEMPTS))
    assert 0.89 * WINDOW_MS < window_ms < 1.11 * WINDOW_MS


# --- failures -----------------------------------------------------------------------------


@pytest.mark.parametrize("blame", [Blame.NOT_KNOWN, Blame.NOBODYS])
def test_a_failure_without_a_verdict_has_its_user_wait_some_seconds_uncharged(
    blame: Blame, rig: Rig
) -> None:
    (record,) = rig.load("ann")
    waits = []
    for _ in range(6):
        waits.append(rig.fail(record, failed(blame)))
        rig.now_ms = rig.wakes_ms("ann")
    assert waits == pytest.approx([6.0, 15.0, 37.5, 60.0, 60.0, 60.0])
    assert max(waits) == LONGEST_WAIT_S
    assert rig.attempts(record) == 0
    assert rig.reason() == ""


def test_a_failure_of_its_own_has_a_user_wait_by_its_charges(rig: Rig) -> None:
    (record,) = rig.load("ann")
    waits = []
    for _ in range(ATTEMPTS - 1):
        waits.append(rig.fail(record, failed(Blame.OWN)))
        rig.charge(record, failed(Blame.OWN))
        rig.now_ms = rig.wakes_ms("ann")
    assert growths(waits) == pytest.approx([GROWTH] * (ATTEMPTS - 2), rel=0.05)
    assert rig.now_ms - BEGAN_MS == pytest.approx(WINDOW_MS, rel=0.001)
    assert rig.attempts(record) == ATTEMPTS - 1
    assert rig.reason() == "user_failing"


def test_a_failure_is_not_charged_before_the_charge_stands_and_the_wait_stays_the_first(
    rig: Rig,
) -> None:
    (record,) = rig.load("ann")
    waits = {rig.fail(record, failed(Blame.OWN)) for _ in range(20)}
    assert len(waits) == 1
    assert rig.attempts(record) == 0


@pytest.mark.parametrize("blame", [Blame.NOT_KNOWN, Blame.NOBODYS])
def test_a_user_that_was_charged_before_keeps_its_back_off(blame: Blame, rig: Rig) -> None:
    (record,) = rig.load("ann")
    for charged in range(1, 6):
        rig.charge(record, failed(Blame.OWN))
        wait_s = rig.fail(record, failed(blame))
        assert wait_s == pytest.approx(RETRIES.own_wait_s(charged, is_sick=False), abs=0.001)
    assert rig.attempts(record) == 5


def test_at_a_sick_endpoint_a_user_is_tried_every_ten_minutes(rig: Rig) -> None:
    (record,) = rig.load("ann")
    sick = failed(Blame.OWN, is_sick=True)
    for _ in range(SICK_ATTEMPTS - 1):
        assert rig.fail(record, sick) <= SICK_MOST_S
        rig.charge(record, sick)
    assert rig.fail(record, sick) == SICK_MOST_S
    assert rig.dead() == {}
    rig.charge(record, sick)
    assert rig.dead() == {record.id: "user_failing"}


def test_the_last_attempt_buries_one_record_and_its_user_goes_on_with_the_next(rig: Rig) -> None:
    bad, good = rig.load("ann", "ann")
    for _ in range(ATTEMPTS):
        assert rig.dead() == {}
        rig.fail(bad, failed(Blame.OWN), (good.id,))
        rig.charge(bad, failed(Blame.OWN))
    assert rig.dead() == {bad.id: "user_failing"}
    assert rig.aside() == [good.id]
    assert rig.wakes_ms("ann") == rig.now_ms


def test_a_charge_of_a_record_that_is_gone_does_nothing(rig: Rig) -> None:
    (record,) = rig.load("ann")
    rig.write(lambda store: store.settling(rig.sync.taker).bury(record, NOT_FOUND, rig.now_ms))
    for _ in range(ATTEMPTS + 1):
        rig.charge(record, failed(Blame.OWN))
    assert rig.dead() == {record.id: "user_not_found"}


def test_other_loaded_records_of_a_failing_user_wait_behind_the_failed_one(rig: Rig) -> None:
    first, second, third = rig.load("ann", "ann", "ann")
    rig.fail(first, failed(Blame.NOT_KNOWN), (second.id, third.id))
    assert rig.aside() == [first.id, second.id, third.id]


# --- unknown users ------------------------------------------------------------------------


def test_an_unknown_user_is_tried_as_often_as_there_are_attempts_over_the_window(
    rig: Rig,
) -> None:
    (record,) = rig.load("ann")
    for refusals in range(1, ATTEMPTS):
        assert rig.park_unknown(record) is False
        assert rig.unknown() == Stranger(refusals, rig.wakes_ms("ann"), rig.now_ms)
        rig.now_ms = rig.wakes_ms("ann")
    assert rig.now_ms - BEGAN_MS == pytest.approx(WINDOW_MS, rel=0.001)
    assert rig.dead() == {}
    rig.now_ms = max(rig.now_ms, BEGAN_MS + WINDOW_MS)  # by the jitter it may be a little less
    rig.park_unknown(record)
    assert rig.dead() == {record.id: "user_not_found"}


def test_tries_in_between_are_no_attempts_they_move_none_and_take_none_away(rig: Rig) -> None:
    (record,) = rig.load("ann")
    rig.park_unknown(record)
    before = rig.unknown()
    for _ in range(100):
        rig.now_ms += (before.attempt_at_ms - BEGAN_MS) // 200
        rig.park_unknown(record)
        assert rig.unknown() == Stranger(1, before.attempt_at_ms, rig.now_ms)
        assert rig.wakes_ms("ann") == before.attempt_at_ms
    assert rig.dead() == {}
    rig.now_ms = before.attempt_at_ms
    rig.park_unknown(record)
    assert rig.unknown().refusals == 2


def test_failures_in_between_move_no_attempt_of_an_unknown_user(rig: Rig) -> None:
    (record,) = rig.load("ann")
    rig.park_unknown(record)
    attempt_at_ms = rig.unknown().attempt_at_ms
    rig.now_ms += 100
    for blame in Blame:
        rig.fail(record, failed(blame))
    assert rig.unknown() == Stranger(1, attempt_at_ms, BEGAN_MS)


def test_an_event_that_has_not_waited_for_a_whole_window_stays(rig: Rig) -> None:
    """Its user is unknown for long, and it came later."""
    (old,) = rig.load("ann")
    for _ in range(ATTEMPTS - 1):
        rig.park_unknown(old)
        rig.now_ms = rig.wakes_ms("ann")
    assert rig.load("ann") == [], "it waits behind the first"
    rig.now_ms = max(rig.now_ms, BEGAN_MS + WINDOW_MS)
    rig.park_unknown(old)
    assert rig.dead() == {old.id: "user_not_found"}
    (young_id,) = rig.aside()
    young = msgspec.structs.replace(old, id=young_id)
    for _ in range(ATTEMPTS - 1):
        rig.now_ms = rig.wakes_ms("ann")
        rig.park_unknown(young)
        assert set(rig.dead()) == {old.id}
    rig.now_ms += WINDOW_MS
    rig.park_unknown(young)
    assert set(rig.dead()) == {old.id, young_id}


def test_an_update_does_not_expire_with_the_events(rig: Rig) -> None:
    (event,) = rig.load("ann")
    (update,) = rig.load("ann", kind=Kind.IDENTIFY)
    rig.now_ms += WINDOW_MS
    rig.park_unknown(event, (update.id,), NO_WINDOW)
    assert set(rig.dead()) == {event.id}
    assert rig.aside() == [update.id]


def test_an_identify_that_waits_wakes_an_unknown_user_at_once(rig: Rig) -> None:
    (event,) = rig.load("ann")
    (update,) = rig.load("ann", kind=Kind.IDENTIFY)
    rig.park_unknown(event, (update.id,))
    assert rig.wakes_ms("ann") == rig.now_ms
    assert rig.unknown().attempt_at_ms > rig.now_ms


def test_with_one_attempt_the_event_that_was_refused_dies_and_none_that_came_later(
    rig: Rig,
) -> None:
    first, second = rig.load("ann", "ann")
    assert rig.park_unknown(first, (second.id,), NO_WINDOW) is False
    assert rig.dead() == {first.id: "user_not_found"}
    assert rig.aside() == [second.id]


@pytest.mark.parametrize("more", [0, 1, 700])
def test_the_last_attempt_buries_some_and_leaves_the_rest_to_a_job(more: int, rig: Rig) -> None:
    first, *others = rig.load(*["ann"] * (MOST_EXPIRED + more))
    for _ in range(ATTEMPTS - 1):
        rig.park_unknown(first, tuple(record.id for record in others))
        rig.now_ms = rig.wakes_ms("ann")
    rig.now_ms = max(rig.now_ms, BEGAN_MS + WINDOW_MS)
    is_more = rig.park_unknown(first)
    assert is_more is bool(more)
    assert len(rig.dead()) == MOST_EXPIRED
    assert len(rig.aside()) == more
    job = rig.store.jobs.next()
    assert (job is not None) is is_more
    if job is not None:
        assert job.kind is JobKind.EXPIRE
        assert job.query == Expiry("ann", rig.now_ms - WINDOW_MS, NOT_FOUND)


def test_one_unknown_user_costs_no_other_anything(rig: Rig) -> None:
    ann, bob = rig.load("ann", "bob")
    rig.park_unknown(ann, (), NO_WINDOW)
    assert set(rig.dead()) == {ann.id}
    assert rig.store.users.waiting_of(rig.sync.taker, ["bob"]) == {}
    assert rig.attempts(bob) == 0


def test_a_failure_without_a_verdict_has_no_user_wait_longer_than_an_attempt(
    rig: Rig,
) -> None:
    """Of a retry window of half a minute, a wait of a minute would be all."""
    (record,) = rig.load("ann")
    short = msgspec.structs.replace(RETRIES, window_s=30.0)
    rig.write(
        lambda store: waiting.fail(
            store, rig.sync.taker, record, (), failed(Blame.NOT_KNOWN), short, rig.now_ms
        )
    )
    assert rig.wakes_ms("ann") - rig.now_ms == pytest.approx(30_000 / ATTEMPTS, abs=1)


def test_it_is_known_since_when_a_user_fails(rig: Rig) -> None:
    (record,) = rig.load("ann")
    for _ in range(3):
        rig.fail(record, failed(Blame.OWN))
        rig.now_ms += 60_000
    assert rig.store.users.parked_since_ms(rig.sync.taker) == BEGAN_MS
