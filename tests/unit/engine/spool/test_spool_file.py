"""A spool's file: its rights, its settings, which files are refused, and how it shrinks."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.schema import SCHEMA_VERSION, STEPS, statements
from amplitude_intercom.engine.spool.sqlite.examine import findings
from amplitude_intercom.engine.spool.sqlite.spool_file import (
    APPLICATION_ID,
    FORMER_APPLICATION_ID,
    PAGE_BYTES,
    connect,
    former_spools,
    tables_of,
)
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import OneSync, database_of, kept, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def test_the_file_is_its_owners_alone_and_durable(path: Path) -> None:
    db = connect(path)
    for pragma, value in (
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("page_size", PAGE_BYTES),
        ("auto_vacuum", 2),
        ("user_version", SCHEMA_VERSION),
    ):
        assert db.execute(f"PRAGMA {pragma}").fetchone() == (value,), pragma
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    db.close()


def test_a_new_spool_is_whole_and_opens_again_as_it_is(path: Path) -> None:
    with closing(connect(path)) as db:
        before = tables_of(db)
    with closing(connect(path)) as db:
        assert tables_of(db) == before
    assert findings(path) == []


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(SpoolError, match="not a spool"):
        connect(path)
    assert path.read_bytes() == before


def test_a_spool_of_the_former_kind_is_refused_and_told_from_one_of_this(path: Path) -> None:
    former = path.with_name("production.db")
    with closing(sqlite3.connect(former)) as other:
        other.execute("CREATE TABLE records (id)")
        other.execute(f"PRAGMA application_id = {FORMER_APPLICATION_ID}")
    before = former.read_bytes()
    with pytest.raises(SpoolError, match="not a spool"):
        connect(former)
    assert former.read_bytes() == before
    connect(path).close()
    path.with_name("no-spool.db").write_bytes(b"short")
    assert former_spools(path.parent) == [former]


def test_a_spool_of_a_later_version_is_refused_with_both_versions_and_left_as_it_is(
    path: Path,
) -> None:
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    expected = f"later version.*schema {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}"
    with pytest.raises(SpoolError, match=expected):
        connect(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_by_name(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(SpoolError, match=str(path)):
        connect(path)


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(SpoolError):
        connect(path)


def test_a_drained_backlog_gives_its_space_back_bit_by_bit(path: Path) -> None:
    sync = OneSync(opened(path))
    database = database_of(sync.store)
    for _ in range(40):
        sync.append(*(kept("ann", bytes(8_000)) for _ in range(100)))
    full_bytes = database.file.size_bytes()
    assert not database.tidy(), "while it is needed"
    while found := sync.load(limit_bytes=1 << 24).records:
        sync.deliver(*found)
    assert full_bytes <= database.file.size_bytes() < 1.1 * full_bytes
    steps = 0
    while database.tidy():
        steps += 1
    assert steps > 10
    assert database.file.size_bytes() < full_bytes / 1.8
    assert path.stat().st_size == database.file.size_bytes(), "the disk has it, too"
    database.trouble = SpoolError(RefusalReason.DISK_FULL)
    while database.tidy():
        pass
    # All of it, where the disk has no room.
    assert database.file.size_bytes() < full_bytes / 20
    sync.store.close()
    assert path.stat().st_size < full_bytes / 20


def test_parked_users_of_an_earlier_version_are_counted(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        dialect = {"int_": "INTEGER", "bytes_": "BLOB"}
        for step in STEPS[:2]:
            db.executescript(statements(step, **dialect, table="", clustered=""))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
        rows = [(1, "ann", "refused"), (1, "bob", "refused"), (1, "cat", ""), (2, "ann", "refused")]
        columns = "taker, user_key, failures, reason, since_ms"
        db.executemany(f"INSERT INTO users ({columns}) VALUES (?, ?, 1, ?, 5)", rows)
        db.commit()
    with closing(connect(path)) as db:
        counted = db.execute("SELECT taker, name, value FROM counters ORDER BY taker").fetchall()
    assert counted == [(1, "parked:refused", 2), (2, "parked:refused", 1)]
