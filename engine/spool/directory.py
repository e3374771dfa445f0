"""The directory of known contacts, for which a known user costs one call, or none."""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.spool.checksums import contact_checksum, holds
from amplitude_intercom.engine.spool.connection import MOST_ROWS, Connection
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known, own_after

DAY_MS: Final = 86_400_000

UNSURE_DAYS: Final = 30
"""Days for which a contact is kept because of a write without an answer."""

MOST_MERGES: Final = 64
"""The longest chain of merges that is followed."""


class ContactDirectory:
    """The table ``contacts``, inside the caller's transaction."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self.added = 0
        """Contacts added less contacts forgotten, since the caller last took this number."""

    def get(self, key: ContactKey) -> Known | None:
        """Return the knowledge of a contact; None without any, or if it is damaged."""
        row = self._db.execute(
            "SELECT known, crc FROM contacts WHERE workspace = ? AND field = ? AND value = ?", key
        ).fetchone()
        if row is None or not holds(row[1], contact_checksum, *key, row[0]):
            return None
        return read_known(row[0])

    def find(self, key: ContactKey) -> tuple[ContactKey, Known]:
        """Return the knowledge of a user's contact, and the key that has it.

        For a user that was merged into another, these are the other's. If the other no longer has
        the contact, they are the user's own, and the contact is lost.
        """
        own = theirs = self.get(key) or Known()
        at, known = key, own
        for _ in range(MOST_MERGES):
            if not known.owner:
                return at, known
            heir = at._replace(value=known.owner)
            theirs = self.get(heir) or Known()
            if not theirs.contact_id:
                return heir, Known(known.contact_id)
            if not theirs.owner and (theirs.is_lost or theirs.contact_id != known.contact_id):
                break  # the contact that they had together is gone
            at, known = heir, theirs
        return key, own_after(own, theirs)

    def use(self, key: ContactKey, now_ms: int) -> None:
        """Note that a contact was asked for today."""
        self._db.execute(
            "UPDATE contacts SET used_day = ?"
            " WHERE workspace = ? AND field = ? AND value = ? AND used_day <> ?",
            (now_ms // DAY_MS, *key, now_ms // DAY_MS),
        )

    def remember(self, key: ContactKey, known: Known, now_ms: int, *, is_new: bool = False) -> None:
        """Store the knowledge of a contact. ``is_new`` says that the directory had none."""
        text = msgspec.json.encode(known).decode()
        unsure = int(bool(known.unsure))
        row = (text, now_ms, now_ms // DAY_MS, unsure, contact_checksum(*key, text), *key)
        is_there = (
            not is_new
            and self._db.execute(
                "UPDATE contacts SET known = ?, at_ms = ?, used_day = ?, unsure = ?, crc = ?"
                " WHERE workspace = ? AND field = ? AND value = ?",
                row,
            ).rowcount
        )
        if not is_there:
            self._db.execute(
                "INSERT INTO contacts"
                " (known, at_ms, used_day, unsure, crc, workspace, field, value)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (workspace, field, value) DO UPDATE"
                " SET known = excluded.known, at_ms = excluded.at_ms, unsure = excluded.unsure,"
                " used_day = excluded.used_day, crc = excluded.crc",  # over a damaged row
                row,
            )
            self.added += 1

    def forget(self, key: ContactKey) -> None:
        """Forget a contact."""
        self.added -= self._db.execute(
            "DELETE FROM contacts WHERE workspace = ? AND field = ? AND value = ?", key
        ).rowcount

    def make_older(self, now_ms: int) -> None:
        """Set the day of contacts to today if a clock ahead of time has stamped them."""
        today = now_ms // DAY_MS
        ahead = "WHERE unsure IN (0, 1) AND used_day > ? LIMIT ?"
        for key in self._keys(ahead, (today, MOST_ROWS)):
            self._db.execute(
                "UPDATE contacts SET used_day = ? WHERE workspace = ? AND field = ? AND value = ?",
                (today, *key),
            )

    def forget_unused(self, limit: int, now_ms: int) -> int:
        """Forget up to ``limit`` least recently used contacts; return their number.

        A contact with a write without an answer stays for ``UNSURE_DAYS``, because that write must
        be repeated unchanged.
        """
        long_ago = now_ms // DAY_MS - UNSURE_DAYS
        found = self._keys("WHERE unsure = 1 AND used_day < ? LIMIT ?", (long_ago, limit))
        left = limit - len(found)
        found += self._keys("WHERE unsure = 0 ORDER BY used_day LIMIT ?", (left,))
        for key in found:
            self.forget(key)
        return len(found)

    def _keys(self, which: str, values: tuple[int, ...]) -> list[ContactKey]:
        query = f"SELECT workspace, field, value FROM contacts {which}"
        return [ContactKey(*key) for key in self._db.execute(query, values).fetchall()]


_decode = msgspec.json.Decoder(Known).decode


def read_known(text: str) -> Known | None:
    """Return the knowledge in a row; None if it is damaged."""
    try:
        return _decode(text)
    except (msgspec.MsgspecError, TypeError):
        return None
