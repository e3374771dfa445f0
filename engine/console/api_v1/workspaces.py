"""The workspaces of the access tokens: attributes, event names, and the budget of calls.

Those of syncs that deliver. A workspace is named by its token: ``HOST-N``, as logs name it with
``#``.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.pages import Page, PageQuery, page_by_name
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.workspace_parts import (
    Attribute,
    WorkspaceToken,
    attribute_of,
    token_named,
    tokens_of,
)
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.delivery.event_names import DAY_MS
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES
from amplitude_intercom.engine.status import GateStatus
from amplitude_intercom.engine.status_reading import gate_status


class WorkspaceFacts(msgspec.Struct, frozen=True):
    """A workspace by one of its access tokens. ``number``: the spool's; None: not known yet."""

    id: str
    syncs: list[str]
    number: int | None
    gate: GateStatus


class Attributes(msgspec.Struct, frozen=True):
    """The attributes of a workspace. ``is_read``: whether its list was read since the start.

    ``missing``: the names that Intercom has refused as unknown.
    """

    items: list[Attribute]
    next: str | None
    is_read: bool
    missing: list[str]


class EventName(msgspec.Struct, frozen=True):
    """An event name that was sent, without case. ``last_day_ms``: the day of the last time."""

    name: str
    last_day_ms: int


class EventNamePage(msgspec.Struct, frozen=True):
    """Event names of a workspace. ``count`` of at most ``limit`` are used."""

    items: list[EventName]
    next: str | None
    count: int
    limit: int


class Budget(msgspec.Struct, frozen=True):
    """The calls of an access token. ``limit``: in any 10 seconds; ``is_guess``: Intercom has not
    named it yet. ``sent``: since the start. ``slots``: calls that may be out at once."""

    limit: float
    is_guess: bool
    sent: int
    in_flight: int
    slots: int
    mean_latency_s: float
    is_paused: bool
    is_ramping: bool


class WorkspacesOfTokens:
    """Asks the gates and workspaces of one engine."""

    def __init__(self, engine: RunningEngine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads

    def operations(self) -> list[Operation]:
        """Return the operations."""
        root, missing = "/workspaces", (ProblemType.NOT_FOUND,)
        one = f"{root}/{{workspace}}"
        return [
            operation("GET", root, self._list, PageQuery, Page[WorkspaceFacts]),
            operation("GET", one, self._workspace, Nothing, WorkspaceFacts, refusals=missing),
            operation(
                "GET",
                f"{one}/attributes",
                self._attributes,
                PageQuery,
                Attributes,
                refusals=missing,
            ),
            operation(
                "GET",
                f"{one}/event-names",
                self._event_names,
                PageQuery,
                EventNamePage,
                refusals=missing,
            ),
            operation("GET", f"{one}/budget", self._budget, Nothing, Budget, refusals=missing),
        ]

    async def _list(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the workspaces that are delivered to, one for each access token."""
        tokens = tokens_of(self._engine)
        names, next_ = page_by_name(tokens, request.path, query)
        return ApiAnswer(Page([_facts(name, tokens[name]) for name in names], next_))

    async def _workspace(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return one workspace, with the state of its calls."""
        return ApiAnswer(_facts(*token_named(self._engine, request)))

    async def _attributes(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the data attributes of a workspace that can be written, as far as the daemon has
        read them."""
        _, token = token_named(self._engine, request)
        known = token.workspace.attributes if token.workspace else None
        listed = {one.name: one for one in (known.listed() if known else None) or ()}
        names, next_ = page_by_name(listed, request.path, query)
        return ApiAnswer(
            Attributes(
                [attribute_of(self._engine, listed[name], token.syncs) for name in names],
                next_,
                is_read=known is not None and known.listed() is not None,
                missing=sorted(known.missing) if known else [],
            )
        )

    async def _event_names(self, request: web.Request, query: PageQuery) -> ApiAnswer:
        """Return the event names that were sent to a workspace, and how many it may have."""
        _, token = token_named(self._engine, request)
        number = token.workspace.number if token.workspace else 0
        days = await self._reads.look(lambda store: store.event_names.of(number))
        names, next_ = page_by_name(days, request.path, query)
        some = [EventName(name, days[name] * DAY_MS) for name in names]
        return ApiAnswer(EventNamePage(some, next_, len(days), MAX_EVENT_TYPES))

    async def _budget(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return how fast calls of an access token may leave now."""
        gate = token_named(self._engine, request)[1].gate
        pace = gate.pace
        return ApiAnswer(
            Budget(
                pace.limit,
                pace.is_guess,
                pace.sent,
                gate.in_flight,
                gate.slots(),
                pace.mean_latency_s,
                pace.is_paused,
                pace.is_ramping,
            )
        )


def _facts(name: str, token: WorkspaceToken) -> WorkspaceFacts:
    number = token.workspace.number if token.workspace else None
    return WorkspaceFacts(name, token.syncs, number, gate_status(token.gate, token.gate.name))
