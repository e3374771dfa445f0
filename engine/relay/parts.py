"""Parts of requests that are loaded, in the order of their devices. Pure.

Rules
=====
1. A part is some events of one request that go together. It stands in the line of each device that
   these events belong to, behind the parts that were loaded before it.
2. A part is ready once it is first in all of its lines, and leaves unless it is already out.
3. Settled events leave their part; a part without events is unloaded. A part of which something is
   left stays first in its lines.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence

import msgspec

from amplitude_intercom.engine.spool.relay_requests import WaitingRequest


class RequestPart(msgspec.Struct, eq=False):
    """Events of one request that go together, by their index in it.

    ``ahead`` counts the lines in which another part is first. ``is_out``: it is being sent.
    """

    request: WaitingRequest
    indexes: list[int]
    ahead: int = 0
    is_out: bool = False

    @property
    def lines(self) -> set[int]:
        """The lines of its devices."""
        return set(map(self.request.device, self.indexes))


class LoadedParts:
    """All loaded parts, by device line and by request; see the module's docstring."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[RequestPart]] = {}
        self._of_request: dict[int, list[RequestPart]] = {}
        self._ready: deque[RequestPart] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Return the number of loaded parts."""
        return self._count

    def length(self, line: int) -> int:
        """Return the number of parts in a line."""
        return len(self._lines.get(line, ()))

    def indexes_of(self, request_id: int) -> set[int]:
        """Return the events of a request that are loaded."""
        return {i for part in self._of_request.get(request_id, ()) for i in part.indexes}

    def api_keys(self) -> set[str]:
        """Return the API keys of all loaded parts."""
        return {part.request.api_key for parts in self._of_request.values() for part in parts}

    def resting(self, api_key: str) -> list[RequestPart]:
        """Return the parts with an API key that are not being sent."""
        loaded = itertools.chain.from_iterable(self._of_request.values())
        return [part for part in loaded if part.request.api_key == api_key and not part.is_out]

    # --- entering and leaving memory ------------------------------------------------------

    def add(self, part: RequestPart) -> None:
        """Load a part behind all others of its devices."""
        self._of_request.setdefault(part.request.id, []).append(part)
        self._count += 1
        for line in part.lines:
            waiting = self._lines.setdefault(line, deque())
            part.ahead += bool(waiting)
            waiting.append(part)
        if not part.ahead:
            self._ready.append(part)

    def keep(self, part: RequestPart, indexes: list[int]) -> set[int]:
        """Reduce a part to these of its events; return the lines that it has left."""
        before, part.indexes = part.lines, indexes
        left = before - part.lines
        for line in left:
            self._leave(part, line)
        if before and not indexes:
            self._unload(part)
        return left

    def take_out(self, lines: Iterable[int]) -> dict[int, int | None]:
        """Remove the events of some devices from all parts.

        Returns, for each line, the first request of which events were removed; None: it was empty.
        """
        gone = set(lines)
        first_ids: dict[int, int | None] = {}
        # A part loses all its events at once at the end: removing them line by line would look at
        # every event of the part again for each of its devices, which are hundreds in a batch.
        losing: dict[int, tuple[RequestPart, int]] = {}
        for line in gone:
            parts = self._lines.pop(line, ())
            first_ids[line] = min((part.request.id for part in parts), default=None)
            for position, part in enumerate(parts):
                _, ahead = losing.get(id(part), (part, 0))
                losing[id(part)] = (part, ahead + bool(position))
        for part, ahead in losing.values():
            part.indexes = [i for i in part.indexes if part.request.device(i) not in gone]
            if not part.indexes:
                self._unload(part)
            if ahead:
                self._move_up(part, ahead)
        return first_ids

    def _leave(self, part: RequestPart, line: int) -> None:
        waiting = self._lines[line]
        if waiting[0] is not part:
            waiting.remove(part)
            self._move_up(part)
            return
        waiting.popleft()
        if waiting:
            self._move_up(waiting[0])
        else:
            del self._lines[line]

    def _move_up(self, part: RequestPart, lines: int = 1) -> None:
        """Note that a part became first in some of its lines, or has left them."""
        part.ahead -= lines
        if not part.ahead and not part.is_out:
            self._ready.append(part)

    def _unload(self, part: RequestPart) -> None:
        parts = self._of_request[part.request.id]
        parts.remove(part)
        self._count -= 1
        if not parts:
            del self._of_request[part.request.id]

    # --- being sent -----------------------------------------------------------------------

    def oldest(self) -> RequestPart | None:
        """Mark the first ready part as being sent and return it; None: no part is ready."""
        while self._ready:
            part = self._ready.popleft()
            # A part may be in the queue twice, or have lost its events since it became ready:
            # searching the queue at each loss would cost more than passing over it here.
            if part.indexes and not part.is_out:
                part.is_out = True
                return part
        return None

    def newest(self, besides: Container[int]) -> RequestPart | None:
        """Do the same with the last ready part of a request that is not among these; else any."""
        for part in reversed(self._ready):
            if part.indexes and not part.is_out and part.request.id not in besides:
                self._ready.remove(part)
                part.is_out = True
                return part
        return self.oldest()

    def answered(self, part: RequestPart, settled: Collection[int]) -> set[int]:
        """Bring a part back from being sent, without its settled events.

        Returns the lines that it has left.
        """
        left = self.keep(part, [i for i in part.indexes if i not in settled])
        part.is_out = False
        if part.indexes:
            self._ready.append(part)
        return left

    def halve(self, part: RequestPart) -> None:
        """Split a part that was just answered; the halves go one after the other."""
        part.indexes, behind = split(part.indexes, 2)
        half = RequestPart(part.request, behind)
        self._of_request[part.request.id].append(half)
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


def split(indexes: Sequence[int], pieces: int) -> list[list[int]]:
    """Return events in so many pieces of about the same size, none of them empty."""
    count = len(indexes)
    ends = [count * n // pieces for n in range(pieces + 1)]
    found = [list(indexes[start:end]) for start, end in itertools.pairwise(ends)]
    return [piece for piece in found if piece]
