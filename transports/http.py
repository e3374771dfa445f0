"""The HTTP source: takes what Amplitude's clients send, and answers as Amplitude does.

What clients make of an answer decides what is sent (behaviour of the Python and Node SDKs):

- always JSON with ``code``: a 200 without it makes one SDK die and the other send again;
- 200 only when the events are on disk;
- 400 lists **every** bad index: the client drops those and sends the rest again;
- 503 while nothing can be taken, on a port that stays open: a refused connection loses the events
  of the Node SDK.

``transports.uploads`` decides what a request holds; here are the sockets, their bounds and CORS.
What takes long is done in a thread, so that everybody else is served meanwhile.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from amplitude_intercom.transports import forms, inflate, uploads
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.amplitude_client import THIS_PROCESS, VIA
from amplitude_intercom.transports.bounds import (
    EventBytes,
    HeldBytes,
    Positive,
    PositiveNumber,
    PositiveSeconds,
)
from amplitude_intercom.transports.contract import Batch, Intake
from amplitude_intercom.transports.errors import Refused, UnknownApiKey
from amplitude_intercom.transports.inflate import Inflate
from amplitude_intercom.transports.limits import LEAST_COST_BYTES, ByteBudget, Hold, KeyLimits
from amplitude_intercom.transports.openapi import SUCCESS, describe
from amplitude_intercom.transports.originals import Original
from amplitude_intercom.transports.refusals import NO_DOOR, Refusals
from amplitude_intercom.transports.sockets import Listener, share_of_descriptors
from amplitude_intercom.transports.uploads import TOO_LARGE, BadUpload, GoodUpload, Takes, Upload

HTTP_V2_BYTES: Final = 1_000_000
BATCH_BYTES: Final = 20_000_000
"""Amplitude's own limits for one request: HTTP V2's, and Batch's (their pages)."""

MAX_HEADER_BYTES: Final = 8_190
HEAVY_BYTES: Final = 262_144
"""Bodies over this are taken apart in a thread: it takes some milliseconds, or a hundred."""

HEAVY_AT_ONCE: Final = 1
"""Threads for that; more would only hold more memory, since they share one interpreter."""

MAX_MEMBERS: Final = 1_024
"""Members of a packed body. bgzip, which makes the most, makes 320 of the largest."""

_encoder = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class Parts(msgspec.Struct):
    """A request, read: its body inflated, its query's fields, its headers, its client's address."""

    method: str
    body: bytes
    query: Mapping[str, str]
    query_text: str
    headers: Mapping[str, str]
    peer: str

    @property
    def content_type(self) -> str:
        """As it was said, whole."""
        return _text(self.headers.get("Content-Type", ""))


class Door(msgspec.Struct, frozen=True):
    """An endpoint: what it takes, and how much of it."""

    methods: frozenset[str]
    max_bytes: int
    decode: Callable[[Parts, Takes], Upload | BadUpload]
    key_of: Callable[[Mapping[str, str], Mapping[str, str]], str] | None = None
    """The API key, where headers and query alone tell it."""


_DecodeForm = Callable[[Mapping[str, str], Takes], Upload | BadUpload]


def _form_door(decode: _DecodeForm) -> Door:
    def decode_parts(parts: Parts, takes: Takes) -> Upload | BadUpload:
        return _with_form(parts, takes, decode)

    return Door(frozenset({"POST", "GET"}), HTTP_V2_BYTES, decode_parts)


def _with_form(parts: Parts, takes: Takes, decode: _DecodeForm) -> Upload | BadUpload:
    try:
        form = forms.read_form(parts.body, parts.content_type)
        return decode({**parts.query, **form}, takes)
    except ValueError:
        return BadUpload(400, "Invalid form", missing_field="body")


def _upload(parts: Parts, takes: Takes) -> Upload | BadUpload:
    return uploads.decode_upload(parts.body, takes)


def _root(parts: Parts, takes: Takes) -> Upload | BadUpload:
    """The old SDKs' form; or JSON of a new one that was given a bare host."""
    if uploads.first_byte(parts.body[:1_024]) == b"{":
        return _upload(parts, takes)
    return _with_form(parts, takes, uploads.decode_legacy_form)


def _webhook_key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """It is where webhooks can have one: in a header of their own, or in the address."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return _text(bearer or headers.get("X-Api-Key", "") or query.get("api_key", ""))


def _webhook(parts: Parts, takes: Takes) -> Upload | BadUpload:
    return uploads.decode_webhook(parts.body, _webhook_key(parts.headers, parts.query), takes)


def _text(header: str) -> str:
    """Return a header's value as text: aiohttp gives bytes that are none as halves of pairs."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


