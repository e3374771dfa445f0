"""Who runs transactions on a store: one thread with group commit, or the caller itself.

Whatever is submitted while a commit is under way shares the next one, and so its fsync. A job is a
function of the store. One that raises ``EngineError`` has changed nothing and fails alone; an error
of the database fails the whole group, of which then nothing is stored. A job with a fault of its
own, whatever it raises, fails alone as well: the others are run again without it.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from engine.errors import EngineError, SpoolError
from engine.spool.store import Store

MAX_JOBS = 512
"""Jobs that share one commit at most; more would only make the first of them wait."""

T = TypeVar("T")
Job = Callable[[Store], T]


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


def run_group(store: Store, jobs: list[Job[Any]]) -> list[Any]:
    """Run jobs in one transaction; return a result or an exception for each."""
    try:
        store.begin()
        results = [_attempt(job, store) for job in jobs]
        store.commit()
    except sqlite3.Error as error:
        store.rollback()
        return [SpoolError("spool_failing", str(error)) for _ in jobs]
    except Exception as fault:
        store.rollback()
        return [fault] if len(jobs) == 1 else [run_group(store, [job])[0] for job in jobs]
    return results


def _attempt(job: Job[Any], store: Store) -> Any:
    try:
        return job(store)
    except EngineError as error:
        return error


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


class InlineWriter:
    """Runs each job at once, in the caller's own thread: for loops in virtual time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        _resolve(future, run_group(self._store, [job])[0])
        return future

    async def close(self) -> None:
        self._store.close()


class ThreadWriter:
    """Runs jobs in one thread, off the event loop."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Job[Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name=f"spool-{name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        ended = False
        while not ended:
            group, ended = self._next_group()
            results = run_group(self._store, [job for job, _ in group])
            self._loop.call_soon_threadsafe(self._hand_back, group, results)
        self._store.close()

    def _next_group(self) -> tuple[list[tuple[Job[Any], asyncio.Future[Any]]], bool]:
        """Wait for a job, then take along what else is there."""
        group: list[tuple[Job[Any], asyncio.Future[Any]]] = []
        item = self._jobs.get()
        while item is not None:
            group.append(item)
            if len(group) == MAX_JOBS or self._jobs.empty():
                return group, False
            item = self._jobs.get()
        return group, True

    @staticmethod
    def _hand_back(group: list[tuple[Job[Any], asyncio.Future[Any]]], results: list[Any]) -> None:
        for (_, future), result in zip(group, results, strict=True):
            _resolve(future, result)
