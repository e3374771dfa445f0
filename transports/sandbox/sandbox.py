"""A local Intercom: a pure state machine with an aiohttp face and an in-process face.

Rules
=====
Every call passes the same stations, and what it changes is changed at its arrival:

    fault? ─► token ─► rate window ─► fault's status? ─► version ─► route ─► journal ─► latency

- ``refuse`` and ``html`` (a proxy's answer) never reach the workspace. ``reset``, ``hang`` and
  ``half`` lose the answer of a call that *was* carried out, unless the fault's ``done`` says no.
- Every authenticated call costs one of its window: 404, 409, 400 and 500 alike (recordings). A 401
  costs nothing and has no rate headers (rate limiting page).
- Every call that arrives is in the journal, byte for byte; those that ``refuse`` turned away, too.

What a call does then is in ``transports.sandbox.routes``; what it does it to, and how the facts are
graded, in ``transports.sandbox.workspace``.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, Final, Literal, NamedTuple

import anyio
import anyio.lowlevel
import msgspec
from aiohttp import web

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import VERSION, Answer, Request
from amplitude_intercom.transports.reasons import NoAnswerCause
from amplitude_intercom.transports.sandbox.routes import Done, Routes, Rules
from amplitude_intercom.transports.sandbox.workspace import (
    Attributes,
    Contact,
    Directory,
    Refusal,
    StoredEvent,
)

WINDOW_S: Final = 10
RESET_LATE_S: Final = 2  # ``X-RateLimit-Reset`` is the window's end plus this (recordings)
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
HANG_S: Final = 120.0
LATENCY_SPREAD: Final = 0.5  # sigma of the log-normal law: the recordings' p95 is 2.3 medians

VERSIONS: Final = frozenset(
    [f"1.{n}" for n in range(5)] + [f"2.{n}" for n in range(18)] + ["Preview", "Unstable"]
)

FAULT_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("unauthorized", "Access Token Invalid"),
    403: ("api_plan_restricted", "Active subscription needed."),
    404: ("not_found", "User Not Found"),
    408: ("request_timeout", "Request Timeout"),
    429: ("too_many_requests", "Too many requests"),
    500: ("server_error", "Server Error"),
    503: ("service_unavailable", "Sorry, the API service is temporarily unavailable"),
    504: ("server_timeout", "Server Timeout"),
}

NO_TOKEN: Final = ""
"""What a call over HTTP without an access token brings."""

NO_ANSWER: Final = {
    "hang": NoAnswerCause.TIMEOUT,
    "reset": NoAnswerCause.RESET,
    "half": NoAnswerCause.INCOMPLETE,
    "refuse": NoAnswerCause.REFUSED,
}

_ABSURD_HEADERS: Final[Sequence[Mapping[str, str]]] = [
    {"x-ratelimit-limit": "0", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    {"x-ratelimit-limit": "-5", "x-ratelimit-remaining": "-5", "x-ratelimit-reset": "-5"},
    {"x-ratelimit-limit": "9" * 40, "x-ratelimit-remaining": "1.5", "x-ratelimit-reset": "soon"},
    {"x-ratelimit-remaining": "9999999", "x-ratelimit-reset": "1"},
]

_HTML: Final = b"<html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
_NONE: Final[Mapping[str, str]] = {}
_IS_HTML: Final = {"content-type": "text/html"}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that goes wrong with some calls, for some time.

    ``share`` of the matching calls is hit, by a seeded draw. ``start_s`` and ``end_s`` are seconds
    since the sandbox's start. ``path`` is a prefix; ``contains`` is a text of the body (a poison
    event). ``done``: whether a call whose answer is lost was carried out. Over HTTP ``refuse`` is
    a connection that is reset.
    """

    kind: Literal["status", "html", "hang", "reset", "half", "refuse"]
    status: int = 500
    share: float = 1.0
    start_s: float = 0.0
    end_s: float = math.inf
    path: str = ""
    contains: str = ""
    done: bool = True

    def covers(self, since_start_s: float, request: Request) -> bool:
        """Return whether a call at this instant is one of those that can be hit."""
        return (
            self.start_s <= since_start_s < self.end_s
            and request.path.startswith(self.path)
            and (not self.contains or self.contains.encode() in (request.body or b""))
        )

    @property
    def keeps_out(self) -> bool:
        """Whether a call that is hit does not reach the workspace."""
        return self.kind in ("refuse", "html") or (self.kind in NO_ANSWER and not self.done)


