"""The cap on what waits: who is refused, until when, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.accounts import SPOOL, WAITING
from amplitude_intercom.engine.spool.batches import Kept
from amplitude_intercom.engine.spool.fullness import NEARLY_FULL, RELIEF
from amplitude_intercom.engine.spool.letters import DeadRow
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import OneSync, append_of, kept, opened, part_of, recount

CAP = 2_000_000
LARGE = kept("ann", bytes(20_000))


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Store]:
    store = opened(tmp_path / "spool.db", max_bytes=CAP)
    yield store
    store.close()


def waiting_bytes(store: Store) -> int:
    return store.accounts.committed(SPOOL)[WAITING]


def tries(sync: OneSync, *rows: Kept) -> bool:
    """Append; return whether it was taken."""
    try:
        sync.append(*rows)
    except SpoolError as error:
        if error.reason != RefusalReason.SPOOL_FULL:
            raise
        return False
    return True


def fill(sync: OneSync, to_bytes: int = 1 << 40) -> None:
    while not sync.store.intake.why_full(sync.sync) and waiting_bytes(sync.store) < to_bytes:
        sync.append(LARGE)


def load_all(sync: OneSync) -> list[Record]:
    return sync.load(limit=10_000, limit_bytes=1 << 40, per_user=10_000).records


def test_a_full_spool_refuses_until_some_of_it_is_delivered(store: Store) -> None:
    sync = OneSync(store)
    fill(sync)
    assert CAP <= waiting_bytes(store) < CAP + 25_000
    records = load_all(sync)
    while not tries(sync, kept("ann")):
        assert waiting_bytes(store) >= CAP * RELIEF
        assert store.intake.why_full(sync.sync)
        sync.deliver(records.pop(0))
    assert 0.9 < waiting_bytes(store) / CAP < RELIEF
    assert not store.intake.why_full(sync.sync)
    fill(sync)


def test_waiting_bytes_are_zero_again_when_nothing_waits(store: Store) -> None:
    sync = OneSync(store)
    for _ in range(3):
        sync.append(LARGE, kept("bob", b"[]"))
    assert waiting_bytes(store) > 60_000
    sync.deliver(*load_all(sync))
    assert waiting_bytes(store) == 0


def test_a_refusal_changes_nothing(store: Store) -> None:
    sync, other = OneSync(store, "full"), OneSync(store, "other")
    fill(sync)
    before = sync.counters, recount(store, sync.taker), waiting_bytes(store)
    store.begin()
    of_both = Append([part_of([kept("ann")], sync=name) for name in ("full", "other")])
    refused, counted = store.append([of_both, Append([part_of(sync="full")])], 1)
    store.commit()
    assert isinstance(refused, SpoolError)
    assert "sync `full`" in str(refused)
    assert counted == Appended(0, 0, 0)
    assert (sync.counters, recount(store, sync.taker), waiting_bytes(store)) == before
    assert other.counters.total() == 0


def test_batches_of_one_transaction_are_refused_from_the_one_on_that_finds_it_full(
    store: Store,
) -> None:
    sync = OneSync(store)
    store.begin()
    done = store.append([append_of(*[LARGE] * 20)] * 8, 1)
    store.commit()
    taken = [isinstance(result, Appended) for result in done]
    assert taken == sorted(taken, reverse=True)
    assert taken.count(True) == 5
    assert waiting_bytes(store) < CAP + 20 * 25_000
    assert sync.counters["received"] == 100


def test_dead_letters_are_taken_in_though_it_is_full(store: Store) -> None:
    """They have a budget of their own."""
    sync = OneSync(store)
    fill(sync)
    row = DeadRow("invalid_json", "no JSON", b"{", b"k" * 16, "f", 1)
    store.begin()
    assert store.append([Append([part_of(dead=[row])])], 1) == [
        Appended(0, 0, 1, {"invalid_json": 1})
    ]
    store.commit()
    assert sync.counters["dead"] == 1


def test_a_spool_that_has_room_again_says_so_before_anybody_asks_to_append(store: Store) -> None:
    """Who reads it may be who keeps the appends away."""
    sync = OneSync(store)
    fill(sync)
    assert store.intake.why_full(sync.sync)
    sync.deliver(*load_all(sync))
    assert not store.intake.why_full(sync.sync)


def test_a_sync_without_deliveries_does_not_close_the_intake_of_another(store: Store) -> None:
    stands, flows = OneSync(store, "stands"), OneSync(store, "flows")
    fill(stands, to_bytes=int(CAP * NEARLY_FULL) + 1)
    assert store.intake.why_full("stands")
    assert not store.intake.why_full("flows"), (
        "the rest is for the other, though it has nothing yet"
    )
    assert not tries(stands, kept("ann"))
    for _ in range(50):
        assert tries(flows, LARGE)
        flows.deliver(*load_all(flows))
    flows.append(LARGE)
    records = load_all(stands)
    while not tries(stands, kept("ann")):
        stands.deliver(records.pop())
    assert 0.9 < waiting_bytes(store) / (CAP * NEARLY_FULL) < RELIEF


def test_a_taker_over_its_share_stays_refused_while_another_comes_and_goes(
    store: Store,
) -> None:
    """Else a batch of it is taken in or refused by when the other's next one comes."""
    stands, flows = OneSync(store, "stands"), OneSync(store, "flows")
    fill(stands, to_bytes=int(CAP * NEARLY_FULL) + 1)
    flows.append(LARGE)
    assert not tries(stands, kept("ann"))
    flows.deliver(*load_all(flows))
    assert not tries(stands, kept("ann"))


def test_a_full_spool_is_full_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sync = OneSync(opened(path, max_bytes=CAP))
    fill(sync)
    sync.store.close()
    again = OneSync(opened(path, max_bytes=CAP))
    assert again.store.intake.why_full(sync.sync)
    again.store.close()


def test_an_intake_that_is_shut_takes_in_nothing_but_counts(store: Store) -> None:
    sync = OneSync(store)
    store.set_refusal(RefusalReason.DISK_FULL)
    with pytest.raises(SpoolError, match="disk_full"):
        sync.append(kept("ann"))
    assert sync.counters.total() == 0
    assert sync.append() == Appended(0, 0, 0)
    store.set_refusal(None)
    assert sync.append(kept("ann")) == Appended(1, 0, 0)
