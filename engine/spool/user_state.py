"""The state of one user in a spool: waiting records, contact and dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import msgspec

from amplitude_intercom.engine.spool.batches import SLOTS, entries_of
from amplitude_intercom.engine.spool.directory import read_known
from amplitude_intercom.engine.spool.known_contacts import ContactKey, Known
from amplitude_intercom.engine.spool.rows import event_type_of
from amplitude_intercom.engine.spool.store import Store

MOST_BATCHES_READ = 1_000
"""Batches that are searched for events of a user, which bounds the time to seconds."""

MOST_TYPES_READ = 1_000
"""Records with an event type that is read."""

MOST_IDS = 20
"""Dead letters that are named."""


class Waiting(msgspec.Struct, frozen=True):
    """A user's waiting records. ``types`` counts the first ``types_of`` of them by event type."""

    records: int = 0
    first_id: int | None = None
    first_accepted_at_ms: int | None = None
    types: dict[str, int] = {}
    types_of: int = 0


class Parked(msgspec.Struct, frozen=True):
    """The parking of a user. ``next_try_at_ms`` is None while a try is under way."""

    reason: str
    failures: int
    since_ms: int
    next_try_at_ms: int | None


class Deferral(msgspec.Struct, frozen=True):
    """The deferral of a user, which is not known to be at fault.

    ``failures`` is its number of failures in a row; 0 if its event's second has not begun yet.
    ``waits_for`` is the endpoint with an open circuit that it waits for, if any.
    """

    until_ms: int
    failures: int
    waits_for: str


class KnownContact(msgspec.Struct, frozen=True):
    """The directory's knowledge of a user's contact, as of ``at_ms``.

    ``contact_id`` is empty until a first write has an answer. ``fields`` has the names of fields
    with a value. ``owner`` is the user into which this one was merged.
    """

    contact_id: str
    fields: list[str]
    at_ms: int
    is_lost: bool = False
    """Whether Intercom said that the contact is missing."""
    owner: str = ""


class UserState(msgspec.Struct, frozen=True):
    """The state of one user. ``complete`` is false if a bound of the search was reached.

    ``dead_letters`` counts by reason; ``dead_letter_ids`` has the latest.
    """

    user: str
    waiting: Waiting
    parked: Parked | None
    deferred: Deferral | None
    contact: KnownContact | None
    dead_letters: dict[str, int]
    dead_letter_ids: list[int]
    complete: bool = True


def state_of_user(
    store: Store, taker: int, user: str, contact: ContactKey | None = None
) -> UserState:
    """Return the state of a taker's user, from a bounded part of the tables.

    ``contact`` is the key of the user's contact.
    """
    waiting, complete = _waiting(store, taker, user)
    reasons = store.db.execute(
        "SELECT reason, count(*) FROM dead_letters WHERE taker = ? AND user_key = ?"
        " GROUP BY reason ORDER BY 2 DESC",
        (taker, user),
    ).fetchall()
    latest = [
        row
        for reason, _ in reasons
        for row in store.db.execute(
            "SELECT last_failed_at_ms, id FROM dead_letters"
            " WHERE taker = ? AND user_key = ? AND reason = ?"
            " ORDER BY last_failed_at_ms DESC, id DESC LIMIT ?",
            (taker, user, reason, MOST_IDS),
        )
    ]
    return UserState(
        user,
        waiting,
        _parked(store, taker, user),
        _deferred(store, taker, user),
        _contact(store, contact),
        dict(reasons),
        [id_ for _, id_ in sorted(latest, reverse=True)[:MOST_IDS]],
        complete=complete,
    )


def nothing_of(user: str) -> UserState:
    """Return the state of a user without a spool."""
    return UserState(user, Waiting(), None, None, None, {}, [])


_Found = tuple[int, int, bytes]
"""A record's id, its time of acceptance, and the event."""


