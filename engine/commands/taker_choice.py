"""The sync or relay that a command's ``--sync`` names."""

from __future__ import annotations

from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Settings
from amplitude_intercom.engine.spool.takers import RELAY, spoken


def choose_sync(settings: Settings, name: str | None) -> str:
    """Return the sync that ``--sync`` names, or the only one there is.

    Raises:
        SettingsError: there is no such sync, or several and none is named.
    """
    names = [sync.name for sync in settings.sync]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        said = f"there is no sync `{name}`" if name else "there are several syncs"
        raise SettingsError(f"--sync: {said}; choose one of {', '.join(names)}")
    return name


def choose_taker(settings: Settings, name: str | None) -> str:
    """Return the taker that ``--sync`` names: a sync, or a relay (``relay:NAME``).

    Raises:
        SettingsError: there is no such taker, or several syncs and none is named.
    """
    if name is not None and name.startswith(RELAY):
        relays = [relay.taker for relay in settings.relay]
        if name not in relays:
            there = f"there is {', '.join(relays)}" if relays else "there is none in the settings"
            raise SettingsError(f"--sync: there is no {spoken(name)}; {there}")
        return name
    return choose_sync(settings, name)
