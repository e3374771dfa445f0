"""The line source: events from a pipe, from files and folders; all of Amplitude's dialects, mixed.

What comes is handed over as soon as it is there, so a pipe that trickles is as prompt as a file is
fast. A line that cannot be used goes along as a ``BadEvent`` with its number and stops nothing.

Files can be read again, so they are resumed: with each batch goes how far all that was read before
is on disk by now (``Batch.checkpoints``), and whoever starts the source gives it the checkpoints
that are kept. What was read behind a checkpoint is read twice, and known again. A checkpoint says
too what was wrong with a file: it is said in every run.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from amplitude_intercom.transports import files
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES, BadEvent, Head, Time
from amplitude_intercom.transports.amplitude_heads import read_head
from amplitude_intercom.transports.amplitude_times import parse_time
from amplitude_intercom.transports.bounds import EventBytes, LineBytes, Positive, PositiveSeconds
from amplitude_intercom.transports.contract import Batch, Intake, Receipt, Ticket
from amplitude_intercom.transports.errors import BadFile, Refused
from amplitude_intercom.transports.files import Chunk
from amplitude_intercom.transports.lines import Line, Plain, Position
from amplitude_intercom.transports.packing import Stream
from amplitude_intercom.transports.shapes import Cutter

TICKETS: Final = 16
"""Batches that may be on their way to the disk while the next ones are read."""

SLICE_BYTES: Final = 32_768
"""Text that is cut at once, where lines need a look: some milliseconds, whatever it holds."""

MAX_PROBLEMS: Final = 20
"""What is remembered of one file to be said again; an archive can have many bad members."""

_log = logging.getLogger(__name__)


class Progress:
    """Hears how reading goes; this one does not care, but for what goes wrong."""

    def read(self, count: int) -> None:
        """So many more bytes of the files were read."""

    def stored(self, receipt: Receipt) -> None:
        """A batch is on disk."""

    def passed_over(self, count: int) -> None:
        """So many events are of a time that was not asked for."""

    def bad_file(self, error: BadFile) -> None:
        """A file is not whole, or holds no events: the next one is read."""
        _log.warning("%s", error)

    def unreadable(self, error: OSError) -> None:
        """A file cannot be read; unless this raises, the next one is."""
        raise error


def decode_line(line: Line, max_bytes: int) -> tuple[Head | BadEvent, bytes]:
    """Return a line's head and its bytes, mended where that helps."""
    if not line.whole:
        longer = f"longer than {max_bytes} bytes"
        return BadEvent("too_large", "", longer, digest=line.digest), line.text
    return read_head(line.text)


class _ClientTime(msgspec.Struct, gc=False):
    client_event_time: Time | None = None


_client_time = msgspec.json.Decoder(_ClientTime)


def time_of(head: Head, raw: bytes) -> int | None:
    """Return an event's own time in Unix milliseconds, as delivery reads it; None: it has none.

    Raises:
        ValueError: what is written there is no time.
    """
    written = head.written_time
    if written is None:
        written = _client_time.decode(raw).client_event_time
    return None if written is None else parse_time(written)


