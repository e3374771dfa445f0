"""Who writes which contact: one turn at a time, whatever token and sync it is of."""

from __future__ import annotations

from typing import Final

import anyio

from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered, NotNow
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.rows import ContactKey

MOST_WAIT_S: Final = 1.0
"""For another turn that writes the same contact. Whoever waits has made no call, and keeps turns of
others from being chosen."""

BEING_WRITTEN: Final = NotAnswered(
    Cause.FAILED,
    "PUT /contacts/{id}",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "another turn writes the contact"),
)
"""Why a write cannot go on now: its user waits some seconds, uncharged."""


class Writing:
    """The contacts that a turn writes, each as the only one."""

    def __init__(self, written: dict[ContactKey, anyio.Lock]) -> None:
        """``written``: by all turns of the workspace."""
        self._written = written
        self._mine: dict[ContactKey, anyio.Lock] = {}

    def has(self, key: ContactKey) -> bool:
        """Return whether nobody else writes a contact meanwhile."""
        return key in self._mine

    async def take(self, key: ContactKey) -> None:
        """Write one more, once nobody else does; that is not waited for for long.

        Raises:
            NotNow: somebody does.
        """
        if key in self._mine:
            return
        lock = self._written.get(key)
        if lock is None:
            lock = self._written[key] = anyio.Lock()
            lock.acquire_nowait()
        else:
            try:
                with anyio.fail_after(MOST_WAIT_S):
                    await lock.acquire()
            except TimeoutError:
                raise NotNow(BEING_WRITTEN) from None
        self._mine[key] = lock

    def end(self) -> None:
        """Let others write them."""
        for key, lock in self._mine.items():
            lock.release()
            if not lock.locked() and self._written.get(key) is lock:
                del self._written[key]
        self._mine.clear()
