"""What other settings change: which syncs and relays, and what waits for a restart. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from amplitude_intercom.engine.settings import Settings

NEEDS_RESTART: Final = ("data_dir", "http", "admin", "sources", "spool")
"""Sections that are read at the start alone."""


class Effects(msgspec.Struct, frozen=True):
    """What other settings change: names of takers (a relay is ``relay:NAME``), and the keys that
    wait for a restart."""

    added: list[str] = []
    changed: list[str] = []
    removed: list[str] = []
    needs_restart: list[str] = []

    def words(self) -> dict[str, list[str]]:
        """Return those that name something, by kind."""
        return {kind: names for kind, names in msgspec.structs.asdict(self).items() if names}


def effects_of(before: Settings, after: Settings) -> Effects:
    """Return what a change from one settings to others does."""
    old = {sync.name: sync for sync in before.sync} | {r.taker: r for r in before.relay}
    new = {sync.name: sync for sync in after.sync} | {r.taker: r for r in after.relay}
    return Effects(
        added=[name for name in new if name not in old],
        changed=[name for name in new if name in old and old[name] != new[name]],
        removed=[name for name in old if name not in new],
        needs_restart=[k for k in NEEDS_RESTART if _of_process(before, k) != _of_process(after, k)],
    )


def _of_process(settings: Settings, key: str) -> object:
    """Return the part of a section that is read at the start alone."""
    if key == "admin":
        return settings.admin and settings.admin.listen
    return getattr(settings, key)
