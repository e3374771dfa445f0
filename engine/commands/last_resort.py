"""The end of a process that cannot end by itself: a disk may hang for ever, and a thread with it.

What was acknowledged is on disk before it is acknowledged, so an end at any instant loses nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.commands.running import FAILED

_log = structlog.get_logger(__name__)

OURS: Final = str(Path(__file__).parents[1])
"""The folder of this program's modules."""


class LastResort:
    """Ends the process at an instant. The earliest of several holds, and none is taken back."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        """``end`` ends the process with an exit code; it waits for no thread."""
        self._end = end
        self._changed = threading.Condition()
        self._at_s: float | None = None

    def arm(self, within_s: float) -> None:
        """End the process in so many seconds, unless it has ended by then."""
        at_s = time.monotonic() + within_s
        with self._changed:
            is_first = self._at_s is None
            self._at_s = at_s if self._at_s is None else min(at_s, self._at_s)
            self._changed.notify()
        if is_first:
            # A thread, since the event loop may hang as well.
            threading.Thread(target=self._wait, name="last resort", daemon=True).start()

    def _wait(self) -> None:
        with self._changed:
            while (wait_s := (self._at_s or 0.0) - time.monotonic()) > 0:
                self._changed.wait(wait_s)
        text = "ended without waiting any longer: what was acknowledged is on disk"
        _log.error(text, hangs=hanging())
        logs.flush()
        self._end(FAILED)


def hanging() -> dict[str, str]:
    """Return where threads are in this program's modules, by thread; not those that rest."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    found = {
        names.get(ident, str(ident)): _where(frame)
        for ident, frame in sys._current_frames().items()
        if ident != own
    }
    return {name: where for name, where in found.items() if where}


def _where(frame: FrameType) -> str:
    """Return the innermost place in this program; empty where its thread waits for work."""
    at: FrameType | None = frame
    while at is not None and not at.f_code.co_filename.startswith(OURS):
        # An executor's thread without work, or an event loop without news.
        if at.f_code.co_filename.endswith("selectors.py"):
            return ""
        at = at.f_back
    if at is None or at.f_code.co_filename.endswith("logs.py"):
        return ""
    return f"{Path(at.f_code.co_filename).name}:{at.f_lineno} {at.f_code.co_name}"