class JournalEntry(msgspec.Struct, frozen=True):
    """One call as it came in and what became of it.

    ``status`` is 0 when no answer was given. ``outcome`` is what the call did to the workspace
    (``stored``, ``duplicate``, ``created``, ``updated``, ``read``, …), the error code of a call
    that was turned down, or the kind of the fault that kept it out.
    """

    at_s: float
    method: str
    path: str
    body: bytes
    status: int
    outcome: str
    contact_id: str = ""


class Arrival(NamedTuple):
    """A call at the sandbox's door."""

    at_s: float
    request: Request
    authorization: str | None
    version: str | None
    request_id: str


class Reply(msgspec.Struct, frozen=True):
    """An answer and what shall happen to it on its way: ``cut`` is a fault's kind or empty."""

    answer: Answer
    cut: str = ""
    latency_s: float = 0.0


def _refused(refusal: Refusal, request_id: str) -> Done:
    """Return the error envelope (API description; reference on errors)."""
    errors = [{"code": refusal.code, "message": refusal.message}]
    envelope = {"type": "error.list", "request_id": request_id, "errors": errors}
    link = {"link": f'<{refusal.link}>; rel="canonical"'} if refusal.link else {}
    return Done(refusal.status, msgspec.json.encode(envelope), refusal.code, "", link)


def _check_version(version: str | None) -> None:
    if version is not None and version not in VERSIONS:
        text = "The requested version could not be found"
        raise Refusal(400, "intercom_version_invalid", text)


class Windows:
    """Intercom's rate windows of 10 s (rate limiting page; recordings)."""

    def __init__(
        self, limit_per_minute: int, offset_s: float, *, counts_itself: bool = False
    ) -> None:
        """``counts_itself``: whether a call is counted in the ``Remaining`` of its own answer."""
        self.limit = round(limit_per_minute * WINDOW_S / 60)
        self._offset_s = offset_s
        self._counts_itself = counts_itself
        self._number = -1
        self._used = 0

    def charge(self, at_s: float, calls: int = 1) -> int:
        """Charge calls to the window of an instant; return what was left *before* them."""
        number = math.floor((at_s - self._offset_s) / WINDOW_S)
        if number != self._number:
            self._number, self._used = number, 0
        left = max(0, self.limit - self._used)
        self._used += calls
        return left

    def headers(self, left: int) -> dict[str, str]:
        """Return the headers of a call that was just charged."""
        end_s = self._offset_s + (self._number + 1) * WINDOW_S
        return {
            "x-ratelimit-limit": str(self.limit),
            "x-ratelimit-remaining": str(max(0, left - self._counts_itself)),
            "x-ratelimit-reset": str(math.ceil(end_s) + RESET_LATE_S),
        }


