"""Reads of the spool for people: on a connection of their own, and for a quarter of a second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from amplitude_intercom.engine.console.problems import not_now
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.sqlite.time_limit import ReadStopped, stopped_after
from amplitude_intercom.engine.spool.store import Store

T = TypeVar("T")

MOST_S: Final = 0.25


class Reads:
    """Reads one spool."""

    def __init__(self, spool: Spool, most_s: float = MOST_S) -> None:
        self._spool = spool
        self._most_s = most_s

    async def look(self, work: Callable[[Store], T]) -> T:
        """Do work that only reads.

        Raises:
            Problem: it took too long, and was stopped.
            SpoolError: the file cannot be read.
        """
        try:
            return await self._spool.look(lambda store: self.within(store, work))
        except ReadStopped:
            text = f"the spool was read for {self._most_s:g} s, and not all of it: ask for less"
            raise not_now(text) from None

    def within(self, store: Store, work: Callable[[Store], T]) -> T:
        """Do work in the time that one read has.

        Raises:
            ReadStopped: it took longer.
        """
        return stopped_after(self._most_s, store.db, lambda: work(store))

    def attempt(self, store: Store, work: Callable[[Store], T]) -> T | None:
        """As ``within``; None: it took longer."""
        with suppress(ReadStopped):
            return self.within(store, work)
        return None
