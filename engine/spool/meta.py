"""Small things that a spool remembers by name: how far sources have come, which names are used."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

_MARK = "mark "
_NAME = "event-name "


class Meta:
    """The table ``meta``, inside somebody's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def get(self, key: str) -> str | None:
        """Return what is kept under a key."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set(self, key: str, value: str) -> None:
        """Keep a value under a key."""
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def _under(self, prefix: str) -> dict[str, str]:
        """Return what is kept under keys that begin so, without that beginning."""
        rows = self._db.execute(
            "SELECT substr(key, ?), value FROM meta WHERE key GLOB ?",
            (len(prefix) + 1, prefix + "*"),
        )
        return dict(rows.fetchall())

    # --- sources that can be read again ---------------------------------------------------

    def checkpoints(self) -> dict[str, str]:
        """Return how far they have come with what is on disk."""
        return self._under(_MARK)

    def set_marks(self, checkpoints: Mapping[str, str]) -> None:
        """Keep how far some of them have come."""
        for name, position in checkpoints.items():
            self.set(_MARK + name, position)

    def forget_marks(self, names: Iterable[str]) -> None:
        """Let these be read from their beginning again."""
        self._db.executemany("DELETE FROM meta WHERE key = ?", [(_MARK + name,) for name in names])

    # --- event names ----------------------------------------------------------------------

    def event_names(self) -> dict[str, int]:
        """Return the event names that have been sent, with the day of the last time."""
        return {name: int(day) for name, day in self._under(_NAME).items() if day.isdecimal()}

    def keep_event_names(self, last_days: Mapping[str, int]) -> None:
        """Keep these event names, and no others."""
        self._db.execute("DELETE FROM meta WHERE key GLOB ?", (_NAME + "*",))
        for name, day in last_days.items():
            self.set(_NAME + name, str(day))
