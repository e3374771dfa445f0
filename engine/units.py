"""A unit of delivery: one pipeline or one relay, with the clients that it alone has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio

from amplitude_intercom.engine.internal_faults import internal_failure


class Unit:
    """Runs until it is drained; then its clients are closed."""

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        drain: Callable[[], None],
        clients: AsyncExitStack,
    ) -> None:
        """``work`` returns some time after ``drain`` was called. ``clients`` closes the clients."""
        self._work = work
        self._clients = clients
        self._is_over = anyio.Event()
        self.drain = drain

    async def run(self) -> None:
        """Run to the end of the work."""
        try:
            await self._work()
        finally:
            await self.close()

    async def end(self) -> None:
        """Drain, and wait for the end of the work."""
        self.drain()
        await self._is_over.wait()

    async def close(self) -> None:
        """Close the clients; the work has ended, or never began."""
        try:
            with anyio.CancelScope(shield=True):
                await self._clients.aclose()
        except Exception as fault:
            internal_failure(fault, closing="the clients of a delivery")
        finally:
            self._is_over.set()
