"""Who is refused for want of free bytes, and that one full sync closes no other's intake."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.fullness import NEARLY_FULL, RELIEF
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.store import Store
from support.spools import OneSync, kept, opened, part_of

MAX_BYTES = 4_000_000
EVENT = bytes(20_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return opened(tmp_path / "spool.db", max_bytes=MAX_BYTES)


def tries(store: Store, *syncs: str, count: int = 1) -> str:
    """Append events to syncs as one batch; return what the spool says where it refuses."""
    parts = [part_of([kept("ann", EVENT)] * count, sync=sync) for sync in syncs]
    store.begin()
    (done,) = store.append([Append(parts)], 1)
    store.commit()
    return "" if isinstance(done, Appended) else str(done)


def fill(store: Store, sync: str) -> int:
    count = 0
    while not tries(store, sync):
        count += 1
    return count


def test_one_sync_has_all_of_it_where_nobody_else_has_any(store: Store) -> None:
    held = fill(store, "one") * len(EVENT)
    assert 0.97 * MAX_BYTES < held <= MAX_BYTES
    waiting = store.accounts.value(0, "bytes:waiting")
    assert store.intake.why_full("one") == (
        f"{waiting:,} bytes wait, `spool.max_bytes` is {MAX_BYTES:,}"
    )


def test_a_sync_over_its_share_is_refused_and_names_itself_and_the_others_are_not(
    store: Store,
) -> None:
    assert not tries(store, "small")
    held = fill(store, "large") * len(EVENT)
    assert NEARLY_FULL * MAX_BYTES * 0.98 < held < 0.85 * MAX_BYTES
    assert "sync `large`" in tries(store, "large")
    for _ in range(5):
        assert not tries(store, "small")
        assert not tries(store, "new")
    assert [name for name in ("large", "small", "new") if store.intake.why_full(name)] == ["large"]


def test_a_batch_is_in_all_its_syncs_or_in_none(store: Store) -> None:
    assert not tries(store, "small")
    fill(store, "large")
    before = store.accounts.committed(store.takers.id_for("small"))["pending"]
    assert "sync `large`" in tries(store, "small", "large")
    assert store.accounts.committed(store.takers.id_for("small"))["pending"] == before


def test_many_batches_of_one_transaction_do_not_go_beyond_the_bound(store: Store) -> None:
    batches = [Append([part_of([kept("ann", EVENT)] * 50, sync="one")]) for _ in range(20)]
    store.begin()
    done = store.append(batches, 1)
    store.commit()
    refused = [answer for answer in done if isinstance(answer, SpoolError)]
    assert len(refused) == 16
    assert {answer.reason for answer in refused} == {"spool_full"}


def test_a_refused_taker_stays_so_until_some_of_its_backlog_is_gone(store: Store) -> None:
    """Refusals that came and went by the batch would let a later one overtake an earlier one."""
    sync = OneSync(store, "one")
    fill(store, "one")
    records = sync.load(limit=200, limit_bytes=1 << 30).records
    delivered = 0
    while store.intake.why_full("one"):
        sync.deliver(records[delivered])
        delivered += 1
        if delivered > 150:
            break
    held = store.accounts.value(0, "bytes:waiting")
    assert held < RELIEF * MAX_BYTES
    assert not tries(store, "one")


def test_remembered_rows_close_no_intake(store: Store) -> None:
    sync = OneSync(store, "one")
    for number in range(30):
        sync.append(*[kept("ann", EVENT, key=b"%016d" % (number * 10 + n)) for n in range(10)])
        found = sync.load(sync.last_id)
        sync.last_id = found.last_id
        sync.deliver(*found.records)
    assert not store.intake.why_full(sync.sync)
    assert sync.counters["delivered"] == 300
