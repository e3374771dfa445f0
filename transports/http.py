"""The HTTP source: accepts the uploads of Amplitude's clients, and answers as Amplitude does.

The answers follow the clients' reactions (behaviour of the Python and Node SDKs):

- always JSON with ``code``: a 200 without it makes one SDK die and the other send again;
- 200 only when the events are on disk;
- 400 lists **every** bad index: the client drops those and sends the rest again;
- 503 while nothing can be taken, on a port that stays open: a refused connection loses the events
  of the Node SDK.

Modules below: ``http_endpoints`` (paths), ``http_receiver`` (one upload), ``http_bodies`` (its
bytes), ``http_server`` (aiohttp's server and answers), ``sockets`` (connections), ``limits``.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.bounds import (
    EventBytes,
    HeldBytes,
    Positive,
    PositiveNumber,
    PositiveSeconds,
)
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.http_endpoints import ENDPOINTS, PAGES, methods_of
from amplitude_intercom.transports.http_figures import HttpFigures
from amplitude_intercom.transports.http_receiver import UploadReceiver
from amplitude_intercom.transports.http_server import (
    BoundedServer,
    allow_origin,
    json_response,
    preflight,
    refusal_response,
)
from amplitude_intercom.transports.limits import ByteBudget, KeyLimits
from amplitude_intercom.transports.refusals import NO_ENDPOINT, Refusals
from amplitude_intercom.transports.sockets import (
    CLOSING_S,
    Listener,
    clean_up,
    share_of_descriptors,
)
from amplitude_intercom.transports.upload_answers import BadUpload

MAX_PORT: Final = 65_535
WRONG_METHOD: Final = BadUpload(405, "Invalid request method")


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

        ``ip_header``: the header in which a trusted proxy in front names clients' addresses.
        ``now_ms``: the time of arrival, by which clients' clocks are corrected.
        """
        host, _, port = listen.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > MAX_PORT:
            raise ValueError(f"listen: expected `host:port`, not {listen!r}")
        self._host, self._port = host.strip("[]"), int(port)
        self._origins = frozenset(cors_origins)
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = min(max_connections, share_of_descriptors(0.5))
        self._budget = ByteBudget(max_held_bytes)
        self._make_receiver = partial(
            UploadReceiver,
            budget=self._budget,
            limits=KeyLimits(key_requests_per_s, key_events_per_s),
            body_timeout_s=body_timeout_s,
            max_event_bytes=max_event_bytes,
            ip_header=ip_header,
            now_ms=now_ms,
        )
        self._refused = Refusals()
        self.figures = HttpFigures()
        self._listener: Listener | None = None
        self._receiver: UploadReceiver | None = None
        self._listening = asyncio.Event()
        self.address = listen

    async def run(self, intake: Intake) -> None:
        """Serve until cancelled; the port is open from the first moment to the last.

        Raises:
            OSError: the address cannot be listened on.
        """
        server = BoundedServer(self._answer, self._refused, self._idle_timeout_s)
        self._listener = Listener(server, self._max_connections, self._idle_timeout_s)
        self._receiver = self._make_receiver(intake, self._listener)
        runner = web.ServerRunner(server, shutdown_timeout=CLOSING_S)
        await runner.setup()
        try:
            async with self._listener.listening(self._host, self._port) as self.address:
                self._listening.set()
                await asyncio.Event().wait()
        finally:
            # Requests in work are still answered: an accepted upload without an answer comes twice.
            await clean_up(runner)

    @property
    def is_listening(self) -> bool:
        """Whether the port was opened."""
        return self._listening.is_set()

    async def listening(self) -> str:
        """Wait until the port is open; return the address."""
        await self._listening.wait()
        return self.address

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return self._listener.open_count if self._listener else 0

    @property
    def held_bytes(self) -> int:
        """Bytes that request bodies hold now, of `max_held_bytes`."""
        return self._budget.held_bytes

    @property
    def refusals(self) -> Counter[tuple[str, str]]:
        """Requests refused since the start, by endpoint and reason."""
        return self._refused.counts

    @property
    def refused_keys(self) -> Counter[str]:
        """Those of them with an API key that no sync or relay takes, by key."""
        return self._refused.keys

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._listener is not None
        path = request.path if request.path == "/" else request.path.rstrip("/")
        # Strangers can make up any number of paths.
        endpoint = path if path in ENDPOINTS else NO_ENDPOINT
        with (
            self.figures.request(endpoint) as timing,
            self._listener.request(request.transport),
        ):
            response = await self._respond(request, path)
            timing.status = response.code if isinstance(response, BadUpload) else response.status
        if isinstance(response, BadUpload):
            self._refused.note(endpoint, response)
            response = refusal_response(response, methods_of(path))
        allow_origin(request, response, self._origins)
        if self._listener.is_nearly_full:
            response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest, path: str) -> web.Response | BadUpload:
        endpoint = ENDPOINTS.get(path)
        if endpoint is None and path not in PAGES:
            return BadUpload(404, "Invalid request path")
        if request.method == "HEAD":
            return web.Response()
        if endpoint is None:
            return json_response(PAGES[path](), 200) if request.method == "GET" else WRONG_METHOD
        if request.method == "OPTIONS":
            return preflight(request)
        if request.method not in endpoint.methods:
            return WRONG_METHOD
        assert self._receiver is not None
        return await self._receiver.receive(request, endpoint, path)
