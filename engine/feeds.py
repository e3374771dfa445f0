"""The feeds of one pipeline: one a sync, each under a supervisor. Syncs come and go meanwhile.

Rules
=====
1. A feed begins when its sync may deliver (``Ready``), and runs until it is ended.
2. A fault of one feed starts that one again; the others go on.
3. A fault of the whole pipeline stops all feeds; they run again with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.delivery.feed import Feed
from amplitude_intercom.engine.supervision import Supervisor

Ready = Callable[[str], Awaitable[bool]]
"""Waits until a sync may deliver; returns False if the engine ends before that."""


class _RunningFeed:
    """One feed, until it is ended; it may be run again after that was broken off."""

    def __init__(self, name: str, feed: Feed, ready: Ready) -> None:
        self._name = name
        self._feed = feed
        self._ready = ready
        self.supervisor = Supervisor(feed.run, sync=name, part="delivery")
        self._waiting = anyio.CancelScope()
        self._has_ended = False
        self._is_over = anyio.Event()
        self._is_over.set()

    def end(self) -> None:
        """Load nothing more; what is at work is finished and settled."""
        self._has_ended = True
        self._feed.stop()
        self.supervisor.end()
        self._waiting.cancel()

    async def is_over(self) -> None:
        """Wait until it does not run."""
        await self._is_over.wait()

    def start(self, tasks: TaskGroup) -> None:
        """Run once the sync may deliver, until ended."""
        # From now on, not from the task's first step on: whoever ends it waits for the task.
        self._is_over = anyio.Event()
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            structlog.contextvars.bind_contextvars(sync=self._name)
            may_deliver = False
            with self._waiting:
                may_deliver = await self._ready(self._name)
            if may_deliver and not self._has_ended:
                await self.supervisor.run()
        finally:
            self._is_over.set()
            self._waiting = anyio.CancelScope()


class Feeds:
    """See the module's docstring."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready
        self._feeds: dict[str, _RunningFeed] = {}
        self._tasks: TaskGroup | None = None
        """Runs the feeds; None before the start, and while a fault has stopped all of them."""

    async def run(self, ending: anyio.Event) -> None:
        """Run the feeds that are here and those that come, until the end and all are over."""
        try:
            async with anyio.create_task_group() as self._tasks:
                for feed in self._feeds.values():
                    feed.start(self._tasks)
                await ending.wait()
        finally:
            self._tasks = None

    def add(self, name: str, feed: Feed) -> None:
        """Run the feed of another sync, too."""
        running = self._feeds[name] = _RunningFeed(name, feed, self._ready)
        if self._tasks is not None:
            running.start(self._tasks)

    async def remove(self, name: str) -> None:
        """End the feed of a sync; return when it is over."""
        if name in self._feeds:
            self._feeds[name].end()
            await self._feeds[name].is_over()
            del self._feeds[name]

    def end(self) -> None:
        """End all feeds."""
        for feed in self._feeds.values():
            feed.end()

    def stopped(self, name: str) -> str:
        """Return the fault of this program that stops a feed now; empty: none."""
        return self._feeds[name].supervisor.stopped

    def faults(self, name: str) -> int:
        """Return the number of faults that have stopped a feed."""
        return self._feeds[name].supervisor.faults
