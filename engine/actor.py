"""An actor: one task, one inbox, one outbox, one method to write."""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

In = TypeVar("In")
Out = TypeVar("Out")


class Actor(Generic[In, Out]):
    """Handles what comes in, in order, until its inbox ends; then closes its outbox.

    So a pipeline drains from its source down. An actor closes what it writes to, and never what it
    reads: whoever fails upstream must not be woken by a broken channel before it is cancelled.
    """

    def __init__(self, outbox: MemoryObjectSendStream[Out] | None = None) -> None:
        self._outbox = outbox

    async def run(self, inbox: MemoryObjectReceiveStream[In]) -> None:
        """Handle items until the inbox ends. Cancelled, the item in hand is not finished."""
        try:
            async for item in inbox:
                await self.handle(item)
        finally:
            if self._outbox is not None:
                self._outbox.close()

    async def handle(self, item: In) -> None:
        """Deal with one item; may wait, which holds up those behind it."""
        raise NotImplementedError

    async def pass_on(self, item: Out) -> None:
        """Send to the outbox; waits while it is full."""
        if self._outbox is None:
            return
        try:
            self._outbox.send_nowait(item)  # spares a turn of the loop where somebody waits for it
        except anyio.WouldBlock:
            await self._outbox.send(item)
