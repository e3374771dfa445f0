"""Whose fault a failed call is: its user's, its endpoint's, or the token's. Pure.

A *success* is an answer 2xx of Intercom's own. A *failure* is no answer, or one that says nothing
of the call itself. Other answers of Intercom's (4xx) are the record's own business. Departures
count, not arrivals: answers overtake each other.

Rules
=====
=========================================  =====================================================
seen at an endpoint                        what follows
=========================================  =====================================================
a user's first failure                     not known: the user waits some seconds, uncharged
a success of another user that left after  the user is tried again a second after its failure
that failure had come back
a failure, a success of another user that  the user's own: one attempt is charged, as soon as
left after its previous failure, and ...   ... another user's success left after this failure, or
                                           ``PENDING_S`` have passed
first failures of ``OPENING_USERS`` users  the endpoint's: its circuit opens; charges that are not
that left after every success, over a      confirmed are cancelled
second; a success in between clears them
circuit open                               one probe at a time, with growing pauses; nobody is
                                           charged
a success that left after the opening      the circuit closes
a probe's answer that is a 4xx             probation: no pauses, still one call at a time; a failure
                                           ends it
first tries fail for over ``SICK_SHARE``   the endpoint is sick: users get more attempts
=========================================  =====================================================

An endpoint is *out*, for people, from when its circuit opens, and where nothing but failures was
seen for ``OUT_S``, until Intercom answers: with too few users nobody can tell an outage from their
own fault, and nobody is charged.

So a failing minority opens no circuit, however many they are. ``GET /me`` closes none: it says that
the token is well, and nothing of an endpoint.

All that is remembered of users is bounded, the oldest goes first: who is forgotten begins anew.
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
"""First failures that open a circuit: of how many users, over how many seconds at least."""

PENDING_S: Final = 60.0
"""How long a charge waits to be confirmed; then it stands."""

HASTENED_AFTER_S: Final = 1.0
"""From a failure to the next try, where others are well."""

OUT_FAILURES: Final = 3
OUT_S: Final = 10.0
"""Failures without a success between that are called an outage, and over how long at least."""

SICK_SHARE: Final = 0.3
SICK_SAMPLES: Final = 20
LATE_TRIES: Final = 100
"""An endpoint is sick where more than this share of the latest first tries fail, of at least so
many of them; how many are remembered."""

MOST_REMEMBERED: Final = 10_000
MOST_WELL: Final = 1_000
"""Users of an endpoint that are remembered for a failure, and for a success."""


class Blame(enum.Enum):
    """Whose fault a failure is, as far as it is known when the call comes back."""

    NOT_KNOWN = enum.auto()
    OWN = enum.auto()
    """The user's, once the charge is confirmed."""
    NOBODYS = enum.auto()
    """The endpoint's: nobody is charged."""


class Hasten(NamedTuple):
    """A user whose fault is not known is to be tried earlier, at an instant of the loop's clock."""

    who: Who
    at_s: float


class Charge(NamedTuple):
    """What becomes of a charge: it stands, or it is cancelled. Each comes to one of these."""

    who: Who
    endpoint: str
    stands: bool


class Outage(NamedTuple):
    """An endpoint does not answer, as far as one sees, or does again; for people."""

    endpoint: str
    has_begun: bool
    seconds: float
    """How long it lasted."""


News = Hasten | Charge | Outage


class Circuit:
    """Whether calls to an endpoint may leave: closed, or open with one probe at a time."""

    def __init__(self, delay_s: Callable[[int], float]) -> None:
        """``delay_s`` returns the pause after so many failures in a row."""
        self._delay_s = delay_s
        self.is_open = False
        self.opened_s = 0.0
        self.probing: Who | None = None
        """Whose turn it is that may call for all others."""
        self.probe_at_s = 0.0
        self._failures = 0
        self.is_on_probation = False
        """Whether Intercom has answered the last probe, though not with a success."""

    def open(self, now_s: float) -> None:
        self.is_open, self.opened_s = True, now_s
        self._failures, self.is_on_probation = 0, False
        self.probe_failed(now_s)

    def close(self) -> None:
        self.is_open, self.probing = False, None

    def wants_probe(self, now_s: float) -> bool:
        return self.is_open and self.probing is None and now_s >= self.probe_at_s

    def probe_failed(self, now_s: float) -> None:
        """Pause before the next probe, longer each time."""
        self._failures += 1
        self.is_on_probation = False
        self.probe_at_s = now_s + self._delay_s(self._failures)

    def probe_was_refused(self, now_s: float) -> None:
        """Take in that Intercom itself has answered a probe: the next one goes at once."""
        self.is_on_probation, self.probe_at_s, self._failures = True, now_s, 0


