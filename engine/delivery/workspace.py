"""What access tokens write to: its attributes, its event names, and how its contacts are met."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import anyio

from amplitude_intercom.engine.backoff import probe_delay_s
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.attributes import Attributes
from amplitude_intercom.engine.delivery.calls import Answered, Cause, NotAnswered, NotNow
from amplitude_intercom.engine.delivery.contacts.first_contact import FirstContacts
from amplitude_intercom.engine.delivery.event_names import EventNames
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.errors import Failure
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.spool.rows import ContactKey
from amplitude_intercom.engine.spool.spool import TakerSpool
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports import intercom

ME: Final = "GET /me"
"""The endpoint that says which workspace a token is for."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
"""Between questions for the workspace that have no answer."""

MOST_MISSING: Final = 10_000
"""Users that are remembered not to be there; the oldest goes first, and is asked for again."""


class _Absent(NamedTuple):
    failure: Failure
    answers: int
    until_s: float


class Missing:
    """Contacts that are not there, or cannot be had: what Intercom said of each, how often, and
    until when that is believed (the loop's clock)."""

    def __init__(self) -> None:
        self._found: OrderedDict[ContactKey, _Absent] = OrderedDict()

    def of(self, key: ContactKey) -> Failure | None:
        """Return why a contact is not there, as far as that is believed now."""
        found = self._found.get(key)
        return found.failure if found is not None and loop_time_s() < found.until_s else None

    def note(self, key: ContactKey, failure: Failure, wait_s: Callable[[int], float]) -> None:
        """Take in that a contact is not there; ``wait_s`` returns for how long that is believed,
        after so many answers that said so."""
        before = self._found.pop(key, None)
        answers = before.answers + 1 if before else 1
        self._found[key] = _Absent(failure, answers, loop_time_s() + wait_s(answers))
        if len(self._found) > MOST_MISSING:
            self._found.popitem(last=False)

    def forget(self, key: ContactKey) -> None:
        """Take in that a contact is there, or may be by now."""
        self._found.pop(key, None)


MOST_WAIT_S: Final = 1.0
"""For another turn that writes the same contact. Whoever waits has made no call, and keeps turns of
others from being chosen."""

BEING_WRITTEN: Final = NotAnswered(
    Cause.FAILED,
    "PUT /contacts/{id}",
    Failure(DeadReason.USER_FAILING, 0, "not_sent", "another turn writes the contact"),
)
"""Why a write cannot go on now: its user waits some seconds, uncharged."""


class Writing:
    """The contacts that a turn writes, each as the only one."""

    def __init__(self, written: dict[ContactKey, anyio.Lock]) -> None:
        """``written``: by all turns of the workspace."""
        self._written = written
        self._mine: dict[ContactKey, anyio.Lock] = {}

    def has(self, key: ContactKey) -> bool:
        """Return whether nobody else writes a contact meanwhile."""
        return key in self._mine

    async def take(self, key: ContactKey) -> None:
        """Write one more, once nobody else does; that is not waited for for long.

        Raises:
            NotNow: somebody does.
        """
        if key in self._mine:
            return
        lock = self._written.get(key)
        if lock is None:
            lock = self._written[key] = anyio.Lock()
            lock.acquire_nowait()
        else:
            try:
                with anyio.fail_after(MOST_WAIT_S):
                    await lock.acquire()
            except TimeoutError:
                raise NotNow(BEING_WRITTEN) from None
        self._mine[key] = lock

    def end(self) -> None:
        """Let others write them."""
        for key, lock in self._mine.items():
            lock.release()
            if not lock.locked() and self._written.get(key) is lock:
                del self._written[key]
        self._mine.clear()


class Workspace:
    """One workspace, for all syncs that write to it."""

    def __init__(
        self, number: int, gate: Gate, spool: TakerSpool, now_ms: Callable[[], int]
    ) -> None:
        """``number``: by which the spool knows it. ``gate``: of one of its tokens."""
        self.number = number
        self.attributes = Attributes(gate)
        self.names = EventNames(spool, now_ms)
        self.first_contacts = FirstContacts()
        self.missing = Missing()
        self._written: dict[ContactKey, anyio.Lock] = {}

    @asynccontextmanager
    async def writing(self, key: ContactKey) -> AsyncIterator[Writing]:
        """Write a contact, and maybe more, as the only one. (Most turns of one token are kept apart
        by their scheduler.)

        Raises:
            NotNow: another turn writes it.
        """
        writing = Writing(self._written)
        try:
            await writing.take(key)
            yield writing
        finally:
            writing.end()


class Workspaces:
    """All workspaces that a daemon delivers to, and which of them each token writes to.

    That is asked of Intercom once for each token, and kept.
    """

    def __init__(self, *, now_ms: Callable[[], int], jitter: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._jitter = jitter
        self._known: dict[int, Workspace] = {}

    async def find(
        self, key: str, address: str, gate: Gate, spool: TakerSpool, ending: anyio.Event
    ) -> Workspace | None:
        """Return what a token writes to, as soon as that is known; None: an end came before.

        ``key``: under which it is kept, without the token.
        """
        text = await spool.persist(lambda store: store.meta.get(key))
        number = int(text) if text and text.isdecimal() else None
        if number is None:
            code = await self._ask(gate, ending)
            if code is None:
                return None
            number = await spool.persist(lambda store: _note(store, key, address, code))
        if number not in self._known:
            self._known[number] = Workspace(number, gate, spool, self._now_ms)
        return self._known[number]

    async def _ask(self, gate: Gate, ending: anyio.Event) -> str | None:
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


def _note(store: Store, key: str, address: str, code: str) -> int:
    number = store.workspaces.number_of(address, code or key)
    if code:
        store.meta.set(key, str(number))
    return number
