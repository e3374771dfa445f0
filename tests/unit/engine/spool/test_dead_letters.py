"""Queries of dead letters mean what they name, however much that is, in order of time."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.letter_groups import Group, position_of_group
from amplitude_intercom.engine.spool.letter_walk import MOST_EXAMINED
from amplitude_intercom.engine.spool.letters import (
    MOST,
    START,
    DeadLetter,
    DeadLetterQuery,
    Position,
)
from amplitude_intercom.engine.spool.table_reads import matching, matching_up_to
from amplitude_intercom.engine.spool.user_state import state_of_user
from support.spools import OneSync, kept, opened

USERS = ("ann", "bob", "cid")
REASONS = (DeadReason.REFUSED, DeadReason.USER_FAILING, DeadReason.TOO_OLD)
STATUSES = (400, 422)


def buried(path: Path, times: Sequence[int], rare: int | None = None) -> OneSync:
    """Return a sync whose letters failed last at these times, of several users and groups.

    The ``rare`` one of them alone has the status 451.
    """
    sync = OneSync(opened(path))
    sync.append(*[kept(USERS[n % 3], b"x" * min(n, 400)) for n in range(len(times))])
    records = sync.load(limit=5_000, per_user=5_000, limit_bytes=1 << 24).records
    sync.store.begin()
    for n, (record, at_ms) in enumerate(zip(records, times, strict=True)):
        status = 451 if n == rare else STATUSES[n % 2]
        sync.settling.bury(record, Failure(REASONS[n // 3 % 3], status, f"code-{n % 5}"), at_ms)
    sync.store.commit()
    return sync


def place(letter: DeadLetter) -> Position:
    return Position(letter.last_failed_at_ms, letter.id)


def test_forty_thousand_ids_are_one_query(tmp_path: Path) -> None:
    """More than one statement takes values: in order, page by page, each once, counted."""
    sync = buried(tmp_path / "spool.db", [*range(1_200, 0, -1)])
    assert isinstance(sync.store.db, sqlite3.Connection)
    sync.store.db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)  # as SQLite ships
    letters = sync.store.letters
    there = sorted(letters.ids(sync.taker, 2_000))
    query = DeadLetterQuery(ids=[*range(200_000, 160_000, -1), *reversed(there), *there[:9]])
    found: list[int] = []
    last: Position | None = START
    while last is not None:
        page, last = letters.page(sync.taker, query, last, 500)
        found += [letter.id for letter in page]
    assert found == there
    assert letters.count(sync.taker, query) == (1_200, False)
    assert matching(sync.store, sync.taker, query) == (1_200, False)
    narrow = DeadLetterQuery(ids=query.ids, user="ann", reason="refused", since_ms=600)
    assert letters.count(sync.taker, narrow) == (67, False)


QUERIES = [
    DeadLetterQuery(),
    DeadLetterQuery(reason="refused"),
    DeadLetterQuery(user="ann"),
    DeadLetterQuery(user="ann", reason="too_old"),
    DeadLetterQuery(since_ms=20, until_ms=70),
    DeadLetterQuery(reason="refused", since_ms=20),
    DeadLetterQuery(user="ann", until_ms=70),
    DeadLetterQuery(user="ann", reason="too_old", since_ms=20, until_ms=70),
    DeadLetterQuery(user="nobody"),
    DeadLetterQuery(status=422),
    DeadLetterQuery(reason="refused", status=400, code="code-1", event_type=""),
    DeadLetterQuery(user="ann", code="code-2", since_ms=20, until_ms=70),
    DeadLetterQuery(reason="refused", status=451),
]


def means(query: DeadLetterQuery, letter: DeadLetter) -> bool:
    return (
        query.reason in (None, letter.reason)
        and query.user in (None, letter.user_key)
        and (query.since_ms is None or letter.last_failed_at_ms >= query.since_ms)
        and (query.until_ms is None or letter.last_failed_at_ms < query.until_ms)
        and query.status in (None, letter.status)
        and query.code in (None, letter.code)
        and query.event_type in (None, letter.event_type)
    )


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_pages_are_in_order_of_time_each_letter_once_while_some_go(
    tmp_path: Path, query: DeadLetterQuery
) -> None:
    """Between two pages the last that was shown goes, and one that was not shown yet."""
    chance = random.Random(7)
    sync = buried(tmp_path / "spool.db", [chance.randrange(100) for _ in range(300)])
    letters, taker = sync.store.letters, sync.taker
    every = letters.find(taker, DeadLetterQuery())
    assert [place(letter) for letter in every] == sorted(map(place, every))
    expected = [letter.id for letter in every if means(query, letter)]
    assert letters.count(taker, query) == (len(expected), False)
    assert matching(sync.store, taker, query) == (len(expected), False)
    for letter in every[::50]:
        within = [one for one in every if means(query, one) and place(one) <= place(letter)]
        assert matching_up_to(sync.store, taker, query, place(letter)) == len(within)
    shown: list[int] = []
    last: Position | None = START
    while last is not None:
        page, last = letters.page(taker, query, last, 7)
        shown += [letter.id for letter in page]
        unseen = [id_ for id_ in expected if id_ not in shown]
        gone = [*shown[-1:], *unseen[3:4]]
        expected = [id_ for id_ in expected if id_ not in unseen[3:4]]
        sync.store.begin()
        assert len(letters.remove(taker, gone)) == len(gone)
        sync.store.commit()
    assert shown == expected


def test_a_page_of_a_rare_group_looks_at_some_letters_and_says_where_to_go_on(
    tmp_path: Path,
) -> None:
    sync = buried(tmp_path / "spool.db", range(2 * MOST_EXAMINED + 100), rare=MOST_EXAMINED + 7)
    letters, query = sync.store.letters, DeadLetterQuery(status=451)
    pages: list[list[int]] = []
    last: Position | None = START
    while last is not None:
        page, last = letters.page(sync.taker, query, last, 10)
        pages.append([letter.last_failed_at_ms for letter in page])
    assert pages == [[], [MOST_EXAMINED + 7], []]
    assert matching(sync.store, sync.taker, query) == (1, False)


def test_groups_are_listed_by_size_each_once(tmp_path: Path) -> None:
    sync = buried(tmp_path / "spool.db", range(300), rare=7)
    groups = sync.store.letters.groups
    every = groups.of(sync.taker)
    assert sum(group.count for group in every) == 300
    assert [group.count for group in every] == sorted((g.count for g in every), reverse=True)
    assert every[-1].count == 1
    shown: list[Group] = []
    after, has_more = None, True
    while has_more:
        shown_now, has_more, is_cut = groups.page(sync.taker, after, 4)
        shown += shown_now
        after = position_of_group(shown[-1])
        assert not is_cut
    assert shown == every


def test_the_latest_letters_of_a_user_are_those_that_failed_last(tmp_path: Path) -> None:
    sync = buried(tmp_path / "spool.db", [*range(90, 0, -1)])
    every = sync.store.letters.find(sync.taker, DeadLetterQuery(user="bob"))
    state = state_of_user(sync.store, sync.taker, "bob")
    assert state.dead_letters == {"refused": 10, "too_old": 10, "user_failing": 10}
    ids = [letter.id for letter in reversed(every)]
    assert state.dead_letter_ids == ids[: len(state.dead_letter_ids)]
    assert state.dead_letter_ids


def test_a_page_holds_no_more_bytes_than_it_may_but_for_its_last(tmp_path: Path) -> None:
    sync = buried(tmp_path / "spool.db", [*range(300)])
    page, last = sync.store.letters.page(
        sync.taker, DeadLetterQuery(), Position(99, MOST), 100, limit_bytes=250
    )
    assert [len(letter.raw) for letter in page] == [100, 101, 102]
    assert last == place(page[-1])


BOUNDED = ("(rowid=?)", "last_failed_at_ms>? AND last_failed_at_ms<?)", "AND reason>?)")


@pytest.mark.parametrize("query", [*QUERIES, DeadLetterQuery(ids=[*range(500)])], ids=str)
def test_nothing_looks_at_more_letters_than_it_shows_or_settles(
    tmp_path: Path, query: DeadLetterQuery
) -> None:
    """Each statement takes rows by id, or a range of an index that begins where it goes on."""
    sync = buried(tmp_path / "spool.db", range(9))
    letters, taker, db = sync.store.letters, sync.taker, sync.store.db
    assert isinstance(db, sqlite3.Connection)
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    letters.page(taker, query, START, 500)
    letters.count(taker, query)
    sync.store.begin()
    letters.ids(taker, 500)
    letters.move(taker, taker, 500)
    letters.remove(taker, range(500))
    sync.store.rollback()
    db.set_trace_callback(None)
    looks = [said for said in statements if "dead_letters" in said and "INSERT" not in said]
    assert len(looks) > 5
    for statement in looks:
        plan = [step for *_, step in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
        steps = [step for step in plan if "dead_letters" in step]
        assert steps, statement
        assert all(step.startswith("SEARCH") and step.endswith(BOUNDED) for step in steps), plan


@pytest.mark.parametrize(
    "position", [Position(0, 0), Position(1_700_000_000_000, 512), Position(-5, MOST)], ids=str
)
def test_a_position_survives_its_text(position: Position) -> None:
    assert Position.read(str(position)) == position


@pytest.mark.parametrize(
    "text", ["512", "-512", "1-", "1-2-3", f"1-{MOST + 1}", f"-{MOST + 1}-1", "1-\u0663", "1-2\n"]
)
def test_a_text_that_no_list_writes_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="is no position"):
        Position.read(text)
