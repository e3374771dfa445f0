"""Whether a failed call is the user's own fault or an outage of the endpoint. Pure.

A *success* is a 2xx that is Intercom's own. A *failure* is no answer, or an answer that says
nothing about the call itself. Intercom's other answers (4xx) concern the record: they neither prove
nor disprove that the endpoint works. Departures count, not arrivals, because answers overtake each
other.

Rules
=====
=========================================  =====================================================
evidence at an endpoint                    consequence
=========================================  =====================================================
a user's first failure                     cause not known: the user waits some seconds, uncharged
a success of another user that left after  the user is tried again a second after its failure
that failure had come back
a failure, and a success of another user   the user's own fault: one attempt is charged, as soon as
that left after its previous failure       another user's success has left after this failure too,
                                           or ``PENDING_S`` have passed
first failures of ``OPENING_USERS`` users  the endpoint's fault: its circuit opens, and pending
that left after every success, over at     charges are cancelled
least ``OPENING_S``; a success between
them clears the count
circuit open                               one probe at a time, with growing pauses; no charges
a success that left after the opening      the circuit closes
a 4xx as a probe's answer                  probation: no pauses, still one call at a time; a failure
                                           ends it
over ``SICK_SHARE`` of first tries fail    the endpoint is sick: users get more attempts
=========================================  =====================================================

So a failing minority of users never opens a circuit, however many they are. ``GET /me`` never
closes one, because it tells about the token and not about an endpoint.

An endpoint is reported as *out* while its circuit is open, and after ``OUT_S`` of failures alone,
until Intercom answers. With too few users an outage cannot be told from the users' own faults, and
no user is charged.

Every memory of users is bounded. The oldest is forgotten first, and begins anew.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

Who = tuple[str, str]
"""A sync, and the key of one of its users."""

OPENING_USERS: Final = 5
OPENING_S: Final = 1.0
"""First failures of so many users open a circuit, so many seconds after the first of them."""

PENDING_S: Final = 60.0
"""Seconds that a charge waits for its confirmation. Then it stands."""

HASTENED_AFTER_S: Final = 1.0
"""Seconds from a failure to the next try, if other users' calls succeed."""

OUT_FAILURES: Final = 3
OUT_S: Final = 10.0
"""The number of failures in a row that are reported as an outage, and their least seconds."""

SICK_SHARE: Final = 0.3
SICK_SAMPLES: Final = 20
LATE_TRIES: Final = 100
"""An endpoint is sick if more than ``SICK_SHARE`` of the latest first tries failed, of at least
``SICK_SAMPLES`` and at most ``LATE_TRIES``."""

MOST_REMEMBERED: Final = 10_000
MOST_WELL: Final = 1_000
"""Users of an endpoint that are remembered for a failure, and for a success."""


class Blame(enum.Enum):
    """The cause of a failure, as far as it is known when the call comes back."""

    NOT_KNOWN = enum.auto()
    OWN = enum.auto()
    """The user, once the charge is confirmed."""
    NOBODYS = enum.auto()
    """The endpoint: no user is charged."""


class Hasten(NamedTuple):
    """A waiting user is to be tried at ``at_s`` (loop clock), if it would be later."""

    who: Who
    at_s: float


class Charge(NamedTuple):
    """The end of a charge: it stands, or is cancelled. Every charge has exactly one end."""

    who: Who
    endpoint: str
    stands: bool


class Outage(NamedTuple):
    """The begin or end of an endpoint's outage, for people."""

    endpoint: str
    has_begun: bool
    seconds: float
    """Its duration; 0 at the beginning."""


News = Hasten | Charge | Outage


