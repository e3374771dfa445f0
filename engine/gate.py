"""The gate: the one place that limits, pauses, retries and sleeps; one for each access token.

Rules
=====
Pace. Calls leave as ``engine.pace`` says. After a 429 nothing leaves until ``X-RateLimit-Reset``.

Whose trouble. 429, 401 and 403 concern everybody. With a 5xx, a time-out or a broken connection it
is not known at first; the call is *held* until it is:
  - a call of another user that left after the failure is answered   → it was this user's own;
  - calls of ``OUTAGE_USERS`` different users failed without an answer between → everybody's;
  - neither happens for a while                                      → ``GET /me`` decides.
What concerns everybody opens the circuit: one call at a time goes out as a probe, with growing
pauses, until one is answered. Calls that were held go out again, byte for byte, and nobody is
charged an attempt. What is a user's own raises ``ParkUser``.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import anyio
import structlog

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.errors import EngineError, Failure, ParkUser
from amplitude_intercom.engine.pace import WINDOW_S, Pace, loop_time_s, pause_s
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import (
    Answer,
    Request,
    Wire,
    as_text,
    is_error_list,
    is_intercoms,
    me,
    parse_error,
    parse_rate,
)

_log = structlog.get_logger(__name__)

OUTAGE_USERS = 3
UNDECIDED_S = 1.0
RESUME_JITTER_S = 0.5


class Health(enum.StrEnum):
    """What the gate makes of the destination."""

    OPEN = "open"
    THROTTLED = "throttled"
    OUTAGE = "outage"
    UNAUTHORIZED = "unauthorized"


_BEGINS = {
    Health.OUTAGE: "Intercom does not answer: calls wait until it does, nothing is lost",
    Health.UNAUTHORIZED: "Intercom refuses the access token: calls wait until it is taken",
}


class GateClosed(EngineError):
    """The gate was closed before the call left; it was not made."""


class Meaning(enum.Enum):
    """What an answer says, as far as pace and health go."""

    ANSWERED = enum.auto()
    THROTTLED = enum.auto()
    UNAUTHORIZED = enum.auto()
    FAILED = enum.auto()


def meaning_of(status: int) -> Meaning:
    """Return what a status means for everybody; other 4xx are this call's own business."""
    if 200 <= status < 300:
        return Meaning.ANSWERED
    if status == 429:
        return Meaning.THROTTLED
    if status in (401, 403):
        return Meaning.UNAUTHORIZED
    if status == 408 or status >= 500 or status < 400:
        return Meaning.FAILED
    return Meaning.ANSWERED


def _meaning_of(outcome: Answer | Failure, *, optional: bool) -> Meaning:
    if isinstance(outcome, Failure):
        return Meaning.FAILED
    if optional and outcome.status == 403:
        return Meaning.ANSWERED
    return meaning_of(outcome.status)


def _outcome_of(request: Request, answer: Answer) -> Answer | Failure:
    """Return an answer that tells how its call fared, or the failure that it is otherwise."""
    if meaning_of(answer.status) is Meaning.FAILED:
        said = parse_error(answer)
        return Failure(
            DeadReason.USER_FAILING, answer.status, said.code, said.message, said.request_id
        )
    if is_intercoms(request, answer):
        return answer
    kind = as_text(answer.headers.get("content-type", "no content type").partition(";")[0])
    text = f"an answer that is not Intercom's: {answer.status} {kind[:64]}"
    return Failure(DeadReason.USER_FAILING, answer.status, "not_intercom", text)


def _cause_of(outcome: Answer | Failure) -> str:
    """Return an answer, or the lack of one, in a few words."""
    if isinstance(outcome, Failure):
        said = outcome.message or outcome.code
        return f"{outcome.status}: {said}" if outcome.status else said
    said = parse_error(outcome).message or parse_error(outcome).code
    return f"{outcome.status}: {said}" if said else str(outcome.status)


class Return(NamedTuple):
    """What came back of one call, and when."""

    outcome: Answer | Failure
    left_at_s: float
    back_at_s: float


class Blame(enum.Enum):
    """Whether a failed call is the user's own fault or an outage."""

    OWN = enum.auto()
    EVERYBODYS = enum.auto()
    UNDECIDED = enum.auto()


class Probe(enum.Enum):
    """Whether a call leaves as a closed circuit's probe; ``VOUCHED``: ``/me`` was well just now."""

    NO = enum.auto()
    YES = enum.auto()
    VOUCHED = enum.auto()


