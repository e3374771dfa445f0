"""Queries of dead letters mean what they name, however much that is, in order of time."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.letters import (
    MOST,
    START,
    DeadLetter,
    DeadLetterQuery,
    Position,
)
from amplitude_intercom.engine.spool.table_reads import matching
from amplitude_intercom.engine.spool.user_state import state_of_user
from support.spools import OneSync, kept, opened

USERS = ("ann", "bob", "cid")
REASONS = (DeadReason.REFUSED, DeadReason.USER_FAILING, DeadReason.TOO_OLD)


def buried(path: Path, times: Sequence[int]) -> OneSync:
    """Return a sync whose letters failed last at these times, of several users and reasons."""
    sync = OneSync(opened(path))
    sync.append(*[kept(USERS[n % 3], b"x" * n) for n in range(len(times))])
    records = sync.load(limit=2_000, per_user=2_000).records
    sync.store.begin()
    for n, (record, at_ms) in enumerate(zip(records, times, strict=True)):
        sync.settling.bury(record, Failure(REASONS[n // 3 % 3]), at_ms)
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
    assert matching(sync.store, sync.taker, query) == 1_200
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
]


def means(query: DeadLetterQuery, letter: DeadLetter) -> bool:
    return (
        query.reason in (None, letter.reason)
        and query.user in (None, letter.user_key)
        and (query.since_ms is None or letter.last_failed_at_ms >= query.since_ms)
        and (query.until_ms is None or letter.last_failed_at_ms < query.until_ms)
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
