"""Checks of one sync: findings in its settings, and in what its workspace says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import msgspec
from aiohttp import web

from amplitude_intercom.engine.console.api_v1.operations import ApiAnswer, Operation, operation
from amplitude_intercom.engine.console.api_v1.parts import RunningEngine, delivery_with
from amplitude_intercom.engine.console.api_v1.settings_parts import MOST_FINDINGS
from amplitude_intercom.engine.console.api_v1.settings_refusals import Form, in_thread, refuse_unfit
from amplitude_intercom.engine.console.api_v1.workspace_parts import workspace_id
from amplitude_intercom.engine.console.api_v1.workspace_questions import Heard, WorkspaceQuestions
from amplitude_intercom.engine.console.guard import CHANGE, RequestChange
from amplitude_intercom.engine.console.problems import ProblemType
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.document.proposals import ChosenSync, chosen_sync
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.engine.findings.finding import Finding, placed
from amplitude_intercom.engine.findings.settings_findings import (
    findings_of_sync,
    general_findings,
)
from amplitude_intercom.engine.findings.workspace_findings import workspace_findings
from amplitude_intercom.engine.log_lines import cut
from amplitude_intercom.engine.settings import Sync
from amplitude_intercom.transports.intercom import Answer, as_text, decode_json, workspace_of

MOST_NAME: Final = 256
"""Characters of a text that Intercom says of a workspace."""


AT_ONCE: Final = 16
"""Checks at the same time: each may have a client of its own."""

IN_THREADS: Final = 2
"""Of these, those that work on settings and do not wait for Intercom: threads are few."""


class CheckRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sync to be checked: by its saved settings, or by these."""

    settings: Form | None = None


class CheckedWorkspace(msgspec.Struct, frozen=True):
    """The workspace of a token. ``id``: its name here; None: the token is not at work. ``code``:
    Intercom's own. ``attributes``: those of contacts; None: they cannot be listed."""

    id: str | None
    code: str
    name: str
    region: str
    attributes: int | None


class CheckedSync(msgspec.Struct, frozen=True):
    """A checked sync. ``ok``: no finding is an error. ``workspace``: None: it did not say."""

    sync: str
    ok: bool
    findings: list[Finding]
    workspace: CheckedWorkspace | None


class Checks:
    """Checks the syncs of one document."""

    def __init__(self, engine: RunningEngine, document: SettingsDocument) -> None:
        self._engine = engine
        self._document = document
        self._in_threads = asyncio.Semaphore(IN_THREADS)
        self._questions = WorkspaceQuestions(
            self._gate_of, lambda: engine.settings, lambda: engine.spool.now_ms() / 1000
        )

    def operations(self) -> list[Operation]:
        """Return the operations."""
        refusals = (ProblemType.NOT_FOUND, ProblemType.CONFLICT)
        path = "/syncs/{sync}/check"
        more: dict[str, Any] = {"refusals": refusals, "at_once": AT_ONCE}
        return [operation("POST", path, self._check, CheckRequest, CheckedSync, **more)]

    async def _check(self, request: web.Request, asked: CheckRequest) -> ApiAnswer:
        """Return findings in the settings of a sync, and in what its workspace says. A token at
        work is asked within its allowance."""
        if asked.settings is not None:
            refuse_unfit(asked.settings)
        name, document = request.match_info["sync"], self._document
        async with self._in_threads:
            chosen = await in_thread(
                lambda: chosen_sync(document.propose, document.file.read(), name, asked.settings)
            )
        heard = await self._questions.ask(chosen.sync)
        async with self._in_threads:
            found = await asyncio.to_thread(
                lambda: list(islice(_findings(chosen, heard), MOST_FINDINGS))
            )
        request[CHANGE] = RequestChange("sync checked", name)
        ok = not any(finding.level == "error" for finding in found)
        return ApiAnswer(CheckedSync(name, ok, found, self._workspace(chosen, heard)))

    def _gate_of(self, sync: Sync) -> Gate | None:
        delivery = delivery_with(self._engine, sync)
        return delivery.gate if delivery else None

    def _workspace(self, chosen: ChosenSync, heard: Heard) -> CheckedWorkspace | None:
        me, listed = heard.said.me, heard.said.listed
        if me is None or not workspace_of(me):
            return None
        gate = self._gate_of(chosen.sync)
        return CheckedWorkspace(
            workspace_id(gate) if gate else None,
            _of_app(me, "id_code"),
            _of_app(me, "name"),
            _of_app(me, "region"),
            None if listed is None else len(listed),
        )


def _of_app(me: Answer, key: str) -> str:
    """Return a text of the app that ``GET /me`` names; empty: it has none."""
    app = decode_json(me).get("app")
    found = app.get(key) if isinstance(app, dict) else None
    return cut(as_text(found), MOST_NAME) if isinstance(found, str) else ""


def _findings(chosen: ChosenSync, heard: Heard) -> Iterator[Finding]:
    """Yield the findings about a sync, and those about no one sync or relay alone."""
    where = f"sync[{chosen.place}]"
    yield from placed(where, workspace_findings(chosen.sync, heard.said, heard.at_s))
    yield from placed(where, findings_of_sync(chosen.settings, chosen.sync))
    for finding in general_findings(chosen.settings, chosen.table):
        if finding.key in chosen.stored_keys:  # saved, it is in a file of its own
            continue
        if not finding.key.startswith(("sync[", "relay[")) or finding.key.startswith(f"{where}."):
            yield finding
