"""The users of one sync that are in memory, and the queues in which they wait for a turn. Pure.

``delivery.scheduler`` chooses the next user, and has the rules.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from amplitude_intercom.engine.delivery.health import Who
from amplitude_intercom.engine.envelope import Kind, Record

EVENTS: Final = "POST /events"
ANY: Final = ""
"""The need of a user with an update next: its endpoint turns out on the way."""


class Phase(enum.Enum):
    """Where a user in memory is."""

    WAITING = enum.auto()
    AT_WORK = enum.auto()
    EMPTY = enum.auto()
    """All that was loaded is done, and more is aside."""


class User:
    """A user in memory."""

    __slots__ = (
        "arrived",
        "failed_before",
        "is_aside",
        "is_retry",
        "needs",
        "records",
        "state",
        "who",
    )

    def __init__(self, who: Who) -> None:
        self.who = who
        self.state = Phase.EMPTY
        self.records: deque[Record] = deque()
        self.needs = ANY
        self.arrived = 0
        self.is_retry = False
        self.is_aside = False
        self.failed_before = False

    @property
    def key(self) -> Key:
        """The queue in which it waits."""
        return self.needs, self.is_retry


Key = tuple[str, bool]
"""The endpoint that the users of a queue need, and whether they are retries."""

MayGo = Callable[[User], bool]


class _UserQueue:
    """Users that need the same, in the order in which they came."""

    def __init__(self) -> None:
        self.users: OrderedDict[str, User] = OrderedDict()
        self.records = 0
        self.bytes = 0
        """How many records of them are loaded, and how many bytes of events."""

    def count(self, records: Sequence[Record], sign: int = 1) -> None:
        """Take in that records of users in it have come, or (-1) gone."""
        self.records += sign * len(records)
        self.bytes += sign * sum(len(record.raw) for record in records)

    def holds_more(self, records: int, size: int) -> bool:
        """Return whether more is in it than so many records and bytes, and than one record: that
        one is the next probe's."""
        return self.records > 1 and (self.records > records or self.bytes > size)

    def move_to_front(self, user: User) -> None:
        """Let a user be the first, but for those that came before it and are back as well."""
        # The user's own place is behind those that came earlier and were put back meanwhile: turns
        # of one endpoint come back in any order.
        before = []
        for other in self.users.values():
            if other.arrived >= user.arrived:
                break
            before.append(other)
        for other in (user, *reversed(before)):
            self.users.move_to_end(other.who[1], last=False)

    def first(self, may_go: MayGo) -> User | None:
        return next((user for user in self.users.values() if may_go(user)), None)


