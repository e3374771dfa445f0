"""One call: sent once. The pace follows its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.call_figures import CallFigures
from amplitude_intercom.engine.delivery.calls import Back, Caller, outcome_of
from amplitude_intercom.engine.delivery.calls_in_flight import CallInFlight, CallsInFlight
from amplitude_intercom.engine.delivery.pace import Pace
from amplitude_intercom.engine.delivery.token_and_budget import BudgetDoubt
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import (
    Answer,
    Request,
    Wire,
    is_error_list,
    parse_rate,
)
from amplitude_intercom.transports.reasons import NoAnswerCause

_log = structlog.get_logger(__name__)


class Exchange:
    """Sends calls of one access token, each once."""

    def __init__(
        self,
        wire: Wire,
        pace: Pace,
        in_flight: CallsInFlight,
        budget: BudgetDoubt,
        name: Callable[[], str],
        figures: CallFigures,
    ) -> None:
        """``name``: returns the access token's name in logs. ``figures`` are counted on."""
        self._wire = wire
        self._pace = pace
        self._in_flight = in_flight
        self._budget = budget
        self._name = name
        self.figures = figures
        self._told_limit = 0.0
        self.limit_told = asyncio.Event()
        """Set when an answer named a new limit."""

    async def send(self, request: Request, endpoint: str, caller: Caller) -> Back:
        """Send a request, after the pace has counted its departure; return the outcome."""
        left_s, number = loop_time_s(), self._pace.sent
        task = asyncio.current_task()
        assert task is not None
        out = self._in_flight.depart(endpoint, left_s, partial(task.cancel, "given up"))
        caller.note_departure()
        answer: Answer | None = None
        try:
            answer = await self._answer(request, out)
            outcome = outcome_of(request, answer)
        except NoAnswer as error:
            outcome = Failure(DeadReason.USER_FAILING, 0, error.cause, str(error))
        finally:
            self._in_flight.end(out)
        back_s = loop_time_s()
        self.figures.calls[endpoint, answer.status if answer else 0] += 1
        if answer is not None:
            self.figures.took.add(back_s - left_s)
            if not isinstance(outcome, Failure) or is_error_list(answer):
                self._learn_pace(answer, number, left_s, back_s)
        if logs.debugging():
            self._log_call(request, caller, outcome, back_s - left_s)
        return Back(outcome, left_s, back_s)

    async def _answer(self, request: Request, out: CallInFlight) -> Answer:
        """Wait for the answer, unless the call is given up.

        Raises:
            NoAnswer: there is none, or the call was given up.
        """
        try:
            return await self._wire.send(request)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not out.is_given_up or task is None or task.uncancel():
                raise
            raise NoAnswer(NoAnswerCause.TIMEOUT, "others were answered meanwhile") from None

    def _learn_pace(self, answer: Answer, number: int, left_s: float, back_s: float) -> None:
        """Have the pace follow the headers of an answer that may be Intercom's own."""
        if answer.status in (401, 403, 429) and not is_error_list(answer):
            return
        try:
            rate = parse_rate(answer.headers)
            self._pace.learn(rate, number, left_s, back_s)
            if rate.limit is not None and self._pace.limit != self._told_limit:
                self._told_limit = self._pace.limit
                self.limit_told.set()
            if answer.status != 429:
                self._budget.note(rate.limit, rate.remaining, back_s)
                self._pace.answered(left_s)
        except Exception as fault:  # unforeseen headers cost themselves, not the call
            internal_failure(fault, intercom=self._name())

    def _log_call(
        self, request: Request, caller: Caller, outcome: Answer | Failure, took_s: float
    ) -> None:
        call = f"{request.method} {request.path}"
        said = (outcome.status or outcome.code) if isinstance(outcome, Failure) else outcome.status
        sync, user = caller.who
        about = {"sync": sync, "user": user} if user else {}
        _log.debug(
            "call made", intercom=self._name(), call=call, outcome=said, took_s=took_s, **about
        )
