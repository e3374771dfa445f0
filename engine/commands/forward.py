"""``forward``: deliver files and pipes, and end when all of it is settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.running import (
    DEAD_LETTERED,
    FAILED,
    OF_SIGNAL,
    OK,
    Signals,
    complain,
    print_json,
)
from amplitude_intercom.engine.commands.terminal import count, print_table, say
from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.errors import DataDirInUse, SettingsError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.accounts import under
from amplitude_intercom.transports import files
from amplitude_intercom.transports.contract import Batch, Intake, Ticket
from amplitude_intercom.transports.errors import BadFile
from amplitude_intercom.transports.stdin import LineSource, Progress

SILENT_S = 5.0
THROTTLED_S = 15.0
LOOK_S = 0.5
RECOUNT_S = 5.0
MAX_PROBLEMS = 100
"""Files, or members of archives, that are named as bad; of more, their number is said."""


async def forward(
    settings: Settings,
    paths: Sequence[str],
    *,
    sync: str | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    strict: bool = False,
    as_json: bool = False,
    max_wait_s: float | None = None,
) -> int:
    """Read ``paths`` (``-``: standard input) into one sync and wait until it is settled.

    ``max_wait_s`` bounds the wait for retries, counted from the end of the input; or, while reading
    pauses, from the last event that was settled. Interrupted, the same files are resumed where
    reading stopped.

    Raises:
        SettingsError: no such sync, or several and none is named.
    """
    name = choose_sync(settings, sync)
    problems = _Problems()
    found = files.find(paths, problems.unreadable)
    if not found:
        say(f"no files of events in {', '.join(map(files.shown, paths))}", stderr=True)
    signals = Signals()
    async with _started(settings) as engine:
        stream = engine.streams[name]
        before = await _take_stock(stream)
        with _Reading(found, stream, problems) as reading:
            source = LineSource(
                found,
                sync=name,
                max_line_bytes=settings.forward.max_line_bytes,
                max_event_bytes=settings.largest_file_event_bytes,
                batch_lines=settings.forward.batch_lines,
                since_ms=since_ms,
                until_ms=until_ms,
                checkpoints=await stream.spool.checkpoints(),
                progress=reading,
            )
            intake = _Patient(engine.intake, stream, settings.forward.max_backlog)
            stalls = _Stalls(stream, intake)
            done = await _until_stopped(engine, source, intake, signals, stalls, max_wait_s)
        after = await _take_stock(stream)
        await engine.finish(settings.drain_deadline_s)  # settles what was under way
        after = msgspec.structs.replace(after, counters=stream.spool.counters)
        counts = summary(before, after)
        counts["adjusted"] = dict(sorted(stream.spool.adjustments.since_start.items()))
    counts.update(files=reading.files, passed_over=reading.skipped, problems=problems.texts())
    _report(counts, as_json=as_json)
    if problems.more:
        complain(problems.more, FAILED)
    if not done:
        code = OF_SIGNAL + signals.first if signals.first else FAILED
        return complain("stopped before the end; run it again, it goes on from there", code)
    if counts["pending"]:
        return complain(f"{counts['pending']} still wait; they are kept for the next run", FAILED)
    if problems.count:
        return FAILED
    return DEAD_LETTERED if strict and counts["dead"] else OK


@asynccontextmanager
async def _started(settings: Settings) -> AsyncIterator[Engine]:
    """Start an engine.

    Raises:
        DataDirInUse: a daemon runs; the message says what to do.
    """
    try:
        async with Engine(settings) as engine:
            yield engine
    except DataDirInUse as error:
        text = "stop it first, or give `forward` settings with another data_dir"
        raise DataDirInUse(f"{error}; {text}") from None


class _Patient:
    """The engine's intake, held back while delivery is far behind.

    A file is on disk already: copying all of it into the spool would only fill the disk. What waits
    with a parked user does not count, or a few thousand unknown users would stop all others.
    """

    def __init__(self, intake: Intake, stream: Stream, max_backlog: int) -> None:
        self._intake = intake
        self._stream = stream
        self._max_backlog = max_backlog
        self._parked = 0
        self._recount_at_s = 0.0
        self.holds_back = False
        """Whether a batch waits here at this moment."""

    async def send(self, batch: Batch) -> Ticket:
        """Pass a batch on once little enough waits for delivery."""
        self.holds_back = True
        await self._little_waits()
        self.holds_back = False
        return await self._intake.send(batch)

    async def _little_waits(self) -> None:
        delivery = self._stream.delivery
        if delivery is not None:
            spool = self._stream.spool
            while spool.counters["pending"] - self._parked > self._max_backlog:
                if anyio.current_time() >= self._recount_at_s:
                    self._parked = await spool.spool.do(lambda store: store.parked(spool.taker))
                    self._recount_at_s = anyio.current_time() + RECOUNT_S
                else:
                    with anyio.move_on_after(RECOUNT_S):
                        await delivery.feed.progress()

    def takes(self, api_key: str) -> bool:
        """As the engine's."""
        return self._intake.takes(api_key)


