"""What the spool keeps of each access token: its limit, how Intercom counts, its workspace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from amplitude_intercom.engine.clients import Token, token_key, token_of
from amplitude_intercom.engine.errors import SpoolError
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.known_contacts import ContactKey
from amplitude_intercom.engine.spool.store import Store

T = TypeVar("T")


class KeepsFacts(Protocol):
    """A spool, for facts of tokens (``spool.spool.Spool``)."""

    async def do(self, work: Callable[[Store], T]) -> T:
        """Do work on the store; return once its changes are durable.

        Raises:
            SpoolError: nothing of it was done.
        """
        ...


MAX_LIMIT: Final = 1_000_000
"""Calls a window; a larger number on disk is damage."""

BEFORE: Final = "before"
AFTER: Final = "after"
"""Whether ``X-RateLimit-Remaining`` is the value before or after its call is charged, as kept."""


def workspace_of(store: Store, sync: Sync) -> int:
    """Return the number of the workspace that a sync writes to; 0: not known yet."""
    token = token_of(sync)
    key = token_key("workspace", token)
    text = store.meta.get(key)
    if text and text.isdecimal():
        return int(text)
    return store.workspaces.find(token[0], key)  # Intercom has not named it


def contact_key(store: Store, sync: Sync, user: str) -> ContactKey:
    """Return the key of a user's contact in the directory; its workspace may be 0."""
    return ContactKey(workspace_of(store, sync), sync.mapping.identifier, user)


async def keep_limit(spool: KeepsFacts, token: Token, limit: float) -> None:
    """Keep the calls a window that Intercom has named."""
    key, text = token_key("limit", token), f"{limit:g}"
    with suppress(SpoolError):  # then the next process begins with a guess
        await spool.do(lambda store: store.meta.set(key, text))


async def known_limit(spool: KeepsFacts, token: Token) -> float | None:
    """Return the calls a window that Intercom named last; None: it has named none.

    Raises:
        SpoolError: the spool cannot be read.
    """
    key = token_key("limit", token)
    text = await spool.do(lambda store: store.meta.get(key))
    try:
        limit = float(text or 0)
    except ValueError:  # damaged
        return None
    return limit if 1 <= limit < MAX_LIMIT else None


async def counts_before(spool: KeepsFacts, token: Token) -> bool:
    """Return whether ``Remaining`` is known to be the value before its call is charged.

    Raises:
        SpoolError: the spool cannot be read.
    """
    key = token_key("remaining", token)
    return await spool.do(lambda store: store.meta.get(key)) == BEFORE
