"""A local Intercom and a local Amplitude over HTTP; faults become real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.lowlevel
from aiohttp import web

from amplitude_intercom.transports.intercom import Answer, Request
from amplitude_intercom.transports.sandbox.amplitude_uploads import MAX_BYTES
from amplitude_intercom.transports.sandbox.faults import HANG_S, Reply
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.sandbox import NO_TOKEN, Sandbox

MAX_BODY_BYTES: Final = 4 * 1024 * 1024


def application(sandbox: Sandbox) -> web.Application:
    """Return a web application in which every call goes to a sandbox, faults included."""

    async def respond(http: web.Request) -> web.StreamResponse:
        request = Request(http.method, http.raw_path, await http.read() or None)
        sent = http.headers
        authorization = sent.get("Authorization", NO_TOKEN)
        reply = sandbox.receive(request, authorization, sent.get("Intercom-Version"))
        if reply.latency_s > 0:
            await anyio.sleep(reply.latency_s)
        return await (cut_off(http, reply) if reply.cut else _whole(reply.answer))

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", respond)
    app.on_response_prepare.append(_without_type)
    return app


async def _whole(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def _without_type(_: web.BaseRequest, response: web.StreamResponse) -> None:
    """Leave the type out where there is no body: aiohttp adds one by itself."""
    if response.content_length == 0:
        response.headers.popall("Content-Type", None)


async def cut_off(http: web.Request, reply: Reply) -> web.StreamResponse:
    """Break the connection: after half an answer, after a long time, or at once."""
    response = web.StreamResponse(status=reply.answer.status, headers=reply.answer.headers)
    if reply.cut == "half":
        body = reply.answer.body
        response.content_length = len(body) + 1
        await response.prepare(http)
        await response.write(body[: len(body) // 2] or b" "[: len(body)])
    elif reply.cut == "hang":
        await anyio.sleep(HANG_S)
    if http.transport is not None:
        http.transport.close()
    return response


@asynccontextmanager
async def serve(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve a sandbox over HTTP for as long as the context lasts; yield its base URL."""
    async with serve_application(application(sandbox), host, port) as url:
        yield url


@asynccontextmanager
async def serve_application(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Serve an application for as long as the context lasts; yield its base URL."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_amplitude(
    local: LocalAmplitude, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve it over HTTP for as long as the context lasts; yield its base URL."""
    async with serve_application(amplitude_application(local), host, port) as url:
        yield url


def amplitude_application(local: LocalAmplitude) -> web.Application:
    """Return a web application in which every call goes to a local Amplitude, faults included."""

    async def respond(http: web.Request) -> web.StreamResponse:
        request = Request(http.method, http.raw_path, await http.read() or None)
        headers = {name.lower(): value for name, value in http.headers.items()}
        reply = local.receive(request, headers)
        await anyio.sleep(reply.latency_s)
        if reply.cut:
            return await cut_off(http, reply)
        answer = reply.answer
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    most_bytes = 2 * MAX_BYTES["/batch"]
    app = web.Application(client_max_size=most_bytes, handler_args={"auto_decompress": False})
    app.router.add_route("*", "/{path:.*}", respond)
    return app
