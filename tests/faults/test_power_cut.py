"""Power cuts: only what was fsynced is sure to be there, and of the rest any sector may be."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.faulty_disk import FaultyDisk, after_power_cut
from support.products import Products, check_accounts

CARELESS = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE a (b)")
os.fsync(os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY))
for n in range(100):
    connection.execute("INSERT INTO a VALUES (?)", (n,))
os.kill(os.getpid(), 9)
"""
IN_FLIGHT = 25
"""Calls that may be under way at once; fewer than there are users, so that the bound is met."""

MODEL = Path(__file__).parents[1] / "property" / "test_spool_against_a_model.py"


def test_the_tests_disk_does_lose_bytes_that_were_not_fsynced(tmp_path: Path) -> None:
    """Or none of what follows would prove anything."""
    folder, after = tmp_path / "data", tmp_path / "after"
    folder.mkdir()
    disk = FaultyDisk(folder, tmp_path / "control", keep=1)
    subprocess.run([sys.executable, "-c", CARELESS, folder / "a.db"], env=os.environ | disk.env)
    after_power_cut(folder, after, random.Random(1))
    assert _rows(folder) == 100
    assert _rows(after) < 100


def _rows(folder: Path) -> int:
    connection = sqlite3.connect(folder / "a.db")
    try:
        rows: int = connection.execute("SELECT count(*) FROM a").fetchone()[0]
    except sqlite3.OperationalError:  # not even the table is there
        return 0
    finally:
        connection.close()
    return rows


def _model(tmp_path: Path, examples: int) -> str:
    """Run the spool's model test on a disk whose every crash is a power cut."""
    folder = tmp_path / "data"
    folder.mkdir()
    disk = FaultyDisk(folder, tmp_path / "control", keep=1)
    alone = ("-qs", "-n0", "-p", "no:cacheprovider", "-o", "timeout=0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *alone, MODEL],
        env=os.environ | disk.env | {"MODEL_EXAMPLES": str(examples)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    cuts = int(re.findall(r"(\d+) power cuts", done.stdout)[0])
    assert cuts > examples / 2
    return f"{examples} random histories of a spool with {cuts} power cuts: as the model says"


def test_the_model_holds_through_power_cuts(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(_model(tmp_path, 25))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_model_holds_through_many_power_cuts(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(_model(tmp_path, 1_000))


def _settings(tmp_path: Path, url: str, data_dir: Path) -> Path:
    top, more = {"data_dir": str(data_dir)}, {"max_in_flight": IN_FLIGHT}
    return process.settings(tmp_path, url, top=top, intercom_more=more)


async def _prove(tmp_path: Path, cuts: int, seed: int) -> str:
    dice = random.Random(seed)
    local = Sandbox(latency_s=0.01, limit_per_minute=6_000_000)
    products = Products(local)
    async with serve(local) as url:
        for cut in range(cuts):
            folder = tmp_path / f"data-{cut}"
            config = _settings(tmp_path, url, folder)
            disk = FaultyDisk(folder, tmp_path / "control", keep=1)
            daemon = await process.start(config, disk.env)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(products.upload_until_cut_off(daemon.http))
                await process.moment(dice.uniform(0.0, 0.6))
                await daemon.end(signal.SIGKILL)
            after_power_cut(folder, tmp_path / f"data-{cut + 1}", dice)
        folder = tmp_path / f"data-{cuts}"
        config = _settings(tmp_path, url, folder)
        async with process.daemon(config) as last:
            check_accounts(await last.settled())
        code, out, err = await process.run("spool", "verify", "-c", str(config))
        assert (code, out) == (0, f"{folder}/spool.db: whole\n"), err
    repeated = products.check()
    assert repeated <= cuts * IN_FLIGHT  # as by a kill: what was settled was fsynced
    return (
        f"{cuts} cuts, {len(products.acknowledged)} events acknowledged: 0 missing, 0 out of order,"
        f" {repeated / cuts:.1f} calls repeated a cut, 0 duplicates in Intercom; every spool opened"
    )


async def test_five_power_cuts_lose_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, cuts=5, seed=1))


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_hundred_power_cuts_lose_nothing(
    tmp_path: Path, measured: Callable[[str], None]
) -> None:
    measured(await _prove(tmp_path, cuts=100, seed=2))
