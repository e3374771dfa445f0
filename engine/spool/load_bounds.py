"""The bounds of one load: records and bytes in all, and records of each user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol

from amplitude_intercom.engine.envelope import Record


class Bounds:
    """How much may still be loaded: records, and bytes."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes

    @property
    def are_reached(self) -> bool:
        return self.limit <= 0 or self.limit_bytes <= 0

    def take(self, records: Sequence[Record]) -> None:
        self.limit -= len(records)
        self.limit_bytes -= sum(len(record.raw) for record in records)

    def fitting(self, records: Sequence[Record]) -> int:
        """Return how many records fit, the one that reaches the bytes included."""
        # With the one that reaches the bound: a record larger than it would wait for ever.
        left = self.limit_bytes
        for count, record in enumerate(records[: self.limit], start=1):
            left -= len(record.raw)
            if left <= 0:
                return count
        return min(len(records), self.limit)


class UserBounds:
    """How many records of each user may still be loaded.

    ``worked_off``: users with more than that.
    """

    def __init__(self, full: Collection[str], per_user: int) -> None:
        # A full user takes none: its next record goes aside, and it is worked off.
        self._loaded = Counter(dict.fromkeys(full, per_user))
        self._per_user = per_user
        # A dict, because users are worked off in the order in which they came.
        self.worked_off: dict[str, None] = {}

    def take(self, user: str) -> bool:
        """Count one more record of a user; False: it has too many, and must be worked off."""
        # After one that went aside all go aside, or they would overtake it.
        if user in self.worked_off or self._loaded[user] >= self._per_user:
            return False
        self._loaded[user] += 1
        return True

    def note_aside(self, user: str) -> None:
        """Note a record of a user that was set aside for that reason."""
        self.worked_off[user] = None


Read = tuple[list[Record], int, bool]
"""Records, the last id that was read, and whether more wait."""


class ArrivingRecords(Protocol):
    """The records of a taker that no delivery has read yet."""

    def next(self, after_id: int, now_ms: int, bounds: Bounds, users: UserBounds) -> Read:
        """Return the next records behind an id."""
        ...

    def unpack(self, unpacked_to: int, bounds: Bounds, users: UserBounds, now_ms: int) -> Read:
        """Unpack the next batches of the inbox; return their records."""
        ...
