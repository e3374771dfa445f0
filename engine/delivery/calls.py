"""One call to Intercom: its caller, its outcome, and the errors of a call without an answer."""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

import msgspec

from amplitude_intercom.engine.delivery.health import Blame, Who
from amplitude_intercom.engine.errors import EngineError
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.transports.intercom import (
    Answer,
    Request,
    as_text,
    is_error_list,
    is_intercoms,
    parse_error,
)


class Cause(enum.Enum):
    """The reason for which a call has no answer."""

    NOT_SENT = enum.auto()
    """It has not left: a pause after a 429, a refused token, or a closed gate."""
    CIRCUIT_OPEN = enum.auto()
    """It has not left: the endpoint's circuit is open."""
    THROTTLED = enum.auto()
    TOKEN = enum.auto()
    FAILED = enum.auto()


class Answered(msgspec.Struct, frozen=True):
    """Intercom's answer about a call: a 2xx, or a 4xx of its own."""

    answer: Answer


class NotAnswered(msgspec.Struct, frozen=True):
    """The outcome of a call that says nothing about its record; ``failure`` is for people."""

    cause: Cause
    endpoint: str
    failure: Failure | None = None
    blame: Blame = Blame.NOBODYS
    is_sick: bool = False
    """Whether the endpoint is sick, so that a user gets more attempts."""


class Back(NamedTuple):
    """The outcome of a call: an answer that is Intercom's, or a failure; and when it came."""

    outcome: Answer | Failure
    left_s: float
    back_s: float


class Caller(Protocol):
    """The maker of a call: a turn."""

    who: Who
    failed_before: bool

    def note_departure(self) -> None:
        """Note that one of its calls has left."""


class Nobody:
    """The caller of calls that are no user's."""

    who: Who = ("", "")
    failed_before = False

    def note_departure(self) -> None:
        """Do nothing."""


NOBODY: Final = Nobody()


class NotNow(EngineError):
    """A call has no answer, and its turn cannot go on now."""

    def __init__(self, evidence: NotAnswered) -> None:
        super().__init__(f"{evidence.endpoint}: {evidence.cause.name}")
        self.evidence = evidence


class Undeliverable(EngineError):
    """Intercom refuses a record for good: the same call would be refused again."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason} {failure.status} {failure.code} {failure.message}")
        self.failure = failure


class Calls(Protocol):
    """Makes calls with one access token, as ``delivery.gate`` does."""

    async def call(
        self, request: Request, caller: Caller = NOBODY, *, optional: bool = False
    ) -> Answered | NotAnswered:
        """Make a call once; see ``Gate.call``."""
        ...


class CallTally(Protocol):
    """Counts calls that were made (``engine.spool.tally.TakerTally``)."""

    def call(self, endpoint: str, status: int) -> None:
        """Count a call; status 0: it has no answer."""
        ...


class CountedCalls:
    """Makes the calls of one sync, and counts them."""

    def __init__(self, gate: Calls, tally: CallTally) -> None:
        self._gate = gate
        self._tally = tally

    async def call(
        self, request: Request, caller: Caller = NOBODY, *, optional: bool = False
    ) -> Answered | NotAnswered:
        """Make a call once; see ``Gate.call``."""
        outcome = await self._gate.call(request, caller, optional=optional)
        status = _status_of(outcome)
        if status is not None:
            self._tally.call(endpoint_of(request.method, request.path), status)
        return outcome


def _status_of(outcome: Answered | NotAnswered) -> int | None:
    """Return the status of a call's answer (0: it has none); None: it has not left."""
    if isinstance(outcome, Answered):
        return outcome.answer.status
    if outcome.cause in (Cause.NOT_SENT, Cause.CIRCUIT_OPEN):
        return None
    return outcome.failure.status if outcome.failure else 0


class TurnCalls:
    """Makes the calls of one turn."""

    def __init__(self, gate: Calls, turn: Caller) -> None:
        self.gate = gate
        self._turn = turn

    async def call(self, request: Request, *, optional: bool = False) -> Answer:
        """Return the answer to a call; ``optional``: see ``Gate.call``.

        Raises:
            NotNow: there is no answer.
        """
        outcome = await self.gate.call(request, self._turn, optional=optional)
        if isinstance(outcome, NotAnswered):
            raise NotNow(outcome)
        return outcome.answer


_FAILED_STATUSES: Final = frozenset([408])


def is_failure(status: int) -> bool:
    """Return whether a status says nothing about the call itself: 5xx, 408, 1xx and 3xx."""
    return status in _FAILED_STATUSES or status >= 500 or 300 <= status < 400 or status < 200


def outcome_of(request: Request, answer: Answer) -> Answer | Failure:
    """Return an answer about its call, or the failure that any other answer is."""
    if is_failure(answer.status) and is_error_list(answer):
        return failure_of(answer)
    if not is_failure(answer.status) and is_intercoms(request, answer):
        return answer
    kind = as_text(answer.headers.get("content-type", "no content type").partition(";")[0])
    text = f"an answer that is not Intercom's: {answer.status} {kind[:64]}"
    return Failure(DeadReason.USER_FAILING, answer.status, "not_intercom", text)


def failure_of(answer: Answer) -> Failure:
    """Return an answer as the failure of a user's call."""
    said = parse_error(answer)
    return Failure(DeadReason.USER_FAILING, answer.status, said.code, said.message, said.request_id)


def cause_of(failure: Failure) -> str:
    """Return a failure's answer, or its lack, in a few words."""
    said = failure.message or failure.code
    if not failure.status:
        return said
    return f"{failure.status}: {said}" if said else str(failure.status)


@lru_cache(256)
def endpoint_of(method: str, path: str) -> str:
    """Return a call's endpoint: ``PUT /contacts/{id}``."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[:2] == ["contacts", "find_by_external_id"]:
        parts[2:] = ["{id}"]
    elif parts[0] == "contacts" and len(parts) > 1 and parts[1] not in ("search", "merge"):
        parts[1] = "{id}"
    return f"{method} /{'/'.join(parts)}"
