"""Who answers a command: the daemon, through its admin port, or the spools' files.

Commands that only read write nothing, whoever runs them: they take no lock and make no file.
Without a daemon they read the files as they are; where there is none yet, nothing is in it.
Commands that change something take the data directory, or have the daemon do it.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.clients import address_of
from amplitude_intercom.engine.commands.findings import EVERYBODY
from amplitude_intercom.engine.commands.preview import Preview, SpooledPast
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import DataDirInUse, EngineError, SettingsError, SpoolError
from amplitude_intercom.engine.settings import Admin, Settings, Sync
from amplitude_intercom.engine.spool.jobs import JobKind, JobRow
from amplitude_intercom.engine.spool.rows import (
    DeadLetter,
    DeadLetterPage,
    DeadLetterQuery,
    Position,
)
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.sqlite.files import FILE_NAME
from amplitude_intercom.engine.spool.sqlite.lock import holder
from amplitude_intercom.engine.spool.sqlite.reading import disk_bytes, look
from amplitude_intercom.engine.spool.store import Store, wall_clock_ms
from amplitude_intercom.engine.spool.user_state import UserState, nothing_of, state_of_user
from amplitude_intercom.engine.status import (
    RelayStatus,
    SpoolStatus,
    Status,
    SyncFacts,
    SyncStatus,
    TakerFacts,
    read_relay_facts,
    read_sync_facts,
    relay_status,
    spool_status,
    sync_status,
)
from amplitude_intercom.engine.token_facts import contact_key, workspace_of
from amplitude_intercom.engine.upkeep import Compacted
from amplitude_intercom.transports.reasons import RefusalReason

T = TypeVar("T")

ANSWER_S = 60.0
"""Until a daemon counts as one that does not answer. Replays and large spools take their time."""

FIRST_ANSWER_S = 5.0
"""The same for the first question, whose data_dir it has: that is answered at once."""


FIRST_LOOK_S, LOOK_EVERY_S = 0.05, 2.0
"""Between looks at a job that a daemon does."""


class NotAnswered(EngineError):
    """Nothing at the admin port, or nothing that can be used: the message says what."""


class Reading(Protocol):
    """What can be read of spools, wherever they are."""

    async def status(self) -> Status: ...
    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after: str, limit: int
    ) -> DeadLetterPage: ...
    async def user(self, sync: str, user: str) -> UserState: ...


class Writing(Protocol):
    """What can be done with spools, whoever holds them."""

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]: ...
    async def discard(self, sync: str, query: DeadLetterQuery) -> int: ...
    async def compact(self) -> Compacted: ...
    async def move_left(self, old: str, new: str) -> int: ...
    async def drop_left(self, old: str) -> int: ...


@asynccontextmanager
async def read_spools(settings: Settings) -> AsyncIterator[Reading]:
    """Yield the daemon that has these spools, or their files where none can be asked."""
    if settings.admin is None:
        yield _files(settings, NO_ADMIN)
        return
    async with Daemon(settings.admin) as daemon:
        why = await _why_not(daemon, settings)
        yield _files(settings, why, aloud=daemon.is_there) if why else daemon


NO_ADMIN = "there is no [admin] to ask one through"


def _files(settings: Settings, why: str, *, aloud: bool = False) -> Files:
    """Return the files; where somebody has them at this moment, say that they are read, and why."""
    files = Files(settings, why, holder(Path(settings.data_dir)))
    if aloud or files.holder is not None:
        say(f"note: the files are read, since {why}", stderr=True)
    return files


async def is_running(settings: Settings) -> bool:
    """Return whether a daemon of these settings runs, whether it can be asked or not."""
    if holder(Path(settings.data_dir)) is not None:
        return True
    if settings.admin is None:
        return False
    async with Daemon(settings.admin) as daemon:
        return not await _why_not(daemon, settings)


async def _why_not(daemon: Daemon, settings: Settings) -> str:
    """Return why a daemon cannot be asked about these spools; empty: it can."""
    try:
        theirs = (await daemon.status(FIRST_ANSWER_S)).data_dir
    except NotAnswered as error:
        return str(error)
    if theirs == settings.data_path:
        return ""
    return f"the daemon at {daemon.address} has another data_dir, {theirs}"


@asynccontextmanager
async def open_spools(settings: Settings) -> AsyncIterator[Writing]:
    """Open the spools, or ask the daemon that has them, through its admin port.

    Raises:
        DataDirInUse: another process has them, and no daemon says that it is the one.
    """
    try:
        async with Engine(settings, deliver=False) as engine:
            yield engine.upkeep
        return
    except DataDirInUse as error:
        in_use = error
    if settings.admin is None:
        raise DataDirInUse(f"{in_use}, and {NO_ADMIN}") from None
    async with Daemon(settings.admin) as daemon:
        why = await _why_not(daemon, settings)
        if why:
            raise DataDirInUse(f"{in_use}, and {why}")
        yield daemon


class Files:
    """The spools' files, read as they are."""

    def __init__(self, settings: Settings, why: str = "", holder: int | None = None) -> None:
        """``why``: why no daemon is asked; ``holder``: the process that has them at this moment."""
        self._settings = settings
        self.why = why
        self.holder = holder

    @property
    def path(self) -> Path:
        """Where the spool's file is, or will be."""
        return Path(self._settings.data_dir) / FILE_NAME

    def _look(self, job: Callable[[Store], T], without: T) -> T:
        """Read the spool; ``without`` where there is none yet.

        Raises:
            SpoolError: it is there, and cannot be read.
        """
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return without
        except OSError as error:
            text = f"{self.path}: {error.strerror}"
            raise SpoolError(RefusalReason.SPOOL_FAILING, text) from None
        return look(self.path, job)

    async def status(self) -> Status:
        state = "offline" if self.holder is None else "unreachable"
        syncs, spool = self._read_status()
        relays = self._read_relays(spool.trouble)
        return Status(state, self._settings.data_path, syncs, spool, relays=relays)

    def _read_relays(self, trouble: str) -> list[RelayStatus]:
        def job(store: Store) -> dict[str, tuple[Counter[str], TakerFacts]]:
            takers = {r.taker: store.known_taker(r.taker) for r in self._settings.relay}
            return {
                name: (store.accounts.committed(taker), read_relay_facts(store, taker))
                for name, taker in takers.items()
            }

        read: dict[str, tuple[Counter[str], TakerFacts]] = {}
        if not trouble and self._settings.relay:
            read = self._look(job, read)
        statuses = []
        for relay in self._settings.relay:
            counters, facts = read.get(relay.taker, (Counter[str](), TakerFacts()))
            address, now_ms = address_of(relay), wall_clock_ms()
            found = relay_status(relay, counters, facts, address=address, now_ms=now_ms)
            statuses.append(msgspec.structs.replace(found, trouble=trouble))
        return statuses

    def _read_status(self) -> tuple[list[SyncStatus], SpoolStatus]:
        names = [sync.name for sync in self._settings.sync]
        names += [relay.taker for relay in self._settings.relay]

        def job(store: Store) -> tuple[dict[str, tuple[Counter[str], SyncFacts]], SpoolStatus]:
            found = {}
            for sync in self._settings.sync:
                taker = store.known_taker(sync.name)
                facts = read_sync_facts(store, taker, workspace_of(store, sync))
                found[sync.name] = (store.accounts.committed(taker), facts)
            max_bytes = self._settings.spool.max_bytes
            status = spool_status(store, names, max_bytes, wall_clock_ms())
            return found, msgspec.structs.replace(
                status, disk_bytes=disk_bytes(self.path), used_bytes=Spool.used_bytes(store)
            )

        trouble: SpoolError | None = None
        read: dict[str, tuple[Counter[str], SyncFacts]] = {}
        spool = SpoolStatus(disk_bytes(self.path))
        try:
            read, spool = self._look(job, (read, spool))
        except SpoolError as error:
            trouble = error
            spool = SpoolStatus(disk_bytes(self.path), trouble=str(error))
        syncs = []
        for sync in self._settings.sync:
            counters, facts = read.get(sync.name, (Counter[str](), SyncFacts()))
            syncs.append(
                sync_status(sync, counters, facts, now_ms=wall_clock_ms(), trouble=trouble)
            )
        return syncs, spool

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after: str, limit: int
    ) -> DeadLetterPage:
        position = Position.read(after)
        return self._look(
            lambda store: store.dead_letter_page(store.known_taker(sync), query, position, limit),
            DeadLetterPage([], 0),
        )

    def foresee(
        self, sync: Sync, letters: list[DeadLetter], preview: Preview, promised: dict[bytes, int]
    ) -> list[dict[str, Any]]:
        """Return what a replay of each dead letter would send, by what the spool knows."""

        def job(store: Store) -> list[dict[str, Any]]:
            past = SpooledPast(store, sync, promised)
            return [preview.replayed(letter, past) for letter in letters]

        return self._look(job, [])

    async def user(self, sync: str, user: str) -> UserState:
        of_sync = next(found for found in self._settings.sync if found.name == sync)

        def job(store: Store) -> UserState:
            contact = contact_key(store, of_sync, user)
            return state_of_user(store, store.known_taker(sync), user, contact)

        return self._look(job, nothing_of(user))


