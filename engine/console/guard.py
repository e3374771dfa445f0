"""The guard before every handler of the admin port: requests to facts, refusals to answers.

What is decided stands in ``access``; here is what HTTP has of it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import (
    API_ROOT,
    OPEN_PATHS,
    Credential,
    RequestFacts,
    decide,
)
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.problems import CONTENT_TYPE, Problem, ProblemType, of_status
from amplitude_intercom.engine.log_lines import printable
from amplitude_intercom.transports.http_server import client_address

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types console",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer."""

_ONCE = ("Host", "Origin", "Sec-Fetch-Site", "Authorization")
"""Headers that a request has once: of two, a proxy may have looked at the other one."""

_MAX_COOKIES = 4
"""Cookies of one name that are looked at: another port of the host may have set some as well."""


class RequestChange(msgspec.Struct, frozen=True):
    """What a handler has changed, for the audit. ``versions``: as ``before`` and ``after``."""

    action: str
    what: str
    versions: dict[str, str] = {}


FACTS: Final[web.RequestKey[RequestFacts]] = web.RequestKey("facts")
SENDER: Final[web.RequestKey[Credential]] = web.RequestKey("sender")
"""Whoever sends the request, and whether they may change."""

PEER: Final[web.RequestKey[str]] = web.RequestKey("peer")
"""The client's address."""

CHANGE: Final[web.RequestKey[RequestChange | None]] = web.RequestKey("change")
"""A handler may set this, to say in the audit more than its path says; None: nothing at all."""


class Guard:
    """Admits requests to one admin port."""

    def __init__(self, access: AdminAccess) -> None:
        self._access = access

    async def admit(self, request: web.Request) -> None:
        """Note in a request who sends it.

        Raises:
            Problem: it is refused.
        """
        access = self._access
        if any(len(request.headers.getall(name, ())) > 1 for name in _ONCE):
            raise Problem(ProblemType.BAD_REQUEST, f"one of {', '.join(_ONCE)} is there twice")
        request[PEER] = client_address(request, access.settings.ip_header)
        request[FACTS] = facts = await self._facts(request)
        decided = decide(facts, access.rules)
        if isinstance(decided, Problem):
            raise decided
        request[SENDER] = decided

    async def note_change(self, request: web.Request, response: web.StreamResponse) -> None:
        """Write a change into the audit, once it is done."""
        if not request[FACTS].changes or response.status >= 400:
            return
        usual = RequestChange(f"{request.method} {_route(request)}", request[FACTS].path)
        change = request.get(CHANGE, usual)
        if change is None:
            return
        await self._access.audit.note(
            request[SENDER].who,
            request[PEER],
            change.action,
            change.what,
            versions=change.versions,
        )

    async def _facts(self, request: web.Request) -> RequestFacts:
        headers, scheme = request.headers, scheme_of(request, self._access.settings.scheme_header)
        path = request.rel_url.path_safe  # as the router has it: decoded but for `%2F`
        kind, _, given = headers.get("Authorization", "").partition(" ")
        is_bearer = kind.lower() == "bearer"
        bearer = session = None
        if path not in OPEN_PATHS and self._access.rules.has_token:
            if is_bearer:
                holder = await self._access.tokens.find(given.strip())
                bearer = holder.credential if holder else None
            session = self._session(request, scheme)
        return RequestFacts(
            method=request.method,
            path=path,
            host=headers.get("Host", ""),
            scheme=scheme,
            origin=headers.get("Origin"),
            fetch_site=headers.get("Sec-Fetch-Site"),
            media_type=request.content_type if "Content-Type" in headers else "",
            bearer_given=is_bearer,
            bearer=bearer,
            session=session,
        )

    def _session(self, request: web.Request, scheme: str) -> Credential | None:
        for name in session_ids(request, self._access.cookie_name(scheme)):
            session = self._access.sessions.find(name, request[PEER])
            if session is not None:
                return session.credential
        return None


def scheme_of(request: web.Request, scheme_header: str) -> str:
    """Return ``https`` where the trusted proxy says that the client came by it."""
    said = request.headers.getall(scheme_header, ()) if scheme_header else ()
    last = said[-1].rpartition(",")[2].strip().lower() if said else ""
    return "https" if last == "https" else "http"


def session_ids(request: web.Request, cookie: str) -> list[str]:
    """Return the ids that the cookies of this name hold."""
    # Not ``request.cookies``: of two cookies of one name that has one, which may be a stranger's.
    pairs = (pair.partition("=") for pair in request.headers.get("Cookie", "").split(";"))
    named = [value.strip() for name, _, value in pairs if name.strip() == cookie]
    return named[:_MAX_COOKIES]


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else request.path


# --- answers ------------------------------------------------------------------------------


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give an answer the headers that all have. One that says nothing of it is not stored."""
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")


def refusal(request: web.Request, problem: Problem) -> web.Response:
    """Return a refusal as an answer: JSON in the API, one line of text elsewhere."""
    if request.path.startswith(f"{API_ROOT}/"):
        return web.Response(
            status=problem.status,
            body=problem.body(request.path),
            content_type=CONTENT_TYPE,
            headers=problem.headers,
        )
    return web.Response(status=problem.status, text=f"{problem.detail}\n", headers=problem.headers)


def answered(request: web.Request, answer: web.HTTPException) -> web.Response | None:
    """Return a refusal of the server itself in the API's form; None: it goes as it is.

    The text of one that goes as it is loses what a terminal would obey: it may quote the request.
    """
    if answer.status < 400:
        return None
    if not request.path.startswith(f"{API_ROOT}/"):
        answer.text = printable(answer.text or "", lines=True)
        return None
    headers = {"Allow": answer.headers["Allow"]} if "Allow" in answer.headers else {}
    said = (answer.text or "").strip()
    is_usual = said == f"{answer.status}: {answer.reason}"
    return refusal(request, of_status(answer.status, "" if is_usual else said, headers))
