"""An actor: one task, one inbox, one outbox, one method to write, and a barrier round each record.

Rules
=====
1. An actor handles what comes in, in order, until its inbox ends; then it closes its outbox. So a
   pipeline drains from its source down. An actor never closes what it reads: an actor upstream that
   fails must not be woken by a broken channel before it is cancelled.
2. A fault in the work on one record costs that record: ``attempt`` logs it and settles the record
   as a dead letter ``internal``. The records before and behind it do not notice.
3. A fault that belongs to no record leaves ``run``. The pipeline stops, and starts again later
   (``engine.supervision``); what was under way is still in the spool.
4. An actor keeps no reference to what it has handled: an item may be megabytes.
5. What takes time by the byte is done in ``runs`` of bounded bytes, and other tasks have their turn
   in between: one large request must not hold up everybody else's answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from amplitude_intercom.engine.envelope import Record
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.faults import internal_failure

In = TypeVar("In")
Out = TypeVar("Out")

RUN_BYTES: Final = 512 * 1024
"""Bytes of events that are worked on in one go: some 5 ms where all of them are decoded."""

Bury = Callable[[Record, Failure], Awaitable[None]]


class Actor(ABC, Generic[In, Out]):
    """See the module's docstring."""

    def __init__(
        self,
        outbox: MemoryObjectSendStream[Out] | None = None,
        bury: Bury | None = None,
    ) -> None:
        """``bury`` settles a record as a dead letter; an actor without it uses no ``attempt``."""
        self._outbox = outbox
        self._bury = bury

    async def run(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends. Cancelled, the item in hand is not finished."""
        try:
            while await self._handle_next(inbox):
                pass
        finally:
            if self._outbox is not None:
                self._outbox.close()

    async def _handle_next(self, inbox: MemoryObjectReceiveStream[In]) -> bool:
        try:
            item = await inbox.receive()
        except anyio.EndOfStream:
            return False
        await self.handle(item)
        return True

    @abstractmethod
    async def handle(self, item: In) -> None:
        """Deal with one item; may wait, which holds up those behind it."""

    async def attempt(self, record: Record, work: Awaitable[None]) -> bool:
        """Await the work on one record; what it did not foresee costs this record alone.

        Returns whether the work was done.
        """
        try:
            await work
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise  # the actor behind has gone, which is no record's fault
        except Exception as fault:
            assert self._bury is not None
            await self._bury(record, internal_failure(fault, record=record.id))
            return False
        return True

    async def pass_on(self, item: Out) -> None:
        """Send to the outbox; waits while it is full."""
        if self._outbox is None:
            return
        try:
            self._outbox.send_nowait(item)  # spares a turn of the loop where somebody waits for it
        except anyio.WouldBlock:
            await self._outbox.send(item)


def runs(sizes: Sequence[int]) -> Sequence[range]:
    """Return the indexes of things in runs of ``RUN_BYTES``, and of one thing at least.

    Most often there is one run, and finding that out costs a sum.
    """
    if sum(sizes) <= RUN_BYTES:
        return (range(len(sizes)),)
    found = []
    start, left = 0, RUN_BYTES
    for index, size in enumerate(sizes):
        if left < size and start < index:
            found.append(range(start, index))
            start, left = index, RUN_BYTES
        left -= size
    found.append(range(start, len(sizes)))
    return found
