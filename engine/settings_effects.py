"""What other settings change: which syncs and relays, and what waits for a restart. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from amplitude_intercom.engine.settings import Settings

NEEDS_RESTART: Final = ("data_dir", "http", "admin", "sources", "spool")
"""Sections that are read at the start alone; of ``admin`` the address."""

AT_ONCE: Final = ("drain_deadline_s", "admin", "forward", "log", "export")
"""Sections that hold at once; of ``admin`` all but the address."""

WORDS: Final = {
    "added": "added",
    "changed": "changed",
    "removed": "removed",
    "sections": "changed settings",
    "needs_restart": "waits for a restart",
}


class Effects(msgspec.Struct, frozen=True):
    """What other settings change: names of takers (a relay is ``relay:NAME``), sections that hold
    at once, and the keys that wait for a restart."""

    added: list[str] = []
    changed: list[str] = []
    removed: list[str] = []
    sections: list[str] = []
    needs_restart: list[str] = []

    def words(self) -> dict[str, list[str]]:
        """Return those that name something, by kind."""
        return {kind: names for kind, names in msgspec.structs.asdict(self).items() if names}

    def lines(self) -> list[str]:
        """Return them as lines for people, one a kind."""
        named = [f"{WORDS[kind]}: {', '.join(names)}" for kind, names in self.words().items()]
        return named or ["nothing has changed"]


def effects_of(before: Settings, after: Settings) -> Effects:
    """Return what a change from one settings to others does."""
    old = {sync.name: sync for sync in before.sync} | {r.taker: r for r in before.relay}
    new = {sync.name: sync for sync in after.sync} | {r.taker: r for r in after.relay}
    running = until_restart(before, after)
    return Effects(
        added=[name for name in new if name not in old],
        changed=[name for name in new if name in old and old[name] != new[name]],
        removed=[name for name in old if name not in new],
        sections=[key for key in AT_ONCE if getattr(before, key) != getattr(running, key)],
        needs_restart=[k for k in NEEDS_RESTART if getattr(running, k) != getattr(after, k)],
    )


def until_restart(before: Settings, after: Settings) -> Settings:
    """Return the settings that hold after a change, until the process is started again."""
    kept: dict[str, Any] = {key: getattr(before, key) for key in NEEDS_RESTART}
    if before.admin and after.admin:
        kept["admin"] = msgspec.structs.replace(after.admin, listen=before.admin.listen)
    return msgspec.structs.replace(after, **kept)
