"""Rates of a local Amplitude: events a second of one device, or of one user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from amplitude_intercom.transports.sandbox.amplitude_uploads import AmplitudeRefusal

EVENTS_PER_S: Final = {"/2/httpapi": 30.0, "/batch": 1_000.0}
"""Of one device, or of one user (HTTP V2 and Batch pages)."""


class DeviceRates:
    """Counts the events of each device and user in the present second."""

    def __init__(self, events_per_s: Mapping[str, float]) -> None:
        """``events_per_s``: limits by path; 0: none."""
        self._events_per_s = events_per_s
        self._second = -1
        self._sent: Counter[tuple[str, str]] = Counter()

    def charge(self, at_s: float, path: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Count the events of a request.

        Raises:
            AmplitudeRefusal: some devices or users have too many; then nothing is counted.
        """
        limit = self._events_per_s.get(path, 0)
        if not limit:
            return
        if int(at_s) != self._second:
            self._second = int(at_s)
            self._sent.clear()
        owners = [_owners_of(event) for event in events]
        rates = self._sent + Counter(owner for some in owners for owner in some)
        throttled = [n for n, some in enumerate(owners) if any(rates[o] > limit for o in some)]
        if not throttled:
            self._sent = rates
            return
        over = {owner for n in throttled for owner in owners[n] if rates[owner] > limit}
        raise AmplitudeRefusal(
            429,
            "Too many requests for some devices and users",
            eps_threshold=limit,
            throttled_devices={name: rates[k, name] for k, name in over if k == "device"},
            throttled_users={name: rates[k, name] for k, name in over if k == "user"},
            throttled_events=throttled,
        )


def _owners_of(event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the device and the user of an event; its events count for both."""
    kinds = ("device", "user")
    return [(kind, str(event[f"{kind}_id"])) for kind in kinds if event.get(f"{kind}_id")]
