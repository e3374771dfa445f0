"""The sources in the settings: found by their entry points, built, and run under supervision."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine import arguments as arguments_of
from amplitude_intercom.engine.config import with_secrets_revealed
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.internal_faults import describe
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.contract import Batch, Intake, Source, Ticket
from amplitude_intercom.transports.errors import Refused

_log = structlog.get_logger("engine.run")

SOURCES: Final = "amplitude_intercom.sources"
"""The group of entry points that names sources."""


class RunningSource(NamedTuple):
    """A source that runs, with the supervisor that starts it again after a fault."""

    source: Source
    supervisor: Supervisor


def load_source(name: str, arguments: Mapping[str, Any], syncs: Sequence[str]) -> Source:
    """Build a registered source (entry point group ``amplitude_intercom.sources``).

    ``syncs``: the names of the syncs that it may bring events for.

    Raises:
        SettingsError: no such source, or it does not take these settings.
    """
    found = [e for e in entry_points(group=SOURCES) if e.name == name]
    if not found:
        there = ", ".join(sorted(e.name for e in entry_points(group=SOURCES)))
        raise SettingsError(
            f"sources.{name}: no source of this name is installed, there is {there}"
        )
    try:
        source_class = found[0].load()
        problem = next(arguments_of.problems(source_class, arguments, syncs), None)
        if problem is not None:
            raise SettingsError(f"sources.{name}.{problem}")
        source: Source = source_class(**arguments)
        is_source = callable(getattr(source, "run", None))
    except SettingsError:
        raise
    except (Exception, SystemExit) as error:  # it is somebody else's code
        said = str(error) if isinstance(error, TypeError | ValueError) else describe(error)
        raise SettingsError(f"sources.{name}: {said}") from None
    if not is_source:
        raise SettingsError(f"sources.{name}: what is installed is no source, it has no `run`")
    return source


def sources_of(settings: Settings) -> dict[str, Source]:
    """Build the sources of a daemon, by name.

    Raises:
        SettingsError: one of them is not installed, or does not take its settings.
    """
    sources: dict[str, Source] = {}
    syncs = [sync.name for sync in settings.sync]
    if settings.http is not None:
        sources["http"] = load_source("http", msgspec.structs.asdict(settings.http), syncs)
    for name, arguments in settings.sources.items():
        sources[name] = load_source(name, with_secrets_revealed(arguments), syncs)
    return sources


def source_problems(running: Settings, read: Settings) -> Iterator[str]:
    """Yield errors of sources under settings that were read beside a running daemon.

    Sources run on as they were started, so each must still have the sync that it brings events for.
    """
    syncs = [sync.name for sync in read.sync]
    for name, arguments in {**read.sources, **running.sources}.items():
        sync = arguments.get("sync")
        if isinstance(sync, str) and sync not in syncs:
            yield (
                f"sources.{name}.sync: this source runs and brings events for sync `{sync}`, which"
                " is not in the settings any more: restart the daemon instead"
            )


async def start_sources(
    sources: Mapping[str, Source],
    intake: Intake,
    running: dict[str, RunningSource],
    tasks: TaskGroup,
) -> None:
    """Start sources, each under a supervisor, and note them in ``running``.

    Sources that listen do so when this returns.
    """
    for name, source in sources.items():
        work = partial(_serve, name, source, _WatchedIntake(intake))
        supervisor = Supervisor(work, final=(SettingsError,), source=name)
        running[name] = RunningSource(source, supervisor)
        tasks.start_soon(supervisor.run)
        listening = getattr(source, "listening", None)
        if listening is not None:
            _log.info("source listening", source=name, address=await listening())


async def _serve(name: str, source: Source, intake: _WatchedIntake) -> None:
    """Run a source once; its supervisor starts it again after a fault.

    Raises:
        SettingsError: it cannot begin.
    """
    try:
        await source.run(intake)
    except OSError as error:
        if not intake.used and not _is_listening(source):
            raise SettingsError(_problem(name, source, error)) from None
        raise
    except SettingsError as error:
        raise SettingsError(f"sources.{name}: {error}") from None
    except Refused as error:
        if error.reason != "draining":  # events that the source holds come again after the start
            raise


class _WatchedIntake:
    """The intake as one source sees it; notes whether the source has ever sent a batch."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.used = False

    def takes(self, api_key: str) -> bool:
        """See ``transports.contract.Intake``."""
        return self._intake.takes(api_key)

    async def send(self, batch: Batch) -> Ticket:
        """See ``transports.contract.Intake``."""
        self.used = True
        return await self._intake.send(batch)


def _is_listening(source: Source) -> bool:
    return bool(getattr(source, "is_listening", False))


def _problem(name: str, source: Source, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    address = getattr(source, "address", "")
    if not address:
        return f"sources.{name}: {error.filename or ''}: {reason}"
    return f"{name}.listen: {address} cannot be used: {reason}"
