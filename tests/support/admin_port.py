"""The admin port alone, in this process: its guard, its sessions, its audit, and stand-in paths."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.admin_server import AdminServer
from amplitude_intercom.engine.console.api_v1.access_operations import AccessOperations
from amplitude_intercom.engine.console.api_v1.serving import routes_of
from amplitude_intercom.engine.console.audit import Audit, AuditFile
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.help_pages import help_routes
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin
from amplitude_intercom.transports.reasons import RefusalReason

SPOKEN = b"payload"
TOKEN = "admin-secret-canary"
READ_TOKEN = "read-secret-canary"


def admin(**more: Any) -> Admin:
    """Return settings with both tokens at a free port of loopback."""
    tokens = {"token": Secret(TOKEN), "read_token": Secret(READ_TOKEN)}
    return Admin(**{"listen": "127.0.0.1:0", **tokens, **more})


class AdminPort:
    """A port that is open."""

    def __init__(self, access: AdminAccess) -> None:
        self.access = access

    @property
    def host(self) -> str:
        return self.access.address

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    async def audited(self) -> list[tuple[str, str, str]]:
        """Return who, action and what of each entry of the audit, the oldest first."""
        page = await self.access.audit.page(1_000)
        return [(one.who, one.action, one.what) for one in reversed(page.entries)]


@asynccontextmanager
async def serving(
    settings: Admin, data_dir: Path, now_s: Callable[[], float] = loop_time_s
) -> AsyncIterator[AdminPort]:
    """An open admin port with stand-in paths."""
    audit = Audit(AuditFile(data_dir), lambda: 1_700_000_000_000, now_s)
    access = AdminAccess(settings, audit, now_s)
    server = AdminServer(
        access, [*_stand_ins(), *help_routes(), *routes_of(AccessOperations(access).operations())]
    )
    task = asyncio.create_task(server.run())
    await server.listening()
    try:
        yield AdminPort(access)
    finally:
        task.cancel()
        await asyncio.wait({task})


def _stand_ins() -> list[web.RouteDef]:
    return [
        web.get("/healthz", _spoken),
        web.get("/api/status", _spoken),
        web.get("/api/v1/status", _spoken),
        web.get("/metrics", _spoken),
        web.get("/", _page),
        web.post("/api/v1/syncs/{sync}/jobs", _spoken),
        web.post("/api/v1/syncs/{sync}/preview", _spoken),
        web.put("/api/v1/settings/file", _saved),
        web.post("/toggle", _spoken),
        web.get("/api/v1/faults/{kind}", _fault),
        web.post("/api/v1/faults/{kind}", _fault),
        web.get("/api/faults/{kind}", _fault),
    ]


async def _spoken(request: web.Request) -> web.Response:
    return web.Response(body=SPOKEN)


async def _page(request: web.Request) -> web.Response:
    headers = {"Cache-Control": "private, no-cache", "ETag": '"1"'}
    return web.Response(body=SPOKEN, content_type="text/html", headers=headers)


async def _saved(request: web.Request) -> web.Response:
    versions = {"before": "abc", "after": "def"}
    request[CHANGE] = RequestChange("settings saved", "the whole file", versions)
    return web.Response(body=SPOKEN)


async def _fault(request: web.Request) -> web.Response:
    kind = request.match_info["kind"]
    if kind == "spool":
        raise SpoolError(RefusalReason.DISK_FULL)
    if kind == "own":
        raise ValueError("unforeseen \x1b[31m")
    if kind == "problem":
        raise Problem(ProblemType.CHANGED_MEANWHILE, "changed", more={"etag": "x"})
    if kind == "answered":
        return web.Response(status=409)
    if kind == "missing":
        raise web.HTTPNotFound(text=f"nothing named {request.query_string}\n")
    raise web.HTTPFound("/")