class Endpoint:
    """What is known of one endpoint."""

    def __init__(self, name: str, circuit: Circuit, news: deque[News]) -> None:
        self.name = name
        self.circuit = circuit
        self._news = news
        self._latest: list[tuple[Who, float]] = []
        """The latest departures that succeeded, of two users."""
        self._success_back_s = float("-inf")
        self._failed_s: OrderedDict[Who, float] = OrderedDict()
        """Users whose last call failed, and when it came back."""
        self._unheard: OrderedDict[Who, float] = OrderedDict()
        """Those of them of whom it is not known whose fault it was, and who are to be hastened."""
        self._pending: OrderedDict[Who, float] = OrderedDict()
        """Charges that are not confirmed, and when their call came back."""
        self._suspects: dict[Who, float] = {}
        """First failures since the last success."""
        self._tries: deque[bool] = deque(maxlen=LATE_TRIES)
        """Of the latest first tries of users, which failed."""
        self._row = 0
        self.row_began_s = 0.0
        """Failures in a row, and when the first of them came back."""
        self.is_out = False
        self.cause = ""
        """What the last failure was, in a few words."""
        self._well: OrderedDict[Who, float] = OrderedDict()
        """Users whose calls have succeeded lately, and when."""

    @property
    def is_sick(self) -> bool:
        """Whether so many first tries fail that a user's failures say little of the user."""
        enough = len(self._tries) >= SICK_SAMPLES
        return enough and sum(self._tries) > SICK_SHARE * len(self._tries)

    def has_served(self, who: Who) -> bool:
        """Return whether a call of this user has succeeded here lately."""
        return who in self._well

    def succeeded(self, who: Who, left_s: float, back_s: float) -> None:
        """Take in a success."""
        if self._failed_s.pop(who, None) is None:
            self._tries.append(False)
        self._unheard.pop(who, None)
        if self._pending.pop(who, None) is not None:
            self._news.append(Charge(who, self.name, stands=False))
        self._suspects.clear()
        self._success_back_s = back_s
        self._note_latest(who, left_s)
        _remember(self._well, who, back_s, MOST_WELL)
        if self.circuit.is_open and left_s > self.circuit.opened_s:
            self.circuit.close()
        if not self.circuit.is_open:
            self._comes_back(back_s)
        self._hear(left_s)

    def _comes_back(self, now_s: float) -> None:
        """Take in that Intercom has answered."""
        if self.is_out:
            self.is_out = False
            self._news.append(Outage(self.name, False, now_s - self.row_began_s))
        self._row = 0

    def _note_latest(self, who: Who, left_s: float) -> None:
        others = [latest for latest in self._latest if latest[0] != who]
        mine = [latest for latest in self._latest if latest[0] == who]
        newest = max([*mine, (who, left_s)], key=lambda latest: latest[1])
        self._latest = sorted([newest, *others], key=lambda latest: -latest[1])[:2]

    def _hear(self, left_s: float) -> None:
        """Tell those whose failure had come back before a success left."""
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
        """Take in a failure; return whose fault it is, as far as that is known.

        ``failed_before``: the user's last call had failed, as the spool remembers. ``counts``: it
        may be a sign that the endpoint is out (a call that is nobody's is none).
        """
        circuit = self.circuit
        self._row += 1
        self.row_began_s = back_s if self._row == 1 else self.row_began_s
        if self._row >= OUT_FAILURES and back_s - self.row_began_s >= OUT_S:
            self._goes_out()
        if not counts:
            return Blame.NOBODYS
        before_s = self._failed_s.get(who, float("-inf") if failed_before else None)
        _remember(self._failed_s, who, back_s, MOST_REMEMBERED)
        if circuit.is_open:
            if circuit.probing == who:
                circuit.probe_failed(back_s)
            _remember(self._unheard, who, back_s, MOST_REMEMBERED)
            return Blame.NOBODYS
        if before_s is None:
            self._tries.append(True)
            if left_s > self._success_back_s:
                self._suspects[who] = back_s
                if self._opens(back_s):
                    return Blame.NOBODYS
        elif self._another_left_after(who, before_s):
            self._unheard.pop(who, None)
            if (lost := _remember(self._pending, who, back_s, MOST_REMEMBERED)) is not None:
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
        self._are_unheard({**suspects, **self._cancel_charges()})
        self.circuit.open(now_s)
        self._goes_out()
        return True

    def _goes_out(self) -> None:
        if not self.is_out:
            self.is_out = True
            self._news.append(Outage(self.name, True, 0.0))

    def _cancel_charges(self) -> OrderedDict[Who, float]:
        """Let no charge stand that is not confirmed; return whose they were."""
        cancelled, self._pending = self._pending, OrderedDict()
        self._news.extend(Charge(who, self.name, stands=False) for who in cancelled)
        return cancelled

    def _are_unheard(self, failed_s: Mapping[Who, float]) -> None:
        """Let users be hastened as soon as others are well; who failed first stays in front."""
        both = {**self._unheard, **failed_s}.items()
        self._unheard = OrderedDict(sorted(both, key=lambda of: of[1])[-MOST_REMEMBERED:])

    def refused(self, who: Who, left_s: float, back_s: float) -> None:
        """Take in an answer of Intercom's that is about the record alone."""
        circuit = self.circuit
        if circuit.is_open and circuit.probing == who and left_s > circuit.opened_s:
            circuit.probe_was_refused(back_s)
        if not circuit.is_open or circuit.is_on_probation:
            self._comes_back(back_s)

    def next_look_s(self) -> float | None:
        """Return when ``look`` will find something, if nothing happens until then; None: never."""
        instants = [next(iter(self._pending.values())) + PENDING_S] if self._pending else []
        if len(self._suspects) >= OPENING_USERS and not self.circuit.is_open:
            instants.append(min(self._suspects.values()) + OPENING_S)
        return min(instants, default=None)

    def look(self, now_s: float) -> None:
        """Let charges stand that nobody has confirmed for long, and open what is due to."""
        while self._pending and next(iter(self._pending.values())) <= now_s - PENDING_S:
            self._charge(*self._pending.popitem(last=False))
        if self._suspects and not self.circuit.is_open:
            self._opens(now_s)


