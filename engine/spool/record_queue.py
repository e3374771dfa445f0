"""The queue of one taker: the choice of the records that are loaded next.

Rules
=====
1. Records of a user leave in their order. A user with a row in ``users`` waits, or is worked off
   bit by bit: its unloaded records are set aside, and new ones join them.
2. A load takes, in this order: users that are worked off, users that are due, the queue. With
   ``queue_first`` it begins with the queue, so that a crowd of waiting users keeps no new one out.
3. A due user comes with one record, its retry; one that only waited for an endpoint comes whole.
4. Of an unknown user an update goes before its first event: the update is what makes it known.
5. A damaged record becomes a dead letter as it is read, and costs no other one.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.contract import Loaded, Wanted, Woken
from amplitude_intercom.engine.spool.load_bounds import ArrivingRecords, Bounds, UserBounds
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.tables import Tables
from amplitude_intercom.engine.spool.wakeups import Due, Wakeups

MOST_LET_GO: Final = 256
"""Parked users that one transaction frees of an endpoint that is well again."""


def _is_update(record: Record) -> bool:
    return record.kind is Kind.IDENTIFY


class Queue:
    """The queue of one taker, in the caller's transaction. The module's docstring has the rules."""

    def __init__(self, tables: Tables, ends: RecordEnds, arrivals: ArrivingRecords) -> None:
        self.taker = ends.taker
        self._tables = tables
        self._wakeups = Wakeups(tables.db)
        self._ends = ends
        self._arrivals = arrivals

    # --- reading for delivery -------------------------------------------------------------

    def load(self, wanted: Wanted) -> Loaded:
        """Return the records to deliver next (rule 2).

        A user in ``full``, or one with more than ``per_user`` records in this call, is worked off
        from now on: its later records are set aside.
        """
        # First of all: every comparison below is by the clock that went back.
        if wanted.set_back_ms:
            self._wakeups.wake_earlier(self.taker, wanted.set_back_ms)
        bounds = Bounds(wanted.limit, wanted.limit_bytes)
        per_user = UserBounds(wanted.full, wanted.per_user)
        queued = self._read_queue(wanted, bounds, per_user) if wanted.queue_first else None
        refilled = self._refill(wanted, bounds)
        woken = self._wake(wanted, bounds)
        records, last_id, more = queued or self._read_queue(wanted, bounds, per_user)
        wakeups = self._wakeups
        return Loaded(
            records,
            woken,
            refilled,
            last_id,
            per_user.worked_off,
            wakeups.next_wake_ms(self.taker, parked=False),
            wakeups.next_wake_ms(self.taker, parked=True),
            wakeups.awaited(self.taker),
            more,
        )

    def _refill(self, wanted: Wanted, bounds: Bounds) -> dict[str, list[Record]]:
        """Return the next records of users that are worked off; an empty list frees the user."""
        found: dict[str, list[Record]] = {}
        for user in wanted.empty:
            if bounds.are_reached:
                break
            found[user] = self._refill_one(user, wanted, bounds)
            bounds.take(found[user])
            if not found[user]:
                self._tables.users.free(self.taker, user)
        return found

    def _refill_one(self, user: str, wanted: Wanted, bounds: Bounds) -> list[Record]:
        # Updates of one user are merged into one call, so many of them are worth loading at once;
        # events are a call each, and many of one user would fill the memory of all others.
        limit = min(wanted.per_user, bounds.limit)
        found = self._aside(user, limit, bounds.limit_bytes)
        if len(found) < limit or limit >= wanted.updates or not all(map(_is_update, found)):
            return found
        more = self._aside(user, wanted.updates, bounds.limit_bytes)
        return list(takewhile(_is_update, more))

    def _wake(self, wanted: Wanted, bounds: Bounds) -> list[Woken]:
        """Return records of due users, and of users with an endpoint that is well again."""
        woken: list[Woken] = []
        parked_bytes = wanted.parked_bytes
        for due in self._due(wanted, bounds.limit):
            if bounds.are_reached:
                break  # they stay due, and wake once there is space
            # Not the end: those behind it may be deferred, which this bound does not concern.
            if due.reason and not due.waited_for and parked_bytes <= 0:
                continue
            records = self._wake_one(due, wanted, bounds)
            bounds.take(records)
            if due.reason:
                parked_bytes -= sum(len(record.raw) for record in records)
            if records:
                failing = due.failures > 0 and due.reason != DeadReason.USER_NOT_FOUND
                tries = due.waited_for if due.waited_for in wanted.open_circuits else ""
                woken.append(Woken(due.user, records, bool(due.reason), failing, tries))
        return woken

    def _due(self, wanted: Wanted, limit: int) -> list[Due]:
        wakeups = self._wakeups
        awaited = wakeups.awaited(self.taker)
        for endpoint in awaited:
            if endpoint not in wanted.open_circuits:
                wakeups.let_parked_go(self.taker, endpoint, MOST_LET_GO)
        found = wakeups.due(self.taker, wanted.now_ms, limit, parked=False)
        # Parked users have a bound of their own: most of them fail again, and would fill memory.
        most_parked = min(limit, wanted.parked)
        found += wakeups.due(self.taker, wanted.now_ms, most_parked, parked=True)
        for endpoint in awaited:
            if endpoint not in wanted.open_circuits:
                waiting = wakeups.waiting_for(self.taker, endpoint, limit)
                # Parked ones keep their own back-off, which `let_parked_go` has left them with.
                found += [due for due in waiting if not due.reason]
            elif endpoint in wanted.probes:
                # One user is enough for a probe; others would meet the same outage.
                found += wakeups.waiting_for(self.taker, endpoint, 1)
        return found

    def _wake_one(self, due: Due, wanted: Wanted, bounds: Bounds) -> list[Record]:
        """Wake a user with its first record, or with all that may be loaded (rules 3 and 4)."""
        # Before the records are read: a row that stayed due would be woken a second time.
        self._tables.users.work_off(self.taker, due.user)
        if due.waited_for and not due.reason and due.waited_for not in wanted.open_circuits:
            limit = min(wanted.per_user, bounds.limit)
            found = self._aside(due.user, limit, bounds.limit_bytes)
        else:
            found = self._aside(due.user, 1, 1)
        if found and due.reason == DeadReason.USER_NOT_FOUND:
            found = self._make_known(due.user, found)
        if not found:
            self._tables.users.free(self.taker, due.user)
        return found

    def _make_known(self, user: str, head: list[Record]) -> list[Record]:
        """Return the record that makes an unknown user known.

        That is a waiting identify, or the first event. If an event with an update waits, the first
        event gets the right to create the user.
        """
        makers = self._aside(user, 1, 1, f"AND r.kind <> {Kind.EVENT:d}")
        if not makers:
            return head
        if makers[0].kind is Kind.IDENTIFY:
            return makers
        return [msgspec.structs.replace(record, may_create=True) for record in head]

    def _aside(self, user: str, limit: int, limit_bytes: int, also: str = "") -> list[Record]:
        """Return the next records of a waiting user; none only if none is left."""
        while True:
            found = self._tables.records.aside(self.taker, user, limit, limit_bytes, also)
            # All that were found may be damaged, and are gone: behind them there may be more.
            intact = self._ends.intact(found)
            if intact or not found:
                return intact

    def _read_queue(
        self, wanted: Wanted, bounds: Bounds, per_user: UserBounds
    ) -> tuple[list[Record], int, bool]:
        """Return the next records of the queue, the last id read, and whether more wait."""
        if not wanted.reads_queue or bounds.are_reached:
            return [], wanted.after_id, True
        found = self._arrivals.next(wanted.after_id, wanted.now_ms, bounds, per_user)
        bounds.take(found[0])
        return found

    # --- other work on all of them --------------------------------------------------------

    def take_out(self, limit: int) -> list[Record]:
        """Delete and return the first records, those of the inbox last; the caller counts them.

        None only if none is left.
        """
        while True:
            found = self._tables.records.first(self.taker, limit)
            if records := self._ends.intact(found):
                self._ends.delete([record.id for record in records])
                return records
            if found:
                continue  # all of them were damaged: they are dead letters now
            unpacked_to = self._tables.takers.unpacked_to(self.taker)
            if self._tables.inbox.next_id(self.taker, unpacked_to) is None:
                self._tables.users.free_all(self.taker)
                return []
            self._arrivals.unpack(unpacked_to, Bounds(limit, 1 << 24), UserBounds((), limit), 0)