class Circuit:
    """Whether calls to an endpoint may leave: closed, or open with one probe at a time."""

    def __init__(self, delay_s: Callable[[int], float]) -> None:
        """``delay_s`` returns the pause after so many failures in a row."""
        self._delay_s = delay_s
        self.is_open = False
        self.opened_s = 0.0
        self.probing: Who | None = None
        """The user with the turn that probes; None if there is none."""
        self.probe_at_s = 0.0
        self._failures = 0
        self.is_on_probation = False
        """Whether Intercom answered the last probe with a 4xx."""

    def open(self, now_s: float) -> None:
        self.is_open, self.opened_s = True, now_s
        self._failures, self.is_on_probation = 0, False
        # The failures that open it count as a probe: the first probe comes after a pause too.
        self.probe_failed(now_s)

    def close(self) -> None:
        self.is_open, self.probing = False, None

    def wants_probe(self, now_s: float) -> bool:
        return self.is_open and self.probing is None and now_s >= self.probe_at_s

    def probe_failed(self, now_s: float) -> None:
        """Pause before the next probe, longer after each failure."""
        self._failures += 1
        self.is_on_probation = False
        self.probe_at_s = now_s + self._delay_s(self._failures)

    def probe_was_refused(self, now_s: float) -> None:
        """Note that Intercom itself has answered a probe: the next one may go at once."""
        # A pause would only delay, since Intercom is there. But a 4xx is no success, and may be a
        # proxy's: so the circuit stays open, with one call at a time.
        self.is_on_probation, self.probe_at_s, self._failures = True, now_s, 0


