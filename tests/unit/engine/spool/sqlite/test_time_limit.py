"""A limit of time for reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from amplitude_intercom.engine.spool.sqlite.time_limit import ReadStopped, stopped_after

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def test_a_read_that_takes_too_long_is_stopped(db: sqlite3.Connection) -> None:
    looks = iter(range(1_000))  # a clock that goes on by a second at each look
    with pytest.raises(ReadStopped):
        stopped_after(3.0, db, lambda: db.execute(ENDLESS).fetchone(), lambda: next(looks))
    assert next(looks) == 4


def test_the_connection_has_no_limit_afterwards(db: sqlite3.Connection) -> None:
    with pytest.raises(ReadStopped):
        stopped_after(0.0, db, lambda: db.execute(ENDLESS).fetchone())
    limited = ENDLESS.replace("FROM n)", "FROM n LIMIT 100000)")
    assert db.execute(limited).fetchone() == (100_000,)


def test_another_error_stays_what_it_is(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        stopped_after(1.0, db, lambda: db.execute("SELECT * FROM no_table"))
