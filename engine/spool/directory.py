"""The directory of known contacts: so that a known user costs one call, or none."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from amplitude_intercom.engine.spool.connection import MOST_ROWS, Connection
from amplitude_intercom.engine.spool.rows import Contact, contact_checksum, holds

DAY_MS: Final = 86_400_000


class ContactDirectory:
    """The table ``contacts``, inside somebody's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.added = 0
        """Contacts that came, less those that went, since somebody took the number."""

    def get(self, taker: int, user: str) -> Contact | None:
        """Return what is known of a user's contact; what is damaged, Intercom knows better."""
        row = self._db.execute(
            "SELECT contact_id, properties, written, applied_id, complete, crc FROM contacts"
            " WHERE taker = ? AND user_key = ?",
            (taker, user),
        ).fetchone()
        if row is None:
            return None
        contact_id, properties, written, applied_id, complete, crc = row
        if not holds(crc, contact_checksum, user, contact_id, properties, written):
            return None
        try:
            return Contact(
                contact_id, _fields(properties), _fields(written), applied_id, bool(complete)
            )
        except msgspec.DecodeError:
            return None

    def use(self, taker: int, user: str, now_ms: int) -> Contact | None:
        """Return what is known of a user's contact, and keep for a day that it was asked for."""
        self._db.execute(
            "UPDATE contacts SET used_day = ? WHERE taker = ? AND user_key = ? AND used_day <> ?",
            (now_ms // DAY_MS, taker, user, now_ms // DAY_MS),
        )
        return self.get(taker, user)

    def remember(self, taker: int, user: str, contact: Contact, now_ms: int) -> None:
        """Keep what is known of a user's contact."""
        self.added -= self._delete(taker, user)
        properties = msgspec.json.encode(contact.properties).decode()
        written = msgspec.json.encode(contact.written).decode()
        self._db.execute(
            "INSERT INTO contacts (taker, user_key, contact_id, properties, written, applied_id,"
            " complete, at_ms, used_day, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                taker,
                user,
                contact.contact_id,
                properties,
                written,
                contact.applied_id,
                int(contact.complete),
                now_ms,
                now_ms // DAY_MS,
                contact_checksum(user, contact.contact_id, properties, written),
            ),
        )
        self.added += 1

    def forget(self, taker: int, user: str) -> None:
        """Drop a contact that is no longer what it was."""
        self.added -= self._delete(taker, user)

    def _delete(self, taker: int, user: str) -> int:
        return self._db.execute(
            "DELETE FROM contacts WHERE taker = ? AND user_key = ?", (taker, user)
        ).rowcount

    def forget_all(self, taker: int, limit: int) -> int:
        """Drop up to ``limit`` contacts of a taker; return how many there were."""
        return self._forget(
            "SELECT taker, user_key FROM contacts WHERE taker = ? LIMIT ?", (taker, limit)
        )

    def make_older(self, now_ms: int) -> None:
        """Say of contacts that a clock ahead of its time has stamped that they were used today."""
        today = now_ms // DAY_MS
        for taker, user in self._db.execute(
            "SELECT taker, user_key FROM contacts WHERE used_day > ? LIMIT ?", (today, MOST_ROWS)
        ).fetchall():
            self._db.execute(
                "UPDATE contacts SET used_day = ? WHERE taker = ? AND user_key = ?",
                (today, taker, user),
            )

    def forget_unused(self, limit: int) -> int:
        """Drop those of all contacts that were asked for least recently."""
        return self._forget(
            "SELECT taker, user_key FROM contacts ORDER BY used_day LIMIT ?", (limit,)
        )

    def _forget(self, query: str, values: tuple[int, ...]) -> int:
        found = self._db.execute(query, values).fetchall()
        gone = sum(self._delete(taker, user) for taker, user in found)
        self.added -= gone
        return gone


def _fields(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])
