"""How records leave the table ``records``: deleted, or kept as dead letters.

Rules
=====
1. A record and its share of ``pending`` go together, so that the sum holds at each commit.
2. A batch goes with the last record that points into it, at the end of the transaction: a record
   that is deleted early may be followed by others of the same batch.
3. A dead letter keeps the id of its record, so that it can be followed through logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.reasons import DAMAGED, Failure
from amplitude_intercom.engine.spool.accounts import INBOX, TAKEN_ALONG, Accounts
from amplitude_intercom.engine.spool.batches import SLOTS
from amplitude_intercom.engine.spool.dead_letters import DeadLetters
from amplitude_intercom.engine.spool.inbox import Inbox
from amplitude_intercom.engine.spool.records import DamagedRecord, Records
from amplitude_intercom.engine.spool.rows import dead_letter
from amplitude_intercom.engine.spool.settled_lines import SettledLines


class RecordEnds:
    """The records of one taker, as they leave the table, in the caller's transaction."""

    def __init__(
        self,
        taker: int,
        name: str,
        inbox: Inbox,
        records: Records,
        letters: DeadLetters,
        accounts: Accounts,
        lines: SettledLines,
    ) -> None:
        """``name``: the taker's, for the log's lines."""
        self.taker = taker
        self.name = name
        self._inbox = inbox
        self._records = records
        self._letters = letters
        self._accounts = accounts
        self._lines = lines
        self._emptied: set[int] = set()
        """Batches of the records that were deleted in this transaction."""

    def keep(self, record: Record, failure: Failure, now_ms: int) -> None:
        """Keep a dead letter of an event that is no longer a record."""
        letter = dead_letter(record, failure, now_ms)
        if self._letters.has(letter.id):
            # Damage in the file can give two records the same id. Both must be kept.
            letter = msgspec.structs.replace(letter, id=self._accounts.take_batches(1) * SLOTS)
        self._letters.insert(self.taker, letter)
        self._accounts.bury(self.taker, failure.reason)
        self._lines.dead(self.name, record, failure)

    def bury_damage(self, damage: DamagedRecord) -> None:
        """Keep a dead letter of a damaged record that is no longer in the table."""
        # Its kind may be damaged too. The letter is never replayed, so any kind will do.
        record = Record(damage.id, Kind.EVENT, damage.user, damage.at_ms, damage.raw)
        self.keep(record, DAMAGED, damage.at_ms)

    def intact(self, found: Iterable[Record | DamagedRecord]) -> list[Record]:
        """Return the records whose checksum holds; the others become dead letters."""
        intact = []
        for read in found:
            if isinstance(read, Record):
                intact.append(read)
            else:
                # At once: a damaged row that stayed would be read again at each load.
                self.delete([read.id])
                self.bury_damage(read)
        return intact

    def delete(self, ids: Sequence[int]) -> int:
        """Delete records; return how many there were.

        Their batches go at the transaction's end, if no other record points into them.
        """
        # Most takers have no such records: then the bytes of these need not be read.
        if self._accounts.value(self.taker, TAKEN_ALONG):
            self._accounts.resize(self.taker, TAKEN_ALONG, -self._records.own_bytes(ids))
        # Counted by what was there: a record may be settled again after a cancel.
        deleted = self._records.delete(ids)
        self._accounts.add(self.taker, "pending", -deleted)
        self._emptied.update(id_ // SLOTS for id_ in ids)
        return deleted

    def let_go_emptied(self) -> None:
        """Delete the batches of deleted records, if no record points into them."""
        if self._emptied:
            self.let_go_batches(self._emptied)
            self._emptied.clear()

    def let_go_batches(self, batches: Iterable[int]) -> None:
        """Delete batches, except those that a record still points into."""
        # Counted by what was deleted: the id of a damaged record may name any batch.
        for taker, size_bytes in self._inbox.let_go(batches):
            self._accounts.resize(taker, INBOX, -size_bytes)
