"""The gate makes calls with one access token, by pace (how fast) and health (whether).

Rules
=====
1. ``call`` makes a call once, as soon as the pace allows, or returns at once that it may not leave.
   It never repeats a call. *Answered* is Intercom's verdict on the call; *NotAnswered* is any other
   outcome, with its evidence: silence, 5xx, 401, 429, or no call at all. The caller decides on the
   consequences.
2. Only Intercom speaks for Intercom: an answer that the API does not describe is a failure. A 401,
   403 or 429 counts from any sender: it charges nobody, and ``judge`` makes sure of it.
3. An endpoint with an open circuit gets probes only: by the turn that the scheduler has chosen, or
   by a turn that probes another endpoint and needs this one too.
4. ``judge`` has the rules for answers. While the token is refused, or the budget used up, no call
   leaves.
5. A hanging call gives its slot back (``calls_in_flight``), and is evidence when it ends.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.calls import (
    NOBODY,
    Answered,
    Caller,
    Cause,
    NotAnswered,
    endpoint_of,
)
from amplitude_intercom.engine.delivery.calls_in_flight import CallsInFlight
from amplitude_intercom.engine.delivery.exchange import Exchange
from amplitude_intercom.engine.delivery.health import Charge, Hasten
from amplitude_intercom.engine.delivery.judge import Judge, Trouble
from amplitude_intercom.engine.delivery.token_memory import TokenMemory
from amplitude_intercom.engine.delivery.window import WINDOW_S
from amplitude_intercom.engine.histograms import Durations
from amplitude_intercom.transports.intercom import Request, Wire
from amplitude_intercom.transports.reasons import Reason


class State(Reason):
    """How Intercom fares for one access token, as far as calls have shown."""

    WELL = ("well", "nothing speaks against it: Intercom answers, or was not called yet")
    THROTTLED = (
        "throttled",
        "Intercom has answered 429: calls pause until its window is over, nothing is lost",
        "where it happens often, another program calls with the same token: give it one of its own",
    )
    OUTAGE = (
        "outage",
        "some calls are not answered, or not by Intercom: those of other endpoints go on, nothing"
        " is lost",
        "`status` says which, why and since when; where Intercom is well, look at the proxy and at"
        " `sync.intercom.base_url`",
    )
    UNAUTHORIZED = (
        "unauthorized",
        "Intercom refuses the access token, or what it may do: all calls wait, nothing is lost",
        "read what `status` quotes: a token that was revoked is replaced (`file:` is read again,"
        " `env:` needs a restart), a plan or a permission is granted in Intercom",
    )


class Gate:
    """Makes calls with one access token. The module's docstring has the rules."""

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
        log_name: Callable[[], str] | None = None,
        memory: TokenMemory | None = None,
    ) -> None:
        """``name``: the access token's, without secrets; ``log_name``: returns that of its logs.

        ``memory``: what earlier calls with the token have shown. ``requests_per_minute`` is the
        guess as long as none has named a limit. No call is to be made before ``begin``.
        """
        self.name = name
        self.log_name = log_name or (lambda: name)
        """Returns the name in logs, which may have the syncs of today in it."""
        self._guess = requests_per_minute * WINDOW_S / 60
        self._memory = memory = memory or TokenMemory(self._guess)
        self._probe_delay_s: Callable[[int], float] = lambda failures: probe_delay_s(
            failures, probe_first_s, probe_most_s, jitter()
        )
        self.pace, self.health = memory.pace, memory.health
        self.max_in_flight = max_in_flight
        self._in_flight = CallsInFlight(max_in_flight)
        # One doubt for both: answers feed it, and a 429 is judged by it.
        self._exchange = Exchange(
            wire, self.pace, self._in_flight, memory.budget, self.log_name, memory.figures
        )
        self._judge = Judge(
            self._exchange.send,
            self.pace,
            self.health,
            memory.budget,
            memory.token,
            now_s=now_s,
            jitter=jitter,
            name=self.log_name,
        )
        self.changed: Callable[[], None] = lambda: None
        """Called whenever more, or other, calls may leave than before."""

    def __repr__(self) -> str:
        return f"Gate({self.state}, {self.limit:g} per 10 s, {self.in_flight} in flight)"

    @property
    def state(self) -> State:
        """The state of the destination, as far as the gate knows."""
        if self._judge.is_token_refused:
            return State.UNAUTHORIZED
        if self.health.out:
            return State.OUTAGE
        return State.THROTTLED if self.pace.is_paused else State.WELL

    def troubles(self, now_s: float) -> list[Trouble]:
        """Return the endpoints that do not answer, or the refusal of the token."""
        return self._judge.troubles(now_s)

    @property
    def calls(self) -> Counter[tuple[str, int]]:
        """Calls made, by endpoint and status (0: no answer)."""
        return self._memory.figures.calls

    @property
    def took(self) -> Durations:
        """The durations of calls."""
        return self._memory.figures.took

    @property
    def pauses(self) -> int:
        """Pauses for which a 429 has asked."""
        return self._memory.figures.pauses

    @property
    def remaining(self) -> int | None:
        """Calls that Intercom last said are left in its window; None: it has said nothing."""
        return self._memory.budget.remaining

    @property
    def in_flight(self) -> int:
        """Calls that are out."""
        return len(self._in_flight)

    @property
    def limit(self) -> float:
        """Calls that a window of 10 s may have."""
        return self.pace.limit

    async def next_limit(self) -> float:
        """Wait until an answer has named another limit; return it."""
        await self._exchange.limit_told.wait()
        self._exchange.limit_told.clear()
        return self.limit

    # --- whether --------------------------------------------------------------------------

    @property
    def is_standing(self) -> bool:
        """Whether nothing leaves at all, whatever endpoint it is for."""
        return self.pace.is_closed or self._judge.is_token_refused or self.pace.is_paused

    def slots(self) -> int:
        """Return how many calls may be out that do not hang."""
        return min(self.max_in_flight, self.pace.slots)

    def free(self, undeparted: int, now_s: float) -> int:
        """Return how many more turns may be chosen, where so many have made no call yet."""
        # Turns that are chosen now could not leave, and would hold users and contacts meanwhile.
        if self.is_standing:
            return 0
        # Calls that hang do not count: with 2 % of them hanging, over half of the allowance went
        # unused.
        counted = self._in_flight.count(now_s, self.pace.mean_latency_s)
        free = min(self.pace.ahead, self.slots() - counted) - undeparted
        # The ramp after a 429 is a bound of its own, below the slots that the latency asks for.
        most_out = self.pace.most_out
        return free if most_out is None else min(free, most_out - counted - undeparted)

    def look_again_s(self, now_s: float) -> float | None:
        """Return when more may leave though nothing happens until then; None: never."""
        slow_s = self._in_flight.next_slow_s(self.pace.mean_latency_s)
        # Nothing else happens at these instants: without a timer the calls would wait for the next
        # answer, and there may be none.
        instants = [self.health.next_probe_s(), slow_s, self.pace.paused_until_s]
        return min((at_s for at_s in instants if at_s is not None and at_s > now_s), default=None)

    def _why_not(self, endpoint: str, caller: Caller) -> Cause | None:
        """Return why a call may not leave now."""
        # Refused and not held: a call that waits here would keep its turn, and its user's contact,
        # for as long as the token is refused.
        if self.is_standing:
            return Cause.NOT_SENT
        circuit = self.health.of(endpoint).circuit
        if not circuit.is_open:
            return None
        if self.health.is_probing(caller.who) and circuit.wants_probe(loop_time_s()):
            circuit.probing = caller.who  # a probe may need an answer of another one to get on
        return None if circuit.probing == caller.who else Cause.CIRCUIT_OPEN

    def begin(self) -> None:
        """Make calls from now on; an earlier gate of the token makes none any more."""
        self._memory.begin(self._guess, self._probe_delay_s)

    def close(self) -> None:
        """Let no more calls leave; those that are out are finished."""
        self.pace.close()
        self.changed()

    # --- calling --------------------------------------------------------------------------

    async def call(
        self, request: Request, caller: Caller = NOBODY, *, optional: bool = False
    ) -> Answered | NotAnswered:
        """Make a call once; see rule 1. Cancelled, it may or may not have been done.

        ``optional``: deliveries can do without it, so that a scope which the token lacks for it
        (403) is this call's own business.
        """
        endpoint = endpoint_of(request.method, request.path)
        cause = self._why_not(endpoint, caller)
        if cause is None:
            # The circuit may open, or the token be refused, while the call waits for its pace: so
            # both are looked at before and after.
            await self.pace.turn()
            cause = self._why_not(endpoint, caller)
        if cause is not None:
            return NotAnswered(cause, endpoint)
        back = await self._exchange.send(request, endpoint, caller)
        # The slot is free again, whatever the judge makes of it.
        try:
            return await self._judge.judge(back, endpoint, caller, optional=optional)
        finally:
            self.changed()

    async def watch_token(self) -> None:
        """Ask ``GET /me`` whenever the token was refused, until it is taken; for ever."""
        while True:
            await self._judge.token_restored()
            self.changed()

    def take_news(self, now_s: float) -> list[Hasten | Charge]:
        """Return the consequences of outcomes for users; log those for endpoints."""
        return self._judge.take_news(now_s)
