"""An actor: one piece of work, done for each item of an inbox by a task or by several workers.

Rules
=====
1. An actor handles the items of its inbox in order until the inbox ends; then it closes its
   outbox. So a pipeline drains from its source down. An actor never closes its inbox: a broken
   channel would wake the actor upstream before the task group cancels it: one fault, three errors.
2. Several workers may run one actor on one inbox (``Workers``): an actor keeps nothing between
   two items. A new worker starts if an item waits and no worker is idle; the last one closes the
   outbox.
3. A fault in the work on one record costs that record, and never its neighbours.
4. A fault that belongs to no record leaves ``run``. The pipeline stops, and starts again later
   (``engine.supervision``); the items under way are still in the spool.
5. An actor keeps no reference to a handled item: an item may be megabytes.
6. Work that takes time by the byte is done in ``runs`` of bounded bytes, with other tasks in
   between: one large request must not delay the answers to all others.
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
"""Bytes of events in one run: decoding all of them takes some 5 ms."""


class Outbox(Protocol[Sent]):
    """The receiver of an actor's results: a channel, or workers."""

    def send_nowait(self, item: Sent) -> None:
        """Send; raise ``anyio.WouldBlock`` if no slot is free."""

    async def send(self, item: Sent) -> None:
        """Send; wait for a free slot."""

    def close(self) -> None:
        """End the receiver's inbox."""


class Actor(ABC, Generic[In, Out]):
    """See the module's docstring."""

    def __init__(self, outbox: Outbox[Out] | None = None) -> None:
        self._outbox = outbox

    async def run(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends, then close the outbox.

        Cancellation leaves the present item unfinished.
        """
        try:
            await self.work(inbox)
        finally:
            self.end()

    async def work(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends; the outbox stays open."""
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
        await self.handle(item)  # a frame of its own: ``item`` must not live through the next wait
        return True

    @abstractmethod
    async def handle(self, item: In) -> None:
        """Handle one item. A wait holds up the items behind it; with workers, one worker."""

    async def pass_on(self, item: Out) -> None:
        """Send to the outbox; wait while it is full."""
        if self._outbox is not None:
            await hand_over(self._outbox, item)


async def hand_over(outbox: Outbox[Sent], item: Sent) -> None:
    """Send to an outbox; wait while it is full."""
    try:
        outbox.send_nowait(item)  # spares a turn of the loop if a receiver waits
    except anyio.WouldBlock:
        await outbox.send(item)


class Workers(Generic[In]):
    """The workers of an actor with their inbox: as many as have an item, up to ``most``."""

    def __init__(self, tasks: TaskGroup, actor: Actor[In, Out], most: int) -> None:
        """The inbox holds ``most`` items beside those under way."""
        self._tasks = tasks
        self._actor = actor
        self._most = most
        self._sender, self._inbox = anyio.create_memory_object_stream[In](most)
        self._count = 0
        self._idle = 0
        """Waiting workers, less the items that are on their way to one."""
        self._is_closed = False

    def send_nowait(self, item: In) -> None:
        """Give an item to a worker, a new one if none is idle.

        Raises:
            anyio.WouldBlock: all are busy, and the inbox is full.
        """
        # Counted here, not by the worker: it wakes a turn of the loop later, and a second item of
        # the same turn must not count on it too.
        if self._idle:
            self._idle -= 1
        elif self._count < self._most:
            self._count += 1
            self._tasks.start_soon(self._work)
        self._sender.send_nowait(item)

    async def send(self, item: In) -> None:
        """Give an item to a worker; wait while all are busy and the inbox is full."""
        await self._sender.send(item)

    async def _work(self) -> None:
        try:
            while await self._work_on_next():
                pass
        finally:
            # Any worker may be the last one: they end in the order of their calls.
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
        """Let the workers end after the items that are there."""
        self._is_closed = True
        self._sender.close()
        if not self._count:
            self._end()

    def _end(self) -> None:
        self._inbox.close()
        self._actor.end()

    def abandon(self) -> None:
        """Close the inbox from both sides: no worker is left to do so."""
        self._sender.close()
        self._inbox.close()


def runs(sizes: Sequence[int]) -> Sequence[range]:
    """Return indexes in runs of at most ``RUN_BYTES``, each of at least one index.

    ``sizes``: bytes, by index. The usual result, one run, costs one sum.
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
