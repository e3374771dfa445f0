"""Events that were accepted before and start again, behind everything that waits.

They are batches of their own, without insert keys: an event that was accepted once is no duplicate
of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from amplitude_intercom.engine.spool.batches import Kept, entry_of, packs
from amplitude_intercom.engine.spool.claims import renew
from amplitude_intercom.engine.spool.intake import count_pending, put_in
from amplitude_intercom.engine.spool.letter_ends import take_out
from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.engine.spool.requests import Relayed
from amplitude_intercom.engine.spool.store import Store


def replay(
    store: Store, taker: int, letters: Sequence[tuple[DeadLetter, Kept]], now_ms: int
) -> int:
    """Queue dead letters again; return how many were still there."""
    gone = take_out(store, taker, [letter.id for letter, _ in letters])
    kept = [kept for letter, kept in letters if letter.id in gone]
    accept_again(store, taker, kept, now_ms)
    return len(kept)


def accept_again(store: Store, taker: int, kept: Sequence[Kept], now_ms: int) -> None:
    """Put events that were accepted before behind everything that waits of a taker."""
    new = packs([entry_of(event) for event in kept], [event.raw for event in kept])
    put_in(store, count_pending(store, taker, new), now_ms)
    # A claim is forgotten a while after its event was accepted: the event is sent anew.
    renew(store.db, [event.claim_id for event in kept], now_ms)


def relay_again(
    store: Store, taker: int, letters: Sequence[tuple[DeadLetter, Relayed]], now_ms: int
) -> int:
    """Queue dead letters of a relay again; return how many were still there."""
    gone = take_out(store, taker, [letter.id for letter, _ in letters])
    share_bytes = store.intake.share_bytes()
    for letter, request in letters:
        if letter.id in gone:
            store.relaying.take_in(taker, request, share_bytes, now_ms)
    return len(gone)