WEBHOOK: Final = "/webhook"
_POST: Final = frozenset({"POST"})
DOORS: Final = {
    "/2/httpapi": Door(_POST, HTTP_V2_BYTES, _upload),
    "/batch": Door(_POST, BATCH_BYTES, _upload),
    "/httpapi": _form_door(uploads.decode_event_form),
    "/identify": _form_door(uploads.decode_identify_form),
    "/groupidentify": _form_door(uploads.decode_group_identify_form),
    "/": Door(frozenset({"POST", "GET"}), HTTP_V2_BYTES, _root),
    WEBHOOK: Door(_POST, BATCH_BYTES, _webhook, _webhook_key),
}
"""Amplitude's ingestion endpoints, and where its webhook stream is pointed at."""

PAGES: Final[Mapping[str, Callable[[], object]]] = {
    "/openapi.json": describe,
    "/healthz": lambda: {"code": 200, "status": "ok"},
}
"""What is there to be looked at: the description of the doors, and a word for load balancers."""

_NOT_SO: Final = BadUpload(405, "Invalid request method")
ALLOWED_HEADERS: Final = "Content-Type, Content-Encoding, Authorization, X-Api-Key"
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_, -]{1,512}")


BUSY: Final = BadUpload(503, "Service unavailable: busy")
GONE: Final = BadUpload(499, "Client closed the connection")  # nobody reads it: it is counted
TOO_SLOW: Final = BadUpload(408, "Request body took too long")


