"""The dead letters of a spool: events that are not sent, with why, until somebody decides."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterQuery, holds, letter_checksum

_COLUMNS = ", ".join(DeadLetter.__struct_fields__)
PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of events that one page may hold, but for the last of them: memory is bounded."""

_HOLES = ", ".join("?" * len(DeadLetter.__struct_fields__))


class DeadLetters:
    """The table ``dead_letters``, inside somebody's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def find(
        self, query: DeadLetterQuery, *, after_id: int = 0, limit: int = 1000
    ) -> list[DeadLetter]:
        """Return the dead letters that a query means, by id.

        One that was damaged on disk has the reason ``corrupt`` from then on.
        """
        where, values = _conditions(query)
        rows = self._db.execute(
            f"SELECT {_COLUMNS}, crc FROM dead_letters WHERE id > ? AND {where}"  # noqa: S608 - columns and placeholders only
            " ORDER BY id LIMIT ?",
            (after_id, *values, limit),
        )
        return [_checked(DeadLetter(*row), crc) for *row, crc in rows]

    def page(
        self, query: DeadLetterQuery, after_id: int, limit: int
    ) -> tuple[list[DeadLetter], bool]:
        """Return up to ``limit`` dead letters behind an id, and whether there are more.

        Fewer where they hold more than ``PAGE_BYTES``; one at least, where there is one.
        """
        where, values = _conditions(query)
        rows = self._db.execute(
            f"SELECT {_COLUMNS}, crc FROM dead_letters WHERE id > ? AND {where}"  # noqa: S608 - columns and placeholders only
            " ORDER BY id LIMIT ?",
            (after_id, *values, limit + 1),
        )
        found: list[DeadLetter] = []
        held_bytes = 0
        for *row, crc in rows:
            if len(found) == limit or held_bytes > PAGE_BYTES:
                return found, True
            found.append(_checked(DeadLetter(*row), crc))
            held_bytes += len(found[-1].raw)
        return found, False

    def count(self, query: DeadLetterQuery) -> int:
        """Return how many dead letters a query means; reads them all, and keeps none."""
        where, values = _conditions(query)
        (count,) = self._db.execute(
            f"SELECT count(*) FROM dead_letters WHERE {where}",  # noqa: S608 - placeholders only
            values,
        ).fetchone()
        return int(count)

    def has(self, id_: int) -> bool:
        """Return whether there is one with this id."""
        found = self._db.execute("SELECT TRUE FROM dead_letters WHERE id = ?", (id_,)).fetchone()
        return found is not None

    def insert(self, letter: DeadLetter) -> None:
        """Keep one more."""
        self._db.execute(
            f"INSERT INTO dead_letters ({_COLUMNS}, crc) VALUES ({_HOLES}, ?)",  # noqa: S608 - constants
            (*msgspec.structs.astuple(letter), _checksum(letter)),
        )

    def remove(self, id_: int) -> str | None:
        """Take one away; return the reason it was kept for, None where it was not there."""
        gone = self._db.execute("DELETE FROM dead_letters WHERE id = ? RETURNING reason", (id_,))
        row = gone.fetchone()
        return None if row is None else str(row[0])


def _checksum(letter: DeadLetter) -> int:
    return letter_checksum(
        letter.id, letter.reason, letter.user_key, letter.accepted_at_ms, letter.raw
    )


def _checked(letter: DeadLetter, crc: Any) -> DeadLetter:
    if holds(crc, _checksum, letter):
        return letter
    raw = letter.raw if isinstance(letter.raw, bytes) else str(letter.raw).encode()
    return msgspec.structs.replace(letter, reason="corrupt", raw=raw)


def _conditions(query: DeadLetterQuery) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    if query.ids:
        parts.append("id IN (SELECT value FROM json_each(?))")
        values.append(msgspec.json.encode(query.ids).decode())
    for condition, value in (
        ("reason = ?", query.reason),
        ("user_key = ?", query.user),
        ("last_failed_at_ms >= ?", query.since_ms),
        ("last_failed_at_ms < ?", query.until_ms),
    ):
        if value is not None:
            parts.append(condition)
            values.append(value)
    return " AND ".join(parts) or "TRUE", values