def _remember(kept: OrderedDict[Who, float], who: Who, value: float, most: int) -> Who | None:
    """Keep a value as the newest; the oldest goes where there are too many, and is returned."""
    kept[who] = value
    kept.move_to_end(who)
    return kept.popitem(last=False)[0] if len(kept) > most else None


class Health:
    """All endpoints of one access token."""

    def __init__(self, delay_s: Callable[[int], float]) -> None:
        """``delay_s`` returns the seconds between probes after so many failures in a row."""
        self._delay_s = delay_s
        self._endpoints: dict[str, Endpoint] = {}
        self._news: deque[News] = deque()
        self.awaited: set[str] = set()
        """Endpoints whose answer is needed before any delivery, and that have not answered yet."""

    def of(self, endpoint: str) -> Endpoint:
        """Return what is known of an endpoint; there are as many as the API client has calls."""
        found = self._endpoints.get(endpoint)
        if found is None:
            found = Endpoint(endpoint, Circuit(self._delay_s), self._news)
            self._endpoints[endpoint] = found
        return found

    @property
    def open_circuits(self) -> list[str]:
        """Endpoints that nobody can have now: whose circuit is open, or that are awaited."""
        is_open = [name for name, found in self._endpoints.items() if found.circuit.is_open]
        return [*is_open, *(name for name in sorted(self.awaited) if name not in is_open)]

    @property
    def out(self) -> list[str]:
        """Endpoints that do not answer, as far as one sees; for people."""
        return [name for name, found in self._endpoints.items() if found.is_out]

    def wanting_probe(self, now_s: float) -> list[str]:
        """Return the endpoints for which a probe may leave now."""
        return [n for n, found in self._endpoints.items() if found.circuit.wants_probe(now_s)]

    def next_probe_s(self) -> float | None:
        """Return when the next probe of an open circuit is due, if any waits for its time."""
        circuits = [found.circuit for found in self._endpoints.values()]
        due = [c.probe_at_s for c in circuits if c.is_open and c.probing is None]
        return min(due, default=None)

    def is_probing(self, who: Who) -> bool:
        """Return whether a user's turn finds out whether some endpoint is well again."""
        return any(found.circuit.probing == who for found in self._endpoints.values())

    def end_probes(self, who: Who | None = None) -> None:
        """Take in that a user's turn is over, or (None) that none is under way any more."""
        for found in self._endpoints.values():
            if who is None or found.circuit.probing == who:
                found.circuit.probing = None

    def next_look_s(self) -> float | None:
        """Return when ``look`` will find something, if nothing happens until then; None: never."""
        instants = [found.next_look_s() for found in self._endpoints.values()]
        return min((at_s for at_s in instants if at_s is not None), default=None)

    def look(self, now_s: float) -> None:
        """Let time pass: see ``Endpoint.look``."""
        for found in self._endpoints.values():
            found.look(now_s)

    def take_news(self) -> list[News]:
        """Return what has come of the outcomes since the last time."""
        taken = list(self._news)
        self._news.clear()
        return taken
