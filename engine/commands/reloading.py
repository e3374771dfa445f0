"""Reading the settings file again, for a running daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import structlog

from amplitude_intercom.engine import config, logs
from amplitude_intercom.engine.commands.service_manager import ServiceManager
from amplitude_intercom.engine.errors import EngineError, SettingsError
from amplitude_intercom.engine.findings.settings_findings import key_findings
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.settings_effects import Effects
from amplitude_intercom.engine.sources import source_problems
from amplitude_intercom.transports.errors import Refused

_log = structlog.get_logger(__name__)


MOST_WARNINGS: Final = 20
"""Findings that a start or a reload logs: a thousand syncs with one key have half a million."""


def warn_of_keys(settings: Settings) -> None:
    """Log the first findings about API keys."""
    findings = key_findings(settings)
    for finding in islice(findings, MOST_WARNINGS):
        _log.warning(finding.text, key=finding.key)
    if next(findings, None) is not None:
        _log.warning("there are more findings about API keys: `check` prints them")


class Reloadable(Protocol):
    """The engine, as a reload needs it (``engine.app.Engine``)."""

    @property
    def settings(self) -> Settings:
        """The settings by which it runs."""
        ...

    async def reload(self, settings: Settings) -> Effects:
        """Run by other settings from now on; return what that has changed."""
        ...


class FileReload:
    """Reads a daemon's settings file again, and has the engine follow it."""

    def __init__(self, path: Path, engine: Reloadable, manager: ServiceManager) -> None:
        """``path``: of a file that can be read again; a pipe cannot."""
        self.path = path
        self._engine = engine
        self._manager = manager
        self._one_at_a_time = asyncio.Lock()
        self.followers: list[Callable[[Settings], None]] = []
        """Called with the settings that were read, once the engine follows them."""

    async def reload(self, who: str) -> Effects:
        """Read the file and follow it; log what has changed. ``who`` asked for it, for the log.

        Raises:
            SettingsError: the file is refused; nothing has changed.
            SpoolError: the disk fails; nothing has changed.
            Refused: the daemon drains.
        """
        async with self._one_at_a_time:
            self._manager.reloading()
            try:
                return await self._reload(who)
            except (EngineError, Refused) as refused:
                _log.error("settings not loaded: the daemon goes on as before", cause=str(refused))
                raise
            except Exception as fault:
                internal_failure(fault, during="a reload")
                raise
            finally:
                self._manager.ready("serving")

    async def _reload(self, who: str) -> Effects:
        # In a thread: a file on a network may take long, and secrets are files, too.
        settings = await asyncio.to_thread(self._load)
        problem = next(source_problems(self._engine.settings, settings), None)
        if problem is not None:
            raise SettingsError(f"{self.path}: {problem}")
        done = await self._engine.reload(settings)
        logs.configure(settings.log)
        for follow in self.followers:
            follow(settings)
        _log.info("settings loaded", who=who, **(done.words() or {"changed": ["nothing"]}))
        warn_of_keys(settings)
        return done

    def _load(self) -> Settings:
        if not self.path.is_file():
            raise SettingsError(f"{self.path}: cannot be read again: it is no file")
        return config.load(self.path)
