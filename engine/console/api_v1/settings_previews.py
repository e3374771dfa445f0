"""Changes of the settings document: looked at before they are saved; and the file, loaded again."""

from __future__ import annotations

from itertools import islice

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import (
    ApiAnswer,
    Nothing,
    Operation,
    operation,
)
from amplitude_intercom.engine.console.api_v1.settings_parts import (
    MOST_FINDINGS,
    MOST_TEXT_BYTES,
    Reloads,
    RunningSettings,
)
from amplitude_intercom.engine.console.api_v1.settings_refusals import (
    Form,
    in_thread,
    refuse_unfit,
)
from amplitude_intercom.engine.console.guard import CHANGE, SENDER, RequestChange
from amplitude_intercom.engine.console.problems import Problem, ProblemType, not_now, refused_value
from amplitude_intercom.engine.document.files import Document
from amplitude_intercom.engine.document.proposals import Proposal
from amplitude_intercom.engine.document.refusals import CannotMask, CannotPatch
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.findings.finding import Finding
from amplitude_intercom.engine.findings.settings_findings import every_finding
from amplitude_intercom.engine.settings_effects import Effects, effects_of
from amplitude_intercom.transports.errors import Refused


class ChangePreview(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change to be looked at: ``text`` of the file, or ``settings`` of the sync ``sync``; without
    ``sync`` they are those of a new one."""

    sync: str | None = None
    settings: Form | None = None
    text: str | None = None


class PreviewedChange(msgspec.Struct, frozen=True):
    """What a change would do. ``diff`` and ``patch``: with ``***`` for secrets; ``patch`` is empty
    where a changed line holds one. ``effects``: takers by name (a relay is ``relay:NAME``)."""

    version: str
    diff: str
    patch: str
    findings: list[Finding]
    effects: Effects


class SettingsPreviews:
    """Looks at changes of one document."""

    def __init__(
        self, engine: RunningSettings, document: SettingsDocument, reload: Reloads
    ) -> None:
        self._engine = engine
        self._document = document
        self._reload = reload

    def operations(self) -> list[Operation]:
        """Return the operations."""
        refusals = (ProblemType.CONFLICT, ProblemType.NOT_FOUND)
        return [
            operation(
                "POST",
                "/settings/preview",
                self._preview,
                ChangePreview,
                PreviewedChange,
                refusals=refusals,
                most_bytes=MOST_TEXT_BYTES,
                at_once=1,
            ),
            operation("POST", "/settings/reload", self._load, Nothing, Effects, refusals=refusals),
        ]

    async def _preview(self, request: web.Request, change: ChangePreview) -> ApiAnswer:
        """Return what a change would do; nothing is changed."""
        request[CHANGE] = None
        if (change.text is None) == (change.settings is None) or (change.text and change.sync):
            raise refused_value("", "expected `text`, or `settings` with or without `sync`")
        if change.settings is not None:
            refuse_unfit(change.settings)
        return ApiAnswer(await in_thread(lambda: self._previewed(change)))

    def _previewed(self, change: ChangePreview) -> PreviewedChange:
        document, base = self._document, self._document.file.read()
        proposal = self._proposal(base, change)
        try:
            patch = document.patch(proposal)
        except (CannotPatch, CannotMask):
            patch = ""
        stored = proposal.stored_keys  # saved, they are in files of their own
        every = every_finding(proposal.settings, proposal.table)
        found = list(islice((one for one in every if one.key not in stored), MOST_FINDINGS))
        effects = effects_of(self._engine.settings, proposal.settings)
        return PreviewedChange(base.version, document.difference(proposal), patch, found, effects)

    def _proposal(self, base: Document, change: ChangePreview) -> Proposal:
        propose, form = self._document.propose, change.settings
        if form is None:
            return propose.with_text(base, change.text or "")
        if change.sync is None:
            return propose.with_new_sync(base, form)
        return propose.with_sync(base, change.sync, form)

    async def _load(self, request: web.Request, nothing: Nothing) -> ApiAnswer:
        """Read the settings file again, and follow it."""
        try:
            done = await self._reload.reload(request[SENDER].who)
        except SettingsError as error:
            raise Problem(ProblemType.CONFLICT, str(error)) from None
        except Refused as error:
            raise not_now(str(error)) from None
        request[CHANGE] = RequestChange("settings loaded", "; ".join(done.lines()))
        return ApiAnswer(done)
