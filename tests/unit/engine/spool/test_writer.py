"""Who runs transactions: what shares a commit, who fails with whom, and what closing does."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SettingsError, SpoolError
from amplitude_intercom.engine.spool.rows import Appended
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.writer import MOST_OF_A_GROUP, InlineWriter, ThreadWriter
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import OneSync, append_of, database_of, kept, opened, recount, sqlite_of


def append(store: Store) -> Appended:
    (done,) = store.append([append_of(kept("ann"))], 1)
    assert isinstance(done, Appended)
    return done


def broken(store: Store) -> None:
    store.append([append_of(kept("bob"))], 1)
    raise ZeroDivisionError


class Spied:
    """A store, and how often its connection committed or rolled back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: Counter[str] = Counter()
        self.sync = OneSync(opened(path))
        self.store, self.db = self.sync.store, self.sync.store.db
        self.database = database_of(self.store)
        sqlite_of(self.db).set_trace_callback(lambda statement: self.said.update([statement]))

    def after(self) -> dict[str, int]:
        """Return what a fresh reader counts."""
        again = OneSync(opened(self.path))
        try:
            return counted(again)
        finally:
            again.store.close()


def counted(sync: OneSync) -> dict[str, int]:
    """Return what is counted of the rows; the counters must say the same."""
    found = recount(sync.store, sync.taker)
    assert found["pending"] == sync.counters["pending"]
    return found


@pytest.fixture
def spied(tmp_path: Path) -> Spied:
    return Spied(tmp_path / "s.db")


def hold(writer: ThreadWriter[Store]) -> tuple[asyncio.Future[bool], threading.Event]:
    """Occupy the writer's thread until the event is set."""
    gate = threading.Event()
    return writer.submit(lambda _: gate.wait(30)), gate


