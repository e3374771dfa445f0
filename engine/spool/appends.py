"""The queue of batches on their way into the store. Batches that wait together are one append.

The writer's thread waits for the interpreter's lock after every statement, beside a busy event
loop. So ten batches that arrive during a commit become a few statements, not ten times as many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.spool.rows import Append, Appended
from amplitude_intercom.engine.spool.writer import Writer

MOST_TOGETHER = 64
"""Batches of one transaction's work, which succeeds or fails as a whole."""

SINGLY = 64
"""Batches that go alone after a failure, because the faulty batch is not known."""

Waiting = tuple[Append, asyncio.Future[Appended]]


class Appending(Protocol):
    """The store that batches are appended to."""

    def append(self, batches: Sequence[Append], now_ms: int) -> Sequence[Appended | SpoolError]:
        """Append batches; return the result of each."""
        ...


class Appends:
    """The queue of batches to append. The loop puts; the writer's thread takes."""

    def __init__(self, writer: Writer[Any], now_ms: Callable[[], int]) -> None:
        self._writer = writer
        self._now_ms = now_ms
        # A deque, because the loop appends and the thread takes, without a lock.
        self._waiting: deque[Waiting] = deque()
        self._singly = 0
        self._asked = False
        """Whether submitted work has not begun. It takes all batches put until then."""

    def put(self, batch: Append) -> asyncio.Future[Appended]:
        """Queue a batch; the future resolves when the batch is durable.

        The future raises ``SpoolError`` if none of it is stored.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        self._ask()
        return future

    def _ask(self) -> None:
        if self._asked or not self._waiting:
            return
        self._asked = True
        work = _AppendWork(self._take, self._now_ms)
        self._writer.submit(work).add_done_callback(lambda done: self._answer(work, done))

    def _take(self) -> list[Waiting]:
        """Take waiting batches; called in the writer's thread."""
        self._asked = False  # first, so that a batch put after this asks again
        return self._first(1 if self._singly else MOST_TOGETHER)

    def _first(self, most: int) -> list[Waiting]:
        taken: list[Waiting] = []
        with suppress(IndexError):  # the other thread may take the last one meanwhile
            while len(taken) < most:
                taken.append(self._waiting.popleft())
        return taken

    def _answer(
        self, work: _AppendWork, done: asyncio.Future[Sequence[Appended | BaseException]]
    ) -> None:
        """Resolve the futures of some work, and ask for more for the remaining batches."""
        error = done.exception()
        if error is None:
            self._singly = max(0, self._singly - 1)
            _resolve(work.taken, done.result())
        else:
            # Which batch is at fault is not known, and it must not take the others with it.
            self._singly = SINGLY
            if not work.ran:  # the trouble would stop other work too
                self._asked = False
                work.taken = self._first(len(self._waiting))
            _resolve(work.taken, [error] * len(work.taken))
        self._ask()


class _AppendWork:
    """Appends the batches that it takes, the same ones if its transaction runs again."""

    def __init__(self, take: Callable[[], list[Waiting]], now_ms: Callable[[], int]) -> None:
        self._take = take
        self._now_ms = now_ms
        self.taken: list[Waiting] = []
        self.ran = False

    def __call__(self, store: Appending) -> Sequence[Appended | BaseException]:
        # A transaction that runs again must append the same: what it took is not in the queue.
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
