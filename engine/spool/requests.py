"""Requests that a relay sends on to Amplitude: plain values."""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.transports.contract import Original

REQUEST_OVERHEAD_BYTES: Final = 200
"""What a request takes beside its body and devices, by which a spool's fullness is reckoned."""


class Relayed(msgspec.Struct):
    """What a relay keeps of one batch.

    ``devices``: of each event the line in which it stands; one only, where all are of the same.
    ``drops_oldest``: whether older ones go for it where the relay's share is taken.
    ``accepted_at_ms``: where that was before (a dead letter's); 0: now.
    """

    api_key: str
    count: int
    devices: list[int]
    original: Original
    drops_oldest: bool = True
    accepted_at_ms: int = 0

    @property
    def size_bytes(self) -> int:
        """What it counts for where a spool's fullness is reckoned."""
        return len(self.original.body) + 11 * len(self.devices) + REQUEST_OVERHEAD_BYTES


class WaitingRequest(msgspec.Struct):
    """A row of ``relayed``, but for its request. ``remaining``: the indexes of its events that are
    still to be sent. ``is_damaged``: the row cannot be trusted; its request must not be sent."""

    id: int
    accepted_at_ms: int
    api_key: str
    count: int
    devices: list[int]
    remaining: list[int]
    is_damaged: bool = False

    def device(self, index: int) -> int:
        """Return the line in which an event stands."""
        return self.devices[index] if len(self.devices) > 1 else self.devices[0]


class LostEvent(msgspec.Struct, frozen=True):
    """An event that Amplitude will not have. ``raw``: the body of a request with it alone.

    ``origin``: what the request was, to send it again by.
    """

    index: int
    failure: Failure
    raw: bytes
    origin: str
    user: str = ""
    event_type: str = ""
