"""People: the state of one user of a sync."""

from __future__ import annotations

from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, stream_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.user_state import UserState, state_of_user
from amplitude_intercom.engine.token_facts import contact_key


class People:
    """Reads the users of one engine."""

    def __init__(self, engine: RunningEngine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads

    def operations(self) -> list[Operation]:
        """Return the operations."""
        path, missing = "/syncs/{sync}/people/{key}", (ProblemType.NOT_FOUND,)
        return [operation("GET", path, self._person, Nothing, UserState, refusals=missing)]

    async def _person(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return the state of one user: its records, contact and dead letters."""
        stream = stream_of(self._engine, request)
        taker, key = stream.spool.taker, request.match_info["key"]

        def read(store: Store) -> UserState:
            return state_of_user(store, taker, key, contact_key(store, stream.sync, key))

        return ApiAnswer(await self._reads.look(read))
