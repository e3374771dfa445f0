"""Events that were accepted before and start again, behind everything that waits.

They are batches of their own, without insert keys: an event that was accepted once is no duplicate
of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from amplitude_intercom.engine.spool.batches import Kept, entry_of, packs
from amplitude_intercom.engine.spool.claims import renew
from amplitude_intercom.engine.spool.letter_ends import take_out
from amplitude_intercom.engine.spool.letters import DeadLetter
from amplitude_intercom.engine.spool.relay_requests import Relayed
from amplitude_intercom.engine.spool.relaying import Relaying
from amplitude_intercom.engine.spool.store_intake import count_pending, put_in
from amplitude_intercom.engine.spool.tables import Tables


def replay(
    tables: Tables, taker: int, letters: Sequence[tuple[DeadLetter, Kept]], now_ms: int
) -> int:
    """Queue dead letters again; return how many were still there."""
    gone = take_out(tables, taker, [letter.id for letter, _ in letters])
    # A letter that was discarded meanwhile must not come back.
    kept = [kept for letter, kept in letters if letter.id in gone]
    accept_again(tables, taker, kept, now_ms)
    return len(kept)


def accept_again(tables: Tables, taker: int, kept: Sequence[Kept], now_ms: int) -> None:
    """Put events that were accepted before behind everything that waits of a taker."""
    new = packs([entry_of(event) for event in kept], [event.raw for event in kept])
    put_in(tables, count_pending(tables, taker, new), now_ms)
    # A claim is forgotten a while after its event was accepted: the event is sent anew.
    renew(tables.db, [event.claim_id for event in kept], now_ms)


def relay_again(
    tables: Tables,
    relaying: Relaying,
    taker: int,
    letters: Sequence[tuple[DeadLetter, Relayed]],
    share_bytes: int,
    now_ms: int,
) -> int:
    """Queue dead letters of a relay again; return how many were still there.

    ``share_bytes``: the relay's share of the spool.
    """
    gone = take_out(tables, taker, [letter.id for letter, _ in letters])
    for letter, request in letters:
        if letter.id in gone:
            # As a new request: a relay that drops its oldest may drop others for it, or itself.
            relaying.take_in(taker, request, share_bytes, now_ms)
    return len(gone)
