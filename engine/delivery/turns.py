"""A turn: the next records of one user, taken together.

It is at most ``MOST_UPDATES`` updates in a row, which become one write, then the events behind them
up to its next update. A user has one turn at a time, which is the whole of order per user.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from amplitude_intercom.engine.delivery.health import Who
from amplitude_intercom.engine.envelope import Envelope, Kind, Record

MOST_UPDATES: Final = 1_000
MOST_UPDATE_BYTES: Final = 1 << 20
MOST_EVENTS: Final = 8
"""Events of one turn while no other user waits."""


class Turn:
    """A user's turn, on its way through the actors."""

    __slots__ = (
        "_departed",
        "calls",
        "envelopes",
        "failed_before",
        "has_departed",
        "has_succeeded",
        "is_retry",
        "left",
        "records",
        "who",
        "writes",
    )

    def __init__(
        self,
        who: Who,
        records: list[Record],
        departed: Callable[[], None] = lambda: None,
        *,
        is_retry: bool = False,
        failed_before: bool = False,
    ) -> None:
        """``departed`` is told of its first call."""
        self.who = who
        self.records = records
        self.is_retry = is_retry
        self.failed_before = failed_before
        """Whether the user's last call has failed."""
        self.writes = records[0].kind is not Kind.EVENT
        """Whether it begins with a contact write."""
        self.calls = max(1, sum(record.kind is not Kind.IDENTIFY for record in records))
        """Calls that a kill would repeat: the updates are one."""
        self.has_departed = False
        self._departed = departed
        self.has_succeeded = False
        """Whether a call of it has."""
        self.envelopes: list[Envelope] = []
        """The mapped records, as far as they are not settled."""
        self.left: list[Record] = []
        """Records that turned out to belong to a later turn."""

    def __repr__(self) -> str:
        return f"Turn({self.who}, {len(self.records)} records)"

    @property
    def sync(self) -> str:
        """The sync of its user."""
        return self.who[0]

    @property
    def user(self) -> str:
        """The user's key."""
        return self.who[1]

    @property
    def unsettled(self) -> list[Record]:
        """Its records that are not settled, in their order."""
        return [*(envelope.record for envelope in self.envelopes), *self.left]

    def put(self, envelope: Envelope) -> None:
        """Take in its next record as mapped.

        A contact write behind an event belongs to a turn of its own, with all behind it.
        """
        is_later = envelope.plan.contact is not None and not self._takes_update(envelope)
        if self.left or is_later:
            self.left.append(envelope.record)
        else:
            self.envelopes.append(envelope)

    def _takes_update(self, envelope: Envelope) -> bool:
        if not self.envelopes:
            return True
        all_are_updates = all(found.event is None for found in self.envelopes)
        return all_are_updates and envelope.event is None

    def take_updates(self) -> list[Envelope]:
        """Return the updates in front; those that bring no event are the turn's no more."""
        updates = []
        for envelope in self.envelopes:
            if envelope.plan.contact is None:
                break
            updates.append(envelope)
        self.envelopes = [e for e in self.envelopes if e.event is not None]
        return updates

    def drop_event_of(self, update: Envelope) -> None:
        """Take in that an update was settled, so that its event is not sent."""
        self.envelopes = [e for e in self.envelopes if e is not update]

    def note_departure(self) -> None:
        """Take in that a call of it has left."""
        if not self.has_departed:
            self.has_departed = True
            self._departed()


def take(waiting: deque[Record], *, alone: bool) -> list[Record]:
    """Take a turn's records from those of a user that wait; ``alone``: no other user waits."""
    taken = [waiting.popleft()]
    if taken[0].kind is Kind.IDENTIFY:
        size = len(taken[0].raw)
        while waiting and waiting[0].kind is Kind.IDENTIFY and len(taken) < MOST_UPDATES:
            size += len(waiting[0].raw)
            if size > MOST_UPDATE_BYTES:
                return taken
            taken.append(waiting.popleft())
    events = MOST_EVENTS if taken[0].kind is Kind.IDENTIFY else MOST_EVENTS - 1
    while alone and events and waiting and waiting[0].kind is Kind.EVENT:
        taken.append(waiting.popleft())
        events -= 1
    return taken


class TurnsAtWork:
    """Counts the turns between their choice and their end."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls of all of them: a kill would repeat these at most."""
        self.retries = 0
        """Turns of users that were parked."""
        self.undeparted = 0
        """Turns without a call so far."""
        self._writing: Counter[str] = Counter()
        """Contacts that are written, by user."""

    def begin(self, turn: Turn) -> None:
        """Count a turn that was chosen."""
        self.calls += turn.calls
        self.undeparted += 1
        self.retries += turn.is_retry
        if turn.writes:
            self._writing[turn.user] += 1

    def note_departure(self) -> None:
        """Note the first call of a turn."""
        self.undeparted -= 1

    def end(self, turn: Turn) -> None:
        """Count a turn no more."""
        self.calls -= turn.calls
        self.retries -= turn.is_retry
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
        self.retries = self.calls = self.undeparted = 0
