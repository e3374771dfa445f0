"""A running daemon as commands ask it: through its admin port."""

from __future__ import annotations

import asyncio
import errno
import io
from collections import Counter
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from amplitude_intercom.engine.addresses import host_and_port
from amplitude_intercom.engine.commands.terminal import say
from amplitude_intercom.engine.errors import EngineError, SettingsError
from amplitude_intercom.engine.findings.settings_findings import EVERYBODY
from amplitude_intercom.engine.settings import Admin
from amplitude_intercom.engine.settings_changes import Reloaded
from amplitude_intercom.engine.spool.jobs import JobKind, JobRow
from amplitude_intercom.engine.spool.letters import DeadLetterPage, DeadLetterQuery
from amplitude_intercom.engine.spool.user_state import UserState
from amplitude_intercom.engine.status import Compacted, Status

ANSWER_S: Final = 60.0
"""Time limit of an answer; long, because a large spool takes its time."""

MOVE_S: Final = 3_600.0
"""Time limit for moving or dropping all that is left of a sync."""

FIRST_LOOK_S: Final = 0.05
LOOK_EVERY_S: Final = 2.0
"""Pauses between looks at a job of the daemon; they grow from the first to the second."""


class DaemonUnavailable(EngineError):
    """No daemon answers at the admin port, or not in a usable way; the message says which."""


class DaemonClient:
    """A client of a running daemon's admin port, to be entered as a context."""

    def __init__(self, admin: Admin) -> None:
        headers = {"Authorization": f"Bearer {admin.token.reveal()}"} if admin.token else {}
        self.address = admin.listen
        self.is_there = False
        """Whether a connection was taken, whatever the answer."""
        self._base = f"http://{_reachable(admin.listen)}"
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
        if status != 200:
            said = detail_of(content)
            if status in (409, 422):
                # The same error, and exit code, as without a daemon.
                raise SettingsError(said)
            raise DaemonUnavailable(f"the daemon at {self.address} answers {status}: {said}")
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
        """Return the status and the content of an answer, whatever they are.

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

    async def status(self, within_s: float = ANSWER_S) -> Status:
        status: Status = await self._ask("GET", "/api/status", None, Status, within_s)
        return status

    async def reload(self) -> Reloaded:
        """Have the daemon read its settings file again.

        Raises:
            SettingsError: it refuses the file, and goes on as before.
            DaemonUnavailable: there is none, or it cannot do it now.
        """
        done: Reloaded = await self._ask("POST", "/api/v1/settings/reload", {}, Reloaded)
        return done

    async def dead_letters(
        self, sync: str, query: DeadLetterQuery, after: str, limit: int
    ) -> DeadLetterPage:
        body = {**msgspec.structs.asdict(query), "after": after, "limit": limit}
        page: DeadLetterPage = await self._ask(
            "POST", f"/api/{sync}/dead-letters/list", body, DeadLetterPage
        )
        return page

    async def user(self, sync: str, user: str) -> UserState:
        # Dots are escaped too: a user called `..` would be taken for the folder above.
        key = quote(user, safe="", errors="replace").replace(".", "%2E")
        state: UserState = await self._ask("GET", f"/api/{sync}/users/{key}", None, UserState)
        return state

    async def replay(self, sync: str, query: DeadLetterQuery) -> Counter[str]:
        return Counter(await self._done(JobKind.REPLAY, sync, query))

    async def discard(self, sync: str, query: DeadLetterQuery) -> int:
        return (await self._done(JobKind.DISCARD, sync, query)).get("discarded", 0)

    async def _done(self, kind: JobKind, sync: str, query: DeadLetterQuery) -> dict[str, int]:
        """Have the daemon do a job; print its progress where that takes a while."""
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
        return int(
            await self._ask("POST", "/api/spool/move", {"old": old, "new": new}, int, MOVE_S)
        )

    async def drop_left(self, old: str) -> int:
        return int(await self._ask("POST", "/api/spool/drop", {"old": old}, int, MOVE_S))

    async def compact(self) -> Compacted:
        done: Compacted = await self._ask("POST", "/api/spool/compact", {}, Compacted)
        return done


def detail_of(content: bytes) -> str:
    """Return the sentence of a problem (RFC 9457), or the beginning of an answer that is none."""
    try:
        said = str(msgspec.json.decode(content, type=dict[str, Any]).get("detail", ""))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = ""
    return (said or content.decode(errors="replace").strip())[:500]


def _reachable(address: str) -> str:
    """Return an address to connect to: loopback, where the daemon listens on all interfaces."""
    host, port = host_and_port(address)
    if host in EVERYBODY:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
