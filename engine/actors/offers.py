"""Batches, and the takers that they are offered to: by which rules each keeps something of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.setting_types import ANY_KEY
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.transports.contract import Batch, Ticket


def only_project(sync: Sync) -> str:
    """Return the only API key of a sync; empty if it takes the events of several, or of any."""
    keys = [key.reveal() for key in sync.amplitude_api_keys]
    return keys[0] if len(keys) == 1 and keys[0] != ANY_KEY else ""


class SyncFilter:
    """A sync, as intake knows it.

    ``project``: the API key of batches that come without one. ``few_are_kept``: so it was of the
    last run of events; then the type is all that is read of an event at first.
    """

    __slots__ = ("admission", "few_are_kept", "name", "project")

    def __init__(self, name: str, admission: Admission, project: str = "") -> None:
        self.name = name
        self.admission = admission
        self.project = project
        self.few_are_kept = True


class RelayFilter(NamedTuple):
    """A relay, as intake knows it: it keeps whole requests. ``name``: of its taker."""

    name: str
    drops_oldest: bool


class Offer(msgspec.Struct):
    """A batch, the takers that it is for, and where to say that all of them have it."""

    batch: Batch
    takers: Sequence[SyncFilter | RelayFilter]
    ticket: Ticket


class Routes(msgspec.Struct, frozen=True):
    """The takers of today's settings: the syncs by name, and who takes the events of a key."""

    syncs: Mapping[str, SyncFilter] = {}
    syncs_by_key: Mapping[str, Sequence[SyncFilter]] = {}
    relays_by_key: Mapping[str, Sequence[RelayFilter]] = {}
