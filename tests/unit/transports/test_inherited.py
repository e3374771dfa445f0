"""Passed sockets: the one that a server can listen on is used, others are left and said."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from amplitude_intercom.transports.inherited import Inherited, passed_sockets

ADDRESS = ("127.0.0.1", 0)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_of_thirty_sockets_the_one_with_the_address_is_taken(opened: ExitStack) -> None:
    sockets = [opened.enter_context(socket.create_server(ADDRESS)) for _ in range(30)]
    passed = Inherited((f"s{n}", one) for n, one in enumerate(sockets))
    address = sockets[17].getsockname()
    taken = passed.take(socket.AF_INET, address)
    assert taken is not None
    with taken:
        assert taken.getsockname() == address
        assert taken.fileno() != sockets[17].fileno()
    assert len(passed.unused) == 29
    assert f"s17 (127.0.0.1:{address[1]})" not in passed.unused


@pytest.mark.parametrize("kind", ["UDP", "bound", "connected", "accepted", "Unix", "netlink"])
def test_a_socket_that_takes_no_clients_is_left_and_said(opened: ExitStack, kind: str) -> None:
    server = opened.enter_context(socket.create_server(ADDRESS))
    if kind == "connected":
        one = opened.enter_context(socket.create_connection(server.getsockname()))
    elif kind == "accepted":
        opened.enter_context(socket.create_connection(server.getsockname()))
        one = opened.enter_context(server.accept()[0])
    else:
        family = {"Unix": socket.AF_UNIX, "netlink": socket.AF_NETLINK}.get(kind, socket.AF_INET)
        form = socket.SOCK_STREAM if kind in ("bound", "Unix") else socket.SOCK_DGRAM
        one = opened.enter_context(socket.socket(family, form))
        if family == socket.AF_INET:
            one.bind(ADDRESS)
    passed = Inherited([("odd", one)])
    name = one.getsockname()
    at = name if kind not in ("Unix", "netlink") else server.getsockname()
    assert passed.take(socket.AF_INET, at) is None
    [said] = passed.unused
    assert said.startswith("odd (")


@pytest.mark.parametrize(
    "number", ["-1", "many", "9" * 5_000, "1e3", "", "0x1", "\N{SUPERSCRIPT TWO}", "\0"]
)
def test_a_number_of_sockets_that_makes_no_sense_counts_as_none(number: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number}
    assert passed_sockets(environment, os.getpid()) == []
    environment = {"LISTEN_PID": number, "LISTEN_FDS": "1"}
    assert passed_sockets(environment, os.getpid()) == []