class Circuit:
    """Whether calls may leave, and whose trouble a failure is. Decides only; the gate acts.

    Calls are numbered as they leave. Instants are seconds of the loop's clock.
    """

    def __init__(self, delay_s: Callable[[int], float]) -> None:
        self._delay_s = delay_s
        self.health = Health.OPEN
        self.closed_until_s = 0.0
        self.probing = False
        self._failures = 0
        self._suspects: dict[str, int] = {}  # user → number of the last call that left before
        self._own: set[str] = set()
        self._probed: set[str] = set()

    def answered(self, user: str, number: int) -> bool:
        """Take in an answer; return whether somebody who waits should look again."""
        was_closed = self.health is not Health.OPEN
        if self.health is not Health.THROTTLED:
            self.health = Health.OPEN
            self.closed_until_s = 0.0
        self._failures = 0
        self._probed.clear()
        self._suspects.pop(user, None)
        alone = {u for u, left_before in self._suspects.items() if number > left_before}
        self._own |= alone
        for suspect in alone:
            del self._suspects[suspect]
        return was_closed or bool(alone)

    def failed(self, user: str, last_number: int, now_s: float, *, probe: bool) -> None:
        """Take in a call that was not answered, ``last_number`` being the last that left."""
        self._suspects[user] = last_number
        if probe:
            self._probed.add(user)
        if probe or self.health is Health.OUTAGE or len(self._suspects) >= OUTAGE_USERS:
            self.close(Health.OUTAGE, now_s)

    def close(self, health: Health, now_s: float) -> None:
        """Let nobody leave but probes. Late answers of earlier calls do not prolong the wait."""
        if self.health is not health or self.closed_until_s <= now_s:
            self._failures += 1
            until_s = now_s + self._delay_s(self._failures)
            self.closed_until_s = max(self.closed_until_s, until_s)
        self.health = health
        self._suspects.clear()

    def throttle(self, wait_s: float, now_s: float) -> None:
        """Let nobody leave for ``wait_s``; then everybody: a 429 is an answer too."""
        self.health = Health.THROTTLED
        self.closed_until_s = max(self.closed_until_s, now_s + wait_s)

    def has_probed(self, user: str) -> bool:
        """Return whether this user's call has failed as a probe of the present outage before."""
        return user in self._probed

    def is_open(self, now_s: float) -> bool:
        """Return whether calls may leave; ends a throttling whose time has come."""
        if self.health is Health.THROTTLED and self.closed_until_s <= now_s:
            self.health = Health.OPEN
        return self.health is Health.OPEN

    def verdict(self, user: str) -> Blame:
        """Return whose trouble this user's last failure was; a verdict of OWN is given once."""
        if user in self._own:
            self._own.discard(user)
            return Blame.OWN
        return Blame.UNDECIDED if user in self._suspects else Blame.EVERYBODYS

    def verdict_pending(self, user: str) -> bool:
        """Return whether a verdict on this user's failure is still open."""
        return user in self._suspects

    def acquit(self, user: str) -> None:
        """Stop waiting for evidence: the destination is well, so it is the user's own."""
        if self._suspects.pop(user, None) is not None:
            self._own.add(user)


