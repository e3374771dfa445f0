"""The HTTP source: takes what Amplitude's SDKs send, and answers as Amplitude does.

What clients make of an answer decides what is sent (behaviour of the Python and Node SDKs):

- always JSON with ``code``: a 200 without it makes one SDK die and the other send again;
- 200 only when the events are on disk;
- 400 lists **every** bad index: the client drops those and sends the rest again;
- 503 while nothing can be taken, on a port that stays open: a refused connection loses the events
  of the Node SDK.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from transports import Batch, Intake
from transports.amplitude import (
    MIN_ID_LENGTH,
    BadUpload,
    GoodUpload,
    Upload,
    decode_events,
    decode_upload,
)
from transports.errors import Refused, UnknownApiKey

MAX_EVENTS: Final = 2_000
MAX_BYTES: Final = {"/2/httpapi": 1_000_000, "/batch": 20_000_000}
"""Amplitude's own limits for one request (HTTP V2 and Batch pages)."""

TOO_LARGE: Final = BadUpload(413, "Payload too large")
MAX_HEADER_BYTES: Final = 8_190

_encoder = msgspec.json.Encoder()
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpSource:
    """A server of Amplitude's ingestion endpoints."""

    def __init__(
        self,
        *,
        listen: str = "127.0.0.1:8710",
        cors_origins: Sequence[str] = ("*",),
        max_concurrent_requests: int = 64,
        body_timeout_s: float = 10.0,
    ) -> None:
        """``listen`` is host:port; port 0 takes a free one, see ``address`` once it runs."""
        host, _, port = listen.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._origins = frozenset(cors_origins)
        self._bodies = asyncio.Semaphore(max_concurrent_requests)
        self._body_timeout_s = body_timeout_s
        self._listening = asyncio.Event()
        self._intake: Intake | None = None
        self._runner: web.AppRunner | None = None
        self.address = listen

    async def run(self, intake: Intake) -> None:
        """Serve until cancelled; the port is open from the first moment to the last.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._intake = intake
        self._runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=False, shutdown_timeout=5.0
        )
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, self._host, self._port, reuse_address=True)
            await site.start()
            host, port = self._runner.addresses[0][:2]
            self.address = f"{host}:{port}"
            self._listening.set()
            await asyncio.Event().wait()
        finally:
            await self._runner.cleanup()

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    def _application(self) -> web.Application:
        app = web.Application(
            middlewares=[self._answer_in_json], client_max_size=max(MAX_BYTES.values())
        )
        for path in MAX_BYTES:
            app.router.add_post(path, self._upload)
            app.router.add_options(path, self._preflight)
        return app

    @web.middleware
    async def _answer_in_json(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Give every answer a JSON body with ``code``, and browsers the headers they need."""
        try:
            response = await handler(request)
        except web.HTTPRequestEntityTooLarge:
            response = _json(TOO_LARGE, 413)
        except web.HTTPException as error:
            response = _json(BadUpload(error.status, "Invalid request path"), error.status)
        self._allow_origin(request, response)
        return response

    def _allow_origin(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin and ("*" in self._origins or origin in self._origins):
            response.headers["Access-Control-Allow-Origin"] = (
                "*" if "*" in self._origins else origin
            )
            response.headers["Vary"] = "Origin"

    async def _preflight(self, request: web.Request) -> web.Response:
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "POST, GET, OPTIONS",
                "Access-Control-Allow-Headers": "Content-Type, Content-Encoding, Authorization",
                "Access-Control-Max-Age": "86400",
            },
        )

    async def _upload(self, request: web.Request) -> web.Response:
        async with self._bodies:
            try:
                async with asyncio.timeout(self._body_timeout_s):
                    body = await self._read(request, MAX_BYTES[request.path])
            except TimeoutError:
                return _json(BadUpload(408, "Request body took too long"), 408)
            except web.RequestPayloadError:  # not in the encoding that its header says
                return _json(BadUpload(400, "Invalid JSON request body", missing_field=""), 400)
            answer = TOO_LARGE if body is None else await self._take(body, request.path)
        return _json(answer, answer.code)

    async def _read(self, request: web.Request, max_bytes: int) -> bytes | None:
        if (request.content_length or 0) > max_bytes:
            return None
        body = await request.read()
        return body if len(body) <= max_bytes else None

    async def _take(self, body: bytes, path: str) -> GoodUpload | BadUpload:
        """Decide on a request, and answer once its events are on disk."""
        upload = decode_upload(body)
        if isinstance(upload, BadUpload):
            return upload
        decoded = _decode(upload, path)
        if isinstance(decoded, BadUpload):
            return decoded
        assert self._intake is not None
        try:
            ticket = await self._intake.send(decoded)
            await ticket.wait()
        except UnknownApiKey as error:
            return BadUpload(400, str(error))
        except Refused as error:
            return BadUpload(503, f"Service unavailable: {error.reason}")
        return GoodUpload(200, len(decoded.raws), len(body), time.time_ns() // 1_000_000)


def _decode(upload: Upload, path: str) -> Batch | BadUpload:
    events: Any = upload.events
    if len(events) > MAX_EVENTS:
        return TOO_LARGE
    min_id_length = upload.options.min_id_length if upload.options else MIN_ID_LENGTH
    decoded = decode_events(events, min_id_length)
    if isinstance(decoded, BadUpload):
        return decoded
    heads, raws = decoded
    return Batch(heads, raws, api_key=upload.api_key, origin=f"http {path}")


def _json(body: GoodUpload | BadUpload, status: int) -> web.Response:
    return web.Response(
        status=status, body=_encoder.encode(body), content_type="application/json", charset="utf-8"
    )
