"""Batches on their way into the store: whatever waits when the writer gets to it goes in as one.

A busy event loop shares the interpreter's lock with the writer's thread, which waits for it after
every statement. So ten batches that come while a commit is under way are a few statements, not ten
times as many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from engine.errors import SpoolError
from engine.spool.rows import Append, Appended
from engine.spool.store import Store
from engine.spool.writer import Writer

Waiting = tuple[Append, asyncio.Future[Appended] | None]


class Appends:
    """The queue of batches to append. The loop puts; jobs of the writer take, in its thread."""

    def __init__(self, writer: Writer, now_ms: Callable[[], int]) -> None:
        self._writer = writer
        self._now_ms = now_ms
        self._waiting: deque[Waiting] = deque()
        self._asked = False
        """Whether a job is submitted that has not begun: it takes what is put until then."""

    def put(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when it is on disk.

        The future raises ``SpoolError`` when nothing of it is stored.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue((batch, future))
        return future

    def count(self, batch: Append) -> None:
        """Queue a batch of which nothing is kept, to be counted."""
        self._queue((batch, None))

    def _queue(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        if self._asked:
            return
        self._asked = True
        taken: list[Waiting] = []

        def job(store: Store) -> list[Appended | SpoolError]:
            self._asked = False  # first: who puts something after this asks anew
            self._take(taken)
            return store.append([batch for batch, _ in taken], self._now_ms())

        self._writer.submit(job).add_done_callback(lambda done: self._answer(taken, done))

    def _take(self, taken: list[Waiting]) -> None:
        while self._waiting:
            taken.append(self._waiting.popleft())

    def _answer(
        self, taken: list[Waiting], done: asyncio.Future[list[Appended | SpoolError]]
    ) -> None:
        error = done.exception()
        if error is not None:  # the job may not have run at all
            self._asked = False
            self._take(taken)
        results = done.result() if error is None else [error] * len(taken)
        for (_, future), result in zip(taken, results, strict=True):
            if future is None or future.done():
                continue
            if isinstance(result, Appended):
                future.set_result(result)
            else:
                future.set_exception(result)
