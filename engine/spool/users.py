"""Users with waiting records: parked, deferred, or being worked off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from amplitude_intercom.engine.envelope import Kind
from amplitude_intercom.engine.spool.connection import Connection, find_in
from amplitude_intercom.engine.spool.known_contacts import Stranger

# The times of a user that waits after a failure, which is counted.
_FAILED: Final = (
    "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
    " VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
    " wake_at_ms = excluded.wake_at_ms, waits_for = '',"
    " since_ms = CASE WHEN users.failures = 0 THEN excluded.since_ms"
    " ELSE users.since_ms END, failures = users.failures + 1"
)


class Aside(NamedTuple):
    """The reason for which a user's records wait. ``tried_at_ms``: the last 404 of the user."""

    reason: str
    tried_at_ms: int


class ParkedUser(NamedTuple):
    """A parked user, with the cause of its last failure; times in Unix milliseconds.

    ``wake_at_ms``: of its next try; None: that is under way. ``waits_for``: the endpoint that it
    waits for first. ``refusals``: its attempts that got a 404.
    """

    user: str
    wake_at_ms: int | None
    failures: int
    reason: str
    since_ms: int
    waits_for: str
    refusals: int


class WaitingUsers:
    """The table ``users``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.parked_added: Counter[tuple[int, str]] = Counter()
        """Parked users added less those gone, by taker and reason, since the caller last took this
        to count them."""

    def waiting_of(self, taker: int, users: Iterable[str]) -> dict[str, Aside]:
        """Return those of these users that have a row, each with its reason."""
        # Of most takers nobody waits: one look-up instead of a query for each slice of users.
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
        """Return whether a user waits (for a ``reason``), with none of its records in memory."""
        found = self._db.execute(
            "SELECT reason FROM users WHERE taker = ? AND user_key = ? AND wake_at_ms IS NOT NULL",
            (taker, user),
        ).fetchone()
        return found is not None and reason in (None, found[0])

    def any(self, taker: int) -> bool:
        """Return whether any user of a taker has a row."""
        found = self._db.execute("SELECT 1 FROM users WHERE taker = ? LIMIT 1", (taker,))
        return found.fetchone() is not None

    # --- changes --------------------------------------------------------------------------

    def work_off(self, taker: int, user: str) -> None:
        """Have a user's records worked off, a few at a time."""
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)"
            " VALUES (?, ?, NULL, 0, '', 0) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = NULL, waits_for = ''",
            (taker, user),
        )

    def park(self, taker: int, user: str, wake_at_ms: int, reason: str, now_ms: int) -> None:
        """Have a user wait until an instant, after a failure of its own, which is counted."""
        self._not_parked(taker, user)
        self.parked_added[taker, reason] += 1
        self._db.execute(
            f"{_FAILED}, reason = excluded.reason", (taker, user, wake_at_ms, reason, now_ms)
        )

    def defer_after_failure(self, taker: int, user: str, until_ms: int, now_ms: int) -> None:
        """Have a user wait until an instant, after a failure that may not be its own.

        The failure is counted. A parked user stays parked.
        """
        self._db.execute(_FAILED, (taker, user, until_ms, "", now_ms))

    def defer(self, taker: int, user: str, until_ms: int, waits_for: str = "") -> None:
        """Have a user wait until an instant, or from then on for an endpoint.

        This is no failure, and earlier failures stay.
        """
        self._db.execute(
            "INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms, waits_for)"
            " VALUES (?, ?, ?, 0, '', 0, ?) ON CONFLICT (taker, user_key) DO UPDATE SET"
            " wake_at_ms = excluded.wake_at_ms, waits_for = excluded.waits_for",
            (taker, user, until_ms, waits_for),
        )

    def note_unknown(self, taker: int, user: str, unknown: Stranger) -> None:
        """Store the number and the times of a waiting user's 404s."""
        self._db.execute(
            "UPDATE users SET refusals = ?, attempt_at_ms = ?, tried_at_ms = ?"
            " WHERE taker = ? AND user_key = ?",
            (*unknown, taker, user),
        )

    def unknown(self, taker: int, user: str) -> Stranger:
        """Return the number and the times of a user's 404s."""
        row = self._db.execute(
            "SELECT refusals, attempt_at_ms, tried_at_ms FROM users"
            " WHERE taker = ? AND user_key = ?",
            (taker, user),
        ).fetchone()
        return Stranger(*row) if row else Stranger(0, 0, 0)

    def forgive(self, taker: int, user: str) -> None:
        """Forget a user's failures, after a success."""
        self._not_parked(taker, user)
        self._db.execute(
            "UPDATE users SET failures = 0, reason = '', refusals = 0, attempt_at_ms = 0,"
            " tried_at_ms = 0 WHERE taker = ? AND user_key = ?",
            (taker, user),
        )

    def free(self, taker: int, user: str) -> None:
        """Delete a user's row: none of its records waits."""
        self._not_parked(taker, user)
        self._db.execute("DELETE FROM users WHERE taker = ? AND user_key = ?", (taker, user))

    def free_all(self, taker: int) -> None:
        """Delete the rows of all users of a taker: none of its records waits."""
        self._count_off("SELECT reason FROM users WHERE taker = ?", taker)
        self._db.execute("DELETE FROM users WHERE taker = ?", (taker,))

    def free_some(self, taker: int, limit: int) -> int:
        """Delete up to ``limit`` rows of a taker, whose records are queued; return their number."""
        some = "FROM users WHERE taker = ? ORDER BY user_key LIMIT ?"
        self._count_off(f"SELECT reason {some}", taker, limit)
        return self._db.execute(
            f"DELETE FROM users WHERE taker = ? AND user_key IN (SELECT user_key {some})",
            (taker, taker, limit),
        ).rowcount

    def _not_parked(self, taker: int, user: str) -> None:
        self._count_off("SELECT reason FROM users WHERE taker = ? AND user_key = ?", taker, user)

    def _count_off(self, rows: str, taker: int, *others: object) -> None:
        """Count the parked users of these rows no more."""
        reasons = self._db.execute(
            f"SELECT reason, count(*) FROM ({rows}) WHERE reason <> '' GROUP BY reason",
            (taker, *others),
        )
        for reason, count in reasons:
            self.parked_added[taker, reason] -= count

    def wake(self, taker: int, user: str, at_ms: int) -> None:
        """Have a waiting user due at an instant, if it would be later.

        A user that is being worked off is not changed.
        """
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND waits_for = ''",
            (at_ms, taker, user, at_ms),
        )

    def wake_deferred(self, taker: int, user: str, at_ms: int) -> None:
        """Have a deferred user due at an instant, if it would be later.

        A parked user keeps its back-off.
        """
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND waits_for = '' AND reason = ''",
            (at_ms, taker, user, at_ms),
        )

    def wake_for_update(self, taker: int, user: str, now_ms: int) -> None:
        """Wake a user with a 404 if an identify waits, which makes the user known."""
        self._db.execute(
            "UPDATE users SET wake_at_ms = ? WHERE taker = ? AND user_key = ? AND wake_at_ms > ?"
            " AND reason = 'user_not_found' AND waits_for = '' AND EXISTS (SELECT 1 FROM records"
            " WHERE set_aside = 1 AND records.taker = ? AND records.user_key = ? AND kind <> ?)",
            (now_ms, taker, user, now_ms, taker, user, int(Kind.EVENT)),
        )

    # --- reading --------------------------------------------------------------------------

    def failures(self, taker: int, user: str) -> int:
        """Return the number of a user's failures in a row."""
        row = self._db.execute(
            "SELECT failures FROM users WHERE taker = ? AND user_key = ?", (taker, user)
        ).fetchone()
        return row[0] if row else 0

    def parked_since_ms(self, taker: int) -> int | None:
        """Return the time of the earliest failure of a parked user; None: none is parked.

        A user with its next try under way counts too.
        """
        (since_ms,) = self._db.execute(
            "SELECT min(since_ms) FROM users WHERE taker = ? AND reason <> ''", (taker,)
        ).fetchone()
        return None if since_ms is None else int(since_ms)

    def parked_page(self, taker: int, after: str, limit: int) -> list[ParkedUser]:
        """Return up to ``limit`` parked users behind a user's key, in the order of their keys."""
        rows = self._db.execute(
            "SELECT user_key, wake_at_ms, failures, reason, since_ms, waits_for, refusals"
            " FROM users WHERE taker = ? AND user_key > ? AND reason <> ''"
            " ORDER BY user_key LIMIT ?",
            (taker, after, limit),
        )
        return [ParkedUser(*row) for row in rows]
