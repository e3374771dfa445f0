"""The workspaces that access tokens write to: attributes, event names, shared facts of contacts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import anyio

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.delivery.calls import Answered, Calls
from amplitude_intercom.engine.delivery.contact_locks import ContactLocks, LockedContacts
from amplitude_intercom.engine.delivery.create_or_find import CreateOrFind
from amplitude_intercom.engine.delivery.event_names import EventNames
from amplitude_intercom.engine.delivery.missing_contacts import (
    MergedUsers,
    MissingContacts,
)
from amplitude_intercom.engine.delivery.workspace_attributes import WorkspaceAttributes
from amplitude_intercom.engine.spool.contract import TakerSpool, Transaction
from amplitude_intercom.transports import intercom

ME: Final = "GET /me"
"""The endpoint that says which workspace a token is for."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
"""Between questions for the workspace that have no answer."""


class Workspace:
    """One workspace, for all syncs that write to it."""

    def __init__(
        self, number: int, gate: Calls, spool: TakerSpool, now_ms: Callable[[], int]
    ) -> None:
        """``number``: by which the spool knows it. ``gate``: of one of its tokens."""
        self.number = number
        self.attributes = WorkspaceAttributes(gate)
        self.names = EventNames(
            partial(spool.event_names, number), partial(spool.keep_event_names, number), now_ms
        )
        self.create_or_find = CreateOrFind()
        self.missing_contacts = MissingContacts()
        self.merged_users = MergedUsers()
        self._locked: LockedContacts = {}

    def locks(self) -> ContactLocks:
        """Return the contacts that a turn writes: none so far. (Most turns of one token
        are kept apart by their scheduler.)"""
        return ContactLocks(self._locked)


class Workspaces:
    """All workspaces that a daemon delivers to, and which of them each token writes to.

    That is asked of Intercom once for each token, and kept. A workspace is forgotten with the last
    token that writes to it, which costs a look at its attributes and names if one comes back.
    """

    def __init__(self, *, now_ms: Callable[[], int], jitter: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._jitter = jitter
        self._known: dict[int, Workspace] = {}
        self._numbers: dict[str, int] = {}
        """The workspace of each token, by the key of the token."""

    def __len__(self) -> int:
        """Return the number of workspaces in memory."""
        return len(self._known)

    def forget_others(self, keys: Collection[str]) -> None:
        """Forget the tokens that have none of these keys, and the workspaces of nobody else."""
        self._numbers = {key: number for key, number in self._numbers.items() if key in keys}
        wanted = set(self._numbers.values())
        self._known = {number: kept for number, kept in self._known.items() if number in wanted}

    async def find(
        self, key: str, address: str, gate: Calls, spool: TakerSpool, ending: anyio.Event
    ) -> Workspace | None:
        """Return the workspace of a token, as soon as it is known; None: an end came before.

        ``key``: under which it is kept, without the token.
        """
        text = await spool.persist(lambda store: store.meta.get(key))
        number = int(text) if text and text.isdecimal() else None
        if number is None:
            code = await self._ask(gate, ending)
            if code is None:
                return None
            number = await spool.persist(lambda store: _note(store, key, address, code))
        self._numbers[key] = number
        if number not in self._known:
            self._known[number] = Workspace(number, gate, spool, self._now_ms)
        return self._known[number]

    async def _ask(self, gate: Calls, ending: anyio.Event) -> str | None:
        """Return the id of the workspace, once Intercom has answered, empty if it has named none (a
        token is alone in such a one); None: an end came before."""
        failures = 0
        while not ending.is_set():
            outcome = await gate.call(intercom.me())
            if isinstance(outcome, Answered) and outcome.answer.status == 200:
                return intercom.workspace_of(outcome.answer)
            failures += 1
            pause_s = probe_delay_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S, self._jitter())
            with anyio.move_on_after(pause_s):
                await ending.wait()
        return None


def _note(store: Transaction, key: str, address: str, code: str) -> int:
    number = store.workspaces.number_of(address, code or key)
    if code:
        store.meta.set(key, str(number))
    return number
