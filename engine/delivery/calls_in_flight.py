"""The calls that are out, and their slots.

Rules
=====
1. A call has a slot from its departure on. A call that is out for ``SLOW_FACTOR`` times the mean
   latency, and at least ``SLOW_AT_LEAST_S``, gives its slot back, so that hanging calls do not use
   up the slots of answered ones.
2. Calls without their slot are bounded, because each is a connection and memory: half of ``most``
   at one endpoint, three quarters in all.
3. At that bound the oldest call is given up, if it is out for ``GIVEN_UP_S`` and ``OVERTAKEN_BY``
   later calls have ended. It ends as a call without an answer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

SLOW_FACTOR: Final = 4
SLOW_AT_LEAST_S: Final = 1.0
GIVEN_UP_S: Final = 5.0
OVERTAKEN_BY: Final = 8


class CallInFlight:
    """A call that is out. ``give_up`` ends the wait for its answer."""

    __slots__ = ("endpoint", "gave_back", "give_up", "is_given_up", "left_s", "number")

    def __init__(self, number: int, endpoint: str, left_s: float, give_up: Callable[[], object]):
        self.number = number
        self.endpoint = endpoint
        self.left_s = left_s
        self.give_up = give_up
        self.gave_back = False
        self.is_given_up = False


class CallsInFlight:
    """The calls of one access token that are out. The module's docstring has the rules."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._out: dict[int, CallInFlight] = {}
        self._young: deque[CallInFlight] = deque()
        """Calls with a slot, the oldest first, and some that have ended."""
        self._given_back: Counter[str] = Counter()
        self._last = 0

    def __len__(self) -> int:
        return len(self._out)

    def depart(self, endpoint: str, now_s: float, give_up: Callable[[], object]) -> CallInFlight:
        """Note a departure."""
        self._last += 1
        call = CallInFlight(self._last, endpoint, now_s, give_up)
        self._out[call.number] = call
        self._young.append(call)
        return call

    def end(self, call: CallInFlight) -> None:
        """Note the end of a call, with or without an answer."""
        del self._out[call.number]
        if call.gave_back:
            self._given_back[call.endpoint] -= 1

    def count(self, now_s: float, mean_latency_s: float) -> int:
        """Take back the slots of slow calls; return the number of calls with a slot."""
        slow_s = max(SLOW_AT_LEAST_S, SLOW_FACTOR * mean_latency_s)
        # In order of departure, so the first call that is not slow ends the search.
        young = self._young
        while young:
            call = young[0]
            if call.number in self._out:
                if now_s - call.left_s <= slow_s:
                    break
                if not self._may_give_back(call.endpoint):
                    self._give_up_oldest(now_s)
                    break
                call.gave_back = True
                self._given_back[call.endpoint] += 1
            young.popleft()
        return len(self._out) - self._given_back.total()

    def _may_give_back(self, endpoint: str) -> bool:
        in_all = self._given_back.total()
        return self._given_back[endpoint] < self._most // 2 and in_all < self._most * 3 // 4

    def _give_up_oldest(self, now_s: float) -> None:
        oldest = next(iter(self._out.values()))
        # Calls that left later, less those that are still out: the calls that overtook it.
        overtaken_by = self._last - oldest.number - (len(self._out) - 1)
        old_enough = now_s - oldest.left_s >= GIVEN_UP_S
        if old_enough and overtaken_by >= OVERTAKEN_BY and not oldest.is_given_up:
            oldest.is_given_up = True
            oldest.give_up()

    def next_slow_s(self, mean_latency_s: float) -> float | None:
        """Return the instant at which the next call is slow; None without a call with a slot."""
        slow_s = max(SLOW_AT_LEAST_S, SLOW_FACTOR * mean_latency_s)
        return next((c.left_s + slow_s for c in self._young if c.number in self._out), None)
