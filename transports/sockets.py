"""Listening with a bound on open connections, and a bound on every wait for a client.

A server beyond its limit of file descriptors fails where it least should: in the spool, or in a
call to Intercom. So the number of connections is limited, and a connection waits for its client a
bounded time, with any version of aiohttp:

| waits for | at most |
|---|---|
| the rest of a request's head, or the first byte of the first one | ``HEADER_TIMEOUT_S`` |
| the next request | ``idle_timeout_s`` |
| an answer to be read | ``ANSWER_TIMEOUT_S`` without any progress |
| a body | the server's own deadline |

At the limit the oldest connection gives way to a new one. Its age is its silence, or a third of the
time since its body began (``BODY_AGES``). So an upload outlives silent connections, but slow
uploads alone cannot hold every connection. If none is as old as its share of ``GIVE_WAY_S``, new
ones stay in the operating system's queue.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import islice
from operator import itemgetter
from typing import Final, cast

import anyio
from aiohttp import web

from amplitude_intercom.transports.inherited import inherited

BACKLOG: Final = 512
OWN_DESCRIPTORS: Final = 24
"""Files, pipes and listening sockets that the program itself has open."""

CLOSING_S: Final = 1.0
"""Until a request at work has to be answered when its server ends."""

LAST_HEADS_S: Final = 0.2
"""Until a client that came just before the end has to send its request."""

LOOK_EVERY_S: Final = 0.05
SWEEP_EVERY_S: Final = 1.0

HEADER_TIMEOUT_S: Final = 10.0
"""A request's head is a packet or two: this is for the worst of mobile networks."""

ANSWER_TIMEOUT_S: Final = 10.0
"""An answer is some hundred bytes, which the kernel's buffers take at once. A client that does not
read even that is gone."""

PROGRESS_BYTES: Final = 1_024
"""Bytes of a body that end a client's silence; a trickle brings fewer."""

BODY_AGES: Final = 3.0
"""Seconds of a body in transfer that count as one second of silence."""

GIVE_WAY_S: Final = 150.0
"""Shared by all connections: with a thousand, 0.15 s each. A real client sends its request right
behind its connecting; and the lower the limit, the likelier it was reached by real clients."""


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


