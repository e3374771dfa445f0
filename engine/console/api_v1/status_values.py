"""The accounting as a value of the API."""

from __future__ import annotations

from amplitude_intercom.engine.status import Status


class DaemonStatus(Status, frozen=True, kw_only=True):
    """The accounting, with facts about the process.

    ``unready``: the reasons for which events are refused now, by sync. ``stopped``: the faults that
    stop syncs now.
    """

    version: str
    time_ms: int
    ready: bool
    unready: dict[str, str]
    stopped: dict[str, str]
