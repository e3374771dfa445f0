"""One sync's records step by step: damage, restarts, and what is loaded of whom."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.accounts import LAST_BATCH
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.inbox import MOST_OPEN
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from support.spools import OneSync, kept, opened, recount

FAILING = Failure(DeadReason.USER_FAILING, 500)
EVENT = kept("ann")


FIRST = SLOTS
"""The id of the first record of the first batch."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def tamper(path: Path, statement: str, *values: object) -> None:
    other = sqlite3.connect(path)
    with other:
        assert other.execute(statement, values).rowcount > 0
    other.close()


def drain(sync: OneSync) -> list[int]:
    """Deliver all there is as the feed would; return the ids in order."""
    flowed: list[int] = []
    after = 0
    for now_ms in range(10, 20):
        found = sync.load(after, now_ms=now_ms)
        after = found.last_id
        records = found.records
        worked_off = found.worked_off
        while records or worked_off:
            sync.deliver(*records)
            flowed += [record.id for record in records]
            records = sync.refill(*worked_off)
            worked_off = [record.user_key for record in records]
    return flowed


def dead_of(sync: OneSync) -> list[tuple[int, str, bytes]]:
    letters = sync.store.letters.find(sync.taker, DeadLetterQuery())
    return [(letter.id, letter.reason, letter.raw) for letter in letters]


def check_accounts(sync: OneSync, *, received: int, delivered: int, dead: int) -> None:
    """Nothing waits any more: neither rows nor counters say so, and no bytes are left over."""
    counters = sync.counters
    assert (counters["received"], counters["delivered"]) == (received, delivered)
    assert recount(sync.store, sync.taker) == {"pending": 0, "dead": dead}
    assert (counters["pending"], counters["dead"]) == (0, dead)
    assert (counters["bytes:inbox"], counters["bytes:along"]) == (0, 0)


# --- damage -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "raw = x'7b7c'",
        "user_key = 'anm'",
        "user_key = CAST(x'616eff' AS TEXT)",
        "kind = 2",
        "kind = 77",
        "accepted_at_ms = accepted_at_ms + 1",
        "start = start + 1",
        "length = length - 1",
        "crc = crc + 1",
    ],
)
@pytest.mark.parametrize("aside", [False, True])
def test_a_damaged_record_becomes_a_dead_letter_and_the_rest_flows(
    path: Path, damage: str, aside: bool
) -> None:
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 4)
    first, *others = sync.load().records
    if aside:
        sync.store.begin()
        sync.settling.park(first, [record.id for record in others], FAILING, 5, 1)
        sync.store.commit()
    sync.store.close()
    tamper(path, f"UPDATE records SET {damage} WHERE id IN (?, ?)", FIRST, FIRST + 2)
    sync = OneSync(opened(path))
    assert drain(sync) == [FIRST + 1, FIRST + 3]
    assert [letter[:2] for letter in dead_of(sync)] == [
        (FIRST, "corrupt"),
        (FIRST + 2, "corrupt"),
    ]
    check_accounts(sync, received=4, delivered=2, dead=2)
    sync.store.close()


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_damaged_event_of_a_batch_is_one_dead_letter(path: Path, unpacked: bool) -> None:
    sync = OneSync(opened(path))
    sync.append(*[kept("ann", b"{%d}" % n) for n in range(4)])
    if unpacked:
        sync.load()
    sync.store.close()
    tamper(path, "UPDATE inbox SET events = CAST(replace(events, '{2}', '{3}') AS BLOB)")
    sync = OneSync(opened(path))
    assert drain(sync) == [FIRST, FIRST + 1, FIRST + 3]
    assert dead_of(sync) == [(FIRST + 2, "corrupt", b"{3}")]
    check_accounts(sync, received=4, delivered=3, dead=1)
    sync.store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "entries = replace(entries, 'ann', 'bob')",
        "entries = substr(entries, 2)",
        "entries = '[]'",
        "entries = CAST(x'5bff5d' AS TEXT)",
        "accepted_at_ms = accepted_at_ms + 1",
        "crc = crc + 1",
    ],
)
def test_a_batch_with_a_damaged_index_is_a_dead_letter_for_each_event(
    path: Path, damage: str
) -> None:
    sync = OneSync(opened(path))
    for _ in range(3):
        sync.append(EVENT, kept("ann", b"[]"))
    sync.store.close()
    tamper(path, f"UPDATE inbox SET {damage} WHERE id = 2")
    sync = OneSync(opened(path))
    assert drain(sync) == [FIRST, FIRST + 1, 3 * SLOTS, 3 * SLOTS + 1]
    assert dead_of(sync) == [
        (2 * SLOTS, "corrupt", b"{}"),
        (2 * SLOTS + 1, "corrupt", b"[]"),
    ]
    check_accounts(sync, received=6, delivered=4, dead=2)
    sync.store.close()


