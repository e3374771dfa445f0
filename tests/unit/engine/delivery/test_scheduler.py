"""Who is next, where it can be told by hand. ``test_scheduler_against_a_model`` walks the rest."""

from __future__ import annotations

from collections import Counter

import pytest

from amplitude_intercom.engine.delivery.scheduler import Incoming, Scheduler, View
from amplitude_intercom.engine.delivery.turns import MOST_EVENTS, Turn
from amplitude_intercom.engine.delivery.users_in_memory import EVENTS
from amplitude_intercom.engine.envelope import Kind, Record

ALL = View()


def records(user: str, count: int = 1, kind: Kind = Kind.EVENT) -> list[Record]:
    return [Record(n, kind, user, 1, b"{}") for n in range(1, count + 1)]


def chosen(scheduler: Scheduler, count: int, view: View = ALL) -> list[Turn]:
    found = [scheduler.choose(view) for _ in range(count)]
    return [turn for turn in found if turn is not None]


def test_probes_get_a_tenth_of_the_calls_while_others_wait() -> None:
    scheduler = Scheduler()
    for n in range(200):
        scheduler.add("s", Incoming(f"well-{n}", records("w")))
        scheduler.add("s", Incoming(f"parked-{n}", records("p"), True, True))
    turns = chosen(scheduler, 110)
    assert 9 <= sum(turn.is_retry for turn in turns) <= 10


def test_probes_have_the_calls_that_nobody_else_wants_but_only_so_many_at_work() -> None:
    scheduler = Scheduler()
    for n in range(20):
        scheduler.add("s", Incoming(f"parked-{n}", records("p"), True, True))
    turns = chosen(scheduler, 20, View((), 5))
    assert len(turns) == 5
    scheduler.go_on(turns[0])
    assert len(chosen(scheduler, 20, View((), 5))) == 1
    assert chosen(scheduler, 20, View((), 0)) == []


def test_a_flooded_sync_gets_every_other_turn_beside_one_that_trickles() -> None:
    scheduler = Scheduler()
    for n in range(1_000):
        scheduler.add("flooded", Incoming(f"user-{n}", records("u")))
    chosen(scheduler, 100)
    for n in range(10):
        scheduler.add("trickling", Incoming(f"user-{n}", records("u")))
    by_sync = Counter(turn.sync for turn in chosen(scheduler, 20))
    assert by_sync == {"flooded": 10, "trickling": 10}


def test_a_busy_user_goes_to_the_end_after_each_call_while_others_wait() -> None:
    scheduler = Scheduler()
    scheduler.add("s", Incoming("busy", records("busy", 30)))
    for n in range(5):
        scheduler.add("s", Incoming(f"user-{n}", records("u")))
    [first] = chosen(scheduler, 1)
    assert (first.user, len(first.records)) == ("busy", 1)
    scheduler.go_on(first)
    turns = chosen(scheduler, 6)
    assert [turn.user for turn in turns] == [*(f"user-{n}" for n in range(5)), "busy"]
    assert len(turns[-1].records) == MOST_EVENTS


@pytest.mark.parametrize("others", [0, 1])
def test_updates_are_taken_together_and_with_events_behind_them_if_nobody_else_waits(
    others: int,
) -> None:
    scheduler = Scheduler()
    mine = [
        *records("ann", 3, Kind.IDENTIFY),
        *records("ann", 2),
        *records("ann", 1, Kind.IDENTIFY),
    ]
    scheduler.add("s", Incoming("ann", mine))
    if others:
        scheduler.add("s", Incoming("bob", records("bob")))
    [turn] = chosen(scheduler, 1)
    assert turn.records == (mine[:3] if others else mine[:5])