class EndpointHealth:
    """The evidence about one endpoint, and its circuit."""

    def __init__(self, name: str, circuit: Circuit, news: deque[News]) -> None:
        self.name = name
        self.circuit = circuit
        self._news = news
        self._latest: list[tuple[Who, float]] = []
        """The latest successful departure of each of two users."""
        self._success_back_s = float("-inf")
        self._failed_s: OrderedDict[Who, float] = OrderedDict()
        """Users with a last call that failed, and the instant at which it came back."""
        self._unheard: OrderedDict[Who, float] = OrderedDict()
        """Those of them that are to be hastened, because the cause is not known."""
        self._pending: OrderedDict[Who, float] = OrderedDict()
        """Users with an unconfirmed charge, and the instant at which the call came back."""
        self._suspects: dict[Who, float] = {}
        """First failures since the last success."""
        self._tries: deque[bool] = deque(maxlen=LATE_TRIES)
        """Whether each of the latest first tries of users failed."""
        self._row = 0
        self.row_began_s = 0.0
        """The number of failures in a row, and the instant at which the first came back."""
        self.is_out = False
        self.cause = ""
        """The last failure in a few words."""
        self._well: OrderedDict[Who, float] = OrderedDict()
        """Users with a recent success, and its instant."""

    @property
    def is_sick(self) -> bool:
        """Whether so many first tries fail that a failure is no sign of the user's own fault."""
        enough = len(self._tries) >= SICK_SAMPLES
        return enough and sum(self._tries) > SICK_SHARE * len(self._tries)

    def has_served(self, who: Who) -> bool:
        """Return whether this user has had a success here lately."""
        return who in self._well

    def succeeded(self, who: Who, left_s: float, back_s: float) -> None:
        """Note a success."""
        # Only first tries count for sickness: retries would give failing users the most weight.
        if self._failed_s.pop(who, None) is None:
            self._tries.append(False)
        self._unheard.pop(who, None)
        if self._pending.pop(who, None) is not None:
            # The user's own success contradicts the charge.
            self._news.append(Charge(who, self.name, stands=False))
        # Else the first failures of a steady minority would add up, and open the circuit.
        self._suspects.clear()
        self._success_back_s = back_s
        self._note_latest(who, left_s)
        _remember(self._well, who, back_s, MOST_WELL)
        # A call that left before the opening tells of the time before the outage.
        if self.circuit.is_open and left_s > self.circuit.opened_s:
            self.circuit.close()
        if not self.circuit.is_open:
            self._comes_back(back_s)
        self._hear(left_s)

    def _comes_back(self, now_s: float) -> None:
        """End a reported outage, and the row of failures: Intercom has answered."""
        if self.is_out:
            self.is_out = False
            self._news.append(Outage(self.name, False, now_s - self.row_began_s))
        self._row = 0

    def _note_latest(self, who: Who, left_s: float) -> None:
        # Of two users at least one is another than the user in question, which is all that
        # `_another_left_after` has to know.
        others = [latest for latest in self._latest if latest[0] != who]
        mine = [latest for latest in self._latest if latest[0] == who]
        newest = max([*mine, (who, left_s)], key=lambda latest: latest[1])
        self._latest = sorted([newest, *others], key=lambda latest: -latest[1])[:2]

    def _hear(self, left_s: float) -> None:
        """Hasten and charge the users with a failure that came back before a success left."""
        # Both are in the order in which failures came back, so the first later one ends the search.
        for waiting, told in ((self._unheard, self._hasten), (self._pending, self._charge)):
            while waiting and next(iter(waiting.values())) < left_s:
                told(*waiting.popitem(last=False))

    def _hasten(self, who: Who, failed_s: float) -> None:
        self._news.append(Hasten(who, failed_s + HASTENED_AFTER_S))

    def _charge(self, who: Who, _: float) -> None:
        self._news.append(Charge(who, self.name, stands=True))

    def failed(
        self, who: Who, left_s: float, back_s: float, *, failed_before: bool, counts: bool
    ) -> Blame:
        """Note a failure; return its cause, as far as that is known.

        ``failed_before`` says, from the spool, that the user's last call had failed. ``counts`` is
        false for a call of no user, which is no evidence about an endpoint.
        """
        circuit = self.circuit
        self._row += 1
        self.row_began_s = back_s if self._row == 1 else self.row_began_s
        if self._row >= OUT_FAILURES and back_s - self.row_began_s >= OUT_S:
            self._goes_out()
        if not counts:
            return Blame.NOBODYS
        # After a restart only the spool knows of an earlier failure, without its time: then any
        # success of another user counts as one after it.
        before_s = self._failed_s.get(who, float("-inf") if failed_before else None)
        _remember(self._failed_s, who, back_s, MOST_REMEMBERED)
        if circuit.is_open:
            # Every failure is the endpoint's now. Only the probe's own tells that the outage lasts:
            # other calls may have left long before.
            if circuit.probing == who:
                circuit.probe_failed(back_s)
            _remember(self._unheard, who, back_s, MOST_REMEMBERED)
            return Blame.NOBODYS
        if before_s is None:
            self._tries.append(True)
            # A call that left before the last success came back may be of before the outage.
            if left_s > self._success_back_s:
                self._suspects[who] = back_s
                if self._opens(back_s):
                    return Blame.NOBODYS
        elif self._another_left_after(who, before_s):
            # The endpoint worked for another user between this user's two failures. The charge
            # is pending, because the endpoint may have failed since.
            self._unheard.pop(who, None)
            if (lost := _remember(self._pending, who, back_s, MOST_REMEMBERED)) is not None:
                # A charge that is forgotten must still come to an end.
                self._news.append(Charge(lost, self.name, stands=False))
            return Blame.OWN
        _remember(self._unheard, who, back_s, MOST_REMEMBERED)
        return Blame.NOT_KNOWN

    def _another_left_after(self, who: Who, at_s: float) -> bool:
        return any(user != who and left_s > at_s for user, left_s in self._latest)

    def _opens(self, now_s: float) -> bool:
        suspects = self._suspects
        if len(suspects) < OPENING_USERS or now_s - min(suspects.values()) < OPENING_S:
            return False
        self._suspects = {}
        # Both kinds of users may have failed by the outage alone: they go on when others succeed.
        self._are_unheard({**suspects, **self._cancel_charges()})
        self.circuit.open(now_s)
        self._goes_out()
        return True

    def _goes_out(self) -> None:
        if not self.is_out:
            self.is_out = True
            self._news.append(Outage(self.name, True, 0.0))

    def _cancel_charges(self) -> OrderedDict[Who, float]:
        """Cancel all unconfirmed charges; return their users."""
        cancelled, self._pending = self._pending, OrderedDict()
        self._news.extend(Charge(who, self.name, stands=False) for who in cancelled)
        return cancelled

    def _are_unheard(self, failed_s: Mapping[Who, float]) -> None:
        """Have users hastened at the next success of another."""
        # Sorted, because `_hear` stops at the first failure that came back too late.
        both = {**self._unheard, **failed_s}.items()
        self._unheard = OrderedDict(sorted(both, key=lambda of: of[1])[-MOST_REMEMBERED:])

    def refused(self, who: Who, left_s: float, back_s: float) -> None:
        """Note an answer of Intercom's that concerns the record alone."""
        circuit = self.circuit
        # As for a success: an answer to an earlier call tells of the time before the outage.
        if circuit.is_open and circuit.probing == who and left_s > circuit.opened_s:
            circuit.probe_was_refused(back_s)
        if not circuit.is_open or circuit.is_on_probation:
            self._comes_back(back_s)

    def next_change_s(self) -> float | None:
        """Return the instant from which ``pass_time`` has something to do; None if never."""
        instants = [next(iter(self._pending.values())) + PENDING_S] if self._pending else []
        if len(self._suspects) >= OPENING_USERS and not self.circuit.is_open:
            instants.append(min(self._suspects.values()) + OPENING_S)
        return min(instants, default=None)

    def pass_time(self, now_s: float) -> None:
        """Confirm charges that are pending for ``PENDING_S``, and open the circuit if it is due."""
        # With too few other users no success confirms a charge, and a user that always fails
        # would be tried for ever.
        while self._pending and next(iter(self._pending.values())) <= now_s - PENDING_S:
            self._charge(*self._pending.popitem(last=False))
        # Five suspects within a second open nothing; without this they would have to wait for
        # another failure.
        if self._suspects and not self.circuit.is_open:
            self._opens(now_s)


