"""Questions to the Intercom workspace of a sync; findings are made of its answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from amplitude_intercom.engine.clients import client_of
from amplitude_intercom.engine.delivery.workspace_attributes import (
    KnownAttributes,
    Listed,
    parse_list,
)
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import Answer, Request


class NotHeard(Exception):
    """A question got no answer; ``finding`` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


Ask = Callable[[Request], Awaitable[Answer]]
"""Asks Intercom once; raises ``NotHeard``."""


class WorkspaceSaid(msgspec.Struct, frozen=True):
    """What a workspace has said of itself. ``me``, ``attributes``: the answers; None: there is
    none, and ``silence`` says why, or the token is refused."""

    me: Answer | None = None
    attributes: Answer | None = None
    silence: Finding | None = None

    @property
    def known(self) -> KnownAttributes | None:
        """Its attributes; None: they cannot be listed."""
        listed = self.listed
        return None if listed is None else KnownAttributes(listed)

    @property
    def listed(self) -> list[Listed] | None:
        """The list of its attributes; None: there is none."""
        return None if self.attributes is None else parse_list(self.attributes)


async def ask_workspace(ask: Ask) -> WorkspaceSaid:
    """Ask for the token's workspace, then for its attributes."""
    me = None
    try:
        me = await ask(intercom.me())
        if me.status != 200 or not intercom.is_intercoms(intercom.me(), me):
            return WorkspaceSaid(me)
        return WorkspaceSaid(me, await ask(intercom.list_attributes()))
    except NotHeard as error:
        return WorkspaceSaid(me, silence=error.finding)


async def ask_intercom(sync: Sync) -> WorkspaceSaid:
    """Ask the workspace of a sync, by a client of its own."""
    async with client_of(sync.intercom) as client:

        async def ask(request: Request) -> Answer:
            try:
                return await client.send(request)
            except NoAnswer as error:
                within = f"no answer within {sync.intercom.timeout_s:g} s"
                why = within if error.cause == "timeout" else str(error)
                raise NotHeard(not_answering(address_of(sync), why)) from None

        return await ask_workspace(ask)


def address_of(sync: Sync) -> str:
    """Return the Intercom of a sync in words."""
    return sync.intercom.base_url or f"Intercom ({sync.intercom.region})"


def not_answering(address: str, why: str) -> Finding:
    """Return that an Intercom does not answer."""
    return Finding("error", "intercom", f"{address} does not answer: {why}")
