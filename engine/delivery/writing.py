"""Who writes which contact: one turn at a time, whatever token and sync it is of."""

from __future__ import annotations

from typing import Final, Self

import anyio

from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered, NotNow
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.known import ContactKey

MOST_WAIT_S: Final = 1.0
"""For another turn that writes the same contact. Whoever waits has made no call, and keeps turns of
others from being chosen."""

BEING_WRITTEN: Final = NotAnswered(
    Cause.FAILED,
    "PUT /contacts/{id}",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "another turn writes the contact"),
)
"""Why a write cannot go on now: its user waits some seconds, uncharged."""


Written = dict[ContactKey, anyio.Event | None]
"""Contacts that are being written, each with what tells those who wait for it that it is free."""


class Writing:
    """The contacts that a turn writes, each as the only one, until it is left."""

    __slots__ = ("_mine", "_written")

    def __init__(self, written: Written) -> None:
        """``written``: by all turns of the workspace."""
        self._written = written
        self._mine: list[ContactKey] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for key in self._mine:
            free = self._written.pop(key)
            if free is not None:
                free.set()
        self._mine.clear()

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
        if key in self._written:
            await self._wait_for(key)
        self._written[key] = None
        self._mine.append(key)

    async def _wait_for(self, key: ContactKey) -> None:
        try:
            with anyio.fail_after(MOST_WAIT_S):
                while key in self._written:
                    free = self._written[key] = self._written[key] or anyio.Event()
                    await free.wait()
        except TimeoutError:
            raise NotNow(BEING_WRITTEN) from None
