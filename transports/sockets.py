"""Listening with a bound: how many connections are open at once, whatever the clients do.

A server beyond its limit of file descriptors fails where it least should: in the spool, or in a
call to Intercom. So connections are accepted only while there is room for them; the others wait in
the operating system's queue, and are served as soon as earlier ones are gone.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

BACKLOG: Final = 512
OWN_DESCRIPTORS: Final = 24
"""Files, pipes and listening sockets that the program itself has open."""

LOOK_EVERY_S: Final = 0.05


def raise_descriptor_limit() -> None:
    """Let this process open as many files as the system allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def share_of_descriptors(share: float) -> int:
    """Return how many connections a share of the descriptors allows, at least four."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20
    return max(4, int((limit - OWN_DESCRIPTORS) * share))


class Listener:
    """Accepts connections for one server of aiohttp's."""

    def __init__(self, server: web.Server, max_connections: int) -> None:
        self._server = server
        self._max = max_connections
        self._coming: set[asyncio.Task[None]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}

    @property
    def crowded(self) -> bool:
        """Whether connections should be closed after their request: others may be waiting."""
        return self._open >= self._max * 3 // 4

    @property
    def _open(self) -> int:
        return len(self._server.connections) + len(self._coming)

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Accept connections at host:port while the context is open; gives the address.

        Raises:
            OSError: it cannot be listened on.
        """
        sockets = await _bind(host, port)
        for one in sockets:
            self._watch(one)
        try:
            name, number = sockets[0].getsockname()[:2]
            yield f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        finally:
            for one in sockets:
                self._unwatch(one)
                one.close()
            await asyncio.gather(*self._coming)

    def _watch(self, listening: socket.socket) -> None:
        self._pauses.pop(listening, None)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _unwatch(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listening)
        pause = self._pauses.pop(listening, None)
        if pause is not None:
            pause.cancel()

    def _accept(self, listening: socket.socket) -> None:
        """Accept one connection, or look again a little later where there is no room for it."""
        if self._open >= self._max:
            self._pause(listening)
            return
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # its client is gone already
        except OSError:  # too many files are open elsewhere, or memory is short
            self._pause(listening)
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._hand_over(connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    def _pause(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        self._pauses[listening] = loop.call_later(LOOK_EVERY_S, self._watch, listening)

    async def _hand_over(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._server, connection)
        except OSError:
            connection.close()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Open the listening sockets of a host: a name may have several addresses, not all of use.

    Raises:
        OSError: none of them can be listened on, or one is taken.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            opened = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                for one in sockets:
                    one.close()
                raise
            absent = error
            continue
        opened.setblocking(False)
        sockets.append(opened)
    if absent is not None and not sockets:
        raise absent
    return sockets
