"""The store by itself: contacts, dead letters, and what is told of one user."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.batches import SLOTS, Kept
from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Held, Known
from amplitude_intercom.engine.spool.letter_ends import discard
from amplitude_intercom.engine.spool.letters import DeadLetter, DeadLetterQuery, DeadRow
from amplitude_intercom.engine.spool.replaying import replay
from amplitude_intercom.engine.spool.rows import Append
from amplitude_intercom.engine.spool.spool import open_database
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.engine.spool.user_state import MOST_TYPES_READ, state_of_user
from support.spools import OneSync, append_of, kept, opened, part_of, recount, sqlite_of

FAILING = Failure(DeadReason.USER_FAILING, 500)
EVENT = kept("ann")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


# --- takers -------------------------------------------------------------------------------


def test_a_sync_has_its_number_for_good_and_no_part_of_another_s(path: Path) -> None:
    store = opened(path)
    one, other = OneSync(store, "one"), OneSync(store, "other")
    one.append(EVENT)
    assert other.load().records == []
    assert (one.counters["pending"], other.counters["pending"]) == (1, 0)
    assert store.takers.known_id("nobody") not in (one.taker, other.taker)
    store.close()
    again = opened(path)
    assert [(taker.name, taker.id) for taker in again.takers.all()] == [
        ("one", one.taker),
        ("other", other.taker),
    ]
    assert OneSync(again, "other").taker == other.taker
    again.close()


def test_a_number_that_was_rolled_back_is_not_used(path: Path) -> None:
    store = opened(path)
    store.begin()
    never = store.takers.id_for("never")
    assert store.settling(never).taker == store.ends(never).taker == never
    store.rollback()
    sync = OneSync(store, "s")
    assert (sync.taker, store.ends(sync.taker).name) == (never, "s")
    assert [taker.name for taker in store.takers.all()] == ["s"]
    assert store.takers.known_id("never") != sync.taker
    store.close()


def test_the_bytes_of_a_batch_that_was_rolled_back_are_not_read(path: Path) -> None:
    sync = OneSync(opened(path))
    store, wanted = sync.store, Wanted(1, 1 << 20, 100, 1)

    def load_two(*events: Kept) -> list[bytes]:
        """Append a batch, and read it in two steps: the second one keeps its bytes in memory."""
        store.append([append_of(*events)], 1)
        first = sync.queue.load(wanted)
        later = sync.queue.load(msgspec.structs.replace(wanted, after_id=first.last_id))
        return [record.raw for record in (*first.records, *later.records)]

    store.begin()
    before = load_two(*(kept("ann", b'{"n":%d}' % n) for n in range(3)))
    store.rollback()
    store.begin()
    after = load_two(*(kept("ann", b'{"a":%d}' % n) for n in range(3)))
    store.commit()
    assert (before, after) == ([b'{"n":0}', b'{"n":1}'], [b'{"a":0}', b'{"a":1}'])
    assert sync.counters["dead"] == 0
    store.close()


def test_a_commit_that_fails_counts_nothing(path: Path) -> None:
    sync = OneSync(opened(path))
    store, db = sync.store, sqlite_of(sync.store.db)
    db.executescript(
        "PRAGMA foreign_keys = ON; CREATE TABLE a (id INTEGER PRIMARY KEY);"
        "CREATE TABLE b (a REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED);"
    )
    store.begin()
    store.append([append_of(EVENT)], 1)
    db.execute("INSERT INTO b VALUES (1)")  # it fails, but at the commit
    with pytest.raises(sqlite3.IntegrityError):
        store.commit()
    store.rollback()
    assert sync.counters["pending"] == 0
    sync.append(EVENT)
    assert (sync.counters["pending"], len(sync.load().records)) == (1, 1)
    store.close()


def test_the_next_transaction_counts_nothing_of_one_that_was_rolled_back(path: Path) -> None:
    sync = OneSync(opened(path))
    store = sync.store
    sync.append(EVENT, EVENT, kept("bob", key=b"1" * 16))
    counters = "SELECT taker, name, value FROM counters ORDER BY taker, name"
    before = store.db.execute(counters).fetchall()
    store.begin()
    unread = DeadRow("invalid_json", "no JSON", b"{", b"k" * 16, "f", 1)
    counted = msgspec.structs.replace(append_of(kept("cat")), number=1)
    store.append([counted, Append([part_of(dead=[unread])])], 1)
    first, second, *_ = sync.queue.load(Wanted(100, 1 << 20, 100, 1)).records
    sync.settling.bury(first, FAILING, 1)
    sync.settling.deliver([second], 1)
    store.contacts.remember(ANN, Known("c1"), 1)
    store.rollback()
    store.begin()
    store.commit()
    assert store.db.execute(counters).fetchall() == before
    assert store.takers.deliveries() == {}
    assert store.intake.counted_to == 0
    store.close()


# --- contacts -----------------------------------------------------------------------------


ANN = ContactKey(1, "external_id", "ann")


def test_contacts_are_remembered_and_forgotten(path: Path) -> None:
    contacts = opened(path).contacts
    properties = {"3": {"plan": Held("pro", 7), "seats": Held(None)}}
    known = Known("c1", False, "", {"name": "Ann"}, ["email"], properties)
    others = [ANN._replace(value="bob"), ANN._replace(workspace=2), ANN._replace(field="email")]
    assert contacts.get(ANN) is None
    for key in (ANN, *others):
        contacts.remember(key, known, 1)
    contacts.remember(ANN, known, 2)
    assert contacts.get(ANN) == known
    contacts.forget(ANN)
    assert contacts.get(ANN) is None
    assert [contacts.get(key) for key in others] == [known] * 3
    assert contacts.added == 3


def test_contacts_that_nobody_asks_for_are_forgotten_first(path: Path) -> None:
    contacts = opened(path).contacts
    day_ms = 86_400_000
    keys = [ANN._replace(value=user) for user in ("ann", "bob", "cid")]
    for day, key in enumerate(keys):
        contacts.remember(key, Known(key.value), day * day_ms)
    contacts.use(ANN, 5 * day_ms)
    assert contacts.forget_unused(1, 5 * day_ms) == 1
    assert [key.value for key in keys if contacts.get(key)] == ["ann", "cid"]


def test_a_contact_with_an_unanswered_write_is_kept_for_a_month(
    path: Path,
) -> None:
    contacts = opened(path).contacts
    day_ms = 86_400_000
    contacts.remember(ANN, Known("ann", fields={"name": '","unsure":[],"'}, unsure=["name"]), 0)
    assert contacts.forget_unused(9, 30 * day_ms) == 0
    assert contacts.forget_unused(9, 31 * day_ms) == 1


@pytest.mark.parametrize(
    ("theirs", "at", "contact_id", "is_lost"),
    [
        (Known("h1"), "bob", "h1", False),
        (None, "bob", "h1", False),
        (Known("h1", is_lost=True), "ann", "h1", True),
        (Known("h2"), "ann", "h1", True),
        (Known("h3", owner="cid"), "cid", "h3", False),
        (Known("h1", owner="ann"), "ann", "h1", True),
    ],
)
def test_of_a_user_that_was_merged_the_contact_of_the_other_one_is_known(
    path: Path, theirs: Known | None, at: str, contact_id: str, is_lost: bool
) -> None:
    """Forgotten, lost, another by now, merged further, and merged in a circle."""
    contacts = opened(path).contacts
    contacts.remember(ANN, Known("h1", owner="bob"), 0)
    contacts.remember(ANN._replace(value="cid"), Known("h3"), 0)
    if theirs is not None:
        contacts.remember(ANN._replace(value="bob"), theirs, 0)
    key, known = contacts.find(ANN)
    assert (key.value, known.contact_id, known.is_lost) == (at, contact_id, is_lost)
    assert known.owner == ""


def test_a_user_that_has_parted_has_the_properties_of_both(path: Path) -> None:
    contacts = opened(path).contacts
    mine, theirs = {"1": {"plan": Held("free")}}, {"1": {"plan": Held("pro", 5)}}
    contacts.remember(ANN, Known("h1", owner="bob", properties=mine), 0)
    bob = Known("h1", is_lost=True, properties=theirs, selections={"1": 2})
    contacts.remember(ANN._replace(value="bob"), bob, 0)
    assert contacts.find(ANN)[1] == Known("h1", True, properties=theirs, selections={"1": 2})


def test_a_damaged_contact_is_no_longer_known(path: Path) -> None:
    store = opened(path)
    store.contacts.remember(ANN, Known("c1"), 1)
    store.close()
    tamper(path, "UPDATE contacts SET known = '[}'")
    store = opened(path)
    assert store.contacts.get(ANN) is None
    store.close()


def tamper(path: Path, statement: str) -> None:
    other = sqlite3.connect(path)
    with other:
        assert other.execute(statement).rowcount > 0
    other.close()


# --- dead letters -------------------------------------------------------------------------


def replayable(letter: DeadLetter) -> tuple[DeadLetter, Kept]:
    event = kept(letter.user_key, letter.raw)
    return letter, event._replace(claim_id=letter.claim_id, accepted_at_ms=letter.accepted_at_ms)


def test_a_dead_letter_is_replayed_or_discarded_once(path: Path) -> None:
    sync = OneSync(opened(path))
    store, taker = sync.store, sync.taker
    sync.append(EVENT, EVENT, now_ms=3)
    records = sync.load().records
    store.begin()
    for record in records:
        sync.settling.bury(record, FAILING, 5)
        sync.settling.bury(record, FAILING, 5)
    store.commit()
    query = DeadLetterQuery(user="ann", reason="user_failing", since_ms=5)
    one, two = store.letters.find(taker, query)
    assert not store.letters.find(taker, DeadLetterQuery(until_ms=5))
    assert store.letters.find(taker, DeadLetterQuery(ids=[two.id])) == [two]
    store.begin()
    assert replay(store, taker, [replayable(one)], 9) == 1
    assert replay(store, taker, [replayable(one)], 9) == 0
    assert discard(store, taker, [two]) == 1
    assert discard(store, taker, [two]) == 0
    store.commit()
    counters = {name: n for name, n in sync.counters.items() if not name.startswith("bytes:")}
    expected = {"received": 2, "pending": 1, "dropped:discarded": 1}
    assert +Counter(counters) == Counter(expected)
    assert recount(store, taker) == {"pending": 1, "dead": 0}
    assert store.letters.groups.of(taker) == []
    assert sync.counters["bytes:dead"] == 0
    [again] = sync.load(SLOTS).records
    assert (again.id, again.claim_id, again.accepted_at_ms) == (2 * SLOTS, SLOTS, 3)
    store.close()


# --- one user -----------------------------------------------------------------------------


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("more", [0, 1])
def test_types_of_more_records_than_are_read_are_not_called_complete(
    path: Path, more: int, unpacked: bool
) -> None:
    sync = OneSync(opened(path))
    event = kept("ann", b'{"event_type": "Purchase", "user_id": "ann"}')
    sync.append(*[event, kept("bob")] * (MOST_TYPES_READ + more))
    if unpacked:
        assert sync.load(per_user=9).records
    state = state_of_user(sync.store, sync.taker, "ann")
    assert (state.waiting.records, state.waiting.types_of) == (
        MOST_TYPES_READ + more,
        MOST_TYPES_READ,
    )
    assert state.waiting.types == {"Purchase": MOST_TYPES_READ}
    assert state.waiting.first_id == SLOTS
    assert state.complete is (more == 0)
    sync.store.close()


def test_an_event_without_its_batch_shows_its_type_and_keeps_its_bytes(path: Path) -> None:
    """It has its bytes itself, where its batch was let go."""
    sync = OneSync(opened(path))
    sync.append(kept("ann", b'{"event_type": "Purchase"}'), kept("bob"))
    ann, bob = sync.load().records
    sync.store.begin()
    sync.settling.park(ann, (), FAILING, 99, 1)
    sync.store.records.take_along(ann.id, ann.raw)
    sync.store.commit()
    sync.deliver(bob)
    assert sync.store.db.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
    assert state_of_user(sync.store, sync.taker, "ann").waiting.types == {"Purchase": 1}
    [woken] = sync.load(bob.id, now_ms=99).records
    assert woken.raw == ann.raw
    sync.store.close()


def test_a_spool_recovers_as_its_store_does(tmp_path: Path) -> None:
    """A store of another class is recovered by its own method, at the opening alone."""
    recovered: list[Store] = []

    class RecoveringStore(Store):
        def recover(self) -> None:
            super().recover()
            recovered.append(self)

    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "spool.db"
    database = open_database(path, Limits(), reserve_bytes=0, store_type=RecoveringStore)
    assert recovered == [database.store]
    database.close()
