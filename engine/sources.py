"""The sources that the settings ask for, found by their entry points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Final, NamedTuple

import msgspec

from amplitude_intercom.engine import arguments as arguments_of
from amplitude_intercom.engine.config import with_secrets_revealed
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.faults import describe
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.supervision import Supervisor
from amplitude_intercom.transports.contract import Source

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
