"""Whose records are, worked out again: ``[sync.mapping]`` has changed while they waited.

First all users that wait are let go, then records get their keys in the order of their ids, those
that are packed last. What is unpacked waits aside then, and its users are due: a record that has
taken its bytes along is read by its user alone. Nothing may be delivered meanwhile. A record whose
event names nobody now gets an empty key, and the mapper makes a dead letter of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from amplitude_intercom.engine.spool.accounts import INBOX
from amplitude_intercom.engine.spool.batches import SLOTS, Entry
from amplitude_intercom.engine.spool.inbox import Batch
from amplitude_intercom.engine.spool.store import Store

SLICE: Final = 500

UserOf = Callable[[bytes], str]
"""Returns the key of an event's user; empty where it has none."""


class Rekeyed(msgspec.Struct, frozen=True):
    """What a slice has done: the last id that it looked at, and how many records that was."""

    last_id: int
    count: int
    is_last: bool = False


def rekey(store: Store, taker: int, after_id: int, upper_id: int, user_of: UserOf) -> Rekeyed:
    """Do a slice of the records behind an id, up to another one: those behind it came later."""
    if not after_id and store.users.free_some(taker, SLICE):
        return Rekeyed(after_id, 0)
    last_id, count = store.queue(taker).rekey(after_id, SLICE, user_of)
    if count:
        return Rekeyed(last_id, count)
    unpacked_to = store.takers.unpacked_to(taker)
    for batch in store.inbox.next(taker, max(unpacked_to, after_id // SLOTS), 1, 1):
        if batch.id * SLOTS <= upper_id:
            _rekey_batch(store, batch, user_of)
            return Rekeyed(batch.id * SLOTS + SLOTS - 1, batch.count)
    store.forget_queue(taker)  # what it has read has other keys now
    return Rekeyed(after_id, 0, is_last=True)


def _rekey_batch(store: Store, batch: Batch, user_of: UserOf) -> None:
    """Write the index of a packed batch anew; one that is damaged is left to unpacking."""
    if batch.entries is None:
        return
    entries: list[Entry] = []
    start = 0
    for entry in batch.entries:
        raw = batch.events[start : start + entry.length]
        entries.append(msgspec.structs.replace(entry, user_key=user_of(raw)))
        start += entry.length + 1
    store.accounts.resize(batch.taker, INBOX, store.inbox.reindex(batch, entries))
