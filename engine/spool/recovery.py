"""Recovery of a spool at its opening, after a process that ended at any point.

Numbers that can be computed from rows are computed, and not taken from a counter.
"""

from __future__ import annotations

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.spool.accounts import (
    INBOX,
    LAST_BATCH,
    SPOOL,
    TAKEN_ALONG,
    WAITING,
)
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.store import Store

MOST_BATCHES = 3
"""Ids after its own that a request of 2,000 events reserves for its dead letters."""


def recover(store: Store) -> None:
    """Recover all takers, so that each user goes on in order."""
    _correct_last_batch(store)
    for taker in store.takers.all():
        _correct_unpacked_to(store, taker.id, taker.unpacked_to)
        recover_taker(store, taker.id)
    _correct_bytes(store)


def recover_taker(store: Store, taker: int) -> None:
    """Recover a taker's deliveries. Users that were being worked off start over."""
    store.forget_queue(taker)
    store.db.execute(
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms IS NULL", (taker,)
    )
    store.db.execute(  # set by a clock that was ahead of time
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms > ?",
        (taker, store.latest_wake_ms()),
    )
    # After damage a record may be set aside without a user's row: nothing else would wake it.
    store.queue(taker).find_strays()
    if not store.users.any(taker):
        return
    # Loaded records of a user with a row come before the user's records set aside, and would be
    # overtaken by them.
    overtaken = store.db.execute(
        "UPDATE records SET set_aside = 1 WHERE id IN (SELECT r.id FROM inbox b JOIN records r"
        f" ON r.id >= b.id * {SLOTS} AND r.id < (b.id + 1) * {SLOTS}"
        " WHERE b.taker = ? AND b.id <= (SELECT unpacked_to FROM takers WHERE id = b.taker)"
        " AND r.set_aside = 0 AND EXISTS (SELECT 1 FROM users u"
        " WHERE u.taker = r.taker AND u.user_key = r.user_key)) RETURNING user_key, kind",
        (taker,),
    ).fetchall()
    for user in {user for user, kind in overtaken if kind != Kind.EVENT}:
        store.users.hasten(taker, user, 0)


def _correct_last_batch(store: Store) -> None:
    """Raise the counter of batch ids above every id in use, so that none is given twice."""
    (highest,) = store.db.execute(
        "SELECT max(id) FROM (SELECT max(id) AS id FROM inbox"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM records"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM dead_letters"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM insert_ids"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM created_at_claims"
        f" UNION ALL SELECT max(id) + {MOST_BATCHES} FROM relayed) AS highest"
    ).fetchone()
    missing = int(highest or 0) - store.accounts.value(SPOOL, LAST_BATCH)
    if missing > 0:
        store.accounts.add(SPOOL, LAST_BATCH, missing)


def _correct_unpacked_to(store: Store, taker: int, said: int) -> None:
    """Set the last unpacked batch of a taker by the records that point into batches."""
    unpacked = 0
    first_packed = store.inbox.next_id(taker, unpacked)
    while first_packed is not None and store.records.any_of(first_packed):
        unpacked = first_packed
        first_packed = store.inbox.next_id(taker, unpacked)
    last_batch = store.accounts.last_batch()
    if said < unpacked or said > last_batch or (first_packed is not None and said >= first_packed):
        store.takers.set_unpacked_to(taker, unpacked if first_packed else last_batch)


def _correct_bytes(store: Store) -> None:
    """Set the counters of waiting bytes by the rows."""
    total = 0
    for taker in store.takers.all():
        there = store.inbox.bytes_of(taker.id) + store.relayed.bytes_of(taker.id)
        store.accounts.add(taker.id, INBOX, there - store.accounts.value(taker.id, INBOX))
        total += store.accounts.value(taker.id, INBOX)
        total += store.accounts.value(taker.id, TAKEN_ALONG)
    store.accounts.add(SPOOL, WAITING, total - store.accounts.value(SPOOL, WAITING))
