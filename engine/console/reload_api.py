"""The path by which a daemon is asked to read its settings file again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.guard import ALLOWED
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings_changes import Reloaded
from amplitude_intercom.transports.errors import Refused


class ReloadApi:
    """Its handler; ``reload`` takes the name of whoever asks."""

    def __init__(self, reload: Callable[[str], Awaitable[Reloaded]]) -> None:
        self._reload_by = reload

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the path with its handler."""
        return [web.post("/api/v1/settings/reload", self._reload)]

    async def _reload(self, request: web.Request) -> web.Response:
        """Read the settings file again; return what has changed."""
        try:
            done = await self._reload_by(request[ALLOWED].who)
        except SettingsError as error:
            raise Problem(ProblemType.REFUSED_VALUE, str(error)) from None
        except Refused as error:
            raise Problem(ProblemType.UNAVAILABLE, str(error)) from None
        return web.Response(body=msgspec.json.encode(done), content_type="application/json")
