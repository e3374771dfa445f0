"""An actor: what is done with each item of an inbox, by one task or by several workers.

Rules
=====
1. An actor handles what comes in, in order, until its inbox ends; then it closes its outbox. So a
   pipeline drains from its source down. An actor never closes what it reads: an actor upstream that
   fails must not be woken by a broken channel before it is cancelled.
2. Several workers may run one actor on one inbox (``Workers``): an actor keeps nothing between two
   items. They are started when something waits and none is idle; the last closes the outbox.
3. A fault in the work on one record costs that record, and never its neighbours.
4. A fault that belongs to no record leaves ``run``. The pipeline stops, and starts again later
   (``engine.supervision``); what was under way is still in the spool.
5. An actor keeps no reference to what it has handled: an item may be megabytes.
6. What takes time by the byte is done in ``runs`` of bounded bytes, and other tasks have their turn
   in between: one large request must not hold up everybody else's answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream

In = TypeVar("In")
Out = TypeVar("Out")
Sent = TypeVar("Sent", contravariant=True)

RUN_BYTES: Final = 512 * 1024
"""Bytes of events that are worked on in one go: some 5 ms where all of them are decoded."""


class Outbox(Protocol[Sent]):
    """Where an actor sends what it has made: a channel, or workers."""

    def send_nowait(self, item: Sent) -> None:
        """Send; ``anyio.WouldBlock`` where there is no free slot."""

    async def send(self, item: Sent) -> None:
        """Send; waits while there is no free slot."""

    def close(self) -> None:
        """Say that nothing more comes."""


class Actor(ABC, Generic[In, Out]):
    """See the module's docstring."""

    def __init__(self, outbox: Outbox[Out] | None = None) -> None:
        self._outbox = outbox

    async def run(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends, then close the outbox. Cancelled, the item in hand is
        not finished."""
        try:
            await self.work(inbox)
        finally:
            self.end()

    async def work(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends, beside others that do."""
        while await self._handle_next(inbox):
            pass

    def end(self) -> None:
        """Close the outbox."""
        if self._outbox is not None:
            self._outbox.close()

    async def _handle_next(self, inbox: MemoryObjectReceiveStream[In]) -> bool:
        try:
            item = await inbox.receive()
        except anyio.EndOfStream:
            return False
        await self.handle(item)  # the item is not kept while the next one is waited for
        return True

    @abstractmethod
    async def handle(self, item: In) -> None:
        """Deal with one item; may wait, which holds up those behind it, or this worker alone."""

    async def pass_on(self, item: Out) -> None:
        """Send to the outbox; waits while it is full."""
        if self._outbox is not None:
            await hand_over(self._outbox, item)


async def hand_over(outbox: Outbox[Sent], item: Sent) -> None:
    """Send to an outbox; waits while it is full."""
    try:
        outbox.send_nowait(item)  # spares a turn of the loop where somebody waits for it
    except anyio.WouldBlock:
        await outbox.send(item)


class Workers(Generic[In]):
    """An actor's workers, with their inbox: as many as have something to do, up to ``most``."""

    def __init__(self, tasks: TaskGroup, actor: Actor[In, Out], most: int) -> None:
        """The inbox holds ``most`` items beside those that are worked on."""
        self._tasks = tasks
        self._actor = actor
        self._most = most
        self._sender, self._inbox = anyio.create_memory_object_stream[In](most)
        self._count = 0
        self._idle = 0
        """Workers that wait, and for which no item is on its way."""
        self._is_closed = False

    def send_nowait(self, item: In) -> None:
        """Give an item to a worker, a new one where none is idle.

        Raises:
            anyio.WouldBlock: all are busy, and the inbox is full.
        """
        if self._idle:
            self._idle -= 1
        elif self._count < self._most:
            self._count += 1
            self._tasks.start_soon(self._work)
        self._sender.send_nowait(item)

    async def send(self, item: In) -> None:
        """Give an item to a worker; waits while all are busy, and the inbox is full."""
        await self._sender.send(item)

    async def _work(self) -> None:
        try:
            while await self._work_on_next():
                pass
        finally:
            self._count -= 1
            if not self._count and self._is_closed:
                self._end()

    async def _work_on_next(self) -> bool:
        try:
            item = self._inbox.receive_nowait()
        except anyio.WouldBlock:
            self._idle += 1
            try:
                item = await self._inbox.receive()
            except anyio.EndOfStream:
                return False
        except anyio.EndOfStream:
            return False
        await self._actor.handle(item)
        return True

    def close(self) -> None:
        """Let the workers end once they have done what there is."""
        self._is_closed = True
        self._sender.close()
        if not self._count:
            self._end()

    def _end(self) -> None:
        self._inbox.close()
        self._actor.end()

    def abandon(self) -> None:
        """Close the inbox, whoever reads it: no worker is left."""
        self._sender.close()
        self._inbox.close()


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