class _Sent(msgspec.Struct):
    """A batch that waits for its receipt, and how far its file is read when it is on disk."""

    ticket: Ticket
    batch: Batch
    file: str
    position: Position


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
        """``sync`` says where the events go; ``checkpoints`` is what earlier batches left.

        A line that is longer than ``max_line_bytes``, or an event than ``max_event_bytes``, is bad.

        Only events from ``since_ms`` on and before ``until_ms`` are handed over (Unix
        milliseconds); one without a time of its own always is. ``refused_nap_s`` is the pause
        before what was refused is sent again.
        """
        self._paths = paths
        self._sync = sync
        self._max_bytes = min(max_line_bytes, max_event_bytes)
        self._batch_lines = batch_lines
        self._since_ms = since_ms
        self._until_ms = until_ms
        self._checkpoints = dict(checkpoints or {})
        self._progress = progress or Progress()
        self._refused_nap_s = refused_nap_s
        self._waiting: deque[_Sent] = deque()
        self._reached: dict[str, Position] = {}
        self.files: list[str] = []
        """The files that were read, by the names of their checkpoints."""

    async def run(self, intake: Intake) -> None:
        """Read everything; return when all of it is on disk.

        Raises:
            OSError: a file cannot be read, and ``progress`` wants it so; what was read before is
                stored.
        """
        try:
            for path in files.find(self._paths, self._progress.unreadable):
                try:
                    await self._read(path, intake)
                except OSError as error:
                    self._progress.unreadable(error)
        finally:
            while self._waiting:
                await self._collect(intake)

    # --- reading --------------------------------------------------------------------------

    async def _read(self, path: str, intake: Intake) -> None:
        if path == "-":
            if sys.stdin is None:  # another file may have its number
                raise OSError(errno.EBADF, "it is closed", "stdin")
            await self._take_in(_read_pipe(0, "stdin"), "stdin", "", Position(), intake)
            return
        if not stat.S_ISREG(os.stat(path).st_mode):
            await self._take_in(_read_named_pipe(path), path, "", Position(), intake)
            return
        file = f"{files.identity(path)} {self._since_ms}-{self._until_ms}"
        self.files.append(file)
        start = self._start_of(file)
        if start.done:
            self._progress.read(os.stat(path).st_size)
            self._say_again(path, start)
        else:
            await self._take_in(_in_thread(files.read(path, start)), path, file, start, intake)

    def _start_of(self, file: str) -> Position:
        try:
            return msgspec.json.decode(self._checkpoints.get(file, "{}"), type=Position)
        except msgspec.MsgspecError:
            return Position()

    def _say_again(self, path: str, start: Position) -> list[tuple[str, str]]:
        for member, problem in start.problems:
            self._progress.bad_file(files.bad_file(path, member, problem))
        return list(start.problems)

    async def _take_in(
        self, chunks: AsyncGenerator[Chunk], path: str, file: str, start: Position, intake: Intake
    ) -> None:
        """Hand over the events of a file; what is wrong with it is said, and the rest read."""
        position, problems = start, self._say_again(path, start)
        cutter: Cutter | None = None
        async with aclosing(chunks):
            async for member, text, read_bytes, problem in chunks:
                self._progress.read(read_bytes)
                if cutter is None:
                    cutter = Cutter(self._max_bytes, start if member == start.member else None)
                    start = Position() if member == start.member else start
                for cut in self._cut(cutter, text, path, member):
                    await anyio.lowlevel.checkpoint()
                    if cut is not None:
                        batch, reached = cut
                        position = _with_problems(reached, problems)
                        await self._hand_over(batch, file, position, intake)
                ends = not text or (cutter.refused and not member)
                problem = problem or cutter.problem
                if ends and problem:
                    problems.append((member, problem))
                    self._progress.bad_file(files.bad_file(path, member, problem))
                if ends and text:
                    break
                cutter = None if ends else cutter
        self._finished(file, _with_problems(position, problems))

    def _cut(
        self, cutter: Cutter, text: bytes, path: str, member: str
    ) -> Iterator[tuple[Batch, Position] | None]:
        """Yield what ends in this text, or None: others have a turn. Empty, it is the end of all.

        Lines that need a look are cut in slices: a few kilobytes can hold thousands of values.
        """
        origin = ":".join(map(files.shown, filter(None, (Path(path).name, member))))
        plain = cutter.cut_plain(text) if text and not self._is_choosy else None
        if plain is not None:
            yield from self._plain_batches(plain, origin, member)
            return
        lines = [] if text else cutter.finish()
        for at in range(0, len(text), SLICE_BYTES):
            lines += cutter.cut(text[at : at + SLICE_BYTES])
            full = len(lines) - len(lines) % self._batch_lines
            yield from self._batches(lines[:full], origin, member)
            del lines[:full]
            yield None
        yield from self._batches(lines, origin, member)

    async def _hand_over(self, batch: Batch, file: str, position: Position, intake: Intake) -> None:
        while self._waiting and (len(self._waiting) >= TICKETS or self._waiting[0].ticket.settled):
            await self._collect(intake)
        if batch.raws:
            await self._send(_Sent(Ticket(), batch, file, position), intake)

    def _finished(self, file: str, position: Position) -> None:
        """Note that nothing of a file is left to be read, once its last batch is on disk."""
        done = msgspec.structs.replace(position, done=True)
        if self._waiting and self._waiting[-1].file == file:
            self._waiting[-1].position = done
        else:
            self._reach(file, done)

    def _reach(self, file: str, position: Position) -> None:
        if file:
            self._reached[file] = position

    # --- batches --------------------------------------------------------------------------

    @property
    def _is_choosy(self) -> bool:
        return self._since_ms is not None or self._until_ms is not None

    def _plain_batches(
        self, plain: Plain, origin: str, member: str
    ) -> Iterator[tuple[Batch, Position]]:
        """Yield batches that nobody has looked into."""
        numbers, end = range(plain.first, plain.first + len(plain.texts)), plain.begin
        for start in range(0, len(plain.texts), self._batch_lines):
            part = slice(start, start + self._batch_lines)
            end += plain.length(part)
            position = Position(member, numbers[part][-1], end)
            yield self._batch(None, plain.texts[part], numbers[part], origin), position

    def _batches(
        self, lines: Sequence[Line], origin: str, member: str
    ) -> Iterator[tuple[Batch, Position]]:
        for start in range(0, len(lines), self._batch_lines):
            some = lines[start : start + self._batch_lines]
            last = some[-1]
            position = Position(member, last.number if last.end else 0, last.end)
            decoded = [(line.number, *decode_line(line, self._max_bytes)) for line in some]
            if self._is_choosy:
                wanted = [line for line in decoded if self._is_wanted(*line[1:])]
                self._progress.passed_over(len(decoded) - len(wanted))
                decoded = wanted
            numbers = [number for number, _, _ in decoded]
            heads, raws = [head for _, head, _ in decoded], [raw for _, _, raw in decoded]
            yield self._batch(heads, raws, numbers, origin), position

    def _batch(
        self,
        heads: Sequence[Head | BadEvent] | None,
        raws: Sequence[bytes],
        numbers: Sequence[int],
        origin: str,
    ) -> Batch:
        return Batch(heads, raws, sync=self._sync, derive_ids=True, origin=origin, lines=numbers)

    def _is_wanted(self, head: Head | BadEvent, raw: bytes) -> bool:
        """Whether an event is of the time that is asked for; what has none is not hidden."""
        try:
            time_ms = None if isinstance(head, BadEvent) else time_of(head, raw)
        except (ValueError, msgspec.MsgspecError):
            time_ms = None
        if time_ms is None:
            return True
        since_ms, until_ms = self._since_ms, self._until_ms
        return (since_ms is None or time_ms >= since_ms) and (
            until_ms is None or time_ms < until_ms
        )

    async def _send(self, sent: _Sent, intake: Intake) -> None:
        checkpoints = {file: msgspec.json.encode(at).decode() for file, at in self._reached.items()}
        sent.batch.checkpoints = {**sent.batch.checkpoints, **checkpoints}
        self._reached.clear()
        while True:
            try:
                sent.ticket = await intake.send(sent.batch)
            except Refused as error:
                if error.reason == "draining":
                    raise
                await anyio.sleep(self._refused_nap_s)
            else:
                self._waiting.append(sent)
                return

    async def _collect(self, intake: Intake) -> None:
        """Wait for the oldest batch. Refused, it and what else is refused are sent again, in order.

        While the spool is full, all behind it are refused too. Behind a single failed commit some
        may be stored: then they come first.
        """
        oldest = self._waiting[0]
        try:
            receipt = await oldest.ticket.wait()
        except Refused as error:
            if error.reason == "draining":
                raise
            await self._send_again(intake)
        else:
            self._waiting.popleft()
            self._reach(oldest.file, oldest.position)
            self._progress.stored(receipt)

    async def _send_again(self, intake: Intake) -> None:
        refused: list[_Sent] = []
        for sent in self._waiting:
            try:
                self._progress.stored(await sent.ticket.wait())
            except Refused:
                refused.append(sent)
        self._waiting.clear()
        await anyio.sleep(self._refused_nap_s)
        for sent in refused:
            await self._send(sent, intake)


