"""The time of a start, beside the import of the libraries alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import daemons, events
from benchmarks.report import Result, in_turns, result_of_rounds

IMPORTS = "import aiohttp, msgspec, anyio"


def _run_s(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def starting(seed: int, *, smoke: bool) -> list[Result]:
    """Measure ``--help``, and ``run`` with an empty spool until it is ready."""
    rounds = 3 if smoke else 9
    helping = in_turns(
        rounds, lambda: _run_s("-m", "amplitude_intercom.engine", "--help"), _imports_s
    )
    with tempfile.TemporaryDirectory() as name:
        table = events.table(Path(name))

        def ready_s() -> float:
            with daemons.running(table) as daemon:
                return daemon.ready_s

        running = in_turns(rounds, ready_s, _imports_s)
    return [
        result_of_rounds("start-help", helping, "s"),
        result_of_rounds("start-ready", running, "s"),
    ]


def _imports_s() -> float:
    return _run_s("-c", IMPORTS)
