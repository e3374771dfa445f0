"""All operations of the API, for one daemon."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from amplitude_intercom.engine.console.access import API_ROOT
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.api_v1.access_operations import AccessOperations
from amplitude_intercom.engine.console.api_v1.accounting import (
    Accounting,
    EngineWithStatus,
)
from amplitude_intercom.engine.console.api_v1.checks import Checks
from amplitude_intercom.engine.console.api_v1.delivery_metrics import MetricsOfSyncs
from amplitude_intercom.engine.console.api_v1.description import describe
from amplitude_intercom.engine.console.api_v1.event_previews import EventPreviews
from amplitude_intercom.engine.console.api_v1.handed_batches import (
    EngineWithIntake,
    HandedBatches,
)
from amplitude_intercom.engine.console.api_v1.jobs import EngineWithJobs, JobsOfEngine
from amplitude_intercom.engine.console.api_v1.letters import Letters
from amplitude_intercom.engine.console.api_v1.operations import Operation
from amplitude_intercom.engine.console.api_v1.parked import (
    EngineWithParkedKeeper,
    ParkedKeeper,
    ParkedUsers,
)
from amplitude_intercom.engine.console.api_v1.people import People
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.serving import routes_of
from amplitude_intercom.engine.console.api_v1.settings_changes import SettingsChanges
from amplitude_intercom.engine.console.api_v1.settings_parts import Reloads
from amplitude_intercom.engine.console.api_v1.settings_previews import SettingsPreviews
from amplitude_intercom.engine.console.api_v1.settings_reading import SettingsReading
from amplitude_intercom.engine.console.api_v1.spool_changes import (
    EngineWithSpoolKeeper,
    SpoolChanges,
    SpoolKeeper,
)
from amplitude_intercom.engine.console.api_v1.workspace_changes import WorkspaceChanges
from amplitude_intercom.engine.console.api_v1.workspaces import WorkspacesOfTokens
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.transports.own_version import own_version


class Keeper(SpoolKeeper, ParkedKeeper, Protocol):
    """The operator's side of an engine (``engine.upkeep.Upkeep``)."""


class DaemonParts(
    EngineWithStatus,
    EngineWithIntake,
    EngineWithJobs,
    EngineWithSpoolKeeper,
    EngineWithParkedKeeper,
    Protocol,
):
    """An engine (``engine.app.Engine``) as all resources together ask it."""

    @property
    def upkeep(self) -> Keeper:
        """The operator's side of the engine."""
        ...


def routes(
    engine: DaemonParts,
    document: SettingsDocument,
    reload: Reloads,
    access: AdminAccess,
) -> list[web.RouteDef]:
    """Return the routes of the API. The guard of the admin port notes each change in the audit."""
    every = operations(engine, document, reload, access)
    description = describe(every, own_version())

    async def described(request: web.Request) -> web.Response:
        """Return this description of the API."""
        return web.json_response(description)

    return [*routes_of(every), web.get(f"{API_ROOT}/openapi.json", described)]


def operations(
    engine: DaemonParts,
    document: SettingsDocument,
    reload: Reloads,
    access: AdminAccess,
) -> list[Operation]:
    """Return all operations."""
    reads = Reads(engine.spool)
    return [
        *AccessOperations(access).operations(),
        *Accounting(engine).operations(),
        *MetricsOfSyncs(engine, reads).operations(),
        *HandedBatches(engine).operations(),
        *Letters(engine, reads, access).operations(),
        *ParkedUsers(engine, reads).operations(),
        *People(engine, reads).operations(),
        *WorkspacesOfTokens(engine, reads).operations(),
        *WorkspaceChanges(engine).operations(),
        *JobsOfEngine(engine, reads).operations(),
        *SpoolChanges(engine).operations(),
        *Checks(engine, document).operations(),
        *EventPreviews(engine, reads, document, access).operations(),
        *SettingsReading(document, access).operations(),
        *SettingsPreviews(engine, document, reload).operations(),
        *SettingsChanges(document, reload, access).operations(),
    ]
