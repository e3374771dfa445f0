"""Dead letters, for reading: lists, groups, one with its payload.

Rules
=====
1. Groups are those that the spool keeps: no letter is read for them.
2. A list tells how many letters its conditions mean, up to the one that failed last, and the id of
   that. They are counted for a quarter of a second; where that is too short, it is not said.
3. Only one letter alone shows its payload, and none does with ``admin.hide_values``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.pages import (
    Page,
    PageQuery,
    cursor_of,
    number,
    position_of,
)
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, taker_of
from amplitude_intercom.engine.console.api_v1.payloads import Payload, payload_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.requests import MOST_IDS, id_of
from amplitude_intercom.engine.console.api_v1.settings_parts import Access
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.job_requests import end_of_selection
from amplitude_intercom.engine.spool.letters import (
    DeadLetter,
    DeadLetterQuery,
    Id,
    Position,
    TimeMs,
)
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import matching_up_to

MOST_GROUPS: Final = 1_000
"""Groups that can be listed, the largest of a sync."""


class LetterQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of dead letters: all given conditions hold; without one all letters are meant."""

    ids: Annotated[list[Id], msgspec.Meta(max_length=MOST_IDS)] | None = None
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


class LetterFacts(msgspec.Struct, frozen=True):
    """A dead letter without its payload; times in Unix milliseconds."""

    id: int
    reason: str
    status: int
    code: str
    message: str
    request_id: str
    attempts: int
    first_failed_at_ms: int
    last_failed_at_ms: int
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


class LetterGroup(msgspec.Struct, frozen=True):
    """Dead letters of one kind, with the meaning of their reason, and the id of the latest."""

    reason: str
    means: str
    remedy: str
    status: int
    code: str
    event_type: str
    count: int
    first_ms: int
    last_ms: int
    sample_id: int


class Letters:
    """Reads the dead letters of one engine."""

    def __init__(self, engine: RunningEngine, reads: Reads, access: Access) -> None:
        self._engine = engine
        self._reads = reads
        self._access = access

    def operations(self) -> list[Operation]:
        """Return the operations."""
        root, missing = "/syncs/{sync}/dead-letters", (ProblemType.NOT_FOUND,)
        groups = Page[LetterGroup]
        return [
            operation("GET", root, self._list, LetterQuery, LetterPage, refusals=missing),
            operation("GET", f"{root}/groups", self._groups, PageQuery, groups, refusals=missing),
            operation("GET", f"{root}/{{letter}}", self._letter, Nothing, Letter, refusals=missing),
        ]

    async def _list(self, request: web.Request, query: LetterQuery) -> ApiAnswer:
        """Return dead letters of a sync, or of a relay (`relay:NAME`)."""
        name, list_name = taker_of(self._engine, request), query.names(request.path)
        after = position_of(list_name, query.cursor, Position.read)
        wanted = query.wanted()

        def read(store: Store) -> LetterPage:
            taker = store.takers.known_id(name)
            newest = store.letters.newest(taker)
            up_to_id = newest.id if newest else 0
            end = end_of_selection(store, taker, up_to_id)
            letters, last = store.letters.page(taker, wanted, after, query.limit)
            return LetterPage(
                [facts_of(letter) for letter in letters],
                cursor_of(list_name, str(last)) if last else None,
                self._reads.attempt(
                    store, lambda opened: matching_up_to(opened, taker, wanted, end)
                ),
                up_to_id,
            )

        return ApiAnswer(await self._reads.look(read))

    async def _groups(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the groups of a sync's dead letters by reason, status, code and event type, the
        largest first, up to 1,000."""
        name, list_name = taker_of(self._engine, request), query.names(request.path)
        start = position_of(list_name, query.cursor, number)
        groups = await self._reads.look(
            lambda store: store.letters.groups.of(store.takers.known_id(name))
        )
        end = start + query.limit
        some = [_group_of(msgspec.structs.asdict(group)) for group in groups[start:end]]
        return ApiAnswer(Page(some, cursor_of(list_name, str(end)) if len(groups) > end else None))

    async def _letter(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return one dead letter, with its payload as text."""
        name, id_ = taker_of(self._engine, request), id_of(request, "letter")
        hides = self._access.settings.hide_values

        def read(store: Store) -> Letter | None:
            found = store.letters.find(store.takers.known_id(name), DeadLetterQuery(ids=[id_]))
            return _letter_of(found[0], hides_values=hides) if found else None

        letter = await self._reads.look(read)
        if letter is None:
            raise Problem(ProblemType.NOT_FOUND, f"no dead letter of {name} has the id {id_}")
        return ApiAnswer(letter)


def facts_of(letter: DeadLetter) -> LetterFacts:
    """Return a letter without its payload."""
    return LetterFacts(*(getattr(letter, name) for name in LetterFacts.__struct_fields__))


def _letter_of(letter: DeadLetter, *, hides_values: bool) -> Letter:
    payload = None if hides_values else payload_of(letter.raw)
    return Letter(facts_of(letter), *_explained(letter.reason), payload)


def _group_of(group: dict[str, Any]) -> LetterGroup:
    means, remedy = _explained(group["reason"])
    return LetterGroup(**group, means=means, remedy=remedy)


def _explained(reason: str) -> tuple[str, str]:
    """Return the meaning and the remedy of a reason; empty for one that is damaged."""
    try:
        known = DeadReason(reason)
    except ValueError:
        return "", ""
    return known.means, known.remedy
