"""The turns at work, of all syncs of one access token: how many calls, and whose contacts. Pure."""

from __future__ import annotations

from collections import Counter

from amplitude_intercom.engine.delivery.turns import Turn


class TurnsAtWork:
    """Counts the turns between their choice and their end."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls of all of them: a kill would repeat these at most."""
        self.probes = 0
        """Turns of users that were parked."""
        self.undeparted = 0
        """Turns without a call so far."""
        self._writing: Counter[str] = Counter()
        """Contacts that are written, by user."""

    def begin(self, turn: Turn) -> None:
        """Count a turn that was chosen."""
        self.calls += turn.calls
        self.undeparted += 1
        self.probes += turn.is_probe
        if turn.writes:
            self._writing[turn.user] += 1

    def note_departure(self) -> None:
        """Note the first call of a turn."""
        self.undeparted -= 1

    def end(self, turn: Turn) -> None:
        """Count a turn no more."""
        self.calls -= turn.calls
        self.probes -= turn.is_probe
        if not turn.has_departed:
            # It counts as undeparted until it makes a call, and will make none any more.
            turn.note_departure()
        if turn.writes:
            self._writing[turn.user] -= 1
            # Users come and go: a zero for each would grow without bound.
            if not self._writing[turn.user]:
                del self._writing[turn.user]

    def is_written(self, user: str) -> bool:
        """Return whether a turn writes a user's contact."""
        return user in self._writing

    def forget(self) -> None:
        """Count none, as all of them were stopped."""
        self._writing.clear()
        self.probes = self.calls = self.undeparted = 0