def _with_problems(position: Position, problems: list[tuple[str, str]]) -> Position:
    return msgspec.structs.replace(position, problems=problems[:MAX_PROBLEMS])


# --- chunks -------------------------------------------------------------------------------


async def _in_thread(chunks: Iterator[Chunk]) -> AsyncGenerator[Chunk]:
    """Yield what a blocking reader yields; a thread reads the next while one is worked on."""
    loop = asyncio.get_running_loop()
    ahead = loop.run_in_executor(None, next, chunks, None)
    try:
        while (chunk := await ahead) is not None:
            ahead = loop.run_in_executor(None, next, chunks, None)
            yield chunk
    finally:
        await asyncio.wait([ahead])
        if not ahead.cancelled():
            ahead.exception()  # nobody asks for what lies behind the end


async def _read_named_pipe(path: str) -> AsyncGenerator[Chunk]:
    """Yield what comes through a pipe that has a name; one that nobody writes to yet is awaited."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with aclosing(_read_pipe(descriptor, path)) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        os.close(descriptor)


async def _read_pipe(descriptor: int, name: str) -> AsyncGenerator[Chunk]:
    """Yield what comes through a pipe, unpacked where it is packed."""
    stream, problem = Stream(), ""
    try:
        while block := await _read_block(descriptor, name):
            for text in stream.feed(block):
                yield Chunk("", text, len(block))
        for text in stream.finish():
            yield Chunk("", text, len(text))
        if stream.archive is not None:
            inside = files.read_archive(stream.archive, Position(), layers=stream.layers)
            async with aclosing(_in_thread(inside)) as chunks:
                async for chunk in chunks:
                    yield chunk
    except Exception as error:  # the libraries raise almost anything for what is damaged
        problem = files.problem_of(error)
    finally:
        if stream.archive is not None:
            stream.archive.close()
    yield Chunk("", b"", 0, problem)


async def _read_block(descriptor: int, name: str) -> bytes:
    """Read what is there, waiting for a first byte; b"" at the end.

    A pipe may stay silent for ever, and a thread that waits for it could not be cancelled.

    Raises:
        OSError: it cannot be read; the error names it.
    """
    try:
        if _can_be_silent(descriptor):
            await anyio.wait_readable(descriptor)
            return os.read(descriptor, files.CHUNK_BYTES)
        return await anyio.to_thread.run_sync(os.read, descriptor, files.CHUNK_BYTES)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _can_be_silent(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
