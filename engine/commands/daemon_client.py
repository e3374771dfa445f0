"""A running daemon as commands ask it: through its admin port."""

from __future__ import annotations

import asyncio
import errno
import io
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.api_v1.job_values import Job
from amplitude_intercom.engine.console.api_v1.letter_values import Letter, LetterPage
from amplitude_intercom.engine.console.api_v1.spool_changes import LeftRecords
from amplitude_intercom.engine.console.api_v1.status_values import DaemonStatus
from amplitude_intercom.engine.console.problems import FieldError
from amplitude_intercom.engine.errors import EngineError, SettingsError
from amplitude_intercom.engine.findings.settings_findings import EVERYBODY
from amplitude_intercom.engine.settings import Admin
from amplitude_intercom.engine.settings_effects import Effects
from amplitude_intercom.engine.spool.jobs import JobKind
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.user_state import UserState, nothing_of
from amplitude_intercom.engine.status import Compacted

ANSWER_S: Final = 60.0
"""Time limit of an answer; long, because a large spool takes its time."""

MOVE_S: Final = 3_600.0
"""Time limit for moving or dropping all that is left of a sync."""

MOST_COUNTS: Final = 5
"""Counts of dead letters that change before a job on them is given up."""

FIRST_LOOK_S: Final = 0.05
LOOK_EVERY_S: Final = 2.0
"""Pauses between looks at a job of the daemon; they grow from the first to the second."""


class DaemonUnavailable(EngineError):
    """No daemon answers at the admin port, or not in a usable way; the message says which."""


class OtherNumber(EngineError):
    """The daemon counts another number of dead letters than a job expects."""

    def __init__(self, said: str, count: int) -> None:
        super().__init__(said)
        self.count = count


