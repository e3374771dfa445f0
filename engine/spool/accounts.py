"""The counters of all takers, changed in the transaction that changes the counted rows.

So, for each taker and after every commit:

    received = delivered + dropped (all reasons) + dead + pending

Other counters are ``dead:REASON`` (dead letters by reason), ``parked:REASON`` (parked users by
reason), ``adjusted:REASON`` (values changed on the way to Intercom), and ``bytes:…`` (a taker's
bytes). Taker 0 is the whole spool.

``minutes`` has the change of each counter within a minute. Some things are counted there alone:
how soon deliveries came (``delivery_times``), the calls that were made (``tally``), and new dead
letters (``DIED``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from amplitude_intercom.engine.spool.connection import Connection, insert_many

SPOOL: Final = 0
"""The taker id of the whole spool's counters."""

INBOX: Final = "bytes:inbox"
"""Bytes of a taker's batches."""

TAKEN_ALONG: Final = "bytes:along"
"""Bytes that a taker's records have taken along."""

WAITING: Final = "bytes:waiting"
"""The sum of both over all takers: a counter of the spool."""

DEAD: Final = "bytes:dead"
"""Bytes of a taker's dead letters."""

PARKED: Final = "parked:"
"""The beginning of the counters of parked users. A user with its next try under way counts too."""

INSERT_IDS: Final = "insert_ids"
"""The number of insert ids, of all takers."""

CONTACTS: Final = "contacts"
"""The number of contacts, of all workspaces."""

DIED: Final = "died:"
"""Begins the names of new dead letters by reason; ``dead:`` are those that there are."""

MINUTE_MS: Final = 60_000

LAST_BATCH: Final = "last_batch"
"""The highest id given to a batch: a counter of the spool."""

_ADD = "ON CONFLICT (taker, name) DO UPDATE SET value = counters.value + excluded.value"
_ADD_TO_MINUTE = (
    "ON CONFLICT (span, minute, taker, name) DO UPDATE SET value = minutes.value + excluded.value"
)

Counts = Mapping[str, int]


def is_settled(counter: str) -> bool:
    """Return whether a counter counts settled events."""
    return counter in ("delivered", "dead") or counter.startswith("dropped:")


