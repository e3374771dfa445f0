"""Amplitude's own Python client, as a product uses it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from amplitude import Amplitude, BaseEvent, Config

from support import process


class Client:
    """The SDK as a product uses it; what its callback heard, by the event's number."""

    def __init__(self, url: str, path: str = "/2/httpapi", **settings: Any) -> None:
        self.heard: dict[int, int] = {}
        logger = logging.getLogger("amplitude-client-under-test")
        logger.setLevel(logging.CRITICAL)  # it tells of each retry
        self.amplitude = Amplitude(
            process.API_KEY,
            Config(
                server_url=f"{url}{path}",
                flush_interval_millis=50,
                logger=logger,
                callback=self._hear,
                **settings,
            ),
        )

    def _hear(self, event: BaseEvent, code: int, message: str | None) -> None:
        properties = event.event_properties or {}
        self.heard[properties.get("n", -1)] = code

    def track(self, n: int, event_type: str = "Purchase", **more: Any) -> None:
        """Track an event of a second of its own: Intercom takes two of one second for the same."""
        properties = {"n": n} | more
        self.amplitude.track(
            BaseEvent(
                event_type,
                event_properties=properties,
                user_id="mira-okafor",
                time=process.event("", n)["time"],
            )
        )

    def flush(self) -> None:
        for future in self.amplitude.flush() or []:
            if future is not None:
                future.result(timeout=30)

    async def told_of(self, count: int) -> Counter[int]:
        """Wait until the callback has heard of so many events; return the codes.

        The SDK flushes by itself; asking it to would use its retries up in no time.
        """
        async with asyncio.timeout(110):  # its pauses between retries double
            while len(self.heard) < count:
                await asyncio.sleep(0)
        return Counter(self.heard.values())