class _Stalls:
    """Pauses of reading in which nothing is settled: they are said, and end at a deadline."""

    def __init__(self, stream: Stream, intake: _Patient) -> None:
        self._stream = stream
        self._intake = intake
        self._is_said = False

    async def watch(self, most_s: float | None) -> None:
        """Return once a pause has gone on for ``most_s`` without anything that was settled.

        A pause alone is everyday: files are read faster than Intercom takes events.
        """
        settled, since_s = -1, anyio.current_time()
        while True:
            why, before, settled = self._why(), settled, self._settled()
            now_s = anyio.current_time()
            if not why or settled != before:
                since_s = now_s
            self._tell(why, now_s - since_s)
            if why and most_s is not None and now_s - since_s >= max(most_s, self._least_s()):
                say(f"{self._name}: nothing was settled while reading paused", stderr=True)
                return
            await anyio.sleep(LOOK_S)

    @property
    def _name(self) -> str:
        return self._stream.sync.name

    @property
    def _health(self) -> str:
        return self._stream.gate.state if self._stream.gate is not None else "open"

    def _least_s(self) -> float:
        """Return how long a pause is at least that is no everyday one: an allowance takes 10 s."""
        return THROTTLED_S if self._health == "throttled" else SILENT_S

    def _settled(self) -> int:
        counters = self._stream.spool.counters
        return counters["received"] - counters["pending"]

    def _why(self) -> str:
        """Return why reading pauses at this moment; empty: it does not."""
        trouble = self._stream.spool.trouble
        if trouble is not None:
            return str(trouble)
        if not self._intake.holds_back:
            return ""
        waiting = self._stream.spool.counters["pending"]
        health = f", Intercom: {self._health}" if self._health != "open" else ""
        return f"{count(waiting, 'event')} wait (forward.max_backlog{health})"

    def over(self) -> None:
        """Say that reading went on, where it went on to its end between two looks."""
        self._tell("", 0)

    def _tell(self, why: str, for_s: float) -> None:
        if why and for_s >= SILENT_S and not self._is_said:
            hint = "--max-wait ends this, what waits is kept"
            say(f"{self._name}: reading pauses: {why}; {hint}", stderr=True)
            self._is_said = True
        elif not why and self._is_said:
            say(f"{self._name}: reading goes on", stderr=True)
            self._is_said = False


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
    engine: Engine,
    source: LineSource,
    intake: Intake,
    signals: Signals,
    stalls: _Stalls,
    max_wait_s: float | None,
) -> bool:
    """Read and settle; return False when a signal or the time limit came first."""
    done = False
    async with anyio.create_task_group() as tasks:

        async def give_up() -> None:
            await stalls.watch(max_wait_s)
            tasks.cancel_scope.cancel()

        async def work() -> None:
            nonlocal done
            async with anyio.create_task_group() as meanwhile:
                meanwhile.start_soon(give_up)
                await source.run(intake)
                meanwhile.cancel_scope.cancel()
            stalls.over()
            for stream in engine.streams.values():
                await stream.spool.forget_checkpoints(source.files)
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
        parked = ", ".join(f"{count(n, 'user')}: {why}" for why, n in sync.parked_users.items())
        health = sync.intercom.health if sync.intercom else "open"
        if health != "open":
            parked = f"Intercom: {health}"
        say(
            f"{sync.name}: {sync.pending:,} waiting ({parked or 'being delivered'});"
            " --max-wait ends this earlier, what waits is kept",
            stderr=True,
        )
    await engine.settled()


