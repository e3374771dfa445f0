"""Parked users: listed, and tried again on request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Final, Protocol

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import ApiAnswer, Operation, operation
from amplitude_intercom.engine.console.api_v1.pages import (
    MOST_NAMED,
    Page,
    PageQuery,
    cursor_of,
    position_of,
)
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, stream_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.table_reads import waiting_records
from amplitude_intercom.engine.spool.users import ParkedUser
from amplitude_intercom.engine.spool.wakeups import ParkedChoice

MOST_RECORDS: Final = 1_000
"""Records of a user that are counted."""


MOST_CHARACTERS: Final = 65_536
"""Characters of the users of a page; one user is shown however long its key is."""


class ParkedUserFacts(msgspec.Struct, frozen=True):
    """A parked user, with the cause of its last failure; times in Unix milliseconds.

    ``wake_at_ms``: of its next try; None: that is under way. ``waits_for``: the endpoint that it
    waits for first. ``refusals``: its attempts that got a 404. ``records``: its records on disk, of
    which 1,000 are counted.
    """

    user: str
    wake_at_ms: int | None
    failures: int
    reason: str
    since_ms: int
    waits_for: str
    refusals: int
    records: int


class RetryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which parked users are tried again: all given conditions hold. Without one none is meant,
    but with ``every`` all are."""

    users: Annotated[list[str], msgspec.Meta(max_length=MOST_NAMED)] | None = None
    reason: str | None = None
    every: bool = False

    def choice(self) -> ParkedChoice:
        """Return it as the spool takes it."""
        is_empty = self.users is None and self.reason is None and not self.every
        return ParkedChoice([] if is_empty else self.users, self.reason)


class Retried(msgspec.Struct, frozen=True):
    """The number of parked users that are tried again."""

    users: int


class ParkedKeeper(Protocol):
    """What lets parked users be tried again (``engine.upkeep.Upkeep``)."""

    async def retry_parked(self, sync: str, choice: ParkedChoice) -> int:
        """Try parked users of a sync again soon; return their number."""
        ...


class EngineWithParkedKeeper(RunningEngine, Protocol):
    """An engine with the keeper of its parked users."""

    @property
    def upkeep(self) -> ParkedKeeper:
        """The keeper."""
        ...


class ParkedUsers:
    """Reads the parked users of one engine."""

    def __init__(self, engine: EngineWithParkedKeeper, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads

    def operations(self) -> list[Operation]:
        """Return the operations."""
        path, missing = "/syncs/{sync}/parked", (ProblemType.NOT_FOUND,)
        return [
            operation("GET", path, self._list, PageQuery, Page[ParkedUserFacts], refusals=missing),
            operation(
                "POST", f"{path}/retry", self._retry, RetryRequest, Retried, refusals=missing
            ),
        ]

    async def _list(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the parked users of a sync, in the order of their keys."""
        name, list_name = stream_of(self._engine, request).sync.name, query.list_name(request.path)
        after = position_of(list_name, query.cursor, str)

        def read(store: Store) -> Page[ParkedUserFacts]:
            taker = store.takers.known_id(name)
            found = store.users.parked_page(taker, after, query.limit + 1)
            some = fitting(found[: query.limit])
            next_ = cursor_of(list_name, some[-1].user) if len(found) > len(some) else None
            counts = (waiting_records(store, taker, one.user, MOST_RECORDS) for one in some)
            return Page(
                [ParkedUserFacts(*one, n) for one, n in zip(some, counts, strict=True)], next_
            )

        return ApiAnswer(await self._reads.look(read))

    async def _retry(self, request: web.Request, asked: RetryRequest) -> ApiAnswer:
        """Try parked users of a sync again soon, in the order in which they would be due."""
        name = stream_of(self._engine, request).sync.name
        users = await self._engine.upkeep.retry_parked(name, asked.choice())
        request[CHANGE] = RequestChange("parked users tried again", f"{users} of {name}")
        return ApiAnswer(Retried(users))


def fitting(users: Sequence[ParkedUser]) -> Sequence[ParkedUser]:
    """Return the first of these users whose keys fit into a page, at least one."""
    total = accumulate(len(one.user) for one in users)
    number = sum(1 for length in total if length <= MOST_CHARACTERS)
    return users[: max(1, number)]
