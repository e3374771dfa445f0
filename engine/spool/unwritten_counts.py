"""Counts of batches of which nothing is kept, until they are written with a batch that is kept.

Rules
=====
1. A batch that a rule drops whole costs no commit. Its counts are written ahead of the next batch
   that is kept; a crash before that forgets both sides of the sum, received and dropped.
2. Counts in a transaction that has not ended belong to no other. They are numbered, and the store
   says which number it has committed, so that a reader adds each of them once.
3. Counts whose transaction has failed come back, before newer ones: their checkpoints are older.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from amplitude_intercom.engine.spool.rows import Append, Part


class UnwrittenCounts:
    """The parts of batches that are only counted, by taker; see the module's docstring."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._writing: dict[int, dict[str, Part]] = {}
        """Parts in a transaction that has not ended, by number and taker."""
        self._last_number = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, parts: Iterable[Part]) -> None:
        """Count the parts of one more batch."""
        for part in parts:
            # Summed by taker, so that memory does not grow with the batches that are only counted.
            kept = self._parts.get(part.taker)
            self._parts[part.taker] = part if kept is None else _sum(kept, part)

    def take(self) -> list[Part]:
        """Return all parts, and forget them."""
        taken, self._parts = list(self._parts.values()), {}
        return taken

    def put_back(self, parts: Iterable[Part]) -> None:
        """Count parts again whose transaction has failed."""
        for part in parts:
            newer = self._parts.get(part.taker)
            # The newer part comes second: of two checkpoints of a source the later one holds.
            self._parts[part.taker] = part if newer is None else _sum(part, newer)

    def begin(self) -> Append:
        """Return all parts as a batch to be appended; ``end`` follows with its number."""
        self._last_number += 1
        # Moved: counts that come meanwhile belong to the next transaction (rule 2).
        self._writing[self._last_number], self._parts = self._parts, {}
        return Append(list(self._writing[self._last_number].values()), self._last_number)

    def end(self, number: int, *, failed: bool) -> None:
        """Forget the parts of a batch that was appended, or count them again."""
        parts = self._writing.pop(number)
        if failed:
            self.put_back(parts.values())

    def of(self, taker: str, counted_to: int) -> Counter[str]:
        """Return the counters of a taker that are not committed; ``counted_to`` is the number of
        the last batch that is."""
        total: Counter[str] = Counter()
        # A commit is known in the loop only after the thread has reported it.
        writing = [parts for number, parts in self._writing.items() if number > counted_to]
        # By name: a status asks for each of a thousand takers.
        for parts in (*writing, self._parts):
            part = parts.get(taker)
            if part is not None:
                total["received"] += part.received
                total.update({f"dropped:{reason}": n for reason, n in part.dropped.items()})
        return total


def _sum(one: Part, other: Part) -> Part:
    """Return two parts of which nothing is kept as one."""
    return Part(
        one.taker,
        one.received + other.received,
        [],
        [],
        one.dropped + other.dropped,
        # The other part is the later one.
        {**one.checkpoints, **other.checkpoints},
    )
