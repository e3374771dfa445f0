"""The ends of one taker's records and the waits of their users, in the caller's transaction.

Rules
=====
1. A record ends once: delivered, dropped or dead. Counter and row change in the same commit.
2. Dead letters keep the record's id, and whether its contact update is done.
3. A user waits with all its records: they are set aside, and its row in ``users`` says until when.
4. A wait without blame (deferred, an endpoint's outage) can be ended early. A back-off ends at its
   time; that of an unknown user also at an update or at a new event.
5. A record of a user that does not wait may be under way: it is neither given up nor expired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.spool.delivery_times import times_of
from amplitude_intercom.engine.spool.known_contacts import Stranger
from amplitude_intercom.engine.spool.record_ends import RecordEnds
from amplitude_intercom.engine.spool.tables import Tables

MOST_EXPIRED: Final = 500
"""Records of one user that one transaction buries, at most."""


class Settling:
    """The records of one taker, as they end or wait (``contract.TakerRecords``)."""

    def __init__(self, tables: Tables, ends: RecordEnds) -> None:
        self.taker = ends.taker
        self._takers = tables.takers
        self._records = tables.records
        self._users = tables.users
        self._accounts = tables.accounts
        self._lines = tables.lines
        self._ends = ends

    # --- ends -----------------------------------------------------------------------------

    def deliver(self, records: Sequence[Record], now_ms: int) -> None:
        """Settle records as delivered."""
        # Counted by what was there: after a cancel the same delivery may be settled twice. Which
        # ones were there is not known then, only how many.
        delivered = self._ends.delete([record.id for record in records])
        self._accounts.add(self.taker, "delivered", delivered)
        times = times_of(records[len(records) - delivered :], now_ms)
        self._accounts.add_to_minute(self.taker, times)
        self._takers.note_delivery(self.taker, now_ms)

    def drop(self, ids: Sequence[int], reason: str) -> None:
        """Settle records as dropped by a rule."""
        self._accounts.add(self.taker, f"dropped:{reason}", self._ends.delete(ids))

    def bury(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Settle a record as a dead letter (rule 2)."""
        claim_id = record.claim_id or record.id
        # Read before the record is deleted: a replay must not repeat an update that is done.
        is_updated = claim_id in self._records.updated(self.taker, [claim_id])
        if self._ends.delete([record.id]):
            charged = msgspec.structs.replace(
                record, attempts=record.attempts + 1, is_updated=is_updated
            )
            self._ends.keep(charged, failure, now_ms)

    def updated(self, claim_ids: Sequence[int]) -> set[int]:
        """Return those of some records whose contact update is done."""
        return self._records.updated(self.taker, claim_ids)

    def note_updated(self, claim_ids: Sequence[int]) -> None:
        """Note that the contact updates of some records are done."""
        self._records.note_updated(self.taker, claim_ids)

    # --- waiting --------------------------------------------------------------------------

    def park(
        self,
        record: Record,
        others: Iterable[int],
        failure: Failure,
        wake_at_ms: int,
        now_ms: int,
    ) -> None:
        """Let a user wait until an instant, after its own failure with its first record.

        ``others``: the ids of its other loaded records.
        """
        # With all its loaded records: one that stayed could overtake the first.
        self._records.set_aside([record.id, *others])
        self._lines.parked(self._ends.name, record, failure, wake_at_ms)
        self._users.park(self.taker, record.user_key, wake_at_ms, failure.reason, now_ms)

    def defer_after_failure(
        self, user: str, ids: Iterable[int], until_ms: int, now_ms: int
    ) -> None:
        """Let a user's records wait until an instant, after a failure that may not be its own.

        The wait can be ended early (rule 4). ``ids``: of all its loaded records.
        """
        # No line of its own: the endpoint's state has one.
        self._records.set_aside(ids)
        self._users.defer_after_failure(self.taker, user, until_ms, now_ms)

    def attempts(self, id_: int) -> int:
        """Return the failed attempts that a record was charged with."""
        return self._records.attempts(id_)

    def charge(self, id_: int, now_ms: int) -> int:
        """Charge an attempt to a waiting record; return its attempts so far."""
        return self._records.charge(id_, now_ms)

    def give_up(self, id_: int, failure: Failure, now_ms: int) -> None:
        """Bury a record after its last attempt; its user goes on with the next one.

        A record of a user that does not wait stays (rule 5).
        """
        for record in self._ends.intact(self._records.get(self.taker, id_)):
            if self._users.waits(self.taker, record.user_key) and self._ends.delete([id_]):
                self._ends.keep(record, failure, now_ms)
                # Its user waited for this record; the next one has not failed.
                self._users.wake(self.taker, record.user_key, now_ms)

    def defer(self, user: str, ids: Iterable[int], until_ms: int, waits_for: str = "") -> None:
        """Let a user's records wait until an instant, or for an endpoint, without a failure."""
        self._records.set_aside(ids)
        self._users.defer(self.taker, user, until_ms, waits_for)

    def unknown(self, user: str) -> Stranger:
        """Return the attempts that have found a user unknown to Intercom."""
        return self._users.unknown(self.taker, user)

    def note_unknown(self, user: str, unknown: Stranger) -> None:
        """Keep the attempts that have found a waiting user unknown to Intercom."""
        self._users.note_unknown(self.taker, user, unknown)

    def wake_for_update(self, user: str, now_ms: int) -> None:
        """Let an unknown user be due, if a waiting record makes it known."""
        self._users.wake_for_update(self.taker, user, now_ms)

    def expire(
        self, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> tuple[int, bool]:
        """Bury some of a user's events that have waited for the whole retry window.

        Nothing is buried if the user is not parked for that reason (rule 5). Returns the number of
        buried events, and whether more of them are left.
        """
        if not self._users.waits(self.taker, user, failure.reason):
            return 0, False
        # `:d` lets nothing but a number into the statement.
        also = f"AND r.kind = {Kind.EVENT:d} AND r.accepted_at_ms <= {accepted_until_ms:d}"
        found = self._records.aside(self.taker, user, MOST_EXPIRED, 1 << 24, also)
        # Refusals of an unknown user charge no record; the letter shows them all the same. ``bury``
        # adds the last one.
        tried = max(0, self._users.unknown(self.taker, user).refusals - 1)
        for record in self._ends.intact(found):
            attempts = max(record.attempts, tried)
            self.bury(msgspec.structs.replace(record, attempts=attempts), failure, now_ms)
        return len(found), bool(self._records.aside(self.taker, user, 1, 1, also))

    def wake_deferred(self, user: str, at_ms: int) -> None:
        """Let a user that waits without blame be due at an instant, if that is earlier (rule 4)."""
        self._users.wake_deferred(self.taker, user, at_ms)

    def forgive(self, user: str) -> None:
        """Forget a user's failures: a call of it has succeeded."""
        self._users.forgive(self.taker, user)

    def failures(self, user: str) -> int:
        """Return how often in a row calls of a user have failed."""
        return self._users.failures(self.taker, user)
