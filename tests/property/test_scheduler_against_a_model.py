"""The scheduler against lists: whoever comes, fails, waits or is put aside, in whatever order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from amplitude_intercom.engine.delivery.scheduler import Incoming, Scheduler, View
from amplitude_intercom.engine.delivery.turns import MOST_EVENTS, Turn
from amplitude_intercom.engine.delivery.users_in_memory import ANY, EVENTS
from amplitude_intercom.engine.envelope import Kind, Record

SYNCS = ("one", "two", "three")
USERS = ("ann", "bob", "cid", "dan")
CONTACTS = "PUT /contacts/{id}"
SYNC = st.sampled_from(SYNCS)
PICK = st.integers(0, 1_000)
KINDS = st.lists(st.sampled_from(Kind), min_size=1, max_size=12)


@dataclass
class User:
    """A user as the model knows it; ``arrived``: when it came into its line."""

    records: list[Record] = field(default_factory=list)
    state: str = "free"
    needs: str = ANY
    is_retry: bool = False
    failed: bool = False
    is_aside: bool = False
    arrived: int = 0


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.users = {(sync, user): User() for sync in SYNCS for user in USERS}
        self.turns: list[Turn] = []
        self.handed_out: Counter[tuple[str, str]] = Counter()
        self.next_id = 1
        self.arrivals = 0
        self.open: set[str] = set()
        self.passed_over: Counter[str] = Counter()
        self.calls = self.retries = 0

    # --- what comes -----------------------------------------------------------------------

    def _records(self, user: str, kinds: list[Kind]) -> list[Record]:
        found = []
        for kind in kinds:
            found.append(Record(self.next_id, kind, user, 1, b"{}" * (self.next_id % 5 + 1)))
            self.next_id += 1
        return found

    def _goes_on(self, user: User, needs: str | None = None) -> None:
        """Where a user without a turn is next."""
        if user.records:
            self.arrivals += 1
            user.arrived = self.arrivals
            first = EVENTS if user.records[0].kind is Kind.EVENT else ANY
            user.needs = first if needs is None else needs
            user.state = "waiting"
        elif user.is_aside:
            user.state = "empty"
        else:
            user.state, user.is_retry, user.failed = "free", False, False

    @rule(sync=SYNC, user=st.sampled_from(USERS), kinds=KINDS, crowded=st.booleans())
    def records_are_queued(self, sync: str, user: str, kinds: list[Kind], crowded: bool) -> None:
        mine = self.users[sync, user]
        if mine.is_aside:
            return  # they would go aside as well
        records = self._records(user, kinds)
        self.scheduler.add(sync, Incoming(user, records))
        mine.records += records
        if mine.state == "free":
            self._goes_on(mine)
        if crowded:
            self.scheduler.add(sync, Incoming(user, (), True))
            mine.is_aside = True

    @rule(sync=SYNC, user=st.sampled_from(USERS), kinds=KINDS, retry=st.booleans())
    def a_user_that_was_aside_is_due(
        self, sync: str, user: str, kinds: list[Kind], retry: bool
    ) -> None:
        mine = self.users[sync, user]
        if mine.state != "free":
            return
        mine.is_aside, mine.is_retry, mine.failed = True, retry, retry
        mine.records = self._records(user, kinds)
        self.scheduler.add(sync, Incoming(user, mine.records, True, retry, retry))
        mine.records = list(mine.records)
        self._goes_on(mine)

    @rule(sync=SYNC, kinds=st.lists(st.sampled_from(Kind), max_size=4))
    def more_is_loaded_of_users_that_are_worked_off(self, sync: str, kinds: list[Kind]) -> None:
        for user in list(self.scheduler.of(sync).empty):
            mine = self.users[sync, user]
            assert mine.state == "empty"
            records = self._records(user, kinds)
            self.scheduler.add(sync, Incoming(user, records, bool(records)))
            mine.records, mine.is_aside = list(records), bool(records)
            self._goes_on(mine)

    @rule(circuit=st.sampled_from([EVENTS, CONTACTS, ANY]))
    def a_circuit_turns(self, circuit: str) -> None:
        if circuit:
            self.open ^= {circuit}

    # --- choosing -------------------------------------------------------------------------

    def _may_go(self, key: tuple[str, str]) -> bool:
        writing = {turn.user for turn in self.turns if turn.writes}
        return self.users[key].records[0].kind is Kind.EVENT or key[1] not in writing

    def _eligible(self, *, retries: bool) -> list[tuple[str, str]]:
        return [
            key
            for key, user in self.users.items()
            if user.state == "waiting"
            and user.is_retry is retries
            and user.needs not in self.open
            and self._may_go(key)
        ]

    @rule(most_retries=st.sampled_from([0, 1, 100]))
    def choose(self, most_retries: int) -> None:
        fresh, retries = self._eligible(retries=False), self._eligible(retries=True)
        may_retry = sum(turn.is_retry for turn in self.turns) < most_retries
        turn = self.scheduler.choose(View(set(self.open), most_retries))
        if turn is None:
            assert not fresh
            assert not (retries and may_retry)
            return
        assert turn.who in (retries if turn.is_retry else fresh)
        if turn.is_retry:
            assert may_retry
            self.passed_over[turn.sync] = 0
            self._check_share(bool(fresh))
        else:
            self._check_fairness(turn, fresh)
        self._take(turn, alone=not self._waiting_beside(turn.who))

    def _waiting_beside(self, who: tuple[str, str]) -> list[tuple[str, str]]:
        return [
            key
            for key, user in self.users.items()
            if key != who
            and user.state == "waiting"
            and not user.is_retry
            and user.needs not in self.open
        ]

    def _check_share(self, others_wait: bool) -> None:
        """Retries beside others: a tenth of the calls, and what was saved up."""
        if others_wait:
            self.retries += 1
        assert self.retries <= 2 + self.calls / 10

    def _check_fairness(self, turn: Turn, fresh: list[tuple[str, str]]) -> None:
        self.calls += turn.calls
        mine = [self.users[key].arrived for key in fresh if key[0] == turn.sync]
        assert self.users[turn.who].arrived == min(mine)
        waiting = {sync for sync, _ in fresh}
        for sync in SYNCS:
            self.passed_over[sync] = self.passed_over[sync] + 1 if sync in waiting else 0
        self.passed_over[turn.sync] = 0
        assert max(self.passed_over.values()) < len(SYNCS)

    def _take(self, turn: Turn, *, alone: bool) -> None:
        mine = self.users[turn.who]
        assert mine.records[: len(turn.records)] == turn.records, "out of order"
        del mine.records[: len(turn.records)]
        kinds = [record.kind for record in turn.records]
        assert Kind.EVENT_WITH_UPDATE not in kinds[1:]
        assert kinds == sorted(kinds, key=lambda kind: kind is Kind.EVENT), "an event before"
        events = kinds.count(Kind.EVENT)
        assert events <= MOST_EVENTS if alone else len(kinds) - kinds.count(Kind.IDENTIFY) <= 1
        assert turn.failed_before is mine.failed
        mine.state = "at work"
        self.turns.append(turn)

    @rule(endpoint=st.sampled_from([EVENTS, CONTACTS]), served=st.sets(st.sampled_from(USERS)))
    def choose_a_probe(self, endpoint: str, served: set[str]) -> None:
        waiting = {
            key: user
            for key, user in self.users.items()
            if user.state == "waiting" and user.needs == endpoint and self._may_go(key)
        }
        turn = self.scheduler.choose_probe(endpoint, lambda who: who[1] in served)
        if turn is None:
            assert not waiting
            return
        best = [key for key, user in waiting.items() if not user.failed and key[1] in served]
        others = [key for key, user in waiting.items() if not user.failed]
        assert turn.who in (best or others or list(waiting))
        mine = self.users[turn.who]
        del mine.records[: len(turn.records)]
        mine.state = "at work"
        self.turns.append(turn)

    # --- how turns end --------------------------------------------------------------------

    def _end(self, pick: int) -> tuple[Turn, User]:
        turn = self.turns.pop(pick % len(self.turns))
        if pick % 2:
            turn.note_departure()
        return turn, self.users[turn.who]

    @precondition(lambda self: self.turns)
    @rule(pick=PICK, back=st.integers(0, 3), succeeded=st.booleans())
    def a_turn_ends(self, pick: int, back: int, succeeded: bool) -> None:
        turn, mine = self._end(pick)
        left = turn.records[len(turn.records) - min(back, len(turn.records)) :]
        self.scheduler.go_on(turn, left, succeeded=succeeded)
        mine.records = left + mine.records
        if succeeded:
            mine.is_retry = mine.failed = False
        self._goes_on(mine)

    @precondition(lambda self: self.turns)
    @rule(pick=PICK, needs=st.sampled_from([None, EVENTS, CONTACTS]))
    def a_turn_could_not_be_had(self, pick: int, needs: str | None) -> None:
        turn, mine = self._end(pick)
        self.scheduler.put_back(turn, turn.records, needs)
        mine.records = turn.records + mine.records
        before = mine.arrived
        self._goes_on(mine, needs)
        if needs is None:  # straight back to where it came from
            mine.arrived = before

    @precondition(lambda self: self.turns)
    @rule(pick=PICK)
    def a_turn_ends_and_its_user_is_aside(self, pick: int) -> None:
        turn, mine = self._end(pick)
        assert list(self.scheduler.of(turn.sync).loaded_of(turn.user)) == mine.records
        self.scheduler.set_aside(turn)
        self.users[turn.who] = User()

    @rule(
        sync=SYNC,
        keep=st.integers(0, 10),
        keep_bytes=st.integers(0, 30),
        endpoint=st.sampled_from([EVENTS, CONTACTS]),
        is_retry=st.booleans(),
    )
    def users_that_wait_for_an_endpoint_are_withdrawn(
        self, sync: str, keep: int, keep_bytes: int, endpoint: str, is_retry: bool
    ) -> None:
        gone = self.scheduler.withdraw(sync, (endpoint, is_retry), keep, keep_bytes)
        for user, records in gone:
            assert records == self.users[sync, user].records
            self.users[sync, user] = User()
        left = [
            record
            for (of, _), user in self.users.items()
            if of == sync
            and user.state == "waiting"
            and user.needs == endpoint
            and user.is_retry is is_retry
            for record in user.records
        ]
        size = sum(len(record.raw) for record in left)
        assert len(left) <= 1 or (len(left) <= keep and size <= keep_bytes)

    @rule(sync=SYNC)
    def a_sync_begins_anew(self, sync: str) -> None:
        if self.scheduler.of(sync).at_work:
            self.scheduler.hold(sync)
            while mine := [turn for turn in self.turns if turn.sync == sync]:
                self.turns.remove(mine[0])
                self.scheduler.set_aside(mine[0])
        self.scheduler.forget(sync)
        self.users |= {(sync, user): User() for user in USERS}

    # --- what always holds ----------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        turns = self.scheduler.at_work
        assert turns.calls == sum(turn.calls for turn in self.turns)
        assert turns.undeparted == sum(not turn.has_departed for turn in self.turns)
        for sync in SYNCS:
            mine = [user for (of, _), user in self.users.items() if of == sync]
            waiting = [user for user in mine if user.state == "waiting"]
            retries = [user for user in waiting if user.is_retry]
            size = sum(len(record.raw) for user in retries for record in user.records)
            assert self.scheduler.of(sync).retries() == (len(retries), size)
            ready = [u for u in waiting if not u.is_retry and u.needs not in self.open]
            assert self.scheduler.of(sync).ready(self.open) == sum(len(u.records) for u in ready)
            at_work = sum(turn.sync == sync for turn in self.turns)
            assert self.scheduler.of(sync).at_work == at_work
            assert len(list(self.scheduler.of(sync).empty)) == sum(u.state == "empty" for u in mine)
            if not any(user.state == "waiting" for user in mine):
                self.passed_over[sync] = 0  # it will be behind those who wait now

    @invariant()
    def a_user_has_one_turn_at_a_time(self) -> None:
        at_work = Counter(turn.who for turn in self.turns)
        assert max(at_work.values(), default=0) <= 1
        writing = Counter(turn.user for turn in self.turns if turn.writes)
        assert max(writing.values(), default=0) <= 1


def test_waiting_users_are_chosen_in_order_and_in_turn() -> None:
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=200, stateful_step_count=60, deadline=None)
    )
