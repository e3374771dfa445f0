"""Batches that go in together: none forgotten, none twice, in order, and no thread ahead."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.appends import Appends
from amplitude_intercom.engine.spool.batches import entries_of
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.sqlite.database import Database
from amplitude_intercom.engine.spool.sqlite.spool_file import connect
from amplitude_intercom.engine.spool.store import Limits, Store
from amplitude_intercom.engine.spool.writer import ThreadWriter
from amplitude_intercom.transports.reasons import RefusalReason
from support.spools import SYNC, append_of, database_of, kept, part_of


def batch(*users: str) -> Append:
    return append_of(*map(kept, users))


def users_in(append: Append) -> list[str]:
    indexes = [pack.index for part in append.parts for pack in part.packs]
    return [entry.user_key for index in indexes for entry in entries_of(index)]


class SlowStore(Store):
    """Notes how many batches come together; breaks at a user called ``bad``."""

    calls: list[int]
    gate: threading.Event

    def append(self, batches: Sequence[Append], now_ms: int) -> list[Appended | SpoolError]:
        self.gate.wait(10)
        self.calls.append(len(batches))
        if "bad" in (user for append in batches for user in users_in(append)):
            raise ValueError("bad")
        return super().append(batches, now_ms)


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    slow = SlowStore(connect(tmp_path / "s.db"), Limits(window_ms=1_000))
    slow.calls, slow.gate = [], threading.Event()
    return slow


def users_of(database: Database[Store]) -> list[str]:
    rows = database.store.db.execute("SELECT entries FROM inbox ORDER BY id")
    return [entry.user_key for (index,) in rows for entry in entries_of(index.encode())]


async def settled(futures: Sequence[asyncio.Future[Appended]]) -> list[Appended | BaseException]:
    return await asyncio.gather(*futures, return_exceptions=True)


async def test_waiting_appends_go_in_together_and_in_order(store: SlowStore) -> None:
    database = database_of(store)
    writer = ThreadWriter(database)
    appends = Appends(writer, lambda: 1)
    users = [f"user-{n}" for n in range(100)]
    futures = [appends.put(batch(user)) for user in users]
    counted = appends.put(Append([part_of(dropped=Counter({"not_selected": 5}))]))
    store.gate.set()
    assert await settled([*futures, counted]) == [Appended(1, 0, 0)] * 100 + [Appended(0, 5, 0)]
    assert len(store.calls) <= 3
    await writer.submit(lambda s: None)
    assert users_of(database) == users
    assert store.accounts.committed(store.takers.known_id(SYNC))["received"] == 105
    await writer.close(10.0)


async def test_after_a_fault_batches_go_in_one_by_one(store: SlowStore) -> None:
    database = database_of(store)
    writer = ThreadWriter(database)
    appends = Appends(writer, lambda: 1)
    store.gate.set()
    first = await settled([appends.put(batch(user)) for user in ("ann", "bad", "cid")])
    assert isinstance(first[1], ValueError)
    again = await settled([appends.put(batch(user)) for user in ("ann", "bad", "cid")])
    assert [type(given_second) for given_second in again] == [Appended, ValueError, Appended]
    await writer.close(10.0)


async def test_work_that_is_never_done_refuses_waiting_appends(store: SlowStore) -> None:
    class Refusing:
        """As a writer whose disk has failed."""

        def submit(self, work: object) -> asyncio.Future[object]:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(
                future.set_exception, SpoolError(RefusalReason.SPOOL_FAILING, "no disk")
            )
            return future

        async def close(self) -> None: ...

    appends = Appends(Refusing(), lambda: 1)  # type: ignore[arg-type]
    for _ in range(2):
        refused = await settled([appends.put(batch("ann")) for _ in range(3)])
        assert [type(result) for result in refused] == [SpoolError] * 3
