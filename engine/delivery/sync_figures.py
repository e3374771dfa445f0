"""The figures of a sync, through changes of its settings."""

from __future__ import annotations

from collections import Counter

from amplitude_intercom.engine.histograms import DELIVERY_BOUNDS_S, Durations


class SyncFigures:
    """Figures of one sync since the start of the process, through changes of its settings."""

    def __init__(self) -> None:
        self.unknown_attributes: Counter[str] = Counter()
        """Attributes that the workspace does not have, and how often each was left out."""
        self.latency = Durations(DELIVERY_BOUNDS_S)
        """From accepted to answered, of deliveries."""
        self.retries = 0
        """Turns of users that were parked."""
        self.faults = 0
        """Faults that stopped its deliveries before the present one."""