class Stock(msgspec.Struct, frozen=True):
    """A sync's accounting at one moment."""

    counters: Counter[str]
    dead_by_reason: Counter[str]


async def _take_stock(stream: Stream) -> Stock:
    counters = stream.spool.counters
    return Stock(counters, Counter(under(counters, "dead:")))


def summary(before: Stock, after: Stock) -> dict[str, Any]:
    """Return what changed between two readings of a sync's accounting, and what waits now."""
    change = Counter(after.counters)
    change.subtract(before.counters)
    dead = Counter(after.dead_by_reason)
    dead.subtract(before.dead_by_reason)
    return {
        "received": change["received"],
        "delivered": change["delivered"],
        "dropped": {
            key.removeprefix("dropped:"): count
            for key, count in sorted(change.items())
            if key.startswith("dropped:") and count
        },
        "dead": change["dead"],
        "dead_by_reason": {reason: count for reason, count in sorted(dead.items()) if count},
        "pending": after.counters["pending"],
    }


def _report(counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(counts)
        return
    files_read = "1 file" if counts["files"] == 1 else f"{counts['files']} files"
    rows = [
        (counts["received"], f"received from {files_read}"),
        (counts["passed_over"], "passed over: of another time"),
        (counts["delivered"], "delivered"),
        *((count, f"dropped: {reason}") for reason, count in counts["dropped"].items()),
        *((count, f"dead letters: {reason}") for reason, count in counts["dead_by_reason"].items()),
        (counts["pending"], "waiting"),
        *((count, f"changed: {reason}") for reason, count in counts["adjusted"].items()),
    ]
    always = ("received", "delivered")
    shown = [(f"{count:,}", what) for count, what in rows if count or what.startswith(always)]
    print_table(shown, right=(0,), stderr=True)


class _Waiting(ProgressColumn):
    """How many events wait for Intercom, at the moment of looking."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def render(self, task: Task) -> Text:
        return Text(f"{self._stream.spool.counters['pending']:,} waiting")


class _Problems:
    """What was wrong with files: each is named, the others are read."""

    def __init__(self) -> None:
        self.count = 0
        self._texts: list[str] = []

    def add(self, error: BadFile) -> None:
        """Say what is wrong with a file, at once: reading and delivering may take hours."""
        self.count += 1
        if len(self._texts) < MAX_PROBLEMS:
            self._texts.append(str(error))
            complain(error, FAILED)

    def unreadable(self, error: OSError) -> None:
        """Note that a file cannot be read."""
        self.add(files.bad_file(str(error.filename or ""), "", error.strerror or str(error)))

    @property
    def more(self) -> str:
        """Say how many were not named; empty where all were."""
        more = self.count - len(self._texts)
        return f"and {more} more like these" if more else ""

    def texts(self) -> list[str]:
        """Return what is to be said of them."""
        return [*self._texts, *filter(None, [self.more])]


class _Reading(Progress):
    """What is heard of reading: a progress bar by bytes on a terminal, and what went wrong."""

    def __init__(self, paths: Sequence[str], stream: Stream, problems: _Problems) -> None:
        self.files = len(paths)
        self.skipped = 0
        self._problems = problems
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            _Waiting(stream),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("forward", total=files.size(paths))

    def __enter__(self) -> _Reading:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def read(self, count: int) -> None:
        """So many more bytes of the files were read."""
        self._bar.update(self._task, advance=count)

    def passed_over(self, count: int) -> None:
        """So many events are of a time that was not asked for."""
        self.skipped += count

    def bad_file(self, error: BadFile) -> None:
        """A file is not whole, or holds no events: the next one is read."""
        self._problems.add(error)

    def unreadable(self, error: OSError) -> None:
        """A file cannot be read: the next one is."""
        self._problems.unreadable(error)
