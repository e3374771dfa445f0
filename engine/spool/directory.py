"""The directory of known contacts: so that a known user costs one call, or none."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.rows import Contact, contact_checksum, holds


class ContactDirectory:
    """The table ``contacts``, inside somebody's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def get(self, user: str) -> Contact | None:
        """Return what is known of a user's contact; what is damaged, Intercom knows better."""
        row = self._db.execute(
            "SELECT contact_id, properties, written, applied_id, complete, crc FROM contacts"
            " WHERE user_key = ?",
            (user,),
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
            return None  # damaged before there were checksums

    def remember(self, user: str, contact: Contact, now_ms: int) -> None:
        """Keep what is known of a user's contact."""
        properties = msgspec.json.encode(contact.properties).decode()
        written = msgspec.json.encode(contact.written).decode()
        self._db.execute(
            "INSERT OR REPLACE INTO contacts"
            " (user_key, contact_id, properties, written, applied_id, complete, at_ms, crc)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                user,
                contact.contact_id,
                properties,
                written,
                contact.applied_id,
                contact.complete,
                now_ms,
                contact_checksum(user, contact.contact_id, properties, written),
            ),
        )

    def forget(self, user: str) -> None:
        """Drop a contact that is no longer what it was."""
        self._db.execute("DELETE FROM contacts WHERE user_key = ?", (user,))

    def forget_all(self) -> None:
        """Start a new directory: it was another workspace's, or keyed in another way."""
        self._db.execute("DELETE FROM contacts")


def _fields(text: str) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any])
