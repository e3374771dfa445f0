"""A caller that lives by a ``Pace`` alone, and a stranger who uses the same token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import anyio

from amplitude_intercom.engine.delivery.pace import Pace, pause_s
from amplitude_intercom.transports.intercom import Answer, RateHeaders, me, parse_rate
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import virtual

Latency = Callable[[], float]
Distort = Callable[[RateHeaders], RateHeaders]
Share = Callable[[float], float]


def intercom(limit: int, **more: Any) -> Sandbox:
    """Return a sandbox with so many calls a window, and no latency of its own."""
    return Sandbox(now=virtual.current().wall_s, limit_per_minute=limit * 6, **more)


def share_used(
    local: Sandbox, start_s: float, end_s: float, stranger: Stranger | None = None
) -> float:
    """Return the share of the allowance, less the stranger's, that was used within a time."""
    start, end = virtual.EPOCH_S + start_s, virtual.EPOCH_S + end_s
    ours = sum(start <= entry.at_s < end and entry.status != 429 for entry in local.journal)
    taken = stranger.taken if stranger else []
    foreign = sum(calls for at_s, calls in taken if start_s <= at_s < end_s)
    return ours / ((end_s - start_s) / 10 * local.limit - foreign)


def spread(low_s: float, high_s: float, seed: int = 3) -> Latency:
    dice = random.Random(seed)
    return lambda: dice.uniform(low_s, high_s)


def as_sent(rate: RateHeaders) -> RateHeaders:
    return rate


class Caller:
    """One process with a backlog: calls as fast as its pace lets it, and learns from the answers.

    Like the gate, a call that has been out for over four mean latencies gives its slot back.
    """

    def __init__(
        self,
        local: Sandbox,
        configured: float,
        latency: Latency,
        *,
        distort: Distort = as_sent,
        max_in_flight: int = 1_000,
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace or Pace(configured)
        self.slots_at_least = 0
        self.slots_seen: list[int] = []
        self._local = local
        self._latency = latency
        self._distort = distort
        self._max_in_flight = max_in_flight
        self._out: dict[int, float] = {}
        self._news = asyncio.Event()
        self._jitter = random.Random(11)

    async def run(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                while True:
                    while (wait_s := self._wait_s()) > 0:
                        with anyio.move_on_after(wait_s):
                            await self._news.wait()
                    await self.pace.turn()
                    tasks.start_soon(self._call, self.pace.sent)

    def _wait_s(self) -> float:
        now_s = virtual.current().now_s
        pace, out = self.pace, len(self._out)
        if now_s < pace.paused_until_s:
            return pace.paused_until_s - now_s
        if pace.most_out is not None and out >= pace.most_out:
            return 60.0
        slots = min(max(pace.slots, self.slots_at_least), self._max_in_flight)
        if out < slots:
            return 0.0
        hangs_s = max(1.0, 4 * pace.mean_latency_s)
        hanging = sum(now_s - left_s >= hangs_s for left_s in self._out.values())
        if out - hanging < slots and out < self._max_in_flight:
            return 0.0
        return 0.2

    async def _call(self, number: int) -> None:
        loop = virtual.current()
        left_at_s = loop.now_s
        self._out[number] = left_at_s
        answer = self._local.handle(me())
        await anyio.sleep(self._latency())
        del self._out[number]
        self._take_in(answer, number, left_at_s)
        self._news.set()
        self._news = asyncio.Event()

    def _take_in(self, answer: Answer, number: int, left_at_s: float) -> None:
        loop, pace = virtual.current(), self.pace
        pace.learn(self._distort(parse_rate(answer.headers)), number, left_at_s, loop.now_s)
        if answer.status == 429:
            wait_s = pause_s(answer, loop.wall_s()) + self._jitter.random() * 0.5
            pace.throttled(wait_s, loop.now_s, left_at_s)
        else:
            pace.answered(left_at_s)
        self.slots_seen.append(pace.slots)


class Stranger:
    """Another client of the token: takes a share of the limit, in lumps ``every_s``."""

    def __init__(self, local: Sandbox, share: Share, every_s: float = 0.1) -> None:
        self._local, self._share, self._every_s = local, share, every_s
        self.taken: list[tuple[float, int]] = []

    async def run(self) -> None:
        owed = 0.0
        loop = virtual.current()
        while True:
            await anyio.sleep(self._every_s)
            owed += self._share(loop.now_s) * self._local.limit * self._every_s / 10
            lump, owed = int(owed), owed - int(owed)
            self.taken.append((loop.now_s, lump))
            self._local.foreign_calls(lump)
