"""The paths of access: signing in and out, the audit, and the help of each problem."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import SESSION_PATH
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.admin_server import BODY_READ
from amplitude_intercom.engine.console.guard import ALLOWED, FACTS, PEER, session_ids
from amplitude_intercom.engine.console.problems import (
    HELP,
    STATUSES,
    FieldError,
    Problem,
    ProblemType,
)

BODY_TIMEOUT_S: Final = 10.0
MAX_SIGN_IN_BYTES: Final = 16_384
"""Anybody may send one. No header holds a longer token, so a longer one opens nothing."""

AUDIT_TIMEOUT_S: Final = 10.0
MAX_PAGE: Final = 200
USUAL_PAGE: Final = 50


class SignIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to sign in, with one of the tokens."""

    token: str


class AccessApi:
    """The handlers of one admin port's access."""

    def __init__(self, access: AdminAccess) -> None:
        self._access = access

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the paths with their handlers."""
        return [
            web.post(SESSION_PATH, self._sign_in),
            web.get(SESSION_PATH, self._session),
            web.delete(SESSION_PATH, self._sign_out),
            web.get("/api/v1/audit", self._audit),
            web.get(HELP + "{name}", self._help),
        ]

    async def _sign_in(self, request: web.Request) -> web.Response:
        """Begin a session: a token (`{"token": …}`) becomes a cookie. Needs no other token."""
        access, peer, facts = self._access, request[PEER], request[FACTS]
        if not access.rules.has_token:
            raise Problem(ProblemType.CONFLICT, "no token is set: nobody has to sign in")
        given = (await _sign_in_of(request)).token.strip()
        wait_s = access.attempts.wait_s(peer)
        if wait_s > 0:
            await access.audit.note_refused(peer, "too many attempts")
            retry = {"Retry-After": str(math.ceil(wait_s))}
            raise Problem(ProblemType.TOO_MANY_REQUESTS, "too many attempts", headers=retry)
        holder = await access.tokens.find(given)
        if holder is None:
            await access.audit.note_refused(peer, "wrong token")
            raise Problem(ProblemType.UNAUTHORIZED, "this is no token of the admin port")
        self._end_sessions(request)
        cookie, name = access.cookie_name(facts.scheme), access.sessions.open(holder, peer)
        await access.audit.note(holder.credential.who, peer, "signed in")
        response = web.json_response(holder.credential._asdict())
        response.set_cookie(
            cookie,
            name,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=facts.scheme == "https",
        )
        return response

    async def _session(self, request: web.Request) -> web.Response:
        """Return who asks, and whether they may change."""
        return web.json_response(request[ALLOWED]._asdict())

    async def _sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        self._end_sessions(request)
        await self._access.audit.note(request[ALLOWED].who, request[PEER], "signed out")
        response = web.Response(status=204)
        response.del_cookie(self._access.cookie_name(request[FACTS].scheme), path="/")
        return response

    def _end_sessions(self, request: web.Request) -> None:
        for name in session_ids(request, self._access.cookie_name(request[FACTS].scheme)):
            self._access.sessions.end(name)

    async def _audit(self, request: web.Request) -> web.Response:
        """Return what was changed, and who signed in or could not: the newest `limit` entries (200
        at most) with an id under `before`."""
        limit = _number(request, "limit", USUAL_PAGE, MAX_PAGE)
        before = _number(request, "before", None, 2**63 - 1)
        assert limit is not None
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S):
                page = await self._access.audit.page(limit, before)
        except (OSError, TimeoutError):
            raise Problem(
                ProblemType.UNAVAILABLE,
                "the file of the audit cannot be read now",
                headers={"Retry-After": "10"},
            ) from None
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    async def _help(self, request: web.Request) -> web.Response:
        """Return what a problem of the API means, and what to do. Needs no token."""
        try:
            kind = ProblemType(request.match_info["name"])
        except ValueError:
            raise web.HTTPNotFound(text="there is no such problem\n") from None
        text = f"{kind.means} ({STATUSES[kind]} {kind})\n\nWhat to do: {kind.remedy}\n"
        return web.Response(text=text, headers={"Cache-Control": "private, no-cache"})


async def _sign_in_of(request: web.Request) -> SignIn:
    """Return the body.

    Raises:
        Problem: it is none, or does not come.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _bounded_body(request)
        request[BODY_READ]()
        return msgspec.json.decode(body, type=SignIn)
    except TimeoutError:
        raise Problem(ProblemType.TOO_SLOW) from None
    except (aiohttp.ClientPayloadError, web.RequestPayloadError):
        raise Problem(ProblemType.BAD_REQUEST, "not a body as its headers say") from None
    # Neither text quotes the body: a token may be anywhere in one that is wrong.
    except msgspec.ValidationError:
        wanted = FieldError("", "expected an object of one key, `token`, with a text")
        raise Problem(ProblemType.REFUSED_VALUE, errors=[wanted]) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Problem(ProblemType.BAD_REQUEST, "not JSON") from None


async def _bounded_body(request: web.Request) -> bytes:
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_SIGN_IN_BYTES:
            raise Problem(ProblemType.TOO_LARGE, f"more than {MAX_SIGN_IN_BYTES} bytes")
    return body


def _number(request: web.Request, name: str, usual: int | None, most: int) -> int | None:
    """Return a number of the query, from 1.

    Raises:
        Problem: it is none, or too large.
    """
    given = request.query.get(name)
    if given is None:
        return usual
    if not (given.isascii() and given.isdecimal() and len(given) < 20 and 1 <= int(given) <= most):
        raise Problem(ProblemType.BAD_REQUEST, f"{name}: expected a number from 1 to {most}")
    return int(given)
