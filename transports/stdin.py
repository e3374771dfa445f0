"""The line source: NDJSON from a pipe or from files, HTTP V2 and Export spelling mixed.

A chunk is handed over as soon as it is there, so a pipe that trickles is as prompt as a file is
fast. A line that cannot be used goes along as a ``BadEvent`` with its number and stops nothing.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from transports import Batch, Intake, Receipt, Ticket
from transports.amplitude import BadEvent, Head, decode_head, mend_surrogates
from transports.errors import Refused

CHUNK_BYTES: Final = 256 * 1024
KEPT_BYTES: Final = 4096
"""How much of a line that is too long is kept, for whoever looks for it."""

TICKETS: Final = 16
"""Batches that may be on their way to the disk while the next ones are read."""

REFUSED_NAP_S: Final = 0.25
BOM: Final = b"\xef\xbb\xbf"


class Lines:
    """Cuts chunks into numbered lines; remembers only the line that is not finished yet."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._rest = b""
        self._skipping = False
        self.number = 0

    def cut(self, chunk: bytes) -> Iterator[tuple[int, bytes, bool]]:
        """Yield (number, line, whole?) for each line that ends in this chunk, but empty ones."""
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            yield from self._end(piece)
        self._keep(pieces[-1])

    def end(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield what is left when the input ends without a line break."""
        if self._rest:
            yield from self._end(b"")

    def _keep(self, piece: bytes) -> None:
        if not self._skipping:
            self._rest += piece
        if len(self._rest) > self._max:
            self._rest, self._skipping = self._rest[:KEPT_BYTES], True

    def _end(self, piece: bytes) -> Iterator[tuple[int, bytes, bool]]:
        self._keep(piece)
        self.number += 1
        line = self._rest.strip().removeprefix(BOM if self.number == 1 else b"")
        whole = not self._skipping
        self._rest, self._skipping = b"", False
        if line:
            yield self.number, line, whole


class LineSource:
    """Reads files one after the other, ``-`` being standard input; ends when all is on disk."""

    def __init__(
        self,
        paths: Sequence[str] = ("-",),
        *,
        sync: str | None = None,
        max_line_bytes: int = 1_048_576,
        batch_lines: int = 500,
        progress: Callable[[int, Receipt | None], None] = lambda read_bytes, receipt: None,
    ) -> None:
        """``sync`` says where the events go; ``progress`` hears of bytes read and of receipts."""
        self._paths = paths
        self._sync = sync
        self._max_line_bytes = max_line_bytes
        self._batch_lines = batch_lines
        self._progress = progress
        self._waiting: deque[tuple[Ticket, Batch]] = deque()

    async def run(self, intake: Intake) -> None:
        """Read everything; return when all of it is on disk.

        Raises:
            OSError: a file cannot be read; what was read before is stored.
        """
        try:
            for path in self._paths:
                await self._read(path, intake)
        finally:
            while self._waiting:
                await self._collect(intake)

    async def _read(self, path: str, intake: Intake) -> None:
        descriptor = 0 if path == "-" else os.open(path, os.O_RDONLY)
        origin = "stdin" if path == "-" else Path(path).name
        lines = Lines(self._max_line_bytes)
        try:
            while chunk := await _read_chunk(descriptor):
                self._progress(len(chunk), None)
                await self._hand_over(list(lines.cut(chunk)), origin, intake)
            await self._hand_over(list(lines.end()), origin, intake)
        finally:
            if descriptor:
                os.close(descriptor)

    async def _hand_over(
        self, lines: list[tuple[int, bytes, bool]], origin: str, intake: Intake
    ) -> None:
        for start in range(0, len(lines), self._batch_lines):
            batch = self._batch(lines[start : start + self._batch_lines], origin)
            self._waiting.append((await intake.send(batch), batch))
            while len(self._waiting) >= TICKETS:
                await self._collect(intake)

    def _batch(self, lines: list[tuple[int, bytes, bool]], origin: str) -> Batch:
        decoded = [self._decode(line, whole) for _, line, whole in lines]
        return Batch(
            [head for head, _ in decoded],
            [raw for _, raw in decoded],
            sync=self._sync,
            derive_ids=True,
            origin=origin,
            lines=[number for number, _, _ in lines],
        )

    def _decode(self, line: bytes, whole: bool) -> tuple[Head | BadEvent, bytes]:
        if not whole:
            return BadEvent("too_large", "", f"longer than {self._max_line_bytes} bytes"), line
        head = decode_head(line)
        if isinstance(head, BadEvent) and head.reason == "invalid_json":
            mended = mend_surrogates(line)
            if mended != line:
                return decode_head(mended), mended
        return head, line

    async def _collect(self, intake: Intake) -> None:
        """Wait for the oldest batch. Refused, it and all behind it are sent again, in order."""
        ticket, _ = self._waiting[0]
        try:
            receipt = await ticket.wait()
        except Refused as error:
            if error.reason == "draining":
                raise
            await self._send_again(intake)
        else:
            self._waiting.popleft()
            self._progress(0, receipt)

    async def _send_again(self, intake: Intake) -> None:
        refused: list[Batch] = []
        for ticket, batch in self._waiting:
            try:
                self._progress(0, await ticket.wait())
            except Refused:
                refused.append(batch)
        self._waiting.clear()
        await anyio.sleep(REFUSED_NAP_S)
        for batch in refused:
            self._waiting.append((await intake.send(batch), batch))


async def _read_chunk(descriptor: int) -> bytes:
    """Read what is there, waiting for a first byte; b"" at the end.

    A pipe may stay silent for ever, and a thread that waits for it could not be cancelled.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return await anyio.to_thread.run_sync(os.read, descriptor, CHUNK_BYTES)
    await anyio.wait_readable(descriptor)
    return os.read(descriptor, CHUNK_BYTES)
