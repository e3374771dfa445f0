"""A spool whose folder, lock or file goes away is noticed before anything more is acknowledged."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.contract import Wanted
from amplitude_intercom.engine.spool.rows import Appended
from amplitude_intercom.engine.spool.spool import open_database
from amplitude_intercom.engine.spool.sqlite.database import Database
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.sqlite.opened_files import OpenedFiles
from amplitude_intercom.engine.spool.store import Limits, Store
from support.spools import SYNC, append_of, kept, recount


def opened(folder: Path) -> Database[Store]:
    DataDir(folder)
    database = open_database(folder / "spool.db", Limits(), reserve_bytes=0)
    database.watch(OpenedFiles(folder / "spool.db"))
    return database


def append(database: Database[Store]) -> str:
    [results] = database.run([lambda store: store.append([append_of(kept("ann"))], 1)])
    if isinstance(results, SpoolError):
        return str(results)
    return "" if isinstance(results[0], Appended) else str(results[0])


def deliver_all(database: Database[Store]) -> object:
    """Settle what waits as delivered; return how much waits then."""

    def deliver(store: Store) -> None:
        taker = store.takers.known_id(SYNC)
        found = store.queue(taker).load(Wanted(9, 1 << 20, per_user=9, now_ms=1))
        store.settling(taker).deliver(found.records, 1)

    assert database.run([deliver]) == [None]
    [left] = database.run([lambda store: recount(store, store.takers.known_id(SYNC))["pending"]])
    return left


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def replace_folder(folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    shutil.copytree(folder.parent / "moved", folder)


def replace_file(folder: Path) -> None:
    shutil.copy(folder / "spool.db", folder / "copy.db")
    (folder / "copy.db").rename(folder / "spool.db")


def remove_file(folder: Path) -> None:
    (folder / "spool.db").unlink()


def test_a_log_that_is_removed_takes_nothing_with_it(tmp_path: Path) -> None:
    """What it held is folded into the file before anything else is done."""
    database = opened(tmp_path / "data")
    assert append(database) == ""
    (tmp_path / "data" / "spool.db-wal").unlink()
    assert append(database) == ""
    assert database.trouble is None
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", copy)  # as a kill would leave it
    again = opened(copy)
    [pending] = again.run([lambda store: recount(store, store.takers.known_id(SYNC))["pending"]])
    assert pending == 2
    again.close()
    database.close()


HARMS = [remove_folder, replace_folder, replace_file, remove_file]


@pytest.mark.parametrize("harm", HARMS)
def test_nothing_is_acknowledged_once_folder_or_file_is_gone(tmp_path: Path, harm: object) -> None:
    database = opened(tmp_path / "data")
    assert append(database) == ""
    assert callable(harm)
    harm(tmp_path / "data")
    assert append(database) == "spool_failing"
    assert database.trouble is not None
    assert "restart" in str(database.trouble)
    assert deliver_all(database) == 0  # what is open can still be delivered from, and settled
    database.close()


def test_where_the_lock_was_removed_nothing_is_done_at_all(tmp_path: Path) -> None:
    """Another process may have taken the folder by now."""
    database = opened(tmp_path / "data")
    (tmp_path / "data" / "lock").unlink()
    other = DataDir(tmp_path / "data")
    assert "the lock" in append(database)
    [answer] = database.run([lambda store: recount(store, 1)])
    assert isinstance(answer, SpoolError)
    other.close()
    database.close()


def test_a_folder_that_is_there_again_is_taken_up_again(tmp_path: Path) -> None:
    database = opened(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "away")
    assert append(database) == "spool_failing"
    (tmp_path / "away").rename(tmp_path / "data")
    assert append(database) == ""
    assert database.trouble is None
    assert deliver_all(database) == 0
    database.close()


def test_a_failure_while_the_folder_is_away_never_counts_as_done(tmp_path: Path) -> None:
    """The disk fails while the folder is away: both are over, and it is as it was."""

    def fail(store: Store) -> None:
        store.append([append_of(kept("ann"))], 1)
        error = sqlite3.OperationalError("as the test says")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    database = opened(tmp_path / "data")
    assert append(database) == ""
    (tmp_path / "data").rename(tmp_path / "away")
    answers = database.run([fail, lambda store: recount(store, 1)])
    answers += database.run([lambda store: recount(store, 1)])
    assert all(isinstance(answer, SpoolError) for answer in answers)
    (tmp_path / "away").rename(tmp_path / "data")
    assert append(database) == ""
    [waiting] = database.run([lambda store: recount(store, store.takers.known_id(SYNC))["pending"]])
    assert waiting == 2
    assert deliver_all(database) == 0
    database.close()
