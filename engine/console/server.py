"""The admin port's HTTP server.

Without a token it listens on loopback only, and then answers only requests that were meant for
loopback (``Host``): a web page that somebody opened on this machine cannot reach it under another
name, and what comes from a page of another origin (``Origin``) is refused. Writing calls want
``Content-Type: application/json``, which a plain form cannot send. Health and readiness need no
token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog
from aiohttp import web

from amplitude_intercom.engine import metrics
from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.jobs import JobRunner
from amplitude_intercom.engine.logs import printable
from amplitude_intercom.engine.overview import Overview
from amplitude_intercom.engine.reasons import DeadReason, no_dead_reason
from amplitude_intercom.engine.settings import Admin
from amplitude_intercom.engine.spool.jobs import JobKind
from amplitude_intercom.engine.spool.rows import DeadLetterQuery, Position
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.engine.upkeep import Upkeep
from amplitude_intercom.transports.http_server import MAX_HEADER_BYTES
from amplitude_intercom.transports.sockets import Listener, share_of_descriptors

T = TypeVar("T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_encoder = msgspec.json.Encoder()
MAX_CONNECTIONS = 1_024
"""So many that silent ones give way faster than anybody notices, and still cheap."""

KEEP_ALIVE_S = 15.0
"""Until a connection without a request is closed: nobody may keep all of them."""

MAX_BODY_BYTES = 1_000_000
BODY_TIMEOUT_S = 10.0
_log = structlog.get_logger(__name__)
_quiet = logging.getLogger(f"{__name__}.aiohttp")
_quiet.setLevel(logging.CRITICAL)  # it would log every client that sends rubbish, as an error
OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class Listing(DeadLetterQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which dead letters to list: those behind ``after``, up to ``limit`` of them.

    ``after`` is what the page before says.
    """

    after: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000

    def __post_init__(self) -> None:
        """Refuse what is no position."""
        Position.read(self.after)


class Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left of this sync is to go."""

    old: str


class Move(Drop, frozen=True, forbid_unknown_fields=True):
    """What is left of one sync is for another."""

    new: str


class AdminServer:
    """Serves the admin port of one engine until cancelled."""

    def __init__(
        self, settings: Admin, overview: Overview, upkeep: Upkeep, jobs: JobRunner
    ) -> None:
        self._settings = settings
        self._overview = overview
        self._upkeep = upkeep
        self._runner = jobs
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
            await runner.cleanup()

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/api/{sync}/users/{key:(?s:.*)}", self._user)
        app.router.add_post("/api/{sync}/dead-letters/{action}", self._dead_letters)
        app.router.add_get("/api/jobs", self._jobs)
        app.router.add_get(r"/api/jobs/{job:\d{1,18}}", self._job)
        app.router.add_post(r"/api/jobs/{job:\d{1,18}}/cancel", self._cancel_job)
        app.router.add_post("/api/spool/compact", self._compact)
        app.router.add_post("/api/spool/move", self._move_left)
        app.router.add_post("/api/spool/drop", self._drop_left)
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
        if not request.can_read_body:
            self._at_work(request)
        try:
            response = await handler(request)
            assert self._listener is not None
            if self._listener.crowded:
                response.force_close()
            return response
        except web.HTTPException as answer:
            answer.text = printable(answer.text or "", lines=True)  # it may quote what was asked
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
            given_bytes = given.encode("utf-8", "surrogateescape")  # headers can be any bytes
            if not hmac.compare_digest(given_bytes, token.reveal().encode()):
                raise web.HTTPUnauthorized(text="admin token missing or wrong\n")
        elif not _is_local_name(request.headers.get("Host", "")):
            raise web.HTTPForbidden(text="this host name is not served\n")
        elif _is_of_another_origin(request):
            raise web.HTTPForbidden(text="not for pages of another origin\n")
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")

    async def _healthz(self, request: web.Request) -> web.Response:
        """Return 200 as long as the process answers, with its state. Needs no token."""
        return web.json_response({"status": "ok", "state": self._overview.state})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Return 200 while events are taken, else 503 and why. Needs no token."""
        ready = self._overview.ready
        said = {
            "ready": ready,
            "state": self._overview.state,
            "unready": self._overview.unready,
            "stopped": self._overview.stopped,
            "stopped_sources": self._overview.stopped_sources,
        }
        return web.json_response(said, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        """Return the metrics in Prometheus' text format."""
        status = await self._overview.status()
        return web.Response(
            body=metrics.render(status, ready=self._overview.ready),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _status(self, request: web.Request) -> web.Response:
        """Return the accounting, as `status --json` prints it."""
        return _json(await self._overview.status())

    def _sync_of(self, request: web.Request) -> str:
        sync = request.match_info["sync"]
        if sync not in self._overview.syncs:
            raise web.HTTPNotFound(text=f"no sync named {sync}\n")
        return sync

    async def _jobs(self, request: web.Request) -> web.Response:
        """Return the latest 100 jobs, the latest first."""
        return _json(await self._runner.latest())

    async def _job(self, request: web.Request) -> web.Response:
        """Return one job; 404 where there is none."""
        job = await self._runner.get(int(request.match_info["job"]))
        if job is None:
            raise web.HTTPNotFound(text="no such job\n")
        return _json(job)

    async def _cancel_job(self, request: web.Request) -> web.Response:
        """Cancel a job. What it has done stays done."""
        cancelled = await _settled(self._runner.cancel(int(request.match_info["job"])))
        return _json({"cancelled": cancelled})

    async def _compact(self, request: web.Request) -> web.Response:
        """Give the space that the spool's file does not need back to the disk."""
        return _json(await self._upkeep.compact())

    async def _move_left(self, request: web.Request) -> web.Response:
        """Give what is left of the sync `old`, which has gone from the settings, to `new`."""
        body = await self._body(request, Move)
        return _json(await _settled(self._upkeep.move_left(body.old, body.new)))

    async def _drop_left(self, request: web.Request) -> web.Response:
        """Drop what is left of the sync `old`, which has gone from the settings."""
        body = await self._body(request, Drop)
        return _json(await _settled(self._upkeep.drop_left(body.old)))

    async def _user(self, request: web.Request) -> web.Response:
        """Return what is known of one user: its records, contact and dead letters."""
        return _json(await self._upkeep.user(self._sync_of(request), request.match_info["key"]))

    async def _dead_letters(self, request: web.Request) -> web.Response:
        """List dead letters, or begin a job that replays or discards them."""
        sync, action = request.match_info["sync"], request.match_info["action"]
        if sync not in self._overview.takers:
            kind = "relay" if sync.startswith(RELAY) else "sync"
            raise web.HTTPNotFound(text=f"no {kind} named {sync}\n")
        query = await self._body(request, Listing if action == "list" else DeadLetterQuery)
        if query.reason is not None and query.reason not in set(DeadReason):
            raise web.HTTPBadRequest(text=f"{no_dead_reason(query.reason)}\n")
        return _json(await self._act(sync, action, query))

    async def _body(self, request: web.Request, kind: type[T]) -> T:
        """Read what a request asks for."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
            self._at_work(request)
            return msgspec.json.decode(body or b"{}", type=kind)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body took too long\n") from None
        except (aiohttp.ClientPayloadError, web.RequestPayloadError):
            raise web.HTTPBadRequest(text="not a body as its headers say\n") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None

    async def _act(self, sync: str, action: str, query: DeadLetterQuery) -> Any:
        if isinstance(query, Listing):
            return await self._upkeep.dead_letter_page(
                sync, query, after=query.after, limit=query.limit
            )
        if action not in (JobKind.REPLAY, JobKind.DISCARD):
            raise web.HTTPNotFound(text=f"no action {action}\n")
        job = self._runner.ask(JobKind(action), sync, query, who="admin port")
        return await _settled(job)


async def _settled(work: Awaitable[T]) -> T:
    """Await what the settings may forbid: that is answered, not raised."""
    try:
        return await work
    except SettingsError as error:
        raise web.HTTPConflict(text=f"{error}\n") from None


def _is_of_another_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("Host")


def _is_local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _json(value: Any) -> web.Response:
    return web.Response(body=_encoder.encode(value), content_type="application/json")
