"""The parts of a running daemon that the API asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from amplitude_intercom.engine.clients import token_of
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.delivery.stream import Stream, SyncDelivery
from amplitude_intercom.engine.setting_types import SPELLED_OUT
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.engine.spool.spool import Spool
from amplitude_intercom.engine.spool.takers import RELAY


class TakerNames(Protocol):
    """What knows the names of all syncs and relays (``engine.overview.Overview``)."""

    @property
    def takers(self) -> list[str]:
        """The names of the syncs, and of the relays (``relay:NAME``)."""
        ...


class RunningEngine(Protocol):
    """An engine (``engine.app.Engine``), as far as each resource asks it.

    A resource that asks for more says so in a protocol of its own.
    """

    @property
    def spool(self) -> Spool:
        """The spool."""
        ...

    @property
    def overview(self) -> TakerNames:
        """The state of the engine."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings by which it runs."""
        ...

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The syncs, by name."""
        ...


def delivery_with(engine: RunningEngine, sync: Sync) -> SyncDelivery | None:
    """Return a delivery with the access token of a sync, whose gate makes its calls; None: the
    token is not at work."""
    deliveries = (stream.delivery for stream in engine.streams.values())
    return next((one for one in deliveries if one and _have_one_token(one.sync, sync)), None)


def _have_one_token(one: Sync, other: Sync) -> bool:
    # A file may hold a newer token than the client at work has read: it is the same budget.
    secret, same = one.intercom.access_token, other.intercom.access_token
    is_named_alike = secret.source == same.source != SPELLED_OUT
    (address, token), (other_address, other_token) = token_of(one), token_of(other)
    return address == other_address and (token == other_token or is_named_alike)


def stream_of(engine: RunningEngine, request: web.Request) -> Stream:
    """Return the sync that a path names.

    Raises:
        Problem: there is none of this name.
    """
    name = request.match_info["sync"]
    stream = engine.streams.get(name)
    if stream is None:
        raise Problem(ProblemType.NOT_FOUND, f"no sync named {name}")
    return stream


def taker_of(engine: RunningEngine, request: web.Request) -> str:
    """Return the sync or relay (``relay:NAME``) that a path names.

    Raises:
        Problem: there is none of this name.
    """
    name = request.match_info["sync"]
    if name not in engine.overview.takers:
        kind = "relay" if name.startswith(RELAY) else "sync"
        raise Problem(ProblemType.NOT_FOUND, f"no {kind} named {name}")
    return name
