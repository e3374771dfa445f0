"""The wiring of deliveries: one pipeline for each access token, actors joined by bounded channels.

    spool ═► Feed ─► scheduler ─► Mapper ─► UserUpserter ─► EventSender
             (one a sync)         (one of each; the last two with workers, as many as have work)

Rules
=====
1. A turn is chosen when a call may leave soon, never earlier: the choice is as late as it can be.
2. Actors close the channel that they write to; the pipeline closes those that they read.
3. A fault that belongs to no record stops one sync's feed, or, in an actor, the whole pipeline. A
   supervisor starts it again, from the records on disk.
4. No call is made for a turn before ``GET /me`` has named the workspace.
5. A sync may come and go while the others are delivered. One that goes finishes its turns first,
   and nothing of it stays in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from amplitude_intercom.engine.actor import Workers
from amplitude_intercom.engine.actors.event_sender import EventSender
from amplitude_intercom.engine.actors.mapper import Mapper
from amplitude_intercom.engine.actors.user_upserter import UserUpserter
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.health import Hasten
from amplitude_intercom.engine.delivery.loaded_bytes import LoadedBytes
from amplitude_intercom.engine.delivery.scheduler import Scheduler, View
from amplitude_intercom.engine.delivery.stream import Stream, SyncDelivery
from amplitude_intercom.engine.delivery.turns import Turn
from amplitude_intercom.engine.delivery.workspaces import ME, Workspace
from amplitude_intercom.engine.feeds import Feeds, Ready
from amplitude_intercom.engine.supervision import Supervisor

CHOSEN_LISTS = 64
"""Lists of turns between the scheduler and the mapper, which takes all waiting ones at once."""

KeepLimit = Callable[[float], Awaitable[None]]
"""Keeps the calls a window that Intercom has named."""

FindWorkspace = Callable[[anyio.Event], Awaitable[Workspace | None]]
"""Waits for the token's workspace and returns it; None: the given event was set before."""


