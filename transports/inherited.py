"""Listening sockets that a service manager has opened before the start: socket activation.

The manager (systemd) passes bound sockets as file descriptors from 3 on and says so in the
environment: ``LISTEN_PID`` (the process that they are for), ``LISTEN_FDS`` (their number) and
``LISTEN_FDNAMES`` (their names; sd_listen_fds(3)). It keeps them open across restarts, so that a
client that connects meanwhile waits in the operating system's queue and is not refused.

A passed socket is used where the settings name its address, whatever its name is: the settings stay
the truth about the ports and their reach. A server works with a duplicate: the socket itself stays
open for a server that starts anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Final

FIRST_DESCRIPTOR: Final = 3
"""Of the sockets that are passed (``SD_LISTEN_FDS_START``)."""

MOST_SOCKETS: Final = 64
"""Descriptors that are looked at: the number comes from outside."""


class Inherited:
    """The listening sockets that this process was given."""

    def __init__(self, sockets: Iterable[tuple[str, socket.socket]] = ()) -> None:
        """``sockets``: each with the name that the manager has for it."""
        self._sockets = list(sockets)
        self._used: set[int] = set()

    def take(self, family: int, address: tuple[object, ...]) -> socket.socket | None:
        """Return a duplicate of the socket that is bound to a host and a port; None: there is none.

        Raises:
            OSError: there are no file descriptors left.
        """
        for _, passed in self._sockets:
            is_alike = (passed.family, passed.type) == (family, socket.SOCK_STREAM)
            if is_alike and passed.getsockname()[:2] == address and _listens(passed):
                self._used.add(passed.fileno())
                return passed.dup()
        return None

    @property
    def unused(self) -> list[str]:
        """The name and the address of each socket that no server has taken."""
        return [
            f"{name} ({_words(passed.getsockname())})"
            for name, passed in self._sockets
            if passed.fileno() not in self._used
        ]


def _listens(passed: socket.socket) -> bool:
    """Whether clients can come to a socket: one of `Accept=yes` is a client's connection."""
    return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _words(address: object) -> str:
    """Return an address for people; that of a Unix socket is a text or bytes."""
    match address:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case _:
            return str(address)


def passed_sockets(environment: Mapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """Return the sockets that an environment says were passed to a process, with their names.

    The sockets do not block, and programs that this one starts do not get them. Variables that make
    no sense count as none: any parent can have left them.
    """
    try:
        if int(environment.get("LISTEN_PID", "0")) != pid:
            return []
        number = min(int(environment.get("LISTEN_FDS", "0")), MOST_SOCKETS)
    except ValueError:
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    sockets: list[tuple[str, socket.socket]] = []
    for index in range(number):
        with suppress(OSError):  # a descriptor that is closed, or no socket
            passed = socket.socket(fileno=FIRST_DESCRIPTOR + index)
            passed.setblocking(False)
            passed.set_inheritable(False)
            name = names[index] if index < len(names) else ""
            sockets.append((name or "unknown", passed))
    return sockets


@cache
def inherited() -> Inherited:
    """Return those of this process; a descriptor can be taken over once only."""
    return Inherited(passed_sockets(os.environ, os.getpid()))
