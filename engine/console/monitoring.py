"""The paths that monitors ask: health, readiness, metrics, the accounting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from amplitude_intercom.engine import metrics
from amplitude_intercom.engine.overview import Overview


class MonitorPaths:
    """The paths of one engine."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the paths with their handlers."""
        return [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            web.get("/api/status", self._status),
        ]

    async def _healthz(self, request: web.Request) -> web.Response:
        """Return 200 as long as the process answers, with its state. Needs no token."""
        return web.json_response({"status": "ok", "state": self._overview.state})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Return 200 while events are taken, else 503 with the reasons. Needs no token."""
        ready = self._overview.ready
        said = {
            "ready": ready,
            "state": self._overview.state,
            "unready": self._overview.unready,
            "stopped": self._overview.stopped,
            "stopped_sources": self._overview.stopped_sources,
        }
        return web.json_response(said, status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        """Return the metrics in Prometheus' text format."""
        status, ready = await self._overview.status(), self._overview.ready
        # Off the loop: with a thousand syncs it is a megabyte of text.
        text = await asyncio.to_thread(metrics.render, status, ready=ready)
        return web.Response(
            body=text,
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _status(self, request: web.Request) -> web.Response:
        """Return the accounting, for monitors that know no version of the API."""
        content = msgspec.json.encode(await self._overview.status())
        return web.Response(body=content, content_type="application/json")
