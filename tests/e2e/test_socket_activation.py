"""Sockets that a service manager keeps open: a restart refuses no client."""

from __future__ import annotations

import asyncio
import json
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


async def test_restarts_under_load_reset_no_client(
    tmp_path: Path, http: socket.socket, admin: socket.socket
) -> None:
    """Each client connects anew for each event; 503 says that it should come again."""
    top = {"http": {"listen": address(http)}, "admin": {"listen": address(admin)}}
    heads: list[bytes] = []
    ends = asyncio.Event()

    async def client(user: str) -> None:
        n = 0
        while not ends.is_set():
            n += 1
            upload = {"api_key": process.API_KEY, "events": [process.event(user, n)]}
            body = json.dumps(upload).encode()
            reader, writer = await asyncio.open_connection(*http.getsockname())
            head = f"POST /2/httpapi HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
            heads.append((await reader.readline())[9:12])
            writer.close()

    async with serve(Sandbox(latency_s=0)) as url, asyncio.TaskGroup() as clients:
        config = process.settings(tmp_path, url, top=top)
        tasks = [clients.create_task(client(f"client-{number}")) for number in range(30)]
        for _ in range(4):
            running = await process.start(config, sockets=[http, admin])
            await process.moment(0.5)
            assert await running.end(signal.SIGTERM) == 0
        running = await process.start(config, sockets=[http, admin])
        ends.set()
        await asyncio.wait(tasks)
        assert await running.end(signal.SIGTERM) == 0
    assert heads.count(b"200") > 100
    assert set(heads) <= {b"200", b"503"}


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
