"""``check``: are these settings good?"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from engine.app import sources_of
from engine.commands import OK
from engine.config import MAX_EVENT_TYPES, Settings, Sync
from engine.selection import Selection


def check(settings: Settings, *, as_json: bool = False) -> int:
    """Say what the settings amount to. Whatever is wrong with them has been refused before.

    Raises:
        SettingsError: a source is not installed, or does not take its settings.
    """
    sources = list(sources_of(settings))
    report = {
        "ok": True,
        "sources": sources,
        "syncs": [_describe(sync) for sync in settings.sync],
    }
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return OK
    print(f"sources: {', '.join(sources) or 'none (forward only)'}")
    for sync in settings.sync:
        for key, value in _describe(sync).items():
            print(f"  {key}: {value}" if key != "sync" else f"sync {value}")
    print("the settings are good")
    return OK


def _describe(sync: Sync) -> dict[str, Any]:
    selection = Selection(sync.events.select)
    described: dict[str, Any] = {
        "sync": sync.name,
        "enabled": sync.enabled,
        "intercom": sync.intercom.base_url or sync.intercom.region,
        "contact": f"{sync.mapping.identifier} from {sync.mapping.source}",
        "users": f"{len(sync.users.properties)} properties" if sync.users.enabled else "off",
        "events": _describe_types(selection) if sync.events.enabled else "off",
        "metadata": f"{len(sync.events.metadata)} properties",
    }
    warnings = list(_warnings(sync, selection))
    return {**described, "warnings": warnings} if warnings else described


def _describe_types(selection: Selection) -> str:
    return "any type" if selection.any_type else f"{len(selection.types)} types"


def _warnings(sync: Sync, selection: Selection) -> list[str]:
    warnings = []
    if not sync.amplitude_api_keys:
        warnings.append("no amplitude_api_keys: only `forward` reaches this sync")
    if sync.events.enabled and not selection.types and not selection.any_type:
        warnings.append("events.select is empty: no event is sent")
    if selection.any_type:
        warnings.append(f"any event type is selected: Intercom keeps {MAX_EVENT_TYPES} names")
    if len(sync.events.metadata) > 10:
        warnings.append("more than 10 metadata keys: Intercom's API reference says 10 are kept")
    return warnings
