"""The service manager (systemd) that has started the daemon: readiness, reloads, watchdog.

The manager names a socket in the environment (``NOTIFY_SOCKET``; sd_notify(3)); without one nothing
is sent. It may ask for a sign of life (``WATCHDOG_USEC``, microseconds; sd_watchdog_enabled(3)):
the event loop gives it, so that a daemon whose loop hangs is started again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

import anyio
import sdnotify

SIGNS_IN_TIME: Final = 3
"""Signs of life in the time that the manager waits for one: a slow moment must not be the last."""


class ServiceManager:
    """See the module's docstring."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._notifier = sdnotify.SystemdNotifier() if environment.get("NOTIFY_SOCKET") else None
        self.watchdog_s = _watchdog_s(environment, os.getpid()) if self._notifier else None
        """Seconds within which a sign of life is expected; None: none is."""
        self._is_stopping = False

    def ready(self, status: str) -> None:
        """Say that the daemon serves, after its start or a reload. ``status``: for people."""
        self._tell_unless_stopping("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that settings are being read; ``ready`` says that it is over."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._tell_unless_stopping("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, within_s: float) -> None:
        """Say that the daemon drains, and how long that may take. It is never ready again."""
        self._is_stopping = True
        self._tell("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    async def keep_alive(self) -> None:
        """Give signs of life for ever; return at once where none is expected."""
        while self.watchdog_s is not None:
            self._tell("WATCHDOG=1")
            await anyio.sleep(self.watchdog_s / SIGNS_IN_TIME)

    def _tell_unless_stopping(self, *lines: str) -> None:
        # A reload may be asked for, or end, while the daemon drains. Said then, these would have
        # the manager believe that it goes on.
        if not self._is_stopping:
            self._tell(*lines)

    def _tell(self, *lines: str) -> None:
        if self._notifier is not None:
            text = "\n".join(line.replace("\n", " ") for line in lines)
            self._notifier.notify(text.encode("ascii", "replace").decode())


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds that an environment names for this process; odd values count as none."""
    try:
        within_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        is_ours = int(environment.get("WATCHDOG_PID", str(pid))) == pid
    except ValueError:
        return None
    return within_s if is_ours and 0 < within_s < 1e6 else None