class Refusal(msgspec.Struct):
    """A refusal (RFC 9457). ``count``: of the dead letters that a filter means. ``reason``: why
    nothing is taken in."""

    detail: str = ""
    errors: list[FieldError] = []
    count: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, content: bytes) -> Refusal:
        """Return the refusal in an answer; of an answer that is none, its beginning."""
        try:
            return msgspec.json.decode(content, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return cls(detail=content.decode(errors="replace").strip())

    @property
    def text(self) -> str:
        """Its sentences."""
        errors = (f"{error.pointer}: {error.detail}" for error in self.errors)
        return "; ".join(filter(None, [self.detail, *errors]))[:500]


class DaemonClient:
    """A client of a running daemon's admin port, to be entered as a context."""

    def __init__(self, admin: Admin) -> None:
        headers = {"Authorization": f"Bearer {admin.token.reveal()}"} if admin.token else {}
        self.address = admin.listen
        self.is_there = False
        """Whether a connection was taken, whatever the answer."""
        self._base = f"http://{_reachable(admin.listen)}{API_ROOT}"
        self._session = aiohttp.ClientSession(headers=headers)

    async def __aenter__(self) -> DaemonClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def _ask(
        self, method: str, path: str, body: Any, kind: Any, within_s: float = ANSWER_S
    ) -> Any:
        """Return the daemon's answer.

        Raises:
            DaemonUnavailable: nothing listens there, or the answer is not a daemon's.
            SettingsError: the daemon refuses the request because of its settings.
        """
        status, content = await self.exchange(method, path, body, within_s)
        if not 200 <= status < 300:
            raise self._refusal(status, content)
        return self.decoded(content, kind)

    def decoded(self, content: bytes, kind: Any) -> Any:
        """Return the value of a good answer.

        Raises:
            DaemonUnavailable: it is not a daemon's.
        """
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise DaemonUnavailable(f"{self.address} is no daemon of this version") from None

    async def exchange(
        self, method: str, path: str, body: Any = None, within_s: float = ANSWER_S
    ) -> tuple[int, bytes]:
        """Return the status and the content of an answer, whatever they are. ``path``: in the API.

        Raises:
            DaemonUnavailable: nothing listens there, or no answer came.
        """
        # As a stream: aiohttp would send bytes all at once, however many they are.
        data = None if body is None else io.BytesIO(msgspec.json.encode(body))
        try:
            async with self._session.request(
                method,
                URL(self._base + path, encoded=True),
                data=data,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=within_s),
            ) as answer:
                content, status = await answer.read(), answer.status
        except aiohttp.ClientConnectorError as error:
            reason = error.strerror or str(error)
            if error.errno == errno.ECONNREFUSED:
                reason = "nothing listens there"
            raise DaemonUnavailable(f"admin.listen {self.address}: {reason}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            self.is_there = True
            why = str(error) or f"no answer within {within_s:g} s"
            raise DaemonUnavailable(f"admin.listen {self.address}: {why}") from None
        self.is_there = True
        return status, content

    def _refusal(self, status: int, content: bytes) -> EngineError:
        """Return the error that an answer stands for."""
        refusal = Refusal.of(content)
        said = refusal.text
        if status == 409 and refusal.count is not None:
            return OtherNumber(said, refusal.count)
        if status in (409, 422):
            # The same error, and exit code, as without a daemon.
            return SettingsError(said)
        return DaemonUnavailable(f"the daemon at {self.address} answers {status}: {said}")

    async def status(self, within_s: float = ANSWER_S) -> DaemonStatus:
        status: DaemonStatus = await self._ask("GET", "/status", None, DaemonStatus, within_s)
        return status

    async def reload(self) -> Effects:
        """Have the daemon read its settings file again.

        Raises:
            SettingsError: it refuses the file, and goes on as before.
            DaemonUnavailable: there is none, or it cannot do it now.
        """
        done: Effects = await self._ask("POST", "/settings/reload", {}, Effects)
        return done

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, cursor: str, limit: int
    ) -> LetterPage:
        conditions = {k: v for k, v in _conditions(query).items() if k != "every"}
        asked = {**conditions, "cursor": cursor, "limit": limit}
        path = f"{path_of_sync(sync)}/dead-letters?{urlencode(asked, doseq=True)}"
        page: LetterPage = await self._ask("GET", path, None, LetterPage)
        return page

    async def dead_letter(self, sync: str, id_: int) -> Letter | None:
        page = await self.dead_letters(sync, DeadLetterQuery(ids=[id_]), "", 1)
        if not page.items:
            return None
        path = f"{path_of_sync(sync)}/dead-letters/{id_}"
        letter: Letter = await self._ask("GET", path, None, Letter)
        return letter

    async def user(self, sync: str, user: str) -> UserState:
        if not user:
            return nothing_of(user)  # a path cannot name it
        path = f"{path_of_sync(sync)}/people/{_escaped(user)}"
        state: UserState = await self._ask("GET", path, None, UserState)
        return state

    async def do_job(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> Job:
        """Have the daemon do a job; print its progress where that takes a while."""
        job = await self._begun(kind, sync, query)
        pause_s = FIRST_LOOK_S
        while job.ended_at_ms is None:
            await asyncio.sleep(pause_s)
            pause_s = min(LOOK_EVERY_S, 2 * pause_s)
            job = await self._ask("GET", f"/jobs/{job.id}", None, Job)
            if pause_s == LOOK_EVERY_S:
                far = f"{job.done:,} of {job.expected:,}"
                say(f"job {job.id}: {far}; it goes on in the daemon without this", stderr=True)
        return job

    async def _begun(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> Job:
        """Have the daemon begin a job on all that a query means now."""
        page = await self.dead_letters(sync, query, "", 1)
        path, expected = f"{path_of_sync(sync)}/jobs", page.matching or 0
        for _ in range(MOST_COUNTS):
            asked = {
                "action": kind,
                "filter": _conditions(query),
                "up_to_id": page.up_to_id,
                "expected": expected,
            }
            try:
                job: Job = await self._ask("POST", path, asked, Job)
            except OtherNumber as other:
                expected = other.count
            else:
                return job
        raise SettingsError("the dead letters change all the time: nothing was begun")

    async def move_left(self, old: str, new: str) -> LeftRecords:
        asked = {"old": old, "new": new}
        moved: LeftRecords = await self._ask("POST", "/spool/move", asked, LeftRecords, MOVE_S)
        return moved

    async def drop_left(self, old: str) -> LeftRecords:
        dropped: LeftRecords = await self._ask(
            "POST", "/spool/drop", {"old": old}, LeftRecords, MOVE_S
        )
        return dropped

    async def compact(self) -> Compacted:
        done: Compacted = await self._ask("POST", "/spool/compact", {}, Compacted)
        return done


def _conditions(query: DeadLetterQuery) -> dict[str, Any]:
    """Return the conditions that a query has."""
    given = msgspec.structs.asdict(query)
    return {name: value for name, value in given.items() if value not in (None, False)}


def path_of_sync(sync: str) -> str:
    """Return the path of a sync, or of a relay (``relay:NAME``), below the root of the API."""
    return f"/syncs/{_escaped(sync)}"


def _escaped(part: str) -> str:
    """Return a part of a path. Dots are escaped too: ``..`` would be the folder above."""
    return quote(part, safe="", errors="replace").replace(".", "%2E")


def _reachable(address: str) -> str:
    """Return an address to connect to: loopback, where the daemon listens on all interfaces."""
    host, port = host_and_port(address)
    if host in EVERYBODY:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
