"""Batches on their way into the store: whatever waits when the writer gets to it goes in as one.

A busy event loop shares the interpreter's lock with the writer's thread, which waits for it after
every statement. So ten batches that come while a commit is under way are a few statements, not ten
times as many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.writer import Writer

MOST_TOGETHER = 64
"""Batches of one job, which succeeds or fails as a whole."""

SINGLY = 64
"""Jobs that take one batch each after a failure: whose fault it was is not known."""

Waiting = tuple[Append, asyncio.Future[Appended]]


class Appends:
    """The queue of batches to append. The loop puts; jobs of the writer take, in its thread."""

    def __init__(self, writer: Writer, now_ms: Callable[[], int]) -> None:
        self._writer = writer
        self._now_ms = now_ms
        self._waiting: deque[Waiting] = deque()
        self._singly = 0
        self._asked = False
        """Whether a job is submitted that has not begun: it takes what is put until then."""

    def put(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when it is on disk.

        The future raises ``SpoolError`` when nothing of it is stored.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        self._ask()
        return future

    def _ask(self) -> None:
        if self._asked or not self._waiting:
            return
        self._asked = True
        job = _Job(self._take, self._now_ms)
        self._writer.submit(job).add_done_callback(lambda done: self._answer(job, done))

    def _take(self) -> list[Waiting]:
        """Take what waits; called in the writer's thread."""
        self._asked = False  # first: who puts something after this asks anew
        return self._first(1 if self._singly else MOST_TOGETHER)

    def _first(self, most: int) -> list[Waiting]:
        taken: list[Waiting] = []
        with suppress(IndexError):  # whoever else takes, each is taken once
            while len(taken) < most:
                taken.append(self._waiting.popleft())
        return taken

    def _answer(self, job: _Job, done: asyncio.Future[Sequence[Appended | BaseException]]) -> None:
        """Hand the results out, and ask for what is left."""
        error = done.exception()
        if error is None:
            self._singly = max(0, self._singly - 1)
            _resolve(job.taken, done.result())
        else:
            self._singly = SINGLY
            if not job.ran:  # nor will others, as long as there is this trouble
                self._asked = False
                job.taken = self._first(len(self._waiting))
            _resolve(job.taken, [error] * len(job.taken))
        self._ask()


class _Job:
    """Appends what it takes, and the same where the transaction is run again."""

    def __init__(self, take: Callable[[], list[Waiting]], now_ms: Callable[[], int]) -> None:
        self._take = take
        self._now_ms = now_ms
        self.taken: list[Waiting] = []
        self.ran = False

    def __call__(self, store: Store) -> Sequence[Appended | BaseException]:
        if not self.ran:
            self.ran = True
            self.taken = self._take()
        return store.append([batch for batch, _ in self.taken], self._now_ms())


def _resolve(taken: Sequence[Waiting], results: Sequence[Appended | BaseException]) -> None:
    for (_, future), result in zip(taken, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Appended):
            future.set_result(result)
        else:
            future.set_exception(result)
