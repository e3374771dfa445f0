"""HTTP clients at the least cost: prepared requests over many connections."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

CONNECTIONS = 32
"""Connections, each with one request at a time."""

PACE_S = 0.01
"""Seconds between two rounds of sending the requests that are due."""


def requests_per_s(address: str, path: str, bodies: list[bytes], seconds: float) -> float:
    """Post bodies again and again for some seconds; return the answers 200 a second.

    Raises:
        AssertionError: an answer was not 200. So do all functions here.
    """
    turns = itertools.cycle(list(_requests(address, path, bodies)))
    return asyncio.run(_for_a_while(address, turns, seconds))


def post_all(address: str, path: str, bodies: Iterable[bytes]) -> None:
    """Post each body once; return when all are answered."""
    asyncio.run(_each_once(address, _requests(address, path, bodies)))


def post_paced(address: str, path: str, bodies: Sequence[bytes], per_s: float) -> float:
    """Post each body once, ``per_s`` a second; return the seconds until all were answered."""
    return asyncio.run(_paced(address, _requests(address, path, bodies), per_s))


def _requests(address: str, path: str, bodies: Iterable[bytes]) -> Iterator[bytes]:
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    for body in bodies:
        yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _for_a_while(address: str, turns: Iterator[bytes], seconds: float) -> float:
    clients = await _connect(address, lambda client: client.send(next(turns)))
    ended = asyncio.Event()
    started = time.perf_counter()
    asyncio.get_running_loop().call_later(seconds, ended.set)
    await ended.wait()
    answered = sum(client.answered for client in clients)
    took_s = time.perf_counter() - started
    _close(clients)
    return answered / took_s


async def _each_once(address: str, requests: Iterator[bytes]) -> None:
    at_work = CONNECTIONS
    ended = asyncio.Event()

    def idle(client: _Client) -> None:
        nonlocal at_work
        request = next(requests, None)
        if request is not None:
            client.send(request)
            return
        at_work -= 1
        if not at_work:
            ended.set()

    clients = await _connect(address, idle)
    await ended.wait()
    _close(clients)


async def _paced(address: str, requests: Iterator[bytes], per_s: float) -> float:
    idle: deque[_Client] = deque()
    clients = await _connect(address, idle.append)
    started = time.perf_counter()
    sent = 0
    more = True
    while more or len(idle) < len(clients):
        while more and idle and sent < (time.perf_counter() - started) * per_s:
            request = next(requests, None)
            more = request is not None
            if request is not None:
                idle.popleft().send(request)
                sent += 1
        await asyncio.sleep(PACE_S)
    took_s = time.perf_counter() - started
    _close(clients)
    return took_s


async def _connect(address: str, idle: Callable[[_Client], None]) -> list[_Client]:
    """Open connections. ``idle`` is called with each one that has no request, now and later."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: _Client(idle), host, int(port)))[1]
        for _ in range(CONNECTIONS)
    ]
    for client in clients:
        idle(client)
    return clients


def _close(clients: Sequence[_Client]) -> None:
    for client in clients:
        client.close()
    refused = sum(client.refused for client in clients)
    assert not refused, f"{refused} requests were not answered 200"


class _Client(asyncio.Protocol):
    """A connection, which calls ``idle`` when its request is answered."""

    def __init__(self, idle: Callable[[_Client], None]) -> None:
        self._idle = idle
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self.answered = 0
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, rest = self._heard.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self._heard = b""
        if head.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        else:
            self.refused += 1
        self._idle(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
