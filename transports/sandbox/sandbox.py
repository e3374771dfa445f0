"""A local Intercom: a pure state machine, served over HTTP or in-process.

Rules
=====
Every call passes the same stations, and its changes are made at its arrival:

    fault? ─► token ─► rate window ─► fault's status? ─► version ─► route ─► journal ─► latency

- ``refuse`` and ``html`` (a proxy's answer) never reach the workspace. ``reset``, ``hang`` and
  ``half`` lose the answer of a call that *was* carried out, unless the fault's ``done`` is false.
- Every authenticated call costs one of its window: 404, 409, 400 and 500 alike (recordings). A 401
  costs nothing and has no rate headers (rate limiting page).
- Every call that arrives is in the journal, byte for byte; those turned away by ``refuse``, too.

``sandbox.routes`` has the effect of each call, ``sandbox.workspace`` the state and the grades of
the facts, ``sandbox.faults`` the faults, ``sandbox.in_process`` and ``sandbox.server`` the wires.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, Unpack

import msgspec

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import VERSION, Answer, Request
from amplitude_intercom.transports.sandbox.attributes import DataAttributes
from amplitude_intercom.transports.sandbox.calls import Done
from amplitude_intercom.transports.sandbox.contacts import Contact, Directory
from amplitude_intercom.transports.sandbox.faults import (
    FAULT_ERRORS,
    NO_ANSWER,
    PROXY_PAGE,
    Fault,
    Reply,
    draw_fault,
    draw_latency_s,
)
from amplitude_intercom.transports.sandbox.journal import JournalEntry, most_calls_in
from amplitude_intercom.transports.sandbox.refusals import Refusal
from amplitude_intercom.transports.sandbox.routes import Routes
from amplitude_intercom.transports.sandbox.windows import WINDOW_S, HeaderMode, Windows
from amplitude_intercom.transports.sandbox.workspace import (
    RuleChoices,
    Rules,
    StoredEvent,
    WorkspaceState,
)

VERSIONS: Final = frozenset(
    [f"1.{n}" for n in range(5)] + [f"2.{n}" for n in range(18)] + ["Preview", "Unstable"]
)

NO_TOKEN: Final = ""
"""The ``authorization`` of a call over HTTP without an access token."""

_NONE: Final[Mapping[str, str]] = {}
_IS_HTML: Final = {"content-type": "text/html"}


class Arrival(NamedTuple):
    """A call as it arrives at the sandbox."""

    at_s: float
    request: Request
    authorization: str | None
    version: str | None
    request_id: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every answer has."""
        return {
            "content-type": "application/json; charset=utf-8",
            "date": _http_date(int(self.at_s)),
            "intercom-version": self.version or VERSION,
            "x-request-id": self.request_id,
        }

    def noted(self, done: Done, cut: str) -> JournalEntry:
        """Return the journal's entry of this call."""
        request = self.request
        return JournalEntry(
            self.at_s,
            request.method,
            request.path,
            request.body or b"",
            0 if cut else done.status,
            done.outcome,
            done.contact_id,
        )


@lru_cache(maxsize=1)  # nearly all calls of a test come within the same second
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _refused(refusal: Refusal, request_id: str) -> Done:
    """Return the error envelope (API description; reference on errors)."""
    errors = [{"code": refusal.code, "message": refusal.message}]
    envelope = {"type": "error.list", "request_id": request_id, "errors": errors}
    link = {"link": f'<{refusal.link}>; rel="canonical"'} if refusal.link else {}
    return Done(refusal.status, msgspec.json.encode(envelope), refusal.code, "", link)


def _check_token(authorization: str | None, access_token: str | None) -> None:
    is_wrong = access_token is not None and authorization != f"Bearer {access_token}"
    if authorization == NO_TOKEN or is_wrong:
        raise Refusal(401, "unauthorized", "Access Token Invalid")


def _check_version(version: str | None) -> None:
    if version is not None and version not in VERSIONS:
        text = "The requested version could not be found"
        raise Refusal(400, "intercom_version_invalid", text)