@pytest.mark.parametrize("count", [0, 1, 3, 9, 1 << 40])
def test_the_sums_hold_in_the_end_though_a_batch_has_a_wrong_count(path: Path, count: int) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT, EVENT)
    sync.append(EVENT)
    sync.store.close()
    tamper(path, "UPDATE inbox SET count = ? WHERE id = 1", count)
    sync = OneSync(opened(path))
    assert drain(sync) == [2 * SLOTS]
    check_accounts(sync, received=3, delivered=1, dead=2)
    sync.store.close()


def test_a_run_of_damaged_records_longer_than_a_refill_does_not_free_the_user(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 50)
    sync.load(per_user=1)
    sync.store.close()
    tamper(path, "UPDATE records SET crc = crc + 1 WHERE id BETWEEN ? AND ?", FIRST + 1, FIRST + 48)
    sync = OneSync(opened(path))
    assert drain(sync) == [FIRST, FIRST + 49]
    check_accounts(sync, received=50, delivered=2, dead=48)
    sync.store.close()


def test_damage_that_puts_a_second_record_to_a_dead_letter_s_id_loses_neither(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT, kept("bob", b"[]"))
    first, _ = sync.load().records
    sync.store.begin()
    sync.settling.bury(first, FAILING, 2)
    sync.store.commit()
    sync.store.close()
    tamper(path, "UPDATE records SET id = ? WHERE id = ?", FIRST, FIRST + 1)
    sync = OneSync(opened(path))
    assert sync.load().records == []
    assert dead_of(sync) == [
        (2 * SLOTS, "corrupt", b"[]"),
        (FIRST, "user_failing", b"{}"),
    ]
    check_accounts(sync, received=2, delivered=0, dead=2)
    sync.store.close()


def deliver_all(sync: OneSync) -> None:
    assert drain(sync)


def load_all(sync: OneSync) -> None:
    assert sync.load().records


def bury_all(sync: OneSync) -> None:
    records = sync.load().records
    sync.store.begin()
    for record in records:
        sync.settling.bury(record, FAILING, 2)
    sync.store.commit()


@pytest.mark.parametrize("before", [lambda _: None, load_all, bury_all, deliver_all])
def test_no_id_is_given_twice_though_the_counter_of_batches_is_damaged(
    path: Path, before: Callable[[OneSync], None]
) -> None:
    """Neither to what waits, nor to what was: dead letters and insert ids are known by it."""
    sync = OneSync(opened(path))
    for key in (b"1", b"2"):
        sync.append(kept("ann", key=key))
    before(sync)
    waiting = sync.counters["pending"]
    sync.store.close()
    tamper(path, "UPDATE counters SET value = 0 WHERE name = ?", LAST_BATCH)
    sync = OneSync(opened(path))
    sync.append(kept("bob", key=b"3"))
    flowed = drain(sync)
    assert len(flowed) == waiting + 1
    assert flowed[-1] == 3 * SLOTS
    sync.store.close()


# --- restarts -----------------------------------------------------------------------------


def test_records_loaded_before_their_user_went_aside_still_go_first(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 6)
    assert [record.id for record in sync.load(per_user=2).records] == [FIRST, FIRST + 1]
    sync.store.close()
    sync = OneSync(opened(path))
    assert drain(sync) == list(range(FIRST, FIRST + 6))
    sync.store.close()


def test_records_that_wait_behind_nobody_are_queued_again(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 3)
    sync.load()
    sync.store.begin()
    sync.store.records.set_aside([FIRST + 1])
    sync.store.commit()
    sync.store.close()
    sync = OneSync(opened(path))
    assert sorted(drain(sync)) == [FIRST, FIRST + 1, FIRST + 2]
    sync.store.close()


