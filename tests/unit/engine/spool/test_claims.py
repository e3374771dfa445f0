"""Seconds of events: which is whose, whether they are claimed together or singly."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from amplitude_intercom.engine.spool.claims import Claims
from amplitude_intercom.engine.spool.contract import Claim, Given
from amplitude_intercom.engine.spool.sqlite.spool_file import connect
from support.spools import sqlite_of

FEW = st.tuples(
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(["A", "a", "B"]),
    st.integers(1, 3),
    st.sampled_from([b"1", b"2", b"3", b"4", b"5"]),
)
SHIFT_S = 3


def seconds(
    folder: Path | str, window_ms: int = 1_000, shift_s: int = SHIFT_S, taker: int = 1
) -> Claims:
    db = connect(Path(folder) / "s.db")
    db.execute("PRAGMA synchronous = OFF")
    return Claims(db, taker, window_ms, shift_s)


def claims_of(count: int, *, first: int = 1, second: int = 100) -> list[Claim]:
    return [Claim(n, "ann", "A", second, b"%d" % n) for n in range(first, first + count)]


@drawn(st.lists(st.lists(FEW, max_size=8), max_size=4))
@settings(max_examples=60, deadline=None)
def test_claimed_together_they_have_the_seconds_that_they_have_one_after_the_other(
    batches: list[list[tuple[str, str, int, bytes]]],
) -> None:
    number = 0
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        together, singly = seconds(one), seconds(other)
        everything = []
        given: list[tuple[Claim, Given]] = []
        for batch in batches:
            claims = [Claim(number + n, *wish) for n, wish in enumerate(batch, 1)]
            number += len(claims)
            everything += claims
            mine = together.claim(claims, 1)
            assert mine == [given for claim in claims for given in singly.claim([claim], 1)]
            given += zip(claims, mine, strict=True)
        again = together.claim(everything, 2)
        assert again == [given for claim in everything for given in singly.claim([claim], 2)]
        assert [given.second for given in again] == [shared.second for _, shared in given]
    check(given)


def check(given: list[tuple[Claim, Given]]) -> None:
    """One event a second, all of identical bytes; and none is crowded where a second is free."""
    scopes: dict[tuple[str, str], dict[int, tuple[int, bytes]]] = {}
    crowded: set[tuple[str, str, int, bytes]] = set()
    for claim, (second, is_crowded) in given:
        scope, content = (claim.user_key, claim.name.lower()), (claim.second, claim.raw)
        holders = scopes.setdefault(scope, {})
        free = [at for at in range(claim.second, claim.second + SHIFT_S + 1) if at not in holders]
        if (*scope, *content) in crowded:
            assert (second, is_crowded) == (claim.second, False)
        elif content in holders.values():
            assert holders[second] == content
        elif free:
            assert (second, is_crowded) == (free[0], False)
            holders[second] = content
        else:
            assert (second, is_crowded) == (claim.second, True)
            crowded.add((*scope, *content))


def test_identical_bytes_share_their_second_wherever_it_is(tmp_path: Path) -> None:
    table = seconds(tmp_path)
    one, other = claims_of(2)
    assert table.claim([one, other], 1) == [Given(100), Given(101)]
    copies = [
        msgspec.structs.replace(claim, claim_id=9 + n) for n, claim in enumerate([other, one])
    ]
    assert table.claim(copies, 2) == [Given(101), Given(100)]
    assert table.claim([copies[0], one], 3) == [Given(101), Given(100)]


def test_beyond_the_shift_events_keep_their_own_second_and_say_so(tmp_path: Path) -> None:
    claims = claims_of(SHIFT_S + 3)
    given = seconds(tmp_path).claim(claims, 1)
    assert [shared.second for shared in given] == [*range(100, 101 + SHIFT_S), 100, 100]
    assert [shared.crowded for shared in given] == [False] * (SHIFT_S + 1) + [True] * 2


def test_a_claimed_second_stays_through_a_change_of_settings(tmp_path: Path) -> None:
    claims = claims_of(SHIFT_S + 2)
    before = [given.second for given in seconds(tmp_path).claim(claims, 1)]
    for window_ms, shift_s in ((1_000, 0), (1_000, 60), (0, 60)):
        after = seconds(tmp_path, window_ms, shift_s).claim(claims, 2)
        assert [given.second for given in after] == before


def test_thousands_of_one_second_cost_no_more_each_than_a_few(tmp_path: Path) -> None:
    steps = [0, 0]
    for number, count in enumerate((320, 8_000)):
        (tmp_path / str(count)).mkdir()
        table = seconds(tmp_path / str(count), shift_s=60)

        def step(number: int = number) -> None:
            steps[number] += 1

        sqlite_of(table._db).set_progress_handler(step, 100)
        for first in range(0, count, 32):
            table.claim(claims_of(32, first=first + 1), 1)
    few, many = steps[0] / 320, steps[1] / 8_000
    assert many < 2 * few


def test_without_a_window_every_event_has_its_own_second(tmp_path: Path) -> None:
    assert seconds(tmp_path, window_ms=0).claim(claims_of(3), 1) == [Given(100)] * 3


def test_syncs_do_not_take_each_other_s_seconds(tmp_path: Path) -> None:
    """Each has a workspace of its own, as far as anybody can tell."""
    one, other = (seconds(tmp_path, taker=taker) for taker in (1, 2))
    [first], [second] = claims_of(1), claims_of(1, first=2)
    assert one.claim([first], 1) == [Given(100)]
    assert other.claim([second], 1) == [Given(100)]


def test_an_event_that_another_sync_takes_over_does_not_take_a_second_of_its_own(
    tmp_path: Path,
) -> None:
    shop, mail = seconds(tmp_path, taker=1), seconds(tmp_path, taker=2)
    moved, own = claims_of(3), claims_of(2, first=11, second=101)
    assert [given.second for given in shop.claim(moved, 1)] == [100, 101, 102]
    assert [given.second for given in mail.claim(own, 1)] == [101, 102]
    taken = [Given(100), Given(103), Given(104)]
    assert mail.claim(moved, 2) == taken
    assert mail.claim(moved, 3) == taken
    assert mail.claim(own, 3) == [Given(101), Given(102)]


def test_a_dead_letter_that_is_replayed_under_another_name_swallows_none_of_that_name(
    tmp_path: Path,
) -> None:
    claims = seconds(tmp_path)
    first, second = claims_of(2)
    renamed = msgspec.structs.replace(first, name="B")
    claims.claim([first], 1)
    claims.claim([msgspec.structs.replace(second, name="B")], 1)
    assert claims.claim([renamed], 2) == [Given(101)]