def test_a_user_that_waits_for_an_endpoint_that_is_out_holds_up_no_other() -> None:
    scheduler = Scheduler()
    scheduler.add("s", Incoming("ann", records("ann")))
    scheduler.add("s", Incoming("bob", records("bob", 1, Kind.IDENTIFY)))
    out = View({EVENTS})
    assert [turn.user for turn in chosen(scheduler, 2, out)] == ["bob"]
    assert [turn.user for turn in chosen(scheduler, 2)] == ["ann"]


def test_the_same_user_of_two_syncs_has_its_events_at_once_and_its_updates_one_by_one() -> None:
    scheduler = Scheduler()
    for sync in ("one", "two"):
        scheduler.add(sync, Incoming("ann", records("ann", 1, Kind.IDENTIFY)))
        scheduler.add(sync, Incoming("bob", records("bob")))
    turns = chosen(scheduler, 4)
    assert Counter(turn.user for turn in turns) == {"ann": 1, "bob": 2}
    [writing] = [turn for turn in turns if turn.user == "ann"]
    scheduler.go_on(writing)
    [other] = chosen(scheduler, 2)
    assert (other.user, other.sync != writing.sync) == ("ann", True)


def test_probes_go_to_users_that_succeeded_then_to_the_latest_then_to_failed_ones() -> None:
    """Those that came when it went out may be what it fails for: 25 of them were asked first."""
    scheduler = Scheduler()
    for user in ("failed-first", "poison", "well", "served", "failed-last"):
        failed = user.startswith("failed")
        scheduler.add("s", Incoming(user, records(user), failed, failed, failed))
    order = []
    while turn := scheduler.choose_probe(EVENTS, lambda who: who[1] == "served"):
        order.append(turn.user)
    assert order == ["served", "well", "poison", "failed-first", "failed-last"]


def test_probes_do_not_save_up_unused_calls_for_long() -> None:
    scheduler = Scheduler()
    for n in range(300):
        scheduler.add("s", Incoming(f"well-{n}", records("w")))
    chosen(scheduler, 200)
    for n in range(20):
        scheduler.add("s", Incoming(f"parked-{n}", records("p"), True, True))
    assert sum(turn.is_retry for turn in chosen(scheduler, 10)) <= 3


def test_of_those_that_are_too_many_behind_a_circuit_the_last_go() -> None:
    scheduler = Scheduler()
    for n in range(5):
        scheduler.add("s", Incoming(f"user-{n}", records("u", 2)))
    gone = scheduler.withdraw("s", (EVENTS, False), 4, 1_000)
    assert [user for user, _ in gone] == ["user-4", "user-3", "user-2"]
    assert [turn.user for turn in chosen(scheduler, 9)] == ["user-0", "user-1"]


def test_one_record_of_any_size_stays_behind_a_circuit() -> None:
    """It is what the next probe is made of."""
    scheduler = Scheduler()
    scheduler.add("s", Incoming("ann", records("ann", 2)))
    scheduler.add("s", Incoming("bob", records("bob")))
    assert [user for user, _ in scheduler.withdraw("s", (EVENTS, False), 0, 0)] == ["bob", "ann"]
    scheduler.add("s", Incoming("ann", records("ann")))
    assert scheduler.withdraw("s", (EVENTS, False), 0, 0) == []


def test_users_of_a_sync_that_is_held_do_not_count_among_those_that_wait() -> None:
    """A sync that a fault had stopped let the others have turns of one event each."""
    scheduler = Scheduler()
    scheduler.add("stopped", Incoming("ann", records("ann")))
    scheduler.add("well", Incoming("bob", records("bob", 20)))
    scheduler.hold("stopped")
    scheduler.add("stopped", Incoming("cid", records("cid")))
    [turn] = chosen(scheduler, 3)
    assert (turn.user, len(turn.records)) == ("bob", MOST_EVENTS)
    scheduler.go_on(turn)
    scheduler.forget("stopped")
    scheduler.add("stopped", Incoming("ann", records("ann")))
    assert {turn.user for turn in chosen(scheduler, 3)} == {"ann", "bob"}
