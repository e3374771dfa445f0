"""A local Amplitude: what a relay sends to, and what an export is fetched from.

Rules
=====
Every call passes the same stations, and what it stores is stored at its arrival:

    fault? ─► route ─► size ─► key ─► each event ─► silenced? ─► rate ─► stored, or a duplicate

- A request with one bad event is refused whole, and all bad indexes are listed.
- A device, or a user, that sends faster than the limit has its events listed in a 429; nothing of
  the request is stored.
- An event with an insert id that its device has sent within seven days is answered like any other,
  and not stored again.
- Hours are exported as they are kept: a ZIP of gzipped lines, by the hour of their arrival.

The facts are those of ``transports.amplitude`` and ``transports.uploads`` (pages HTTP V2, Batch,
Identify and Export API); what is checked here is written anew, for the relay is tested against it.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import anyio
import msgspec
from aiohttp import web

from amplitude_intercom.transports.amplitude_times import parse_time
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.reasons import NoAnswerCause
from amplitude_intercom.transports.sandbox.sandbox import (
    NO_ANSWER,
    Fault,
    JournalEntry,
    Reply,
    cut_off,
    serve_application,
)

MAX_EVENTS: Final = 2_000
MAX_BYTES: Final = {"/2/httpapi": 1 << 20, "/batch": 20 << 20}
OTHER_BYTES: Final = 1 << 20
EVENTS_PER_S: Final = {"/2/httpapi": 30.0, "/batch": 1_000.0}
"""Of one device, or of one user (HTTP V2 and Batch pages)."""

KNOWN_AGAIN_S: Final = 7 * 86_400.0
REFUSED_IDS: Final = frozenset(
    "anonymous,nil,none,null,n/a,na,undefined,unknown,,{},lmy47d,0,-1,"
    "00000000-0000-0000-0000-000000000000".split(",")
)
"""Values that no user id or device id may have (HTTP V2 page)."""

MIN_ID_LENGTH: Final = 5
HOUR_FORMAT: Final = "%Y%m%dT%H"
LONGEST_EXPORT: Final = timedelta(days=365)
_HTML: Final = b"<html><body>Bad Gateway</body></html>"


class Ingested(msgspec.Struct, frozen=True):
    """An event that was stored. ``at_s``: Unix time of its arrival, in a request to ``path``.

    ``time_ms``: its own time, as it was corrected; that of its arrival, where it names none.
    """

    at_s: float
    api_key: str
    path: str
    event: dict[str, Any]
    time_ms: int = 0

    @property
    def device(self) -> str:
        """What its order and its insert ids are of."""
        return device_of(self.event)


class Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, code: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.code = code
        self.body = {"code": code, "error": error, **more}


def device_of(event: Mapping[str, Any]) -> str:
    """Return the device of an event; one that names none has its user's."""
    return str(event.get("device_id") or f"user {event.get('user_id')}")