class UsersInMemory:
    """One sync's users; ``is_held``: none of them is chosen."""

    def __init__(self, waiting: Counter[Key]) -> None:
        """``waiting`` counts the users of all syncs that wait."""
        self.users: dict[str, User] = {}
        self.empty: OrderedDict[str, None] = OrderedDict()
        """Users of whom more is to be loaded, the one that waits the longest first."""
        self.at_work = 0
        """Turns that are at work."""
        self.is_held = False
        self._waiting = waiting
        self._queues: dict[Key, _UserQueue] = {}

    def hold(self) -> None:
        """Let none of them be chosen, nor count among those that wait."""
        # Users of a held sync are never chosen. If they counted as waiting, a user that is alone
        # would get turns of one call.
        if not self.is_held:
            self.is_held = True
            mine = Counter({key: len(queue.users) for key, queue in self._queues.items()})
            self._waiting.subtract(mine)
            self._waiting = mine

    # --- queues ---------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """Whether a user waits."""
        return bool(self._queues)

    def enter(self, user: User, *, in_front: bool = False) -> None:
        """Let a user wait, behind the others or where it was."""
        queue = self._queues.get(user.key)
        if queue is None:
            queue = self._queues[user.key] = _UserQueue()
        queue.users[user.who[1]] = user
        # A turn that could not be had is no turn: its user does not go to the end.
        if in_front:
            queue.move_to_front(user)
        queue.count(user.records)
        self._waiting[user.key] += 1

    def leave(self, user: User) -> None:
        """Let a user wait no more."""
        queue = self._queues[user.key]
        del queue.users[user.who[1]]
        queue.count(user.records, -1)
        self._waiting[user.key] -= 1
        # A queue for each endpoint that was ever out would stay, and each choice looks at all of
        # them.
        if not queue.users:
            del self._queues[user.key]

    def extend(self, user: User, records: Sequence[Record]) -> None:
        """Give a user more records, whatever it does."""
        user.records.extend(records)
        if user.state is Phase.WAITING:
            self._queues[user.key].count(records)

    def first(self, open_circuits: Collection[str], may_go: MayGo, *, retries: bool) -> User | None:
        """Return the user that came first, of those that need no endpoint with an open circuit."""
        firsts = (
            queue.first(may_go)
            for (needs, is_retry), queue in self._queues.items()
            if is_retry is retries and needs not in open_circuits
        )
        return min((user for user in firsts if user), key=lambda user: user.arrived, default=None)

    def who_needs(self, endpoint: str) -> Iterator[User]:
        """Yield the users that wait for an endpoint."""
        for (needs, _), queue in self._queues.items():
            if needs == endpoint:
                yield from queue.users.values()

    def bytes_behind(self, endpoint: str) -> int:
        """Return how many bytes are loaded of users that wait for an endpoint."""
        return sum(queue.bytes for (needs, _), queue in self._queues.items() if needs == endpoint)

    def holds_more(self, key: Key, keep: int, keep_bytes: int) -> bool:
        """Return whether ``take_surplus`` takes a user."""
        queue = self._queues.get(key)
        return queue is not None and queue.holds_more(keep, keep_bytes)

    def take_surplus(self, key: Key, keep: int, keep_bytes: int) -> list[User]:
        """Take users out of a queue, and out of memory, until ``keep`` records and ``keep_bytes``
        are left; those that came last go first."""
        gone = []
        while self.holds_more(key, keep, keep_bytes):
            # The first of the queue are the next to go, and would be loaded again at once.
            user = next(reversed(self._queues[key].users.values()))
            self.leave(user)
            del self.users[user.who[1]]
            gone.append(user)
        return gone

    def forget(self) -> None:
        """Empty all queues."""
        # The counter is shared by all syncs of the token: the users of this one must leave it.
        for key, queue in self._queues.items():
            self._waiting[key] -= len(queue.users)
        self._queues.clear()

    # --- loaded records -------------------------------------------------------------------

    def is_busy(self, user: str) -> bool:
        """Return whether a user waits for a turn, or has one."""
        found = self.users.get(user)
        return found is not None and found.state is not Phase.EMPTY

    def loaded_of(self, user: str) -> Sequence[Record]:
        """Return the loaded records of a user, without those of its turn."""
        found = self.users.get(user)
        return list(found.records) if found else ()

    def full_users(self, per_user: int) -> list[str]:
        """Return the users of whom so many records are loaded, or more."""
        return [key for key, user in self.users.items() if len(user.records) >= per_user]

    def ready(self, open_circuits: Collection[str] = ()) -> int:
        """Return how many records are loaded of users that may have a turn, but for retries."""
        return sum(
            queue.records
            for (needs, is_retry), queue in self._queues.items()
            if needs not in open_circuits and not is_retry
        )

    def retries(self) -> tuple[int, int]:
        """Return how many users wait that were parked, and how many bytes are loaded of them."""
        queues = [queue for (_, is_retry), queue in self._queues.items() if is_retry]
        return sum(len(queue.users) for queue in queues), sum(queue.bytes for queue in queues)

    def waits_for(self, endpoint: str) -> bool:
        """Return whether a user waits for an endpoint."""
        return any(needs == endpoint for needs, _ in self._queues)


def need_of(record: Record) -> str:
    """Return the endpoint that a record needs, as far as it is known."""
    return EVENTS if record.kind is Kind.EVENT else ANY
