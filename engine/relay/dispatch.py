"""The decisions of a relay: which part leaves next, and the consequences of each answer.

Nothing here makes a call or reads the spool; times and random numbers are given.

Rules
=====
| answer | consequence |
|---|---|
| taken, or sorted event by event | settled; throttled devices are held for a time |
| none, or not Amplitude's | the part's devices are held, longer each time; the host may be out |
| a plain 429 | all requests stop until the time that it names |
| a plain 429 again, others taken since | it is about this request: only its devices are held |
| refused API key | the key is held; its requests are given up when they are hours old |
| too large | halves |
| many in a row refused whole | as if not answered: no fault of each of them |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from amplitude_intercom.engine.backoff import unknown_delay_s
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.engine.relay.answers import AnswerKind, Verdict
from amplitude_intercom.engine.relay.failures import RequestFailures
from amplitude_intercom.engine.relay.host import OUTAGE, WELL, AmplitudeHost, RelayState
from amplitude_intercom.engine.relay.keys import RefusedKeys
from amplitude_intercom.engine.relay.part_endings import PartEnding, RefusalStreak, SentPart, losses
from amplitude_intercom.engine.relay.parts import RequestPart
from amplitude_intercom.engine.relay.request_queue import RequestQueue
from amplitude_intercom.engine.spool.relay_requests import WaitingRequest

_log = structlog.get_logger(__name__)

LOG_EVERY_S: Final = 60.0

BY_AMPLITUDE: Final = frozenset(
    {
        AnswerKind.TAKEN,
        AnswerKind.SORTED,
        AnswerKind.REFUSED,
        AnswerKind.BAD_KEY,
        AnswerKind.BUSY,
    }
)
"""Answers that nothing but Amplitude itself gives: they end an outage."""


class Dispatch:
    """See the module's docstring. It starts without any memory, as after a restart."""

    def __init__(self, connections: int, jitter: Callable[[], float]) -> None:
        self.connections = connections
        """Parts that may be out at once."""
        self.queue = RequestQueue()
        self.keys = RefusedKeys()
        self._jitter = jitter
        self._host = AmplitudeHost()
        self._failures = RequestFailures()
        self._streak = RefusalStreak()
        self._logged_s = float("-inf")

    def health(self, now_s: float) -> RelayState:
        """Return the host's state, ``FAILING`` or ``INVALID_KEY``."""
        state = self._host.state(now_s)
        # Some requests fail, but too few for an outage.
        if state == WELL and self._host.said:
            return RelayState.FAILING
        return RelayState.INVALID_KEY if state == WELL and self.keys.said else state

    @property
    def said(self) -> str:
        """The last failure, while it matters."""
        return self._host.said or next(iter(self.keys.said.values()), "")

    def next_look_s(self, now_s: float) -> float | None:
        """Return the instant at which more may leave; None: only an answer changes that."""
        due_s = (self.queue.next_wake_s, self._host.next_look_s(now_s))
        return min((at_s for at_s in due_s if at_s is not None), default=None)

    # --- requests in, parts out -----------------------------------------------------------

    def add(self, requests: Iterable[WaitingRequest]) -> None:
        """Queue requests, in as many parts as their failures ask for."""
        for request in requests:
            self.queue.add(request, self._failures.pieces(request.id))

    def end_pass(self) -> None:
        """End a pass over requests that were held."""
        self.keys.forget(self.queue.end_pass())

    def slots(self, in_flight: int, now_s: float) -> int:
        """Return the number of parts that may leave now."""
        return self._host.slots(self.connections, in_flight, now_s)

    def next(self, now_s: float) -> RequestPart | None:
        """Return a part to send; None: no part is ready."""
        if self._host.begin_departure(now_s):
            return self.queue.newest(self._failures)
        return self.queue.oldest()

    # --- before an answer is settled ------------------------------------------------------

    def judge(self, sent: SentPart, now_s: float, now_ms: int) -> dict[int, Failure]:
        """Judge a part's answer by the others', charge a failure; return the events it loses."""
        sent.verdict = self._streak.judge(sent)
        return losses(sent, gives_up=self._charge(sent, now_s, now_ms))

    def _charge(self, sent: SentPart, now_s: float, now_ms: int) -> bool:
        part, request = sent.part, sent.part.request
        # A failure of ours loses its events anyway: there is nothing to charge.
        if sent.failure is not None:
            return False
        match sent.verdict.kind:
            case AnswerKind.BAD_KEY:
                return self.keys.gives_up(request.api_key, now_ms - request.accepted_at_ms)
            case AnswerKind.NO_ANSWER:
                return self._failures.charge(part, now_s, self._host.last_taken_s)
        return False

    # --- after it -------------------------------------------------------------------------

    def follow(
        self, sent: SentPart, ending: PartEnding, left: int, decided_at_s: float, now_s: float
    ) -> None:
        """Take the consequences of an answer after its ending became durable.

        ``left`` is the number of events that the request still has; ``decided_at_s`` the time at
        which ``judge`` was called.
        """
        part, verdict, request = sent.part, sent.verdict, sent.part.request
        throttled = {request.device(part.indexes[i]) for i in verdict.waiting}
        devices = part.devices  # those before the settled events leave
        self.queue.answered(part, ending.settled)
        if verdict.kind is AnswerKind.NO_ANSWER:
            self._follow_failure(sent, devices, decided_at_s)
        else:
            # A success counts from now, so that it is later than all failures of its round: a
            # request that has failed beside it is charged the next time.
            if verdict.kind in BY_AMPLITUDE and sent.was_sent:
                self._note_answer(now_s, took=verdict.kind in (AnswerKind.TAKEN, AnswerKind.SORTED))
            self._follow_answer(sent, devices, throttled, decided_at_s)
        # Nothing of it will be read again.
        if not left:
            self._failures.forget(request.id)

    def _follow_failure(self, sent: SentPart, devices: set[int], now_s: float) -> None:
        part, request = sent.part, sent.part.request
        self._note_failure(sent.verdict, now_s)
        wait_s = unknown_delay_s(max(1, self._failures.charges(request.id)), self._jitter())
        self.queue.hold(devices if part.indexes else (), now_s + wait_s, request.id)

    def _follow_answer(
        self, sent: SentPart, devices: set[int], throttled: set[int], now_s: float
    ) -> None:
        part, verdict, request = sent.part, sent.verdict, sent.part.request
        until_s = now_s + verdict.wait_s
        match verdict.kind:
            case AnswerKind.BUSY:
                # The same request again, while others are taken: the limit that it meets is one of
                # its own devices, and stopping all requests for it would never end.
                if self._failures.note(request.id, now_s, self._host.last_taken_s):
                    self.queue.hold(devices, until_s, request.id)
                else:
                    self._host.be_busy(verdict.said, until_s)
            case AnswerKind.SORTED if throttled:
                self.queue.hold(throttled, until_s, request.id)
                self._failures.note_throttled(request.id)
            case AnswerKind.BAD_KEY:
                self._follow_bad_key(sent, now_s)
            case AnswerKind.TOO_LARGE if part.indexes:
                self.queue.halve(part)
            case AnswerKind.TAKEN if sent.original is not None:
                self.keys.take(request.api_key)

    def _follow_bad_key(self, sent: SentPart, now_s: float) -> None:
        key = sent.part.request.api_key
        if not sent.part.indexes:  # given up
            self.keys.forget([key])
            return
        # Several requests with the key may come back in one round: the first one holds it.
        wait_s = self.keys.refuse(key, sent.verdict.said, is_new=not self.queue.is_held(key))
        self.queue.hold_key(key, now_s + wait_s, sent.part.request.id)

    def _note_failure(self, verdict: Verdict, now_s: float) -> None:
        before = self._host.state(now_s)
        self._host.failed(verdict.said, now_s, self._jitter())
        if self._host.state(now_s) != before or now_s >= self._logged_s + LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "Amplitude does not answer, or somebody else does: it is tried again",
                status=verdict.status,
                said=verdict.said,
                health=self._host.state(now_s),
            )

    def _note_answer(self, now_s: float, *, took: bool) -> None:
        if self._host.state(now_s) == OUTAGE:
            _log.info("Amplitude answers again")
            self._logged_s = float("-inf")
        self._host.answered(now_s, took=took)
