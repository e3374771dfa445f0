"""The access tokens at work, by the names that their workspaces have here; and attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.delivery.workspace_attributes import Listed
from amplitude_intercom.engine.delivery.workspaces import Workspace
from amplitude_intercom.engine.settings import Sync


class DeliveryToWorkspace(Protocol):
    """A sync's delivery (``delivery.stream.SyncDelivery``)."""

    @property
    def gate(self) -> Gate:
        """The gate of its token."""
        ...

    @property
    def has_entered(self) -> bool:
        """Whether the workspace is known."""
        ...

    @property
    def workspace(self) -> Workspace:
        """The workspace, once it is known."""
        ...


class DeliveredSync(Protocol):
    """A sync (``delivery.stream.Stream``)."""

    @property
    def sync(self) -> Sync:
        """Its settings."""
        ...

    @property
    def delivery(self) -> DeliveryToWorkspace | None:
        """Its delivery; None where nothing is delivered."""
        ...


class EngineWithTokens(Protocol):
    """An engine, for its access tokens (``engine.app.Engine``)."""

    @property
    def streams(self) -> Mapping[str, DeliveredSync]:
        """The syncs, by name."""
        ...


class Attribute(msgspec.Struct, frozen=True):
    """A data attribute of contacts that can be written. ``data_type``: empty: not known."""

    name: str
    data_type: str
    options: list[str]
    used_by: list[str]


class WorkspaceToken(NamedTuple):
    """An access token that is used: its gate, the syncs, and the workspace if it is known."""

    gate: Gate
    syncs: list[str]
    workspace: Workspace | None


def tokens_of(engine: EngineWithTokens) -> dict[str, WorkspaceToken]:
    """Return the tokens at work, by name."""
    found: dict[str, WorkspaceToken] = {}
    for name, gate, workspace in _deliveries(engine):
        token = found.setdefault(workspace_id(gate), WorkspaceToken(gate, [], workspace))
        token.syncs.append(name)
    return found


def _deliveries(engine: EngineWithTokens) -> Iterator[tuple[str, Gate, Workspace | None]]:
    for name, stream in engine.streams.items():
        delivery = stream.delivery
        if delivery is not None:
            workspace = delivery.workspace if delivery.has_entered else None
            yield name, delivery.gate, workspace


def token_named(engine: EngineWithTokens, request: web.Request) -> tuple[str, WorkspaceToken]:
    """Return the name that a path has, with its token.

    Raises:
        Problem: there is none of this name.
    """
    name = request.match_info["workspace"]
    token = tokens_of(engine).get(name)
    if token is None:
        raise Problem(ProblemType.NOT_FOUND, f"no workspace is named {name}")
    return name, token


def workspace_id(gate: Gate) -> str:
    """Return the name of a workspace here: that of its access token, without ``#`` and ``:``."""
    return gate.name.replace("#", "-").replace(":", "-")


def attribute_of(engine: EngineWithTokens, listed: Listed, syncs: list[str]) -> Attribute:
    """Return an attribute with those of some syncs that write it."""
    streams = (engine.streams.get(name) for name in syncs)
    users = [s.sync.name for s in streams if s and listed.name in s.sync.written_fields]
    options = [one if isinstance(one, str) else one.value for one in listed.options or ()]
    return Attribute(listed.name, listed.data_type, options, users)
