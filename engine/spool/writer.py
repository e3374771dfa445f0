"""The writers of a database: one thread with group commit, or the caller's thread.

Work is a function of the store. Work that is submitted during a commit shares the next commit, and
so its fsync. ``sqlite.database`` has the rules for work that fails.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import anyio
import structlog

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.histograms import COMMIT_BOUNDS_S, Histogram
from amplitude_intercom.engine.spool.sqlite.database import HEAL_EVERY_S, Database, S, S_co
from amplitude_intercom.transports.reasons import RefusalReason

CLOSED = "the spool is closed"

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = HEAL_EVERY_S
"""Seconds between checks of an idle database and its files."""

MOST_OF_A_GROUP = 512
"""Submissions that one commit takes. More would only delay the first of them."""

T = TypeVar("T")
Queued = tuple[Callable[[S], Any], asyncio.Future[Any]]
"""Work, and the future of its result."""


class Writer(Protocol[S_co]):
    """Does work in the order of submission."""

    commits: Histogram
    """How long groups of work took, commit included."""

    def submit(self, work: Callable[[S_co], T]) -> asyncio.Future[T]:
        """Queue work; the future resolves when its changes are durable.

        The future raises ``SpoolError`` if none of them are.
        """
        ...

    async def close(self, within_s: float) -> bool:
        """Do all submitted work, then close the store; return whether that is done in time."""
        ...


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    # Its caller was cancelled. The work is done all the same.
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


class InlineWriter(Generic[S]):
    """Does each work at once in the caller's thread, for event loops in virtual time."""

    def __init__(self, database: Database[S]) -> None:
        self._database = database
        self._closed = False
        self.commits = Histogram(COMMIT_BOUNDS_S)

    def submit(self, work: Callable[[S], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        closed = SpoolError(RefusalReason.DRAINING, CLOSED) if self._closed else None
        _resolve(future, closed or self._database.run([work])[0])
        return future

    async def close(self, within_s: float) -> bool:
        self._closed = True
        self._database.close()
        return True


class ThreadWriter(Generic[S]):
    """Does work in one thread, off the event loop."""

    def __init__(self, database: Database[S]) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._queued: queue.SimpleQueue[Queued[S] | None] = queue.SimpleQueue()
        self._closed = False
        self._ended = asyncio.Event()
        self.commits = Histogram(COMMIT_BOUNDS_S)
        # A daemon thread, so that a disk that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[S], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            _resolve(future, SpoolError(RefusalReason.DRAINING, CLOSED))
        else:
            self._queued.put((work, future))
        return future

    async def close(self, within_s: float) -> bool:
        self._closed = True
        # Behind all that was submitted: that is done first.
        self._queued.put(None)
        # An event and no join, which would need a thread: those may all hang at the same disk.
        with anyio.move_on_after(within_s):
            await self._ended.wait()
        return self._ended.is_set()

    def _work(self) -> None:
        while self._work_on_next():
            pass
        self._database.close()
        with suppress(RuntimeError):  # the loop has ended: it did not wait for a disk that hung
            self._loop.call_soon_threadsafe(self._ended.set)

    def _work_on_next(self) -> bool:
        """Run the next group; return False after the last one."""
        # A function of its own, so that the waiting thread holds no work and no result, which can
        # have megabytes.
        try:
            group, ended = self._next_group()
        except queue.Empty:
            self._run([])
            self._tidy()
            return True
        began_s = time.perf_counter()
        results = self._run([work for work, _ in group])
        self.commits.add(time.perf_counter() - began_s)
        # Once for the group: each call wakes the loop.
        with suppress(RuntimeError):  # the loop has ended meanwhile (`close`)
            self._loop.call_soon_threadsafe(self._hand_back, group, results)
        return not ended

    def _run(self, group: list[Callable[[S], Any]]) -> list[Any]:
        """Do a group of work; of an empty one, check the database and its files."""
        try:
            return self._database.run(group)
        except Exception as fault:
            # Without the thread no work would ever end.
            _log.exception("fault in the spool's thread")
            return [fault for _ in group]

    def _next_group(self) -> tuple[list[Queued[S]], bool]:
        """Wait for work, then drain the queue into its group.

        Returns the group, and whether it is the last one.

        Raises:
            queue.Empty: none came for ``LOOK_EVERY_S``.
        """
        if self._database.trouble:
            self._tidy()  # a full disk needs the free pages at once
        group: list[Queued[S]] = []
        item = self._queued.get(timeout=LOOK_EVERY_S)
        while item is not None:
            group.append(item)
            if len(group) == MOST_OF_A_GROUP or self._queued.empty():
                return group, False
            item = self._queued.get()
        return group, True

    def _tidy(self) -> None:
        """Return free pages to the disk, a little at a time, while no work waits."""
        while self._queued.empty() and self._database.tidy():
            pass

    @staticmethod
    def _hand_back(group: list[Queued[S]], results: list[Any]) -> None:
        for (_, future), result in zip(group, results, strict=True):
            _resolve(future, result)
