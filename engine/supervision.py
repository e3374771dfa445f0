"""Supervision: work that starts again after an internal fault, while all other work goes on.

Rules
=====
1. A fault that belongs to no record stops one piece of work: a sync's feed, an access token's
   pipeline, a relay, a source, or the intake.
2. The work starts again after a second, then after twice as long each time, up to a minute.
3. A minute without a fault sets the pause back to a second.
4. During a pause ``stopped`` holds the fault, for ``status`` and the monitors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.internal_faults import describe

_log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


class Supervisor:
    """Runs one piece of work until it ends without a fault, or ``end`` was called."""

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        final: tuple[type[Exception], ...] = (),
        **about: object,
    ) -> None:
        """``final``: errors that are raised, since another start would not help.

        ``about`` names the work in logs: ``sync="production"``, ``source="http"``; a function
        is asked when there is something to log.
        """
        self._work = work
        self._final = final
        self._about = about
        self._ended = anyio.Event()
        self.stopped = ""
        """The fault for which the work pauses now; empty while it runs."""
        self.faults = 0

    def end(self) -> None:
        """Let the next fault be the last: the work is not started again."""
        self._ended.set()

    async def run(self) -> None:
        """Run the work until it has ended. Cancellation cancels the work."""
        pause_s = FIRST_PAUSE_S
        while not await self._ends_well():
            # Measured from the start of the work: the pause before it is no time without a fault.
            ran_s = anyio.current_time() - self._began_s
            pause_s = FIRST_PAUSE_S if ran_s >= LONGEST_PAUSE_S else pause_s
            # At ``end`` the pause is over at once: a drain must not wait a minute for it.
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
            about = {key: what() if callable(what) else what for key, what in self._about.items()}
            _log.error("stopped by an internal fault", exc_info=fault, **about)
            return False
        return True


def _first(fault: Exception) -> Exception:
    # Task groups wrap a fault, often twice, in a group whose text does not name it.
    while isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    return fault