class LocalAmplitude:
    """Amplitude projects by API key, what they were sent, and a journal of what happened.

    Args:
        now: Unix time in seconds, as a function.
        seed: of the share of faults.
        projects: API keys that are right, and the secret key of each; None takes any key.
        events_per_s: of one device, or one user, by path; 0: no limit.
        latency_s: of each answer.
        faults: what goes wrong; more may be added, or taken out, at any time.
        most_exported: events of one export; of more it answers 400.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        seed: int = 0,
        projects: Mapping[str, str] | None = None,
        events_per_s: Mapping[str, float] = EVENTS_PER_S,
        latency_s: float = 0.0,
        faults: Sequence[Fault] = (),
        most_exported: int = 1_000_000,
    ) -> None:
        self._now = now
        self._start_s = now()
        self._dice = random.Random(seed)  # noqa: S311 - the same seed, the same faults
        self._projects = projects
        self._events_per_s = events_per_s
        self._latency_s = latency_s
        self._most_exported = most_exported
        self.faults = list(faults)
        self.silenced: set[str] = set()
        """Devices whose events are refused by name, as those that sent too much for too long."""
        self.events: list[Ingested] = []
        """What was stored, in order of arrival; duplicates are not among them."""
        self.group_identifies: list[dict[str, Any]] = []
        self.duplicates = 0
        self.journal: list[JournalEntry] = []
        self._known: dict[tuple[str, str, str], float] = {}
        self._second = -1
        self._sent: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        return f"LocalAmplitude({len(self.events)} events, {len(self.journal)} calls)"

    def handle(self, request: Request, headers: Mapping[str, str]) -> Answer:
        """Answer a call at once, without latency; names of headers in lower case.

        Raises:
            NoAnswer: a fault took the answer.
        """
        reply = self.receive(request, headers)
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer

    def receive(self, request: Request, headers: Mapping[str, str]) -> Reply:
        """Carry a call out, put it into the journal, and return what is to be answered and how."""
        at_s = self._now()
        fault = self._draw_fault(at_s, request)
        cut = fault.kind if fault is not None and fault.kind in NO_ANSWER else ""
        if fault is not None and (fault.keeps_out or fault.kind == "status"):
            error = {"code": fault.status, "error": "Fault"}
            body = _HTML if fault.kind == "html" else json.dumps(error).encode()
            kind = "text/html" if fault.kind == "html" else "application/json"
            answer, outcome = Answer(fault.status, {"content-type": kind}, body), str(fault.kind)
        else:
            answer, outcome = self._serve(at_s, request, headers)
        status = 0 if cut else answer.status
        body = request.body or b""
        entry = JournalEntry(at_s, request.method, request.path, body, status, outcome)
        self.journal.append(entry)
        return Reply(answer, cut, self._latency_s)

    def _draw_fault(self, at_s: float, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.covers(at_s - self._start_s, request) and self._dice.random() < fault.share:
                return fault
        return None

    def _serve(
        self, at_s: float, request: Request, headers: Mapping[str, str]
    ) -> tuple[Answer, str]:
        path = urlsplit(request.path).path
        try:
            if path == "/api/2/export":
                return self._export(request, headers.get("authorization", "")), "exported"
            body = _unpacked(request.body or b"", headers.get("content-encoding", ""))
            stored = self._ingest(at_s, path, request, headers, body)
        except Refused as refused:
            body = json.dumps(refused.body).encode()
            return Answer(refused.code, {"content-type": "application/json"}, body), str(refused)
        answer = {
            "code": 200,
            "events_ingested": stored,
            "payload_size_bytes": len(body),
            "server_upload_time": int(at_s * 1000),
        }
        return Answer(200, {"content-type": "application/json"}, json.dumps(answer).encode()), "ok"

    # --- ingestion ------------------------------------------------------------------------

    def _ingest(
        self,
        at_s: float,
        path: str,
        request: Request,
        headers: Mapping[str, str],
        body: bytes,
    ) -> int:
        """Store the events of a request; return how many it had."""
        if len(body) > MAX_BYTES.get(path, OTHER_BYTES):
            raise Refused(413, "Payload too large")
        is_json = path in MAX_BYTES or (path == "/" and _begins_with(body, b"{"))
        key, events, more = (
            _json_body(body) if is_json else _form_body(path, request, headers, body)
        )
        if self._projects is not None and key not in self._projects:
            raise Refused(400, f"Invalid API key: {key}")
        if len(events) > MAX_EVENTS:
            raise Refused(413, "Payload too large")
        if path == "/groupidentify":
            self.group_identifies += events
            return len(events)
        _check(events, int((more.get("options") or {}).get("min_id_length", MIN_ID_LENGTH)))
        self._silence(events)
        self._throttle(at_s, path, events)
        skew_ms = _skew_ms(more, at_s)
        for event in events:
            self._store(Ingested(at_s, key, path, event, _time_ms(event, at_s, skew_ms)))
        return len(events)

    def _silence(self, events: Sequence[Mapping[str, Any]]) -> None:
        silenced = [n for n, event in enumerate(events) if device_of(event) in self.silenced]
        if silenced:
            names = sorted({device_of(events[n]) for n in silenced})
            lists = {"silenced_devices": names, "silenced_events": silenced}
            raise Refused(400, "Events silenced for device_id", eps_threshold=1_000, **lists)

    def _throttle(self, at_s: float, path: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a request with events of devices and users that have sent too many this second."""
        limit = self._events_per_s.get(path, 0)
        if not limit:
            return
        if int(at_s) != self._second:
            self._second = int(at_s)
            self._sent.clear()
        owners = [_owners(event) for event in events]
        rates = self._sent + Counter(owner for some in owners for owner in some)
        throttled = [n for n, some in enumerate(owners) if any(rates[o] > limit for o in some)]
        if not throttled:
            self._sent = rates
            return
        over = {owner for n in throttled for owner in owners[n] if rates[owner] > limit}
        raise Refused(
            429,
            "Too many requests for some devices and users",
            eps_threshold=limit,
            throttled_devices={name: rates[k, name] for k, name in over if k == "device"},
            throttled_users={name: rates[k, name] for k, name in over if k == "user"},
            throttled_events=throttled,
        )

    def _store(self, found: Ingested) -> None:
        insert_id = found.event.get("insert_id") or found.event.get("$insert_id")
        if insert_id:
            known = (found.api_key, found.device, str(insert_id))
            last_s = self._known.get(known, float("-inf"))
            self._known[known] = found.at_s
            if found.at_s - last_s < KNOWN_AGAIN_S:
                self.duplicates += 1
                return
        self.events.append(found)

    # --- export ---------------------------------------------------------------------------

    def _export(self, request: Request, authorization: str) -> Answer:
        """Return the events of some hours as a ZIP (Export API page)."""
        key = self._project_of(authorization)
        query = dict(parse_qsl(urlsplit(request.path).query))
        start, end = _hour(query, "start"), _hour(query, "end")
        if end < start or end - start > LONGEST_EXPORT:
            raise Refused(400, "Invalid time range")
        first_s, last_s = start.timestamp(), end.timestamp() + 3600
        found = [e for e in self.events if e.api_key == key and first_s <= e.at_s < last_s]
        if not found:
            raise Refused(404, "Raw data files not found for the given time range")
        if len(found) > self._most_exported:
            raise Refused(400, "Exported data is too large: ask for a shorter time range")
        return Answer(200, {"content-type": "application/zip"}, _archive(found))

    def _project_of(self, authorization: str) -> str:
        kind, _, code = authorization.partition(" ")
        try:
            key, _, secret = base64.b64decode(code, validate=True).decode().partition(":")
        except ValueError:
            key = secret = ""
        is_right = self._projects is None or self._projects.get(key) == secret
        if kind.lower() != "basic" or not key or not is_right:
            raise Refused(401, "Unauthorized")
        return key


