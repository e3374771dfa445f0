"""What waits of a sync: reads over several tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import waits_up_to
from support.spools import OneSync, kept, opened

FAILURE = Failure(DeadReason.USER_NOT_FOUND)


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Store]:
    store = opened(tmp_path / "spool.db")
    yield store
    store.close()


def waits(sync: OneSync, last: int) -> bool:
    return waits_up_to(sync.store, sync.taker, last)


def test_a_batch_waits_packed_and_unpacked_until_its_last_record_is_settled(store: Store) -> None:
    sync = OneSync(store)
    sync.append(kept("ann"), kept("ben"))
    last = store.accounts.last_batch()
    sync.append(kept("cem"))
    assert (waits(sync, last - 1), waits(sync, last)) == (False, True)
    ann, ben, _ = sync.load().records
    sync.deliver(ann)
    assert waits(sync, last)
    sync.deliver(ben)
    assert (waits(sync, last), waits(sync, last + 1)) == (False, True)


def test_what_a_parked_user_has_waits_though_its_batch_is_gone(store: Store) -> None:
    sync = OneSync(store)
    sync.append(kept("ann"), kept("ben"))
    last = store.accounts.last_batch()
    sync.append(kept("ann"))
    ann, ben, later = sync.load().records
    sync.deliver(ben)
    store.begin()
    sync.settling.park(ann, [later.id], FAILURE, 9, 1)
    for record in (ann, later):
        store.records.take_along(record.id, record.raw)
    store.inbox.let_go([last, last + 1])
    store.commit()
    assert store.inbox.ids(sync.taker, last + 1, 9) == []
    assert (waits(sync, last - 1), waits(sync, last)) == (False, True)
    sync.deliver(ann)
    assert (waits(sync, last), waits(sync, last + 1)) == (False, True)


def test_another_sync_s_records_are_not_waited_for(store: Store) -> None:
    one, other = OneSync(store), OneSync(store, "other")
    other.append(kept("ann"))
    [record] = other.load().records
    store.begin()
    other.settling.park(record, [], FAILURE, 9, 1)
    store.commit()
    assert not waits(one, store.accounts.last_batch())
    assert waits(other, store.accounts.last_batch())
