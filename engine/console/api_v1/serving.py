"""Routes of the admin port, made of operations."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.etags import is_known
from amplitude_intercom.engine.console.api_v1.operations import PART, Operation
from amplitude_intercom.engine.console.api_v1.requests import body_of, query_of, refuse_larger

_encoder: Final = msgspec.json.Encoder()


async def _given(operation: Operation, request: web.Request) -> Any:
    if operation.method == "GET":
        return query_of(request, operation.takes)
    return await body_of(
        request,
        operation.takes,
        operation.most_bytes,
        operation.most_elements,
        is_secret=operation.is_secret,
    )


def routes_of(operations: Iterable[Operation]) -> list[web.RouteDef]:
    """Return the routes of operations."""
    return [_route(one) for one in operations]


def _route(operation: Operation) -> web.RouteDef:
    turns = asyncio.Semaphore(operation.at_once) if operation.at_once else nullcontext()

    @functools.wraps(operation.handler)
    async def answer(request: web.Request) -> web.Response:
        refuse_larger(request, operation.most_bytes)
        async with turns:
            said = await operation.handler(request, await _given(operation, request))
        headers = dict(said.headers)
        if operation.method == "GET" and operation.has_etag:
            headers["Cache-Control"] = "private, no-cache"  # kept, and asked about each time
            if is_known(request, headers["ETag"]):
                return web.Response(status=304, headers=headers)
        if operation.status == 204:
            return web.Response(status=204, headers=headers)
        return web.Response(
            body=_encoder.encode(said.value),
            status=operation.status,
            content_type="application/json",
            headers=headers,
        )

    # Any character but a slash, which comes escaped (`%2F`); without it a part has no `{`.
    path = API_ROOT + PART.sub(r"{\1:[^/]+}", operation.path)
    if operation.method == "GET":
        return web.get(path, answer)  # HEAD as well
    return web.route(operation.method, path, answer)
