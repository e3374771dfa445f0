"""The requests of a relay that may go now: in order per device, across all devices. Pure.

Rules
=====
1. Events of one device go in order; no device holds up another. ``parts`` keeps that order.
2. A device or an API key that has to wait is held. Its events leave the loaded parts, the others of
   their requests go on without them. ``holds`` says until when, and reads them again.
3. A device with many loaded parts is held as well, until most of these have gone: one busy device
   must not fill the memory that keeps all connections busy.
4. Requests are read at two positions by turns: at the *front*, where they are new, and *again*, in
   passes from the first that was passed over up to the front.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from typing import Final

from amplitude_intercom.engine.relay.holds import Holds, Owner
from amplitude_intercom.engine.relay.parts import LoadedParts, RequestPart, split
from amplitude_intercom.engine.spool.relay_requests import WaitingRequest

MOST_PARTS: Final = 256
"""Parts that are loaded: enough to keep all connections busy."""

MOST_OF_ONE: Final = 8
"""Parts of one device that are loaded; the next are read when all but ``FEW`` have gone."""

FEW: Final = 2

MOST_HELD: Final = 100_000
"""Held devices and keys beyond which no new request is read."""

BEFORE_ALL: Final = -(1 << 62)
"""An id below all others, those of damaged rows included."""


class RequestQueue:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._parts = LoadedParts()
        self._holds = Holds()
        self.front = BEFORE_ALL
        """The last request that was read as a new one."""

    @property
    def again(self) -> int | None:
        """The last request that the present pass has read; None: there is no pass."""
        return self._holds.again

    @property
    def reads_front(self) -> bool:
        """Whether new requests may be read."""
        # A held device is an entry in memory, and clients make devices up.
        return len(self._parts) < MOST_PARTS and len(self._holds) < MOST_HELD

    @property
    def reads_again(self) -> bool:
        """Whether there is a pass, and its next requests may be read."""
        return self.again is not None and len(self._parts) < MOST_PARTS

    @property
    def held(self) -> int:
        """The number of held devices and keys."""
        return len(self._holds)

    @property
    def next_wake_s(self) -> float | None:
        """The instant at which the first hold is due; None: no hold has one."""
        return self._holds.next_wake_s

    def is_held(self, owner: Owner) -> bool:
        """Return whether a device or a key is held."""
        return owner in self._holds

    # --- reading --------------------------------------------------------------------------

    def add(self, request: WaitingRequest, pieces: int = 1) -> None:
        """Load the events of a request that are not loaded yet, in so many parts."""
        # Ids go up: a request that is not beyond the front comes from the pass.
        at_front = request.id > self.front
        if at_front:
            self.front = request.id
        else:
            self._holds.again = request.id
        # A request has one key: if that is held, nothing of it can go.
        if self._holds.pass_over(request.api_key, request.id, at_front=at_front):
            return
        # A pass reads requests again of which other devices are loaded, or on their way.
        loaded = self._parts.indexes_of(request.id)
        free = [
            index
            for index in request.remaining
            if index not in loaded
            and not self._pass_over(request.device(index), request.id, at_front=at_front)
        ]
        for indexes in split(free, pieces):
            self._parts.add(RequestPart(request, indexes))

    def _pass_over(self, device: int, id_: int, *, at_front: bool) -> bool:
        if self._holds.pass_over(device, id_, at_front=at_front):
            return True
        if self._parts.loaded_of(device) < MOST_OF_ONE:
            return False
        # From this request on, so that a pass reads it again when the others have gone.
        self._holds.hold_full(device, id_)
        return True

    def end_pass(self) -> list[str]:
        """End a pass that has come to the front.

        Returns the API keys that are free now, and of which nothing is loaded: nothing of them
        waits any more.
        """
        freed, loaded = self._holds.end_pass(), self._parts.api_keys()
        # While a part with the key is loaded, an answer about it is to come.
        return [owner for owner in freed if isinstance(owner, str) and owner not in loaded]

    def wake(self, now_s: float) -> None:
        """Make the holds due that end by now."""
        self._holds.wake(now_s)

    # --- sending --------------------------------------------------------------------------

    def oldest(self) -> RequestPart | None:
        """Return the part that became ready first, to be sent; None: no part is ready."""
        return self._parts.oldest()

    def newest(self, besides: Container[int]) -> RequestPart | None:
        """Return the part that became ready last of a request not among these; else any."""
        return self._parts.newest(besides)

    def answered(self, part: RequestPart, settled: Collection[int] = ()) -> None:
        """Bring a part back from being sent; the events that are not settled may go again."""
        self._let_on(self._parts.answered(part, settled))

    def halve(self, part: RequestPart) -> None:
        """Split a part that was just answered; the halves go one after the other."""
        self._parts.halve(part)

    def _let_on(self, devices: Iterable[int]) -> None:
        for device in devices:
            # At a few and not at none: until the next are read the connections need something.
            if self._parts.loaded_of(device) <= FEW:
                self._holds.let_on(device)

    # --- waiting --------------------------------------------------------------------------

    def hold(self, devices: Iterable[int], until_s: float, id_: int) -> None:
        """Hold devices until an instant, from a request on that was answered."""
        # From the first of its events that were loaded: a pass has to read those again.
        for device, first_id in self._parts.take_out(devices).items():
            self._holds.hold(device, until_s, id_ if first_id is None else min(id_, first_id))

    def hold_key(self, api_key: str, until_s: float, id_: int) -> None:
        """Hold an API key until an instant, from a request on; parts that are out stay out."""
        for part in self._parts.resting(api_key):
            id_ = min(id_, part.request.id)
            # What waits is on disk. In memory it would keep requests with other keys out.
            self._let_on(self._parts.keep(part, []))
        self._holds.hold(api_key, until_s, id_)
