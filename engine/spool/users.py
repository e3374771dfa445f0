"""Users whose records wait: parked, deferred, or worked off bit by bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.spool.connection import Connection, find_in
from amplitude_intercom.engine.spool.contract import Stranger

_IS = {True: "<>", False: "="}
"""How the reason of users that are parked, or not, compares to an empty one."""


class Due(NamedTuple):
    """A user whose time has come. ``waited_for``: the endpoint that it waited for, if it did."""

    user: str
    reason: str
    failures: int
    waited_for: str


class Aside(NamedTuple):
    """Why a user's records wait. ``tried_at_ms``: when it was found to be unknown last."""

    reason: str
    tried_at_ms: int


class Users:
    """The table ``users``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def waiting_of(self, taker: int, users: Iterable[str]) -> dict[str, Aside]:
        """Return which of these users are aside, and why."""
        if not self.any(taker):
            return {}
        rows = find_in(
            self._db,
            "SELECT user_key, reason, tried_at_ms FROM users WHERE taker = ? AND user_key IN",
            list(dict.fromkeys(users)),
            [taker],
        )
        return {user: Aside(*aside) for user, *aside in rows}

    def waits(self, taker: int, user: str, reason: str | None = None) -> bool:
        """Return whether a user waits (for a reason), so that nothing of it is in memory."""
        found = self._db.execute(
            "SELECT reason FROM users WHERE taker = ? AND user_key = ? AND wake_at_ms IS NOT NULL",
            (taker, user),
        ).fetchone()
        return found is not None and reason in (None, found[0])

    def any(self, taker: int) -> bool:
        """Return whether any user of a taker is aside."""
        found = self._db.execute("SELECT 1 FROM users WHERE taker = ? LIMIT 1", (taker,))
        return found.fetchone() is not None

    # --- whose time has come --------------------------------------------------------------

    def due(self, taker: int, now_ms: int, limit: int, *, parked: bool) -> list[Due]:
        """Return ``parked`` or deferred users whose time has come, the first of them first."""
        rows = self._db.execute(
            "SELECT user_key, reason, failures, '' FROM users WHERE taker = ? AND wake_at_ms <= ?"
            f" AND waits_for = '' AND reason {_IS[parked]} '' ORDER BY wake_at_ms LIMIT ?",
            (taker, now_ms, limit),
        )
        return [Due(*row) for row in rows]

    def awaited(self, taker: int) -> list[str]:
        """Return the endpoints that users wait for; asks the index once for each of them."""
        found: list[str] = []
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
        """Return users that wait for an endpoint, the first of them first."""
        rows = self._db.execute(
            "SELECT user_key, reason, failures, waits_for FROM users WHERE taker = ?"
            " AND waits_for = ? AND waits_for <> '' ORDER BY wake_at_ms LIMIT ?",
            (taker, endpoint, limit),
        )
        return [Due(*row) for row in rows]

    def let_parked_go(self, taker: int, endpoint: str, limit: int) -> None:
        """Let parked users wait for no endpoint any more, but for their own time."""
        self._db.execute(
            "UPDATE users SET waits_for = '' WHERE taker = ? AND user_key IN"
            " (SELECT user_key FROM users WHERE taker = ? AND waits_for = ? AND waits_for <> ''"
            " AND reason <> '' LIMIT ?)",
            (taker, taker, endpoint, limit),
        )

    def next_wake_ms(self, taker: int, *, parked: bool) -> int | None:
        """Return when the next ``parked`` or deferred user is due, if there is any."""
        row = self._db.execute(
            "SELECT wake_at_ms FROM users WHERE taker = ? AND wake_at_ms IS NOT NULL"
            f" AND waits_for = '' AND reason {_IS[parked]} '' ORDER BY wake_at_ms LIMIT 1",
            (taker,),
        ).fetchone()
        return None if row is None else int(row[0])

    # --- how they wait --------------------------------------------------------------------

    def work_off(self, taker: int, user: str) -> None:
        """Let a user go on bit by bit."""
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, NULL, 0, '', 0) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = NULL, waits_for = ''",
            (taker, user),
        )

    def park(self, taker: int, user: str, wake_at_ms: int, reason: str, now_ms: int) -> None:
        """Let a user wait until an instant, after a failure, which is counted.

        Without a ``reason``, as it is not the user's fault as far as one knows, it is deferred; one
        that was parked stays so.
        """
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms, waits_for = '', reason ="
            " CASE WHEN excluded.reason = '' THEN users.reason ELSE excluded.reason END,"
            " since_ms = CASE WHEN users.failures = 0 THEN excluded.since_ms"
            " ELSE users.since_ms END, failures = users.failures + 1",
            (taker, user, wake_at_ms, reason, now_ms),
        )

    def defer(self, taker: int, user: str, until_ms: int, waits_for: str = "") -> None:
        """Let a user wait until an instant, or from it on for an endpoint: no failure, and it
        forgives none."""
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms, waits_for)"
            " VALUES (?, ?, ?, 0, '', 0, ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms, waits_for = excluded.waits_for",
            (taker, user, until_ms, waits_for),
        )

    def note_unknown(self, taker: int, user: str, unknown: Stranger) -> None:
        """Keep how often, and when, Intercom has said that it does not know a user that waits."""
        self._db.execute(
            "UPDATE users SET refusals = ?, attempt_at_ms = ?, tried_at_ms = ?"
            " WHERE taker = ? AND user_key = ?",
            (*unknown, taker, user),
        )

    def unknown(self, taker: int, user: str) -> Stranger:
        """Return how often, and when, Intercom has said that it does not know a user."""
        row = self._db.execute(
            "SELECT refusals, attempt_at_ms, tried_at_ms FROM users"
            " WHERE taker = ? AND user_key = ?",
            (taker, user),
        ).fetchone()
        return Stranger(*row) if row else Stranger(0, 0, 0)

    def forgive(self, taker: int, user: str) -> None:
        """Forget a user's failures: a call of it has succeeded."""
        self._db.execute(
            "UPDATE users SET failures = 0, reason = '', refusals = 0, attempt_at_ms = 0,"
            " tried_at_ms = 0 WHERE taker = ? AND user_key = ?",
            (taker, user),
        )

    def free(self, taker: int, user: str) -> None:
        """Let a user go: nothing of it waits."""
        self._db.execute("DELETE FROM users WHERE taker = ? AND user_key = ?", (taker, user))

    def free_all(self, taker: int) -> None:
        """Let all users of a taker go: nothing of it waits."""
        self._db.execute("DELETE FROM users WHERE taker = ?", (taker,))

    def free_some(self, taker: int, limit: int) -> int:
        """Let some users of a taker go, for their records are queued again; return how many."""
        return self._db.execute(
            "DELETE FROM users WHERE taker = ? AND user_key IN"
            " (SELECT user_key FROM users WHERE taker = ? LIMIT ?)",
            (taker, taker, limit),
        ).rowcount

    def wake(self, taker: int, user: str, at_ms: int) -> None:
        """Let a parked user be due at an instant, if it would be later; one that is being worked
        off stays so."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND waits_for = ''",
            (at_ms, taker, user, at_ms),
        )

    def wake_deferred(self, taker: int, user: str, at_ms: int) -> None:
        """Let a deferred user be due at an instant, if it would be later; a parked one keeps its
        back-off."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND waits_for = '' AND reason = ''",
            (at_ms, taker, user, at_ms),
        )

    def wake_earlier(self, taker: int, by_ms: int) -> None:
        """Follow a clock that was set back: parked users wait as long as they were meant to."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = wake_at_ms - ?, attempt_at_ms = attempt_at_ms - ?,"
            " tried_at_ms = tried_at_ms - ? WHERE taker = ?",
            (by_ms, by_ms, by_ms, taker),
        )

    def hasten(self, taker: int, user: str, now_ms: int) -> None:
        """Wake a user whom Intercom did not know, if an identify that makes it known waits."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND reason = 'user_not_found' AND waits_for = '' AND EXISTS (SELECT 1 FROM records"
            " WHERE set_aside = 1 AND records.taker = ? AND records.user_key = ? AND kind <> ?)",
            (now_ms, taker, user, now_ms, taker, user, int(Kind.EVENT)),
        )

    # --- looking at it --------------------------------------------------------------------

    def failures(self, taker: int, user: str) -> int:
        """Return how often in a row this user's calls have failed."""
        row = self._db.execute(
            "SELECT failures FROM users WHERE taker = ? AND user_key = ?", (taker, user)
        ).fetchone()
        return row[0] if row else 0

    def parked(self, taker: int) -> dict[str, tuple[int, int]]:
        """Return how many users are parked by reason, and when the first of them failed first.

        One whose next try is out at this moment counts too.
        """
        rows = self._db.execute(
            "SELECT reason, count(*), min(since_ms) FROM users WHERE taker = ? AND reason <> ''"
            " GROUP BY reason",
            (taker,),
        )
        return {reason: (count, since_ms) for reason, count, since_ms in rows}
