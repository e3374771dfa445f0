"""The operator's side of a running engine: dead letters, one user's state, the spool's file.

Everything that takes long is a job (``engine.jobs``) or is done in slices, so that deliveries go on
beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio
import structlog

from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.running_takers import RunningTakers
from amplitude_intercom.engine.spool import former_syncs
from amplitude_intercom.engine.spool.jobs import JobKind
from amplitude_intercom.engine.spool.letters import (
    DeadLetter,
    DeadLetterQuery,
    Position,
)
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.takers import RELAY, spoken
from amplitude_intercom.engine.spool.user_state import UserState, state_of_user
from amplitude_intercom.engine.spool.wakeups import MadeDue, ParkedChoice, Wakeups
from amplitude_intercom.engine.status import Compacted
from amplitude_intercom.engine.status_reading import read_left
from amplitude_intercom.engine.token_facts import contact_key

_log = structlog.get_logger(__name__)


SLICE_OF_USERS: Final = 500
"""Parked users that are made due in one transaction."""


class Upkeep:
    """Looks at the spool of a running engine, and changes it on request."""

    def __init__(
        self,
        spool: Spool,
        takers: RunningTakers,
        jobs: JobRunner,
        now_ms: Callable[[], int],
    ) -> None:
        self._spool = spool
        self._takers = takers
        self._jobs = jobs
        self._now_ms = now_ms

    # --- dead letters ---------------------------------------------------------------------

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, *, after: str = "", limit: int = 1000
    ) -> list[DeadLetter]:
        """Return dead letters of a sync or a relay (``relay:NAME``), by time of the last failure.

        ``after``: the position at which the page before ended.

        Raises:
            SpoolError: the spool cannot be read.
            ValueError: ``after`` is not a position.
        """
        position = Position.read(after)
        return await self._spool.look(
            lambda store: store.letters.find(
                store.takers.known_id(sync), query, after=position, limit=limit
            )
        )

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]:
        """Send dead letters through filter and mapping again; return counts by outcome.

        A replayed record goes behind all records of its user that wait. A replay is a job: it goes
        on at the next start where it was interrupted.

        Raises:
            SettingsError: the sync is disabled, and would drop them.
            SpoolError: the spool cannot be read or changed.
        """
        return await self._do_job(JobKind.REPLAY, sync, query)

    async def discard(self, sync: str, query: DeadLetterQuery) -> int:
        """Settle dead letters as dropped; return the number of them.

        Raises:
            SpoolError: the spool cannot be read or changed.
        """
        return (await self._do_job(JobKind.DISCARD, sync, query))["discarded"]

    async def _do_job(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> Counter[str]:
        job = await self._jobs.ask(kind, sync, query, who="library")
        return (await self._jobs.ended(job.id)).outcome()

    # --- one user -------------------------------------------------------------------------

    async def user(self, sync: str, user: str) -> UserState:
        """Return the state of one user of a sync, by its key.

        Raises:
            SpoolError: the spool cannot be read.
        """
        stream = self._takers.streams[sync]
        taker = stream.spool.taker
        return await self._spool.look(
            lambda store: state_of_user(store, taker, user, contact_key(store, stream.sync, user))
        )

    async def retry_parked(self, sync: str, choice: ParkedChoice) -> int:
        """Try parked users of a sync again soon; return their number.

        A user that waits for an endpoint whose circuit is open goes on waiting for that.

        Raises:
            SpoolError: the spool cannot be read or changed.
        """
        spool, now_ms = self._takers.streams[sync].spool, self._now_ms()
        after, users = "", 0

        def make_due(store: Store) -> MadeDue:
            wakeups = Wakeups(store.db)
            return wakeups.make_due(spool.taker, choice, now_ms, after, SLICE_OF_USERS)

        while True:
            made = await self._spool.do(make_due)
            users, after = users + made.users, made.last
            spool.appended()
            if not after:
                return users

    # --- the spool's file -----------------------------------------------------------------

    async def compact(self) -> Compacted:
        """Give the free pages of the spool's file back to the disk.

        Raises:
            SpoolError: the disk fails.
        """
        before = await self._spool.size_bytes()
        await self._spool.compact()
        return Compacted(before, await self._spool.size_bytes())

    # --- syncs that have left the settings ------------------------------------------------

    async def move_left(self, old: str, new: str) -> int:
        """Give the records and letters of a sync that has left to another; return their number.

        Raises:
            SettingsError: ``old`` is in the settings, or ``new`` is not.
            SpoolError: the spool cannot be read or changed.
        """
        taker = await self._left(old)
        if old.startswith(RELAY):
            raise SettingsError(f"{spoken(old)} has requests, which no sync can have")
        streams = self._takers.streams
        if new not in streams:
            raise SettingsError(f"there is no sync `{new}`; there is {', '.join(streams)}")
        heir, user_of = streams[new].spool, streams[new].admission.user_of
        moved = await self._in_slices(
            lambda store: former_syncs.move(store, taker, heir.taker, user_of, self._now_ms())
        )
        heir.appended()
        await self._in_slices(
            lambda store: store.insert_ids.move(taker, heir.taker, former_syncs.SLICE)
        )
        return moved

    async def drop_left(self, old: str) -> int:
        """Settle everything of a sync or relay that has left as dropped; return the number.

        Raises:
            SettingsError: it is in the settings, or the spool does not know it.
            SpoolError: the spool cannot be read or changed.
        """
        taker = await self._left(old)
        return await self._in_slices(lambda store: former_syncs.drop(store, taker))

    async def log_left(self) -> None:
        """Log the takers that have left the settings, with the events that wait of them.

        Raises:
            SpoolError: the spool cannot be read.
        """
        left = await self._spool.do(lambda store: read_left(store, self._takers.parts))
        for name, there in left.items():
            _log.warning(
                "events wait of a sync or relay that is not in the settings: put it back, or"
                " `spool move OLD NEW` (not of a relay), or `spool drop OLD --yes`",
                sync=name,
                waiting=there.pending,
                dead_letters=there.dead,
            )

    async def _left(self, name: str) -> int:
        """Return the number of a taker that has left the settings.

        Raises:
            SettingsError: it is in the settings, or the spool does not know it.
        """
        if name in self._takers.parts:
            raise SettingsError(f"{spoken(name)} is in the settings: what waits of it is delivered")
        taker = await self._spool.do(lambda store: store.takers.id_of(name))
        if taker is None:
            raise SettingsError(f"the spool knows no {spoken(name)}")
        return taker

    async def _in_slices(self, job: Callable[[Store], int]) -> int:
        done = 0
        while count := await self._spool.do(job):
            done += count
            await anyio.lowlevel.checkpoint()
        return done
