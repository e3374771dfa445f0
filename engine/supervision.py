"""Work that is started again after a fault of ours, later each time, beside work that goes on.

A fault that belongs to no record stops what it happened in: one sync's delivery, one source. It
starts again by itself after a second, then after twice as long each time, up to a minute; work that
has run well for a minute starts at a second again. Until then ``stopped`` says why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.faults import describe

_log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


class Supervisor:
    """Runs one piece of work until it ends well, or until ``end`` is called while it stands."""

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        final: tuple[type[Exception], ...] = (),
        **about: object,
    ) -> None:
        """``final`` errors are raised: starting again would not help.

        ``about`` names the work in logs: ``sync="production"``, ``source="http"``.
        """
        self._work = work
        self._final = final
        self._about = about
        self._ended = anyio.Event()
        self.stopped = ""
        """The fault that keeps the work from running now; empty while it runs."""
        self.faults = 0

    def end(self) -> None:
        """Do not start the work again after its next fault."""
        self._ended.set()

    async def run(self) -> None:
        """Return when the work has ended. Cancelled, the work is."""
        pause_s = FIRST_PAUSE_S
        while not await self._ends_well():
            ran_s = anyio.current_time() - self._began_s
            pause_s = FIRST_PAUSE_S if ran_s >= LONGEST_PAUSE_S else pause_s
            with anyio.move_on_after(pause_s):
                await self._ended.wait()
                return
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _ends_well(self) -> bool:
        self.stopped = ""
        self._began_s = anyio.current_time()
        try:
            await self._work()
        except self._final:
            raise
        except Exception as fault:
            self.faults += 1
            self.stopped = describe(_first(fault))
            _log.error("stopped by an internal fault", exc_info=fault, **self._about)
            return False
        return True


def _first(fault: Exception) -> Exception:
    while isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    return fault
