"""Previews: what a sync would make of events, or of a dead letter now. No call is made.

Rules
=====
1. The verdict is that of the code which delivers. A fault of this program costs its event alone.
2. Attributes are known where the token is at work and their list was read; else any may exist.
3. No value is shown with ``admin.hide_values``.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.parts import (
    RunningEngine,
    delivery_with,
    stream_of,
    taker_of,
)
from amplitude_intercom.engine.console.api_v1.payloads import Payload, payload_of
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.requests import id_of
from amplitude_intercom.engine.console.api_v1.settings_parts import Access
from amplitude_intercom.engine.console.api_v1.settings_refusals import Form, in_thread, refuse_unfit
from amplitude_intercom.engine.console.problems import Problem, ProblemType
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes
from amplitude_intercom.engine.document.proposals import chosen_sync
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.engine.errors import EngineError
from amplitude_intercom.engine.internal_faults import internal_failure
from amplitude_intercom.engine.previewing import Foreseen, Preview, SpooledPast, relay_replayed
from amplitude_intercom.engine.reasons import DeadReason, DropReason
from amplitude_intercom.engine.rules.explanations import SelectorFinding, without_values
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.engine.spool.takers import RELAY
from amplitude_intercom.transports.amplitude_heads import read_head

MOST_EVENTS: Final = 100
AT_ONCE: Final = 2
"""Previews that are worked out at the same time: threads are few, and reads of the spool need
them."""


MOST_EXPLAINED: Final = 40_000
"""Types, clauses and wanted values that one answer repeats: each event has all of its sync's."""


