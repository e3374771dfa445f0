"""Access to the admin port as operations: signing in and out, and the audit."""

from __future__ import annotations

import asyncio
import math
from http.cookies import Morsel
from typing import Annotated, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT, SESSION_PATH
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.pages import USUAL_ROWS, Limit
from amplitude_intercom.engine.console.audit import AuditPage
from amplitude_intercom.engine.console.guard import FACTS, PEER, SENDER, session_ids
from amplitude_intercom.engine.console.problems import Problem, ProblemType, not_now
from amplitude_intercom.engine.spool.letters import MOST

AUDIT_TIMEOUT_S: Final = 10.0
MOST_SIGN_IN_BYTES: Final = 16_384
"""Anybody may sign in. No header holds a longer token, so a longer one opens nothing."""


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to sign in, with one of the tokens."""

    token: str


class Visitor(msgspec.Struct, frozen=True):
    """Who asks, and whether they may change. ``who``: the label of a token, never the token."""

    who: str
    may_change: bool


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of the audit: the newest entries, with ids under ``before``."""

    limit: Limit = USUAL_ROWS
    before: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None


class AccessOperations:
    """The operations of one admin port's access."""

    def __init__(self, access: AdminAccess) -> None:
        self._access = access

    def operations(self) -> list[Operation]:
        """Return the operations."""
        path = SESSION_PATH.removeprefix(API_ROOT)
        return [
            operation(
                "POST",
                path,
                self._sign_in,
                SignIn,
                Visitor,
                refusals=(ProblemType.CONFLICT,),
                most_bytes=MOST_SIGN_IN_BYTES,
                is_secret=True,
            ),
            operation("GET", path, self._session, Nothing, Visitor),
            operation("DELETE", path, self._sign_out, Nothing, None, status=204),
            operation("GET", "/audit", self._audit, AuditQuery, AuditPage),
        ]

    async def _sign_in(self, request: web.Request, asked: SignIn) -> ApiAnswer:
        """Begin a session: a token becomes a cookie. Needs no other token."""
        access, peer = self._access, request[PEER]
        if not access.rules.has_token:
            raise Problem(ProblemType.CONFLICT, "no token is set: nobody has to sign in")
        wait_s = access.attempts.wait_s(peer)
        if wait_s > 0:
            await access.audit.note_refused(peer, "too many attempts")
            retry = {"Retry-After": str(math.ceil(wait_s))}
            raise Problem(ProblemType.TOO_MANY_REQUESTS, "too many attempts", headers=retry)
        holder = await access.tokens.find(asked.token.strip())
        if holder is None:
            await access.audit.note_refused(peer, "wrong token")
            raise Problem(ProblemType.UNAUTHORIZED, "this is no token of the admin port")
        self._end_sessions(request)
        cookie = self._cookie(request, access.sessions.open(holder, peer))
        await access.audit.note(holder.credential.who, peer, "signed in")
        return ApiAnswer(Visitor(*holder.credential), {"Set-Cookie": cookie})

    async def _session(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return who asks, and whether they may change."""
        return ApiAnswer(Visitor(*request[SENDER]))

    async def _sign_out(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """End the session."""
        self._end_sessions(request)
        await self._access.audit.note(request[SENDER].who, request[PEER], "signed out")
        return ApiAnswer(None, {"Set-Cookie": self._cookie(request, None)})

    def _cookie(self, request: web.Request, session: str | None) -> str:
        """Return the cookie of a session; None: the one that ends it in the browser."""
        scheme = request[FACTS].scheme
        name = self._access.cookie_name(scheme)
        cookie: Morsel[str] = Morsel()
        cookie.set(name, session or "", session or "")
        facts = {"path": "/", "httponly": True, "samesite": "Strict"}
        if scheme == "https":  # without it, a browser takes no change of a `__Host-` cookie
            facts["secure"] = True
        if session is None:
            facts |= {"max-age": 0, "expires": "Thu, 01 Jan 1970 00:00:00 GMT"}
        cookie.update(facts)  # type: ignore[arg-type]  # flags are no texts
        return cookie.OutputString()

    def _end_sessions(self, request: web.Request) -> None:
        for name in session_ids(request, self._access.cookie_name(request[FACTS].scheme)):
            self._access.sessions.end(name)

    async def _audit(self, request: web.Request, query: AuditQuery) -> ApiAnswer:
        """Return what was changed, and who signed in or could not, the newest first."""
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S):
                return ApiAnswer(await self._access.audit.page(query.limit, query.before))
        except (OSError, TimeoutError):
            raise not_now("the file of the audit cannot be read now") from None
