"""Findings in the settings of one sync, by themselves."""

from __future__ import annotations

from collections.abc import Iterator

from amplitude_intercom.engine.delivery.event_names import WARN_AT
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.rules.paths import FIELDS
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.rules.texts import fit_key, fit_name
from amplitude_intercom.engine.settings import MAX_EVENT_TYPES, Sync, source_and_target
from amplitude_intercom.engine.settings_problems import event_names

DOCUMENTED_METADATA_KEYS = 10
"""Keys that are kept, as the API reference says; the help centre says 20 (API description 2.16)."""


def sync_findings(sync: Sync, *, has_source: bool) -> Iterator[Finding]:
    """Yield the findings in one sync. ``has_source``: a source beside HTTP feeds it."""
    selection = Selection(sync.events.select)
    if not sync.amplitude_api_keys and not has_source:
        text = "none: only `forward` reaches this sync"
        yield Finding("warning", "amplitude_api_keys", text)
    if sync.events.enabled and not selection.types and not selection.any_type:
        yield Finding("warning", "events.select", "empty: no event is sent")
    if sync.events.enabled and selection.any_type:
        text = f"any event type: names beyond {MAX_EVENT_TYPES} become dead letters"
        yield Finding("warning", "events.select", text)
    names = event_names(selection.types, sync.events)
    if len(names) >= WARN_AT:
        text = f"{len(names)} names; Intercom keeps {MAX_EVENT_TYPES}, whoever sends them"
        yield Finding("warning", "events.select", text)
    for name in sorted(selection.types):
        wanted = sync.events.rename.get(name, name)
        if fit_name(wanted) != wanted:
            text = f"`{wanted}` is called `{fit_name(wanted)}` in Intercom"
            yield Finding("warning", "events.select", text)
    yield from _where_findings(sync)
    yield from _metadata_findings(sync)


def _where_findings(sync: Sync) -> Iterator[Finding]:
    for number, selector in enumerate(sync.events.select):
        for clause in selector.where:
            if "." not in clause.property and clause.property not in FIELDS:
                text = (
                    f"`{clause.property}` is no field of an event itself; is it"
                    f" `event.{clause.property}` or `user.{clause.property}`?"
                )
                yield Finding("warning", f"events.select[{number}].where", text)


def _metadata_findings(sync: Sync) -> Iterator[Finding]:
    metadata = sync.events.metadata
    sent = min(len(metadata), sync.events.metadata_limit)
    if sent > DOCUMENTED_METADATA_KEYS:
        text = f"{sent} keys: Intercom's API reference says that the first 10 are kept"
        yield Finding("warning", "events.metadata", text)
    for index, item in enumerate(metadata):
        _, target = source_and_target(item)
        if fit_key(target) != target:
            text = f"`{target}` is sent as `{fit_key(target)}`"
            yield Finding("warning", f"events.metadata[{index}]", text)
