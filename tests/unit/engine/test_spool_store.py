"""The store by itself: its cap, its checksums, its file, and what it remembers."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import Failure, SpoolError
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.rows import (
    Append,
    Appended,
    Contact,
    DeadLetterQuery,
    Loaded,
    Row,
)
from amplitude_intercom.engine.spool.schema import PAGE_BYTES, SCHEMA_VERSION, connect
from amplitude_intercom.engine.spool.store import REFILL_LEVEL, Store
from amplitude_intercom.engine.spool.user_state import MOST_TYPES_READ
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import database_of

FAILING = Failure(DeadReason.USER_FAILING, 500)
ROW = Row(Kind.EVENT, "ann", b"{}", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.db"


def opened(path: Path, *, max_bytes: int = 1 << 30, window_ms: int = 1_000) -> Store:
    return Store(connect(path), max_bytes=max_bytes, window_ms=window_ms)


def append(store: Store, *rows: Row, now_ms: int = 1) -> Appended:
    store.begin()
    (done,) = store.append([Append(len(rows), list(rows), [], Counter())], now_ms)
    store.commit()
    if isinstance(done, SpoolError):
        raise done
    return done


def load(store: Store, after_id: int = 0, *, now_ms: int = 1, per_user: int = 100) -> Loaded:
    store.begin()
    found = store.load(
        after_id,
        limit=100,
        limit_bytes=1 << 20,
        per_user=per_user,
        crowded=(),
        halted=(),
        now_ms=now_ms,
    )
    store.commit()
    return found


def deliver(store: Store, *records: Record) -> None:
    store.begin()
    store.deliver([record.id for record in records])
    store.commit()


def tamper(path: Path, statement: str, *values: object) -> None:
    other = sqlite3.connect(path)
    with other:
        assert other.execute(statement, values).rowcount > 0
    other.close()


# --- the cap ------------------------------------------------------------------------------


def fill(store: Store) -> None:
    while not store.full:
        tries(store, Row(Kind.EVENT, "ann", bytes(20_000), None))


def tries(store: Store, *rows: Row) -> bool:
    try:
        append(store, *rows)
    except SpoolError as error:
        if error.reason != "spool_full":
            raise
        return False
    return True


def test_a_full_spool_refuses_until_some_room_is_back(path: Path) -> None:
    cap = 2_000_000
    store = opened(path, max_bytes=cap)
    fill(store)
    assert store.full
    assert store.used_bytes() >= cap
    records = load(store).records
    while not tries(store, ROW):
        assert store.full
        assert store.used_bytes() >= cap * REFILL_LEVEL
        deliver(store, records.pop(0))
    assert 0.9 < store.used_bytes() / cap < REFILL_LEVEL
    assert not store.full
    fill(store)
    store.close()


def test_a_refusal_changes_nothing(path: Path) -> None:
    store = opened(path, max_bytes=1)
    with pytest.raises(SpoolError, match="spool_full"):
        append(store, Row(Kind.EVENT, "ann", b"{}", b"key"))
    assert store.counters.total() == 0
    assert store.recount() == {"pending": 0, "dead": 0}
    store.close()
    again = opened(path)
    assert append(again, Row(Kind.EVENT, "ann", b"{}", b"key")).accepted == 1
    again.close()


def test_a_spool_that_has_room_again_says_so_before_anybody_asks_to_append(path: Path) -> None:
    """Who reads ``full`` may be who keeps the appends away."""
    store = opened(path, max_bytes=2_000_000)
    fill(store)
    deliver(store, *load(store).records)
    assert not store.full
    store.close()


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
        "crc = crc + 1",
    ],
)
@pytest.mark.parametrize("aside", [False, True])
def test_a_damaged_record_becomes_a_dead_letter_and_the_rest_flows(
    path: Path, damage: str, aside: bool
) -> None:
    store = opened(path)
    append(store, *[ROW] * 4)
    if aside:
        first = load(store).records[0]
        store.begin()
        store.park(first, FAILING, 5, 1)
        store.set_aside([2, 3, 4])
        store.commit()
    store.close()
    tamper(path, f"UPDATE records SET {damage} WHERE id IN (1, 3)")
    store = opened(path)
    flowed = drain(store)
    assert flowed == [2, 4]
    letters = store.letters.find(DeadLetterQuery())
    assert [(letter.id, letter.reason) for letter in letters] == [(1, "corrupt"), (3, "corrupt")]
    counters = store.counters
    assert (counters["received"], counters["delivered"], counters["dead"]) == (4, 2, 2)
    assert store.recount() == {"pending": 0, "dead": 2}
    store.close()


def drain(store: Store) -> list[int]:
    """Deliver all there is as the feed would; return the ids in order."""
    flowed: list[int] = []
    after = 0
    for now_ms in range(10, 20):
        found = load(store, after, now_ms=now_ms)
        after = found.last_id
        records = found.records
        while records or found.draining:
            deliver(store, *records)
            flowed += [record.id for record in records]
            records = []
            for user in list(found.draining):
                store.begin()
                more = store.refill(user, 1, 1)
                store.commit()
                records += more
                if not more:
                    found.draining.remove(user)
    return flowed


def test_a_run_of_damaged_records_longer_than_a_refill_does_not_free_the_user(path: Path) -> None:
    store = opened(path)
    append(store, *[ROW] * 50)
    load(store, per_user=1)
    store.close()
    tamper(path, "UPDATE records SET crc = crc + 1 WHERE id BETWEEN 2 AND 49")
    store = opened(path)
    assert drain(store) == [1, 50]
    assert store.recount() == {"pending": 0, "dead": 48}
    store.close()


# --- restarts -----------------------------------------------------------------------------


def test_users_that_are_due_load_no_more_bytes_than_there_may_be(path: Path) -> None:
    """One record more, as everywhere: the one that reaches the limit."""
    store = opened(path)
    users = [f"user-{n}" for n in range(50)]
    append(store, *(Row(Kind.EVENT, user, bytes(100_000), None) for user in users))
    store.begin()
    for record in load_queue(store, limit_bytes=1 << 30).records:
        store.park(record, FAILING, 2, 1)
    store.commit()
    woken: list[str] = []
    while len(woken) < 50:
        store.begin()
        records = load_queue(store, limit_bytes=1_000_000).records
        assert 10 <= len(records) <= 11
        deliver_in(store, records)
        store.commit()
        woken += [record.user_key for record in records]
    assert sorted(woken) == sorted(users)
    store.close()


def load_queue(store: Store, limit_bytes: int) -> Loaded:
    return store.load(
        0, limit=100, limit_bytes=limit_bytes, per_user=9, crowded=(), halted=(), now_ms=3
    )


def deliver_in(store: Store, records: Sequence[Record]) -> None:
    store.deliver([record.id for record in records])
    for record in records:
        assert not store.refill(record.user_key, 1, 1)


def test_what_was_loaded_before_its_user_went_aside_still_goes_first(path: Path) -> None:
    store = opened(path)
    append(store, *[ROW] * 6)
    assert [record.id for record in load(store, per_user=2).records] == [1, 2]
    store.close()
    store = opened(path)
    assert drain(store) == [1, 2, 3, 4, 5, 6]
    store.close()


def test_what_waits_behind_nobody_is_queued_again(path: Path) -> None:
    store = opened(path)
    append(store, *[ROW] * 3)
    store.begin()
    store.set_aside([2])
    store.commit()
    store.close()
    store = opened(path)
    assert drain(store) == [1, 2, 3]
    store.close()


def test_places_are_not_used_again_though_everything_is_gone(path: Path) -> None:
    store = opened(path)
    append(store, *[ROW] * 3)
    deliver(store, *load(store).records)
    store.close()
    store = opened(path)
    append(store, ROW)
    assert [record.id for record in load(store).records] == [4]
    store.close()


# --- duplicates ---------------------------------------------------------------------------


def test_an_insert_id_is_a_duplicate_within_the_window_and_new_after_it(path: Path) -> None:
    store = opened(path, window_ms=100)
    row = Row(Kind.EVENT, "ann", b"{}", b"key")
    assert append(store, row, row, now_ms=1) == Appended(1, 1, 0)
    assert append(store, row, now_ms=100) == Appended(0, 1, 0)
    assert append(store, row, row, now_ms=101) == Appended(1, 1, 0)
    assert append(store, row, now_ms=200) == Appended(0, 1, 0)
    store.close()


def test_outlived_insert_ids_are_cleared_away_though_the_first_comes_again(path: Path) -> None:
    db = connect(path)
    store = Store(db, max_bytes=1 << 30, window_ms=100)
    for now_ms in range(0, 2_000, 100):
        rows = [Row(Kind.EVENT, "ann", b"{}", b"%d %d" % (now_ms, i)) for i in range(20)]
        append(store, Row(Kind.EVENT, "ann", b"{}", b"again"), *rows, now_ms=now_ms)
    (kept,) = db.execute("SELECT count(*) FROM seen").fetchone()
    assert kept <= 2 * 21
    store.close()


# --- the file -----------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_durable(path: Path) -> None:
    db = connect(path)
    for pragma, value in (
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("page_size", PAGE_BYTES),
        ("auto_vacuum", 2),
        ("user_version", SCHEMA_VERSION),
    ):
        assert db.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    db.close()


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="not a spool"):
        connect(path)
    assert path.read_bytes() == before


def test_a_spool_of_a_later_version_is_refused_with_both_versions(path: Path) -> None:
    opened(path).close()
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    other.close()
    with pytest.raises(SpoolError, match=f"schema {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}"):
        connect(path)


def test_a_file_that_is_no_database_is_refused_by_name(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(SpoolError, match=str(path)):
        connect(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(SpoolError):
        connect(path)


# --- contacts -----------------------------------------------------------------------------


def test_contacts_are_remembered_and_forgotten(path: Path) -> None:
    store = opened(path)
    contact = Contact("c1", {"plan": "pro"}, {"name": "Ann"}, 7)
    assert store.contacts.get("ann") is None
    store.contacts.remember("ann", contact, 1)
    store.contacts.remember("bob", contact, 1)
    assert store.contacts.get("ann") == contact
    store.contacts.forget("ann")
    assert (store.contacts.get("ann"), store.contacts.get("bob")) == (None, contact)
    store.contacts.forget_all()
    assert store.contacts.get("bob") is None
    store.close()


def test_a_damaged_contact_is_no_longer_known(path: Path) -> None:
    store = opened(path)
    store.contacts.remember("ann", Contact("c1", {}, {}), 1)
    store.close()
    tamper(path, "UPDATE contacts SET properties = '[}'")
    store = opened(path)
    assert store.contacts.get("ann") is None
    store.close()


# --- dead letters -------------------------------------------------------------------------


def test_a_dead_letter_is_replayed_or_discarded_once(path: Path) -> None:
    store = opened(path)
    append(store, ROW, ROW)
    store.begin()
    for record in load_within(store):
        store.bury(record, FAILING, 5)
        store.bury(record, FAILING, 5)
    store.commit()
    one, two = store.letters.find(DeadLetterQuery(user="ann", reason="user_failing", since_ms=5))
    assert not store.letters.find(DeadLetterQuery(until_ms=5))
    assert store.letters.find(DeadLetterQuery(ids=[two.id])) == [two]
    store.begin()
    assert store.replay(one, ROW) == 3
    assert store.replay(one, ROW) == 0
    assert store.discard(two)
    assert not store.discard(two)
    store.commit()
    expected = {"received": 2, "pending": 1, "dead": 0, "dropped:discarded": 1}
    assert +store.counters == +Counter(expected)
    store.close()


def load_within(store: Store) -> list[Record]:
    return store.load(
        0, limit=9, limit_bytes=999, per_user=9, crowded=(), halted=(), now_ms=1
    ).records


def test_a_drained_backlog_gives_its_space_back_bit_by_bit(path: Path) -> None:
    store = opened(path)
    database = database_of(store)
    for _ in range(40):
        append(store, *(Row(Kind.EVENT, "ann", bytes(8_000), None) for _ in range(100)))
    full_bytes = store.file_bytes()
    assert not database.tidy(), "while it is needed"
    while found := load(store).records:
        deliver(store, *found)
    assert store.file_bytes() == full_bytes
    steps = 0
    while database.tidy():
        steps += 1
    assert steps > 10
    assert store.file_bytes() < full_bytes / 1.8
    store.shut_intake(RefusalReason.DISK_FULL)
    while database.tidy():
        pass
    assert store.file_bytes() < full_bytes / 20, "all of it, where the disk has no room"
    store.close()
    assert path.stat().st_size < full_bytes / 20


def test_damage_that_puts_a_second_record_to_a_dead_letter_s_id_loses_neither(path: Path) -> None:
    store = opened(path)
    append(store, ROW, Row(Kind.EVENT, "bob", b"[]", None))
    store.begin()
    store.bury(Record(1, Kind.EVENT, "ann", 1, b"{}"), FAILING, 2)
    store.commit()
    store.close()
    tamper(path, "UPDATE records SET id = 1 WHERE id = 2")
    store = opened(path)
    assert load(store).records == []
    letters = store.letters.find(DeadLetterQuery())
    assert [(letter.id, letter.reason, letter.raw) for letter in letters] == [
        (1, "user_failing", b"{}"),
        (3, "corrupt", b"[]"),
    ]
    assert store.recount() == {"pending": 0, "dead": 2}
    assert store.counters["dead"] == 2
    store.close()


def test_a_place_is_never_given_twice_though_the_mark_of_the_next_is_damaged(path: Path) -> None:
    store = opened(path)
    append(store, ROW, ROW)
    store.begin()
    store.bury(Record(2, Kind.EVENT, "ann", 1, b"{}"), FAILING, 2)
    store.commit()
    store.close()
    tamper(path, "UPDATE meta SET value = '1x' WHERE key = 'next_id'")
    store = opened(path)
    append(store, ROW)
    assert [record.id for record in load(store).records] == [1, 3]
    store.close()


@pytest.mark.parametrize("more", [0, 1])
def test_types_of_more_records_than_are_read_are_not_called_complete(path: Path, more: int) -> None:
    store = opened(path)
    row = Row(Kind.EVENT, "ann", b'{"event_type": "Purchase", "user_id": "ann"}', None)
    append(store, *[row] * (MOST_TYPES_READ + more))
    state = store.user("ann")
    assert (state.waiting.records, state.waiting.types_of) == (
        MOST_TYPES_READ + more,
        MOST_TYPES_READ,
    )
    assert state.waiting.types == {"Purchase": MOST_TYPES_READ}
    assert state.complete is (more == 0)
