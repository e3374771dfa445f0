"""The pages of help of the admin port: one for each kind of problem."""

from __future__ import annotations

from aiohttp import web

from amplitude_intercom.engine.console.problems import HELP, STATUSES, ProblemType


def help_routes() -> list[web.RouteDef]:
    """Return the paths with their handlers."""
    return [web.get(HELP + "{name}", _problem)]


async def _problem(request: web.Request) -> web.Response:
    """Return what a problem of the API means, and what to do. Needs no token."""
    try:
        kind = ProblemType(request.match_info["name"])
    except ValueError:
        raise web.HTTPNotFound(text="there is no such problem\n") from None
    text = f"{kind.means} ({STATUSES[kind]} {kind})\n\nWhat to do: {kind.remedy}\n"
    return web.Response(text=text, headers={"Cache-Control": "private, no-cache"})
