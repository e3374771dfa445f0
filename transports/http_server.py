"""aiohttp's server with bounds of our own, and HTTP answers in Amplitude's JSON."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from amplitude_intercom.transports.refusals import NO_ENDPOINT, Refusals
from amplitude_intercom.transports.upload_answers import BadUpload

MAX_HEADER_BYTES: Final = 8_190

ALLOWED_HEADERS: Final = "Content-Type, Content-Encoding, Authorization, X-Api-Key"
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,512}")
_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


def preflight(request: web.BaseRequest) -> web.Response:
    """Return the answer that lets a browser send a request, with the headers it asks for.

    The old SDK asks for a header that is in no documentation, so the names are taken as asked.
    """
    asked = request.headers.get("Access-Control-Request-Headers", "")
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "POST, GET, OPTIONS",
            "Access-Control-Allow-Headers": (
                asked if _HEADER_NAMES.fullmatch(asked) else ALLOWED_HEADERS
            ),
            "Access-Control-Max-Age": "86400",
        },
    )


def client_address(request: web.BaseRequest, ip_header: str) -> str:
    """Return a client's address: the last that the trusted header names, else the socket's.

    A proxy may append to a header of the client's own, or stand behind another proxy. Only the last
    address is the trusted proxy's own word.
    """
    said = request.headers.getall(ip_header, ()) if ip_header else ()
    last = said[-1].rpartition(",")[2].strip() if said else ""
    try:
        address = ipaddress.ip_address(last)
    except ValueError:
        return request.remote or ""
    return (request.remote or "") if getattr(address, "scope_id", None) else str(address)


def allow_origin(
    request: web.BaseRequest, response: web.StreamResponse, origins: frozenset[str]
) -> None:
    """Let a page of an allowed origin read an answer; ``*`` among ``origins`` allows any."""
    origin = request.headers.get("Origin")
    if not origin:
        return
    if "*" in origins:
        response.headers["Access-Control-Allow-Origin"] = "*"
    elif origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Vary"] = "Origin"


def refusal_response(refusal: BadUpload, methods: frozenset[str] = frozenset()) -> web.Response:
    """Return a refusal as an answer. ``methods``: for a 405, the methods that its path has."""
    response = json_response(refusal, refusal.code)
    if refusal.code == 405:
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def json_response(body: object, status: int) -> web.Response:
    """Return an answer with a body that msgspec encodes."""
    return web.Response(
        status=status, body=_encoder.encode(body), content_type="application/json", charset="utf-8"
    )


class BoundedServer(web.Server):
    """aiohttp's server: with bounds, bodies as they come, and errors in JSON."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        refused: Refusals,
        idle_timeout_s: float,
    ) -> None:
        super().__init__(answer)
        self.refused = refused
        self._idle_timeout_s = idle_timeout_s

    def __call__(self) -> web.RequestHandler:
        return _JsonErrors(
            self,
            loop=asyncio.get_running_loop(),
            # Also the bound for bytes that never become a request.
            keepalive_timeout=self._idle_timeout_s,
            # aiohttp would inflate without a bound; ``http_bodies`` does it piece by piece.
            auto_decompress=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )


class _JsonErrors(web.RequestHandler):
    """The requests of one connection; its errors are answered in JSON."""

    __slots__ = ("_refused",)

    def __init__(self, server: BoundedServer, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._refused = server.refused

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer invalid HTTP, and a fault of this program, in JSON like everything else."""
        if isinstance(exc, LineTooLong):
            refusal = BadUpload(414, "Request line or header too long")
        elif isinstance(exc, HttpProcessingError) or status < 500:
            refusal = BadUpload(status, "Bad HTTP request", missing_field="body")
        else:
            _log.error("fault while answering %s", request.path, exc_info=exc)
            refusal = BadUpload(500, "Internal error")
        self._refused.note(NO_ENDPOINT, refusal)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, there cannot be another")
        response = refusal_response(refusal)
        response.force_close()
        return response
