"""Findings about a sample of events: what comes of them, and names that the sample lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from amplitude_intercom.engine.did_you_mean import nearest
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.reasons import DeadReason
from amplitude_intercom.engine.rules.contacts import field_name
from amplitude_intercom.engine.rules.paths import Path, parse, read
from amplitude_intercom.engine.rules.selection import Selection
from amplitude_intercom.engine.settings import Rename, Sync, source_and_target
from amplitude_intercom.engine.wording import shown
from amplitude_intercom.transports.amplitude import BadEvent, Head
from amplitude_intercom.transports.amplitude_events import Event, decode_event

MOST_NAMES = 10_000
"""Names of one kind that are remembered of a sample."""

MOST_SHOWN = 10
DEPTH = 4


SampleEvent = tuple[int, Head | BadEvent, bytes]
"""An event of a sample: its line, its head and all of it."""


class Names:
    """The names of a sample: event types, and properties by scope, nested ones with dots.

    Whether a property is there is asked of the rules' own look-up; the names are for hints.
    """

    def __init__(self, raws: Iterable[bytes], wanted: Iterable[Path] = ()) -> None:
        """``wanted``: the properties that will be asked for."""
        self.types: Counter[str] = Counter()
        self.event: dict[str, None] = {}
        self.user: dict[str, None] = {}
        self._missing = set(wanted)
        for raw in raws:
            self._take(raw)

    def lacks(self, path: Path) -> bool:
        """Whether no event of the sample has a property that was wanted."""
        return path in self._missing

    def _take(self, raw: bytes) -> None:
        try:
            event = decode_event(raw)
        except ValueError:
            return
        if event.event_type and len(self.types) < MOST_NAMES:
            self.types[event.event_type] += 1
        _note(self.event, event.event_properties)
        _note(self.user, event.user_properties)
        for name, inner in event.user_properties.items():
            if name.startswith("$"):
                _note(self.user, inner)
        self._missing -= {path for path in self._missing if _has(event, path)}


def _has(event: Event, path: Path) -> bool:
    """Whether an event has a property; for a user's, whatever its operation does with it."""
    if read(path, event.fields) is not None:
        return True
    operations = event.user_properties if path.scope == "user" else {}
    return any(
        name.startswith("$") and isinstance(inner, dict) and inner.get(path.name) is not None
        for name, inner in operations.items()
    )


def wanted_of(sync: Sync) -> list[Path]:
    """Return the properties that a sync sends."""
    metadata = [parse(_source(item), "event") for item in sync.events.metadata]
    properties = [parse(_source(item), "user") for item in sync.users.properties]
    return [*(metadata if sync.events.enabled else []), *(properties if sync.users.enabled else [])]


def _note(names: dict[str, None], properties: Any, prefix: str = "", depth: int = DEPTH) -> None:
    for name, value in properties.items() if isinstance(properties, dict) else ():
        if len(names) >= MOST_NAMES:
            return
        if value is not None:
            names[prefix + name] = None
        if depth > 1:
            _note(names, value, f"{prefix}{name}.", depth - 1)


def name_findings(sync: Sync, names: Names) -> Iterator[Finding]:
    """Yield selected names that a sample lacks, with the ones that may be meant."""
    if sync.events.enabled:
        types = Selection(sync.events.select).types
        yield from _lacking("events.select", "event type", sorted(types), names.types)
        paths = [parse(_source(item), "event") for item in sync.events.metadata]
        yield from _properties("events.metadata", paths, names)
    if sync.users.enabled:
        paths = [parse(_source(item), "user") for item in sync.users.properties]
        yield from _properties("users.properties", paths, names)


def _properties(key: str, paths: Iterable[Path], names: Names) -> Iterator[Finding]:
    """Yield which properties a sample lacks, with hints where it has others of their scope."""
    for scope, there in (("event", names.event), ("user", names.user)):
        missing = [path.name for path in paths if path.scope == scope and names.lacks(path)]
        yield from _lacking(key, f"{scope} property", missing, there)


def _source(item: str | Rename) -> str:
    return source_and_target(item)[0]


def _lacking(key: str, what: str, wanted: Iterable[str], there: Iterable[str]) -> Iterator[Finding]:
    known = set(there)
    missing = [name for name in wanted if name not in known]
    if missing:
        text = f"the sample has no {what} {_with_hints(missing, list(known - set(wanted)))}"
        yield Finding("warning", key, text)


def unselected(sync: Sync, types: Counter[str]) -> str:
    """Return in words which event types no selection takes, and which ones may be meant."""
    selected = sorted(Selection(sync.events.select).types)
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


def type_of(head: Head | BadEvent) -> str:
    """Return the type of an event of the sample; empty where it has none."""
    return (head.event_type or "") if isinstance(head, Head) else ""


class Outcome(Protocol):
    """What would come of an event (``engine.previewing.Foreseen``)."""

    @property
    def verdict(self) -> str:
        """``send``, ``drop`` or ``reject``."""
        ...

    @property
    def reason(self) -> str:
        """Why it is not sent."""
        ...

    @property
    def adjustments(self) -> Sequence[object]:
        """The changes to its values, each with its text."""
        ...


def sample_findings(
    sync: Sync, events: Sequence[SampleEvent], answers: Sequence[Outcome]
) -> Iterator[Finding]:
    """Yield what the settings make of real events; ``answers``: those of ``preview`` for each."""
    verdicts = Counter((a.verdict, a.reason) for a in answers)
    sent, nameless = verdicts["send", ""], verdicts["drop", "no_identity"]
    of = f"of {len(answers)} events of the sample"
    if not sent and nameless:
        text = f"none {of} has a `{sync.mapping.source}` to find a contact by"
        yield Finding("error", "mapping.from", text)
    elif nameless:
        text = f"{nameless} {of} have no `{sync.mapping.source}`: they are dropped"
        yield Finding("warning", "mapping.from", text)
    elif not sent:
        yield Finding("warning", "events.select", f"none {of} would be sent")
    for reason in ("not_selected", "filtered_out"):
        if verdicts["drop", reason]:
            types = Counter(
                type_of(event[1])
                for event, answer in zip(events, answers, strict=True)
                if answer.reason == reason
            )
            text = f"{verdicts['drop', reason]} {of} are dropped: {reason}"
            yield Finding("warning", "events.select", f"{text}: {unselected(sync, types)}")
    yield from name_findings(sync, Names((raw for _, _, raw in events), wanted_of(sync)))
    for (verdict, reason), number in sorted(verdicts.items()):
        if verdict == "reject":
            text = f"{number} {of} would be dead letters: {reason} ({DeadReason(reason).means})"
            yield Finding("warning", "events", text)
    changed = Counter(str(one) for a in answers for one in a.adjustments)
    for text, number in changed.most_common(20):
        where = "users.properties" if _is_about_a_contact(text, sync) else "events.metadata"
        yield Finding("warning", where, f"{text} ({number}×)")


def _is_about_a_contact(adjustment: str, sync: Sync) -> bool:
    names = [field_name(source_and_target(item)[1]) for item in sync.users.properties]
    return adjustment.startswith((*(f"{name}: " for name in names), "user_properties: "))
