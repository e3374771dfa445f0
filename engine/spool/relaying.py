"""How requests of a relay come into the spool, and how their events end: inside a transaction.

A relay that drops its oldest holds an equal share of ``spool.max_bytes`` and no more, whatever the
others hold. What it has dropped is counted; a request that is under way then is settled already,
and nothing more becomes of it here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DropReason
from amplitude_intercom.engine.spool.accounts import INBOX, Accounts
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.relay_requests import LostEvent, Relayed, WaitingRequest
from amplitude_intercom.engine.spool.relayed import RelayedRequests
from amplitude_intercom.engine.spool.rows import dead_letter
from amplitude_intercom.engine.spool.settled_lines import SettledLines
from amplitude_intercom.engine.spool.takers import RELAY, Takers


class Relaying:
    """See the module's docstring."""

    def __init__(
        self,
        requests: RelayedRequests,
        letters: DeadLetters,
        takers: Takers,
        accounts: Accounts,
        lines: SettledLines,
    ) -> None:
        self._requests = requests
        self._letters = letters
        self._takers = takers
        self._accounts = accounts
        self._lines = lines

    def take_in(self, taker: int, new: Relayed, share_bytes: int, now_ms: int) -> None:
        """Keep a request behind all that waits of a relay; ``share_bytes``: what it may hold."""
        # Before it may be dropped, so that dropping is the same for new and for old ones.
        self._accounts.add(taker, "pending", new.count)
        if new.drops_oldest:
            # It would not fit with all others gone, so no other goes for it.
            if new.size_bytes > share_bytes:
                self._drop(taker, new.count)
                return
            self._make_free(taker, new.size_bytes, share_bytes)
        # The id of an event is made of its request's and its index: a large request needs several.
        id_ = self._accounts.take_batches(-(-new.count // SLOTS))
        self._accounts.resize(taker, INBOX, new.size_bytes)
        self._requests.append(taker, [(id_, new)], now_ms)

    def _make_free(self, taker: int, size_bytes: int, share_bytes: int) -> None:
        """Drop a relay's oldest requests until one more fits."""
        while self._accounts.value(taker, INBOX) + size_bytes > share_bytes:
            first = self._requests.first(taker)
            # A counter that has drifted must not make this loop endless.
            if first is None:
                return
            self._drop(taker, self._delete(taker, first))

    def _drop(self, taker: int, events: int) -> None:
        self._accounts.add(taker, "pending", -events)
        self._accounts.add(taker, f"dropped:{DropReason.RELAY_OVERFLOW}", events)

    def _delete(self, taker: int, id_: int) -> int:
        """Delete a request; return how many of its events were still to be sent."""
        gone = self._requests.delete(id_)
        if gone is None:
            return 0
        self._accounts.resize(taker, INBOX, -gone.size_bytes)
        return gone.waiting

    def settle(
        self,
        taker: int,
        id_: int,
        delivered: Sequence[int],
        lost: Sequence[LostEvent],
        now_ms: int,
    ) -> int:
        """Settle events of a request, by their index: Amplitude has them, or never will.

        Returns how many are left.
        """
        found = self._requests.get(id_)
        if found is None:  # it was dropped meanwhile
            return 0
        # Only what is left: an event that was settled before must not count again.
        remaining = set(found.remaining)
        taken = remaining.intersection(delivered)
        buried = [event for event in lost if event.index in remaining]
        left = sorted(remaining.difference(taken, (event.index for event in buried)))
        if left:
            self._requests.keep(found, left)
        else:
            self._delete(taker, id_)
        self._accounts.add(taker, "pending", len(left) - len(remaining))
        self._accounts.add(taker, "delivered", len(taken))
        if taken:
            self._takers.note_delivery(taker, now_ms)
        for event in buried:
            self._bury(taker, found, event, now_ms)
        return len(left)

    def _bury(self, taker: int, request: WaitingRequest, event: LostEvent, now_ms: int) -> None:
        id_ = request.id * SLOTS + event.index
        if self._letters.has(id_):  # damage has given its id to a second one
            id_ = self._accounts.take_batches(1) * SLOTS
        record = Record(id_, Kind.EVENT, event.user, request.accepted_at_ms, event.raw)
        letter = msgspec.structs.replace(
            dead_letter(record, event.failure, now_ms),
            attempts=1,
            event_type=event.event_type,
            origin=event.origin,
        )
        self._letters.insert(taker, letter)
        self._accounts.count_dead(taker, event.failure.reason, 1)
        relay = self._takers.name_of(taker).removeprefix(RELAY)
        self._lines.dead_of_relay(relay, letter, event.failure)

    def drop_some(self, taker: int, limit: int) -> int:
        """Settle up to ``limit`` requests as discarded; return how many events they had."""
        dropped = 0
        for _ in range(limit):
            first = self._requests.first(taker)
            if first is None:
                break
            dropped += self._delete(taker, first)
        self._accounts.add(taker, "pending", -dropped)
        self._accounts.add(taker, f"dropped:{DropReason.DISCARDED}", dropped)
        return dropped
