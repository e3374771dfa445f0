"""What a database makes of a disk that fails; the disk itself is in ``tests/faults``."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.rows import Appended
from amplitude_intercom.engine.spool.sqlite.database import HEAL_EVERY_S, Database, run_group
from amplitude_intercom.engine.spool.sqlite.reserve import Reserve
from amplitude_intercom.engine.spool.sqlite.spool_file import SpoolFile, connect
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import SYNC, append_of, kept, recount

MIB = 1 << 20


def append(store: Store) -> Appended:
    (done,) = store.append([append_of(kept("ann"))], 1)
    if isinstance(done, SpoolError):
        raise done
    return done


def opened(path: Path, *, recover: bool) -> tuple[Store, SpoolFile]:
    connection = connect(path)
    store = Store(connection, Limits(window_ms=1_000))
    if recover:
        run_group(store, [Store.recover])
    return store, SpoolFile(connection)


def fail(code: int) -> None:
    error = sqlite3.OperationalError("as the test says")
    error.sqlite_errorcode = code
    raise error


class Rig:
    """A database whose store can be told to fail, and a clock that stands still."""

    def __init__(self, path: Path, reserve_bytes: int = 0) -> None:
        self.path = path
        self.now_s = 0.0
        self.opened: list[bool] = []
        self.open_fails = False
        self.database = Database(
            self._open, Reserve(path, reserve_bytes), monotonic_s=lambda: self.now_s
        )

    def _open(self, *, recover: bool) -> tuple[Store, SpoolFile]:
        if self.open_fails:
            raise SpoolError(RefusalReason.SPOOL_FAILING, "cannot be opened")
        self.opened.append(recover)
        return opened(self.path, recover=recover)

    def run(self, *group: object) -> list[object]:
        return self.database.run(list(group))  # type: ignore[arg-type]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "s.db")


def failing(store: Store) -> None:
    append(store)
    fail(sqlite3.SQLITE_IOERR)


def test_after_a_disk_error_the_database_is_opened_again_without_the_failed_work(rig: Rig) -> None:
    assert rig.run(append) == [Appended(1, 0, 0)]
    results = rig.run(append, failing, append)
    assert [str(result) for result in results] == ["spool_failing: as the test says"] * 3
    assert rig.opened == [True, False], "again, but its process goes on"
    assert rig.database.trouble is None
    assert rig.run(append) == [Appended(1, 0, 0)]
    store = rig.database.store
    taker = store.takers.known_id(SYNC)
    assert recount(store, taker)["pending"] == store.accounts.committed(taker)["pending"] == 2


def test_while_it_cannot_be_opened_everything_fails_and_it_is_tried_once_a_second(rig: Rig) -> None:
    rig.open_fails = True
    rig.run(failing)
    assert str(rig.database.trouble) == "spool_failing: cannot be opened"
    assert str(rig.run(append)[0]) == "spool_failing: cannot be opened"
    rig.open_fails = False
    assert isinstance(rig.run(append)[0], SpoolError), "not yet"
    rig.now_s += HEAL_EVERY_S
    assert rig.run(append) == [Appended(1, 0, 0)]
    assert rig.database.trouble is None


def test_the_reserve_is_released_for_work_that_frees_space(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s.db", reserve_bytes=2 * MIB)
    ballast = tmp_path / "s.db-reserve"
    assert ballast.stat().st_size == MIB
    full = True

    def settle(store: Store) -> str:
        if full and ballast.exists():
            fail(sqlite3.SQLITE_FULL)
        return "settled"

    refused, settled = rig.run(append, settle)
    assert (str(refused), settled) == ("disk_full", "settled")
    assert not ballast.exists()
    assert str(rig.database.trouble) == "disk_full: as the test says"
    full = False
    rig.now_s += HEAL_EVERY_S
    assert rig.run(append) == [Appended(1, 0, 0)]
    assert ballast.exists()


def test_a_reserve_that_the_disk_does_not_have_is_not_taken(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "s.db", 1 << 60)
    assert not reserve.take()
    assert list(tmp_path.iterdir()) == []


def test_where_opening_fails_for_want_of_room_the_reserve_gives_it(tmp_path: Path) -> None:
    """SQLite calls a full disk an I/O error where it cannot make its index of the log."""
    ballast = tmp_path / "s.db-reserve"
    ballast.touch()

    def opener(*, recover: bool) -> tuple[Store, SpoolFile]:
        if ballast.exists():
            raise SpoolError(RefusalReason.SPOOL_FAILING, "disk I/O error")
        return opened(tmp_path / "s.db", recover=recover)

    database = Database(opener, Reserve(tmp_path / "s.db", 1 << 60))
    assert str(database.trouble).startswith("disk_full: ")
    refused, settled = database.run(
        [append, lambda store: recount(store, store.takers.known_id(SYNC))]
    )
    assert (str(refused), settled) == ("disk_full", {"pending": 0, "dead": 0})


def test_a_refusal_of_one_work_costs_the_others_nothing(rig: Rig) -> None:
    def constrained(store: Store) -> None:
        append(store)
        fail(sqlite3.SQLITE_CONSTRAINT)

    first, refused, last = rig.run(append, constrained, append)
    assert (first, last) == (Appended(1, 0, 0),) * 2
    assert isinstance(refused, SpoolError)
    assert rig.opened == [True]
    assert rig.database.damage is refused
