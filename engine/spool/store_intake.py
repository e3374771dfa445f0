"""The intake of a spool: batches are appended, or refused, in the caller's transaction.

Rules
=====
1. A batch is kept for all of its takers or for none: every part is judged before one is written.
2. A batch that only counts (nothing of it is kept) is never refused.
3. The packs of all batches of one call are one insert, behind everything else: ids are given in the
   order of acceptance, and a statement costs more than a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from amplitude_intercom.engine.envelope import Kind, Record
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.reasons import DeadReason, DropReason, Failure
from amplitude_intercom.engine.spool.accounts import INBOX
from amplitude_intercom.engine.spool.batches import SLOTS, Pack
from amplitude_intercom.engine.spool.fullness import Fullness
from amplitude_intercom.engine.spool.insert_ids import key_of
from amplitude_intercom.engine.spool.letters import DeadRow
from amplitude_intercom.engine.spool.relaying import Relaying
from amplitude_intercom.engine.spool.rows import Append, Appended, Part, dead_letter
from amplitude_intercom.engine.spool.tables import Tables
from amplitude_intercom.engine.spool.takers import spoken
from amplitude_intercom.transports.reasons import RefusalReason


class StoreIntake:
    """The way of batches into the tables. The module's docstring has the rules."""

    def __init__(self, tables: Tables, relaying: Relaying, max_bytes: int) -> None:
        self._tables = tables
        self._accounts = tables.accounts
        self._takers = tables.takers
        self._relaying = relaying
        self._fullness = Fullness(max_bytes)
        self._counting_to = 0
        self.counted_to = 0
        """The number of the last batch that only counts and is in the counters."""
        self.refusal: RefusalReason | None = None
        """The reason for refusing everything; None: there is none."""

    def set_refusal(self, reason: RefusalReason | None) -> None:
        """Refuse appends for this reason from now on; None: accept them again."""
        self.refusal = reason
        self._tables.insert_ids.is_short = reason is RefusalReason.DISK_FULL

    def why_full(self, name: str) -> str:
        """Return why a taker was refused free bytes at the last commit; empty if it was not."""
        # As of the last commit: the loop asks, beside the thread that may be within a transaction.
        return self._fullness.refused.get(self._takers.known_id(name), "")

    def share_bytes(self) -> int:
        """Return the equal share of each taker."""
        return self._fullness.share_bytes(len(self._takers.ids))

    def committed(self) -> None:
        """Note that everything appended so far is durable."""
        self.counted_to = self._counting_to
        # Only now: a refusal for bytes that are rolled back would last until the next commit.
        self._fullness.update(self._takers.ids, self._accounts)

    def rolled_back(self) -> None:
        """Forget everything since the last commit."""
        # The loop has these counts still, and appends them again under a new number.
        self._counting_to = self.counted_to

    def append(self, batches: Sequence[Append], now_ms: int) -> list[Appended | SpoolError]:
        """Append batches; return the result of each, or its refusal.

        A refused batch has changed nothing (rule 1).
        """
        results: list[Appended | SpoolError] = []
        new: list[tuple[int, Pack]] = []
        for batch in batches:
            refusal = self._refusal(batch)
            if refusal is None:
                for part in batch.parts:
                    taker = self._takers.id_for(part.taker)
                    new += count_pending(self._tables, taker, part.packs)
                    self._take_in(part, now_ms)
            # A refused batch is not counted as received: its source sends it again.
            results.append(refusal or self._count(batch, now_ms))
            # Until this number is committed, the loop adds the counts itself (`UnwrittenCounts`).
            self._counting_to = max(self._counting_to, batch.number)
        put_in(self._tables, new, now_ms)
        return results

    def _refusal(self, batch: Append) -> SpoolError | None:
        """Return the refusal of a batch; None: every taker can keep its part."""
        for part in batch.parts:
            # Nothing waits of it: a refusal would only have its source send it again (rule 2).
            if part.keeps_nothing:
                continue
            if self.refusal:
                return SpoolError(self.refusal)
            if part.needs_free_bytes and (
                why := self._fullness.why_not(
                    self._takers.id_for(part.taker), self._takers.ids, self._accounts
                )
            ):
                return SpoolError(RefusalReason.SPOOL_FULL, f"{spoken(part.taker)}: {why}")
        return None

    def _take_in(self, part: Part, now_ms: int) -> None:
        """Keep the request of a batch, for a relay."""
        if part.relayed is not None:
            taker = self._takers.id_for(part.taker)
            self._relaying.take_in(taker, part.relayed, self.share_bytes(), now_ms)

    def _count(self, batch: Append, now_ms: int) -> Appended:
        accepted = dropped = 0
        dead: Counter[str] = Counter()
        for part in batch.parts:
            taker = self._takers.id_for(part.taker)
            buried = self._bury_unreadable(taker, part.dead, now_ms) if part.dead else Counter()
            self.count_only(part)
            accepted += sum(pack.count for pack in part.packs)
            accepted += part.relayed.count if part.relayed is not None else 0
            dropped += part.dropped.total() + len(part.dead) - buried.total()
            dead += buried
        return Appended(accepted, dropped, dead.total(), dead)

    def count_only(self, part: Part) -> None:
        """Count the received and the dropped events of one taker, and keep the checkpoints."""
        taker = self._takers.id_for(part.taker)
        self._accounts.add(taker, "received", part.received)
        for reason, count in part.dropped.items():
            self._accounts.add(taker, f"dropped:{reason}", count)
        self._tables.checkpoints.set(taker, part.checkpoints)

    def _bury_unreadable(self, taker: int, rows: Sequence[DeadRow], now_ms: int) -> Counter[str]:
        """Keep malformed events as dead letters; return the numbers of new ones, by reason."""
        # Ids out of the same row as those of records, so that none is given twice.
        first = self._accounts.take_batches(-(-len(rows) // SLOTS)) * SLOTS
        by_id = dict(enumerate(rows, first))
        # A request that is sent again must not double its malformed events either.
        keys = {
            id_: key_of(taker, row.insert_key)
            for id_, row in by_id.items()
            if row.insert_key is not None
        }
        new = self._tables.insert_ids.add(keys, dict.fromkeys(keys, now_ms))
        buried: Counter[str] = Counter()
        for id_, row in by_id.items():
            if id_ in keys and id_ not in new:
                self._accounts.add(taker, f"dropped:{DropReason.DUPLICATE}", 1)
                self._tables.lines.duplicate_at_intake(self._takers.name_of(taker), row)
                continue
            failure = Failure(DeadReason(row.reason), message=row.message)
            record = Record(id_, Kind.EVENT, row.user_key, now_ms, row.raw)
            letter = dead_letter(record, failure, now_ms)
            placed = msgspec.structs.replace(letter, origin=row.origin, line=row.line)
            self._tables.letters.insert(taker, placed)
            self._accounts.bury(taker, row.reason)
            self._tables.lines.dead_at_intake(self._takers.name_of(taker), id_, row)
            buried[row.reason] += 1
        return buried


def count_pending(tables: Tables, taker: int, new: Sequence[Pack]) -> list[tuple[int, Pack]]:
    """Count the packs of a taker as pending; return them with the taker."""
    # At once, so that the next batch of the same call is judged with the bytes of this one.
    for pack in new:
        tables.accounts.add(taker, "pending", pack.count)
        tables.accounts.resize(taker, INBOX, pack.size_bytes)
    return [(taker, pack) for pack in new]


def put_in(tables: Tables, new: Sequence[tuple[int, Pack]], now_ms: int) -> None:
    """Put counted packs into the inbox, behind everything that waits."""
    if new:
        tables.inbox.append(tables.accounts.take_batches(len(new)), new, now_ms)