def test_ids_are_not_used_again_though_everything_is_gone(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 3)
    sync.deliver(*sync.load().records)
    check_accounts(sync, received=3, delivered=3, dead=0)
    sync.store.close()
    sync = OneSync(opened(path))
    sync.append(EVENT)
    assert [record.id for record in sync.load().records] == [2 * SLOTS]
    sync.store.close()


# --- users that go aside ------------------------------------------------------------------


def ids(records: list[Record]) -> list[int]:
    return [record.id for record in records]


@pytest.mark.parametrize("how", ["park", "defer", "wait"])
def test_a_user_that_goes_aside_takes_all_that_is_loaded_of_it_along(path: Path, how: str) -> None:
    """So nothing of it comes back later, and what comes meanwhile waits behind it."""
    sync = OneSync(opened(path))
    sync.append(*[EVENT] * 3, kept("bob"))
    loaded = sync.load()
    ann = loaded.records[:3]
    sync.store.begin()
    if how == "park":
        sync.settling.park(ann[0], ids(ann[1:]), FAILING, 50, 1)
    else:
        sync.settling.defer("ann", ids(ann), 50, "events" if how == "wait" else "")
    sync.store.commit()
    sync.append(EVENT)
    while_it_waits = sync.load(loaded.last_id, now_ms=49, open_circuits={"events"})
    assert while_it_waits.records == []
    woken = sync.load(while_it_waits.last_id, now_ms=50)
    found = ids(woken.records)
    sync.deliver(*woken.records)
    while more := sync.refill("ann"):
        found += ids(more)
        sync.deliver(*more)
    assert found == [FIRST, FIRST + 1, FIRST + 2, 2 * SLOTS]
    sync.store.close()


def test_users_waiting_for_an_endpoint_wake_when_it_is_well_or_one_by_one_to_try_it(
    path: Path,
) -> None:
    sync = OneSync(opened(path))
    users = ["ann", "bob", "cid"]
    sync.append(*[kept(user) for user in users for _ in range(3)])
    loaded = sync.load()
    sync.store.begin()
    for n, user in enumerate(users):
        mine = [record.id for record in loaded.records if record.user_key == user]
        sync.settling.defer(user, mine, n, "events")
    sync.store.commit()
    asleep = sync.load(loaded.last_id, now_ms=10**6, open_circuits={"events"})
    assert (asleep.records, asleep.awaited, asleep.next_wake_ms) == ([], ["events"], None)
    probed = sync.load(loaded.last_id, open_circuits={"events"}, probes={"events"}, per_user=2)
    assert [(one.user, ids(one.records)) for one in probed.woken] == [("ann", [FIRST])]
    others = sync.load(loaded.last_id, per_user=2)
    assert [(one.user, len(one.records)) for one in others.woken] == [("bob", 2), ("cid", 2)]
    assert others.awaited == []
    sync.store.close()


def test_a_record_that_is_tried_once_more_is_not_given_up_meanwhile(path: Path) -> None:
    """A charge may be confirmed late, when the record's next call is out."""
    sync = OneSync(opened(path))
    sync.append(EVENT)
    [record] = sync.load().records
    sync.store.begin()
    sync.settling.park(record, (), FAILING, 10, 1)
    sync.store.commit()
    assert len(sync.load(record.id, now_ms=10).woken) == 1
    sync.store.begin()
    assert sync.settling.charge(record.id, 11) == 1
    sync.settling.give_up(record.id, FAILING, 11)
    assert sync.store.ends(sync.taker).delete([record.id]) == 1  # delivered
    sync.store.commit()
    assert sync.store.letters.find(sync.taker, DeadLetterQuery()) == []
    sync.store.close()