def _remember(kept: OrderedDict[Who, float], who: Who, value: float, most: int) -> Who | None:
    """Keep a value as the newest; return the user that was forgotten for it, if any."""
    kept[who] = value
    kept.move_to_end(who)
    return kept.popitem(last=False)[0] if len(kept) > most else None


class Health:
    """All endpoints of one access token."""

    def __init__(self) -> None:
        self.delay_s: Callable[[int], float] = lambda failures: 0.0
        """Returns the seconds between probes after so many failures in a row."""
        self._endpoints: dict[str, EndpointHealth] = {}
        self._news: deque[News] = deque()
        self.awaited: set[str] = set()
        """Endpoints without an answer yet that is needed before any delivery."""

    def of(self, endpoint: str) -> EndpointHealth:
        """Return the evidence about an endpoint, one for each kind of call of the API client."""
        found = self._endpoints.get(endpoint)
        if found is None:
            found = EndpointHealth(
                endpoint, Circuit(lambda failures: self.delay_s(failures)), self._news
            )
            self._endpoints[endpoint] = found
        return found

    @property
    def open_circuits(self) -> list[str]:
        """Endpoints that no delivery can use now: with an open circuit, or awaited."""
        is_open = [name for name, found in self._endpoints.items() if found.circuit.is_open]
        return [*is_open, *(name for name in sorted(self.awaited) if name not in is_open)]

    @property
    def out(self) -> list[str]:
        """Endpoints with an outage, for people."""
        return [name for name, found in self._endpoints.items() if found.is_out]

    def wanting_probe(self, now_s: float) -> list[str]:
        """Return the endpoints for which a probe may leave now."""
        return [n for n, found in self._endpoints.items() if found.circuit.wants_probe(now_s)]

    def next_probe_s(self) -> float | None:
        """Return the instant of the next probe that is due and not under way; None without one."""
        circuits = [found.circuit for found in self._endpoints.values()]
        due = [c.probe_at_s for c in circuits if c.is_open and c.probing is None]
        return min(due, default=None)

    def is_probing(self, who: Who) -> bool:
        """Return whether a user's turn probes an endpoint."""
        return any(found.circuit.probing == who for found in self._endpoints.values())

    def end_probes(self, who: Who | None = None) -> None:
        """Note the end of a user's turn, or with None of all turns: it probes no more."""
        for found in self._endpoints.values():
            if who is None or found.circuit.probing == who:
                found.circuit.probing = None

    def next_change_s(self) -> float | None:
        """Return the instant from which ``pass_time`` has something to do; None if never."""
        instants = [found.next_change_s() for found in self._endpoints.values()]
        return min((at_s for at_s in instants if at_s is not None), default=None)

    def pass_time(self, now_s: float) -> None:
        """Let time pass at all endpoints (``EndpointHealth.pass_time``)."""
        for found in self._endpoints.values():
            found.pass_time(now_s)

    def take_news(self) -> list[News]:
        """Return the consequences of all outcomes since the last call."""
        taken = list(self._news)
        self._news.clear()
        return taken
