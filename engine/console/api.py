"""The paths of the admin port: each handler asks one part of the engine and encodes its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, Final, TypeVar

import aiohttp
import msgspec
from aiohttp import web

from amplitude_intercom.engine import metrics
from amplitude_intercom.engine.console.admin_server import BODY_READ
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.overview import Overview
from amplitude_intercom.engine.reasons import DeadReason, no_dead_reason
from amplitude_intercom.engine.spool.jobs import JobKind
from amplitude_intercom.engine.spool.letters import DeadLetterQuery, Position
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.engine.upkeep import Upkeep

T = TypeVar("T")
_encoder = msgspec.json.Encoder()

BODY_TIMEOUT_S: Final = 10.0


class Listing(DeadLetterQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of dead letters: up to ``limit`` of them, behind the position ``after``.

    The page before says its end, for ``after``.
    """

    after: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1_000

    def __post_init__(self) -> None:
        """Refuse a text that is no position."""
        Position.read(self.after)


class DropLeft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to drop the records of a sync that is gone from the settings."""

    old: str


class MoveLeft(DropLeft, frozen=True, forbid_unknown_fields=True):
    """A request to give the records of such a sync to another."""

    new: str


class AdminApi:
    """The handlers of one engine's admin port."""

    def __init__(self, overview: Overview, upkeep: Upkeep, jobs: JobRunner) -> None:
        self._overview = overview
        self._upkeep = upkeep
        self._runner = jobs

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the paths with their handlers."""
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/api/status", self._status),
            web.get("/api/{sync}/users/{key:(?s:.*)}", self._user),
            web.post("/api/{sync}/dead-letters/{action}", self._dead_letters),
            web.get("/api/jobs", self._jobs),
            web.get(r"/api/jobs/{job:\d{1,18}}", self._job),
            web.post(r"/api/jobs/{job:\d{1,18}}/cancel", self._cancel_job),
            web.post("/api/spool/compact", self._compact),
            web.post("/api/spool/move", self._move_left),
            web.post("/api/spool/drop", self._drop_left),
        ]

    async def _healthz(self, request: web.Request) -> web.Response:
        """Return 200 as long as the process answers, with its state. Needs no token."""
        return web.json_response({"status": "ok", "state": self._overview.state})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Return 200 while events are taken, else 503 with the reasons. Needs no token."""
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
        status, ready = await self._overview.status(), self._overview.ready
        # Off the loop: with a thousand syncs it is a megabyte of text.
        text = await asyncio.to_thread(metrics.render, status, ready=ready)
        return web.Response(
            body=text,
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
        """Cancel a job. Its finished part stays done."""
        cancelled = await _settled(self._runner.cancel(int(request.match_info["job"])))
        return _json({"cancelled": cancelled})

    async def _compact(self, request: web.Request) -> web.Response:
        """Give the space that the spool's file does not need back to the disk."""
        return _json(await self._upkeep.compact())

    async def _move_left(self, request: web.Request) -> web.Response:
        """Give the records of the sync `old`, which is gone from the settings, to `new`."""
        body = await self._body(request, MoveLeft)
        return _json(await _settled(self._upkeep.move_left(body.old, body.new)))

    async def _drop_left(self, request: web.Request) -> web.Response:
        """Drop the records of the sync `old`, which is gone from the settings."""
        body = await self._body(request, DropLeft)
        return _json(await _settled(self._upkeep.drop_left(body.old)))

    async def _user(self, request: web.Request) -> web.Response:
        """Return the state of one user: its records, contact and dead letters."""
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
        """Decode the body of a request."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
            request[BODY_READ]()
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
    """Await work; answer 409 where the settings forbid it."""
    try:
        return await work
    except SettingsError as error:
        raise web.HTTPConflict(text=f"{error}\n") from None


def _json(value: Any) -> web.Response:
    return web.Response(body=_encoder.encode(value), content_type="application/json")