def _waiting(store: Store, taker: int, user: str) -> tuple[Waiting, bool]:
    batches = store.db.execute(
        "SELECT id FROM inbox WHERE taker = ? ORDER BY id LIMIT ?", (taker, MOST_BATCHES_READ + 1)
    ).fetchall()
    looked_at = [id_ for (id_,) in batches[:MOST_BATCHES_READ]]
    found = sorted(
        [
            *_unpacked(store, taker, user, looked_at),
            *(row for id_ in looked_at for row in _packed(store, taker, user, id_)),
        ]
    )
    if not found:
        return Waiting(), len(batches) <= MOST_BATCHES_READ
    types = Counter(event_type_of(raw) or "not readable" for *_, raw in found[:MOST_TYPES_READ])
    read = sum(types.values())
    waiting = Waiting(
        len(found),
        found[0][0],
        found[0][1],
        dict(types.most_common()),
        read,
    )
    return waiting, len(batches) <= MOST_BATCHES_READ and read == len(found)


def _unpacked(store: Store, taker: int, user: str, batches: list[int]) -> Iterator[_Found]:
    """Yield a user's records: those set aside by an index, the others by their batches."""
    raw = "CASE WHEN r.raw IS NULL THEN substr(b.events, r.start + 1, r.length) ELSE r.raw END"
    query = (
        f"SELECT r.id, r.accepted_at_ms, {raw} FROM records r LEFT JOIN inbox b"
        f" ON b.id = r.id / {SLOTS} WHERE r.taker = ? AND r.user_key = ? AND r.set_aside = "
    )
    rows = [*store.db.execute(f"{query} 1", (taker, user))]
    for batch in batches:
        bounds = (batch * SLOTS, (batch + 1) * SLOTS)
        rows += store.db.execute(f"{query} 0 AND r.id >= ? AND r.id < ?", (taker, user, *bounds))
    for id_, at_ms, event in rows:
        yield id_, at_ms, event if isinstance(event, bytes) else b""


def _packed(store: Store, taker: int, user: str, batch: int) -> Iterator[_Found]:
    """Yield a user's events in a packed batch; none of a damaged one."""
    if batch <= store.takers.unpacked_to(taker):
        return
    row = store.db.execute(
        "SELECT accepted_at_ms, entries, events FROM inbox WHERE id = ?", (batch,)
    ).fetchone()
    try:
        at_ms, text, events = row
        start = 0
        for slot, entry in enumerate(islice(entries_of(text.encode()), SLOTS)):
            if entry.user_key == user:
                yield batch * SLOTS + slot, at_ms, events[start : start + entry.length]
            start += entry.length + 1
    except (AttributeError, TypeError, ValueError):
        return


def _deferred(store: Store, taker: int, user: str) -> Deferral | None:
    row = store.db.execute(
        "SELECT wake_at_ms, failures, waits_for FROM users WHERE taker = ? AND user_key = ?"
        " AND reason = '' AND wake_at_ms > 0",
        (taker, user),
    ).fetchone()
    return Deferral(*row) if row else None


def _parked(store: Store, taker: int, user: str) -> Parked | None:
    row = store.db.execute(
        "SELECT reason, failures, since_ms, wake_at_ms FROM users"
        " WHERE taker = ? AND user_key = ? AND reason <> ''",
        (taker, user),
    ).fetchone()
    return Parked(*row) if row else None


def _contact(store: Store, key: ContactKey | None) -> KnownContact | None:
    row = store.db.execute(
        "SELECT known, at_ms FROM contacts WHERE workspace = ? AND field = ? AND value = ?",
        key or ContactKey(0, "", ""),
    ).fetchone()
    if row is None:
        return None
    known = read_known(row[0]) or Known()  # damaged: `spool verify` reports it
    _, theirs = store.contacts.find(key) if key else (key, known)  # after a merge
    fields = sorted(name for name, value in theirs.fields.items() if value is not None)
    return KnownContact(known.contact_id, fields, row[1], known.is_lost, known.owner)
