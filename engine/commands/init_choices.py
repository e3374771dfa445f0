"""The selection that ``init`` writes: event types and properties, proposed from a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from amplitude_intercom.engine.commands import init_asking as asking
from amplitude_intercom.engine.commands.init_flags import Flags, drafted
from amplitude_intercom.engine.commands.init_sample import MOST_METADATA, Sample, is_of_sdk
from amplitude_intercom.engine.commands.init_text import Answers
from amplitude_intercom.engine.commands.sample_events import MAX_SAMPLE, read_events
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes
from amplitude_intercom.engine.errors import EngineError, SettingsError
from amplitude_intercom.engine.rules.contacts import STANDARD_TYPES
from amplitude_intercom.engine.spool.sqlite.snapshots import look
from amplitude_intercom.engine.spool.sqlite.spool_file import FILE_NAME
from amplitude_intercom.engine.spool.store import Store, reading_store
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.transports.amplitude import MAX_EVENT_BYTES
from amplitude_intercom.transports.errors import TransportError

MOST_PROPERTIES: Final = 100
"""Properties that can be picked from a list."""

MOST_WAITING_BYTES: Final = 8_388_608
"""Of the events that wait for a sync, of which a sample is made."""


class Choices:
    """Adds to answers the selection that flags, proposals and questions make."""

    def __init__(
        self, folder: Path, flags: Flags, known: KnownAttributes | None, *, asks: bool
    ) -> None:
        """``folder``: of the settings file. ``known``: the workspace's attributes."""
        self._folder = folder
        self._flags = flags
        self._known = known
        self._asks = asks

    def added(self, made: Answers) -> Answers:
        """Return answers with event types, properties and the contacts' identifier.

        Raises:
            SettingsError: the sample has no events, or the input ends.
            OSError, BadFile: the sample cannot be read.
        """
        sample = self._sample()
        made = msgspec.structs.replace(made, identifier=self._identifier(sample))
        made = msgspec.structs.replace(made, events=self._events(made, sample))
        made = msgspec.structs.replace(made, metadata=self._metadata(made, sample))
        made = msgspec.structs.replace(made, properties=self._properties(made, sample))
        return msgspec.structs.replace(made, create_missing=self._creates(made.properties))

    def _sample(self) -> Sample:
        if self._flags.sample is not None:
            return _sample_at(self._flags.sample, "--sample: ")
        if not self._asks or self._flags.events:
            return Sample()
        asking.tell("")
        asking.tell("Event types and properties can be proposed from a sample: a file of JSON")
        asking.tell("lines, an Export file or .zip, or the data directory of a daemon.")
        while path := asking.ask("Sample (Enter: none)"):
            try:
                return _sample_at(path)
            except (EngineError, OSError, TransportError, ValueError) as error:
                asking.tell(f"{error}; once more")
        return Sample()

    def _problem(self, made: Answers, field: str) -> Callable[[list[str]], str]:
        """Return a function that says why names cannot be the answers of a field."""

        def problem(names: list[str]) -> str:
            try:
                drafted(msgspec.structs.replace(made, **{field: names}), self._folder)
            except SettingsError as error:
                return str(error)
            return ""

        return problem

    def _events(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._flags.events:
            return self._flags.events
        marked = [name for name, _ in sample.types if not is_of_sdk(name)]
        rows = [(name, f"{number}×") for name, number in sample.types]
        problem = self._problem(made, "events")
        if self._asks and rows:
            return asking.ask_which("Event types to send", rows, marked, problem)
        if self._asks:
            question = "Event types to send, with commas between (Enter: none yet)"
            return asking.ask_names(question, problem)
        return marked

    def _metadata(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._flags.metadata:
            return self._flags.metadata
        found = sample.event_properties(made.events)[:MOST_PROPERTIES]
        marked = [p.name for p in found[:MOST_METADATA]]
        rows = [(p.name, asking.facts_of(p)) for p in found]
        if not (self._asks and rows):
            return marked
        problem = self._problem(made, "metadata")
        return asking.ask_which("Event properties to send along", rows, marked, problem)

    def _properties(self, made: Answers, sample: Sample) -> Sequence[str]:
        if self._flags.properties:
            return self._flags.properties
        found = sample.user_properties[:MOST_PROPERTIES]
        marked = [p.name for p in found if self._exists(p.name)]
        rows = [
            (p.name, asking.facts_of(p) + ("" if self._exists(p.name) else "; not in Intercom yet"))
            for p in found
        ]
        if not (self._asks and rows):
            return marked
        problem = self._problem(made, "properties")
        return asking.ask_which("User properties to write", rows, marked, problem)

    def _exists(self, name: str) -> bool:
        """Whether the workspace has an attribute; where it was not asked, it may."""
        return name in STANDARD_TYPES or self._known is None or bool(self._known.type_of(name))

    def _creates(self, properties: Sequence[str]) -> bool:
        missing = [name for name in properties if not self._exists(name)]
        if not (missing and self._asks):
            return False
        return asking.ask_whether(f"Create {', '.join(missing)} in Intercom at the first use?")

    def _identifier(self, sample: Sample) -> str:
        proposed = sample.identifier
        if not (self._asks and proposed == "email"):
            return proposed
        asking.tell(f"{sample.emails} of {sample.user_ids} user ids are e-mail addresses.")
        is_email = asking.ask_whether("Find contacts by e-mail instead of External ID?")
        return "email" if is_email else "external_id"


def _sample_at(path: str, where: str = "") -> Sample:
    """Return a sample of a file, or of what waits in a data directory.

    Raises:
        SettingsError: it has no events.
        OSError, BadFile, SpoolError: it cannot be read.
    """
    sample = Sample(_raws(path))
    if not sample.events:
        raise SettingsError(f"{where}{path} has no events")
    return sample


def _raws(path: str) -> Iterator[bytes]:
    """Yield the events of a sample: a file's, or those that wait in a spool's folder."""
    spool = Path(path) / FILE_NAME
    if spool.is_file():
        yield from look(spool, reading_store, _waiting)
    else:
        for _, _, raw in islice(read_events(path, MAX_EVENT_BYTES), MAX_SAMPLE):
            yield raw


def _waiting(store: Store) -> list[bytes]:
    """Return the events that wait for syncs, the oldest of each; a relay's are requests."""
    syncs = [taker.id for taker in store.takers.all() if not taker.name.startswith(RELAY)]
    return [
        line
        for sync in syncs
        for batch in store.inbox.next(sync, 0, MAX_SAMPLE, MOST_WAITING_BYTES)
        for line in batch.events.split(b"\n")
        if line
    ]
