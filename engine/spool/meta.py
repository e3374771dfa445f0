"""Small tables of a spool: values by name, checkpoints, event names, workspaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amplitude_intercom.engine.spool.connection import Connection


class Meta:
    """The table ``meta``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, key: str) -> str | None:
        """Return the value of a key; None without one."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set(self, key: str, value: str) -> None:
        """Store a value under a key."""
        self._db.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )


class Checkpoints:
    """The table ``checkpoints``: the positions of sources that can be read again."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def of(self, taker: int) -> dict[str, str]:
        """Return the durable positions of a taker's sources."""
        rows = self._db.execute(
            "SELECT source, position FROM checkpoints WHERE taker = ?", (taker,)
        )
        return dict(rows.fetchall())

    def get(self, taker: int, source: str) -> str | None:
        """Return the durable position of one source; None: it has none."""
        row = self._db.execute(
            "SELECT position FROM checkpoints WHERE taker = ? AND source = ?", (taker, source)
        ).fetchone()
        return None if row is None else str(row[0])

    def count(self, taker: int) -> int:
        """Return the number of a taker's sources that have a position."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM checkpoints WHERE taker = ?", (taker,)
        ).fetchone()
        return int(count)

    def page(self, taker: int, after: str, limit: int) -> list[tuple[str, str]]:
        """Return sources with their durable positions, in the order of their names."""
        rows = self._db.execute(
            "SELECT source, position FROM checkpoints WHERE taker = ? AND source > ?"
            " ORDER BY source LIMIT ?",
            (taker, after, limit),
        )
        return [(source, position) for source, position in rows]

    def set(self, taker: int, positions: Mapping[str, str]) -> None:
        """Store positions of sources."""
        for source, position in positions.items():
            self._db.execute(
                "INSERT INTO checkpoints (taker, source, position) VALUES (?, ?, ?)"
                " ON CONFLICT (taker, source) DO UPDATE SET position = excluded.position",
                (taker, source, position),
            )

    def forget(self, taker: int, sources: Iterable[str]) -> None:
        """Forget the positions of sources, so that they are read from their beginning."""
        for source in sources:
            self._db.execute(
                "DELETE FROM checkpoints WHERE taker = ? AND source = ?", (taker, source)
            )


class EventNamesTable:
    """The table ``event_names``: the names sent to each workspace, with the day of the last use."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def of(self, workspace: int) -> dict[str, int]:
        """Return the names sent to a workspace, with the day of the last use."""
        rows = self._db.execute(
            "SELECT name, last_day FROM event_names WHERE workspace = ?", (workspace,)
        )
        return dict(rows.fetchall())

    def numbers(self) -> dict[int, int]:
        """Return the number of names of each workspace that has any."""
        rows = self._db.execute("SELECT workspace, count(*) FROM event_names GROUP BY workspace")
        return dict(rows.fetchall())

    def keep(self, workspace: int, last_days: Mapping[str, int]) -> None:
        """Replace the names of a workspace."""
        self._db.execute("DELETE FROM event_names WHERE workspace = ?", (workspace,))
        for name, day in last_days.items():
            self._db.execute(
                "INSERT INTO event_names (workspace, name, last_day) VALUES (?, ?, ?)",
                (workspace, name, day),
            )


class WorkspaceNumbers:
    """The table ``workspaces``: the workspaces of access tokens, by number."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def find(self, address: str, code: str) -> int:
        """Return a workspace's number; 0 if it has none."""
        found = self._db.execute(
            "SELECT id FROM workspaces WHERE address = ? AND code = ?", (address, code)
        ).fetchone()
        return int(found[0]) if found else 0

    def number_of(self, address: str, code: str) -> int:
        """Return a workspace's number, a new one if it has none."""
        if found := self.find(address, code):
            return found
        (last,) = self._db.execute("SELECT max(id) FROM workspaces").fetchone()
        number = int(last or 0) + 1
        self._db.execute(
            "INSERT INTO workspaces (id, address, code) VALUES (?, ?, ?)", (number, address, code)
        )
        return number
