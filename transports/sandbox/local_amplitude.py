"""A local Amplitude, for a relay to send to and for exports.

Rules
=====
Every call passes the same stations, and its events are stored at its arrival:

    fault? ─► route ─► size ─► key ─► each event ─► silenced? ─► rate ─► stored, or a duplicate

- A request with one bad event is refused as a whole, and all bad indexes are listed.
- If a device, or a user, sends faster than the limit, its events are listed in a 429, and nothing
  of the request is stored.
- An event with an insert id that its device has sent within seven days is answered like any other,
  and not stored again.
- Hours are exported as they are kept: a ZIP of gzipped lines, by the hour of their arrival.

The facts are those of ``transports.amplitude`` and ``transports.uploads`` (pages HTTP V2, Batch,
Identify and Export API). The checks are written anew, because the relay is tested against them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.amplitude_archives import (
    LONGEST_EXPORT,
    Ingested,
    archive_of,
    hour_of,
    keys_of,
)
from amplitude_intercom.transports.sandbox.amplitude_uploads import (
    MAX_BYTES,
    MIN_ID_LENGTH,
    OTHER_BYTES,
    AmplitudeRefusal,
    begins_with,
    check_events,
    check_silenced,
    clock_skew_ms,
    read_form,
    read_json,
    time_ms_of,
    unpacked,
)
from amplitude_intercom.transports.sandbox.device_rates import EVENTS_PER_S, DeviceRates
from amplitude_intercom.transports.sandbox.faults import NO_ANSWER, Fault, Reply, draw_fault
from amplitude_intercom.transports.sandbox.journal import JournalEntry

MAX_EVENTS: Final = 2_000
KNOWN_AGAIN_S: Final = 7 * 86_400.0
_HTML: Final = b"<html><body>Bad Gateway</body></html>"


class LocalAmplitude:
    """Amplitude projects by API key, their events, and a journal of all calls.

    Args:
        now: Unix time in seconds, as a function.
        seed: of the share of faults.
        projects: valid API keys, and the secret key of each; None takes any key.
        events_per_s: of one device, or one user, by path; 0: no limit.
        latency_s: of each answer.
        faults: may be added and removed at any time.
        most_exported: most events of one export; for more it answers 400.
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
        self._rates = DeviceRates(events_per_s)
        self._latency_s = latency_s
        self._most_exported = most_exported
        self.faults = list(faults)
        self.silenced: set[str] = set()
        """Devices with refused events, as if they had sent too much for too long."""
        self.events: list[Ingested] = []
        """The stored events in order of arrival, without duplicates."""
        self.group_identifies: list[dict[str, Any]] = []
        self.duplicates = 0
        self.journal: list[JournalEntry] = []
        self._known: dict[tuple[str, str, str], float] = {}

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
        """Carry a call out, note it in the journal, and return its answer with latency and cut."""
        at_s = self._now()
        fault = draw_fault(self.faults, at_s - self._start_s, request, self._dice)
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

    def _serve(
        self, at_s: float, request: Request, headers: Mapping[str, str]
    ) -> tuple[Answer, str]:
        path = urlsplit(request.path).path
        try:
            if path == "/api/2/export":
                return self._export(request, headers.get("authorization", "")), "exported"
            body = unpacked(request.body or b"", headers.get("content-encoding", ""))
            stored = self._ingest(at_s, path, request, headers, body)
        except AmplitudeRefusal as refused:
            body = json.dumps(refused.body).encode()
            return Answer(refused.code, {"content-type": "application/json"}, body), str(refused)
        answer = {
            "code": 200,
            "events_ingested": stored,
            "payload_size_bytes": len(body),
            "server_upload_time": int(at_s * 1000),
        }
        return Answer(200, {"content-type": "application/json"}, json.dumps(answer).encode()), "ok"

    def _ingest(
        self,
        at_s: float,
        path: str,
        request: Request,
        headers: Mapping[str, str],
        body: bytes,
    ) -> int:
        """Store the events of a request; return their number."""
        if len(body) > MAX_BYTES.get(path, OTHER_BYTES):
            raise AmplitudeRefusal(413, "Payload too large")
        is_json = path in MAX_BYTES or (path == "/" and begins_with(body, b"{"))
        key, events, more = read_json(body) if is_json else read_form(path, request, headers, body)
        if self._projects is not None and key not in self._projects:
            raise AmplitudeRefusal(400, f"Invalid API key: {key}")
        if len(events) > MAX_EVENTS:
            raise AmplitudeRefusal(413, "Payload too large")
        if path == "/groupidentify":
            self.group_identifies += events
            return len(events)
        check_events(events, int((more.get("options") or {}).get("min_id_length", MIN_ID_LENGTH)))
        check_silenced(events, self.silenced)
        self._rates.charge(at_s, path, events)
        skew_ms = clock_skew_ms(more, at_s)
        for event in events:
            self._store(Ingested(at_s, key, path, event, time_ms_of(event, at_s, skew_ms)))
        return len(events)

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

    def _export(self, request: Request, authorization: str) -> Answer:
        """Return the events of some hours as a ZIP (Export API page)."""
        key, secret = keys_of(authorization)
        if not key or (self._projects is not None and self._projects.get(key) != secret):
            raise AmplitudeRefusal(401, "Unauthorized")
        query = dict(parse_qsl(urlsplit(request.path).query))
        start, end = hour_of(query, "start"), hour_of(query, "end")
        if end < start or end - start > LONGEST_EXPORT:
            raise AmplitudeRefusal(400, "Invalid time range")
        first_s, last_s = start.timestamp(), end.timestamp() + 3600
        found = [e for e in self.events if e.api_key == key and first_s <= e.at_s < last_s]
        if not found:
            raise AmplitudeRefusal(404, "Raw data files not found for the given time range")
        if len(found) > self._most_exported:
            raise AmplitudeRefusal(400, "Exported data is too large: ask for a shorter time range")
        return Answer(200, {"content-type": "application/zip"}, archive_of(found))
