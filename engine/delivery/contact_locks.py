"""Contacts that are being written: each by one turn at a time, of any token and sync."""

from __future__ import annotations

from typing import Final, Self

import anyio

from amplitude_intercom.engine.delivery.calls import Cause, NotAnswered, NotNow
from amplitude_intercom.engine.reasons import DeadReason, Failure
from amplitude_intercom.engine.spool.known_contacts import ContactKey

MOST_WAIT_S: Final = 1.0
"""Seconds that a turn waits for another one that writes the same contact. It has made no call, and
keeps other turns from being chosen."""

BEING_WRITTEN: Final = NotAnswered(
    Cause.FAILED,
    "PUT /contacts/{id}",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "another turn writes the contact"),
)
"""The evidence of a write that cannot go on now: its user waits some seconds, uncharged."""


LockedContacts = dict[ContactKey, anyio.Event | None]
"""Contacts that are being written. The event, if turns wait for the contact, is set at its end."""


class ContactLocks:
    """The contacts that a turn writes, each as the only one, until it is left."""

    __slots__ = ("_locked", "_mine")

    def __init__(self, locked: LockedContacts) -> None:
        """``locked``: by all turns of the workspace."""
        self._locked = locked
        self._mine: list[ContactKey] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for key in self._mine:
            free = self._locked.pop(key)
            if free is not None:
                free.set()
        self._mine.clear()

    def has(self, key: ContactKey) -> bool:
        """Return whether the contact is one of them."""
        return key in self._mine

    async def take(self, key: ContactKey) -> None:
        """Take one more contact, after at most ``MOST_WAIT_S``.

        Raises:
            NotNow: another turn still writes it.
        """
        if key in self._mine:
            return
        if key in self._locked:
            await self._wait_for(key)
        self._locked[key] = None
        self._mine.append(key)

    async def _wait_for(self, key: ContactKey) -> None:
        try:
            with anyio.fail_after(MOST_WAIT_S):
                while key in self._locked:
                    free = self._locked[key] = self._locked[key] or anyio.Event()
                    await free.wait()
        except TimeoutError:
            raise NotNow(BEING_WRITTEN) from None
