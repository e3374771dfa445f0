"""The admin port's HTTP server.

Rules
=====
- Without a token the server listens on loopback only, and answers only requests whose ``Host`` is a
  loopback name: a web page that is open on this machine cannot reach it under a name of its own.
- A request whose ``Origin`` is another site is refused.
- A changing request needs ``Content-Type: application/json``, which a plain form cannot send.
- Health and readiness need no token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.log_lines import printable
from amplitude_intercom.engine.settings import Admin
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

MAX_BODY_BYTES = 1_000_000
_log = structlog.get_logger(__name__)
_quiet = logging.getLogger(f"{__name__}.aiohttp")
# aiohttp logs each malformed request as an error: any client could fill the log.
_quiet.setLevel(logging.CRITICAL)
BODY_READ: Final[web.RequestKey[Callable[[], None]]] = web.RequestKey("body_read")
"""A function in each request that its handler calls once the body has arrived."""

OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class AdminServer:
    """Serves the admin port of one engine until cancelled."""

    def __init__(self, settings: Admin, routes: Sequence[web.RouteDef]) -> None:
        """``routes``: the paths with their handlers (``console.api``)."""
        self._settings = settings
        self._routes = routes
        self._listening = asyncio.Event()
        self._listener: Listener | None = None
        self.address = settings.listen

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
        try:
            async with self._listener.listening(
                *host_and_port(self._settings.listen)
            ) as self.address:
                self._listening.set()
                await asyncio.Event().wait()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise SettingsError(
                f"admin.listen: {self._settings.listen} cannot be used: {reason}"
            ) from None
        finally:
            await clean_up(runner)

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes(self._routes)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        assert self._listener is not None
        with self._listener.request(request.transport):
            return await self._guarded(request, handler)

    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            self._authorize(request)
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
        body_read: Callable[[], None] = partial(self._at_work, request)
        request[BODY_READ] = body_read
        if not request.can_read_body:
            self._at_work(request)
        try:
            response = await handler(request)
            assert self._listener is not None
            if self._listener.is_nearly_full:
                response.force_close()
            return response
        except web.HTTPException as answer:
            # The text may quote the request, and the terminal of the client would obey it.
            answer.text = printable(answer.text or "", lines=True)
            raise
        except ConnectionError:
            raise
        except SpoolError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from None
        except Exception:
            _log.exception("fault while answering", path=request.path)
            raise web.HTTPInternalServerError(text="internal error, the log has it\n") from None

    def _at_work(self, request: web.Request) -> None:
        assert self._listener is not None
        self._listener.at_work(request.transport)

    def _authorize(self, request: web.Request) -> None:
        token = self._settings.token
        if token is not None:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            # A header can be any bytes: without the escape a wrong token would be a fault.
            given_bytes = given.encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given_bytes, token.reveal().encode()):
                raise web.HTTPUnauthorized(text="admin token missing or wrong\n")
        elif not _is_local_name(request.headers.get("Host", "")):
            raise web.HTTPForbidden(text="this host name is not served\n")
        elif _is_of_another_origin(request):
            raise web.HTTPForbidden(text="not for pages of another origin\n")
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")


def _is_of_another_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("Host")


def _is_local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
