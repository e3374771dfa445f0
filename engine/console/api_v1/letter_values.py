"""Dead letters as values of the API, read from a spool: pages of them, and one with its payload.

Commands that read the files make the same values.

Rules
=====
1. A page tells how many letters its conditions mean, up to the one that failed last, and the id of
   that. Where the count takes too long, it is not said.
2. Only one letter alone shows its payload. Where values are hidden none does, and no message: it
   may quote a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from amplitude_intercom.engine.console.api_v1.pages import (
    MOST_NAMED,
    PageQuery,
    cursor_of,
    position_of,
)
from amplitude_intercom.engine.console.api_v1.payloads import Payload, payload_of
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.job_requests import end_of_selection
from amplitude_intercom.engine.spool.letters import (
    DeadLetter,
    DeadLetterQuery,
    FailedEvent,
    Id,
    Position,
    TimeMs,
)
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import matching_up_to

Counts = Callable[[Callable[[Store], int]], int | None]
"""Counts in a store, or returns None where that takes too long."""


class LetterQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of dead letters: all given conditions hold; without one all letters are meant."""

    ids: Annotated[list[Id], msgspec.Meta(max_length=MOST_NAMED)] | None = None
    reason: DeadReason | None = None
    user: str | None = None
    since_ms: TimeMs | None = None
    until_ms: TimeMs | None = None
    status: Id | None = None
    code: str | None = None
    event_type: str | None = None

    def wanted(self) -> DeadLetterQuery:
        """Return the conditions as the spool takes them."""
        conditions = msgspec.structs.asdict(self)
        return DeadLetterQuery(
            **{k: v for k, v in conditions.items() if k not in PageQuery.__struct_fields__},
            every=True,
        )


class LetterFacts(FailedEvent, frozen=True):
    """A dead letter without its payload; times in Unix milliseconds."""

    accepted_at_ms: int
    user_key: str
    event_type: str
    origin: str
    line: int | None


class Letter(msgspec.Struct, frozen=True):
    """A dead letter. ``payload``: the event as it came; None: values are hidden."""

    facts: LetterFacts
    means: str
    remedy: str
    payload: Payload | None


class LetterPage(msgspec.Struct, frozen=True):
    """Dead letters, in the order of their last failure.

    ``up_to_id``: of the sync's letter that failed last; 0: there is none. ``matching``: how many
    the conditions mean up to that one; None: they could not be counted in time.
    """

    items: list[LetterFacts]
    next: str | None
    matching: int | None
    up_to_id: int


def read_page(
    store: Store,
    taker: str,
    path: str,
    query: LetterQuery,
    counts: Counts,
    *,
    hides_values: bool,
) -> LetterPage:
    """Return a page of a taker's dead letters. ``path``: of its list, which cursors name.

    Raises:
        Problem: the cursor is of another list.
    """
    list_name, wanted, number = query.list_name(path), query.wanted(), store.takers.known_id(taker)
    after = position_of(list_name, query.cursor, Position.read)
    newest = store.letters.newest(number)
    up_to_id = newest.id if newest else 0
    end = end_of_selection(store, number, up_to_id)
    letters, last = store.letters.page(number, wanted, after, query.limit)
    return LetterPage(
        [_facts_of(letter, hides_values=hides_values) for letter in letters],
        cursor_of(list_name, str(last)) if last else None,
        counts(lambda opened: matching_up_to(opened, number, wanted, end)),
        up_to_id,
    )


def read_letter(store: Store, taker: str, id_: int, *, hides_values: bool) -> Letter | None:
    """Return one dead letter with its payload; None: there is none of this id."""
    found = store.letters.find(store.takers.known_id(taker), DeadLetterQuery(ids=[id_]))
    if not found:
        return None
    payload = None if hides_values else payload_of(found[0].raw)
    facts = _facts_of(found[0], hides_values=hides_values)
    return Letter(facts, *explained(found[0].reason), payload)


def _facts_of(letter: DeadLetter, *, hides_values: bool) -> LetterFacts:
    facts = LetterFacts(*(getattr(letter, name) for name in LetterFacts.__struct_fields__))
    return msgspec.structs.replace(facts, message="") if hides_values else facts


def explained(reason: str) -> tuple[str, str]:
    """Return the meaning and the remedy of a reason; empty for one that is damaged."""
    try:
        known = DeadReason(reason)
    except ValueError:
        return "", ""
    return known.means, known.remedy
