"""Reading of ``forward`` that waits for delivery: held back while much waits, and watched."""

from __future__ import annotations

from typing import Final

import anyio

from amplitude_intercom.engine.commands.deliverer import Deliverer
from amplitude_intercom.engine.commands.terminal import count, say
from amplitude_intercom.transports.contract import Batch, Ticket

SILENT_S: Final = 5.0
"""A shorter pause is not spoken of."""

THROTTLED_S: Final = 15.0
"""The shortest pause that ``--max-wait`` ends while Intercom asks for pauses."""

LOOK_S: Final = 0.5
RECOUNT_S: Final = 5.0
"""Between two counts of the records of parked users."""


class HeldBackIntake:
    """An intake, held back while delivery is far behind.

    A file is on disk already: copying all of it into the spool would only fill the disk. Records
    of parked users do not count, or a few thousand unknown users would stop all others.
    """

    def __init__(self, deliverer: Deliverer, max_backlog: int) -> None:
        self._intake = deliverer.intake
        self._deliverer = deliverer
        self._max_backlog = max_backlog
        self._parked = 0
        self._recount_at_s = 0.0
        self.holds_back = False
        """Whether a batch waits here at this moment."""

    async def send(self, batch: Batch) -> Ticket:
        """Pass a batch on once little enough waits for delivery."""
        self.holds_back = True
        await self._little_waits()
        self.holds_back = False
        return await self._intake.send(batch)

    async def _little_waits(self) -> None:
        deliverer = self._deliverer
        while deliverer.delivers and deliverer.pending - self._parked > self._max_backlog:
            if anyio.current_time() >= self._recount_at_s:
                self._parked = await deliverer.parked()
                self._recount_at_s = anyio.current_time() + RECOUNT_S
            else:
                with anyio.move_on_after(RECOUNT_S):
                    await deliverer.progress()

    def takes(self, api_key: str) -> bool:
        """As the intake's."""
        return self._intake.takes(api_key)


class Stalls:
    """Pauses of reading in which nothing is settled: they are said, and end at a deadline."""

    def __init__(self, deliverer: Deliverer, intake: HeldBackIntake) -> None:
        self._deliverer = deliverer
        self._intake = intake
        self._is_said = False

    async def watch(self, most_s: float | None) -> None:
        """Return once a pause has gone on for ``most_s`` without anything that was settled.

        A pause alone is everyday: files are read faster than Intercom takes events.
        """
        settled, since_s = -1, anyio.current_time()
        while True:
            await self._deliverer.look()
            why, before, settled = self._why(), settled, self._deliverer.settled_so_far
            now_s = anyio.current_time()
            if not why or settled != before:
                since_s = now_s
            self._tell(why, now_s - since_s)
            if why and most_s is not None and now_s - since_s >= max(most_s, self._least_s()):
                say(f"{self._name}: nothing was settled while reading paused", stderr=True)
                return
            await anyio.sleep(LOOK_S)

    @property
    def _name(self) -> str:
        return self._deliverer.sync

    def _least_s(self) -> float:
        """Return how long a pause is at least that is no everyday one: an allowance takes 10 s."""
        return THROTTLED_S if self._deliverer.health == "throttled" else SILENT_S

    def _why(self) -> str:
        """Return why reading pauses at this moment; empty: it does not."""
        deliverer = self._deliverer
        if deliverer.trouble:
            return deliverer.trouble
        if not self._intake.holds_back:
            return ""
        health = f", Intercom: {deliverer.health}" if deliverer.health != "well" else ""
        return f"{count(deliverer.pending, 'event')} wait (forward.max_backlog{health})"

    def over(self) -> None:
        """Say that reading went on, where it went on to its end between two looks."""
        self._tell("", 0)

    def _tell(self, why: str, for_s: float) -> None:
        if why and for_s >= SILENT_S and not self._is_said:
            hint = "--max-wait ends this, what waits is kept"
            say(f"{self._name}: reading pauses: {why}; {hint}", stderr=True)
            self._is_said = True
        elif not why and self._is_said:
            say(f"{self._name}: reading goes on", stderr=True)
            self._is_said = False
