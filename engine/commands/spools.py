"""Who answers a command: the daemon, through its admin port, or the spools' files.

Commands that only read write nothing, whoever runs them: they take no lock and make no file.
Without a daemon they read the files as they are; where there is none yet, nothing is in it.
Commands that change something take the data directory, or have the daemon do it.
"""

from __future__ import annotations

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
from amplitude_intercom.engine.app import Compacted, Engine, data_dir_of
from amplitude_intercom.engine.commands.findings import EVERYBODY
from amplitude_intercom.engine.commands.preview import Preview, SpooledPast
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import DataDirInUse, EngineError, SpoolError
from amplitude_intercom.engine.metrics import Facts, Status, SyncStatus, read_facts, sync_status
from amplitude_intercom.engine.settings import Admin, Settings, Sync
from amplitude_intercom.engine.spool import wall_clock_ms
from amplitude_intercom.engine.spool.lock import holder_is_alive
from amplitude_intercom.engine.spool.reading import disk_bytes, look
from amplitude_intercom.engine.spool.rows import DeadLetter, DeadLetterPage, DeadLetterQuery
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.user_state import UserState, nothing_of
from amplitude_intercom.transports.reasons import RefusalReason

T = TypeVar("T")

ANSWER_S = 60.0
"""Until a daemon counts as one that does not answer. Replays and large spools take their time."""

FIRST_ANSWER_S = 5.0
"""The same for the first question of a command that can read the files instead."""


class NotAnswered(EngineError):
    """No daemon of these settings answers at the admin port."""


class Reading(Protocol):
    """What can be read of spools, wherever they are."""

    async def status(self) -> Status: ...
    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after_id: int, limit: int
    ) -> DeadLetterPage: ...
    async def user(self, sync: str, user: str) -> UserState: ...


class Writing(Protocol):
    """What can be done with spools, whoever holds them."""

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]: ...
    async def discard(self, sync: str, query: DeadLetterQuery) -> int: ...
    async def compact(self, sync: str) -> Compacted: ...


@asynccontextmanager
async def read_spools(settings: Settings) -> AsyncIterator[Reading]:
    """Yield the daemon that has these spools, or their files where none answers."""
    if settings.admin is None:
        yield Files(settings)
        return
    async with Daemon(settings.admin) as daemon:
        why = await _why_not(daemon, settings)
        yield Files(settings, why) if why else daemon


async def is_running(settings: Settings) -> bool:
    """Return whether a daemon of these settings runs; without ``[admin]``, its process is alive."""
    if settings.admin is None:
        return holder_is_alive(Path(settings.data_dir))
    async with Daemon(settings.admin) as daemon:
        return not await _why_not(daemon, settings, aloud=False)


async def _why_not(daemon: Daemon, settings: Settings, *, aloud: bool = True) -> str:
    """Return why a daemon cannot be asked about these spools; empty: it can."""
    try:
        theirs = (await daemon.status(FIRST_ANSWER_S)).data_dir
    except NotAnswered as error:
        return str(error)
    except DataDirInUse as error:
        why = str(error)
    else:
        if theirs == data_dir_of(settings):
            return ""
        why = f"the daemon at {daemon.address} has another data_dir, {theirs}"
    if aloud:
        say(f"note: the files are read, since {why}", stderr=True)
    return why


@asynccontextmanager
async def open_spools(settings: Settings) -> AsyncIterator[Writing]:
    """Open the spools, or ask the daemon that has them, through its admin port.

    Raises:
        DataDirInUse: a daemon has them, and its admin port cannot be asked.
    """
    try:
        async with Engine(settings, deliver=False) as engine:
            yield engine
        return
    except DataDirInUse as error:
        if settings.admin is None:
            raise DataDirInUse(f"{error}, and there is no [admin] to ask it through") from None
    async with Daemon(settings.admin) as daemon:
        yield daemon


