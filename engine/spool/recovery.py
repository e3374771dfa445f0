"""What is set right when a spool is opened: the last process may have ended anywhere.

What can be told from the rows is told from them, and not believed of a number beside them.
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
"""Ids behind its own that a request of 2,000 events has, for its dead letters."""


def recover(store: Store) -> None:
    """Set right what the last process left in the middle: each user goes on in order."""
    _correct_last_batch(store)
    for taker in store.takers.all():
        _correct_unpacked_to(store, taker.id, taker.unpacked_to)
        recover_taker(store, taker.id)
    _correct_bytes(store)


def recover_taker(store: Store, taker: int) -> None:
    """Set right what a taker's last delivery left in the middle.

    Users that were being worked off start over. What was loaded of a user that is aside stands
    in the queue before all that is set aside of it, and must not be overtaken by it. What waits
    behind nobody, because something was damaged, is due.
    """
    store.forget_queue(taker)
    store.db.execute(
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms IS NULL", (taker,)
    )
    store.db.execute(  # by a clock that was ahead of its time
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms > ?",
        (taker, store.latest_wake_ms()),
    )
    store.queue(taker).find_strays()
    if not store.users.any(taker):
        return
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
    """Never give an id a second time, whatever the counter says."""
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
    """Say up to where batches are unpacked by what is there: those that records point into."""
    unpacked = 0
    first_packed = store.inbox.next_id(taker, unpacked)
    while first_packed is not None and store.records.any_of(first_packed):
        unpacked = first_packed
        first_packed = store.inbox.next_id(taker, unpacked)
    last_batch = store.accounts.last_batch()
    if said < unpacked or said > last_batch or (first_packed is not None and said >= first_packed):
        store.takers.set_unpacked_to(taker, unpacked if first_packed else last_batch)


def _correct_bytes(store: Store) -> None:
    """Say how many bytes wait by what is there."""
    total = 0
    for taker in store.takers.all():
        there = store.inbox.bytes_of(taker.id) + store.relayed.bytes_of(taker.id)
        store.accounts.add(taker.id, INBOX, there - store.accounts.value(taker.id, INBOX))
        total += store.accounts.value(taker.id, INBOX)
        total += store.accounts.value(taker.id, TAKEN_ALONG)
    store.accounts.add(SPOOL, WAITING, total - store.accounts.value(SPOOL, WAITING))
