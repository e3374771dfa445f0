"""The console's API of an engine in this process, at a real port."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from amplitude_intercom.engine import config
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.reloading import FileReload
from amplitude_intercom.engine.commands.service_manager import ServiceManager
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.admin_server import AdminServer
from amplitude_intercom.engine.console.api_v1.every import routes
from amplitude_intercom.engine.console.audit import Audit, AuditFile
from amplitude_intercom.engine.console.help_pages import help_routes
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process

ROOT = "/api/v1"


class Said(NamedTuple):
    """An answer; ``json`` is its content, decoded."""

    status: int
    headers: Mapping[str, str]
    json: Any

    @property
    def pointers(self) -> list[str]:
        """The values that a refusal points at."""
        return [one["pointer"] for one in self.json["errors"]]


class Console:
    """A running engine and its API."""

    def __init__(self, engine: Engine, access: AdminAccess, session: aiohttp.ClientSession) -> None:
        self.engine = engine
        self.access = access
        self._session = session

    @property
    def url(self) -> str:
        return f"http://{self.access.address}"

    async def ask(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, **headers: str
    ) -> Said:
        """Send a request; a header's name has ``_`` for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None or data is not None or method == "POST":
            named.setdefault("Content-Type", "application/json")
            data = json.dumps(body or {}).encode() if data is None else data
        address = URL(f"{self.url}{ROOT}{path}", encoded=True)
        sent = None if data is None else io.BytesIO(data)  # bytes would all be sent at once
        async with self._session.request(method, address, data=sent, headers=named) as answer:
            content = await answer.read()
            said = json.loads(content) if "json" in answer.content_type else None
            return Said(answer.status, answer.headers, said)

    async def get(self, path: str) -> Any:
        """Return the JSON of a 200."""
        said = await self.ask("GET", path)
        assert said.status == 200, said
        return said.json

    async def pages(self, path: str) -> list[Any]:
        """Return all rows of a list, page by page."""
        rows: list[Any] = []
        cursor = None
        while True:
            more = f"{'&' if '?' in path else '?'}cursor={cursor}" if cursor else ""
            page = await self.get(f"{path}{more}")
            rows += page["items"]
            cursor = page["next"]
            if cursor is None:
                return rows

    async def audited(self) -> list[tuple[str, str]]:
        """Return action and what of each entry of the audit, the oldest first."""
        page = await self.access.audit.page(1_000)
        return [(one.action, one.what) for one in reversed(page.entries)]


@asynccontextmanager
async def console(
    folder: Path, sandbox: Sandbox | None = None, **more: Any
) -> AsyncIterator[Console]:
    """An engine with its API; ``more``: of the settings, as ``process.settings`` takes them."""
    path = process.settings(folder, "http://127.0.0.1:9", **more)
    async with opened(path, sandbox or Sandbox(open_attributes=True)) as found:
        yield found


@asynccontextmanager
async def opened(path: Path, sandbox: Sandbox) -> AsyncIterator[Console]:
    """The engine of a settings file, with its API."""
    settings = config.load(path)
    assert settings.admin is not None
    async with Engine(settings, wire=lambda intercom: InProcess(sandbox)) as engine:
        audit = Audit(AuditFile(Path(settings.data_dir)), engine.spool.now_ms)
        access = AdminAccess(settings.admin, audit)
        document = SettingsDocument.of(path, Path(settings.data_dir))
        reload = FileReload(path, engine, ServiceManager())
        reload.followers.append(lambda newer: access.follow(newer.admin))
        api = routes(engine, document, reload, access)
        server = AdminServer(access, [*api, *help_routes()])
        serving = asyncio.create_task(server.run())
        await server.listening()
        try:
            async with aiohttp.ClientSession() as session:
                yield Console(engine, access, session)
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            audit.close()


async def bury(engine: Engine, count: int, user: str = "late-user", **more: Any) -> None:
    """Have events become dead letters: they are too old to be sent."""
    events = [process.event(user, n, time=1_000, **more) for n in range(count)]
    await engine.submit(events, api_key=process.API_KEY)
    await engine.settled()
