"""What a spool knows of one user: records that wait, its contact, its dead letters."""

from __future__ import annotations

import sqlite3
from collections import Counter

import msgspec

from amplitude_intercom.transports.amplitude import decode_types

MOST_ROWS_READ = 500_000
"""Rows of a table that are looked through, as users are not indexed: it has to end in seconds."""

MOST_TYPES_READ = 1_000
"""Records whose event type is read."""

MOST_IDS = 20


class Waiting(msgspec.Struct, frozen=True):
    """Records that wait. ``types``: of the first ``types_of``, up to ``MOST_TYPES_READ``.

    ``second_at_ms``: when the second begins that the next event was given, where it waits for that.
    """

    records: int = 0
    first_id: int | None = None
    first_accepted_at_ms: int | None = None
    types: dict[str, int] = {}
    second_at_ms: int | None = None
    types_of: int = 0


class Parked(msgspec.Struct, frozen=True):
    """Why and until when a user waits. ``next_try_at_ms`` None: it is being tried now."""

    reason: str
    failures: int
    since_ms: int
    next_try_at_ms: int | None


class KnownContact(msgspec.Struct, frozen=True):
    """What is remembered of a user's contact: names alone, and when it was written last."""

    contact_id: str
    fields: list[str]
    at_ms: int


class UserState(msgspec.Struct, frozen=True):
    """What a spool knows of one user. ``complete``: all of it was looked through and counted.

    ``dead_letters`` counts by reason; ``dead_letter_ids`` are the latest of them.
    """

    user: str
    waiting: Waiting
    parked: Parked | None
    contact: KnownContact | None
    dead_letters: dict[str, int]
    dead_letter_ids: list[int]
    complete: bool = True


def state_of_user(db: sqlite3.Connection, user: str) -> UserState:
    """Return what is known of a user, by its key."""
    waiting, all_records = _waiting(db, user)
    letters, all_letters = _look_through(
        db, "SELECT id, reason, user_key FROM dead_letters ORDER BY id DESC", user
    )
    return UserState(
        user,
        waiting,
        _parked(db, user),
        _contact(db, user),
        dict(Counter(reason for _, reason in letters).most_common()),
        [id_ for id_, _ in letters[:MOST_IDS]],
        complete=all_records and all_letters,
    )


def nothing_of(user: str) -> UserState:
    """Return what is known where there is no spool yet."""
    return UserState(user, Waiting(), None, None, {}, [])


def _look_through(
    db: sqlite3.Connection, rows: str, user: str
) -> tuple[list[tuple[int, str]], bool]:
    """Return the first two columns of this user's rows, and whether all rows were looked at."""
    found = db.execute(
        f"SELECT * FROM ({rows} LIMIT ?) WHERE user_key = ?",  # noqa: S608 - constants
        (MOST_ROWS_READ, user),
    ).fetchall()
    table = "dead_letters" if "dead_letters" in rows else "records"
    beyond = db.execute(
        f"SELECT TRUE FROM {table} LIMIT 1 OFFSET ?",  # noqa: S608 - constants
        (MOST_ROWS_READ,),
    ).fetchone()
    return [(id_, value) for id_, value, _ in found], beyond is None


def _waiting(db: sqlite3.Connection, user: str) -> tuple[Waiting, bool]:
    queued, complete = _look_through(
        db, "SELECT id, accepted_at_ms, user_key FROM records WHERE set_aside = 0 ORDER BY id", user
    )
    aside = db.execute(
        "SELECT id FROM records WHERE set_aside = 1 AND user_key = ? ORDER BY id", (user,)
    ).fetchall()
    ids = sorted([id_ for id_, _ in queued] + [id_ for (id_,) in aside])
    if not ids:
        return Waiting(), complete
    (first_ms,) = db.execute(
        "SELECT accepted_at_ms FROM records WHERE id = ?", (ids[0],)
    ).fetchone()
    raws = [_raw(db, id_) for id_ in ids[:MOST_TYPES_READ]]
    types = Counter(_type(raw) for raw in raws)
    second_ms = _second(db, user)
    counts = dict(types.most_common())
    found = Waiting(len(ids), ids[0], first_ms, counts, second_ms, len(raws))
    return found, complete and len(raws) == len(ids)


def _second(db: sqlite3.Connection, user: str) -> int | None:
    row = db.execute(
        "SELECT wake_at_ms FROM users_aside WHERE user_key = ? AND reason = '' AND wake_at_ms > 0",
        (user,),
    ).fetchone()
    return row[0] if row else None


def _raw(db: sqlite3.Connection, id_: int) -> bytes:
    (raw,) = db.execute("SELECT raw FROM records WHERE id = ?", (id_,)).fetchone()
    return raw if isinstance(raw, bytes) else b""


def _type(raw: bytes) -> str:
    return (decode_types([raw]) or [None])[0] or "not readable"


def _parked(db: sqlite3.Connection, user: str) -> Parked | None:
    row = db.execute(
        "SELECT reason, failures, since_ms, wake_at_ms FROM users_aside"
        " WHERE user_key = ? AND reason <> ''",
        (user,),
    ).fetchone()
    return Parked(*row) if row else None


def _contact(db: sqlite3.Connection, user: str) -> KnownContact | None:
    row = db.execute(
        "SELECT contact_id, written, at_ms FROM contacts WHERE user_key = ?", (user,)
    ).fetchone()
    if row is None:
        return None
    try:
        fields = msgspec.json.decode(row[1], type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        fields = {}  # damaged: ``spool verify`` says so
    return KnownContact(row[0], sorted(fields), row[2])