class ClientConnection(asyncio.Protocol):
    """One connection: forwards to the server's own protocol, and notes each wait for its client."""

    def __init__(self, listener: Listener, served_by: asyncio.Protocol) -> None:
        self._listener = listener
        self._served_by = served_by
        self.since_s = 0.0
        """The loop's time at which the wait for its client began."""
        self._has_begun = True
        """Whether its client owes the rest of a request."""
        self._came_bytes = 0
        """Bytes of a body since the last progress."""
        self.is_new = True
        """Whether nothing has come of its first request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._listener.wait_for(self)
        self._served_by.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.is_new = False
        if not self._has_begun:  # the time for a head begins with its first byte, not before
            self._listener.wait_for(self)
        elif self._listener.is_in_body(self):
            self._came_bytes += len(data)
            if self._came_bytes >= PROGRESS_BYTES:
                self._came_bytes = 0
                self._listener.progressed(self)
        self._has_begun = True
        self._served_by.data_received(data)

    def eof_received(self) -> bool | None:
        return self._served_by.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.forget(self)
        self._served_by.connection_lost(exc)

    def pause_writing(self) -> None:
        self._served_by.pause_writing()

    def resume_writing(self) -> None:
        # The buffer has drained: the client reads, so its wait begins anew.
        self._listener.progressed(self)
        self._served_by.resume_writing()

    def answered(self) -> None:
        """Wait for the next request from now on."""
        self._has_begun = False
        self._listener.wait_for(self)

    def is_late(self, now_s: float, idle_timeout_s: float) -> bool:
        """Whether the wait for its client has reached its bound."""
        if self.transport.get_write_buffer_size():
            limit_s = ANSWER_TIMEOUT_S
        elif self._has_begun:
            limit_s = HEADER_TIMEOUT_S
        else:
            limit_s = idle_timeout_s
        return now_s - self.since_s > min(limit_s, idle_timeout_s)


class Listener:
    """Accepts connections for one server of aiohttp's."""

    def __init__(self, server: web.Server, max_connections: int, idle_timeout_s: float) -> None:
        # Both dictionaries keep the order of age, so that finding the oldest costs no search.
        self._server = server
        self._max = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._coming: set[asyncio.Task[None]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open_ones: set[ClientConnection] = set()
        self._waited_for: dict[ClientConnection, bool] = {}
        """Connections that may be closed, longest silence first → whether ``_sweep`` does it."""
        self._bodies: dict[ClientConnection, float] = {}
        """Connections with a body in transfer → its beginning, the oldest first."""

    @property
    def is_nearly_full(self) -> bool:
        """Whether connections should be closed after their request: others may be waiting."""
        # Not only at the limit: one that is kept alive would then have to be found and aborted.
        return self._open >= self._max * 3 // 4

    @property
    def open_count(self) -> int:
        """Connections that are open now."""
        return self._open

    @property
    def _open(self) -> int:
        return len(self._open_ones) + len(self._coming)

    # --- connections report their waits ---------------------------------------------------

    @contextmanager
    def request(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Note the beginning of a connection's request, and the end of its answer.

        Until ``at_work`` the request waits for its client, within the server's own deadline.
        """
        connection = self._connection(transport)
        if connection is not None:
            self.wait_for(connection, by_deadline=False)
            self._bodies[connection] = connection.since_s
        try:
            yield
        finally:
            if connection is not None:
                self._bodies.pop(connection, None)
            if connection in self._open_ones:
                connection.answered()

    def at_work(self, transport: asyncio.BaseTransport | None) -> None:
        """Note that a request is complete: its connection no longer gives way."""
        connection = self._connection(transport)
        if connection is not None:
            self._waited_for.pop(connection, None)
            self._bodies.pop(connection, None)

    def _connection(self, transport: asyncio.BaseTransport | None) -> ClientConnection | None:
        found = transport.get_protocol() if transport is not None else None
        return found if isinstance(found, ClientConnection) else None

    def wait_for(self, connection: ClientConnection, *, by_deadline: bool = True) -> None:
        """Begin a wait for a connection's client."""
        self._open_ones.add(connection)
        # Taken out first, so that it goes to the end: the order of the dictionary is the age.
        self._waited_for.pop(connection, None)
        self._waited_for[connection] = by_deadline
        connection.since_s = asyncio.get_running_loop().time()

    def progressed(self, connection: ClientConnection) -> None:
        """Note that a client reads its answer, or sends on."""
        if connection in self._waited_for:
            self.wait_for(connection, by_deadline=self._waited_for[connection])

    def is_in_body(self, connection: ClientConnection) -> bool:
        """Whether a connection waits for the rest of a body."""
        return self._waited_for.get(connection) is False

    def forget(self, connection: ClientConnection) -> None:
        """Note that a connection is gone."""
        self._open_ones.discard(connection)
        self._waited_for.pop(connection, None)
        self._bodies.pop(connection, None)

    async def _sweep(self) -> None:
        """Close late connections, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(SWEEP_EVERY_S, self._idle_timeout_s))
            for connection, by_deadline in list(self._waited_for.items()):
                if by_deadline and connection.is_late(loop.time(), self._idle_timeout_s):
                    # Not ``close``, which would wait until the client has read its answer.
                    connection.transport.abort()

    def _make_one_give_way(self) -> bool:
        """Close the oldest connection, if it is old enough; return whether one was closed."""
        now_s = asyncio.get_running_loop().time()
        ages = [(now_s - silent.since_s, silent) for silent in islice(self._waited_for, 1)]
        begun = islice(self._bodies.items(), 1)
        ages += [((now_s - since_s) / BODY_AGES, sending) for sending, since_s in begun]
        age_s, oldest = max(ages, key=itemgetter(0), default=(0.0, None))
        if oldest is None or age_s < GIVE_WAY_S / self._max:
            return False
        oldest.transport.abort()
        return True

    # --- listening ------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Accept connections at host:port while the context is open; yield the address.

        Raises:
            OSError: the address cannot be listened on.
        """
        sockets = await _bind(host, port)
        for listening in sockets:
            self._watch(listening)
        sweep = asyncio.create_task(self._sweep())
        try:
            name, number = sockets[0].getsockname()[:2]
            yield f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        finally:
            # Accepting ends before the tasks are awaited, or new ones would go on coming.
            sweep.cancel()
            for listening in sockets:
                self._unwatch(listening)
                listening.close()
            # A task group cancels again at each await, and would cut this short.
            with anyio.CancelScope(shield=True):
                await asyncio.gather(sweep, *self._coming, return_exceptions=True)
                await self._last_heads()

    async def _last_heads(self) -> None:
        """Wait a little for clients that have just come: a close would reset them unheard."""
        for _ in range(20):
            if not any(connection.is_new for connection in self._open_ones):
                return
            await asyncio.sleep(LAST_HEADS_S / 20)

    def _watch(self, listening: socket.socket) -> None:
        self._pauses.pop(listening, None)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _unwatch(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(listening)
        pause = self._pauses.pop(listening, None)
        if pause is not None:
            pause.cancel()

    def _accept(self, listening: socket.socket) -> None:
        """Accept one connection, or pause at the limit."""
        if self._open >= self._max:
            if not self._make_one_give_way():
                self._pause(listening)
            return  # the loop calls again once the aborted one is gone
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # its client has gone already
        except OSError:  # no descriptor or memory is left: without a pause the loop would spin
            self._pause(listening)
            return
        connection.setblocking(False)
        # Counted while it is handed over, or a burst would pass the limit.
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
            await loop.connect_accepted_socket(
                lambda: ClientConnection(self, self._server()), connection
            )
        except OSError:
            connection.close()


async def clean_up(runner: web.BaseRunner) -> None:
    """End a server; requests at work are still answered, within ``CLOSING_S``.

    A cancelled task group, which cancels again at each await, does not cut this short.
    """
    with anyio.CancelScope(shield=True):
        await runner.cleanup()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Return the listening sockets of a host; a name may have several addresses, not all usable.

    A socket that a service manager has opened at one of them is used as it is.

    Raises:
        OSError: none of them can be listened on, or one is taken.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            opened = inherited().take(family, address[:2]) or socket.create_server(
                address[:2], family=family, backlog=BACKLOG
            )
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                for listening in sockets:
                    listening.close()
                raise
            absent = error
            continue
        opened.setblocking(False)
        sockets.append(opened)
    if absent is not None and not sockets:
        raise absent
    return sockets
