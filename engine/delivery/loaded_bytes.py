"""How many bytes of events are in memory: one budget of the daemon, and each sync's share of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from amplitude_intercom.engine.envelope import Record

READ_AHEAD_BYTES: Final = 16 * 1024 * 1024
"""Bytes of events that all syncs together may have loaded."""

LEAST_BYTES: Final = 128 * 1024
"""Bytes that one sync may have loaded, whatever the others have."""


class LoadedBytes:
    """The bytes of events that all syncs have loaded."""

    def __init__(self) -> None:
        self.total = 0


class SyncBytes:
    """The bytes of events that one sync has loaded, out of a budget that it shares."""

    def __init__(self, budget: LoadedBytes) -> None:
        self._budget = budget
        self.held = 0
        """Bytes of the events that are loaded."""

    def hold(self, records: Iterable[Record]) -> None:
        """Count records that were loaded."""
        self._add(sum(len(record.raw) for record in records))

    def let_go(self, records: Iterable[Record]) -> None:
        """Count records no more: they are no longer in memory."""
        self._add(-sum(len(record.raw) for record in records))

    def let_all_go(self) -> None:
        """Count nothing: all that was loaded is forgotten."""
        self._add(-self.held)

    def free(self, uncounted: int = 0) -> int:
        """Return how many more bytes the sync may load, if some of its own do not count."""
        # Without a share of its own a sync would wait for ever beside one with a large backlog.
        return max(READ_AHEAD_BYTES - self._budget.total, LEAST_BYTES - (self.held - uncounted))

    def _add(self, size: int) -> None:
        self.held += size
        self._budget.total += size
