"""The records and letters of a sync that left the settings: moved to another sync, or dropped.

Both run in slices of one transaction each, so an interrupted move goes on at the next request.
Moved records go behind the other sync's waiting ones, in order, and keep their claims; insert ids
move too. Properties of contacts do not: the other sync works them out anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.spool import letter_ends
from amplitude_intercom.engine.spool.accounts import DEAD
from amplitude_intercom.engine.spool.batches import Kept
from amplitude_intercom.engine.spool.replaying import accept_again
from amplitude_intercom.engine.spool.store import Store

SLICE = 500
"""Rows of one transaction."""


def move(store: Store, old: int, new: int, user_of: Callable[[bytes], str], now_ms: int) -> int:
    """Move up to ``SLICE`` records or dead letters; return their number.

    ``user_of`` returns an event's user key by the other sync's mapping.
    """
    records = store.queue(old).take_out(SLICE)
    if records:
        accept_again(store, new, [_kept(record, user_of) for record in records], now_ms)
        store.accounts.add(old, "received", -len(records))
        store.accounts.add(new, "received", len(records))
        return len(records)
    return _move_letters(store, old, new)


def _kept(record: Record, user_of: Callable[[bytes], str]) -> Kept:
    user = user_of(record.raw)
    first = (record.claim_id, record.accepted_at_ms, record.is_updated)
    return Kept(record.kind, user, record.raw, None, *first)


def _move_letters(store: Store, old: int, new: int) -> int:
    letters = store.letters.move(old, new, SLICE)
    for reason, count in letters.by_reason.items():
        store.accounts.count_dead(old, reason, -count)
        store.accounts.count_dead(new, reason, count)
    moved = sum(letters.by_reason.values())
    store.accounts.add(old, "received", -moved)
    store.accounts.add(new, "received", moved)
    store.accounts.add(old, DEAD, -letters.size_bytes)
    store.accounts.add(new, DEAD, letters.size_bytes)
    return moved


def drop(store: Store, old: int) -> int:
    """Settle up to ``SLICE`` records or dead letters as discarded; return their number."""
    records: Sequence[Record] = store.queue(old).take_out(SLICE)
    if records:
        store.accounts.add(old, f"dropped:{DropReason.DISCARDED}", len(records))
        return len(records)
    if requests := store.relaying.drop_some(old, SLICE):
        return requests
    return letter_ends.forget(store, old, store.letters.ids(old, SLICE), DropReason.DISCARDED)
