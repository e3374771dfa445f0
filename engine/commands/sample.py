"""What ``check`` finds in a sample of events: names that do not meet the settings'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from amplitude_intercom.engine.commands.findings import Finding
from amplitude_intercom.engine.commands.terminal import shown
from amplitude_intercom.engine.near import nearest
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.settings import ANY_TYPE, Rename, Sync, source_and_target
from amplitude_intercom.transports import amplitude

MOST_NAMES = 10_000
"""Names of one kind that are remembered of a sample."""

MOST_SHOWN = 10
DEPTH = 4


class Names:
    """The names of a sample: event types, and properties by scope, nested ones with dots."""

    def __init__(self, raws: Iterable[bytes]) -> None:
        self.types: Counter[str] = Counter()
        self.event: dict[str, None] = {}
        self.user: dict[str, None] = {}
        self.fields: dict[str, None] = {}
        for raw in raws:
            self._take(raw)

    def _take(self, raw: bytes) -> None:
        try:
            event = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        event_type = event.get("event_type")
        if isinstance(event_type, str) and len(self.types) < MOST_NAMES:
            self.types[event_type] += 1
        _note(self.event, event.get("event_properties"))
        given = event.get("user_properties")
        _note(self.user, given)
        for name, inner in given.items() if isinstance(given, dict) else ():
            if name.startswith("$"):
                _note(self.user, inner)
        self.fields |= dict.fromkeys(list(event)[: MOST_NAMES - len(self.fields)])


def _note(names: dict[str, None], properties: Any, prefix: str = "", depth: int = DEPTH) -> None:
    for name, value in properties.items() if isinstance(properties, dict) else ():
        if len(names) >= MOST_NAMES:
            return
        names[prefix + name] = None
        if depth > 1:
            _note(names, value, f"{prefix}{name}.", depth - 1)


def name_findings(sync: Sync, names: Names) -> Iterator[Finding]:
    """Yield selected names that a sample lacks, with the ones that may be meant."""
    if sync.events.enabled:
        types = Selection(sync.events.select).types - ANY_TYPE
        yield from _lacking("events.select", "event type", sorted(types), names.types)
        wanted = [*map(_source, sync.events.metadata)]
        of_users = [w.removeprefix("user.") for w in wanted if w.startswith("user.")]
        of_events = [w.removeprefix("event.") for w in wanted if not w.startswith("user.")]
        event_names = {**names.event, **names.fields}
        if names.event:
            yield from _lacking("events.metadata", "event property", of_events, event_names)
        yield from _users("events.metadata", of_users, names)
    if sync.users.enabled:
        properties = [_source(item).removeprefix("user.") for item in sync.users.properties]
        yield from _users("users.properties", properties, names)


def _users(key: str, wanted: Iterable[str], names: Names) -> Iterator[Finding]:
    """A sample in which no event says anything of its user lacks nothing that can be named."""
    if names.user:
        yield from _lacking(key, "user property", wanted, {**names.user, **names.fields})


def _source(item: str | Rename) -> str:
    return source_and_target(item)[0]


def _lacking(key: str, what: str, wanted: Iterable[str], there: Iterable[str]) -> Iterator[Finding]:
    known = set(there)
    missing = [name for name in wanted if name not in known and name.lstrip("$") not in known]
    if missing:
        text = f"the sample has no {what} {_with_hints(missing, list(known - set(wanted)))}"
        yield Finding("warning", key, text)


def unselected(sync: Sync, types: Counter[str]) -> str:
    """Return in words which event types no selection takes, and which ones may be meant."""
    selected = sorted(Selection(sync.events.select).types - ANY_TYPE)
    ordered = [name for name, _ in types.most_common()]
    return _with_hints(ordered, selected, types)


def _with_hints(names: list[str], known: list[str], counts: Counter[str] | None = None) -> str:
    parts = []
    for name in names[:MOST_SHOWN]:
        found = nearest(name, known)
        hint = f" (did you mean `{shown(found, 60)}`?)" if found else ""
        times = f" {counts[name]}×" if counts else ""
        parts.append(f"`{shown(name, 60)}`{times}{hint}")
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(parts) + more


def type_of(head: amplitude.Head | amplitude.BadEvent) -> str:
    """Return the type of an event of the sample; empty where it has none."""
    return (head.event_type or "") if isinstance(head, amplitude.Head) else ""
