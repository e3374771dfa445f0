"""Sockets that a service manager keeps open: a restart refuses no client."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process


@pytest.fixture
def http() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as opened:
        yield opened


@pytest.fixture
def admin() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as opened:
        yield opened


def address(opened: socket.socket) -> str:
    host, port = opened.getsockname()
    return f"{host}:{port}"


async def test_a_restart_refuses_no_client_of_passed_sockets(
    tmp_path: Path, http: socket.socket, admin: socket.socket
) -> None:
    top = {"http": {"listen": address(http)}, "admin": {"listen": address(admin)}}
    local = Sandbox(latency_s=0)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top=top)
        for run in range(2):
            events = [process.event("ada-lovelace", run)]
            waiting = asyncio.create_task(
                process.upload(f"http://{address(http)}/2/httpapi", events)
            )
            # Nobody is there yet: the operating system has the connection already.
            reader, writer = await asyncio.open_connection(*http.getsockname())
            running = await process.start(config, sockets=[http, admin])
            assert running.http == f"http://{address(http)}"
            assert (await waiting)[0] == 200
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            assert (await running.ready())[0] == 200
            assert await running.end(signal.SIGTERM) == 0
            assert not [entry for entry in running.log if entry["level"] == "warning"]
    assert http.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


async def test_a_passed_socket_that_no_setting_names_is_said(
    tmp_path: Path, http: socket.socket, admin: socket.socket
) -> None:
    async with serve(Sandbox(latency_s=0)) as url:
        config = process.settings(tmp_path, url, top={"admin": {"listen": address(admin)}})
        running = await process.start(config, sockets=[http, admin])
        assert await running.end(signal.SIGTERM) == 0
    said = [entry["socket"] for entry in running.log if "passed socket" in entry["event"]]
    assert said == [f"unknown ({address(http)})"]


@pytest.mark.parametrize("pid", ["1", "nobody", ""])
async def test_sockets_that_are_for_another_process_are_left_alone(
    tmp_path: Path, pid: str
) -> None:
    env = {"LISTEN_PID": pid, "LISTEN_FDS": "3000000000"}
    async with (
        serve(Sandbox(latency_s=0)) as url,
        process.daemon(process.settings(tmp_path, url), env) as running,
    ):
        assert (await running.ready())[0] == 200
    assert not [entry for entry in running.log if "passed socket" in entry["event"]]
