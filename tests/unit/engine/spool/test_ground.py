"""A spool whose folder, lock or file goes away is noticed before anything more is acknowledged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.rows import Appended
from amplitude_intercom.engine.spool.spool import open_database
from amplitude_intercom.engine.spool.sqlite.database import Database
from amplitude_intercom.engine.spool.sqlite.ground import Ground
from amplitude_intercom.engine.spool.sqlite.lock import DataDir
from amplitude_intercom.engine.spool.store import Limits
from support.spools import append_of, kept


def opened(folder: Path) -> Database:
    DataDir(folder)
    database = open_database(folder / "spool.db", Limits(), reserve_bytes=0)
    database.watch(Ground(folder / "spool.db"))
    return database


def append(database: Database) -> str:
    [results] = database.run([lambda store: store.append([append_of(kept("ann"))], 1)])
    if isinstance(results, SpoolError):
        return str(results)
    return "" if isinstance(results[0], Appended) else str(results[0])


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


@pytest.mark.parametrize("harm", [remove_folder, replace_folder, replace_file, remove_file])
def test_nothing_is_acknowledged_on_ground_that_is_gone(tmp_path: Path, harm: object) -> None:
    database = opened(tmp_path / "data")
    assert append(database) == ""
    assert callable(harm)
    harm(tmp_path / "data")
    assert append(database) == "spool_failing"
    assert database.trouble is not None
    assert "restart" in str(database.trouble)
    [pending] = database.run([lambda store: store.recount(store.taker("s"))["pending"]])
    assert pending == 1  # what is open can still be delivered from
    database.close()


def test_where_the_lock_was_removed_nothing_is_done_at_all(tmp_path: Path) -> None:
    """Another process may have taken the folder by now."""
    database = opened(tmp_path / "data")
    (tmp_path / "data" / "lock").unlink()
    other = DataDir(tmp_path / "data")
    assert "the lock" in append(database)
    [answer] = database.run([lambda store: store.recount(1)])
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
    database.close()