LEAST_SKEW_MS: Final = 60_000
"""A difference between two clocks that is less is left alone (Export API page, ``event_time``)."""


def _skew_ms(more: Mapping[str, Any], at_s: float) -> int:
    """Return by how much the client's clock is behind, by its time of sending; 0: by little."""
    sent = more.get("client_upload_time") or more.get("upload_time")
    if not sent:
        return 0
    skew_ms = int(at_s * 1000) - parse_time(int(sent) if str(sent).isdecimal() else sent)
    return skew_ms if abs(skew_ms) >= LEAST_SKEW_MS else 0


def _time_ms(event: Mapping[str, Any], at_s: float, skew_ms: int) -> int:
    written = event.get("time") or event.get("timestamp")
    return int(at_s * 1000) if written is None else int(written) + skew_ms


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding != "gzip":
        return body
    try:
        return gzip.decompress(body)
    except (OSError, EOFError):
        raise Refused(400, "Invalid JSON request body") from None


def _begins_with(body: bytes, text: bytes) -> bool:
    return body.lstrip()[:1] == text


_Body = tuple[str, list[dict[str, Any]], dict[str, Any]]
"""The API key, the events, and what is beside them."""


def _json_body(body: bytes) -> _Body:
    if not body:
        raise Refused(400, "Missing request body")
    found = _loaded(body)
    if not isinstance(found, dict):
        raise Refused(400, "Invalid JSON request body")
    for field, kind in (("api_key", str), ("events", list)):
        if not isinstance(found.get(field), kind):
            raise Refused(400, "Request missing required field", missing_field=field)
    events = found["events"]
    if not all(isinstance(event, dict) for event in events):
        raise Refused(400, "Invalid event JSON")
    return found["api_key"], events, found


def _form_body(path: str, request: Request, headers: Mapping[str, str], body: bytes) -> _Body:
    query = urlsplit(request.path).query
    text = query if request.method == "GET" else body.decode("utf-8", "replace")
    if "json" in headers.get("content-type", ""):
        form = _loaded(body)
    else:
        form = dict(parse_qsl(text, keep_blank_values=True))
    names = {
        "/": ("client", "e"),
        "/httpapi": ("api_key", "event"),
        "/identify": ("api_key", "identification"),
        "/groupidentify": ("api_key", "identification"),
    }.get(path)
    if names is None:
        raise Refused(404, "Invalid request path")
    key, content = (form.get(name) for name in names)
    if not key or content is None:
        raise Refused(400, "missing_event")
    found = _loaded(content.encode()) if isinstance(content, str) else content
    events = found if isinstance(found, list) else [found]
    if not all(isinstance(event, dict) for event in events):
        raise Refused(400, "invalid_event_field")
    if path == "/identify":
        events = [{"event_type": "$identify", **event} for event in events]
    return str(key), events, form


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(400, "Invalid JSON request body") from None


