"""The way from one settings to the next while an engine runs.

Rules
=====
1. All that can be refused is refused before anything is touched: the engine goes on as it was.
2. Syncs and relays that did not change are not touched. One that changed finishes the calls under
   way and begins again, from the disk, by its new settings.
3. Batches that came before are filtered by the rules before; each later one by the new rules. No
   batch is refused for a change of settings.
4. A start is the same way, from settings without syncs.
5. One change at a time. A change of what belongs to the process (``NEEDS_RESTART``) is for the next
   start; of ``[admin]`` that is the address, and whether there is a port at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.delivery.stream import Stream
from amplitude_intercom.engine.errors import SpoolDamaged, SpoolError
from amplitude_intercom.engine.intake_pipeline import IntakePipeline
from amplitude_intercom.engine.internal_faults import describe, internal_failure
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.running_takers import Opened, RunningTakers
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.settings_effects import Effects, effects_of, until_restart
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason

_log = structlog.get_logger(__name__)

FAILING_DISK_NAP_S: Final = 1.0


class Reload:
    """See the module's docstring."""

    def __init__(
        self,
        spool: Spool,
        takers: RunningTakers,
        intake: IntakePipeline,
        jobs: JobRunner,
        log_left: Callable[[], Awaitable[None]],
    ) -> None:
        """``log_left`` logs what waits of takers that have no settings any more."""
        self._spool = spool
        self._takers = takers
        self._intake = intake
        self._jobs = jobs
        self._log_left = log_left
        self._one_at_a_time = anyio.Lock()

    async def follow(self, settings: Settings) -> Effects:
        """Run by other settings from now on; return what that has changed.

        Raises:
            SettingsError: a client cannot be built; nothing has changed.
            SpoolError: the disk fails; nothing has changed.
            Refused: the engine drains.
        """
        async with self._one_at_a_time:
            before = self._takers.settings
            done = effects_of(before, settings)
            opened = await self._takers.open(until_restart(before, settings))
            try:
                self._refuse_if_draining()
                await self._takers.stop(opened)
                self._takers.adopt(opened)
                await self._intake.follow(opened.settings, self._takers.streams)
                await self._note(opened)
                self._refuse_if_draining()
            except BaseException:
                await opened.close()
                raise
            self._takers.start(opened)
            with suppress(SpoolError):  # it is done, whatever cannot be read now
                await self._log_left()
            return done

    async def over(self) -> None:
        """Wait until no change is under way; return at once if none is."""
        if self._one_at_a_time.locked():
            async with self._one_at_a_time:
                pass

    async def follow_apart(self, settings: Settings, tasks: TaskGroup) -> Effects:
        """As ``follow``, in a task of its own: it goes on where the wait for it is cancelled."""
        if self._takers.is_draining:
            raise Refused(RefusalReason.DRAINING)
        done: asyncio.Future[Effects] = asyncio.get_running_loop().create_future()
        tasks.start_soon(self._follow_for, settings, done)
        return await asyncio.shield(done)

    async def _follow_for(self, settings: Settings, done: asyncio.Future[Effects]) -> None:
        try:
            done.set_result(await self.follow(settings))
        except BaseException as error:
            ends = not isinstance(error, Exception)
            done.set_exception(Refused(RefusalReason.DRAINING) if ends else error)
            done.exception()  # nobody may wait for it any more
            if ends:
                raise

    async def begin(self, settings: Settings) -> None:
        """Run by the first settings.

        Raises:
            SettingsError: a client cannot be built.
            SpoolError: the disk fails.
        """
        opened = await self._takers.open(settings)
        try:
            self._takers.adopt(opened)
            await self._intake.follow(settings, self._takers.streams)
            await self._follow_all(list(opened.streams.values()), settings)
        except BaseException:
            await opened.close()
            raise
        self._takers.start(opened)
        await self._log_left()

    def _refuse_if_draining(self) -> None:
        if self._takers.is_draining:
            raise Refused(RefusalReason.DRAINING)

    async def _note(self, opened: Opened) -> None:
        """Keep what follows from the settings; a failing disk delays it."""
        streams = list(opened.streams.values())
        while not self._takers.is_draining:
            try:
                await self._follow_all(streams, opened.settings)
            except Exception as fault:
                if not isinstance(fault, SpoolError) or isinstance(fault, SpoolDamaged):
                    await self._follow_each(streams)
                    return
                await anyio.sleep(FAILING_DISK_NAP_S)
            else:
                return

    async def _follow_all(self, streams: Sequence[Stream], settings: Settings) -> None:
        await self._spool.follow(settings)
        await self._follow_selections(streams)
        await self._jobs.follow_mappings([stream.sync for stream in streams])

    async def _follow_each(self, streams: Sequence[Stream]) -> None:
        """Have the fault of one sync cost that sync alone, until the settings change again."""
        for stream in streams:
            try:
                await self._follow_selections([stream])
                await self._jobs.follow_mappings([stream.sync])
            except Exception as fault:
                internal_failure(fault, sync=stream.sync.name)
                self._takers.unstarted[stream.sync.name] = describe(fault)

    async def _follow_selections(self, streams: Sequence[Stream]) -> None:
        """Let each sync know the properties that it brings to contacts from now on."""
        now_ms = self._spool.now_ms()
        selections = await self._spool.do(
            lambda store: [stream.follow_selection(store, now_ms) for stream in streams]
        )
        for stream, selection in zip(streams, selections, strict=True):
            stream.selection = selection
