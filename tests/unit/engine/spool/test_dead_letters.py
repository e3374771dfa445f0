"""Queries of dead letters mean what they name, however much that is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.rows import DeadLetterQuery
from support.spools import OneSync, kept, opened


def test_forty_thousand_ids_are_one_query(tmp_path: Path) -> None:
    """More than one statement takes values: in order, page by page, each once, counted."""
    sync = OneSync(opened(tmp_path / "spool.db"))
    sync.append(*[kept(f"user-{n}") for n in range(1_200)])
    records = sync.load(limit=2_000).records
    sync.store.begin()
    for record in records:
        sync.queue.bury(record, Failure(DeadReason.REFUSED), 1)
    sync.store.commit()
    assert isinstance(sync.store.db, sqlite3.Connection)
    sync.store.db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)  # as SQLite ships
    letters = sync.store.letters
    there = letters.ids(sync.taker, 2_000)
    query = DeadLetterQuery(ids=[*range(200_000, 160_000, -1), *reversed(there), *there[:9]])
    found: list[int] = []
    more = True
    while more:
        after = found[-1] if found else 0
        page, more = letters.page(sync.taker, query, after, 500)
        found += [letter.id for letter in page]
    assert found == there
    assert letters.count(sync.taker, query) == (1_200, False)
    assert sync.store.matching(sync.taker, query) == 1_200
