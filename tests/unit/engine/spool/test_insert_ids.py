"""Which events were accepted before, and for how long that is remembered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.insert_ids import InsertIds, key_of
from amplitude_intercom.engine.spool.letters import DeadRow
from amplitude_intercom.engine.spool.rows import Append, Appended
from support.spools import OneSync, kept, opened, part_of, recount

EVENT = kept("ann", key=b"key")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.mark.parametrize("at_once", [False, True])
def test_an_insert_id_is_a_duplicate_within_the_window_and_new_after_it(
    path: Path, at_once: bool
) -> None:
    """By the times of acceptance, however long the batches wait to be unpacked."""
    sync = OneSync(opened(path, window_ms=100))
    found: list[Record] = []
    for now_ms, events in ((1, 2), (100, 1), (101, 2), (200, 1)):
        assert sync.append(*[EVENT] * events, now_ms=now_ms) == Appended(events, 0, 0)
        if not at_once:
            found += sync.load(found[-1].id if found else 0).records
    found = found or sync.load().records
    assert [record.id for record in found] == [1 * SLOTS, 3 * SLOTS]
    sync.deliver(*found)
    expected = {"received": 6, "dropped:duplicate": 4, "delivered": 2}
    assert +sync.counters == Counter(expected)
    assert recount(sync.store, sync.taker) == {"pending": 0, "dead": 0}
    sync.store.close()


def test_a_batch_of_nothing_but_duplicates_leaves_nothing_behind(path: Path) -> None:
    sync = OneSync(opened(path))
    sync.append(EVENT)
    first = sync.load()
    sync.deliver(*first.records)
    sync.append(EVENT, EVENT)
    assert sync.load(first.last_id).records == []
    assert sync.store.db.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
    assert sync.counters["bytes:inbox"] == sync.counters["pending"] == 0
    sync.store.close()


def test_an_event_of_one_sync_is_no_duplicate_to_another(path: Path) -> None:
    store = opened(path)
    one, other = OneSync(store, "one"), OneSync(store, "other")
    for sync in (one, other, one):
        sync.append(EVENT)
    assert (len(one.load().records), len(other.load().records)) == (1, 1)
    assert (one.counters["dropped:duplicate"], other.counters["dropped:duplicate"]) == (1, 0)
    store.close()


def test_a_dead_letter_of_intake_is_known_again_too(path: Path) -> None:
    sync = OneSync(opened(path))
    row = DeadRow("invalid_json", "no JSON", b"{", b"key", "f", 1)
    store = sync.store
    store.begin()
    done = store.append([Append([part_of(dead=[row, row])]), Append([part_of(dead=[row])])], 1)
    store.commit()
    assert done == [Appended(0, 1, 1, {"invalid_json": 1}), Appended(0, 1, 0)]
    assert recount(store, sync.taker) == {"pending": 0, "dead": 1}
    assert sync.counters["dropped:duplicate"] == 2
    store.close()


# --- forgetting ---------------------------------------------------------------------------


@pytest.fixture
def insert_ids(path: Path) -> InsertIds:
    return InsertIds(opened(path).db, window_ms=100)


def add(insert_ids: InsertIds, first: int, names: list[str], at_ms: int) -> int:
    """Add keys from an id on; return how many were new."""
    keys = {id_: key_of(1, name.encode()) for id_, name in enumerate(names, first)}
    return len(insert_ids.add(keys, dict.fromkeys(keys, at_ms)))


def test_outlived_insert_ids_are_forgotten_though_the_first_comes_again(
    insert_ids: InsertIds,
) -> None:
    for now_ms in range(0, 2_000, 100):
        names = ["again", *(f"{now_ms} {n}" for n in range(20))]
        assert add(insert_ids, now_ms, names, now_ms) == 21
    assert insert_ids.forget_oldest(10_000, 1_800, 1_900) == 19 * 20
    assert insert_ids.added == 21
    assert add(insert_ids, 5_000, ["again", "1900 7", "0 0"], 1_950) == 1


def test_a_few_are_forgotten_at_a_time_and_none_that_is_not_outlived(insert_ids: InsertIds) -> None:
    add(insert_ids, 1, [str(n) for n in range(10)], 50)
    add(insert_ids, 11, [str(n) for n in range(10, 20)], 60)
    assert [insert_ids.forget_oldest(4, 55, 70) for _ in range(4)] == [4, 4, 2, 0]
    assert insert_ids.added == 10
    assert insert_ids.forget_first(3) == 3
    assert insert_ids.added == 7


def test_insert_ids_of_a_fast_clock_are_outlived_a_window_from_now(
    insert_ids: InsertIds,
) -> None:
    add(insert_ids, 1, ["one", "other"], 1_000_000)
    assert insert_ids.forget_oldest(9, 100, 200) == 0
    assert insert_ids.forget_oldest(9, 199, 299) == 0
    assert insert_ids.forget_oldest(9, 200, 300) == 2


def test_a_damaged_id_of_another_key_makes_no_duplicate_and_stops_nothing(path: Path) -> None:
    sync = OneSync(opened(path, window_ms=100))
    sync.append(kept("ann", b"1", key=b"one"))
    sync.load()
    sync.store.db.execute("UPDATE insert_ids SET id = ?", (2 * SLOTS,))
    sync.append(kept("bob", b"2", key=b"two"), kept("cid", b"3", key=b"three"))
    assert [record.raw for record in sync.load(SLOTS, limit=9).records] == [b"2", b"3"]