class Files:
    """The spools' files, read as they are."""

    def __init__(self, settings: Settings, why: str = "") -> None:
        """``why``: why no daemon is asked."""
        self._settings = settings
        self.why = why

    def _path(self, sync: str) -> Path:
        return Path(self._settings.data_dir) / f"{sync}.db"

    def _look(self, sync: str, job: Callable[[Store], T], without: T) -> T:
        """Read a spool; ``without`` where there is none yet.

        Raises:
            SpoolError: it is there, and cannot be read.
        """
        try:
            self._path(sync).stat()
        except (FileNotFoundError, NotADirectoryError):
            return without
        except OSError as error:
            raise SpoolError(
                RefusalReason.SPOOL_FAILING, f"{self._path(sync)}: {error.strerror}"
            ) from None
        return look(self._path(sync), job)

    async def status(self) -> Status:
        syncs = [self._sync_status(sync) for sync in self._settings.sync]
        return Status("offline", data_dir_of(self._settings), syncs)

    def _sync_status(self, sync: Sync) -> SyncStatus:
        trouble: SpoolError | None = None
        counters, facts = Counter[str](), Facts()
        try:
            counters, facts = self._look(
                sync.name, lambda store: (store.counters, read_facts(store)), (counters, facts)
            )
        except SpoolError as error:
            trouble = error
        return sync_status(
            sync,
            counters,
            facts,
            now_ms=wall_clock_ms(),
            disk_bytes=disk_bytes(self._path(sync.name)),
            trouble=trouble,
        )

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after_id: int, limit: int
    ) -> DeadLetterPage:
        return self._look(
            sync,
            lambda store: store.dead_letter_page(query, after_id, limit),
            DeadLetterPage([], 0, more=False),
        )

    def foresee(
        self, sync: Sync, letters: list[DeadLetter], preview: Preview, promised: dict[bytes, int]
    ) -> list[dict[str, Any]]:
        """Return what a replay of each dead letter would send, by what the spool knows."""

        def job(store: Store) -> list[dict[str, Any]]:
            past = SpooledPast(store, sync, promised)
            return [preview.replayed(letter, past) for letter in letters]

        return self._look(sync.name, job, [])

    async def user(self, sync: str, user: str) -> UserState:
        return self._look(sync, lambda store: store.user(user), nothing_of(user))


class Daemon:
    """A running daemon, through its admin port."""

    def __init__(self, admin: Admin) -> None:
        headers = {"Authorization": f"Bearer {admin.token.reveal()}"} if admin.token else {}
        self.address = admin.listen
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
            NotAnswered: nothing listens there.
            DataDirInUse: it does not answer as it should.
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
            why = str(error) or f"no answer within {within_s:g} s"
            raise DataDirInUse(f"admin.listen {self.address}: {why}") from None
        if status != 200:
            said = content.decode(errors="replace").strip()
            raise DataDirInUse(f"the daemon at {self.address} answers {status}: {said[:500]}")
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise DataDirInUse(f"{self.address} is no daemon of this version") from None

    async def status(self, within_s: float = ANSWER_S) -> Status:
        status: Status = await self._ask("GET", "/api/status", None, Status, within_s)
        return status

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after_id: int, limit: int
    ) -> DeadLetterPage:
        body = {**msgspec.structs.asdict(query), "after_id": after_id, "limit": limit}
        page: DeadLetterPage = await self._ask(
            "POST", f"/api/{sync}/dead-letters/list", body, DeadLetterPage
        )
        return page

    async def user(self, sync: str, user: str) -> UserState:
        key = quote(user, safe="", errors="replace").replace(".", "%2E")  # `..` is no folder
        state: UserState = await self._ask("GET", f"/api/{sync}/users/{key}", None, UserState)
        return state

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]:
        return Counter(
            await self._ask("POST", f"/api/{sync}/dead-letters/replay", query, dict[str, int])
        )

    async def discard(self, sync: str, query: DeadLetterQuery) -> int:
        answer = await self._ask("POST", f"/api/{sync}/dead-letters/discard", query, dict[str, int])
        return int(answer["discarded"])

    async def compact(self, sync: str) -> Compacted:
        done: Compacted = await self._ask("POST", f"/api/{sync}/spool/compact", {}, Compacted)
        return done


def _reachable(address: str) -> str:
    """Return an address to connect to: a server that listens everywhere listens on loopback too."""
    host, port = host_and_port(address)
    if host in EVERYBODY:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
