"""Which requests of a relay may go now: in order per device, and no device holds up another. Pure.

Rules
=====
1. Each event stands in the line of its device. What goes at once is a *part*: some events of one
   request, at first all of them. A part may go once it is first in the lines of all its events.
2. A device that has to wait (Amplitude throttles it, or its request fails) is *held*: it has no
   line, its events leave the parts that are loaded, and are passed over when requests are read. The
   others of their requests go on without them. So is one that has many parts loaded already: until
   these have gone. The same with API keys that Amplitude refuses.
3. Requests are read in two places, in turns: at the *front*, what is new; and *again*, in passes
   from the first that was passed over for somebody whose time has come, up to the front. Whoever is
   read again is still passed over at the front, so that nothing of it overtakes. A pass that has
   come to the front frees them. So what waits is on disk, and in memory is one entry a device.
4. What is answered in part stays first in its lines, with what is left of it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Final

import msgspec

from amplitude_intercom.engine.spool.requests import WaitingRequest

MOST_PARTS: Final = 256
"""Parts that are loaded: enough to keep all connections busy."""

MOST_OF_ONE: Final = 8
"""Parts of one device that are loaded; the next are read when all but ``FEW`` have gone."""

FEW: Final = 2

MOST_HELD: Final = 100_000
"""Devices that are held, beyond which no further requests are read."""

BEFORE_ALL: Final = -(1 << 62)
"""An id that is lower than any, also than one that is damaged."""

Owner = int | str
"""A device's line, or an API key: what can be held."""


class Part(msgspec.Struct, eq=False):
    """Events of one request that go together, by their index there.

    ``ahead``: of how many of its lines another part is first. ``is_out``: it is being sent.
    """

    request: WaitingRequest
    indexes: list[int]
    ahead: int = 0
    is_out: bool = False

    @property
    def lines(self) -> set[int]:
        """The lines in which it stands."""
        return set(map(self.request.device, self.indexes))


class Hold(msgspec.Struct):
    """Why a device or a key is passed over: until when, and from which request on."""

    until_s: float
    first_id: int


