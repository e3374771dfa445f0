"""One sync of a running daemon, as ``forward`` asks it through the API.

Rules
=====
1. A daemon that is gone, or about to end, is waited for: it may restart. It is given up after
   a minute without a good answer, or after what ``--max-wait`` says.
2. A daemon that takes nothing now, as its spool is full, is asked again for as long as it says so.
3. A daemon that has come back is asked for its data directory first: another may listen there now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

import anyio

from amplitude_intercom.engine.commands.daemon_client import (
    DaemonClient,
    DaemonUnavailable,
    Refusal,
    path_of_sync,
)
from amplitude_intercom.engine.console.api_v1.batch_values import (
    MOST_CHECKPOINTS,
    BatchReceipt,
    Checkpoint,
    CheckpointChange,
    CheckpointsLeft,
    HandedBatch,
    PendingFacts,
)
from amplitude_intercom.engine.console.api_v1.pages import MOST_ROWS, Page
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.reasons import RefusalReason

PATIENCE_S: Final = 60.0
"""Seconds for which a daemon that is gone is waited for, without ``--max-wait``."""

LEAST_PATIENCE_S: Final = 5.0
"""The same at least: a daemon that restarts needs some."""

AGAIN_S: Final = 0.25
"""Pause before a question is asked again."""

WhyNot = Callable[[], Awaitable[str]]
"""Returns why the daemon there cannot be asked about this spool; empty: it can."""

_AGAIN_LATER: Final = (408, 429, 503)


class _Later(Exception):
    """There is no good answer now. ``is_gone``: no daemon may be there any more."""

    def __init__(self, why: str, *, is_gone: bool) -> None:
        super().__init__(why)
        self.is_gone = is_gone


class DaemonSync:
    """Asks a daemon about one sync. ``trouble``: why there is no good answer now."""

    def __init__(
        self, client: DaemonClient, why_not: WhyNot, sync: str, max_wait_s: float | None = None
    ) -> None:
        """``max_wait_s``: how long the run that asks may wait."""
        self.trouble = ""
        self._client = client
        self._why_not = why_not
        self._path = path_of_sync(sync)
        self._patience_s = PATIENCE_S if max_wait_s is None else max(max_wait_s, LEAST_PATIENCE_S)
        self._gone_since_s: float | None = None

    # --- questions ------------------------------------------------------------------------

    async def hand(
        self, batch: HandedBatch, has_landed: Callable[[], Awaitable[bool]]
    ) -> BatchReceipt | None:
        """Hand a batch over; return once it is on disk. None: so it is, but the answer was lost.

        Raises:
            DaemonUnavailable: the daemon is gone, or refuses it for good.
            SettingsError: it has no such sync.
        """
        while True:
            try:
                receipt: BatchReceipt = await self._once("POST", "/batches", batch, BatchReceipt)
                return receipt
            except _Later as later:
                self._note(later)
                await anyio.sleep(AGAIN_S)
                if later.is_gone and await has_landed():
                    return None

    async def checkpoints(self, source: str = "") -> dict[str, str]:
        """Return the checkpoints of the sync, or that of one source."""
        found: dict[str, str] = {}
        cursor = ""
        while True:
            query = f"?limit={MOST_ROWS}&cursor={cursor}&source={quote(source, safe='')}"
            path = f"/checkpoints{query}"
            page: Page[Checkpoint] = await self._asked("GET", path, None, Page[Checkpoint])
            found.update((one.source, one.position) for one in page.items)
            if page.next is None:
                return found
            cursor = page.next

    async def change_checkpoints(self, change: CheckpointChange) -> None:
        """Forget checkpoints, and keep others in their place."""
        for first in range(0, max(1, len(change.forget)), MOST_CHECKPOINTS):
            # What is kept goes first: a run that is killed here reads nothing as done too early.
            keep = change.keep if first == 0 else {}
            some = change.forget[first : first + MOST_CHECKPOINTS]
            part = CheckpointChange(forget=some, keep=keep)
            await self._asked("PATCH", "/checkpoints", part, CheckpointsLeft)

    async def pending(self, up_to: int | None, *, parked: bool = False) -> PendingFacts:
        """Return what waits up to a batch; None: in all."""
        path = _pending_path(up_to, parked=parked)
        facts: PendingFacts = await self._asked("GET", path, None, PendingFacts)
        return facts

    async def glance(self) -> PendingFacts | None:
        """Return what waits in all; None: there is no good answer now, which is noted.

        Raises:
            DaemonUnavailable: the daemon is gone for too long.
        """
        try:
            facts: PendingFacts = await self._once("GET", _pending_path(None), None, PendingFacts)
        except _Later as later:
            self._note(later)
            return None
        return facts

    async def status(self) -> SyncStatus:
        """Return the accounting of the sync."""
        status: SyncStatus = await self._asked("GET", "", None, SyncStatus)
        return status

    # --- asked until there is an answer ---------------------------------------------------

    async def _asked(self, method: str, path: str, body: Any, kind: Any) -> Any:
        while True:
            try:
                return await self._once(method, path, body, kind)
            except _Later as later:
                self._note(later)
                await anyio.sleep(AGAIN_S)

    def _note(self, later: _Later) -> None:
        """Note why there is no good answer.

        Raises:
            DaemonUnavailable: there was none for too long.
        """
        self.trouble = str(later)
        if not later.is_gone:
            return
        now_s = anyio.current_time()
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if now_s - self._gone_since_s >= self._patience_s:
            text = "run it again, it goes on from there"
            raise DaemonUnavailable(f"the daemon has gone: {later}; {text}")

    async def _once(self, method: str, path: str, body: Any, kind: Any) -> Any:
        try:
            if self._gone_since_s is not None and (why := await self._why_not()):
                raise _Later(why, is_gone=True)
            status, content = await self._client.exchange(method, self._path + path, body)
        except DaemonUnavailable as error:
            raise _Later(str(error), is_gone=True) from None
        if status == 200:
            self._gone_since_s, self.trouble = None, ""
            return self._client.decoded(content, kind)
        refusal = Refusal.of(content)
        said = f"the daemon at {self._client.address} answers {status}: {refusal.text}"
        if status in _AGAIN_LATER:
            raise _Later(said, is_gone=refusal.reason == RefusalReason.DRAINING)
        if status == 404:
            text = "it may run by other settings (`reload`), or be of an older version (restart it)"
            raise SettingsError(f"{said}; {text}")
        if status in (401, 403):
            said += "; `admin.token` has to be the daemon's own"
        raise DaemonUnavailable(said)


def _pending_path(up_to: int | None, *, parked: bool = False) -> str:
    asked = {"up_to": "" if up_to is None else str(up_to), "parked": "true" if parked else ""}
    return "/pending?" + "&".join(f"{name}={value}" for name, value in asked.items() if value)
