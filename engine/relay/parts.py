"""Parts of requests that are loaded, in the order of their devices. Pure.

Rules
=====
1. A part is some events of one request that go together. It stands in the queue of each device that
   these events belong to, behind the parts that were loaded before it.
2. A part is ready once it is first in all of its queues, and leaves unless it is already out.
3. Settled events leave their part; a part without events is unloaded. A part of which something is
   left stays first in its queues.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Container, Iterable, Sequence

import msgspec

from amplitude_intercom.engine.spool.relay_requests import WaitingRequest


class RequestPart(msgspec.Struct, eq=False):
    """Events of one request that go together, by their index in it.

    ``ahead`` counts the queues in which another part is first. ``is_out``: it is being sent.
    """

    request: WaitingRequest
    indexes: list[int]
    ahead: int = 0
    is_out: bool = False

    @property
    def devices(self) -> set[int]:
        """The numbers of its devices."""
        return set(map(self.request.device, self.indexes))


class LoadedParts:
    """All loaded parts, by device and by request; see the module's docstring."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[RequestPart]] = {}
        self._of_request: dict[int, list[RequestPart]] = {}
        self._ready: deque[RequestPart] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Return the number of loaded parts."""
        return self._count

    def loaded_of(self, device: int) -> int:
        """Return the number of loaded parts of a device."""
        return len(self._queues.get(device, ()))

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
        for device in part.devices:
            waiting = self._queues.setdefault(device, deque())
            part.ahead += bool(waiting)
            waiting.append(part)
        if not part.ahead:
            self._ready.append(part)

    def keep(self, part: RequestPart, indexes: list[int]) -> set[int]:
        """Reduce a part to these of its events; return the devices that it has left."""
        before, part.indexes = part.devices, indexes
        left = before - part.devices
        for device in left:
            self._leave(part, device)
        if before and not indexes:
            self._unload(part)
        return left

    def take_out(self, devices: Iterable[int]) -> dict[int, int | None]:
        """Remove the events of some devices from all parts.

        Returns by device the first request of which events were removed; None: it had none.
        """
        gone = set(devices)
        first_ids: dict[int, int | None] = {}
        # A part loses all its events at once at the end: removing them device by device would look
        # at every event of the part again for each of its devices, hundreds in a batch.
        losing: dict[int, tuple[RequestPart, int]] = {}
        for device in gone:
            parts = self._queues.pop(device, ())
            first_ids[device] = min((part.request.id for part in parts), default=None)
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

    def _leave(self, part: RequestPart, device: int) -> None:
        waiting = self._queues[device]
        if waiting[0] is not part:
            waiting.remove(part)
            self._move_up(part)
            return
        waiting.popleft()
        if waiting:
            self._move_up(waiting[0])
        else:
            del self._queues[device]

    def _move_up(self, part: RequestPart, queues: int = 1) -> None:
        """Note that a part became first in some of its queues, or has left them."""
        part.ahead -= queues
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

        Returns the devices that it has left.
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
        first, second = part.devices, half.devices
        for device in second:
            waiting = self._queues[device]
            if device in first:
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
