"""The gates of the access tokens in the settings: one for each, shared by its syncs.

Rules
=====
1. A token that gets another gate keeps its name, and what its calls have shown.
2. So does one that comes back within ``REMEMBERED_S`` after the settings have lost it. Later it
   begins anew: its figures at zero, which monitors see as a reset.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import msgspec

from amplitude_intercom.engine.clients import Token, client_of, most_calls, token_of
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.ramp import LONGEST_PAUSE_S
from amplitude_intercom.engine.delivery.token_memory import TokenMemory
from amplitude_intercom.engine.delivery.window import WINDOW_S
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Intercom, Sync
from amplitude_intercom.transports.intercom import Wire

WireFactory = Callable[[Intercom], Wire]
"""Makes the client of an access token; the sandbox's in-process wire stands in for HTTPS."""


REMEMBERED_S: Final = LONGEST_PAUSE_S
"""Seconds for which a token without a sync is remembered: no pause lasts longer."""


class Clocks(msgspec.Struct, frozen=True):
    """The clocks and the chance of an engine; simulations bring their own.

    ``now_ms`` and ``now_s``: Unix time. ``jitter``: returns a number in [0, 1).
    """

    now_ms: Callable[[], int]
    now_s: Callable[[], float]
    jitter: Callable[[], float]


class Gates:
    """Builds the gate of each access token, and names it: ``HOST#N``, without secrets."""

    def __init__(self, wire: WireFactory | None, clocks: Clocks) -> None:
        self._wire = wire
        self._clocks = clocks
        self._numbers: dict[Token, int] = {}
        self._syncs: dict[Token, list[str]] = {}
        self._memories: dict[Token, TokenMemory] = {}
        self._left: dict[Token, asyncio.TimerHandle] = {}
        """Tokens that no sync has any more, and the end of their memory."""
        self._wanted = 0

    def name_tokens(self, syncs: Iterable[Sync]) -> None:
        """Give a name to each token of these syncs that has none."""
        tokens = dict.fromkeys(map(token_of, syncs))
        self._wanted = len(tokens)
        taken = set(self._numbers.values())
        free = (n for n in itertools.count(1) if n not in taken)
        for token in tokens:
            if token not in self._numbers:
                self._numbers[token] = next(free)

    def forget_others(self, syncs: Iterable[Sync]) -> None:
        """Forget the tokens that none of these syncs has (rule 2)."""
        tokens: dict[Token, list[str]] = {}
        for sync in syncs:
            tokens.setdefault(token_of(sync), []).append(sync.name)
        self._syncs = tokens
        for token in self._left.keys() & tokens.keys():
            self._left.pop(token).cancel()
        loop = asyncio.get_running_loop()
        for token in self._numbers.keys() - tokens.keys() - self._left.keys():
            self._left[token] = loop.call_later(REMEMBERED_S, self._forget, token)

    def _forget(self, token: Token) -> None:
        del self._left[token], self._numbers[token]
        self._memories.pop(token, None)

    def name_of(self, sync: Sync) -> str:
        """Return the name of a sync's access token."""
        return self._name(token_of(sync))

    def _name(self, token: Token) -> str:
        return f"{urlsplit(token[0]).netloc}#{self._numbers[token]}"

    def _log_name(self, token: Token) -> str:
        """Return the host of an access token with the syncs that use it now, for logs."""
        syncs = self._syncs.get(token, [])
        host = token[0].partition("://")[2]
        return f"{host} ({', '.join(syncs[:3])}{', …' if len(syncs) > 3 else ''})"

    async def build(
        self,
        token: Token,
        sync: Sync,
        clients: AsyncExitStack,
        known_limit: float | None,
        *,
        counts_before: bool,
    ) -> Gate:
        """Build the gate of an access token by the settings of its first sync.

        ``clients``: closes the client when the gate is needed no more. ``known_limit`` is the
        calls a window that an answer has told, maybe an earlier process. ``counts_before``:
        ``Remaining`` is known not to count the call that it answers; otherwise answers will tell.

        Raises:
            SettingsError: its client cannot be built.
        """
        wire = await self._enter_wire(sync, clients)
        if token not in self._memories:
            self._memories[token] = TokenMemory(
                known_limit or sync.intercom.requests_per_minute * WINDOW_S / 60,
                is_known=known_limit is not None,
                counts_before=counts_before,
            )
        return Gate(
            wire,
            requests_per_minute=sync.intercom.requests_per_minute,
            max_in_flight=most_calls(sync.intercom, self._wanted),
            probe_first_s=sync.delivery.probe_first_s,
            probe_most_s=sync.delivery.probe_most_s,
            now_s=self._clocks.now_s,
            jitter=self._clocks.jitter,
            name=self._name(token),
            log_name=partial(self._log_name, token),
            memory=self._memories[token],
        )

    async def _enter_wire(self, sync: Sync, clients: AsyncExitStack) -> Wire:
        """Build the client of a sync.

        Raises:
            SettingsError: it cannot be built. (The error's own text could quote the token.)
        """
        try:
            if self._wire:
                return self._wire(sync.intercom)
            made = client_of(sync.intercom, self._wanted)
            return await clients.enter_async_context(made)
        except Exception as fault:
            raise SettingsError(
                f"sync `{sync.name}`: sync.intercom makes no client: {type(fault).__name__}"
            ) from fault
