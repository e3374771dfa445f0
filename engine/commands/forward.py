"""``forward``: deliver files and pipes, and end when all of it is settled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final

import anyio
import msgspec

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.daemon_batches import DaemonBatches
from amplitude_intercom.engine.commands.daemon_client import DaemonClient
from amplitude_intercom.engine.commands.daemon_sync import DaemonSync
from amplitude_intercom.engine.commands.deliverer import Deliverer
from amplitude_intercom.engine.commands.engine_batches import EngineBatches
from amplitude_intercom.engine.commands.exporting import Asked, ExportInput, export_settings
from amplitude_intercom.engine.commands.forward_reading import (
    Ending,
    FilesInput,
    Input,
    Problems,
    Reading,
)
from amplitude_intercom.engine.commands.forward_stalls import SILENT_S, HeldBackIntake, Stalls
from amplitude_intercom.engine.commands.running import (
    DEAD_LETTERED,
    FAILED,
    OF_SIGNAL,
    OK,
    Signals,
    complain,
    print_json,
)
from amplitude_intercom.engine.commands.spool_access import daemon_of, why_not
from amplitude_intercom.engine.commands.taker_choice import choose_sync
from amplitude_intercom.engine.commands.terminal import count, print_table, say
from amplitude_intercom.engine.errors import DataDirInUse
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.transports import finding
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.line_source import LineSource
from amplitude_intercom.transports.progress import Progress

REMEDY: Final = (
    "`forward` hands its events to a running daemon through its admin port: give both settings the"
    " same [admin], with its `token`, and restart the daemon; or stop it first"
)


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
    export: Asked | None = None,
) -> int:
    """Read ``paths`` (``-``: standard input), or an ``export``, into one sync and wait until it is
    settled. With a daemon running, that takes the events and delivers them.

    ``max_wait_s`` bounds the wait for retries, counted from the end of the input; or, while reading
    pauses, from the last event that was settled; or the wait for one export. Without it, a run of
    which no event is accepted ends at once. Interrupted, the same input is resumed where reading
    stopped.

    Raises:
        SettingsError: no such sync, or several and none is named; no settings for an export.
    """
    name = choose_sync(settings, sync)
    problems = Problems()
    found = _found(paths, problems) if export is None else []
    if export is not None:
        export_settings(settings)
    signals = Signals()
    async with _opened(settings, name, max_wait_s) as deliverer:
        with Reading(deliverer, problems) as reading:
            make_source = partial(_make_source, settings, name, reading, since_ms, until_ms)
            what: Input
            if export is None:
                what = FilesInput(found, deliverer, make_source, reading, max_wait_s=max_wait_s)
            else:
                what = ExportInput(
                    settings,
                    export,
                    deliverer,
                    make_source,
                    reading,
                    selected=_span_of(since_ms, until_ms),
                    max_wait_s=max_wait_s,
                )
            intake = HeldBackIntake(deliverer, settings.forward.max_backlog)
            stalls = Stalls(deliverer, intake)
            end = await _until_stopped(deliverer, what, intake, signals, stalls, max_wait_s)
        counts = await deliverer.end()
        goes_on = deliverer.goes_on
    counts.update(what.counts(), passed_over=reading.skipped, problems=problems.texts())
    _report(counts, as_json=as_json)
    if problems.more:
        complain(problems.more, FAILED)
    if not end.is_settled:
        return _complain_of(end, signals, is_pipe="-" in found)
    return _exit_code(counts, problems, goes_on, strict=strict)


def _exit_code(counts: Mapping[str, Any], problems: Problems, goes_on: str, *, strict: bool) -> int:
    """Return the exit code of a run that came to its end; say what still waits."""
    if counts["pending"]:
        waiting = count(counts["pending"], "event")
        return complain(f"{waiting} not delivered yet, {goes_on}", FAILED)
    if problems.count:
        return FAILED
    dead = counts["dead"] or counts.get("meanwhile", {}).get("dead", 0)
    return DEAD_LETTERED if strict and dead else OK


def _found(paths: Sequence[str], problems: Problems) -> list[str]:
    """Return the files that these paths mean; say where there is none."""
    found = finding.find(paths, problems.unreadable)
    if not found:
        say(f"no files of events in {', '.join(map(finding.shown, paths))}", stderr=True)
    return found


def _make_source(
    settings: Settings,
    sync: str,
    progress: Progress,
    since_ms: int | None,
    until_ms: int | None,
    paths: Sequence[str],
    checkpoints: Mapping[str, str],
) -> LineSource:
    """Return the source that reads these paths on from where the checkpoints are."""
    return LineSource(
        paths,
        sync=sync,
        max_line_bytes=settings.forward.max_line_bytes,
        max_event_bytes=settings.largest_file_event_bytes,
        batch_lines=settings.forward.batch_lines,
        since_ms=since_ms,
        until_ms=until_ms,
        checkpoints=checkpoints,
        progress=progress,
    )


def _span_of(since_ms: int | None, until_ms: int | None) -> str:
    """Return a name for the span of time that a run takes events of; empty: of any time."""
    return "" if since_ms is None and until_ms is None else f"{since_ms}-{until_ms}"


def _complain_of(end: _End, signals: Signals, *, is_pipe: bool) -> int:
    """Say why a run was not settled; return the exit code. ``is_pipe``: it reads standard input."""
    if end.ending is not None:
        return complain(*end.ending)
    code = OF_SIGNAL + signals.first if signals.first else FAILED
    goes_on = "what was read is kept" if is_pipe else "run it again, it goes on from there"
    return complain(f"stopped before the end; {goes_on}", code)


@asynccontextmanager
async def _opened(
    settings: Settings, sync: str, max_wait_s: float | None
) -> AsyncIterator[Deliverer]:
    """Start an engine, or find the daemon that has the data directory.

    Raises:
        DataDirInUse: another process has it, and is no daemon that can be asked.
    """
    async with AsyncExitStack() as stack:
        try:
            engine = await stack.enter_async_context(Engine(settings))
        except DataDirInUse as error:
            client = await _daemon(settings, error, stack)
        else:
            yield EngineBatches(engine, sync, settings.drain_deadline_s)
            return
        daemon = DaemonSync(client, partial(why_not, client, settings), sync, max_wait_s)
        batches = DaemonBatches(daemon, sync)
        await batches.begin()
        say(f"the daemon at {client.address} is handed the events", stderr=True)
        yield batches


async def _daemon(settings: Settings, in_use: DataDirInUse, stack: AsyncExitStack) -> DaemonClient:
    """Find the daemon that has the data directory; raise ``DataDirInUse`` with the remedy."""
    try:
        return await stack.enter_async_context(daemon_of(settings, in_use))
    except DataDirInUse as error:
        raise DataDirInUse(f"{error}; {REMEDY}") from None


class _End(msgspec.Struct):
    """How a run has ended; where it is not settled, a signal or the time limit came first."""

    is_settled: bool = False
    ending: Ending | None = None


async def _until_stopped(
    deliverer: Deliverer,
    what: Input,
    intake: Intake,
    signals: Signals,
    stalls: Stalls,
    max_wait_s: float | None,
) -> _End:
    """Read the input, then wait until it is settled; not after an early end of reading."""
    end = _End()
    async with anyio.create_task_group() as tasks:

        async def give_up() -> None:
            await stalls.watch(max_wait_s)
            tasks.cancel_scope.cancel()

        async def work() -> None:
            async with anyio.create_task_group() as meanwhile:
                meanwhile.start_soon(give_up)
                end.ending = await what.read(intake)
                meanwhile.cancel_scope.cancel()
            stalls.over()
            if end.ending is None:
                with anyio.move_on_after(max_wait_s):
                    await _settle_aloud(deliverer)
                end.is_settled = True
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        await signals.stop.wait()
        tasks.cancel_scope.cancel()
    return end


async def _settle_aloud(deliverer: Deliverer) -> None:
    """Wait until all is settled; print the reasons when it takes a while."""
    with anyio.move_on_after(SILENT_S):
        await deliverer.settled()
        return
    for line in await deliverer.why_waiting():
        say(line, stderr=True)
    await deliverer.settled()


def _report(counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(counts)
        return
    files_read = "1 file" if counts["files"] == 1 else f"{counts['files']} files"
    rows = [
        (counts["received"], f"received from {files_read}"),
        (counts["passed_over"], "passed over: of another time"),
        (counts.get("accepted", 0), "accepted"),
        (counts["delivered"], "delivered"),
        *((count, f"dropped: {reason}") for reason, count in counts["dropped"].items()),
        *((count, f"dead letters: {reason}") for reason, count in counts["dead_by_reason"].items()),
        (counts["pending"], "waiting"),
        *((count, f"changed: {reason}") for reason, count in counts["adjusted"].items()),
        *((count, f"hours {what}") for what, count in counts.get("hours", {}).items()),
    ]
    always = ("received", "delivered")
    shown = [
        (f"{count:,}", what)
        for count, what in rows
        if count or (count is not None and what.startswith(always))
    ]
    print_table(shown, right=(0,), stderr=True)
    if "meanwhile" in counts:
        say(f"meanwhile, with the daemon's other events: {_said(counts['meanwhile'])}", stderr=True)


def _said(counts: Mapping[str, Any]) -> str:
    """Return the change of a sync's counters in half a sentence."""
    said = [f"{counts['delivered']:,} delivered"]
    said += [f"{n:,} dropped ({reason})" for reason, n in counts["dropped"].items()]
    said += [f"{count(n, 'dead letter')} ({why})" for why, n in counts["dead_by_reason"].items()]
    return ", ".join(said)
