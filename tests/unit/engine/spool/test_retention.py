"""What is remembered is forgotten by a rule of its own, and never closes intake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.accounts import CONTACTS, INSERT_IDS, SPOOL
from amplitude_intercom.engine.spool.contract import Claim, Given
from amplitude_intercom.engine.spool.insert_ids import ROW_BYTES
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.retention import DAY_MS, SLICE, Retention, Tidying
from amplitude_intercom.engine.spool.rows import Append
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import SYNC, OneSync, kept, opened, part_of

WINDOW_MS = 7 * DAY_MS
KEEP = Retention(
    window_ms=WINDOW_MS,
    insert_ids_max_bytes=1 << 40,
    dead_letters_max_age_ms=30 * DAY_MS,
    dead_letters_max_bytes=1 << 40,
    max_contacts=1 << 40,
    claims_window_ms=DAY_MS,
)
FAILING = Failure(DeadReason.USER_FAILING, 500)


@pytest.fixture
def sync(tmp_path: Path) -> OneSync:
    claims = {SYNC: (DAY_MS, 60)}
    return OneSync(opened(tmp_path / "spool.db", window_ms=WINDOW_MS, claims=claims))


def tidy(store: Store, now_ms: int, **keep: int) -> int:
    """Forget all that is to be forgotten; return how many transactions that took."""
    tidying = Tidying(msgspec.structs.replace(KEEP, **keep))
    slices, more = 0, True
    while more:
        store.begin()
        more = tidying.slice(store, now_ms)
        store.commit()
        slices += 1
    return slices


def accept(sync: OneSync, count: int, at_ms: int, first: int = 0) -> None:
    """Accept events, each of its own insert key, and settle them."""
    rows = [kept("ann", key=b"%016d" % n) for n in range(first, first + count)]
    sync.append(*rows, now_ms=at_ms)
    found = sync.load(sync.last_id, now_ms=at_ms, limit=count, per_user=count)
    sync.last_id = found.last_id
    sync.deliver(*found.records, now_ms=at_ms)


def insert_ids(sync: OneSync) -> int:
    counted = sync.store.accounts.committed(SPOOL)[INSERT_IDS]
    assert sync.store.db.execute("SELECT count(*) FROM insert_ids").fetchone() == (counted,)
    return counted


def test_insert_ids_are_forgotten_once_their_window_is_over(sync: OneSync) -> None:
    for day in range(10):
        accept(sync, 100, day * DAY_MS, first=day * 100)
    tidy(sync.store, 9 * DAY_MS + 1)
    assert insert_ids(sync) == 700


def test_insert_ids_beyond_their_bytes_go_the_oldest_first(sync: OneSync) -> None:
    accept(sync, 1_000, DAY_MS)
    accept(sync, 1_000, DAY_MS, first=1_000)
    tidy(sync.store, DAY_MS + 1, insert_ids_max_bytes=1_200 * ROW_BYTES)
    assert insert_ids(sync) == 1_200
    before = sync.counters["dropped:duplicate"]
    accept(sync, 2_000, DAY_MS + 2)
    assert sync.counters["dropped:duplicate"] - before == 1_200


def test_a_clock_that_was_a_year_ahead_keeps_nothing_for_a_year(sync: OneSync) -> None:
    accept(sync, 50, 365 * DAY_MS)
    accept(sync, 50, DAY_MS, first=50)
    for day in range(1, 18):
        tidy(sync.store, day * DAY_MS)
    assert insert_ids(sync) == 0


def test_no_key_is_forgotten_that_a_packed_batch_may_ask_for(sync: OneSync) -> None:
    """A sync that stood for a month still drops what its clients had sent twice."""
    accept(sync, 1, DAY_MS)
    sync.append(kept("ann", key=b"%016d" % 0), now_ms=2 * DAY_MS)
    tidy(sync.store, 40 * DAY_MS)
    assert insert_ids(sync) == 1
    assert sync.load(sync.last_id, now_ms=40 * DAY_MS).records == []
    assert sync.counters["dropped:duplicate"] == 1
    tidy(sync.store, 40 * DAY_MS)
    assert insert_ids(sync) == 0


def bury(sync: OneSync, count: int, at_ms: int, size: int = 10) -> None:
    rows = [DeadRow("invalid_json", "not JSON", bytes(size), None, "pipe", n) for n in range(count)]
    sync.store.begin()
    sync.store.append([Append([part_of(dead=rows, sync=sync.sync)])], at_ms)
    sync.store.commit()


def letters(sync: OneSync) -> int:
    found = sync.store.letters.find(sync.taker, DeadLetterQuery(), limit=100_000)
    assert len(found) == sync.counters["dead"]
    groups = sync.store.letters.groups.of(sync.taker)
    assert sum(group.count for group in groups) == len(found)
    return len(found)


def test_dead_letters_go_after_their_time_and_are_counted(sync: OneSync) -> None:
    bury(sync, 1_200, DAY_MS)
    bury(sync, 300, 20 * DAY_MS)
    assert tidy(sync.store, 31 * DAY_MS) > 2
    assert letters(sync) == 300
    assert sync.counters["dropped:expired_letter"] == 1_200
    assert sync.counters["received"] == 1_500


def test_dead_letters_beyond_their_bytes_go_the_oldest_first(sync: OneSync) -> None:
    bury(sync, 60, DAY_MS, size=100_000)
    tidy(sync.store, DAY_MS, dead_letters_max_bytes=2_000_000)
    assert letters(sync) == 19
    assert sync.counters["bytes:dead"] <= 2_000_000
    remaining = sync.store.letters.find(sync.taker, DeadLetterQuery())
    assert [letter.line for letter in remaining] == list(range(41, 60))


def test_a_letter_that_was_stamped_in_the_future_goes_a_month_from_now(sync: OneSync) -> None:
    bury(sync, 3, 365 * DAY_MS)
    tidy(sync.store, DAY_MS)
    tidy(sync.store, 30 * DAY_MS)
    assert letters(sync) == 3
    tidy(sync.store, 31 * DAY_MS)
    assert letters(sync) == 0


def contact(number: int) -> ContactKey:
    return ContactKey(1, "external_id", f"user-{number}")


def test_contacts_that_nobody_asked_for_go_first(sync: OneSync) -> None:
    store = sync.store
    store.begin()
    for number in range(1_500):
        store.contacts.remember(contact(number), Known("c"), DAY_MS)
    for number in range(0, 1_500, 5):
        store.contacts.use(contact(number), 5 * DAY_MS)
    store.commit()
    tidy(store, 6 * DAY_MS, max_contacts=300)
    assert store.accounts.committed(SPOOL)[CONTACTS] == 300
    known = [n for n in range(1_500) if store.contacts.get(contact(n)) is not None]
    assert known == list(range(0, 1_500, 5))


def test_minutes_become_hours_and_hours_go(sync: OneSync) -> None:
    times = Counter[str]()
    for minute in range(0, 3 * 60, 7):
        sync.store.accounts.add(sync.taker, "received", 1)
        times["received"] += 1
        sync.store.begin()
        sync.store.accounts.write(minute)
        sync.store.db.execute("COMMIT")
        sync.store.accounts.commit()
    minute_ms = 60_000
    tidy(sync.store, (48 * 60 + 3 * 60) * minute_ms)
    rows = sync.store.db.execute(
        "SELECT minute, value FROM minutes WHERE span = 60 AND name = 'received' ORDER BY minute"
    ).fetchall()
    assert [minute for minute, _ in rows] == [0, 60, 120]
    assert sum(value for _, value in rows) == times["received"]
    tidy(sync.store, 91 * DAY_MS + 3 * 60 * minute_ms)
    left = sync.store.db.execute("SELECT count(*) FROM minutes WHERE minute < 180").fetchone()
    assert left == (0,)


def test_one_parked_user_does_not_keep_the_batches_of_all_the_others(sync: OneSync) -> None:
    sync.append(*[kept("ann" if n == 3 else f"user-{n}", bytes(2_000)) for n in range(400)])
    found = sync.load(limit=400)
    [ann] = [record for record in found.records if record.user_key == "ann"]
    sync.store.begin()
    sync.settling.park(ann, (), FAILING, 10**12, 1)
    sync.store.commit()
    sync.deliver(*[record for record in found.records if record.user_key != "ann"])
    assert sync.store.db.execute("SELECT count(*) FROM inbox").fetchone() == (1,)
    tidying = Tidying(KEEP)
    for _ in range(40):
        sync.store.begin()
        tidying.slice(sync.store, 1)
        sync.store.commit()
    assert sync.store.db.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
    assert sync.counters["bytes:inbox"] == 0
    assert sync.counters["bytes:along"] == 2_000
    [again] = sync.load(found.last_id, now_ms=10**12).records
    assert (again.raw, again.id, again.kind) == (bytes(2_000), ann.id, Kind.EVENT)
    sync.deliver(again)
    assert sync.counters["bytes:along"] == 0


def test_every_slice_is_bounded(sync: OneSync) -> None:
    accept(sync, 3 * SLICE, DAY_MS)
    bury(sync, 3 * SLICE, DAY_MS)
    tidying = Tidying(KEEP)
    left = (insert_ids(sync), letters(sync))
    more = True
    while more:
        sync.store.begin()
        more = tidying.slice(sync.store, 60 * DAY_MS)
        sync.store.commit()
        now = (insert_ids(sync), letters(sync))
        assert all(before - after <= SLICE for before, after in zip(left, now, strict=True))
        left = now
    assert left == (0, 0)


def test_on_a_full_disk_new_events_take_the_space_of_settled_ones(sync: OneSync) -> None:
    """A backlog is delivered out of the reserve: nothing that is remembered may grow meanwhile."""
    store = sync.store
    sync.append(*[kept(f"user-{n}", key=b"%016d" % n) for n in range(5_000)])
    store.set_refusal(RefusalReason.DISK_FULL)
    sizes: list[tuple[int, int]] = []
    while found := sync.load(sync.last_id, limit=250):
        sync.last_id = found.last_id
        if not found.records:
            break
        store.begin()
        claims = store.claims(sync.sync)
        given = claims.claim([Claim(r.id, r.user_key, "Seen", 7, r.raw) for r in found.records], 1)
        assert given == [Given(7)] * len(found.records)
        sync.settling.deliver(found.records, 1)
        store.commit()
        rows = store.db.execute("SELECT count(*) FROM created_at_claims").fetchone()[0]
        sizes.append((insert_ids(sync), rows))
    assert sync.counters["delivered"] == 5_000
    assert max(ids for ids, _ in sizes) <= 500
    assert max(rows for _, rows in sizes) <= 500


def test_a_letter_is_old_by_when_it_failed_and_not_by_its_id(sync: OneSync) -> None:
    """Five hundred that came first and died today are in the way of none that died long ago."""
    now_ms = 60 * DAY_MS
    sync.append(*[kept(f"user-{n}") for n in range(SLICE + 20)])
    records = sync.load(limit=2 * SLICE).records
    sync.store.begin()
    for number, record in enumerate(records):
        sync.settling.bury(record, FAILING, now_ms if number < SLICE else DAY_MS)
    sync.store.commit()
    tidy(sync.store, now_ms)
    assert sync.counters["dead"] == SLICE
    assert sync.counters["dropped:expired_letter"] == 20


def test_a_clock_that_was_behind_for_one_event_forgets_no_others(sync: OneSync) -> None:
    now_ms = 60 * DAY_MS
    accept(sync, 100, now_ms)
    accept(sync, 1, 1, first=100)
    tidy(sync.store, now_ms)
    assert insert_ids(sync) == 101
    tidy(sync.store, now_ms + WINDOW_MS)
    assert insert_ids(sync) == 0


def test_contacts_of_a_clock_that_was_ahead_push_out_none_of_today(sync: OneSync) -> None:
    today = 60 * DAY_MS
    sync.store.begin()
    for number in range(20):
        at_ms = today + 365 * DAY_MS if number < 10 else today
        sync.store.contacts.remember(contact(number), Known(f"id-{number}"), at_ms)
    sync.store.commit()
    tidy(sync.store, today, max_contacts=10)
    days = sync.store.db.execute("SELECT DISTINCT used_day FROM contacts").fetchall()
    assert days == [(60,)]
    assert sync.store.accounts.committed(SPOOL)[CONTACTS] == 10


def test_a_damaged_letter_that_is_old_holds_up_nothing(sync: OneSync) -> None:
    """The index still names it, and it does not go: the others do, and the round ends."""
    sync.append(*[kept(f"user-{n}") for n in range(3)])
    records = sync.load(limit=9).records
    sync.store.begin()
    for record in records:
        sync.settling.bury(record, FAILING, 1)
    sync.store.commit()
    letters = sync.store.letters
    assert len(letters.failed_until(sync.taker, 1, 9)) == 3
    damaged = records[1].id

    class Damaged(type(letters)):  # type: ignore[misc]  # what SQLite does cannot be made by SQL
        def remove(self, taker: int, ids: Sequence[int]) -> dict[int, str]:
            return super().remove(taker, [id_ for id_ in ids if id_ != damaged])  # type: ignore[no-any-return]

    sync.store.letters = Damaged(sync.store.db)
    assert tidy(sync.store, 60 * DAY_MS) < 20
    assert sync.counters["dead"] == 1