class Pipeline:
    """The delivery of all syncs with one access token; see the module's docstring."""

    def __init__(
        self,
        gate: Gate,
        budget: LoadedBytes,
        *,
        now_ms: Callable[[], int],
        jitter: Callable[[], float],
        ready: Ready,
        keep_limit: KeepLimit,
        find_workspace: FindWorkspace,
    ) -> None:
        """Deliver through a gate. ``budget``: the loaded bytes of all pipelines."""
        self._keep_limit = keep_limit
        self._find_workspace = find_workspace
        self._now_ms = now_ms
        self._jitter = jitter
        self._budget = budget
        self._ending = anyio.Event()
        self._gate = gate
        self._news = asyncio.Event()
        self._scheduler = Scheduler()
        self._deliveries: dict[str, SyncDelivery] = {}
        self._feeds = Feeds(ready)
        self._workspace: Workspace | None = None
        self._supervisor = Supervisor(self._deliver, part="delivery", intercom=gate.log_name)
        self._circuits: list[str] = []
        gate.changed = self._news.set

    async def run(self) -> None:
        """Run until drained, and all turns under way are settled."""
        if not self._ending.is_set():
            self._gate.begin()
        await self._supervisor.run()

    def drain(self) -> None:
        """Choose no more turns; those under way are finished."""
        self._ending.set()
        self._feeds.end()
        self._supervisor.end()
        self._gate.close()

    # --- syncs that come and go -----------------------------------------------------------

    def add(self, stream: Stream) -> None:
        """Deliver a sync, too, from now on."""
        name = stream.sync.name
        delivery = SyncDelivery(
            stream,
            self._gate,
            self._scheduler,
            self._budget,
            now_ms=self._now_ms,
            jitter=self._jitter,
            changed=self._news.set,
        )
        stream.delivery = self._deliveries[name] = delivery
        if self._workspace is not None:
            delivery.enter(self._workspace)
        self._feeds.add(name, delivery.feed)

    async def remove(self, name: str) -> None:
        """Deliver a sync no more; return when its turns under way are settled."""
        await self._feeds.remove(name)
        if self._scheduler.of(name).at_work:  # a fault has stopped the actors that had its turns
            self._forget_turns()
        if name in self._deliveries:  # else a fault has broken an earlier call off
            self._deliveries.pop(name).leave()

    def stopped(self, sync: str) -> str:
        """Return the fault of this program that stops a sync now; empty: none."""
        return self._supervisor.stopped or self._feeds.stopped(sync)

    def faults(self, sync: str) -> int:
        """Return the number of faults that have stopped a sync."""
        return self._supervisor.faults + self._feeds.faults(sync)

    # --- delivery -------------------------------------------------------------------------

    async def _deliver(self) -> None:
        # A fault cancelled all actors: no turn that was under way will ever end by itself.
        if self._supervisor.faults:
            self._forget_turns()
        with ExitStack() as ends:
            # Garbage collection warns of open channel ends, and a cancelled actor closes none.
            async with anyio.create_task_group() as tasks:
                most = self._gate.max_in_flight
                senders = Workers(tasks, EventSender(self._deliveries), most)
                upserters = Workers(tasks, UserUpserter(self._deliveries, senders), most)
                chosen, turns = anyio.create_memory_object_stream[list[Turn]](CHOSEN_LISTS)
                for abandon in (senders.abandon, upserters.abandon, turns.close, chosen.close):
                    ends.callback(abandon)
                tasks.start_soon(Mapper(self._deliveries, upserters, senders).run, turns)
                await self._feed_all(chosen)
                chosen.close()

    async def _feed_all(self, chosen: MemoryObjectSendStream[list[Turn]]) -> None:
        """Run the feeds, and choose turns from the loaded records, until all feeds have ended."""
        async with anyio.create_task_group() as forever:
            # These end by cancellation alone; the feeds end by themselves, at ``drain``.
            forever.start_soon(self._gate.watch_token)
            forever.start_soon(self._keep_limits)
            forever.start_soon(self._enter_workspace)
            forever.start_soon(self._choose, chosen)
            await self._feeds.run(self._ending)
            forever.cancel_scope.cancel()

    async def _enter_workspace(self) -> None:
        """Let deliveries make calls as soon as the token's workspace is known."""
        self._gate.health.awaited.add(ME)
        if (workspace := await self._find_workspace(self._ending)) is None:
            return
        self._workspace = workspace
        for delivery in self._deliveries.values():
            delivery.enter(workspace)
        self._gate.health.awaited.discard(ME)
        self._news.set()
        try:
            await anyio.sleep_forever()
        finally:
            workspace.attributes.stop()

    def _forget_turns(self) -> None:
        """Forget the turns of stopped actors: their records are on disk as before."""
        self._scheduler.forget_all()
        self._gate.health.end_probes()
        for delivery in self._deliveries.values():
            delivery.settlement.forget_turns()

    async def _keep_limits(self) -> None:
        while True:
            await self._keep_limit(await self._gate.next_limit())

    async def _choose(self, chosen: MemoryObjectSendStream[list[Turn]]) -> None:
        """Choose turns as calls may leave; for ever."""
        while True:
            # Before the look, not after it: news that comes meanwhile must not be lost.
            self._news.clear()
            now_s = loop_time_s()
            self._pass_news_on(now_s)
            # Probes first: one probe may free all the users that wait for its endpoint.
            turns = [*self._probes(now_s), *self._next(now_s)]
            if turns:
                await chosen.send(turns)
                # Chosen users are no longer loaded ones: their syncs may load more.
                for sync in {turn.sync for turn in turns}:
                    self._deliveries[sync].feed.more_may_be_wanted()
            else:
                await self._rest(now_s)

    def _pass_news_on(self, now_s: float) -> None:
        for news in self._gate.take_news(now_s):
            delivery = self._deliveries.get(news.who[0])
            if delivery is None:  # its sync has gone meanwhile
                continue
            if isinstance(news, Hasten):
                delivery.settlement.hasten(news.who[1], news.at_s - now_s)
            else:
                delivery.settlement.charge(news.who[1], news.endpoint, stands=news.stands)
        # A circuit that opens or closes changes which users a feed should load.
        circuits = self._gate.health.open_circuits
        if circuits != self._circuits or self._gate.health.wanting_probe(now_s):
            self._circuits = circuits
            for delivery in self._deliveries.values():
                delivery.feed.more_may_be_wanted()

    def _probes(self, now_s: float) -> list[Turn]:
        """Choose the turns that probe the endpoints with open circuits."""
        health, turns = self._gate.health, []
        for endpoint in [] if self._gate.is_standing else health.wanting_probe(now_s):
            found = health.of(endpoint)
            turn = self._scheduler.choose_probe(endpoint, found.has_served)
            if turn is not None:
                found.circuit.probing = turn.who
                turns.append(turn)
        return turns

    def _next(self, now_s: float) -> list[Turn]:
        """Choose as many turns as calls may leave soon (rule 1)."""
        gate, scheduler = self._gate, self._scheduler
        # A turn that has made its call counts in the gate; one that has not, here.
        most = gate.max_in_flight - scheduler.at_work.calls
        free = min(gate.free(scheduler.at_work.undeparted, now_s), most)
        if free <= 0:
            return []
        most_retries = max(1, gate.slots() // 2)
        view = View(gate.health.open_circuits, most_retries, not gate.pace.is_ramping)
        turns: list[Turn] = []
        while len(turns) < free and (turn := scheduler.choose(view)) is not None:
            turns.append(turn)
        return turns

    async def _rest(self, now_s: float) -> None:
        """Wait for news, or until a probe or a look at the clock is due."""
        due_s = [self._gate.look_again_s(now_s), self._gate.health.next_change_s()]
        next_s = min((at_s for at_s in due_s if at_s is not None), default=None)
        with anyio.move_on_after(None if next_s is None else max(0.0, next_s - now_s)):
            await self._news.wait()
