"""Users whose records wait: parked, deferred, or worked off bit by bit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.spool.connection import Connection, find_in


class Users:
    """The table ``users``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def waiting_of(self, taker: int, users: Iterable[str]) -> dict[str, str]:
        """Return which of these users are aside, with the reason."""
        if not self.any(taker):
            return {}
        rows = find_in(
            self._db,
            "SELECT user_key, reason FROM users WHERE taker = ? AND user_key IN",
            list(dict.fromkeys(users)),
            [taker],
        )
        return dict(rows)

    def is_parked(self, taker: int, user: str, reason: str) -> bool:
        """Return whether a user waits for a reason, and nothing of it is under way."""
        found = self._db.execute(
            "SELECT 1 FROM users WHERE taker = ? AND user_key = ? AND reason = ?"
            " AND wake_at_ms IS NOT NULL",
            (taker, user, reason),
        )
        return found.fetchone() is not None

    def any(self, taker: int) -> bool:
        """Return whether any user of a taker is aside."""
        found = self._db.execute("SELECT 1 FROM users WHERE taker = ? LIMIT 1", (taker,))
        return found.fetchone() is not None

    def due(self, taker: int, now_ms: int, limit: int) -> Sequence[tuple[str, str]]:
        """Return parked users whose time has come, and the reason of each."""
        return self._db.execute(
            "SELECT user_key, reason FROM users WHERE taker = ? AND wake_at_ms <= ?"
            " ORDER BY wake_at_ms LIMIT ?",
            (taker, now_ms, limit),
        ).fetchall()

    def next_wake_ms(self, taker: int, halted: Collection[str]) -> int | None:
        """Return when the next parked user is due that is not halted, if any is."""
        rows = self._db.execute(
            "SELECT user_key, wake_at_ms FROM users WHERE taker = ? AND wake_at_ms IS NOT NULL"
            " ORDER BY wake_at_ms LIMIT ?",
            (taker, len(halted) + 1),
        )
        return next((int(wake_ms) for user, wake_ms in rows if user not in halted), None)

    def set_aside(
        self, taker: int, user: str, wake_at_ms: int | None, failures: int, reason: str, now_ms: int
    ) -> None:
        """Let a user wait until an instant, or (None) be worked off; adds to its failures."""
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms, reason = excluded.reason,"
            " since_ms = CASE WHEN users.failures = 0 THEN excluded.since_ms"
            " ELSE users.since_ms END, failures = users.failures + excluded.failures",
            (taker, user, wake_at_ms, failures, reason, now_ms),
        )

    def defer(self, taker: int, user: str, until_ms: int, now_ms: int) -> None:
        """Let a user wait until an instant: no failure, and it forgives none."""
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, ?, 0, '', ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms",
            (taker, user, until_ms, now_ms),
        )

    def work_off(self, taker: int, user: str) -> None:
        """Let a user that was due go on, bit by bit."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = NULL WHERE taker = ? AND user_key = ?", (taker, user)
        )

    def forgive(self, taker: int, user: str) -> None:
        """Forget a user's failures: a call of it has succeeded."""
        self._db.execute(
            "UPDATE users SET failures = 0, reason = '' WHERE taker = ? AND user_key = ?",
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

    def wake(self, taker: int, user: str, now_ms: int) -> None:
        """Make a parked user due; one that is being worked off stays so."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?",
            (now_ms, taker, user, now_ms),
        )

    def wake_earlier(self, taker: int, by_ms: int) -> None:
        """Follow a clock that was set back: parked users wait as long as they were meant to."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = wake_at_ms - ? WHERE taker = ?", (by_ms, taker)
        )

    def hasten(self, taker: int, user: str, now_ms: int) -> None:
        """Wake a user whom Intercom did not know, if an identify that makes it known waits."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND reason = 'user_not_found' AND EXISTS (SELECT 1 FROM records WHERE"
            " set_aside = 1 AND records.taker = ? AND records.user_key = ? AND kind <> ?)",
            (now_ms, taker, user, now_ms, taker, user, int(Kind.EVENT)),
        )

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
