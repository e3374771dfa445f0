"""The work of a status does not grow with the dead letters, and many syncs do not hold the loop."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.metrics import render
from amplitude_intercom.engine.overview import SYNCS_AT_ONCE
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.transports.sandbox.in_process import InProcess
from support import simulation
from support.simulation import API_KEY, event
from support.spools import sqlite_of
from support.virtual import in_virtual_time

_LETTERS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO dead_letters
SELECT i * 512, 1, 'refused', 400, '', '', '', 1, 1800000000000,
    1800000000000, 1800000000000, 'user-' || i, 'Purchase', '', NULL,
    i * 512, 0, 0, x'7b7d' FROM n
"""
_GROUPS = """
INSERT INTO dead_letter_groups
SELECT taker, reason, status, code, event_type, count(*), 1800000000000, 1800000000000, max(id)
FROM dead_letters
GROUP BY 1, 2, 3, 4, 5
"""
_COUNTERS = """
INSERT INTO counters SELECT 1, name, (SELECT count(*) FROM dead_letters)
FROM (SELECT 'dead' AS name UNION SELECT 'dead:refused' UNION SELECT 'received')
"""


_PARKED = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO users (taker, user_key, wake_at_ms, failures, reason, since_ms)
SELECT 1, 'user-' || i, 1800000900000, 1, 'user_not_found', 1800000000000 + i FROM n
"""
_PARKED_COUNTER = "INSERT INTO counters VALUES (1, 'parked:user_not_found', ?)"


def add_parked(path: Path, count: int) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(_PARKED, (count,))
        db.execute(_PARKED_COUNTER, (count,))
    db.close()


def add_letters(path: Path, count: int) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(_LETTERS, (count,))
        db.execute(_GROUPS)
        db.execute(_COUNTERS)
    db.close()


class Steps:
    """The steps of SQLite's machine on the connection of a spool."""

    def __init__(self, spool: Spool) -> None:
        self.count = 0
        sqlite_of(spool.writer._database.store.db).set_progress_handler(self._step, 1)  # type: ignore[attr-defined]

    def _step(self) -> int:
        self.count += 1
        return 0


async def steps_of_status(folder: Path, letters: int) -> int:
    """Return the steps of one status and one text of metrics over so many dead letters."""
    local = simulation.sandbox()
    async with simulation.engine(folder, local) as engine:
        path = engine.spool.path
    add_letters(path, letters)
    async with simulation.engine(folder, local) as engine:
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(5)
        steps = Steps(engine.spool)
        status = await engine.status()
        text = render(status, ready=engine.overview.ready).decode()
        counted = steps.count
    assert status.syncs[0].dead_by_reason == {"refused": letters}
    assert f'dead_letters{{sync="simulated",reason="refused"}} {float(letters)}' in text
    return counted


@in_virtual_time
async def test_a_status_takes_as_many_steps_over_many_dead_letters_as_over_few(
    tmp_path: Path,
) -> None:
    few = await steps_of_status(tmp_path / "few", 1_000)
    many = await steps_of_status(tmp_path / "many", 20_000)
    assert 0 < many <= few + 50


async def turns_of_status(folder: Path, syncs: int) -> int:
    """Return the turns of the event loop while a status of so many syncs is put together."""
    table = simulation.settings(folder).sync[0]
    settings = msgspec.structs.replace(
        simulation.settings(folder),
        sync=[msgspec.structs.replace(table, name=f"sync-{n}") for n in range(syncs)],
    )
    local, turns = simulation.sandbox(), 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with (
        Engine(settings, wire=lambda _: InProcess(local), inline=True) as engine,
        anyio.create_task_group() as tasks,
    ):
        await anyio.sleep(1)
        tasks.start_soon(count)
        await anyio.lowlevel.checkpoint()
        turns = 0
        status = await engine.status()
        counted = turns
        tasks.cancel_scope.cancel()
    assert [sync.name for sync in status.syncs] == [f"sync-{n}" for n in range(syncs)]
    return counted


@in_virtual_time
async def test_a_status_of_many_syncs_lets_others_work_in_between(tmp_path: Path) -> None:
    few = await turns_of_status(tmp_path / "few", 10)
    many = await turns_of_status(tmp_path / "many", 10 + 4 * SYNCS_AT_ONCE)
    assert many - few >= 4


async def steps_of_many(folder: Path, names: int) -> int:
    """Return the steps of one status of 100 syncs that share a workspace with so many names."""
    table = simulation.settings(folder).sync[0]
    settings = msgspec.structs.replace(
        simulation.settings(folder),
        sync=[msgspec.structs.replace(table, name=f"sync-{n}") for n in range(100)],
    )
    local = simulation.sandbox()
    async with Engine(settings, wire=lambda _: InProcess(local), inline=True) as engine:
        await anyio.sleep(1)
        number = engine.streams["sync-0"].spool.workspace
        kept = {f"name-{n}": 20_000 for n in range(names)}
        await engine.spool.do(lambda store: store.event_names.keep(number, kept))
        steps = Steps(engine.spool)
        status = await engine.status()
    assert {sync.event_names for sync in status.syncs} == {names}
    assert len({id(sync.intercom) for sync in status.syncs}) == 1, "each gate is looked at once"
    return steps.count


@in_virtual_time
async def test_what_syncs_share_is_read_once_for_all_of_them(tmp_path: Path) -> None:
    few = await steps_of_many(tmp_path / "few", 1)
    many = await steps_of_many(tmp_path / "many", 101)
    assert few < many < few + 100 * 10


async def steps_over_parked(folder: Path, users: int) -> int:
    """Return the steps of one status over so many parked users."""
    local = simulation.sandbox()
    async with simulation.engine(folder, local) as engine:
        path = engine.spool.path
    add_parked(path, users)
    async with simulation.engine(folder, local) as engine:
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(5)
        steps = Steps(engine.spool)
        [sync] = (await engine.status()).syncs
        counted = steps.count
    assert sync.parked_users == {"user_not_found": users + 1}
    assert sync.oldest_parked_s is not None
    assert 4 < sync.oldest_parked_s < 10
    return counted


@in_virtual_time
async def test_a_status_takes_as_many_steps_over_many_parked_users_as_over_few(
    tmp_path: Path,
) -> None:
    few = await steps_over_parked(tmp_path / "few", 100)
    many = await steps_over_parked(tmp_path / "many", 20_000)
    assert 0 < many <= few + 50