class HttpSource:
    """A server of Amplitude's ingestion endpoints."""

    def __init__(
        self,
        *,
        listen: str = "127.0.0.1:8710",
        cors_origins: Sequence[str] = ("*",),
        max_event_bytes: EventBytes = MAX_EVENT_BYTES,
        max_held_bytes: HeldBytes = 67_108_864,
        body_timeout_s: PositiveSeconds = 10.0,
        idle_timeout_s: PositiveSeconds = 75.0,
        max_connections: Positive = 1_024,
        key_requests_per_s: PositiveNumber | None = None,
        key_events_per_s: PositiveNumber | None = None,
        ip_header: str = "",
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """``listen`` is host:port; port 0 takes a free one, see ``address`` once it runs.

        ``ip_header`` is what a trusted proxy in front says clients' addresses in.
        ``now_ms``: when requests arrive, by which clients' clocks are corrected.
        """
        host, _, port = listen.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > MAX_PORT:
            raise ValueError(f"listen: expected `host:port`, not {listen!r}")
        self._host, self._port = host.strip("[]"), int(port)
        self._origins = frozenset(cors_origins)
        self._max_event_bytes = max_event_bytes
        self._now_ms = now_ms
        self._ip_header = ip_header
        self._budget = ByteBudget(max_held_bytes)
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._refused = Refusals()
        self._limits = KeyLimits(key_requests_per_s, key_events_per_s)
        self._body_timeout_s = body_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = min(max_connections, share_of_descriptors(0.5))
        self._listener: Listener | None = None
        self._listening = asyncio.Event()
        self._intake: Intake | None = None
        self.address = listen

    async def run(self, intake: Intake) -> None:
        """Serve until cancelled; the port is open from the first moment to the last.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._intake = intake
        server = _Server(self._answer, self._refused, self._idle_timeout_s)
        self._listener = Listener(server, self._max_connections, self._idle_timeout_s)
        runner = web.ServerRunner(server, shutdown_timeout=5.0)
        await runner.setup()
        try:
            async with self._listener.listening(self._host, self._port) as self.address:
                self._listening.set()
                await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    @property
    def is_listening(self) -> bool:
        """Whether the port was opened."""
        return self._listening.is_set()

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    @property
    def refusals(self) -> Counter[tuple[str, str]]:
        """How many requests were refused since the start, by door and reason."""
        return self._refused.counts

    @property
    def refused_keys(self) -> Counter[str]:
        """How many of them had an API key that nobody takes, by key."""
        return self._refused.keys

    # --- one request ----------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._listener is not None
        path = request.path if request.path == "/" else request.path.rstrip("/")
        with self._listener.request(request.transport):
            response = await self._respond(request, path)
        if isinstance(response, BadUpload):
            self._refused.note(path if path in DOORS else NO_DOOR, response)
            response = _refusal(response, _methods(path))
        self._allow_origin(request, response)
        if self._listener.crowded:
            response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest, path: str) -> web.Response | BadUpload:
        door = DOORS.get(path)
        if door is None and path not in PAGES:
            return BadUpload(404, "Invalid request path")
        if request.method == "HEAD":
            return web.Response()
        if door is None:
            return _json(PAGES[path](), 200) if request.method == "GET" else _NOT_SO
        if request.method == "OPTIONS":
            return _preflight(request)
        if request.method not in door.methods:
            return _NOT_SO
        return await self._take_in(request, door, path)

    async def _take_in(
        self, request: web.BaseRequest, door: Door, path: str
    ) -> web.Response | BadUpload:
        assert self._intake is not None
        if door.key_of is not None:
            key = door.key_of(request.headers, request.query)
            refused = uploads.refuse_key("api_key", key, self._intake.takes)
            if refused is not None:
                return refused
        if (request.content_length or 0) > door.max_bytes:
            return TOO_LARGE
        with self._budget.hold(self._peer(request)) as hold:
            taken = await self._decode(await self._read(request, door, hold), door, path)
            return taken if isinstance(taken, BadUpload) else await self._store(*taken)

    async def _read(self, request: web.BaseRequest, door: Door, hold: Hold) -> Parts | BadUpload:
        """Read a request whole, once there are free bytes for it."""
        try:
            async with asyncio.timeout(self._body_timeout_s) as deadline:
                if await hold.grow(LEAST_COST_BYTES):
                    deadline.reschedule(asyncio.get_running_loop().time() + self._body_timeout_s)
                await _say_continue(request)
                body = await read_body(request, door.max_bytes, hold)
        except TimeoutError:
            return BUSY if hold.waits else TOO_SLOW
        except _Unreadable as error:
            return error.refusal
        assert self._listener is not None
        self._listener.at_work(request.transport)
        query_text = request.rel_url.raw_query_string
        peer = self._peer(request)
        return Parts(request.method, body, request.query, query_text, request.headers, peer)

    def _peer(self, request: web.BaseRequest) -> str:
        """Return a client's address: the last that the trusted header names, else the socket's.

        A proxy may add to a client's own header, or have one behind it: its word is the last.
        """
        said = request.headers.getall(self._ip_header, ()) if self._ip_header else ()
        last = said[-1].rpartition(",")[2].strip() if said else ""
        try:
            address = ipaddress.ip_address(last)
        except ValueError:
            return request.remote or ""
        return (request.remote or "") if getattr(address, "scope_id", None) else str(address)

    async def _decode(
        self, parts: Parts | BadUpload, door: Door, path: str
    ) -> tuple[Batch, GoodUpload, bool] | BadUpload:
        """Take a request apart: in a thread of its own where that takes long."""
        if isinstance(parts, BadUpload):
            return parts
        if len(parts.body) <= HEAVY_BYTES:
            return self._decode_now(parts, door, path)
        async with self._heavy:
            return await asyncio.to_thread(self._decode_now, parts, door, path)

    def _decode_now(
        self, parts: Parts, door: Door, path: str
    ) -> tuple[Batch, GoodUpload, bool] | BadUpload:
        """Return a request's batch, with the answer once it is on disk, and whether as text."""
        assert self._intake is not None
        upload = door.decode(parts, self._intake.takes)
        if isinstance(upload, BadUpload):
            return upload
        now_ms = self._now_ms()
        batch = uploads.checked_batch(
            upload, f"http {path}", max_event_bytes=self._max_event_bytes, received_ms=now_ms
        )
        if isinstance(batch, BadUpload):
            return batch
        # Neither what Amplitude itself sends, nor what a relay of ours has sent to ourselves.
        if path != WEBHOOK and parts.headers.get(VIA) != THIS_PROCESS:
            batch.original = Original(
                parts.method, path, parts.query_text, parts.content_type, parts.body, parts.peer
            )
        return batch, GoodUpload(200, len(batch.raws), len(parts.body), now_ms), upload.in_text

    async def _store(
        self, batch: Batch, good: GoodUpload, in_text: bool
    ) -> web.Response | BadUpload:
        """Hand a batch over, and answer once it is on disk."""
        assert self._intake is not None
        assert batch.api_key is not None
        throttled = await self._limits.refuse(batch.api_key, batch.heads or ())
        if throttled is not None:
            return throttled
        try:
            ticket = await self._intake.send(batch)
            await ticket.wait()
        except UnknownApiKey:
            return uploads.unknown_key(batch.api_key)
        except Refused as error:
            return BadUpload(503, f"Service unavailable: {error.reason}")
        return web.Response(text=SUCCESS) if in_text else _json(good, 200)

    # --- browsers -------------------------------------------------------------------------

    def _allow_origin(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if not origin or not ("*" in self._origins or origin in self._origins):
            return
        everybody = "*" in self._origins
        response.headers["Access-Control-Allow-Origin"] = "*" if everybody else origin
        if not everybody:
            response.headers["Vary"] = "Origin"


def _preflight(request: web.BaseRequest) -> web.Response:
    """Allow the headers that are asked for: the old SDK sends one that nobody would think of."""
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


def _methods(path: str) -> frozenset[str]:
    door = DOORS.get(path)
    return frozenset({"GET", "HEAD"}) if door is None else door.methods | {"HEAD", "OPTIONS"}


def _refusal(refusal: BadUpload, methods: frozenset[str] = frozenset()) -> web.Response:
    response = _json(refusal, refusal.code)
    if refusal.code == 405:
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response


def _json(body: object, status: int) -> web.Response:
    return web.Response(
        status=status, body=_encoder.encode(body), content_type="application/json", charset="utf-8"
    )


# --- bodies -------------------------------------------------------------------------------


class _Unreadable(Exception):
    """A body that is too large, or not what its headers say."""

    def __init__(self, refusal: BadUpload) -> None:
        super().__init__(refusal.error)
        self.refusal = refusal


MAX_PORT: Final = 65_535

_GZIP_MAGIC: Final = b"\x1f\x8b"
_WINDOW_BITS: Final = {"gzip": inflate.GZIP, "x-gzip": inflate.GZIP, "deflate": inflate.ANY}


def _encoding(request: web.BaseRequest) -> str:
    said = _text(request.headers.get("Content-Encoding", "identity"))
    return said.strip().lower() or "identity"


async def _say_continue(request: web.BaseRequest) -> None:
    """Ask for a body that its client holds back until it is asked for (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no answer has begun


async def read_body(request: web.BaseRequest, max_bytes: int, hold: Hold) -> bytes:
    """Return a body, inflated, of which little more than ``max_bytes`` ever exist.

    One that begins as gzip is gzip, though no header says so: nothing that is taken here begins so.

    Raises:
        _Unreadable: too large, in an unknown encoding, or not in the one that it says.
    """
    encoding = _encoding(request)
    if encoding != "identity" and encoding not in _WINDOW_BITS:
        raise _Unreadable(BadUpload(415, f"Unsupported content encoding: {encoding[:32]}"))
    stream = None if encoding == "identity" else _inflate(encoding)
    body = bytearray()
    came_bytes = 0
    try:
        async for chunk in request.content.iter_any():
            if not came_bytes and stream is None and chunk.startswith(_GZIP_MAGIC):
                stream = _inflate("gzip")
            came_bytes += len(chunk)
            if came_bytes > max_bytes:
                raise _Unreadable(TOO_LARGE)
            for piece in stream.feed(chunk) if stream else (chunk,):
                body += piece
                if len(body) > max_bytes:
                    raise _Unreadable(TOO_LARGE)
                if len(body) > hold.size:
                    await hold.grow(len(body))
                if stream:
                    await asyncio.sleep(0)  # a small chunk may become any number of pieces
    except (aiohttp.ClientPayloadError, web.RequestPayloadError, zlib.error):
        raise _Unreadable(uploads.NOT_JSON) from None
    except OSError:
        raise _Unreadable(GONE) from None
    if stream and not stream.whole:
        raise _Unreadable(uploads.NOT_JSON)
    return bytes(body)


def _inflate(encoding: str) -> Inflate:
    return Inflate(_WINDOW_BITS[encoding], MAX_MEMBERS)


# --- connections --------------------------------------------------------------------------


class _Server(web.Server):
    """aiohttp's server, with bounds, bodies left as they come, and errors in JSON."""

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
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._idle_timeout_s,  # also for what never becomes a request
            auto_decompress=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )


class _Connection(web.RequestHandler):
    """One connection."""

    __slots__ = ("_refused",)

    def __init__(self, server: _Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._refused = server.refused

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and a fault of our own, in JSON as everything else."""
        if isinstance(exc, LineTooLong):
            refusal = BadUpload(414, "Request line or header too long")
        elif isinstance(exc, HttpProcessingError) or status < 500:
            refusal = BadUpload(status, "Bad HTTP request", missing_field="body")
        else:
            _log.error("fault while answering %s", request.path, exc_info=exc)
            refusal = BadUpload(500, "Internal error")
        self._refused.note(NO_DOOR, refusal)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun, there cannot be another")
        response = _refusal(refusal)
        response.force_close()
        return response
