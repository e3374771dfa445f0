"""The takers as intake knows them: by which rules each keeps something of a batch."""

from __future__ import annotations

from typing import NamedTuple

from amplitude_intercom.engine.rules.admission import Admission
from amplitude_intercom.engine.setting_types import ANY_KEY
from amplitude_intercom.engine.settings import Sync


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