def under(counters: Counts, prefix: str) -> dict[str, int]:
    """Return the counters above 0 with a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): count
        for name, count in sorted(counters.items())
        if name.startswith(prefix) and count > 0
    }


class Accounts:
    """The tables ``counters`` and ``minutes``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._committed: dict[int, Counter[str]] = {}
        self._changes: dict[int, Counter[str]] = {}
        self._of_minute: dict[int, Counter[str]] = {}
        for taker, name, value in db.execute("SELECT taker, name, value FROM counters"):
            self._committed.setdefault(taker, Counter())[name] = value

    def committed(self, taker: int) -> Counter[str]:
        """Return a taker's counters as of the last commit; the caller must not change them."""
        return self._committed.get(taker, _NOTHING)

    def takers(self) -> list[int]:
        """Return the takers with counters."""
        return [taker for taker in {*self._committed, *self._changes} if taker != SPOOL]

    def value(self, taker: int, name: str) -> int:
        """Return a counter, with the changes of this transaction."""
        changes = self._changes.get(taker)
        return self.committed(taker)[name] + (changes[name] if changes else 0)

    def of(self, taker: int) -> Counter[str]:
        """Return a taker's counters, with the changes of this transaction."""
        changes = self._changes.get(taker)
        if not changes:
            return self.committed(taker)
        now = Counter(self.committed(taker))
        now.update(changes)
        return now

    def add(self, taker: int, name: str, by: int) -> None:
        """Add to a counter."""
        if by:
            self._changes.setdefault(taker, Counter())[name] += by

    def add_to_minute(self, taker: int, counts: Counts) -> None:
        """Count by the minute alone."""
        self._of_minute.setdefault(taker, Counter()).update(counts)

    def resize(self, taker: int, name: str, by: int) -> None:
        """Add to a byte counter of a taker, and to the spool's waiting bytes."""
        self.add(taker, name, by)
        self.add(SPOOL, WAITING, by)

    def count_dead(self, taker: int, reason: str, by: int) -> None:
        """Count dead letters of one reason."""
        self.add(taker, "dead", by)
        self.add(taker, f"dead:{reason}", by)

    def bury(self, taker: int, reason: str) -> None:
        """Count a record that becomes a dead letter."""
        self.count_dead(taker, reason, 1)
        self.add_to_minute(taker, {f"{DIED}{reason}": 1})

    def dead_by_reason(self, taker: int) -> dict[str, int]:
        """Return the number of dead letters by reason, as of the last commit."""
        return under(self.committed(taker), "dead:")

    def last_batch(self) -> int:
        """Return the highest id that a batch was given."""
        return self.value(SPOOL, LAST_BATCH)

    def take_batches(self, count: int) -> int:
        """Reserve ``count`` new ids of batches; return the first."""
        last = self.last_batch()
        self.add(SPOOL, LAST_BATCH, count)
        return last + 1

    def write(self, minute: int) -> None:
        """Write the changes of this transaction, made in a ``minute`` since 1970."""
        changes = _rows(self._changes)
        if changes:
            insert_many(self._db, "INSERT INTO counters (taker, name, value)", 3, changes, _ADD)
        changes += _rows(self._of_minute)
        if changes:
            insert_many(
                self._db,
                "INSERT INTO minutes (span, minute, taker, name, value)",
                5,
                [(1, minute, *change) for change in changes],
                _ADD_TO_MINUTE,
            )

    def change_since(self, taker: int, name: str, minute: int) -> int:
        """Return the change of a counter since a ``minute`` of the last two days."""
        (change,) = self._db.execute(
            "SELECT sum(value) FROM minutes WHERE span = 1 AND minute >= ? AND taker = ?"
            " AND name = ?",
            (minute, taker, name),
        ).fetchone()
        return int(change or 0)

    def changes_since(self, minute: int, names: Sequence[str]) -> dict[int, Counter[str]]:
        """Return the changes of the named counters since a ``minute`` of the last two days, by
        taker."""
        marks = ", ".join("?" * len(names))
        found: dict[int, Counter[str]] = {}
        for taker, name, change in self._db.execute(
            "SELECT taker, name, sum(value) FROM minutes WHERE span = 1 AND minute >= ?"
            f" AND name IN ({marks}) GROUP BY taker, name",
            (minute, *names),
        ):
            found.setdefault(taker, Counter())[name] = int(change)
        return found

    def make_hours(self, before: int, limit: int) -> int:
        """Merge up to ``limit`` rows of minutes before a minute into hours; return their number."""
        rows = self._db.execute(
            "SELECT minute, taker, name, value FROM minutes WHERE span = 1 AND minute < ?"
            " ORDER BY minute LIMIT ?",
            (before, limit),
        ).fetchall()
        hours: Counter[tuple[int, int, str]] = Counter()
        for minute, taker, name, value in rows:
            hours[minute // 60 * 60, taker, name] += value
            self._db.execute(
                "DELETE FROM minutes WHERE span = 1 AND minute = ? AND taker = ? AND name = ?",
                (minute, taker, name),
            )
        insert_many(
            self._db,
            "INSERT INTO minutes (span, minute, taker, name, value)",
            5,
            [(60, *hour, value) for hour, value in hours.items()],
            _ADD_TO_MINUTE,
        )
        return len(rows)

    def forget_hours(self, before: int, limit: int) -> int:
        """Forget up to ``limit`` rows of hours before a minute; return their number."""
        rows = self._db.execute(
            "SELECT minute, taker, name FROM minutes WHERE span = 60 AND minute < ?"
            " ORDER BY minute LIMIT ?",
            (before, limit),
        ).fetchall()
        for row in rows:
            self._db.execute(
                "DELETE FROM minutes WHERE span = 60 AND minute = ? AND taker = ? AND name = ?", row
            )
        return len(rows)

    def commit(self) -> None:
        """Note that the written changes are durable."""
        for taker in self._changes:
            # Replaced, never changed: other threads may be reading it.
            self._committed[taker] = Counter(self.of(taker))
        self.rollback()

    def rollback(self) -> None:
        """Drop the changes since the last commit."""
        self._changes, self._of_minute = {}, {}


def _rows(changes: Mapping[int, Counts]) -> list[tuple[int, str, int]]:
    return [(taker, name, by) for taker, of in changes.items() for name, by in of.items() if by]


_NOTHING: Final[Counter[str]] = Counter()