def test_few_batches_are_kept_while_they_are_read_bit_by_bit(path: Path) -> None:
    """Each may have a megabyte, and there are as many as there are syncs."""
    sync = OneSync(opened(path))
    for _ in range(2 * MOST_OPEN):
        sync.append(EVENT)
    inbox = sync.store.inbox
    batches = inbox.ids(sync.taker, 1 << 40, 1_000)
    assert all(inbox.events_of(batch) == inbox.events_of(batch) for batch in batches)
    kept = len(inbox._open)
    inbox.close(batches[-1])
    records = sync.load().records
    sync.store.begin()
    sync.store.ends(sync.taker).delete(ids(records))
    sync.store.commit()
    assert (kept, len(inbox._open)) == (MOST_OPEN, 0)
    sync.store.close()


@pytest.mark.parametrize(("accepted_at_ms", "wakes"), [(60_099, False), (60_100, True)])
def test_a_new_event_of_an_unknown_user_has_it_tried_again_after_a_minute(
    path: Path, accepted_at_ms: int, wakes: bool
) -> None:
    """By when the event was accepted, whenever it is read."""
    sync = OneSync(opened(path))
    sync.append(EVENT)
    [record] = sync.load().records
    sync.store.begin()
    sync.settling.park(record, (), Failure(DeadReason.USER_NOT_FOUND, 404), 10**9, 100)
    sync.settling.note_unknown("ann", Stranger(1, 10**9, 100))
    sync.store.commit()
    sync.append(EVENT, now_ms=accepted_at_ms)
    assert sync.load(record.id, now_ms=70_000).records == []
    woken = sync.load(record.id, now_ms=70_000).woken
    assert [(one.user, one.is_retry, one.failing) for one in woken] == [("ann", True, False)][
        : int(wakes)
    ]
    sync.store.close()


def test_a_user_is_forgiven_on_request_and_not_by_a_load(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT, EVENT)
    first, second = sync.load().records
    sync.store.begin()
    sync.settling.park(first, [second.id], FAILING, 5, 1)
    sync.store.commit()
    [woken] = sync.load(second.id, now_ms=5).woken
    assert (ids(woken.records), woken.is_retry, woken.failing) == ([first.id], True, True)
    sync.deliver(first)
    assert ids(sync.refill("ann")) == [second.id]
    assert sync.settling.failures("ann") == 1
    sync.store.begin()
    sync.settling.forgive("ann")
    sync.store.commit()
    assert sync.settling.failures("ann") == 0
    sync.store.close()


def test_a_record_that_is_given_up_is_dead_with_its_charges_and_its_user_is_due(
    path: Path,
) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT, EVENT)
    first, second = sync.load().records
    sync.store.begin()
    sync.settling.park(first, [second.id], FAILING, 10**6, 1)
    assert [sync.settling.charge(first.id, 1) for _ in range(2)] == [1, 2]
    sync.settling.give_up(first.id, FAILING, 7)
    sync.store.commit()
    [letter] = sync.store.letters.find(sync.taker, DeadLetterQuery())
    assert (letter.id, letter.attempts, letter.last_failed_at_ms) == (FIRST, 2, 7)
    assert ids(sync.load(second.id, now_ms=7).records) == [second.id]
    sync.store.close()


# --- limits -------------------------------------------------------------------------------


def test_users_that_are_due_load_no_more_bytes_than_there_may_be(path: Path) -> None:
    """One record more, as everywhere: the one that reaches the limit."""
    sync = OneSync(opened(path))
    users = [f"user-{n}" for n in range(50)]
    sync.append(*(kept(user, bytes(100_000)) for user in users))
    records = sync.load(limit_bytes=1 << 30).records
    last_id = sync.load(records[-1].id).last_id
    sync.store.begin()
    for record in records:
        sync.settling.park(record, (), FAILING, 2, 1)
    sync.store.commit()
    woken: list[str] = []
    while len(woken) < 50:
        records = sync.load(last_id, limit_bytes=1_000_000, now_ms=3).records
        assert 10 <= len(records) <= 11
        sync.deliver(*records)
        assert not sync.refill(*(record.user_key for record in records))
        woken += [record.user_key for record in records]
    assert sorted(woken) == sorted(users)
    sync.store.close()


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_queue_stays_unread_where_waking_users_use_up_the_bounds(
    path: Path, unpacked: bool
) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT)
    [ann] = sync.load().records
    sync.store.begin()
    sync.settling.park(ann, (), FAILING, 5, 1)
    sync.store.commit()
    sync.append(kept("bob"), kept("cid"))
    if unpacked:
        assert len(sync.load(ann.id).records) == 2
    woken = sync.load(ann.id, now_ms=9, limit=1)
    assert [record.user_key for record in woken.records] == ["ann"]
    assert woken.more
    rest = sync.load(woken.last_id, now_ms=9)
    assert [record.user_key for record in rest.records] == ["bob", "cid"]
    sync.store.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("limit_bytes", [1, 25, 1 << 20])