class EventsToPreview(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events in the form of Amplitude's HTTP V2 API, to be previewed by the running settings of a
    sync, or by these."""

    events: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MOST_EVENTS)]
    settings: Form | None = None


class ForeseenCall(msgspec.Struct, frozen=True):
    """A call that would be made. ``body``: None: it has none, or values are hidden."""

    method: str
    path: str
    body: Payload | None


class PreviewedEvent(msgspec.Struct, frozen=True):
    """What would come of an event: ``send``, ``drop`` or ``reject``. ``means``: of the reason.

    ``selectors``: of the sync's ``events.select``, with what was wanted and found; the event is
    selected where one has held. Found values are left out where values are hidden.
    """

    verdict: str
    reason: str
    means: str
    message: str
    requests: list[ForeseenCall]
    adjustments: list[str]
    selectors: list[SelectorFinding]


class PreviewedEvents(msgspec.Struct, frozen=True):
    """What would come of events, in their order. ``knows_attributes``: those of the workspace are
    known; otherwise any attribute may exist."""

    items: list[PreviewedEvent]
    knows_attributes: bool


class EventPreviews:
    """Foresees what the syncs of one engine make of events."""

    def __init__(
        self, engine: RunningEngine, reads: Reads, document: SettingsDocument, access: Access
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._document = document
        self._access = access

    def operations(self) -> list[Operation]:
        """Return the operations."""
        missing, conflict = ProblemType.NOT_FOUND, ProblemType.CONFLICT
        of_letter = "/syncs/{sync}/dead-letters/{letter}/preview"
        return [
            operation(
                "POST",
                "/syncs/{sync}/preview",
                self._preview,
                EventsToPreview,
                PreviewedEvents,
                refusals=(missing, conflict),
                at_once=AT_ONCE,
            ),
            operation("GET", of_letter, self._letter, Nothing, PreviewedEvent, refusals=(missing,)),
        ]

    async def _preview(self, request: web.Request, asked: EventsToPreview) -> ApiAnswer:
        """Return what a sync would make of events. No call is made, and nothing is kept."""
        name, form = request.match_info["sync"], asked.settings
        if form is None:
            sync = stream_of(self._engine, request).sync
        else:
            refuse_unfit(form)
            sync = await in_thread(lambda: self._given(name, form))
        refuse_much(len(asked.events), sync)
        known = self._known(sync)
        show = partial(shown, hides_values=self._access.settings.hide_values)
        items = await asyncio.to_thread(
            lambda: [show(one) for one in foreseen_each(asked.events, Preview(sync, known))]
        )
        return ApiAnswer(PreviewedEvents(items, known is not None))

    async def _letter(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Return what a replay of a dead letter of a sync, or of a relay (`relay:NAME`), would do
        now. Earlier letters that would be replayed with it count for nothing."""
        name, id_ = taker_of(self._engine, request), id_of(request, "letter")
        sync = None if name.startswith(RELAY) else stream_of(self._engine, request).sync
        known = self._known(sync) if sync else None

        def read(store: Store) -> Foreseen | None:
            found = store.letters.find(store.takers.known_id(name), DeadLetterQuery(ids=[id_]))
            if not found:
                return None
            if sync is None:
                return relay_replayed(found[0])
            past = SpooledPast(store, sync, {})
            return contained(lambda: Preview(sync, known).replayed(found[0], past))

        foreseen = await self._reads.look(read)
        if foreseen is None:
            raise Problem(ProblemType.NOT_FOUND, f"no dead letter of {name} has the id {id_}")
        return ApiAnswer(shown(foreseen, hides_values=self._access.settings.hide_values))

    def _given(self, name: str, form: Form) -> Sync:
        document = self._document
        return chosen_sync(document.propose, document.file.read(), name, form).sync

    def _known(self, sync: Sync) -> KnownAttributes | None:
        delivery = delivery_with(self._engine, sync)
        if delivery is None or not delivery.has_entered:
            return None
        listed = delivery.workspace.attributes.listed()
        return None if listed is None else KnownAttributes(listed)


def refuse_much(events: int, sync: Sync) -> None:
    """Refuse events whose answer would be very large; one alone is taken.

    Raises:
        Problem: they are too many for the selectors of their sync.
    """
    clauses = [clause for selector in sync.events.select for clause in selector.where]
    types = sum(len(selector.types) for selector in sync.events.select)
    explained = types + len(clauses) + sum(len(clause.values) for clause in clauses)
    if events > 1 and events * explained > MOST_EXPLAINED:
        most = max(1, MOST_EXPLAINED // explained)
        raise Problem(ProblemType.TOO_LARGE, f"with as many selectors, up to {most} at once")


def foreseen_each(events: Iterable[bytes | msgspec.Raw], preview: Preview) -> list[Foreseen]:
    """Return what would come of each event."""
    return [contained(partial(_foreseen, bytes(event), preview)) for event in events]


def _foreseen(raw: bytes, preview: Preview) -> Foreseen:
    return preview.judge(*read_head(raw))


def contained(foresee: Callable[[], Foreseen]) -> Foreseen:
    """Return what is foreseen; a fault of this program becomes the event's, as in delivery."""
    try:
        return foresee()
    except (EngineError, sqlite3.Error):
        raise
    except Exception as fault:
        failure = internal_failure(fault, during="a preview")
        return Foreseen("reject", failure.reason, failure.message)


def shown(foreseen: Foreseen, *, hides_values: bool) -> PreviewedEvent:
    """Return what is foreseen as it may be shown; hidden values stay behind their names."""
    calls = [
        ForeseenCall(
            one.method,
            one.path,
            None if hides_values or one.body is None else payload_of(one.body),
        )
        for one in foreseen.requests
    ]
    changes = [f"{a.where}: {a.reason}" if hides_values else str(a) for a in foreseen.adjustments]
    message = "" if hides_values else foreseen.message
    selectors = without_values(foreseen.selectors) if hides_values else list(foreseen.selectors)
    return PreviewedEvent(
        foreseen.verdict, foreseen.reason, _meaning(foreseen), message, calls, changes, selectors
    )


def _meaning(foreseen: Foreseen) -> str:
    reasons = DropReason if foreseen.verdict == "drop" else DeadReason
    return reasons(foreseen.reason).means if foreseen.reason else ""