class Daemon:
    """A running daemon, through its admin port."""

    def __init__(self, admin: Admin) -> None:
        headers = {"Authorization": f"Bearer {admin.token.reveal()}"} if admin.token else {}
        self.address = admin.listen
        self.is_there = False
        """Whether something took a connection, whatever it answered."""
        self._base = f"http://{_reachable(admin.listen)}"
        self._session = aiohttp.ClientSession(headers=headers)

    async def __aenter__(self) -> Daemon:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def _ask(
        self, method: str, path: str, body: Any, kind: Any, within_s: float = ANSWER_S
    ) -> Any:
        """Return the daemon's answer.

        Raises:
            NotAnswered: nothing listens there, or it does not answer as it should.
        """
        try:
            async with self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=None if body is None else msgspec.json.encode(body),
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=within_s),
            ) as answer:
                content, status = await answer.read(), answer.status
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ECONNREFUSED:
                reason = "nothing listens there"
            raise NotAnswered(f"admin.listen {self.address}: {reason}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            self.is_there = True
            why = str(error) or f"no answer within {within_s:g} s"
            raise NotAnswered(f"admin.listen {self.address}: {why}") from None
        self.is_there = True
        if status != 200:
            said = content.decode(errors="replace").strip()
            if status == 409:  # what the settings forbid, here as without a daemon
                raise SettingsError(said[:500])
            raise NotAnswered(f"the daemon at {self.address} answers {status}: {said[:500]}")
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise NotAnswered(f"{self.address} is no daemon of this version") from None

    async def status(self, within_s: float = ANSWER_S) -> Status:
        status: Status = await self._ask("GET", "/api/status", None, Status, within_s)
        return status

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after: str, limit: int
    ) -> DeadLetterPage:
        body = {**msgspec.structs.asdict(query), "after": after, "limit": limit}
        page: DeadLetterPage = await self._ask(
            "POST", f"/api/{sync}/dead-letters/list", body, DeadLetterPage
        )
        return page

    async def user(self, sync: str, user: str) -> UserState:
        key = quote(user, safe="", errors="replace").replace(".", "%2E")  # `..` is no folder
        state: UserState = await self._ask("GET", f"/api/{sync}/users/{key}", None, UserState)
        return state

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]:
        return Counter(await self._done(JobKind.REPLAY, sync, query))

    async def discard(self, sync: str, query: DeadLetterQuery) -> int:
        return (await self._done(JobKind.DISCARD, sync, query)).get("discarded", 0)

    async def _done(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> dict[str, int]:
        """Have the daemon do a job, and say how far it is where that takes a while."""
        path = f"/api/{sync}/dead-letters/{kind}"
        job: JobRow = await self._ask("POST", path, query, JobRow)
        pause_s = FIRST_LOOK_S
        while not job.ended:
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_EVERY_S, 2 * pause_s)
            job = await self._ask("GET", f"/api/jobs/{job.id}", None, JobRow)
            if pause_s == LOOK_EVERY_S:
                far = f"{sum(job.counts.values()):,} of {job.expected:,}"
                say(f"job {job.id}: {far}; it goes on in the daemon without this", stderr=True)
        return job.outcome()

    async def move_left(self, old: str, new: str) -> int:
        return int(await self._ask("POST", "/api/spool/move", {"old": old, "new": new}, int, 3_600))

    async def drop_left(self, old: str) -> int:
        return int(await self._ask("POST", "/api/spool/drop", {"old": old}, int, 3_600))

    async def compact(self) -> Compacted:
        done: Compacted = await self._ask("POST", "/api/spool/compact", {}, Compacted)
        return done


def _reachable(address: str) -> str:
    """Return an address to connect to: a server that listens everywhere listens on loopback too."""
    host, port = host_and_port(address)
    if host in EVERYBODY:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
