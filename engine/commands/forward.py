"""``forward``: deliver files and pipes, and end when all of it is settled."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from engine.app import Engine, load_source
from engine.commands import DEAD_LETTERED, FAILED, OK, Signals, complain
from engine.config import Settings
from engine.errors import SettingsError
from engine.pipeline import Pipeline
from transports import Receipt, Source

SILENT_S = 5.0


async def forward(
    settings: Settings,
    paths: Sequence[str],
    *,
    sync: str | None = None,
    strict: bool = False,
    as_json: bool = False,
    max_wait_s: float | None = None,
) -> int:
    """Read ``paths`` (``-``: standard input) into one sync and wait until it is settled.

    ``max_wait_s`` bounds the wait for retries, counted from the end of the input.

    Raises:
        SettingsError: no such sync, or several and none is named.
    """
    name = choose_sync(settings, sync)
    unreadable = next((p for p in paths if p != "-" and not os.access(p, os.R_OK)), None)
    if unreadable is not None:
        return complain(f"{unreadable}: no such file, or not readable", FAILED)
    signals = Signals()
    async with Engine(settings) as engine:
        pipeline = engine.pipelines[name]
        before = pipeline.spool.counters
        with _Bar(paths, pipeline) as bar:
            source = load_source(
                "stdin",
                {
                    "paths": paths,
                    "sync": name,
                    **msgspec.structs.asdict(settings.forward),
                    "progress": bar.read,
                },
            )
            done = await _until_stopped(engine, source, signals, max_wait_s)
        await engine.finish(settings.drain_deadline_s)
        counts = summary(before, pipeline.spool.counters)
    _report(counts, as_json=as_json)
    if not done:
        return complain("stopped before the end; what was read is kept, run it again", FAILED)
    if counts["pending"]:
        return complain(f"{counts['pending']} still wait; they are kept for the next run", FAILED)
    return DEAD_LETTERED if strict and counts["dead"] else OK


def choose_sync(settings: Settings, name: str | None) -> str:
    """Return the sync that a file goes to.

    Raises:
        SettingsError: it is not there, or not said although there are several.
    """
    names = [sync.name for sync in settings.sync]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        said = f"there is no sync `{name}`" if name else "there are several syncs"
        raise SettingsError(f"--sync: {said}; choose one of {', '.join(names)}")
    return name


async def _until_stopped(
    engine: Engine, source: Source, signals: Signals, max_wait_s: float | None
) -> bool:
    """Read and settle; return False when a signal or the time limit came first."""
    done = False
    async with anyio.create_task_group() as tasks:

        async def work() -> None:
            nonlocal done
            await engine.intake.run(source)
            with anyio.move_on_after(max_wait_s):
                await _settle_aloud(engine)
            done = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        await signals.stop.wait()
        tasks.cancel_scope.cancel()
    return done


async def _settle_aloud(engine: Engine) -> None:
    """Wait until all is settled, and say what for when it takes a while."""
    with anyio.move_on_after(SILENT_S):
        await engine.settled()
        return
    for sync in (await engine.status()).syncs:
        parked = ", ".join(f"{n} users: {reason}" for reason, n in sync.parked_users.items())
        print(
            f"{sync.name}: {sync.pending} waiting ({parked or 'being delivered'});"
            " --max-wait ends this earlier, what waits is kept",
            file=sys.stderr,
        )
    await engine.settled()


def summary(before: Counter[str], after: Counter[str]) -> dict[str, Any]:
    """Return what changed between two readings of a sync's counters, and what waits now."""
    change = Counter(after)
    change.subtract(before)
    return {
        "received": change["received"],
        "delivered": change["delivered"],
        "dropped": {
            key.removeprefix("dropped:"): count
            for key, count in sorted(change.items())
            if key.startswith("dropped:") and count
        },
        "dead": change["dead"],
        "pending": after["pending"],
    }


def _report(counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(counts).decode() + "\n")
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    print(
        f"received {counts['received']}, delivered {counts['delivered']},"
        f" dropped {sum(counts['dropped'].values())}{f' ({dropped})' if dropped else ''},"
        f" dead letters {counts['dead']}, waiting {counts['pending']}",
        file=sys.stderr,
    )


class _Bar:
    """A progress bar by bytes, on a terminal; nothing elsewhere."""

    def __init__(self, paths: Sequence[str], pipeline: Pipeline) -> None:
        sizes = [os.path.getsize(p) for p in paths if p != "-"]
        total = sum(sizes) if len(sizes) == len(paths) else None
        console = Console(stderr=True)
        self._pipeline = pipeline
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[waiting]} waiting"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("forward", total=total, waiting=0)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def read(self, count: int, receipt: Receipt | None) -> None:
        """Hear of bytes read, or of a batch stored."""
        waiting = self._pipeline.spool.counters["pending"]
        self._progress.update(self._task, advance=count, waiting=waiting)
