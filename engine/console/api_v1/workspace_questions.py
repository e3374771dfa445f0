"""Questions of the console to workspaces, so that no question costs deliveries much.

Rules
=====
1. A token that is at work is asked through its gate: by its pace, and not while nothing leaves. Any
   other token is asked by a client of its own.
2. A token is asked by one person at a time, and the answers count for all who ask within
   ``FRESH_S``: a crowd costs two calls.
3. A question takes at most ``MOST_S``. It never fails: a silence is a finding.
4. Only Intercom's own addresses are asked, and those that syncs at work have: the port calls no
   address of a visitor's choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from amplitude_intercom.engine.clients import Token, token_of
from amplitude_intercom.engine.clock import loop_time_s
from amplitude_intercom.engine.delivery.calls import Answered, Cause, Nobody, NotAnswered, cause_of
from amplitude_intercom.engine.delivery.gate import Gate, State
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.workspace_asking import (
    Ask,
    NotHeard,
    WorkspaceSaid,
    address_of,
    ask_intercom,
    ask_workspace,
    not_answering,
)
from amplitude_intercom.engine.internal_faults import describe, internal_failure
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.transports.intercom import BASE_URLS, Answer, Request

FRESH_S: Final = 5.0
MOST_S: Final = 10.0
"""The longest that a person waits. A token at work may have a backlog of its own."""


class Heard(msgspec.Struct, frozen=True):
    """The answers of a workspace, and the Unix time at which they came."""

    said: WorkspaceSaid
    at_s: float


class _Asked(msgspec.Struct):
    """What is known of one token: by whom it is wanted now, and the last answers."""

    turn: asyncio.Lock
    wanted: int = 0
    heard: Heard | None = None
    until_s: float = 0.0


class WorkspaceQuestions:
    """Asks the workspaces of one engine's tokens, and of others."""

    def __init__(
        self,
        gate_of: Callable[[Sync], Gate | None],
        settings: Callable[[], Settings],
        now_s: Callable[[], float],
        most_s: float = MOST_S,
    ) -> None:
        """``gate_of``: returns the gate of a sync's token, where it is at work. ``settings``:
        returns those that run. ``now_s``: Unix time."""
        self._gate_of = gate_of
        self._settings = settings
        self._now_s = now_s
        self._most_s = most_s
        self._asked: dict[Token, _Asked] = {}

    async def ask(self, sync: Sync) -> Heard:
        """Return the answers of the workspace of a sync; see the module's rules."""
        async with self._turn_of(token_of(sync)) as asked:
            if asked.heard is None or loop_time_s() >= asked.until_s:
                said = await self._said(sync)
                asked.heard = Heard(said, self._now_s())
                asked.until_s = loop_time_s() + FRESH_S
            return asked.heard

    @asynccontextmanager
    async def _turn_of(self, token: Token) -> AsyncIterator[_Asked]:
        now_s = loop_time_s()
        old = [t for t, one in self._asked.items() if not one.wanted and one.until_s <= now_s]
        for one in old:
            del self._asked[one]
        asked = self._asked.setdefault(token, _Asked(asyncio.Lock()))
        asked.wanted += 1
        try:
            async with asked.turn:
                yield asked
        finally:
            asked.wanted -= 1

    async def _said(self, sync: Sync) -> WorkspaceSaid:
        gate, asker = self._gate_of(sync), _Asker()
        try:
            async with asyncio.timeout(self._most_s):
                if gate is not None:
                    return await ask_workspace(_through(gate, sync, asker))
                self._refuse_strange_address(sync)
                return await ask_intercom(sync)
        except TimeoutError:
            if asker.waits:
                return WorkspaceSaid(silence=_busy(self._most_s))
            why = f"no answer within {self._most_s:g} s"
            return WorkspaceSaid(silence=not_answering(address_of(sync), why))
        except NotHeard as error:
            return WorkspaceSaid(silence=error.finding)
        except Exception as fault:
            internal_failure(fault, during="a check", sync=sync.name)
            return WorkspaceSaid(silence=not_answering(address_of(sync), describe(fault)))

    def _refuse_strange_address(self, sync: Sync) -> None:
        known = {token_of(one)[0] for one in self._settings().sync} | set(BASE_URLS.values())
        if token_of(sync)[0] not in known:
            text = "this address is not asked before the settings with it are saved"
            raise NotHeard(Finding("warning", "intercom.base_url", text))


class _Asker(Nobody):
    """Whoever asks. ``waits``: for the allowance; no call has left."""

    waits = False

    def note_departure(self) -> None:
        self.waits = False


def _busy(waited_s: float) -> Finding:
    text = f"not asked within {waited_s:g} s: the allowance of the token is used by others"
    return Finding("warning", "intercom", text)


def _through(gate: Gate, sync: Sync, asker: _Asker) -> Ask:
    """Return what asks by the calls of a token that is at work."""

    async def ask(request: Request) -> Answer:
        # Optional: what the token may not see is a fact about it, and stops no delivery.
        asker.waits = True
        outcome = await gate.call(request, asker, optional=True)
        if isinstance(outcome, Answered):
            return outcome.answer
        raise NotHeard(silence_of(gate, address_of(sync), outcome))

    return ask


def silence_of(gate: Gate, address: str, outcome: NotAnswered) -> Finding:
    """Return why a call of a token that is at work has no answer."""
    causes = {one.endpoint: one.cause for one in gate.troubles(loop_time_s())}
    said = cause_of(outcome.failure) if outcome.failure else ""
    if gate.state is State.UNAUTHORIZED:
        return Finding("error", "intercom.access_token", f"Intercom answers {said or causes['']}")
    if outcome.cause is Cause.THROTTLED or gate.pace.is_paused:
        text = "Intercom has answered 429: it is asked again once its window is over"
        return Finding("warning", "intercom", text)
    if outcome.cause is Cause.NOT_SENT:
        return Finding("warning", "intercom", "not asked: the deliveries of the token just end")
    return not_answering(address, said or causes.get(outcome.endpoint, "no answer lately"))
