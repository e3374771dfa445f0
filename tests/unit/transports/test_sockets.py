"""Connections: each that waits for its client does so for a bounded time, whoever serves it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp import web

from amplitude_intercom.transports.sockets import (
    HEADER_TIMEOUT_S,
    PROGRESS_BYTES,
    ClientConnection,
    Listener,
)
from support.virtual import in_virtual_time


class Patient(asyncio.Protocol):
    """A server that would wait for ever, and answers every word with a great many."""

    def __init__(self) -> None:
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"?"):
            self.transport.write(bytes(50_000_000))


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.1\r\nHost: half a he", b"?"])
async def test_a_connection_that_waits_for_its_client_ends_under_every_server(said: bytes) -> None:
    listener = Listener(cast("web.Server", Patient), 10, idle_timeout_s=0.02)
    async with listener.listening("127.0.0.1", 0) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
        writer.write(said)
        if said == b"?":
            cast("asyncio.Transport", writer.transport).pause_reading()
            while listener._open_ones or listener._coming:
                await asyncio.sleep(0)
        else:
            assert await reader.read() == b""
        writer.transport.abort()
        assert not listener._open_ones


async def test_a_connection_at_work_is_left_alone_and_counts_again_once_it_has_answered() -> None:
    served: list[Patient] = []

    def serve() -> Patient:
        served.append(Patient())
        return served[-1]

    listener = Listener(cast("web.Server", serve), 10, idle_timeout_s=0.02)
    async with listener.listening("127.0.0.1", 0) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        while not served or served[0].transport is None:
            await asyncio.sleep(0)
        with listener.request(served[0].transport):
            listener.at_work(served[0].transport)
            with pytest.raises(TimeoutError):  # as long as some sweeps take
                await asyncio.wait_for(reader.read(), 0.1)
        assert await reader.read() == b""
        writer.close()


class Watch(Listener):
    """A listener that only keeps the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._waited_for = {}

    def wait_for(self, connection: ClientConnection, *, by_deadline: bool = True) -> None:
        connection.since_s = self.now_s


class Nothing(asyncio.Transport):
    """A transport with nothing to write."""

    def get_write_buffer_size(self) -> int:
        return 0


def test_a_head_has_as_long_after_an_idle_time_as_the_first_one() -> None:
    watch = Watch()
    connection = ClientConnection(watch, asyncio.Protocol())
    connection.connection_made(Nothing())
    connection.answered()
    watch.now_s = 70.0
    assert not connection.is_late(watch.now_s, idle_timeout_s=75.0)
    connection.data_received(b"GET / HT")
    assert not connection.is_late(watch.now_s + HEADER_TIMEOUT_S - 1, idle_timeout_s=75.0)
    watch.now_s += HEADER_TIMEOUT_S - 1
    connection.data_received(b"TP")  # a trickle does not make it longer
    assert connection.is_late(watch.now_s + 2, idle_timeout_s=75.0)


class Carrier(Nothing):
    """A transport of one connection."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._connection


@pytest.mark.parametrize(("body_s", "silent_s", "goes"), [(4, 1, 0), (2, 1, 1), (4, None, 0)])
@in_virtual_time
async def test_uploads_outlive_the_silent_and_give_way_where_there_are_only_uploads(
    body_s: float, silent_s: float | None, goes: int
) -> None:
    """150 s shared by 200 connections are 0.75 s each; a body ages a third as fast."""

    listener = Listener(cast("web.Server", Patient), 200, idle_timeout_s=75.0)
    body, silent = (ClientConnection(listener, asyncio.Protocol()) for _ in range(2))
    carriers = [Carrier(body), Carrier(silent)]
    body.connection_made(carriers[0])
    with listener.request(carriers[0]):
        for passed_s in range(int(body_s * 10)):
            if silent_s is not None and passed_s == (body_s - silent_s) * 10:
                silent.connection_made(carriers[1])
            await asyncio.sleep(0.1)
            body.data_received(bytes(PROGRESS_BYTES))
        assert listener._make_one_give_way()
        assert [carrier.aborted for carrier in carriers] == [goes == 0, goes == 1]
        body.connection_lost(None)
    assert not listener._bodies


@pytest.mark.parametrize(
    ("piece", "goes_first"), [(PROGRESS_BYTES // 4, "a silent one"), (1, "the body")]
)
async def test_a_body_that_comes_on_does_not_give_way_before_a_connection_that_is_silent(
    piece: int, goes_first: str
) -> None:
    listener = Listener(cast("web.Server", Patient), 10, idle_timeout_s=75.0)
    body, silent = (ClientConnection(listener, asyncio.Protocol()) for _ in range(2))
    carrier = Carrier(body)
    body.connection_made(carrier)
    body.data_received(b"POST / HTTP/1.1\r\n\r\n")
    with listener.request(carrier):
        silent.connection_made(Carrier(silent))
        for _ in range(4):
            body.data_received(bytes(piece))
        first = next(iter(listener._waited_for))
        assert first is (silent if goes_first == "a silent one" else body)
        listener.at_work(carrier)
        body.data_received(bytes(PROGRESS_BYTES))  # of its next request
        assert list(listener._waited_for) == [silent]
