"""Recovery of a spool at its opening, after a process that ended at any point.

Numbers that can be computed from rows are computed, and not taken from a counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.spool.accounts import (
    INBOX,
    LAST_BATCH,
    SPOOL,
    TAKEN_ALONG,
    WAITING,
)
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.tables import Tables

MOST_STRAYS: Final = 500
"""Records set aside without a user's row that are read at once."""

MOST_BATCHES: Final = 3
"""Ids after its own that a request of 2,000 events reserves for its dead letters."""


def recover(tables: Tables, ends_of: Callable[[int], RecordEnds], latest_wake_ms: int) -> None:
    """Recover all takers, so that each user goes on in order."""
    _correct_last_batch(tables)
    for taker in tables.takers.all():
        _correct_unpacked_to(tables, taker.id, taker.unpacked_to)
        recover_taker(tables, ends_of(taker.id), latest_wake_ms)
    _correct_bytes(tables)


def recover_taker(tables: Tables, ends: RecordEnds, latest_wake_ms: int) -> None:
    """Recover a taker's deliveries. Users that were being worked off start over.

    ``latest_wake_ms``: the last instant until which a user may wait.
    """
    taker = ends.taker
    tables.db.execute(
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms IS NULL", (taker,)
    )
    # A clock that was ahead of its time has set waits that would hardly end.
    tables.db.execute(
        "UPDATE users SET wake_at_ms = 0 WHERE taker = ? AND wake_at_ms > ?",
        (taker, latest_wake_ms),
    )
    # After damage a record may be set aside without a user's row: nothing else would wake it.
    _wake_strays(tables, ends)
    if not tables.users.any(taker):
        return
    # Loaded records of a user with a row come before the user's records set aside, and would be
    # overtaken by them.
    overtaken = tables.db.execute(
        "UPDATE records SET set_aside = 1 WHERE id IN (SELECT r.id FROM inbox b JOIN records r"
        f" ON r.id >= b.id * {SLOTS} AND r.id < (b.id + 1) * {SLOTS}"
        " WHERE b.taker = ? AND b.id <= (SELECT unpacked_to FROM takers WHERE id = b.taker)"
        " AND r.set_aside = 0 AND EXISTS (SELECT 1 FROM users u"
        " WHERE u.taker = r.taker AND u.user_key = r.user_key)) RETURNING user_key, kind",
        (taker,),
    ).fetchall()
    for user in {user for user, kind in overtaken if kind != Kind.EVENT}:
        tables.users.wake_for_update(taker, user, 0)


def _wake_strays(tables: Tables, ends: RecordEnds) -> None:
    """Let users be due that have records aside but do not wait: rows of either were damaged."""
    while found := tables.records.strays(ends.taker, MOST_STRAYS):
        users = [record.user_key for record in ends.intact(found)]
        for user in dict.fromkeys(users):
            tables.users.defer(ends.taker, user, 0)


def _correct_last_batch(tables: Tables) -> None:
    """Raise the counter of batch ids above every id in use, so that none is given twice."""
    (highest,) = tables.db.execute(
        "SELECT max(id) FROM (SELECT max(id) AS id FROM inbox"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM records"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM dead_letters"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM insert_ids"
        f" UNION ALL SELECT max(id) / {SLOTS} FROM created_at_claims"
        f" UNION ALL SELECT max(id) + {MOST_BATCHES} FROM relayed) AS highest"
    ).fetchone()
    missing = int(highest or 0) - tables.accounts.value(SPOOL, LAST_BATCH)
    # Never lowered: the ids of deleted rows were given too, and are in logs.
    if missing > 0:
        tables.accounts.add(SPOOL, LAST_BATCH, missing)


def _correct_unpacked_to(tables: Tables, taker: int, said: int) -> None:
    """Set the last unpacked batch of a taker by the records that point into batches."""
    # Behind the truth, a batch would be unpacked twice; ahead of it, one would stay packed for
    # ever.
    unpacked = 0
    first_packed = tables.inbox.next_id(taker, unpacked)
    while first_packed is not None and tables.records.any_of(first_packed):
        unpacked = first_packed
        first_packed = tables.inbox.next_id(taker, unpacked)
    last_batch = tables.accounts.last_batch()
    if said < unpacked or said > last_batch or (first_packed is not None and said >= first_packed):
        tables.takers.set_unpacked_to(taker, unpacked if first_packed else last_batch)


def _correct_bytes(tables: Tables) -> None:
    """Set the counters of waiting bytes by the rows."""
    # A sum that has drifted would refuse takers for bytes that are not there.
    total = 0
    for taker in tables.takers.all():
        there = tables.inbox.bytes_of(taker.id) + tables.relayed.bytes_of(taker.id)
        tables.accounts.add(taker.id, INBOX, there - tables.accounts.value(taker.id, INBOX))
        total += tables.accounts.value(taker.id, INBOX)
        total += tables.accounts.value(taker.id, TAKEN_ALONG)
    tables.accounts.add(SPOOL, WAITING, total - tables.accounts.value(SPOOL, WAITING))