class Gate:
    """Sends calls of one access token; see the module's docstring."""

    def __init__(
        self,
        wire: Wire,
        *,
        requests_per_minute: int,
        max_in_flight: int,
        probe_first_s: float = 0.5,
        probe_most_s: float = 10.0,
        now_s: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        name: str = "Intercom",
    ) -> None:
        """``name`` says in logs which Intercom it is: its host, and the syncs that call it."""
        self._wire = wire
        self._name = name
        self._logged = Health.OPEN
        self._logged_at_s = 0.0
        self._pace = Pace(requests_per_minute * WINDOW_S // 60)
        self._max_in_flight = max_in_flight
        self._slots = anyio.CapacityLimiter(max_in_flight)
        self._circuit = Circuit(
            lambda failures: probe_delay_s(failures, probe_first_s, probe_most_s, jitter())
        )
        self._now_s = now_s
        self._jitter = jitter
        self._closed = False
        self._news = asyncio.Event()
        self.calls: Counter[tuple[str, int]] = Counter()
        """Calls made, by endpoint and status (0: no answer)."""
        self.took_s: deque[float] = deque(maxlen=4096)
        """How long the latest calls took, in seconds."""

    def __repr__(self) -> str:
        return f"Gate({self.health}, {self.limit:g} per 10 s, {self.in_flight} in flight)"

    @property
    def health(self) -> Health:
        return self._circuit.health

    @property
    def in_flight(self) -> int:
        """Calls that are out, or next to leave."""
        return int(self._slots.borrowed_tokens)

    @property
    def limit(self) -> float:
        """Calls that a window of 10 s may have."""
        return self._pace.limit

    async def call(
        self,
        request: Request,
        user: str,
        *,
        optional: bool = False,
        places: asyncio.Semaphore | None = None,
    ) -> Answer:
        """Return the answer that concerns this call alone: 2xx, or a 4xx that is its own.

        Waits as long as it takes where everybody has to wait. Cancelled, the call may or may not
        have been done. ``optional``: deliveries can do without it, so that a scope which the token
        lacks for it (403) is this call's own business. ``places``: the call takes one of these as
        it goes out, and keeps it when it is answered; it has none while it is only tried again.

        Raises:
            ParkUser: this user's calls fail and other users' do not.
            GateClosed: the gate was closed before the call left.
        """
        while True:
            if places is not None:
                await places.acquire()
            meaning = Meaning.FAILED
            try:
                outcome, meaning, probe = await self._try(request, user, optional=optional)
            finally:
                if places is not None and meaning is not Meaning.ANSWERED:
                    places.release()
            if isinstance(outcome, Failure):
                if probe is Probe.VOUCHED and outcome.status:
                    raise ParkUser(outcome)
                if await self._is_own_trouble(user, outcome):
                    raise ParkUser(outcome)
            elif meaning is Meaning.ANSWERED:
                return outcome

    async def _try(
        self, request: Request, user: str, *, optional: bool
    ) -> tuple[Answer | Failure, Meaning, Probe]:
        """Make the call once, when there is a slot and it may leave; learn from what comes back."""
        borrower = object()
        await self._take_slot(borrower)
        probe = Probe.NO
        try:
            probe = await self._leave(user)
            self._pace.sent += 1
            number = self._pace.sent
            back = await self._send(request)
            meaning = _meaning_of(back.outcome, optional=optional)
            self._learn(back, meaning, user, number, probe=probe is not Probe.NO)
            return back.outcome, meaning, probe
        finally:
            if probe is not Probe.NO:
                self._end_probe()  # cancelled or failed too: nobody else probes before
            self._slots.release_on_behalf_of(borrower)

    def _end_probe(self) -> None:
        self._circuit.probing = False
        self._tell()

    async def _take_slot(self, borrower: object) -> None:
        """Take one of the calls that may be out at once; wait for one only where there is none."""
        try:
            self._slots.acquire_on_behalf_of_nowait(borrower)
        except anyio.WouldBlock:
            await self._slots.acquire_on_behalf_of(borrower)

    def close(self) -> None:
        """Let no more calls leave; those that are out are finished."""
        self._closed = True
        self._pace.close()
        self._tell()

    async def _send(self, request: Request) -> Return:
        """Send once. A failure is whatever does not tell how *this* call fared."""
        left_at_s = loop_time_s()
        try:
            answer = await self._wire.send(request)
        except NoAnswer as error:
            self.calls[endpoint_of(request.method, request.path), 0] += 1
            self._log_call(request, error.cause, left_at_s)
            failure = Failure(DeadReason.USER_FAILING, 0, error.cause, str(error))
            return Return(failure, left_at_s, loop_time_s())
        back_at_s = loop_time_s()
        self.calls[endpoint_of(request.method, request.path), answer.status] += 1
        self.took_s.append(back_at_s - left_at_s)
        self._log_call(request, answer.status, left_at_s)
        return Return(_outcome_of(request, answer), left_at_s, back_at_s)

    def _log_call(self, request: Request, outcome: int | str, left_at_s: float) -> None:
        if logs.debugging():
            call, took_s = f"{request.method} {request.path}", loop_time_s() - left_at_s
            _log.debug("call made", intercom=self._name, call=call, outcome=outcome, took_s=took_s)

    def _learn(
        self, back: Return, meaning: Meaning, user: str, number: int, *, probe: bool
    ) -> None:
        """Let pace and circuit take in what came back of the ``number``-th call."""
        if isinstance(back.outcome, Failure):
            self._circuit.failed(user, self._pace.sent, back.back_at_s, probe=probe)
        else:
            self._learn_from(back.outcome, back, meaning, user, number)
        self._log_health(back.outcome)

    def _log_health(self, outcome: Answer | Failure) -> None:
        """Log one line when calls begin to wait for Intercom, and one when they no longer do."""
        health = self.health
        if health is self._logged or health is Health.THROTTLED:
            return
        if health is Health.OPEN:
            if isinstance(outcome, Failure):
                return  # a pause is over, and nobody has been answered yet
            after_s = round(loop_time_s() - self._logged_at_s, 1)
            _log.warning("Intercom answers again", intercom=self._name, after_s=after_s)
        else:
            _log.warning(_BEGINS[health], intercom=self._name, cause=_cause_of(outcome))
        self._logged, self._logged_at_s = health, loop_time_s()

    def _learn_from(
        self, answer: Answer, back: Return, meaning: Meaning, user: str, number: int
    ) -> None:
        if meaning is Meaning.ANSWERED or is_error_list(answer):
            self._learn_pace(answer, back, number)
        slots = min(self._max_in_flight, self._pace.in_flight)
        if slots != self._slots.total_tokens:
            self._slots.total_tokens = slots
        if meaning is Meaning.THROTTLED:
            self._throttle(answer)
        elif meaning is Meaning.UNAUTHORIZED:
            self._circuit.close(Health.UNAUTHORIZED, back.back_at_s)
        elif self._circuit.answered(user, number):
            self._tell()

    def _learn_pace(self, answer: Answer, back: Return, number: int) -> None:
        """Let the pace follow the headers of an answer that is Intercom's own."""
        try:
            self._pace.learn(parse_rate(answer.headers), number, back.left_at_s, back.back_at_s)
        except Exception as fault:  # headers that nobody foresaw cost themselves, not the call
            _log.error("internal fault", exc_info=fault, intercom=self._name)

    async def _leave(self, user: str) -> Probe:
        """Wait for this call's turn; return whether it goes out as a closed circuit's probe."""
        while True:
            await self._pace.turn()
            if self._closed:
                raise GateClosed
            now_s = loop_time_s()
            if self._circuit.is_open(now_s):
                return Probe.NO
            wait_s = self._circuit.closed_until_s - now_s
            if wait_s > 0 or self._circuit.probing:
                await self._wait_for_news(wait_s if wait_s > 0 else None)
                continue
            self._circuit.probing = True
            probe = Probe.NO
            try:
                probe = await self._may_probe(user)
            finally:
                if probe is Probe.NO:
                    self._end_probe()
            if probe is not Probe.NO:
                return probe

    async def _may_probe(self, user: str) -> Probe:
        """Ask ``GET /me`` first where a real call would only fail again.

        That is so where the token was refused, and for a call that has failed in this outage
        before: when all that wait fail and ``/me`` is well, each has a trouble of its own.
        """
        if self.health is Health.OUTAGE and not self._circuit.has_probed(user):
            return Probe.YES
        before = self.health
        if await self._destination_is_well():
            return Probe.VOUCHED if before is Health.OUTAGE else Probe.YES
        if self.health is not Health.THROTTLED:
            self._circuit.close(before, loop_time_s())
        return Probe.NO

    async def _destination_is_well(self) -> bool:
        await self._pace.turn()
        if self._closed:
            return False
        outcome = (await self._send(me())).outcome
        if isinstance(outcome, Failure):
            return False
        if meaning_of(outcome.status) is Meaning.THROTTLED:
            self._throttle(outcome)
        return meaning_of(outcome.status) is Meaning.ANSWERED

    def _throttle(self, answer: Answer) -> None:
        wait_s = pause_s(answer, self._now_s()) + self._jitter() * RESUME_JITTER_S
        self._circuit.throttle(wait_s, loop_time_s())

    async def _is_own_trouble(self, user: str, failure: Failure) -> bool:
        """Hold a failed call until it is known whose trouble it is."""
        if self._circuit.verdict_pending(user):
            await self._wait_for_news(UNDECIDED_S)
        while (verdict := self._circuit.verdict(user)) is Blame.UNDECIDED:
            if self._closed:
                raise GateClosed
            wait_s = self._circuit.closed_until_s - loop_time_s()
            if wait_s > 0:
                await self._wait_for_news(wait_s)
            elif await self._destination_is_well():
                self._circuit.acquit(user)
            elif self.health is not Health.THROTTLED:
                self._circuit.close(Health.OUTAGE, loop_time_s())
                self._log_health(failure)
        return verdict is Blame.OWN

    async def _wait_for_news(self, at_most_s: float | None) -> None:
        with anyio.move_on_after(at_most_s):
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


@lru_cache(256)
def endpoint_of(method: str, path: str) -> str:
    """Return a call's name for counting: ``PUT /contacts/{id}``."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[0] == "contacts" and len(parts) > 1 and parts[1] not in ("search", "merge"):
        parts[1] = "{id}"
    return f"{method} /{'/'.join(parts)}"
