"""Devices and API keys that have to wait, and the passes that read their requests again. Pure.

Rules
=====
1. A device or an API key is *held* until an instant (Amplitude throttles it, or its request fails),
   or until few of its parts are loaded. Its events are passed over while requests are read.
2. A hold that is due returns with the next *pass*: requests are read again, from the first that was
   passed over for one of the returning, up to the front of new requests.
3. A returning device is still passed over at the front, so that no new event of it overtakes an
   older one. The end of the pass frees it.
4. A device that is held again during a pass leaves that pass, and waits for the next one.

So all that waits is on disk, and in memory there is one entry for each device that waits.
"""

from __future__ import annotations

import heapq
import itertools
import math

import msgspec

Owner = int | str
"""The number of a device, or an API key."""


class OwnerHold(msgspec.Struct):
    """A hold: its end, and the first request that was passed over for it."""

    until_s: float
    first_id: int


class Holds:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._held: dict[Owner, OwnerHold] = {}
        self._wakes: list[tuple[float, int, Owner]] = []
        self._numbers = itertools.count()
        self._due: set[Owner] = set()
        self._returning: set[Owner] = set()
        self.again: int | None = None
        """The last request that the pass has read; None: there is no pass."""

    def __len__(self) -> int:
        """Return the number of held devices and keys."""
        return len(self._held)

    def __contains__(self, owner: Owner) -> bool:
        """Return whether a device or a key is held."""
        return owner in self._held

    @property
    def next_wake_s(self) -> float | None:
        """The instant at which the first hold is due; None: no hold has one."""
        return self._wakes[0][0] if self._wakes else None

    def pass_over(self, owner: Owner, id_: int, *, at_front: bool) -> bool:
        """Leave an owner's events out of a request if it is held, and note the request.

        Returns whether it is held. ``at_front``: the request is read as a new one, not by the pass.
        """
        hold = self._held.get(owner)
        if hold is None or (owner in self._returning and not at_front):
            return False
        hold.first_id = min(hold.first_id, id_)
        return True

    def hold(self, owner: Owner, until_s: float, first_id: int) -> None:
        """Hold an owner until an instant, from a request on."""
        hold = self._held.get(owner)
        if hold is not None:
            first_id = min(first_id, hold.first_id)
        self._due.discard(owner)
        self._returning.discard(owner)
        self._held[owner] = OwnerHold(until_s, first_id)
        if until_s < math.inf:
            # Earlier entries of the owner stay in the heap: `wake` finds that they are outdated,
            # which is cheaper than a search for them here.
            heapq.heappush(self._wakes, (until_s, next(self._numbers), owner))

    def hold_full(self, device: int, first_id: int) -> None:
        """Hold a device until ``let_on``, because many of its parts are loaded."""
        self.hold(device, math.inf, first_id)

    def let_on(self, device: int) -> None:
        """End the hold of a device of which many parts were loaded; no other hold."""
        hold = self._held.get(device)
        if hold is not None and hold.until_s == math.inf:
            hold.until_s = 0.0
            self._due.add(device)
            self._begin_pass()

    def wake(self, now_s: float) -> None:
        """Make the holds due that end by now."""
        while self._wakes and self._wakes[0][0] <= now_s:
            _, _, owner = heapq.heappop(self._wakes)
            hold = self._held.get(owner)
            if hold is not None and hold.until_s <= now_s and owner not in self._returning:
                self._due.add(owner)
        self._begin_pass()

    def end_pass(self) -> set[Owner]:
        """End the pass, which has come to the front; return the owners that it has freed."""
        self.again = None
        freed, self._returning = self._returning, set()
        for owner in freed:
            del self._held[owner]
        self._begin_pass()
        return freed

    def _begin_pass(self) -> None:
        """Begin a pass for the holds that are due, unless one is under way."""
        # Joining a pass that is under way is not possible: it may have gone beyond the first
        # request of the new ones already.
        if self.again is None and self._due:
            self._returning, self._due = self._due, set()
            self.again = min(self._held[owner].first_id for owner in self._returning) - 1
