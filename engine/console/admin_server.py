"""The admin port's HTTP server: its bounds, and the guard before every handler.

Whoever may do what stands in ``access``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.guard import Guard, add_headers, answered, refusal
from amplitude_intercom.engine.console.problems import Problem, ProblemType, not_now
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.transports.http_server import MAX_HEADER_BYTES
from amplitude_intercom.transports.sockets import (
    CLOSING_S,
    Listener,
    clean_up,
    share_of_descriptors,
)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_CONNECTIONS = 1_024
"""Enough for silent connections to give way unnoticed, and few enough to be cheap."""

KEEP_ALIVE_S = 15.0
"""Time until a connection without a request is closed, so that no client can keep all."""

_log = structlog.get_logger(__name__)
_quiet = logging.getLogger(f"{__name__}.aiohttp")
# aiohttp logs each malformed request as an error: any client could fill the log.
_quiet.setLevel(logging.CRITICAL)
BODY_READ: Final[web.RequestKey[Callable[[], None]]] = web.RequestKey("body_read")
"""A function in each request that its handler calls once the body has arrived."""


class AdminServer:
    """Serves the admin port of one engine until cancelled."""

    def __init__(self, access: AdminAccess, routes: Sequence[web.RouteDef]) -> None:
        """``routes``: the paths with their handlers (``console.api_v1.every``)."""
        self._access = access
        self._guard = Guard(access)
        self._routes = routes
        self._listening = asyncio.Event()
        self._listener: Listener | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._access.address

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            SettingsError: the address cannot be listened on.
        """
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=_quiet,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=CLOSING_S,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        await runner.setup()
        assert runner.server is not None
        most = min(MAX_CONNECTIONS, share_of_descriptors(0.25))
        self._listener = Listener(runner.server, most, KEEP_ALIVE_S)
        listen = self._access.settings.listen
        try:
            async with self._listener.listening(*host_and_port(listen)) as self._access.address:
                self._listening.set()
                await asyncio.Event().wait()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise SettingsError(f"admin.listen: {listen} cannot be used: {reason}") from None
        finally:
            await clean_up(runner)

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._answer])
        app.on_response_prepare.append(add_headers)
        app.add_routes(self._routes)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        assert self._listener is not None
        with self._listener.request(request.transport):
            try:
                response = await self._guarded(request, handler)
            except Problem as problem:
                response = refusal(request, problem)
            except web.HTTPException as answer:
                said = answered(request, answer)
                if said is None:
                    raise
                response = said
            if self._listener.is_nearly_full:
                response.force_close()
            return response

    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            await self._guard.admit(request)
            self._expect_body(request)
            response = await handler(request)
            await self._guard.note_change(request, response)
            return response
        except (web.HTTPException, Problem, ConnectionError):
            raise
        except SpoolError as error:
            raise not_now(str(error), 1) from None
        except Exception:
            _log.exception("fault while answering", path=request.path)
            raise Problem(ProblemType.INTERNAL, "internal error, the log has it") from None

    def _expect_body(self, request: web.Request) -> None:
        body_read: Callable[[], None] = partial(self._at_work, request)
        request[BODY_READ] = body_read
        if not request.can_read_body:
            self._at_work(request)

    def _at_work(self, request: web.Request) -> None:
        assert self._listener is not None
        self._listener.at_work(request.transport)
