"""Batches of a source that are sent to the engine and not yet known to be on disk.

Rules
=====
1. At most ``TICKETS`` batches wait for their receipt while the next ones are read.
2. A batch brings the checkpoints of the batches before it that are on disk. So a checkpoint never
   says more than the disk, and costs no commit of its own.
3. A refused batch is sent again, with all later batches that were refused as well, in their order.
   ``draining`` is final: the engine ends.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import anyio
import msgspec

from amplitude_intercom.transports.contract import Batch, Intake, Ticket
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.lines import FilePosition
from amplitude_intercom.transports.progress import Progress
from amplitude_intercom.transports.reasons import RefusalReason

TICKETS: Final = 16
"""Batches that may be on their way to the disk while the next ones are read."""


class _SentBatch(msgspec.Struct):
    """A batch that waits for its receipt, and the position that its file has reached with it."""

    ticket: Ticket
    batch: Batch
    file: str
    position: FilePosition


class Handover:
    """Sends batches in order, and notes the position of each file that is on disk."""

    def __init__(self, intake: Intake, progress: Progress, refused_nap_s: float) -> None:
        """``refused_nap_s``: the pause before a refused batch is sent again."""
        self._intake = intake
        self._progress = progress
        self._refused_nap_s = refused_nap_s
        self._waiting: deque[_SentBatch] = deque()
        self._reached: dict[str, FilePosition] = {}

    async def send(self, batch: Batch, file: str, position: FilePosition) -> None:
        """Send a batch of a file. Waits while too many are on their way.

        Raises:
            Refused: the engine ends.
            UnknownSync: the batch is for a sync that is not there.
        """
        # Receipts that are there are taken first, so that their checkpoints go with this batch.
        while self._waiting and (len(self._waiting) >= TICKETS or self._waiting[0].ticket.settled):
            await self._collect()
        if batch.raws:
            await self._send(_SentBatch(Ticket(), batch, file, position))

    def finished(self, file: str, position: FilePosition) -> None:
        """Note that a file has been read to its end."""
        done = msgspec.structs.replace(position, done=True)
        if self._waiting and self._waiting[-1].file == file:
            # Not before its last batch is on disk: else a restart would skip that batch.
            self._waiting[-1].position = done
        else:
            self._reach(file, done)

    async def drain(self) -> None:
        """Wait until all batches are on disk.

        Raises:
            Refused: the engine ends.
        """
        while self._waiting:
            await self._collect()

    def _reach(self, file: str, position: FilePosition) -> None:
        if file:  # a pipe has no name to be known by again
            self._reached[file] = position

    async def _send(self, sent: _SentBatch) -> None:
        checkpoints = {file: msgspec.json.encode(at).decode() for file, at in self._reached.items()}
        # A batch that is sent again keeps the checkpoints that it had: they are on no disk yet.
        sent.batch.checkpoints = {**sent.batch.checkpoints, **checkpoints}
        self._reached.clear()
        while True:
            try:
                sent.ticket = await self._intake.send(sent.batch)
            except Refused as error:
                if error.reason == RefusalReason.DRAINING:
                    raise
                await anyio.sleep(self._refused_nap_s)
            else:
                self._waiting.append(sent)
                return

    async def _collect(self) -> None:
        """Wait for the oldest batch; if it is refused, send all refused batches again."""
        oldest = self._waiting[0]
        try:
            receipt = await oldest.ticket.wait()
        except Refused as error:
            if error.reason == RefusalReason.DRAINING:
                raise
            await self._send_again()
        else:
            self._waiting.popleft()
            self._reach(oldest.file, oldest.position)
            self._progress.stored(receipt)

    async def _send_again(self) -> None:
        # While the spool is full, all batches behind the oldest are refused too. Behind a single
        # failed commit some may be stored: these then come before the ones that are sent again.
        refused: list[_SentBatch] = []
        for sent in self._waiting:
            try:
                self._progress.stored(await sent.ticket.wait())
            except Refused:
                refused.append(sent)
        self._waiting.clear()
        await anyio.sleep(self._refused_nap_s)
        for sent in refused:
            await self._send(sent)
