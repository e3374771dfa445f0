"""The instants and endpoints that users wait for.

Rules
=====
1. A parked user waits for its own back-off; a deferred one for an instant or an endpoint.
2. A user that waits for an endpoint has no time of its own: its circuit decides.
3. The two kinds are read apart, so that neither hides behind many of the other.
"""

from __future__ import annotations

from typing import NamedTuple

from amplitude_intercom.engine.spool.connection import Connection

_IS = {True: "<>", False: "="}
"""The comparison with an empty reason, for parked users and for others."""


class Due(NamedTuple):
    """A user that is due. ``waited_for`` is the endpoint that it waited for, if any."""

    user: str
    reason: str
    failures: int
    waited_for: str


class ParkedChoice(NamedTuple):
    """Parked users: all given conditions hold; without one all are meant."""

    users: list[str] | None = None
    reason: str | None = None


class MadeDue(NamedTuple):
    """The number of users that were made due, and the last key that was looked at.

    No key: there are no more.
    """

    users: int
    last: str


class Wakeups:
    """The waits in the table ``users``, in the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def due(self, taker: int, now_ms: int, limit: int, *, parked: bool) -> list[Due]:
        """Return ``parked`` or deferred users that are due, the earliest first."""
        rows = self._db.execute(
            "SELECT user_key, reason, failures, '' FROM users WHERE taker = ? AND wake_at_ms <= ?"
            f" AND waits_for = '' AND reason {_IS[parked]} '' ORDER BY wake_at_ms LIMIT ?",
            (taker, now_ms, limit),
        )
        return [Due(*row) for row in rows]

    def awaited(self, taker: int) -> list[str]:
        """Return the endpoints that users wait for, with one look-up each."""
        found: list[str] = []
        # A `DISTINCT` would read the row of each user that waits.
        while True:
            (endpoint,) = self._db.execute(
                "SELECT min(waits_for) FROM users WHERE taker = ? AND waits_for > ?"
                " AND waits_for <> ''",
                (taker, found[-1] if found else ""),
            ).fetchone()
            if endpoint is None:
                return found
            found.append(endpoint)

    def waiting_for(self, taker: int, endpoint: str, limit: int) -> list[Due]:
        """Return users that wait for an endpoint, the earliest first."""
        rows = self._db.execute(
            "SELECT user_key, reason, failures, waits_for FROM users WHERE taker = ?"
            " AND waits_for = ? AND waits_for <> '' ORDER BY wake_at_ms LIMIT ?",
            (taker, endpoint, limit),
        )
        return [Due(*row) for row in rows]

    def let_parked_go(self, taker: int, endpoint: str, limit: int) -> None:
        """Have parked users wait for their own time alone, and no longer for an endpoint."""
        self._db.execute(
            "UPDATE users SET waits_for = '' WHERE taker = ? AND user_key IN"
            " (SELECT user_key FROM users WHERE taker = ? AND waits_for = ? AND waits_for <> ''"
            " AND reason <> '' LIMIT ?)",
            (taker, taker, endpoint, limit),
        )

    def next_wake_ms(self, taker: int, *, parked: bool) -> int | None:
        """Return the time when the next ``parked`` or deferred user is due; None without one."""
        row = self._db.execute(
            "SELECT wake_at_ms FROM users WHERE taker = ? AND wake_at_ms IS NOT NULL"
            f" AND waits_for = '' AND reason {_IS[parked]} '' ORDER BY wake_at_ms LIMIT 1",
            (taker,),
        ).fetchone()
        return None if row is None else int(row[0])

    def wake_earlier(self, taker: int, by_ms: int) -> None:
        """Follow a clock that was set back, so that waits keep their length."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = wake_at_ms - ?, attempt_at_ms = attempt_at_ms - ?,"
            " tried_at_ms = tried_at_ms - ? WHERE taker = ?",
            (by_ms, by_ms, by_ms, taker),
        )

    def make_due(
        self, taker: int, choice: ParkedChoice, now_ms: int, after: str, limit: int
    ) -> MadeDue:
        """Make parked users due now, of up to ``limit`` in the order of their keys, behind a key.

        A user whose try is under way, and one that is due already, stay as they are.
        """
        if choice.users is None:
            rows = self._db.execute(
                "SELECT user_key FROM users WHERE taker = ? AND user_key > ? AND reason <> ''"
                " ORDER BY user_key LIMIT ?",
                (taker, after, limit),
            )
            keys = [key for (key,) in rows]
        else:
            keys = sorted(user for user in set(choice.users) if user > after)[:limit]
        made = 0
        for key in keys:
            made += self._db.execute(
                "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND reason <> ''"
                " AND wake_at_ms > ? AND (? IS NULL OR reason = ?)",
                (now_ms, taker, key, now_ms, choice.reason, choice.reason),
            ).rowcount
        return MadeDue(made, keys[-1] if len(keys) == limit else "")
