"""The line source: events from a pipe, from files and folders; all of Amplitude's dialects, mixed.

Rules
=====
1. Events are handed over as soon as they are there: a pipe that trickles is as prompt as a file is
   fast. ``handover`` keeps the order, and sends again after a refusal.
2. A line that cannot be used is handed over as a ``BadEvent`` with its number, and stops nothing.
3. Files are resumed. Each batch brings checkpoints (``Batch.checkpoints``): how far the events read
   before it are on disk. The next start of the source is given the kept checkpoints. Events behind
   a checkpoint are read twice, and their derived ids make them duplicates. Pipes have none.
4. A checkpoint keeps the problems of its file, so that every run reports them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio.lowlevel
import msgspec

from amplitude_intercom.transports import files, finding
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.bounds import EventBytes, LineBytes, Positive, PositiveSeconds
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.files import Chunk
from amplitude_intercom.transports.handover import Handover
from amplitude_intercom.transports.line_batches import BatchCutter, Period
from amplitude_intercom.transports.lines import FilePosition
from amplitude_intercom.transports.pipes import read_in_thread, read_named_pipe, read_pipe
from amplitude_intercom.transports.progress import Progress
from amplitude_intercom.transports.shapes import Cutter

MAX_PROBLEMS: Final = 20
"""Problems of one file that a checkpoint keeps; an archive can have many damaged members."""


class LineSource:
    """Reads files and folders one after the other, ``-`` being standard input.

    Ends when all is on disk.
    """

    def __init__(
        self,
        paths: Sequence[str] = ("-",),
        *,
        sync: str | None = None,
        max_line_bytes: LineBytes = 1_048_576,
        max_event_bytes: EventBytes = MAX_EVENT_BYTES,
        batch_lines: Positive = 2_000,
        since_ms: int | None = None,
        until_ms: int | None = None,
        checkpoints: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        refused_nap_s: PositiveSeconds = 0.25,
    ) -> None:
        """``sync`` takes the events; ``checkpoints`` are those that earlier batches left.

        A line that is longer than ``max_line_bytes``, or an event than ``max_event_bytes``, is bad.

        Only events from ``since_ms`` on and before ``until_ms`` are handed over (Unix
        milliseconds), and all events without a time. ``refused_nap_s`` is the pause before a
        refused batch is sent again.
        """
        self._paths = paths
        self._max_bytes = min(max_line_bytes, max_event_bytes)
        self._period = Period(since_ms, until_ms)
        self._batches = BatchCutter(sync, self._max_bytes, batch_lines, self._period)
        self._checkpoints = dict(checkpoints or {})
        self._progress = progress or Progress()
        self._refused_nap_s = refused_nap_s
        self.files: list[str] = []
        """The files that were read, by the names of their checkpoints."""

    async def run(self, intake: Intake) -> None:
        """Read everything; return when all of it is on disk.

        Raises:
            OSError: a file cannot be read, and ``progress`` raises it; all events read before are
                stored.
            Refused: the engine ends.
        """
        # A handover for each run: its checkpoints belong to this intake.
        handover = Handover(intake, self._progress, self._refused_nap_s)
        try:
            for path in finding.find(self._paths, self._progress.unreadable):
                try:
                    await self._read(path, handover)
                except OSError as error:
                    self._progress.unreadable(error)
        finally:
            # Also after an error: the events read before it are confirmed, or sent again.
            await handover.drain()

    async def _read(self, path: str, handover: Handover) -> None:
        if path == "-":
            if sys.stdin is None:  # then descriptor 0 may be any file that was opened later
                raise OSError(errno.EBADF, "it is closed", "stdin")
            await self._hand_over(read_pipe(0, "stdin"), "stdin", "", FilePosition(), handover)
            return
        if not stat.S_ISREG(os.stat(path).st_mode):
            await self._hand_over(read_named_pipe(path), path, "", FilePosition(), handover)
            return
        # The period is part of the name: read for another one, a file has other events to bring.
        file = f"{finding.identity(path)} {self._period.since_ms}-{self._period.until_ms}"
        self.files.append(file)
        start = self._start_of(file)
        # Nothing to read, but progress counts its bytes and its problems are reported.
        if start.done:
            self._progress.read(os.stat(path).st_size)
            self._report_again(path, start)
        else:
            chunks = read_in_thread(files.read(path, start))
            await self._hand_over(chunks, path, file, start, handover)

    def _start_of(self, file: str) -> FilePosition:
        try:
            return msgspec.json.decode(self._checkpoints.get(file, "{}"), type=FilePosition)
        except msgspec.MsgspecError:
            return FilePosition()  # read again from the start: duplicates do no harm

    def _report_again(self, path: str, start: FilePosition) -> list[tuple[str, str]]:
        for member, problem in start.problems:
            self._progress.bad_file(files.bad_file(path, member, problem))
        return list(start.problems)

    async def _hand_over(
        self,
        chunks: AsyncGenerator[Chunk],
        path: str,
        file: str,
        start: FilePosition,
        handover: Handover,
    ) -> None:
        """Hand over the events of a file. Problems are reported, and the rest is read."""
        position, problems = start, self._report_again(path, start)
        cutter: Cutter | None = None
        async with aclosing(chunks):
            async for member, text, read_bytes, problem in chunks:
                self._progress.read(read_bytes)
                if cutter is None:
                    # Only the member that the checkpoint names is entered in its middle.
                    cutter = Cutter(self._max_bytes, start if member == start.member else None)
                    start = FilePosition() if member == start.member else start
                origin = ":".join(map(finding.shown, filter(None, (Path(path).name, member))))
                for cut in self._batches.cut(cutter, text, origin, member):
                    # Cutting does not wait, so other tasks get their turn here.
                    await anyio.lowlevel.checkpoint()
                    if cut is not None:
                        position = _with_problems(cut.position, problems)
                        if cut.passed_over:
                            self._progress.passed_over(cut.passed_over)
                        await handover.send(cut.batch, file, position)
                ends = not text or (cutter.refused and not member)
                problem = problem or cutter.problem
                if ends and problem:
                    problems.append((member, problem))
                    self._progress.bad_file(files.bad_file(path, member, problem))
                if ends and text:
                    break  # a text without events, not in an archive: no use in reading on
                cutter = None if ends else cutter
        handover.finished(file, _with_problems(position, problems))


def _with_problems(position: FilePosition, problems: list[tuple[str, str]]) -> FilePosition:
    return msgspec.structs.replace(position, problems=problems[:MAX_PROBLEMS])
