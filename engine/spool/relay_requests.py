"""Requests that a relay sends on to Amplitude: plain values."""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.reasons import Failure
from amplitude_intercom.transports.contract import Original

REQUEST_OVERHEAD_BYTES: Final = 200
"""Bytes of a request beside its body and devices, as the spool's fullness counts them."""


class Relayed(msgspec.Struct):
    """The request of one batch, for a relay.

    ``devices``: a number for the device of each event; a single one if all have the same device.
    ``drops_oldest``: whether older requests are dropped for it if the relay's share is used up.
    ``accepted_at_ms``: Unix ms of its acceptance, for a dead letter; 0: now.
    """

    api_key: str
    count: int
    devices: list[int]
    original: Original
    drops_oldest: bool = True
    accepted_at_ms: int = 0

    @property
    def size_bytes(self) -> int:
        """Its bytes, as the spool's fullness counts them."""
        return len(self.original.body) + 11 * len(self.devices) + REQUEST_OVERHEAD_BYTES


class WaitingRequest(msgspec.Struct):
    """A row of ``relayed`` without its request.

    ``remaining``: the indexes of the events that are not sent yet. ``is_damaged``: the row fails
    its checksum, and its request must not be sent.
    """

    id: int
    accepted_at_ms: int
    api_key: str
    count: int
    devices: list[int]
    remaining: list[int]
    is_damaged: bool = False

    def device(self, index: int) -> int:
        """Return the number of an event's device."""
        return self.devices[index] if len(self.devices) > 1 else self.devices[0]


class LostEvent(msgspec.Struct, frozen=True):
    """An event that Amplitude will never take. ``raw``: the body of a request with it alone.

    ``origin``: the description of its request, by which a replay sends it again.
    """

    index: int
    failure: Failure
    raw: bytes
    origin: str
    user: str = ""
    event_type: str = ""