def _check(events: Sequence[Mapping[str, Any]], min_id_length: int) -> None:
    """Refuse events of which one is bad, with all that are listed.

    Raises:
        Refused: one is.
    """
    missing: defaultdict[str, list[int]] = defaultdict(list)
    invalid: defaultdict[str, list[int]] = defaultdict(list)
    short: defaultdict[str, list[int]] = defaultdict(list)
    for n, event in enumerate(events):
        ids = {name: event[name] for name in ("user_id", "device_id") if event.get(name)}
        if not event.get("event_type"):
            missing["event_type"].append(n)
        if not ids and event.get("event_type") != "$groupidentify":
            missing["user_id"].append(n)
        for name, value in ids.items():
            if str(value).lower() in REFUSED_IDS:
                invalid[name].append(n)
            elif len(str(value)) < min_id_length:
                short[name].append(n)
        if not isinstance(event.get("time", 0), int | float):
            invalid["time"].append(n)
    lists = {
        "events_with_missing_fields": dict(missing),
        "events_with_invalid_fields": dict(invalid),
        "events_with_invalid_id_lengths": dict(short),
    }
    if missing or invalid or short:
        said = {name: found for name, found in lists.items() if found}
        raise Refused(400, "Invalid field values on some events", **said)


def _owners(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return whose events are counted with this one: its device's, and its user's."""
    kinds = ("device", "user")
    return [(kind, str(event[f"{kind}_id"])) for kind in kinds if event.get(f"{kind}_id")]


def _hour(query: Mapping[str, str], name: str) -> datetime:
    try:
        return datetime.strptime(query.get(name, ""), HOUR_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise Refused(400, f"Invalid {name}: expected YYYYMMDDTHH") from None


def _archive(events: Sequence[Ingested]) -> bytes:
    """Return events as the Export API packs them: a ZIP of gzipped lines, a member an hour."""
    by_hour: defaultdict[datetime, list[bytes]] = defaultdict(list)
    for found in events:
        at = datetime.fromtimestamp(found.at_s, UTC)
        by_hour[at.replace(minute=0, second=0, microsecond=0)].append(_exported(found, at))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for hour, lines in sorted(by_hour.items()):
            name = f"100/100_{hour:%Y-%m-%d}_{hour.hour}#0.json.gz"
            archive.writestr(name, gzip.compress(b"\n".join([*lines, b""])))
    return packed.getvalue()


def _exported(found: Ingested, at: datetime) -> bytes:
    """Return an event as a line of an export: with other names, and times as texts."""
    event = dict(found.event)
    time_ms = event.pop("time", None)
    when = at if time_ms is None else datetime.fromtimestamp(float(time_ms) / 1000, UTC)
    event["event_time"] = f"{when:%Y-%m-%d %H:%M:%S.%f}"
    event["server_upload_time"] = f"{at:%Y-%m-%d %H:%M:%S.%f}"
    event["$insert_id"] = event.pop("insert_id", None)
    return msgspec.json.encode(event)


class AmplitudeInProcess:
    """A wire to a local Amplitude, without sockets: latency and faults happen in the caller's loop.

    ``sent``: what was sent, in order.
    """

    def __init__(self, local: LocalAmplitude, *, timeout_s: float = 30.0) -> None:
        self._local = local
        self._timeout_s = timeout_s
        self.sent: list[Original] = []

    async def send(self, request: Original) -> Answer:
        """Carry a request out at once, then wait for its answer.

        Raises:
            NoAnswer: a fault took it, or it comes later than ``timeout_s``.
        """
        self.sent.append(request)
        headers = {"content-type": request.content_type}
        reply = self._local.receive(
            Request(request.method, request.target, request.body or None), headers
        )
        if reply.cut == "hang" or reply.latency_s >= self._timeout_s:
            await anyio.sleep(self._timeout_s)
            raise NoAnswer(NoAnswerCause.TIMEOUT)
        await anyio.sleep(reply.latency_s)
        if reply.cut:
            raise NoAnswer(NO_ANSWER[reply.cut])
        return reply.answer


# --- over HTTP ----------------------------------------------------------------------------


def application(local: LocalAmplitude) -> web.Application:
    """Return the HTTP face: every method and path goes to it, faults become real."""

    async def respond(http: web.Request) -> web.StreamResponse:
        request = Request(http.method, http.raw_path, await http.read() or None)
        headers = {name.lower(): value for name, value in http.headers.items()}
        reply = local.receive(request, headers)
        await anyio.sleep(reply.latency_s)
        if reply.cut:
            return await cut_off(http, reply)
        answer = reply.answer
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    most_bytes = 2 * MAX_BYTES["/batch"]
    app = web.Application(client_max_size=most_bytes, handler_args={"auto_decompress": False})
    app.router.add_route("*", "/{path:.*}", respond)
    return app


@asynccontextmanager
async def serve_amplitude(
    local: LocalAmplitude, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve it over HTTP for as long as the context lasts; yield its base URL."""
    async with serve_application(application(local), host, port) as url:
        yield url
