"""The choice of the next turn, among all users of one access token. Pure.

Rules
=====
A user is in one state. Its loaded records are in memory here; a user that waits on disk, or is
worked off, has a row in the table ``users``.

=============  =======  ==========================================================================
state          where    meaning, and end
=============  =======  ==========================================================================
free           nowhere  nothing of it is loaded, nothing aside
waiting        memory   records are loaded: it is in one queue, until it is chosen
at work        memory   it has a turn; the turn's end decides the next state
worked off     both     more of it waits aside than is loaded: it is in memory as one of the other
                        two, and when all that was loaded is done, more is
deferred       table    until an instant, or until a circuit closes; uncharged
parked         table    until an instant, after a failure of its own
=============  =======  ==========================================================================

1. The next user is chosen when a call may leave, not before.
2. A user waits in the queue of the endpoint that it needs, if that is known. A queue with an open
   circuit stands still, but for probes.
3. Syncs take turns. Users of a sync go in the order in which they came, and to the end after a
   turn. A turn that could not be had goes back to where it came from.
4. While others wait a turn is one call; a user that is alone gets more at once.
5. The turn of a user that was parked is a retry. Beside other turns, retries get a tenth of the
   calls; never more than ``most_retries`` are at work.
6. Updates of a contact are written by one turn at a time, across syncs. (Two events that create
   their user on the way are set right by Intercom, which answers one of them 409.)
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from amplitude_intercom.engine.delivery.health import Who
from amplitude_intercom.engine.delivery.turns import Turn, TurnsAtWork, take
from amplitude_intercom.engine.delivery.users_in_memory import (
    Key,
    Phase,
    User,
    UsersInMemory,
    need_of,
)
from amplitude_intercom.engine.envelope import Kind, Record

RETRY_SHARE: Final = 0.1
MOST_CREDIT: Final = 2.0
"""Retries beside others: of so many calls; how many may have been saved up."""


class Incoming(NamedTuple):
    """Records of a user that come from the spool.

    ``is_aside``: whether more of it may wait there; None: as before.
    """

    user: str
    records: Sequence[Record]
    is_aside: bool | None = None
    is_retry: bool = False
    failed_before: bool = False


class View(NamedTuple):
    """The present bounds: circuits that are open, retries that may be at work, and whether retries
    go beside others (else only if no other user waits)."""

    open_circuits: Collection[str] = ()
    most_retries: int = 1 << 30
    beside_others: bool = True


class Scheduler:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._syncs: dict[str, UsersInMemory] = {}
        self._ring: OrderedDict[str, None] = OrderedDict()
        """Syncs with users that wait, in the order of their turns."""
        self._waiting: Counter[Key] = Counter()
        self._arrivals = 0
        self._credit = 0.0
        self.at_work = TurnsAtWork()

    def of(self, sync: str) -> UsersInMemory:
        """Return the users in memory of a sync; another object after ``forget``."""
        found = self._syncs.get(sync)
        if found is None:
            found = self._syncs[sync] = UsersInMemory(self._waiting)
        return found

    # --- records from the spool -----------------------------------------------------------

    def add(self, sync: str, loaded: Incoming) -> None:
        """Take in records of a user; none, and nothing aside: it is free."""
        mine = self.of(sync)
        user = mine.users.get(loaded.user)
        if user is None:
            user = mine.users[loaded.user] = User((sync, loaded.user))
            user.is_retry, user.failed_before = loaded.is_retry, loaded.failed_before
        if loaded.is_aside is not None:
            user.is_aside = loaded.is_aside
        mine.extend(user, loaded.records)
        if user.state is Phase.EMPTY:
            mine.empty.pop(loaded.user, None)
            self._go_on(mine, user)

    def _go_on(self, mine: UsersInMemory, user: User, needs: str | None = None) -> None:
        """Let a user without a turn wait for one, for records, or go."""
        if user.records:
            self._arrivals += 1
            user.arrived = self._arrivals
            self._let_wait(mine, user, need_of(user.records[0]) if needs is None else needs)
        elif user.is_aside:
            user.state = Phase.EMPTY
            mine.empty[user.who[1]] = None
        else:
            del mine.users[user.who[1]]

    def _let_wait(
        self, mine: UsersInMemory, user: User, needs: str, *, in_front: bool = False
    ) -> None:
        user.needs, user.state = needs, Phase.WAITING
        mine.enter(user, in_front=in_front)
        if not mine.is_held:
            self._ring.setdefault(user.who[0])

    def _rest(self, sync: str, mine: UsersInMemory) -> None:
        """Let a sync have no turns for now, if no user of it waits."""
        if not mine.has_waiting:
            self._ring.pop(sync, None)

    # --- choosing -------------------------------------------------------------------------

    def choose(self, view: View) -> Turn | None:
        """Return the next turn, or None: no user may have one."""
        may_retry = self.at_work.retries < view.most_retries
        beside = may_retry and view.beside_others and self._credit >= 1
        # Beside others a retry needs a saved call: ten thousand parked users that are due after a
        # restart must not delay the event of one that is well.
        user = self._next(view, retries=True) if beside else None
        user = user or self._next(view, retries=False)
        # Where no other user waits, retries take nothing from anyone, and cost no credit.
        if user is None:
            user = self._next(view, retries=True) if may_retry else None
            return self._give_turn(user, view) if user else None
        turn = self._give_turn(user, view)
        earned = -turn.calls if turn.is_retry else turn.calls * RETRY_SHARE
        self._credit = min(MOST_CREDIT, self._credit + earned)
        return turn

    def choose_probe(self, endpoint: str, has_served: Callable[[Who], bool]) -> Turn | None:
        """Return a turn that finds out whether an endpoint with an open circuit is well again.

        ``has_served`` says which users have had a success there.
        """
        waiting = [
            user
            for mine in self._syncs.values()
            if not mine.is_held
            for user in mine.who_needs(endpoint)
            if self._may_go(user)
        ]

        first = min(waiting, key=partial(_probing_order, has_served), default=None)
        return None if first is None else self._give_turn(first, View())

    def _next(self, view: View, *, retries: bool) -> User | None:
        if not _some_wait(self._waiting, view, retries=retries):
            return None  # most often there are no retries, and there may be a thousand syncs
        for sync in self._ring:
            user = self._syncs[sync].first(view.open_circuits, self._may_go, retries=retries)
            if user is not None:
                # The sync that was served goes last: a sync with a flood of records gets no more
                # turns than one with a few.
                self._ring.move_to_end(sync)
                return user
        return None

    def _may_go(self, user: User) -> bool:
        """Return whether no other turn writes the contact that this user's would."""
        return user.records[0].kind is Kind.EVENT or not self.at_work.is_written(user.who[1])

    def _give_turn(self, user: User, view: View) -> Turn:
        mine = self._syncs[user.who[0]]
        mine.leave(user)
        self._rest(user.who[0], mine)
        user.state = Phase.AT_WORK
        turn = Turn(
            user.who,
            take(user.records, alone=not _some_wait(self._waiting, view, retries=False)),
            self.at_work.note_departure,
            is_retry=user.is_retry,
            failed_before=user.failed_before,
        )
        mine.at_work += 1
        self.at_work.begin(turn)
        return turn

    # --- how turns end --------------------------------------------------------------------

    def go_on(self, turn: Turn, back: Iterable[Record] = (), *, succeeded: bool = False) -> None:
        """End a turn and let its user go on, with the turn's unsettled records in front."""
        mine, user = self._end(turn)
        user.records.extendleft(reversed(list(back)))
        if succeeded:
            # It was parked, but is as well as any other now: its backlog must not go by a tenth of
            # the calls.
            user.is_retry = user.failed_before = False
        self._go_on(mine, user)

    def put_back(self, turn: Turn, back: Iterable[Record], needs: str | None = None) -> None:
        """End a turn that could not be had: its user is where it was, or in the queue of what it
        turned out to need."""
        mine, user = self._end(turn)
        user.records.extendleft(reversed(list(back)))
        if not user.records or needs is not None:
            self._go_on(mine, user, needs)
            return
        # It has lost its turn to no fault of its own, so it is not behind those who came later.
        self._let_wait(mine, user, need_of(user.records[0]), in_front=True)

    def set_aside(self, turn: Turn) -> None:
        """End a turn; its user has a row in the table now, with all its records."""
        mine, _ = self._end(turn)
        del mine.users[turn.user]

    def abandon(self, turn: Turn) -> None:
        """End a turn of which nothing is known, if it is at work: its sync will begin anew."""
        user = self.of(turn.sync).users.get(turn.user)
        if user is not None and user.state is Phase.AT_WORK:
            self.set_aside(turn)

    def _end(self, turn: Turn) -> tuple[UsersInMemory, User]:
        mine = self._syncs[turn.sync]
        user = mine.users[turn.user]
        assert user.state is Phase.AT_WORK
        mine.at_work -= 1
        self.at_work.end(turn)
        return mine, user

    # --- whole syncs ----------------------------------------------------------------------

    def withdraw(
        self, sync: str, queue: Key, keep: int, keep_bytes: int
    ) -> list[tuple[str, list[Record]]]:
        """Take users out of memory that wait in a queue, but for so many records and bytes; those
        that came last go."""
        mine = self.of(sync)
        gone = mine.take_surplus(queue, keep, keep_bytes)
        self._rest(sync, mine)
        return [(user.who[1], list(user.records)) for user in gone]

    def hold(self, sync: str) -> None:
        """Choose no user of a sync from now on."""
        self.of(sync).hold()
        self._ring.pop(sync, None)

    def forget_all(self) -> None:
        """Forget everything, as all turns have been stopped."""
        self._syncs.clear()
        self._ring.clear()
        self._waiting.clear()
        self.at_work.forget()

    def forget(self, sync: str) -> None:
        """Forget the users of a sync that has no turn at work; it is held no more."""
        mine = self.of(sync)
        assert not mine.at_work
        mine.forget()
        del self._syncs[sync]
        self._ring.pop(sync, None)


def _some_wait(waiting: Counter[Key], view: View, *, retries: bool) -> bool:
    return any(
        count and is_retry is retries and needs not in view.open_circuits
        for (needs, is_retry), count in waiting.items()
    )


def _probing_order(has_served: Callable[[Who], bool], user: User) -> tuple[int, int]:
    # The newest first: users that came when the endpoint went out may be what it fails for. Those
    # whose last call failed come last, because their failure may be their own.
    if user.failed_before:
        return 2, user.arrived
    return 0 if has_served(user.who) else 1, -user.arrived
