"""How one taker's records end, and how their users wait: inside somebody's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.accounts import INBOX, TAKEN_ALONG, Accounts
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.contract import Stranger
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.inbox import Inbox
from amplitude_intercom.engine.spool.insert_ids import InsertIds
from amplitude_intercom.engine.spool.records import Damage, Records
from amplitude_intercom.engine.spool.rows import dead_letter
from amplitude_intercom.engine.spool.settled import SettledLines
from amplitude_intercom.engine.spool.takers import Takers
from amplitude_intercom.engine.spool.users import Users

DAMAGED: Final = "the checksum does not match: damaged on disk"

MOST_EXPIRED: Final = 500
"""Records of one user that one transaction buries."""


class Tables(msgspec.Struct, frozen=True):
    """The tables between which a taker's records move."""

    takers: Takers
    inbox: Inbox
    records: Records
    users: Users
    insert_ids: InsertIds
    letters: DeadLetters


class Settling:
    """One taker's records, as they end or wait."""

    def __init__(
        self, taker: int, name: str, tables: Tables, accounts: Accounts, lines: SettledLines
    ) -> None:
        self.taker = taker
        self._name = name
        self._takers = tables.takers
        self._inbox = tables.inbox
        self._records = tables.records
        self._users = tables.users
        self._letters = tables.letters
        self._accounts = accounts
        self._lines = lines
        self._emptied: set[int] = set()
        """Batches of which records were deleted in this transaction."""

    # --- ends -----------------------------------------------------------------------------

    def deliver(self, ids: Sequence[int], now_ms: int) -> None:
        """Settle records as delivered."""
        delivered = self.delete(ids)
        self._accounts.add(self.taker, "delivered", delivered)
        self._takers.note_delivery(self.taker, now_ms)

    def drop(self, ids: Sequence[int], reason: str) -> None:
        """Settle records as dropped by a rule."""
        self._accounts.add(self.taker, f"dropped:{reason}", self.delete(ids))

    def bury(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Settle a record as a dead letter, which keeps the record's id."""
        claim_id = record.claim_id or record.id
        is_updated = claim_id in self._records.updated(self.taker, [claim_id])
        if self.delete([record.id]):
            charged = msgspec.structs.replace(
                record, attempts=record.attempts + 1, is_updated=is_updated
            )
            self.keep(charged, failure, now_ms)

    def keep(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Keep a dead letter of what is no record any more."""
        letter = dead_letter(record, failure, now_ms)
        if self._letters.has(letter.id):  # damage has given its id to a second one
            letter = msgspec.structs.replace(letter, id=self._accounts.take_batches(1) * SLOTS)
        self._letters.insert(self.taker, letter)
        self._accounts.count_dead(self.taker, failure.reason, 1)
        self._lines.dead(self._name, record, failure)

    def bury_damage(self, damage: Damage) -> None:
        """Keep a dead letter of what was damaged, and is no record any more."""
        failure = Failure(DeadReason.CORRUPT, message=DAMAGED)
        record = Record(damage.id, Kind.EVENT, damage.user, damage.at_ms, damage.raw)
        self.keep(record, failure, damage.at_ms)

    def intact(self, found: Iterable[Record | Damage]) -> list[Record]:
        """Return the records whose checksum holds; the others become dead letters."""
        intact = []
        for read in found:
            if isinstance(read, Record):
                intact.append(read)
            else:
                self.delete([read.id])
                self.bury_damage(read)
        return intact

    def delete(self, ids: Sequence[int]) -> int:
        """Delete records, and at the transaction's end their batches where these were the last."""
        if self._accounts.value(self.taker, TAKEN_ALONG):
            self._accounts.resize(self.taker, TAKEN_ALONG, -self._records.own_bytes(ids))
        deleted = self._records.delete(ids)
        self._accounts.add(self.taker, "pending", -deleted)
        self._emptied.update(id_ // SLOTS for id_ in ids)
        return deleted

    def let_go_emptied(self) -> None:
        """Delete the batches of which records were deleted, where nothing points into them."""
        if self._emptied:
            self.let_go_batches(self._emptied)
            self._emptied.clear()

    def let_go_batches(self, batches: Iterable[int]) -> None:
        """Delete those of some batches into which no record points."""
        for taker, size_bytes in self._inbox.let_go(batches):
            self._accounts.resize(taker, INBOX, -size_bytes)

    def updated(self, claim_ids: Sequence[int]) -> set[int]:
        """Return those of some records whose contact update is done."""
        return self._records.updated(self.taker, claim_ids)

    def note_updated(self, claim_ids: Sequence[int]) -> None:
        """Take in that what these records bring to their users' contacts is there."""
        self._records.note_updated(self.taker, claim_ids)

    # --- waiting --------------------------------------------------------------------------

    def park(
        self,
        record: Record,
        others: Iterable[int],
        failure: Failure,
        wake_at_ms: int,
        now_ms: int,
        *,
        is_own: bool = True,
    ) -> None:
        """Let a user wait until an instant, after a failure of its first record.

        ``others``: the ids of what else is loaded of it. ``is_own``: it is the user's fault.
        """
        self._records.set_aside([record.id, *others])
        if is_own:
            self._lines.parked(self._name, record, failure, wake_at_ms)
        reason = failure.reason if is_own else ""
        self._users.park(self.taker, record.user_key, wake_at_ms, reason, now_ms)

    def attempts(self, id_: int) -> int:
        """Return the failed attempts that a record was charged with."""
        return self._records.attempts(id_)

    def charge(self, id_: int, now_ms: int) -> int:
        """Charge an attempt to a record that waits; return how many it has had."""
        return self._records.charge(id_, now_ms)

    def give_up(self, id_: int, failure: Failure, now_ms: int) -> None:
        """Bury a record that has had its attempts; its user goes on with the next.

        None whose user does not wait: then it is in somebody's hands, and may be delivered yet.
        """
        for record in self.intact(self._records.get(self.taker, id_)):
            if self._users.waits(self.taker, record.user_key) and self.delete([id_]):
                self.keep(record, failure, now_ms)
                self._users.wake(self.taker, record.user_key, now_ms)

    def defer(self, user: str, ids: Iterable[int], until_ms: int, waits_for: str = "") -> None:
        """Let a user's records wait until an instant, or for an endpoint: no failure."""
        self._records.set_aside(ids)
        self._users.defer(self.taker, user, until_ms, waits_for)

    def unknown(self, user: str) -> Stranger:
        """Return how often, and when, Intercom has said that it does not know a user."""
        return self._users.unknown(self.taker, user)

    def note_unknown(self, user: str, unknown: Stranger) -> None:
        """Keep how often, and when, Intercom has said that it does not know a user that waits."""
        self._users.note_unknown(self.taker, user, unknown)

    def hasten(self, user: str, now_ms: int) -> None:
        """Let a user be due that Intercom did not know, if something waits that makes it known."""
        self._users.hasten(self.taker, user, now_ms)

    def expire(
        self, user: str, failure: Failure, accepted_until_ms: int, now_ms: int
    ) -> tuple[int, bool]:
        """Bury some of a user's events that have waited for the whole retry window.

        None where the user is not parked for that reason: then some of them may be under way.
        Returns how many there were, and whether more of them are left.
        """
        if not self._users.waits(self.taker, user, failure.reason):
            return 0, False
        also = f"AND r.kind = {Kind.EVENT:d} AND r.accepted_at_ms <= {accepted_until_ms:d}"
        found = self._records.aside(self.taker, user, MOST_EXPIRED, 1 << 24, also)
        tried = max(0, self._users.unknown(self.taker, user).refusals - 1)
        for record in self.intact(found):
            attempts = max(record.attempts, tried)
            self.bury(msgspec.structs.replace(record, attempts=attempts), failure, now_ms)
        return len(found), bool(self._records.aside(self.taker, user, 1, 1, also))

    def wake(self, user: str, at_ms: int) -> None:
        """Let a user that waits be due at an instant, if it would be later."""
        self._users.wake(self.taker, user, at_ms)

    def wake_deferred(self, user: str, at_ms: int) -> None:
        """Let a user that waits without a fault of its own be due at an instant, if earlier."""
        self._users.wake_deferred(self.taker, user, at_ms)

    def forgive(self, user: str) -> None:
        """Forget a user's failures: a call of it has succeeded."""
        self._users.forgive(self.taker, user)

    def failures(self, user: str) -> int:
        """Return how often in a row this user's calls have failed."""
        return self._users.failures(self.taker, user)
