"""Dead letters, for reading: lists, groups, one with its payload.

Groups are those that the spool keeps: no letter is read for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.letter_values import (
    Letter,
    LetterPage,
    LetterQuery,
    explained,
    read_letter,
    read_page,
)
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
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.requests import id_of
from amplitude_intercom.engine.console.api_v1.settings_parts import Access
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.spool.store import Store

MOST_GROUPS: Final = 1_000
"""Groups that can be listed, the largest of a sync."""


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
        name = taker_of(self._engine, request)
        hides = self._access.settings.hide_values

        def read(store: Store) -> LetterPage:
            def count(work: Callable[[Store], int]) -> int | None:
                return self._reads.attempt(store, work)

            return read_page(store, name, request.path, query, count, hides_values=hides)

        return ApiAnswer(await self._reads.look(read))

    async def _groups(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the groups of a sync's dead letters by reason, status, code and event type, the
        largest first, up to 1,000."""
        name, list_name = taker_of(self._engine, request), query.list_name(request.path)
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

        letter = await self._reads.look(
            lambda store: read_letter(store, name, id_, hides_values=hides)
        )
        if letter is None:
            raise Problem(ProblemType.NOT_FOUND, f"no dead letter of {name} has the id {id_}")
        return ApiAnswer(letter)


def _group_of(group: dict[str, Any]) -> LetterGroup:
    means, remedy = explained(group["reason"])
    return LetterGroup(**group, means=means, remedy=remedy)
