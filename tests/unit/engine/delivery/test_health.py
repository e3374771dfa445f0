"""The decision table of failures, line by line; calls take 0.3 s unless a test says otherwise."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.delivery.health import (
    MOST_REMEMBERED,
    OPENING_USERS,
    PENDING_S,
    SICK_SAMPLES,
    Blame,
    Charge,
    EndpointHealth,
    Hasten,
    Health,
    News,
    Outage,
    Who,
)

NAME = "POST /events"
TOOK_S = 0.3


class Rig:
    """One endpoint, with calls that leave and come back at instants that a test names."""

    def __init__(self) -> None:
        self.health = Health()
        self.health.delay_s = lambda failures: min(10.0, 0.5 * 2 ** (failures - 1))

    @property
    def endpoint(self) -> EndpointHealth:
        return self.health.of(NAME)

    def succeeds(self, user: str, left_s: float, took_s: float = TOOK_S) -> None:
        self.endpoint.succeeded(who(user), left_s, left_s + took_s)

    def fails(
        self, user: str, left_s: float, took_s: float = TOOK_S, *, failed_before: bool = False
    ) -> Blame:
        return self.endpoint.failed(
            who(user), left_s, left_s + took_s, failed_before=failed_before, counts=True
        )

    def news(self, now_s: float = 0.0) -> list[News]:
        self.health.pass_time(now_s)
        return self.health.take_news()

    def outage_s(self) -> float:
        """Return how long the one outage was that has ended."""
        [ended] = [news for news in self.news() if isinstance(news, Outage) and not news.has_begun]
        assert ended.endpoint == NAME
        return ended.seconds

    def is_open(self) -> bool:
        return self.endpoint.circuit.is_open

    def opens(self, at_s: float = 100.0) -> float:
        """Open the circuit; return when it opened."""
        for n in range(OPENING_USERS):
            self.fails(f"opening-{n}", at_s + n * 0.3)
        assert self.is_open()
        self.news()
        return self.endpoint.circuit.opened_s


def who(user: str) -> Who:
    return "sync", user


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_first_failure_is_never_charged(rig: Rig) -> None:
    rig.succeeds("well", 0.0)
    assert rig.fails("ann", 1.0) is Blame.NOT_KNOWN
    rig.succeeds("well", 2.0)
    assert [n for n in rig.news() if isinstance(n, Charge)] == []


def test_where_others_are_well_the_next_try_is_a_second_after_the_failure(rig: Rig) -> None:
    rig.fails("ann", 1.0)
    rig.succeeds("well", 1.2)  # left before the failure was seen: it proves nothing
    assert rig.news() == []
    rig.succeeds("well", 1.4)
    assert rig.news() == [Hasten(who("ann"), 2.3)]


def test_a_failure_between_successes_of_others_is_the_user_s_own(rig: Rig) -> None:
    rig.fails("ann", 1.0)
    rig.succeeds("well", 2.0)
    assert rig.fails("ann", 3.0) is Blame.OWN
    rig.news()
    rig.succeeds("well", 3.2)  # left before it came back
    assert rig.news() == []
    rig.succeeds("other", 3.4)
    assert rig.news() == [Charge(who("ann"), NAME, stands=True)]


def test_a_success_of_its_own_proves_nothing_of_a_user(rig: Rig) -> None:
    rig.fails("ann", 1.0)
    rig.succeeds("ann", 2.0)
    assert rig.fails("ann", 3.0) is Blame.NOT_KNOWN
    rig.succeeds("ann", 4.0)
    rig.succeeds("ann", 5.0)
    assert [n for n in rig.news() if isinstance(n, Charge)] == []


def test_a_charge_that_nobody_confirms_stands_after_a_minute(rig: Rig) -> None:
    rig.fails("ann", 1.0)
    rig.succeeds("well", 2.0)
    rig.fails("ann", 3.0)
    rig.news()
    assert rig.news(3.0 + PENDING_S) == []
    assert rig.health.next_change_s() == pytest.approx(3.3 + PENDING_S)
    assert rig.news(3.4 + PENDING_S) == [Charge(who("ann"), NAME, stands=True)]


def test_a_failure_in_the_spool_counts_after_a_restart(rig: Rig) -> None:
    rig.succeeds("well", 0.0)
    assert rig.fails("ann", 1.0, failed_before=True) is Blame.OWN


def test_first_failures_of_five_users_over_a_second_open_the_circuit(rig: Rig) -> None:
    rig.succeeds("well", 0.0)
    for n in range(OPENING_USERS - 1):
        assert rig.fails(f"user-{n}", 1.0 + n * 0.3) is Blame.NOT_KNOWN
    assert rig.fails("last", 2.2) is Blame.NOBODYS
    assert Outage(NAME, True, 0.0) in rig.news()


def test_five_within_a_second_open_it_when_the_second_is_over(rig: Rig) -> None:
    for n in range(OPENING_USERS):
        rig.fails(f"user-{n}", 1.0)
    assert not rig.is_open()
    assert rig.health.next_change_s() == pytest.approx(2.3)
    rig.news(2.31)
    assert rig.is_open()


def test_a_failing_minority_opens_no_circuit_however_many_they_are(rig: Rig) -> None:
    for n in range(1_000):
        rig.fails(f"poison-{n}", n * 0.05)
        if n % 4 == 0:
            rig.succeeds("well", n * 0.05)
    assert not rig.is_open()


def test_a_success_clears_the_first_failures_that_came_before_it(rig: Rig) -> None:
    for n in range(2 * OPENING_USERS):
        rig.fails(f"poison-{n}", n * 10.0)
        rig.succeeds("well", n * 10.0 + 5.0)
    assert not rig.is_open()


def test_users_that_have_failed_before_open_no_circuit(rig: Rig) -> None:
    """Parked users that are all due at once, after a restart as well."""
    for n in range(100):
        rig.fails(f"user-{n}", n * 0.1, failed_before=True)
    assert not rig.is_open()


def test_calls_that_left_before_a_success_was_seen_say_nothing_of_now(rig: Rig) -> None:
    rig.succeeds("well", 5.0)
    for n in range(20):
        rig.fails(f"slow-{n}", 1.0, took_s=10.0 + n)
    assert not rig.is_open()


def test_an_opening_circuit_cancels_charges_that_are_not_confirmed(rig: Rig) -> None:
    rig.fails("ann", 1.0)
    rig.succeeds("well", 2.0)
    assert rig.fails("ann", 3.0) is Blame.OWN
    for n in range(OPENING_USERS):
        rig.fails(f"user-{n}", 4.0 + n * 0.4)
    assert Charge(who("ann"), NAME, stands=False) in rig.news()


def test_while_it_is_open_probes_go_one_by_one_with_growing_pauses(rig: Rig) -> None:
    opened_s = rig.opens()
    circuit = rig.endpoint.circuit
    assert not circuit.wants_probe(opened_s + 0.49)
    pauses, now_s = [], opened_s
    for n in range(8):
        pauses.append(circuit.probe_at_s - now_s)
        now_s = circuit.probe_at_s
        assert rig.health.wanting_probe(now_s) == [NAME]
        circuit.probing = who(f"probe-{n}")
        assert rig.health.wanting_probe(now_s) == []
        assert rig.fails(f"probe-{n}", now_s, 0.0) is Blame.NOBODYS
        circuit.probing = None
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0])


def test_a_success_that_left_after_the_opening_closes_it_and_hastens_failed_users(rig: Rig) -> None:
    opened_s = rig.opens()
    rig.succeeds("early", opened_s - 0.2)
    assert rig.is_open()
    rig.succeeds("late", opened_s + 1.0)
    assert not rig.is_open()
    news = rig.news()
    assert [n.has_begun for n in news if isinstance(n, Outage)] == [False]
    assert sum(isinstance(n, Hasten) for n in news) == OPENING_USERS


def test_a_refusal_to_a_probe_closes_it_on_probation(rig: Rig) -> None:
    opened_s = rig.opens()
    circuit = rig.endpoint.circuit
    circuit.probing = who("ann")
    rig.endpoint.refused(who("ann"), opened_s + 1.0, opened_s + 1.3)
    circuit.probing = None
    assert circuit.is_open
    assert circuit.wants_probe(opened_s + 1.3)
    circuit.probing = who("bob")
    rig.fails("bob", opened_s + 1.4)
    circuit.probing = None
    assert not circuit.wants_probe(opened_s + 1.8)


def test_where_nothing_but_failures_is_seen_people_are_told_though_no_circuit_opens(
    rig: Rig,
) -> None:
    for at_s in (0.0, 6.0, 21.0, 58.0):
        assert rig.fails("alone", at_s) is Blame.NOT_KNOWN
    assert rig.news() == [Outage(NAME, True, 0.0)]
    assert rig.health.out == [NAME]
    assert not rig.is_open()
    rig.succeeds("alone", 118.0)
    assert rig.health.out == []
    assert rig.outage_s() == pytest.approx(118.0)


def test_a_refusal_of_intercom_s_own_ends_the_outage_shown_to_people(rig: Rig) -> None:
    """60 users with unknown ids were 240 answers 404, and `does not answer` for an hour."""
    rig.fails("alone", 0.0)
    for at_s in (6.0, 21.0):
        rig.fails("alone", at_s)
    assert rig.health.out == [NAME]
    rig.endpoint.refused(who("stranger"), 30.0, 30.3)
    assert rig.health.out == []
    assert rig.outage_s() == pytest.approx(30.0)


def test_where_the_circuit_is_open_only_a_probe_ends_it(rig: Rig) -> None:
    opened_s = rig.opens()
    rig.endpoint.refused(who("stranger"), opened_s - 0.1, opened_s + 0.2)
    assert rig.health.out == [NAME]
    rig.endpoint.circuit.probing = who("ann")
    rig.endpoint.refused(who("ann"), opened_s + 1.0, opened_s + 1.3)
    assert rig.health.out == []
    assert rig.is_open()


def test_an_endpoint_where_many_first_tries_fail_is_sick_until_they_succeed(rig: Rig) -> None:
    for n in range(40):
        rig.fails(f"poison-{n}", n) if n % 2 else rig.succeeds(f"well-{n}", n)
    assert rig.endpoint.is_sick
    for n in range(100):
        rig.succeeds(f"new-{n}", 100.0 + n)
    assert not rig.endpoint.is_sick


def test_endpoints_are_judged_each_by_itself(rig: Rig) -> None:
    rig.opens()
    assert rig.health.open_circuits == [NAME]
    assert not rig.health.of("PUT /contacts/{id}").circuit.is_open


def test_the_memory_of_users_is_bounded(rig: Rig) -> None:
    for n in range(25_000):
        rig.fails(f"user-{n}", float(n))
        rig.succeeds(f"well-{n}", float(n))
    for kept in (rig.endpoint._failed_s, rig.endpoint._unheard, rig.endpoint._well):
        assert len(kept) <= 10_000


# --- what is remembered -------------------------------------------------------------------


def test_a_call_that_is_nobodys_is_no_users_failure(rig: Rig) -> None:
    blame = rig.endpoint.failed(("", ""), 1.0, 1.1, failed_before=False, counts=False)
    rig.succeeds("ann", 2.0)
    assert (blame, rig.news()) == (Blame.NOBODYS, [])


def test_a_charge_that_is_forgotten_for_want_of_room_is_cancelled(rig: Rig) -> None:
    """Whoever waits for it is told of each."""
    rig.succeeds("well", 1.0)
    for n in range(MOST_REMEMBERED + 1):
        user = f"user-{n}"
        assert rig.fails(user, 0.5, 0.1, failed_before=True) is Blame.OWN
    assert rig.news() == [Charge(who("user-0"), NAME, stands=False)]


def test_users_with_cancelled_charges_are_tried_as_soon_as_others_are_well(
    rig: Rig,
) -> None:
    """They had failed before those who failed during it, and stood behind them."""
    rig.succeeds("well", 1.0)
    assert rig.fails("ann", 2.0, failed_before=True) is Blame.OWN
    opened_s = rig.opens(3.0)
    rig.news()
    rig.fails("late", opened_s + 1.0, 30.0)
    rig.succeeds("well", opened_s + 5.0)
    hastened = [news.who[1] for news in rig.news() if isinstance(news, Hasten)]
    assert hastened[0] == "ann"
    assert "late" not in hastened


def test_of_a_user_only_the_first_try_after_a_success_says_that_an_endpoint_is_sick(
    rig: Rig,
) -> None:
    """A few that fail and are tried over and over would have made it so, or well again."""
    for n in range(SICK_SAMPLES):
        rig.fails(f"user-{n}", float(n))
        rig.succeeds("well", n + 0.5)
    for n in range(SICK_SAMPLES // 2):
        rig.succeeds("well", 50.0 + n)
    assert rig.endpoint.is_sick
    for n in range(SICK_SAMPLES):  # successes of those that had failed are no first tries
        rig.succeeds(f"user-{n}", 100.0 + n)
    assert rig.endpoint.is_sick


def test_the_latest_failed_user_is_remembered_longest(rig: Rig) -> None:
    rig.succeeds("well", 0.0)
    rig.fails("ann", 1.0)
    for n in range(MOST_REMEMBERED - 1):
        rig.fails(f"user-{n}", 2.0)
    rig.fails("ann", 3.0)  # which makes it the newest
    rig.fails("one more", 4.0)
    rig.succeeds("well", 5.0)
    assert rig.fails("ann", 6.0) is Blame.OWN
