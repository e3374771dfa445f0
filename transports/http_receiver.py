"""Receiving one upload: from the headers of its request to its batch on disk.

Reading waits for free bytes, and decoding a large body happens in a thread, so that one request
does not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from amplitude_intercom.transports.contract import Batch, Intake, Original
from amplitude_intercom.transports.errors import Refused, UnknownApiKey
from amplitude_intercom.transports.http_bodies import UnreadableBody, read_body, say_continue
from amplitude_intercom.transports.http_endpoints import WEBHOOK, HttpEndpoint, RequestParts
from amplitude_intercom.transports.http_server import client_address, json_response
from amplitude_intercom.transports.limits import (
    LEAST_COST_BYTES,
    ByteBudget,
    HeldBody,
    KeyLimits,
)
from amplitude_intercom.transports.openapi import SUCCESS
from amplitude_intercom.transports.originals import THIS_PROCESS, VIA
from amplitude_intercom.transports.sockets import Listener
from amplitude_intercom.transports.upload_answers import (
    TOO_LARGE,
    BadUpload,
    GoodUpload,
    refuse_key,
    unknown_key,
)
from amplitude_intercom.transports.upload_events import checked_batch

HEAVY_BYTES: Final = 262_144
"""Bodies over this are decoded in a thread: that takes some milliseconds, up to a hundred."""

HEAVY_AT_ONCE: Final = 1
"""Threads for large bodies. More would only hold more memory, since they share one interpreter."""

BUSY: Final = BadUpload(503, "Service unavailable: busy")
TOO_SLOW: Final = BadUpload(408, "Request body took too long")


class UploadReceiver:
    """Reads, decodes and stores the uploads of one listener, each within the source's limits."""

    def __init__(
        self,
        intake: Intake,
        listener: Listener,
        *,
        budget: ByteBudget,
        limits: KeyLimits,
        body_timeout_s: float,
        max_event_bytes: int,
        ip_header: str,
        now_ms: Callable[[], int],
    ) -> None:
        self._intake = intake
        self._listener = listener
        self._budget = budget
        self._limits = limits
        self._body_timeout_s = body_timeout_s
        self._max_event_bytes = max_event_bytes
        self._ip_header = ip_header
        self._now_ms = now_ms
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)

    async def receive(
        self, request: web.BaseRequest, endpoint: HttpEndpoint, path: str
    ) -> web.Response | BadUpload:
        """Return the success of an upload once it is on disk, or its refusal."""
        # Where the headers tell the key, a stranger's body is not even read.
        if endpoint.key_of is not None:
            key = endpoint.key_of(request.headers, request.query)
            refused = refuse_key("api_key", key, self._intake.takes)
            if refused is not None:
                return refused
        if (request.content_length or 0) > endpoint.max_bytes:
            return TOO_LARGE
        with self._budget.hold(client_address(request, self._ip_header)) as held:
            # The bytes are held until the batch is on disk, because it refers to the body.
            taken = await self._decode(await self._read(request, endpoint, held), endpoint, path)
            return taken if isinstance(taken, BadUpload) else await self._store(*taken)

    async def _read(
        self, request: web.BaseRequest, endpoint: HttpEndpoint, held: HeldBody
    ) -> RequestParts | BadUpload:
        """Read a request whole, once there are free bytes for it."""
        try:
            async with asyncio.timeout(self._body_timeout_s) as deadline:
                if await held.grow(LEAST_COST_BYTES):
                    # The wait for bytes was ours: the client's time begins only now.
                    deadline.reschedule(asyncio.get_running_loop().time() + self._body_timeout_s)
                await say_continue(request)
                body = await read_body(request, endpoint.max_bytes, held)
        except TimeoutError:
            return BUSY if held.waits else TOO_SLOW
        except UnreadableBody as error:
            return error.refusal
        self._listener.at_work(request.transport)
        query_text = request.rel_url.raw_query_string
        peer = client_address(request, self._ip_header)
        return RequestParts(request.method, body, request.query, query_text, request.headers, peer)

    async def _decode(
        self, parts: RequestParts | BadUpload, endpoint: HttpEndpoint, path: str
    ) -> tuple[Batch, GoodUpload, bool] | BadUpload:
        """Decode a request, in a thread where that takes long."""
        if isinstance(parts, BadUpload):
            return parts
        if len(parts.body) <= HEAVY_BYTES:
            return self._decode_now(parts, endpoint, path)
        # The interpreter's lock is shared, but the thread lets small requests in between.
        async with self._heavy:
            return await asyncio.to_thread(self._decode_now, parts, endpoint, path)

    def _decode_now(
        self, parts: RequestParts, endpoint: HttpEndpoint, path: str
    ) -> tuple[Batch, GoodUpload, bool] | BadUpload:
        """Return a request's batch, its answer of success, and whether that is plain text."""
        upload = endpoint.decode(parts, self._intake.takes)
        if isinstance(upload, BadUpload):
            return upload
        now_ms = self._now_ms()
        batch = checked_batch(
            upload, f"http {path}", max_event_bytes=self._max_event_bytes, received_ms=now_ms
        )
        if isinstance(batch, BadUpload):
            return batch
        # Not for relays: events from Amplitude itself, and from a relay of this same process. Both
        # would go round in circles.
        if path != WEBHOOK and parts.headers.get(VIA) != THIS_PROCESS:
            batch.original = Original(
                parts.method, path, parts.query_text, parts.content_type, parts.body, parts.peer
            )
        return batch, GoodUpload(200, len(batch.raws), len(parts.body), now_ms), upload.in_text

    async def _store(
        self, batch: Batch, good: GoodUpload, in_text: bool
    ) -> web.Response | BadUpload:
        """Hand a batch over, and answer once it is on disk."""
        assert batch.api_key is not None
        throttled = await self._limits.refuse(batch.api_key, batch.heads or ())
        if throttled is not None:
            return throttled
        try:
            ticket = await self._intake.send(batch)
            await ticket.wait()
        except UnknownApiKey:
            return unknown_key(batch.api_key)
        except Refused as error:
            return BadUpload(503, f"Service unavailable: {error.reason}")
        return web.Response(text=SUCCESS) if in_text else json_response(good, 200)