async def test_work_submitted_during_a_commit_shares_the_next_one(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    held, gate = hold(writer)
    futures = [writer.submit(append) for _ in range(200)]
    gate.set()
    results = await asyncio.gather(*futures)
    await held
    await writer.close(10.0)
    assert results == [Appended(1, 0, 0)] * 200
    assert spied.said["COMMIT"] <= 3
    assert spied.after() == {"pending": 200, "dead": 0}


class Watched:
    """What work holds, and what it returns."""


def another(_: Watched, store: Store) -> Watched:
    return Watched()


async def test_a_writer_that_waits_keeps_neither_work_nor_results(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    held = Watched()
    watched = [weakref.ref(held), weakref.ref(await writer.submit(partial(another, held)))]
    del held
    async with asyncio.timeout(10):
        while any(reference() is not None for reference in watched):
            gc.collect()
            await asyncio.sleep(0)
    await writer.close(10.0)


async def test_work_is_done_in_the_order_of_submission_however_much_there_is(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    _, gate = hold(writer)
    ran: list[int] = []
    count = 2 * MOST_OF_A_GROUP + 7

    def run(i: int, _: Store) -> int:
        ran.append(i)
        return i

    futures = [writer.submit(partial(run, i)) for i in range(count)]
    gate.set()
    assert await asyncio.gather(*futures) == list(range(count))
    assert ran == list(range(count))
    await writer.close(10.0)
    assert 3 <= spied.said["COMMIT"] <= 5


async def test_closing_does_submitted_work_and_resolves_its_futures(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    _, gate = hold(writer)
    futures = [writer.submit(append) for _ in range(MOST_OF_A_GROUP + 1)]
    gate.set()
    await writer.close(10.0)
    assert all(future.done() for future in futures)
    assert spied.after()["pending"] == MOST_OF_A_GROUP + 1
    with pytest.raises(sqlite3.ProgrammingError):
        recount(spied.store, spied.sync.taker)


async def test_a_caller_that_gives_up_does_not_disturb_the_others(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    _, gate = hold(writer)
    futures = [writer.submit(append) for _ in range(3)]
    futures[1].cancel()
    gate.set()
    assert [await futures[0], await futures[2]] == [Appended(1, 0, 0)] * 2
    await writer.close(10.0)
    assert spied.after()["pending"] == 3


def refuse(_: Store) -> None:
    raise SpoolError(RefusalReason.SPOOL_FULL)


def test_refused_work_does_not_hurt_the_others(spied: Spied) -> None:
    first, refused, last = spied.database.run([append, refuse, append])
    assert (first, last) == (Appended(1, 0, 0),) * 2
    assert isinstance(refused, SpoolError)
    assert refused.reason == "spool_full"
    assert spied.said["COMMIT"] == 1
    spied.store.close()
    assert spied.after()["pending"] == 2


def test_work_refused_by_the_database_fails_alone_and_leaves_nothing(spied: Spied) -> None:
    def fail(store: Store) -> None:
        append(store)
        spied.db.execute("INSERT INTO no_such_table VALUES (1)")

    first, refused, last = spied.database.run([append, fail, append])
    assert (first, last) == (Appended(1, 0, 0),) * 2
    assert isinstance(refused, SpoolError)
    assert refused.reason == "spool_failing"
    assert str(spied.database.damage) == "spool_failing: no such table: no_such_table"
    assert spied.database.trouble is None
    assert counted(spied.sync) == {"pending": 2, "dead": 0}
    spied.store.close()


def test_a_commit_that_fails_leaves_nothing(spied: Spied) -> None:
    spied.db.execute(
        f"PRAGMA max_page_count = {spied.db.execute('PRAGMA page_count').fetchone()[0]}"
    )
    big = append_of(kept("ann", bytes(100_000)))
    (result,) = spied.database.run([lambda store: store.append([big], 1)])
    assert isinstance(result, SpoolError)
    assert result.reason == "disk_full"
    assert spied.sync.counters.total() == 0
    spied.db.execute("PRAGMA max_page_count = 1000000")
    spied.database.heal(result)
    assert spied.database.run([append]) == [Appended(1, 0, 0)]
    assert counted(spied.sync)["pending"] == 1
    spied.store.close()


def test_a_transaction_that_cannot_even_be_rolled_back_is_tried_again(spied: Spied) -> None:
    denied = True

    def authorize(action: int, what: str | None, *_: str | None) -> int:
        is_rollback = action == sqlite3.SQLITE_TRANSACTION and what == "ROLLBACK"
        return sqlite3.SQLITE_DENY if denied and is_rollback else sqlite3.SQLITE_OK

    def fail(store: Store) -> None:
        append(store)
        raise sqlite3.OperationalError("disk I/O error")

    sqlite_of(spied.db).set_authorizer(authorize)
    for work in (fail, append):
        (result,) = spied.database.run([work])
        assert isinstance(result, SpoolError)
    denied = False
    assert isinstance(spied.database.run([append])[0], SpoolError)
    assert spied.database.run([append]) == [Appended(1, 0, 0)]
    assert counted(spied.sync)["pending"] == 1
    spied.store.close()


def test_work_with_a_fault_of_its_own_fails_alone_and_leaves_nothing(spied: Spied) -> None:
    first, fault, last = spied.database.run([append, broken, append])
    assert (first, last) == (Appended(1, 0, 0),) * 2
    assert isinstance(fault, ZeroDivisionError)
    spied.store.close()
    assert spied.after()["pending"] == 2


async def test_a_fault_does_not_end_the_thread(spied: Spied) -> None:
    writer = ThreadWriter(spied.database)
    with pytest.raises(ZeroDivisionError):
        await writer.submit(broken)
    assert await writer.submit(append) == Appended(1, 0, 0)
    await writer.close(10.0)
    assert spied.after()["pending"] == 1


async def test_the_inline_writer_has_done_it_when_submit_returns(spied: Spied) -> None:
    writer = InlineWriter(database_of(spied.store))
    future = writer.submit(append)
    assert future.result() == Appended(1, 0, 0)
    failed = writer.submit(refuse)
    with pytest.raises(SpoolError):
        await failed
    with pytest.raises(ZeroDivisionError):
        await writer.submit(broken)
    await writer.close(10.0)
    assert spied.after()["pending"] == 1


def test_settings_errors_fail_alone_as_every_error_of_ours_does(spied: Spied) -> None:
    def fail(_: Store) -> None:
        raise SettingsError("x")

    results = spied.database.run([fail, append])
    assert isinstance(results[0], SettingsError)
    assert results[1] == Appended(1, 0, 0)
    spied.store.close()


async def test_a_fault_of_the_database_s_own_does_not_end_the_thread(spied: Spied) -> None:
    database = spied.database
    database._look_again = broken_look  # type: ignore[method-assign]
    writer = ThreadWriter(database)
    with pytest.raises(ZeroDivisionError):
        await writer.submit(append)
    del database._look_again
    assert await writer.submit(append) == Appended(1, 0, 0)
    await writer.close(10.0)


def broken_look() -> None:
    raise ZeroDivisionError