class Sandbox:
    """A workspace, one access token to it, and a journal of what happened.

    Args:
        now: Unix time in seconds, as a function.
        seed: of ids, latencies and the share of faults; the same calls meet the same sandbox.
        limit_per_minute: calls a minute; a sixth of it, rounded, is a window's.
        access_token: the one that is right; None takes any. A call over HTTP needs one in any case.
        latency_s: of each answer, after its call was carried out: a median, with a log-normal law
            around it, or the ends of an even one.
        window_offset_s: where windows begin, after whole tens of seconds.
        search_lag_s: how far search and list are behind the store.
        headers: ``constant`` repeats the first call's rate headers for ever, ``absurd`` has numbers
            that cannot be.
        remaining: whether ``X-RateLimit-Remaining`` is the value before the call that it answers
            (recordings of 2021) or after it (the documentation can be read so).
        attributes: custom attributes that exist, and their data type.
        open_attributes: take any custom attribute.
        strict_email: refuse a new external id with a known e-mail (undocumented, so off).
        teammates: ids that ``owner_id`` may have.
        keeps_duplicates: keep an event that is sent again as another one ("may" be ignored, says
            the API description).
        event_lag_s: how far the list of a contact's events is behind (undocumented, so 0).
        workspace_id: what ``GET /me`` calls the workspace; two sandboxes are two by this.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        seed: int = 0,
        limit_per_minute: int = 10_000,
        access_token: str | None = None,
        latency_s: float | tuple[float, float] = 0.0,
        faults: Sequence[Fault] = (),
        window_offset_s: float = 0.0,
        search_lag_s: float = 0.0,
        headers: Literal["normal", "absent", "constant", "absurd"] = "normal",
        remaining: Literal["before", "after"] = "before",
        attributes: Mapping[str, str] | None = None,
        open_attributes: bool = False,
        max_event_names: int = 120,
        metadata_keys_kept: int = 20,
        strict_email: bool = False,
        region: str = "US",
        teammates: Collection[str] = ("1",),
        keeps_duplicates: bool = False,
        event_lag_s: float = 0.0,
        workspace_id: str = "sandbox1",
    ) -> None:
        self.access_token = access_token
        self.token_revoked = False
        self.faults = list(faults)
        self.journal: list[JournalEntry] = []
        self.throttled = 0
        self._now = now
        self._start_s = now()
        self._latency_s = latency_s
        self._header_mode = headers
        self._first_headers: dict[str, str] | None = None
        self._windows = Windows(
            limit_per_minute, window_offset_s, counts_itself=remaining == "after"
        )
        self._dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._directory = Directory(search_lag_s)
        rules = Rules(
            max_event_names,
            metadata_keys_kept,
            strict_email,
            region,
            teammates,
            keeps_duplicates,
            event_lag_s,
            workspace_id,
        )
        known = Attributes(attributes or {}, open_attributes)
        self._routes = Routes(rules, self._directory, known, random.Random(seed))  # noqa: S311 - the same
        self._ids = f"00{seed & 0xFFFFFFFF:08x}"
        self._date = (-1, "")

    def __repr__(self) -> str:
        return (
            f"Sandbox({len(self.contacts)} contacts, {len(self.events)} events, "
            f"{len(self.journal)} calls, {self.throttled} throttled)"
        )

    @property
    def contacts(self) -> Mapping[str, Contact]:
        """All contacts by id, in every state."""
        return self._directory.by_id

    @property
    def events(self) -> list[StoredEvent]:
        """The events that were stored, in order of arrival; duplicates are not among them."""
        return self._routes.events

    @property
    def event_names(self) -> set[str]:
        """The active event names, in lower case; taking one out is what archiving it does."""
        return self._routes.event_names

    @property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """The custom attributes by name, as the list of data attributes shows them."""
        return self._routes.attributes.custom

    @property
    def calls(self) -> int:
        """How many calls arrived; those that were turned away at the door did not."""
        return sum(entry.outcome != "refuse" for entry in self.journal)

    @property
    def limit(self) -> int:
        """Calls that a window allows."""
        return self._windows.limit

    def most_calls_in(self, span_s: float = WINDOW_S) -> int:
        """Return the most calls that arrived within a span of time, wherever it starts."""
        times = [entry.at_s for entry in self.journal if entry.outcome != "refuse"]
        first = most = 0
        for last, at_s in enumerate(times):
            while times[first] <= at_s - span_s:
                first += 1
            most = max(most, last - first + 1)
        return most

    # what a test or a demo does behind the API's back

    def add_contact(
        self, external_id: str | None = None, email: str | None = None, **fields: Any
    ) -> str:
        """Store a contact, at once in search too, and return its id; no rule is asked."""
        fields |= {"external_id": external_id, "email": email or ""}
        contact = self._routes.add(self._now(), **fields)
        self._directory.index(contact)
        return contact.id

    def merge(self, from_id: str, into_id: str) -> None:
        """Merge one contact into another, whatever their roles."""
        self._routes.merge(self.contacts[from_id], self.contacts[into_id], self._now())

    def archive(self, contact_id: str) -> None:
        """Archive a contact."""
        self.change_contact(contact_id, state="archived")

    def delete(self, contact_id: str) -> None:
        """Delete a contact, for good."""
        self.change_contact(contact_id, state="deleted")

    def change_contact(
        self, contact_id: str, *, custom_attributes: Mapping[str, Any] | None = None, **fields: Any
    ) -> None:
        """Write fields of a contact in any state; attributes that are not named stay."""
        contact = self.contacts[contact_id]
        if custom_attributes:
            fields["custom_attributes"] = {**contact.custom_attributes, **custom_attributes}
        self._routes.change(contact, self._now(), **fields)

    def revoke_token(self) -> None:
        """Answer 401 from now on."""
        self.token_revoked = True

    def restore_token(self) -> None:
        """Let the access token in again."""
        self.token_revoked = False

    def change_limit(self, per_minute: int) -> None:
        """Allow so many calls a minute from now on."""
        self._windows.limit = round(per_minute * WINDOW_S / 60)

    def set_latency_s(self, latency_s: float | tuple[float, float]) -> None:
        """Answer with another latency from now on."""
        self._latency_s = latency_s

    def foreign_calls(self, count: int) -> None:
        """Let another client of the same token take calls of the present window."""
        self._windows.charge(self._now(), count)

    # a call

    def handle(
        self, request: Request, authorization: str | None = None, version: str | None = None
    ) -> Answer:
        """Answer a call at once, without latency.

        Raises:
            NoAnswer: a fault took the answer.
        """
        reply = self.receive(request, authorization, version)
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer

    def receive(
        self, request: Request, authorization: str | None = None, version: str | None = None
    ) -> Reply:
        """Carry a call out, put it into the journal, and return what is to be answered and how."""
        request_id = f"{self._ids}{len(self.journal):010x}"
        arrival = Arrival(self._now(), request, authorization, version, request_id)
        fault = self._draw_fault(arrival) if self.faults else None
        cut = fault.kind if fault is not None and fault.kind in NO_ANSWER else ""
        if fault is not None and fault.keeps_out:
            done, rate = Done(fault.status, _HTML, fault.kind, headers=_IS_HTML), _NONE
        else:
            done, rate = self._serve(arrival, fault)
        self._note(arrival, done, cut)
        headers = {**self._headers(arrival), **rate, **done.headers}
        if not done.body:
            del headers["content-type"]  # a 202 has no body, and so nothing that it could be
        return Reply(Answer(done.status, headers, done.body), cut, self._draw_latency_s())

    def _serve(self, arrival: Arrival, fault: Fault | None) -> tuple[Done, Mapping[str, str]]:
        """Return what becomes of a call that got through, and its rate headers."""
        rate = _NONE
        try:
            self._authorize(arrival.authorization)
            left = self._windows.charge(arrival.at_s)
            rate = self._rate_headers(left)
            self._throttle(left)
            if fault is not None and fault.kind == "status":
                raise Refusal(fault.status, *FAULT_ERRORS.get(fault.status, ("fault", "Fault")))
            _check_version(arrival.version)
            request = arrival.request
            body = request.body or b""
            return self._routes.run(arrival.at_s, request.method, request.path, body), rate
        except Refusal as refusal:
            return _refused(refusal, arrival.request_id), rate if refusal.status != 401 else _NONE

    def _note(self, arrival: Arrival, done: Done, cut: str) -> None:
        at_s, request = arrival.at_s, arrival.request
        status = 0 if cut else done.status
        body = request.body or b""
        self.journal.append(
            JournalEntry(
                at_s, request.method, request.path, body, status, done.outcome, done.contact_id
            )
        )

    def _headers(self, arrival: Arrival) -> dict[str, str]:
        return {
            "content-type": "application/json; charset=utf-8",
            "date": self._http_date(int(arrival.at_s)),
            "intercom-version": arrival.version or VERSION,
            "x-request-id": arrival.request_id,
        }

    def _authorize(self, authorization: str | None) -> None:
        if self.token_revoked:
            raise Refusal(401, "token_revoked", "Access Token Invalid")
        if authorization == NO_TOKEN:
            raise Refusal(401, "unauthorized", "Access Token Invalid")
        if self.access_token is not None and authorization != f"Bearer {self.access_token}":
            raise Refusal(401, "unauthorized", "Access Token Invalid")

    def _throttle(self, left: int) -> None:
        """Refuse what is over the limit, in the words of a captured 429 (intercom-node 4.0.0)."""
        if left <= 0:
            self.throttled += 1
            text = f"Exceeded rate limit of {self.limit} in {WINDOW_S}_seconds"
            raise Refusal(429, "rate_limit_exceeded", text)

    def _rate_headers(self, left: int) -> Mapping[str, str]:
        if self._header_mode == "absent":
            return {}
        if self._header_mode == "normal":
            return self._windows.headers(left)
        if self._header_mode == "absurd":
            return self._dice.choice(_ABSURD_HEADERS)
        if self._first_headers is None:
            self._first_headers = self._windows.headers(left)
        return self._first_headers

    def _draw_fault(self, arrival: Arrival) -> Fault | None:
        since_start_s = arrival.at_s - self._start_s
        for fault in self.faults:
            if fault.covers(since_start_s, arrival.request) and self._dice.random() < fault.share:
                return fault
        return None

    def _draw_latency_s(self) -> float:
        if isinstance(self._latency_s, tuple):
            return self._dice.uniform(*self._latency_s)
        if self._latency_s <= 0:
            return 0.0
        return self._latency_s * math.exp(self._dice.gauss(0.0, LATENCY_SPREAD))

    def _http_date(self, second: int) -> str:
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]


class InProcess:
    """A wire to a sandbox, without sockets: latency and faults happen in the caller's loop.

    It sends the sandbox's own token unless another is given.
    """

    def __init__(
        self, sandbox: Sandbox, *, access_token: str | None = None, timeout_s: float = 30.0
    ) -> None:
        token = access_token or sandbox.access_token
        self._sandbox = sandbox
        self._authorization = None if token is None else f"Bearer {token}"
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"InProcess({self._sandbox!r})"

    async def send(self, request: Request) -> Answer:
        """Carry a call out at once, then wait for its answer; cancelling loses the answer only.

        Raises:
            NoAnswer: a fault took the answer, or it comes later than ``timeout_s``.
        """
        reply = self._sandbox.receive(request, self._authorization)
        if reply.cut == "hang" or reply.latency_s >= self._timeout_s:
            await anyio.sleep(self._timeout_s)
            raise NoAnswer(NoAnswerCause.TIMEOUT)
        if reply.latency_s > 0:
            await anyio.sleep(reply.latency_s)
        else:
            await anyio.lowlevel.checkpoint()
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer


def application(sandbox: Sandbox) -> web.Application:
    """Return the HTTP face: every method and path goes to the sandbox, faults become real."""

    async def respond(http: web.Request) -> web.StreamResponse:
        request = Request(http.method, http.raw_path, await http.read() or None)
        sent = http.headers
        authorization = sent.get("Authorization", NO_TOKEN)
        reply = sandbox.receive(request, authorization, sent.get("Intercom-Version"))
        if reply.latency_s > 0:
            await anyio.sleep(reply.latency_s)
        return await (cut_off(http, reply) if reply.cut else _whole(reply.answer))

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", respond)
    app.on_response_prepare.append(_without_type)
    return app


async def _whole(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def _without_type(_: web.BaseRequest, response: web.StreamResponse) -> None:
    """Leave the type out where there is no body: aiohttp adds one by itself."""
    if response.content_length == 0:
        response.headers.popall("Content-Type", None)


async def cut_off(http: web.Request, reply: Reply) -> web.StreamResponse:
    """Break the connection: after half an answer, after a long time, or at once."""
    response = web.StreamResponse(status=reply.answer.status, headers=reply.answer.headers)
    if reply.cut == "half":
        body = reply.answer.body
        response.content_length = len(body) + 1
        await response.prepare(http)
        await response.write(body[: len(body) // 2] or b" "[: len(body)])
    elif reply.cut == "hang":
        await anyio.sleep(HANG_S)
    if http.transport is not None:
        http.transport.close()
    return response


@asynccontextmanager
async def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve a sandbox over HTTP for as long as the context lasts; yield its base URL."""
    async with serve_application(application(sandbox), host, port) as url:
        yield url


@asynccontextmanager
async def serve_application(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serve an application for as long as the context lasts; yield its base URL."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        await runner.cleanup()
