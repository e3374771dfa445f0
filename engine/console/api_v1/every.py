"""All operations of the API, for one daemon."""

from __future__ import annotations

from aiohttp import web

from amplitude_intercom.engine.console.api_v1.accounting import Accounting
from amplitude_intercom.engine.console.api_v1.jobs import JobsOfEngine
from amplitude_intercom.engine.console.api_v1.letters import Letters
from amplitude_intercom.engine.console.api_v1.operations import Operation
from amplitude_intercom.engine.console.api_v1.parked import ParkedUsers
from amplitude_intercom.engine.console.api_v1.parts import Access, RunningEngine
from amplitude_intercom.engine.console.api_v1.reads import Reads
from amplitude_intercom.engine.console.api_v1.serving import routes_of
from amplitude_intercom.engine.console.api_v1.spool_file import SpoolFileApi
from amplitude_intercom.engine.console.api_v1.workspaces import WorkspacesOfTokens


def routes(engine: RunningEngine, access: Access) -> list[web.RouteDef]:
    """Return the routes of the API. The guard of the admin port notes each change in the audit."""
    return routes_of(operations(engine, access))


def operations(engine: RunningEngine, access: Access) -> list[Operation]:
    """Return all operations."""
    reads = Reads(engine.spool)
    return [
        *Accounting(engine).operations(),
        *Letters(engine, reads, access).operations(),
        *ParkedUsers(engine, reads).operations(),
        *WorkspacesOfTokens(engine, reads).operations(),
        *JobsOfEngine(engine, reads).operations(),
        *SpoolFileApi(engine).operations(),
    ]