class Lines:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[Part]] = {}
        self._loaded: dict[int, list[Part]] = {}
        """Parts of each request that are loaded."""
        self._ready: deque[Part] = deque()
        self._held: dict[Owner, Hold] = {}
        self._wakes: list[tuple[float, int, Owner]] = []
        self._numbers = itertools.count()
        self._count = 0
        self._due: set[Owner] = set()
        """Held ones whose time has come: the next pass is for them."""
        self._returning: set[Owner] = set()
        """Held ones for whom this pass is."""
        self.front = BEFORE_ALL
        """The last request that was read as a new one."""
        self.again: int | None = None
        """The last request that this pass has read; None: there is no pass."""

    @property
    def reads_front(self) -> bool:
        """Whether new requests may be read."""
        return self._count < MOST_PARTS and len(self._held) < MOST_HELD

    @property
    def reads_again(self) -> bool:
        """Whether there is a pass, and its next requests may be read."""
        return self.again is not None and self._count < MOST_PARTS

    @property
    def held(self) -> int:
        """How many devices and keys are held."""
        return len(self._held)

    @property
    def next_wake_s(self) -> float | None:
        """When the first of those that are held is due."""
        return self._wakes[0][0] if self._wakes else None

    def is_held(self, owner: Owner) -> bool:
        """Whether a device or a key is held."""
        return owner in self._held

    # --- reading --------------------------------------------------------------------------

    def add(self, request: WaitingRequest, pieces: int = 1) -> None:
        """Let what of a request is not loaded yet stand in its lines, in so many pieces."""
        is_new = request.id > self.front
        if is_new:
            self.front = request.id
        else:
            self.again = request.id
        returning: Collection[Owner] = () if is_new else self._returning
        if self._passes_over(request.api_key, request.id, returning):
            return
        loaded = {i for part in self._loaded.get(request.id, ()) for i in part.indexes}
        free = [
            index
            for index in request.remaining
            if index not in loaded
            and not self._passes_over(request.device(index), request.id, returning)
        ]
        for indexes in _split(free, pieces):
            self._enter(Part(request, indexes))

    def _passes_over(self, owner: Owner, id_: int, returning: Collection[Owner]) -> bool:
        """Whether somebody is passed over in a request; ``returning``: for whom it is read."""
        hold = self._held.get(owner)
        if hold is not None and owner not in returning:
            hold.first_id = min(hold.first_id, id_)
            return True
        if isinstance(owner, int) and len(self._lines.get(owner, ())) >= MOST_OF_ONE:
            self._hold(owner, math.inf, id_)
            return True
        return False

    def end_pass(self) -> list[str]:
        """Take in that a pass has come to the front; return the API keys that are free now of which
        nothing is loaded."""
        self.again = None
        keys = {part.request.api_key for parts in self._loaded.values() for part in parts}
        freed, self._returning = self._returning, set()
        for owner in freed:
            del self._held[owner]
        self._begin_pass()
        return [owner for owner in freed if isinstance(owner, str) and owner not in keys]

    def _begin_pass(self) -> None:
        """Begin a pass for those that are due, where none is under way."""
        if self.again is None and self._due:
            self._returning, self._due = self._due, set()
            self.again = min(self._held[owner].first_id for owner in self._returning) - 1

    def _enter(self, part: Part) -> None:
        self._loaded.setdefault(part.request.id, []).append(part)
        self._count += 1
        for line in part.lines:
            waiting = self._lines.setdefault(line, deque())
            part.ahead += bool(waiting)
            waiting.append(part)
        if not part.ahead:
            self._ready.append(part)

    # --- going ----------------------------------------------------------------------------

    def next(self) -> Part | None:
        """Return a part that goes now; None: none may."""
        while self._ready:
            part = self._ready.popleft()
            if part.indexes and not part.is_out:  # else it was passed over since
                part.is_out = True
                return part
        return None

    def newest(self, besides: Container[int]) -> Part | None:
        """Return the newest part that goes now of a request that is not one of these; else any."""
        for part in reversed(self._ready):
            if part.indexes and not part.is_out and part.request.id not in besides:
                self._ready.remove(part)
                part.is_out = True
                return part
        return self.next()

    def answered(self, part: Part, settled: Collection[int] = ()) -> None:
        """Take in that a part is not out any more; what of it is not settled may go again."""
        self._keep(part, [i for i in part.indexes if i not in settled])
        part.is_out = False
        if part.indexes:
            self._ready.append(part)

    def halve(self, part: Part) -> None:
        """Let the two halves of a part that was answered go one after the other."""
        part.indexes, behind = _split(part.indexes, 2)
        half = Part(part.request, behind)
        self._loaded[part.request.id].append(half)
        self._count += 1
        first, second = part.lines, half.lines
        for line in second:
            waiting = self._lines[line]
            if line in first:
                waiting.insert(1, half)
                half.ahead += 1
            else:
                waiting[0] = half
        if not half.ahead:
            self._ready.append(half)

    def _keep(self, part: Part, indexes: list[int]) -> None:
        """Let a part be about some of its events only; without any it is not loaded any more."""
        before, part.indexes = part.lines, indexes
        for line in before - part.lines:
            self._leave(part, line)
        if before and not indexes:
            self._unload(part)

    def _leave(self, part: Part, line: int) -> None:
        waiting = self._lines[line]
        if len(waiting) <= FEW + 1:
            self._let_on(line)
        if waiting[0] is not part:
            waiting.remove(part)
            self._comes_nearer(part)
            return
        waiting.popleft()
        if waiting:
            self._comes_nearer(waiting[0])
        else:
            del self._lines[line]

    def _let_on(self, line: int) -> None:
        """Let a device go on that was passed over because much of it was loaded."""
        hold = self._held.get(line)
        if hold is not None and hold.until_s == math.inf:
            hold.until_s = 0.0
            self._due.add(line)
            self._begin_pass()

    def _comes_nearer(self, part: Part, lines: int = 1) -> None:
        """Take in that a part has become first in some of its lines, or has left them."""
        part.ahead -= lines
        if not part.ahead and not part.is_out:
            self._ready.append(part)

    def _unload(self, part: Part) -> None:
        parts = self._loaded[part.request.id]
        parts.remove(part)
        self._count -= 1
        if not parts:
            del self._loaded[part.request.id]

    # --- waiting --------------------------------------------------------------------------

    def hold(self, lines: Iterable[int], until_s: float, id_: int) -> None:
        """Hold devices until then, of a request that was answered."""
        held = set(lines)
        nearer: dict[int, tuple[Part, int]] = {}
        """Parts that lose events, and in how many of these lines they were not the first."""
        for line in held:
            first_id = id_
            for place, part in enumerate(self._lines.pop(line, ())):
                first_id = min(first_id, part.request.id)
                _, count = nearer.get(id(part), (part, 0))
                nearer[id(part)] = (part, count + bool(place))
            self._hold(line, until_s, first_id)
        for part, count in nearer.values():
            part.indexes = [i for i in part.indexes if part.request.device(i) not in held]
            if not part.indexes:
                self._unload(part)
            if count:
                self._comes_nearer(part, count)

    def hold_key(self, api_key: str, until_s: float, id_: int) -> None:
        """Hold all of an API key until then but what is out; ``id_``: a request that has it."""
        loaded = [part for parts in self._loaded.values() for part in parts]
        for part in loaded:
            if part.request.api_key == api_key and not part.is_out:
                id_ = min(id_, part.request.id)
                self._keep(part, [])
        self._hold(api_key, until_s, id_)

    def _hold(self, owner: Owner, until_s: float, first_id: int) -> None:
        hold = self._held.get(owner)
        if hold is not None:
            first_id = min(first_id, hold.first_id)
        self._due.discard(owner)
        self._returning.discard(owner)
        self._held[owner] = Hold(until_s, first_id)
        if until_s < math.inf:
            heapq.heappush(self._wakes, (until_s, next(self._numbers), owner))

    def wake(self, now_s: float) -> None:
        """Let those be read again whose time has come."""
        while self._wakes and self._wakes[0][0] <= now_s:
            _, _, owner = heapq.heappop(self._wakes)
            hold = self._held.get(owner)
            if hold is not None and hold.until_s <= now_s and owner not in self._returning:
                self._due.add(owner)
        self._begin_pass()


def _split(indexes: Sequence[int], pieces: int) -> list[list[int]]:
    """Return events in so many pieces of about the same size, none of them empty."""
    count = len(indexes)
    ends = [count * n // pieces for n in range(pieces + 1)]
    found = [list(indexes[start:end]) for start, end in itertools.pairwise(ends)]
    return [piece for piece in found if piece]