def test_however_little_is_loaded_at_once_all_of_it_comes_once_and_in_order(
    path: Path, limit: int, limit_bytes: int
) -> None:
    sync = OneSync(opened(path))
    raws = [b"[%d]" % n for n in range(100, 120)]
    for first in range(0, 20, 5):
        sync.append(*(kept(f"user-{n}", raws[n]) for n in range(first, first + 5)))
    found, last_id, more = [], 0, True
    while more:
        loaded = sync.load(last_id, limit=limit, limit_bytes=limit_bytes)
        assert len(loaded.records) <= limit
        assert sum(len(record.raw) for record in loaded.records[:-1]) < limit_bytes
        found += loaded.records
        last_id, more = loaded.last_id, loaded.more
    assert [record.raw for record in found] == raws
    sync.deliver(*found)
    check_accounts(sync, received=20, delivered=20, dead=0)
    sync.store.close()


def test_of_thirty_packed_events_one_that_makes_no_row_is_dead_and_the_others_wait(
    tmp_path: Path,
) -> None:
    """A number that the database has no column for: nobody foresaw it, and it costs itself."""
    sync = OneSync(opened(tmp_path / "spool.db"))
    events = [kept(f"user-{n}", b'{"n": %d}' % n) for n in range(30)]
    events[7] = events[7]._replace(claim_id=1 << 63)
    sync.append(*events)
    found = sync.load(limit=100).records
    assert [record.raw for record in found] == [e.raw for e in events if e is not events[7]]
    [letter] = sync.store.letters.find(sync.taker, DeadLetterQuery(every=True))
    assert (letter.reason, letter.raw) == ("internal", events[7].raw)
    assert (sync.counters["pending"], sync.counters["dead"]) == (29, 1)


def test_a_row_with_a_taken_id_is_dead_and_the_others_wait(tmp_path: Path) -> None:
    """One flipped bit of another record's id: it must not stop the load for good."""
    path = tmp_path / "spool.db"
    sync = OneSync(opened(path))
    sync.append(kept("ann", b"1"), kept("bob", b"2"))
    sync.load(limit=9)
    sync.append(kept("cid", b"3"), kept("dan", b"4"))
    tamper(path, "UPDATE records SET id = ? WHERE id = ?", 2 * SLOTS, FIRST)
    found = sync.load(FIRST + 1, limit=9).records
    assert [record.raw for record in found] == [b"4"]
    assert [raw for _, reason, raw in dead_of(sync) if reason == "internal"] == [b"3"]


def test_a_packed_batch_stays_though_a_damaged_record_names_it(tmp_path: Path) -> None:
    sync = OneSync(opened(tmp_path / "spool.db"))
    sync.append(*[kept("ann") for _ in range(5)])
    sync.store.begin()
    assert sync.store.inbox.let_go([1]) == []
    sync.store.commit()
    assert len(sync.load().records) == 5


def test_a_damaged_unpacking_mark_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    sync = OneSync(opened(path))
    sync.append(kept("ann", b"1"))
    sync.deliver(*sync.load().records)
    sync.store.close()
    tamper(path, "UPDATE takers SET unpacked_to = ?", 1 << 56)
    again = OneSync(opened(path))
    again.append(kept("ann", b"2"))
    assert [record.id for record in again.load().records] == [2 * SLOTS]


def test_a_clock_that_was_ahead_parks_nobody_beyond_the_retry_window(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    sync = OneSync(opened(path))
    sync.append(kept("ann", b"1"))
    [record] = sync.load().records
    sync.store.begin()
    sync.settling.park(record, (), FAILING, 1 << 45, 1 << 44)
    sync.store.commit()
    sync.store.close()
    again = OneSync(opened(path, longest_wait_ms=3_600_000))
    assert [found.raw for found in again.load(now_ms=1).records] == [b"1"]
