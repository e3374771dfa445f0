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
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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

    @property
    def crowded(self) -> bool:
        """Whether connections should be closed after their request: others may be waiting."""
        return len(self._server.connections) >= self._max * 3 // 4

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Accept connections at host:port while the context is open; gives the address.

        Raises:
            OSError: it cannot be listened on.
        """
        sockets = await _bind(host, port)
        tasks = [asyncio.create_task(self._accept(one)) for one in sockets]
        try:
            name, number = sockets[0].getsockname()[:2]
            yield f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in sockets:
                one.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._server.connections) >= self._max:  # noqa: ASYNC110 - theirs, no event
                await asyncio.sleep(LOOK_EVERY_S)
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _EXHAUSTED:  # elsewhere too many files are open
                    await asyncio.sleep(LOOK_EVERY_S)
                continue
            try:
                await loop.connect_accepted_socket(self._server, connection)
            except OSError:
                connection.close()  # its client is gone already


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Open the listening sockets of a host: a name may have several addresses."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            opened = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            opened.setblocking(False)
            sockets.append(opened)
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets
