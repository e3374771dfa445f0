"""The judgement of a call's outcome: about its endpoint, the token, or the budget.

Rules
=====
========================================  ======================================================
outcome                                   judgement
========================================  ======================================================
2xx; 409 to ``POST /contacts``            a success of the endpoint
401; 403 of a call that is not optional   if ``GET /me`` is refused too, the token is refused, and
                                          no call leaves until ``/me`` succeeds; otherwise a failure
                                          of the call
429                                       the budget is used up: no call leaves until the reset,
                                          then one, two, four …; a failure of the call if the budget
                                          cannot be the reason
any other 4xx                             an answer about the record
no answer, an answer that is not          a failure, with its cause by ``delivery.health``
Intercom's, 5xx, 408
========================================  ======================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from amplitude_intercom.engine.delivery.calls import (
    NOBODY,
    Answered,
    Back,
    Caller,
    Cause,
    Nobody,
    NotAnswered,
    cause_of,
    endpoint_of,
    failure_of,
)
from amplitude_intercom.engine.delivery.health import Charge, Hasten, Health, Outage
from amplitude_intercom.engine.delivery.pace import Pace, pause_s
from amplitude_intercom.engine.delivery.token_and_budget import BudgetDoubt, TokenState
from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.transports.intercom import Answer, Request, me

_log = structlog.get_logger(__name__)

RESUME_JITTER_S: Final = 0.5
"""The most seconds that are added to a pause after a 429."""

CREATE: Final = "POST /contacts"
"""The endpoint that answers 409 for a contact that exists. The 409 counts as a success, because a
workspace that has every contact would never show another one there."""


Send = Callable[[Request, str, Caller], Awaitable[Back]]
"""Sends a request to an endpoint, once; `Exchange.send` does."""


class Trouble(msgspec.Struct, frozen=True):
    """A reason for which calls do not leave. ``endpoint`` is empty for a refused token.

    ``cause`` is an answer, or its lack, in a few words; ``seconds`` the time since it began.
    """

    endpoint: str
    cause: str
    seconds: float


class Judge:
    """Judges the outcomes of one access token's calls. The module's docstring has the rules."""

    def __init__(
        self,
        send: Send,
        pace: Pace,
        health: Health,
        budget: BudgetDoubt,
        token: TokenState,
        *,
        now_s: Callable[[], float],
        jitter: Callable[[], float],
        name: Callable[[], str],
    ) -> None:
        """``name``: returns the access token's name in logs."""
        self._send = send
        self._pace = pace
        self._health = health
        self._budget = budget
        self._now_s = now_s
        self._jitter = jitter
        self._name = name
        self._token = token

    def __repr__(self) -> str:
        return f"Judge({self._name()}, {self._token})"

    def troubles(self, now_s: float) -> list[Trouble]:
        """Return the refusal of the token, or else the endpoints that are out."""
        if self._token.is_refused:
            return [Trouble("", self._token.cause, now_s - self._token.refused_s)]
        out = map(self._health.of, self._health.out)
        return [Trouble(found.name, found.cause, now_s - found.row_began_s) for found in out]

    @property
    def is_token_refused(self) -> bool:
        """Whether the token is refused now."""
        return self._token.is_refused

    async def judge(
        self, back: Back, endpoint: str, caller: Caller, *, optional: bool
    ) -> Answered | NotAnswered:
        """Return the caller's result; ``optional`` as in ``Gate.call``."""
        answer = back.outcome
        if isinstance(answer, Failure):
            return self._failed(answer, back, endpoint, caller)
        status = answer.status
        if 200 <= status < 300 or (status == 409 and endpoint == CREATE):
            self._health.of(endpoint).succeeded(caller.who, back.left_s, back.back_s)
            return Answered(answer)
        # A per-user limit must not stop all users. But the doubt is given up where two users are
        # refused within a second: then it is the budget.
        if status == 429:
            if self._budget.note_refusal(caller.who, back.back_s):
                return self._failed(failure_of(answer), back, endpoint, caller)
            return self._throttled(answer, back, endpoint)
        # One call with 403 while `/me` is well comes from a firewall, or a scope that is missing.
        # Taken for the token's, it stopped all deliveries again and again.
        if status == 401 or (status == 403 and not optional):
            if await self._token.check(status, self._ask_me):
                return self._failed(failure_of(answer), back, endpoint, caller)
            return self._token_refused(answer, endpoint)
        # Any other 4xx is about the record: it neither proves nor disproves that the endpoint
        # works, since a proxy may make them too.
        self._health.of(endpoint).refused(caller.who, back.left_s, back.back_s)
        return Answered(answer)

    def _failed(self, failure: Failure, back: Back, endpoint: str, caller: Caller) -> NotAnswered:
        found = self._health.of(endpoint)
        # Kept before the verdict, because the verdict may open the circuit, and the log line names
        # the cause.
        found.cause = cause_of(failure)
        blame = found.failed(
            caller.who,
            back.left_s,
            back.back_s,
            failed_before=caller.failed_before,
            counts=not isinstance(caller, Nobody),
        )
        return NotAnswered(Cause.FAILED, endpoint, failure, blame, found.is_sick)

    def _throttled(self, answer: Answer, back: Back, endpoint: str) -> NotAnswered:
        # The jitter keeps the clients of one token from returning in the same instant.
        wait_s = pause_s(answer, self._now_s()) + self._jitter() * RESUME_JITTER_S
        self._pace.throttled(wait_s, back.back_s, back.left_s)
        return NotAnswered(Cause.THROTTLED, endpoint, failure_of(answer))

    def _token_refused(self, answer: Answer, endpoint: str) -> NotAnswered:
        failure = failure_of(answer)
        # All calls that are out come back refused: one line is enough.
        if self._token.refuse(cause_of(failure)):
            text = "Intercom refuses the access token: calls wait until it is taken"
            _log.warning(text, intercom=self._name(), cause=cause_of(failure))
        return NotAnswered(Cause.TOKEN, endpoint, failure)

    async def token_restored(self) -> None:
        """Wait until the token was refused and is accepted again."""
        after_s = await self._token.restored(self._ask_me, self._jitter)
        text = "Intercom takes the access token again"
        _log.warning(text, intercom=self._name(), after_s=after_s)

    async def _ask_me(self) -> Answer | None:
        """Return Intercom's answer to ``GET /me``; None without one."""
        # `/me` costs a call of the same budget. During a pause it would only be a 429 more.
        await self._pace.turn()
        if self._pace.is_closed or self._pace.is_paused:
            return None
        endpoint = endpoint_of("GET", "/me")
        back = await self._send(me(), endpoint, NOBODY)
        if isinstance(back.outcome, Failure):
            return None
        # It tells of the budget and not of the token.
        if back.outcome.status == 429:
            self._throttled(back.outcome, back, endpoint)
            return None
        return back.outcome

    def take_news(self, now_s: float) -> list[Hasten | Charge]:
        """Return the consequences of outcomes for users, and log those for endpoints."""
        # Some charges stand by time alone: without this look they would wait for the next outcome.
        self._health.pass_time(now_s)
        found: list[Hasten | Charge] = []
        for news in self._health.take_news():
            if isinstance(news, Outage):
                self._log_outage(news)
            else:
                found.append(news)
        return found

    def _log_outage(self, news: Outage) -> None:
        about: dict[str, object] = {"endpoint": news.endpoint}
        if news.has_begun:
            text = "Intercom does not answer: these calls wait until it does, nothing is lost"
            about["cause"] = self._health.of(news.endpoint).cause
        else:
            text = "Intercom answers again"
            about["after_s"] = round(news.seconds, 1)
        _log.warning(text, intercom=self._name(), **about)
