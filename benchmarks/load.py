"""Clients that do no more than they must: prepared requests over many connections."""

from __future__ import annotations

import asyncio
import itertools
import time

CONNECTIONS = 32


def requests_per_s(address: str, path: str, bodies: list[bytes], seconds: float) -> float:
    """Post bodies over 32 connections for a while; return how many were answered 200 a second."""
    host, _, port = address.rpartition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    return asyncio.run(_post(host, int(port), requests, seconds))


async def _post(host: str, port: int, requests: list[bytes], seconds: float) -> float:
    loop = asyncio.get_running_loop()
    turns = itertools.cycle(requests)
    clients = [
        (await loop.create_connection(lambda: _Client(turns), host, port))[1]
        for _ in range(CONNECTIONS)
    ]
    for client in clients:
        client.send()
    ended = asyncio.Event()
    started = time.perf_counter()
    loop.call_later(seconds, ended.set)
    await ended.wait()
    answered = sum(client.answered for client in clients)
    took_s = time.perf_counter() - started
    for client in clients:
        client.close()
    refused = sum(client.refused for client in clients)
    assert not refused, f"{refused} requests were not answered 200"
    return answered / took_s


class _Client(asyncio.Protocol):
    """One connection: sends the next request when the last is answered."""

    def __init__(self, requests: itertools.cycle[bytes]) -> None:
        self._requests = requests
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self.answered = 0
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        assert self._transport is not None
        self._transport.write(next(self._requests))

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
        self.send()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