class Sandbox:
    """A workspace, one access token to it, and a journal of all calls.

    Args:
        now: Unix time in seconds, as a function.
        seed: of ids, latencies and the share of faults; the same calls meet the same sandbox.
        limit_per_minute: calls a minute; a sixth of it, rounded, is a window's.
        access_token: the valid one; None takes any. A call over HTTP needs one in any case.
        latency_s: of each answer, after its call was carried out: a median, with a log-normal law
            around it, or the ends of an even distribution.
        window_offset_s: beginning of the windows after whole tens of seconds.
        search_lag_s: lag of search and list behind the store.
        remaining: whether ``X-RateLimit-Remaining`` is the value before the call that it answers
            (recordings of 2021) or after it (the documentation can be read so).
        attributes: custom attributes that exist, and their data type.
        open_attributes: take any custom attribute.
        rules: see ``workspace.Rules``.
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
        headers: HeaderMode = "normal",
        remaining: Literal["before", "after"] = "before",
        attributes: Mapping[str, str] | None = None,
        open_attributes: bool = False,
        **rules: Unpack[RuleChoices],
    ) -> None:
        self.access_token = access_token
        self.token_revoked = False
        self.faults = list(faults)
        self.journal: list[JournalEntry] = []
        self._now = now
        self._start_s = now()
        self._latency_s = latency_s
        self._ids = f"00{seed & 0xFFFFFFFF:08x}"
        self._dice = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._windows = Windows(limit_per_minute, window_offset_s, self._dice, remaining, headers)
        # Ids have dice of their own, so that a fault does not change the ids of later contacts.
        self._workspace = WorkspaceState(
            Rules(**rules),
            Directory(search_lag_s),
            DataAttributes(attributes or {}, open_attributes),
            random.Random(seed),  # noqa: S311 - the same
        )
        self._routes = Routes(self._workspace)

    def __repr__(self) -> str:
        return (
            f"Sandbox({len(self.contacts)} contacts, {len(self.events)} events, "
            f"{len(self.journal)} calls, {self.throttled} throttled)"
        )

    @property
    def contacts(self) -> Mapping[str, Contact]:
        """All contacts by id, in every state."""
        return self._workspace.contacts.by_id

    @property
    def events(self) -> list[StoredEvent]:
        """The events that were stored, in order of arrival, without duplicates."""
        return self._workspace.events

    @property
    def event_names(self) -> set[str]:
        """The active event names, in lower case. To archive one, remove it."""
        return self._workspace.event_names

    @property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """The custom attributes by name, as the list of data attributes shows them."""
        return self._workspace.attributes.custom

    @property
    def calls(self) -> int:
        """Number of calls that arrived, without those that the fault ``refuse`` turned away."""
        return sum(entry.outcome != "refuse" for entry in self.journal)

    @property
    def limit(self) -> int:
        """Calls that a window allows."""
        return self._windows.limit

    @property
    def throttled(self) -> int:
        """Calls that were refused for the rate."""
        return self._windows.throttled

    def most_calls_in(self, span_s: float = WINDOW_S) -> int:
        """Return the most calls that arrived within a span of time, wherever it starts."""
        return most_calls_in(self.journal, span_s)

    def add_contact(
        self, external_id: str | None = None, email: str | None = None, **fields: Any
    ) -> str:
        """Store a contact, at once in search too, and return its id; no rule is checked."""
        fields |= {"external_id": external_id, "email": email or ""}
        contact = self._workspace.add_contact(self._now(), **fields)
        self._workspace.contacts.index(contact)
        return contact.id

    def merge(self, from_id: str, into_id: str) -> None:
        """Merge one contact into another, whatever their roles."""
        self._workspace.merge_contacts(self.contacts[from_id], self.contacts[into_id], self._now())

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
        self._workspace.change_contact(contact, self._now(), **fields)

    def revoke_token(self) -> None:
        """Answer 401 from now on."""
        self.token_revoked = True

    def restore_token(self) -> None:
        """Let the access token in again."""
        self.token_revoked = False

    def change_limit(self, per_minute: int) -> None:
        """Allow so many calls a minute from now on."""
        self._windows.change_limit(per_minute)

    def set_latency_s(self, latency_s: float | tuple[float, float]) -> None:
        """Answer with another latency from now on."""
        self._latency_s = latency_s

    def foreign_calls(self, count: int) -> None:
        """Let another client of the same token use calls of the present window."""
        self._windows.charge(self._now(), count)

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
        """Carry a call out, note it in the journal, and return its answer with latency and cut."""
        request_id = f"{self._ids}{len(self.journal):010x}"
        arrival = Arrival(self._now(), request, authorization, version, request_id)
        fault = draw_fault(self.faults, arrival.at_s - self._start_s, request, self._dice)
        cut = fault.kind if fault is not None and fault.kind in NO_ANSWER else ""
        if fault is not None and fault.keeps_out:
            done, rate = Done(fault.status, PROXY_PAGE, fault.kind, headers=_IS_HTML), _NONE
        else:
            done, rate = self._serve(arrival, fault)
        self.journal.append(arrival.noted(done, cut))
        headers = {**arrival.headers, **rate, **done.headers}
        if not done.body:
            del headers["content-type"]  # a 202 has no body, so no type
        latency_s = draw_latency_s(self._latency_s, self._dice)
        return Reply(Answer(done.status, headers, done.body), cut, latency_s)

    def _serve(self, arrival: Arrival, fault: Fault | None) -> tuple[Done, Mapping[str, str]]:
        """Return the outcome of a call that got through, and its rate headers."""
        rate = _NONE
        try:
            if self.token_revoked:
                raise Refusal(401, "token_revoked", "Access Token Invalid")
            _check_token(arrival.authorization, self.access_token)
            # Charged before all other checks: a refused call costs as much as any (recordings).
            left = self._windows.charge(arrival.at_s)
            rate = self._windows.headers(left)
            self._windows.check(left)
            if fault is not None and fault.kind == "status":
                raise Refusal(fault.status, *FAULT_ERRORS.get(fault.status, ("fault", "Fault")))
            _check_version(arrival.version)
            return self._routes.run(arrival.at_s, arrival.request), rate
        except Refusal as refusal:
            return _refused(refusal, arrival.request_id), rate if refusal.status != 401 else _NONE
