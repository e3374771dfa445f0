"""New user keys for waiting records, after a change of ``[sync.mapping]``.

First the rows of waiting users are deleted. Then records get their keys in order of id, packed ones
last. Unpacked records are set aside then, and their users are due, because a record that has taken
its bytes along is read by its user alone. The sync must deliver nothing meanwhile. An event without
a user by the new mapping gets an empty key, and the mapper makes a dead letter of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from amplitude_intercom.engine.spool.accounts import INBOX
from amplitude_intercom.engine.spool.batches import SLOTS, Entry
from amplitude_intercom.engine.spool.inbox import PackedBatch
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.tables import Tables

SLICE: Final = 500
"""Records of one transaction."""

UserOf = Callable[[bytes], str]
"""Returns the user key of an event; empty without one."""


class Rekeyed(msgspec.Struct, frozen=True):
    """The result of a slice: the last id that it read, and the number of records."""

    last_id: int
    count: int
    is_last: bool = False


def rekey(
    tables: Tables, ends: RecordEnds, after_id: int, upper_id: int, user_of: UserOf
) -> Rekeyed:
    """Re-key a slice of a taker's records after ``after_id``; return how far it came.

    Records after ``upper_id`` came later: they have the new keys.
    """
    taker = ends.taker
    # The rows of the old keys first: they would wake users without records.
    if not after_id and tables.users.free_some(taker, SLICE):
        return Rekeyed(after_id, 0)
    last_id, count = _rekey_records(tables, ends, after_id, user_of)
    if count:
        return Rekeyed(last_id, count)
    unpacked_to = tables.takers.unpacked_to(taker)
    for batch in tables.inbox.next(taker, max(unpacked_to, after_id // SLOTS), 1, 1):
        # Later batches were keyed by the new mapping when they were taken in.
        if batch.id * SLOTS <= upper_id:
            _rekey_batch(tables, batch, user_of)
            return Rekeyed(batch.id * SLOTS + SLOTS - 1, batch.count)
    return Rekeyed(after_id, 0, is_last=True)


def _rekey_records(
    tables: Tables, ends: RecordEnds, after_id: int, user_of: UserOf
) -> tuple[int, int]:
    """Give records behind an id to the users of their events, who are due then.

    Returns the last id that was looked at, and the number of records.
    """
    found = tables.records.first(ends.taker, SLICE, after_id)
    users: dict[str, None] = {}
    for record in ends.intact(found):
        users[user := user_of(record.raw)] = None
        tables.records.rekey(record, user)
    # Due at once: their wait was that of another user key.
    for user in users:
        tables.users.defer(ends.taker, user, 0)
    return (found[-1].id, len(found)) if found else (after_id, 0)


def _rekey_batch(tables: Tables, batch: PackedBatch, user_of: UserOf) -> None:
    """Rewrite the index of a packed batch; unpacking deals with a damaged one."""
    if batch.entries is None:
        return
    entries: list[Entry] = []
    start = 0
    for entry in batch.entries:
        raw = batch.events[start : start + entry.length]
        entries.append(msgspec.structs.replace(entry, user_key=user_of(raw)))
        # Events are separated by line ends.
        start += entry.length + 1
    # Keys differ in length, and with them the bytes that wait.
    tables.accounts.resize(batch.taker, INBOX, tables.inbox.reindex(batch, entries))
