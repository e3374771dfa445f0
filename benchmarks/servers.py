"""The servers beside the measured daemon, each in a process of its own.

``python -m benchmarks.servers NAME`` prints the address, and serves until it is interrupted.

==================  =========================================================================
``bare-intake``     a reference for intake: decodes uploads, and stores nothing
``durable-intake``  a reference for intake: decodes the needed fields of each event, and stores
                    each request as one row, many rows in one commit
``intercom``        answers every call with success and Intercom's headers, and stores nothing
``sandbox``         the local Intercom, which has ``KNOWN_USERS`` contacts and takes any token
==================  =========================================================================
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from aiohttp import web

from amplitude_intercom.engine.commands.running import collect_garbage_rarely
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from amplitude_intercom.transports.sockets import raise_descriptor_limit

KNOWN_USERS = 10_000
"""Contacts of the sandbox."""

MANY_CALLS = 50_000_000
"""A limit of calls a minute that no benchmark reaches."""


async def _take(request: web.BaseRequest) -> web.Response:
    """Decode an upload, and answer it."""
    upload = msgspec.json.decode(await request.read())
    body = msgspec.json.encode({"code": 200, "events_ingested": len(upload["events"])})
    return web.Response(body=body, content_type="application/json")


async def _serve_bare_intake() -> None:
    await _serve_http(_take)


async def _serve_http(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> None:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"{runner.addresses[0][0]}:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


class _Needed(msgspec.Struct, gc=False):
    """The fields of an event that an intake needs."""

    event_type: str
    user_id: str
    device_id: str = ""
    insert_id: str = ""
    time: int = 0


class _Upload(msgspec.Struct, gc=False):
    api_key: str
    events: list[_Needed]


class _DurableIntake:
    """Stores each request as a row. Requests that arrive during a commit share the next one."""

    def __init__(self, folder: Path) -> None:
        self._decode = msgspec.json.Decoder(_Upload).decode
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._commits: asyncio.Task[None] | None = None
        self._db = sqlite3.connect(
            folder / "bodies.db", isolation_level=None, check_same_thread=False
        )
        self._db.executescript(
            "PRAGMA page_size = 8192; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;"
        )

    async def take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        upload = self._decode(body)
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, stored))
        if self._commits is None or self._commits.done():
            self._commits = asyncio.create_task(self._commit())
        await stored
        answer = msgspec.json.encode({"code": 200, "events_ingested": len(upload.events)})
        return web.Response(body=answer, content_type="application/json")

    async def _commit(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            await asyncio.to_thread(self._store, [body for body, _ in taken])
            for _, stored in taken:
                stored.set_result(None)

    def _store(self, bodies: list[bytes]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO bodies (body) VALUES (?)", [(body,) for body in bodies])
        self._db.execute("COMMIT")


async def _serve_durable_intake() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await _serve_http(_DurableIntake(Path(folder)).take)


ANSWER = (
    b"HTTP/1.1 %s\r\nContent-Length: %d\r\nX-RateLimit-Limit: 8333333\r\n"
    b"X-RateLimit-Remaining: 8000000\r\nX-RateLimit-Reset: %d\r\n\r\n%s"
)
ME = b'{"type":"admin","id":"1","app":{"type":"app","id_code":"benchmark"}}'
ATTRIBUTES = msgspec.json.encode(
    {
        "type": "list",
        "data": [
            {"name": name, "data_type": data_type, "custom": True}
            for name, data_type in (("plan", "string"), ("seats", "integer"))
        ],
    }
)
CONTACT_BYTES = 1_900
"""Bytes of a contact in an answer of Intercom's (recordings)."""


def contact_of(user: bytes) -> bytes:
    """Return the JSON of a contact. ``user`` is the eight digits of a user's number."""
    contact = (
        b'{"type":"contact","id":"%s","external_id":"user-%s","custom_attributes":{},"padding":"'
        % (user.rjust(24, b"0"), user)
    )
    return contact + b"x" * (CONTACT_BYTES - len(contact) - 2) + b'"}'


def answer_of(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return the status line and the body that answer a request."""
    path = head.split(b" ", 2)[1]
    if path == b"/events":
        return b"202 Accepted", b""
    if path.startswith(b"/contacts"):
        user = path[-8:] if path != b"/contacts" else body.partition(b'"user-')[2][:8]
        return b"200 OK", contact_of(user)
    return b"200 OK", ME if path == b"/me" else ATTRIBUTES


class _Intercom(asyncio.Protocol):
    """A server for requests with a ``Content-Length``, one at a time, as aiohttp sends them.

    It parses no more than that, so that a delivery is measured and not its server.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._heard = b""

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while True:
            head, found, rest = self._heard.partition(b"\r\n\r\n")
            if not found:
                return
            _, length, after = head.lower().partition(b"content-length: ")
            needed = int(after.partition(b"\r\n")[0]) if length else 0
            if len(rest) < needed:
                return
            self._heard = rest[needed:]
            status, body = answer_of(head, rest[:needed])
            reset_s = int(time.time() / 10) * 10 + 10
            self._transport.write(ANSWER % (status, len(body), reset_s, body))


async def _serve_intercom() -> None:
    server = await asyncio.get_running_loop().create_server(_Intercom, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


async def _serve_sandbox() -> None:
    raise_descriptor_limit()  # every access token has connections of its own
    local = Sandbox(limit_per_minute=MANY_CALLS)
    for user in range(KNOWN_USERS):
        local.add_contact(external_id=f"user-{user:08}")
    async with serve(local) as url:
        print(url.removeprefix("http://"), flush=True)
        await asyncio.Event().wait()


@contextmanager
def running(name: str) -> Iterator[str]:
    """Run one of ``SERVERS`` in a process of its own; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.servers", name], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


SERVERS = {
    "bare-intake": _serve_bare_intake,
    "durable-intake": _serve_durable_intake,
    "intercom": _serve_intercom,
    "sandbox": _serve_sandbox,
}

if __name__ == "__main__":
    collect_garbage_rarely()  # as the daemon does, for a fair comparison
    with suppress(KeyboardInterrupt):
        asyncio.run(SERVERS[sys.argv[1]]())
