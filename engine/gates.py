"""The gates of the access tokens in the settings: one for each, shared by its syncs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import msgspec

from amplitude_intercom.engine.clients import Token, client_of, most_calls, token_of
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Intercom, Settings, Sync
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.token_facts import counts_before, known_limit
from amplitude_intercom.transports.intercom import Wire

WireFactory = Callable[[Intercom], Wire]
"""Makes the client of an access token; the sandbox's in-process wire stands in for HTTPS."""


class Clocks(msgspec.Struct, frozen=True):
    """The clocks and the chance of an engine; simulations bring their own.

    ``now_ms`` and ``now_s``: Unix time. ``jitter``: returns a number in [0, 1).
    """

    now_ms: Callable[[], int]
    now_s: Callable[[], float]
    jitter: Callable[[], float]


class Gates:
    """Builds the gate of each access token."""

    def __init__(self, settings: Settings, wire: WireFactory | None, clocks: Clocks) -> None:
        self._syncs = _syncs_by_token(settings)
        self._names = {
            token: f"{urlsplit(token[0]).netloc}#{number}"
            for number, token in enumerate(self._syncs, start=1)
        }
        self._wire = wire
        self._clocks = clocks

    def name_of(self, sync: Sync) -> str:
        """Return the name of a sync's access token, without secrets: ``HOST#N``."""
        return self._names[token_of(sync)]

    async def build(self, token: Token, sync: Sync, spool: Spool, stack: AsyncExitStack) -> Gate:
        """Build the gate of an access token by the settings of its first sync.

        Raises:
            SettingsError: its client cannot be built.
            SpoolError: the spool cannot be read.
        """
        return Gate(
            await self._enter_wire(sync, stack),
            requests_per_minute=sync.intercom.requests_per_minute,
            max_in_flight=most_calls(sync.intercom, len(self._syncs)),
            probe_first_s=sync.delivery.probe_first_s,
            probe_most_s=sync.delivery.probe_most_s,
            now_s=self._clocks.now_s,
            jitter=self._clocks.jitter,
            name=self._log_name(token),
            known_limit=await known_limit(spool, token),
            counts_before=await counts_before(spool, token),
        )

    async def _enter_wire(self, sync: Sync, stack: AsyncExitStack) -> Wire:
        """Build the client of a sync; the stack closes it.

        Raises:
            SettingsError: it cannot be built. (The error's own text could quote the token.)
        """
        try:
            if self._wire:
                return self._wire(sync.intercom)
            return await stack.enter_async_context(client_of(sync.intercom, len(self._syncs)))
        except Exception as fault:
            raise SettingsError(
                f"sync `{sync.name}`: sync.intercom makes no client: {type(fault).__name__}"
            ) from fault

    def _log_name(self, token: Token) -> str:
        """Return the host of an access token with the syncs that use it, for logs."""
        syncs = self._syncs[token]
        host = token[0].partition("://")[2]
        return f"{host} ({', '.join(syncs[:3])}{', …' if len(syncs) > 3 else ''})"


def _syncs_by_token(settings: Settings) -> dict[Token, list[str]]:
    """Return the names of the syncs that use each access token."""
    found: dict[Token, list[str]] = {}
    for sync in settings.sync:
        found.setdefault(token_of(sync), []).append(sync.name)
    return found
