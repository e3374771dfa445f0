"""Who runs transactions on a database: one thread with group commit, or the caller itself.

Whatever is submitted while a commit is under way shares the next one, and so its fsync. A job is a
function of the store; what becomes of jobs that fail is told in ``sqlite.database``.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any, Protocol, TypeVar

import structlog

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.sqlite.database import HEAL_EVERY_S, Database, Job
from amplitude_intercom.transports.reasons import RefusalReason

CLOSED = "the spool is closed"

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = HEAL_EVERY_S
"""Between looks at a database of which nothing is asked: whether it is still there, or again."""

MAX_JOBS = 512
"""Jobs that share one commit at most; more would only make the first of them wait."""

T = TypeVar("T")
Queued = tuple[Job[Any], asyncio.Future[Any]]


class Writer(Protocol):
    """Runs jobs in the order of submission."""

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        """Queue a job; the future resolves when what it did is durable.

        The future raises ``SpoolError`` where nothing of it is.
        """
        ...

    async def close(self) -> None:
        """Run what was submitted, then close the store."""
        ...


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


class InlineWriter:
    """Runs each job at once, in the caller's own thread: for loops in virtual time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closed = False

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        closed = SpoolError(RefusalReason.DRAINING, CLOSED) if self._closed else None
        _resolve(future, closed or self._database.run([job])[0])
        return future

    async def close(self) -> None:
        self._closed = True
        self._database.close()


class ThreadWriter:
    """Runs jobs in one thread, off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Queued | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            _resolve(future, SpoolError(RefusalReason.DRAINING, CLOSED))
        else:
            self._jobs.put((job, future))
        return future

    async def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        while self._work_on_next():
            pass
        self._database.close()

    def _work_on_next(self) -> bool:
        """Run the next group; return whether there may be another.

        A function of its own, so that a thread that waits holds no job and no result: they can be
        megabytes.
        """
        try:
            group, ended = self._next_group()
        except queue.Empty:
            self._run([])
            self._tidy()
            return True
        results = self._run([job for job, _ in group])
        self._loop.call_soon_threadsafe(self._hand_back, group, results)
        return not ended

    def _run(self, jobs: list[Job[Any]]) -> list[Any]:
        """Run jobs, or only look whether trouble is over. A fault must not end the thread."""
        try:
            return self._database.run(jobs)
        except Exception as fault:
            _log.exception("fault in the spool's thread")
            return [fault for _ in jobs]

    def _next_group(self) -> tuple[list[Queued], bool]:
        """Wait for a job, then take along what else is there.

        Raises:
            queue.Empty: none came for a while, so that the database should be looked at.
        """
        if self._database.trouble:
            self._tidy()  # what is short is wanted at once
        group: list[Queued] = []
        item = self._jobs.get(timeout=LOOK_EVERY_S)
        while item is not None:
            group.append(item)
            if len(group) == MAX_JOBS or self._jobs.empty():
                return group, False
            item = self._jobs.get()
        return group, True

    def _tidy(self) -> None:
        """Give back what the file does not need, a little at a time, while nobody asks."""
        while self._jobs.empty() and self._database.tidy():
            pass

    @staticmethod
    def _hand_back(group: list[Queued], results: list[Any]) -> None:
        for (_, future), result in zip(group, results, strict=True):
            _resolve(future, result)
