"""The spool as a command finds it: through the running daemon, in its files, or opened alone.

Reading commands write nothing: they ask the daemon, or read the files without a lock; a spool that
does not exist yet is empty. Changing commands take the data directory, or have the daemon do it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from amplitude_intercom.engine.commands.daemon_client import DaemonClient, DaemonUnavailable
from amplitude_intercom.engine.commands.spool_files import SpoolFiles
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.console.api_v1.job_values import Job, job_of
from amplitude_intercom.engine.console.api_v1.letter_values import Letter, LetterPage
from amplitude_intercom.engine.console.api_v1.spool_changes import LeftRecords, SpoolKeeper
from amplitude_intercom.engine.errors import DataDirInUse
from amplitude_intercom.engine.job_runner import JobRunner
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.jobs import JobKind
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.sqlite.lock import holder
from amplitude_intercom.engine.spool.user_state import UserState
from amplitude_intercom.engine.status import Compacted, Status

FIRST_ANSWER_S: Final = 5.0
"""Time limit of the first answer, the daemon's data_dir, which takes it no time."""

NO_ADMIN: Final = "there is no [admin] to ask one through"


class ReadableSpool(Protocol):
    """Questions that a daemon and the files both answer."""

    async def status(self) -> Status: ...
    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, cursor: str, limit: int
    ) -> LetterPage: ...
    async def dead_letter(self, sync: str, id_: int) -> Letter | None: ...
    async def user(self, sync: str, user: str) -> UserState: ...


class WritableSpool(Protocol):
    """Changes that a daemon makes as well as an engine in this process."""

    async def do_job(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> Job: ...
    async def compact(self) -> Compacted: ...
    async def move_left(self, old: str, new: str) -> LeftRecords: ...
    async def drop_left(self, old: str) -> LeftRecords: ...


class OpenedEngine(Protocol):
    """An engine (``engine.app.Engine``) that holds the data directory."""

    @property
    def upkeep(self) -> SpoolKeeper: ...
    @property
    def jobs(self) -> JobRunner: ...


class OwnSpool:
    """The spool of an engine in this process."""

    def __init__(self, engine: OpenedEngine) -> None:
        self._engine = engine

    async def do_job(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> Job:
        job = await self._engine.jobs.ask(kind, sync, query, who="command line")
        return job_of(await self._engine.jobs.ended(job.id))

    async def compact(self) -> Compacted:
        return await self._engine.upkeep.compact()

    async def move_left(self, old: str, new: str) -> LeftRecords:
        return LeftRecords(await self._engine.upkeep.move_left(old, new))

    async def drop_left(self, old: str) -> LeftRecords:
        return LeftRecords(await self._engine.upkeep.drop_left(old))


@asynccontextmanager
async def read_spools(settings: Settings) -> AsyncIterator[ReadableSpool]:
    """Yield the daemon that has the spool of these settings, or the files where there is none."""
    if settings.admin is None:
        yield _files(settings, NO_ADMIN)
        return
    async with DaemonClient(settings.admin) as daemon:
        why = await why_not(daemon, settings)
        yield _files(settings, why, aloud=daemon.is_there) if why else daemon


def _files(settings: Settings, why: str, *, aloud: bool = False) -> SpoolFiles:
    """Return the files; print that they are read, and why, where a daemon may have newer data."""
    files = SpoolFiles(settings, why, holder(Path(settings.data_dir)))
    if aloud or files.holder is not None:
        say(f"note: the files are read, since {why}", stderr=True)
    return files


async def is_running(settings: Settings) -> bool:
    """Return whether a daemon of these settings runs, whether it can be asked or not."""
    if holder(Path(settings.data_dir)) is not None:
        return True
    if settings.admin is None:
        return False
    async with DaemonClient(settings.admin) as daemon:
        return not await why_not(daemon, settings)


async def why_not(daemon: DaemonClient, settings: Settings) -> str:
    """Return the reason for which a daemon cannot be asked about this spool; empty: it can."""
    try:
        theirs = (await daemon.status(FIRST_ANSWER_S)).data_dir
    except DaemonUnavailable as error:
        return str(error)
    if theirs == settings.data_path:
        return ""
    return f"the daemon at {daemon.address} has another data_dir, {theirs}"


@asynccontextmanager
async def open_spools(
    settings: Settings, engine: AbstractAsyncContextManager[OpenedEngine]
) -> AsyncIterator[WritableSpool]:
    """Enter an engine of these settings and yield its upkeep, or the daemon that has the spool.

    Raises:
        DataDirInUse: another process has the spool, and is no daemon that can be asked.
    """
    try:
        async with engine as opened:
            yield OwnSpool(opened)
        return
    except DataDirInUse as error:
        in_use = error
    async with daemon_of(settings, in_use) as daemon:
        yield daemon


@asynccontextmanager
async def daemon_of(settings: Settings, in_use: DataDirInUse) -> AsyncIterator[DaemonClient]:
    """Yield the daemon that has the spool of these settings; ``in_use`` says that a process has.

    Raises:
        DataDirInUse: it is no daemon that can be asked.
    """
    if settings.admin is None:
        raise DataDirInUse(f"{in_use}, and {NO_ADMIN}")
    async with DaemonClient(settings.admin) as daemon:
        if why := await why_not(daemon, settings):
            raise DataDirInUse(f"{in_use}, and {why}")
        yield daemon
