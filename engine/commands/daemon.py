"""``run``: the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.commands.last_resort import LastResort
from amplitude_intercom.engine.commands.reloading import FileReload, warn_of_keys
from amplitude_intercom.engine.commands.running import FAILED, OK, Signals
from amplitude_intercom.engine.commands.service_manager import ServiceManager
from amplitude_intercom.engine.commands.settings_mending import mend
from amplitude_intercom.engine.console.admin_access import AdminAccess
from amplitude_intercom.engine.console.admin_server import AdminServer
from amplitude_intercom.engine.console.api_v1.every import routes
from amplitude_intercom.engine.console.audit import Audit, AuditFile
from amplitude_intercom.engine.console.help_pages import help_routes
from amplitude_intercom.engine.console.monitoring import MonitorPaths
from amplitude_intercom.engine.document.settings_document import SettingsDocument
from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.settings import Admin, Settings
from amplitude_intercom.engine.sources import sources_of, start_sources
from amplitude_intercom.engine.spool.store import wall_clock_ms
from amplitude_intercom.transports.inherited import inherited
from amplitude_intercom.transports.sockets import raise_descriptor_limit

END_WITHIN_S = 10.0
"""Seconds after the deadline, or after a second signal, in which all is over: a disk that hangs is
waited for no longer."""

READY_LOOK_S = 1.0
"""Between looks whether the engine is ready."""

_log = structlog.get_logger("engine.run")


async def start(path: Path, load: Callable[[Path], Settings]) -> int:
    """Run by the settings of a file, which first gets its old text where a crash has left it half
    written. ``load`` reads it.

    Raises:
        SettingsError: as ``load`` and ``run``.
    """
    mended = mend(path)
    try:
        settings = load(path)
    except SettingsError as error:
        raise SettingsError(f"{error}; {mended}") if mended else error from None
    if mended:
        _log.warning(mended)
    return await run(path, settings)


async def run(path: Path, settings: Settings) -> int:
    """Serve the configured sources until SIGTERM; a second signal ends at once.

    ``path``: of the file that the settings came from; SIGHUP reads it again.

    Raises:
        SettingsError: nothing to serve, or an address that cannot be listened on.
    """
    raise_descriptor_limit()
    warn_of_keys(settings)
    sources = sources_of(settings)
    if not sources:
        raise SettingsError("no source is configured: add [http], or [sources.NAME]")
    hung_up = asyncio.Event()
    last_resort = LastResort()
    manager = ServiceManager()
    done = False  # and so it stays where a second signal ends it all
    engine = Engine(settings)
    signals = Signals(hung_up.set, lambda: _told_to_stop(signals, engine, settings, last_resort))
    async with engine, anyio.create_task_group() as tasks:
        await start_sources(sources, engine.intake, engine.sources, tasks)
        reload = FileReload(path, engine, manager)
        if settings.admin is not None:
            access = await _serve_admin(settings.admin, engine, reload, tasks)
            reload.followers.append(lambda new: access.follow(new.admin))
        for passed in inherited().unused:
            _log.warning("a passed socket is used by no setting: its clients wait", socket=passed)
        tasks.start_soon(engine.overview.loop_lag.run)
        manager.ready("serving")
        async with anyio.create_task_group() as meanwhile:
            meanwhile.start_soon(manager.keep_alive)
            meanwhile.start_soon(_tell_readiness, engine)
            meanwhile.start_soon(_reload_when, hung_up, reload)
            await signals.stop.wait()
            meanwhile.cancel_scope.cancel()
        deadline_s = engine.settings.drain_deadline_s
        _log.info("draining", deadline_s=deadline_s)
        manager.stopping(deadline_s + END_WITHIN_S)
        tasks.start_soon(manager.keep_alive)
        done = await engine.finish(deadline_s)
        tasks.cancel_scope.cancel()
    done = done and not engine.spool.hangs
    _log.info("stopped", clean=done)
    return OK if done else FAILED


async def _serve_admin(
    settings: Admin, engine: Engine, reload: FileReload, tasks: TaskGroup
) -> AdminAccess:
    """Open the admin port; return its access when it listens."""
    audit = Audit(AuditFile(Path(engine.settings.data_dir)), wall_clock_ms)
    access = AdminAccess(settings, audit)
    monitors = MonitorPaths(engine.overview)
    document = SettingsDocument.of(reload.path, Path(engine.settings.data_dir))
    of_api = routes(engine, document, reload, access)
    admin = AdminServer(access, [*monitors.routes(), *help_routes(), *of_api])
    tasks.start_soon(admin.run)
    _log.info("admin listening", address=await admin.listening())
    return access


async def _reload_when(hung_up: asyncio.Event, reload: FileReload) -> None:
    """Read the settings file again whenever SIGHUP has come."""
    while True:
        await hung_up.wait()
        hung_up.clear()
        with suppress(Exception):  # it is logged, and the daemon goes on as before
            await reload.reload("SIGHUP")


async def _tell_readiness(engine: Engine) -> None:
    """Log when the engine is ready, and when and why it is not any more, as ``/readyz`` says it."""
    said: dict[str, str] | None = None
    while True:
        if engine.overview.unready != said:
            said = engine.overview.unready
            if said:
                _log.warning("not ready", unready=said)
            else:
                data_dir = engine.settings.data_dir
                relays = {"relays": list(engine.relays)} if engine.relays else {}
                _log.info("ready", syncs=list(engine.streams), **relays, data_dir=data_dir)
        await anyio.sleep(READY_LOOK_S)


def _told_to_stop(
    signals: Signals, engine: Engine, first: Settings, last_resort: LastResort
) -> None:
    """Bound the end, also of a start that hangs; the second signal cuts it short.

    ``first``: the settings of the start. The daemon waits for the first signal once it serves.
    """
    is_starting = engine.state == "starting"
    if not signals.now.is_set():
        settings = first if is_starting else engine.settings
        last_resort.arm(settings.drain_deadline_s + END_WITHIN_S)
        return
    _log.warning("stopping now")
    last_resort.arm(END_WITHIN_S)
    if not is_starting:
        engine.cancel()
