"""The parts of a running daemon that the settings of the API ask."""

from __future__ import annotations

from typing import Final, Protocol

from amplitude_intercom.engine.config import MAX_FILE_BYTES
from amplitude_intercom.engine.settings import Admin, Settings
from amplitude_intercom.engine.settings_effects import Effects

MOST_TEXT_BYTES: Final = 3 * MAX_FILE_BYTES
"""Of the largest settings file as JSON, with a margin for its escapes."""

MOST_FINDINGS: Final = 1_000
"""Findings of one answer: a thousand syncs that share fields would have half a million."""


class RunningSettings(Protocol):
    """An engine, for its settings (``engine.app.Engine``)."""

    @property
    def settings(self) -> Settings:
        """The settings by which it runs."""
        ...


class Reloads(Protocol):
    """Reads the settings file again (``engine.commands.reloading.FileReload``)."""

    async def reload(self, who: str) -> Effects:
        """Read the file and follow it.

        Raises:
            SettingsError: the file is refused; nothing has changed.
            SpoolError: the disk fails; nothing has changed.
            Refused: the daemon drains.
        """
        ...


class Access(Protocol):
    """The settings of the admin port as they are now (``console.admin_access.AdminAccess``)."""

    settings: Admin
