"""How much of one sync may be in memory: records, bytes, and users that were parked.

Rules
=====
1. Records of users that may have a turn: at most ``read_ahead``. Users behind an open circuit do
   not count, so that an endpoint that is out does not keep others' records on disk.
2. Bytes: the sync's share of the daemon's budget (``delivery.loaded_bytes``).
3. Users that were parked: ``MOST_RETRIES``, with ``MOST_RETRY_BYTES``.
4. Users behind an open circuit are put aside beyond one load of rows, or ``KEPT_RETRIES``. Beyond
   ``KEPT_BYTES`` too, if nothing else can be loaded for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from amplitude_intercom.engine.delivery.health import Health
from amplitude_intercom.engine.delivery.loaded_bytes import (
    LEAST_BYTES,
    READ_AHEAD_BYTES,
    SyncBytes,
)
from amplitude_intercom.engine.delivery.users_in_memory import Key, UsersInMemory

LOAD_ROWS: Final = 256
"""Records that are loaded at once, at most."""

MOST_RETRIES: Final = 64
"""Users that were parked and are loaded, at most. However many are due, they come in parts, and the
queue is loaded beside them."""

KEPT_RETRIES: Final = MOST_RETRIES // 4
"""Of these, so many may wait for an endpoint that is out: others need another one."""

MOST_RETRY_BYTES: Final = LEAST_BYTES // 2
"""Bytes of their events, which come in parts as well."""

KEPT_BYTES: Final = LEAST_BYTES // 8
"""Bytes that may wait for an endpoint that is out, if nothing else can be loaded for them: as many
endpoints as there are must leave a part of ``LEAST_BYTES``."""


class MemoryBounds:
    """One sync's bounds, and how much of them is free."""

    def __init__(
        self, users: Callable[[], UsersInMemory], health: Health, loaded: SyncBytes, read_ahead: int
    ) -> None:
        """``users`` returns the users in memory. ``read_ahead`` is a number of records."""
        self._users = users
        self._health = health
        self._loaded = loaded
        self._read_ahead = read_ahead
        self._rows = min(LOAD_ROWS, read_ahead)

    def space(self) -> tuple[int, int] | None:
        """Return how many records and bytes may be loaded; None: too few to be worth it."""
        open_circuits = self._health.open_circuits
        free = self._read_ahead - self._users().ready(open_circuits)
        free_bytes = self._loaded.free(sum(map(self._users().bytes_behind, open_circuits)))
        # Each load costs a transaction: half a load at a time, and not a record for each delivery.
        enough = (self._rows + 1) // 2
        return (free, free_bytes) if free >= enough and free_bytes > 0 else None

    def retries(self) -> tuple[int, int]:
        """Return how many users that were parked may be loaded, and how many bytes of them."""
        retries, size = self._users().retries()
        free, free_bytes = MOST_RETRIES - retries, MOST_RETRY_BYTES - size
        return (free, free_bytes) if free > 0 and free_bytes > 0 else (0, 0)

    def kept(self) -> Iterator[tuple[Key, int, int]]:
        """Yield each queue behind an open circuit, and how many records and bytes it may hold."""
        # Their bytes are put aside only where others need them: each user that is put aside is
        # written, and loaded again.
        size = KEPT_BYTES if self._loaded.free() <= 0 else READ_AHEAD_BYTES
        for endpoint in self._health.open_circuits:
            yield (endpoint, False), self._rows, size
            yield (endpoint, True), KEPT_RETRIES, size

    def are_exceeded(self) -> bool:
        """Return whether some of the users behind open circuits are to be put aside."""
        users = self._users()
        return any(users.holds_more(*kept) for kept in self.kept())
