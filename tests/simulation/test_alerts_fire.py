"""Each alerting rule fires in its trouble, over hours of virtual time, and none without."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine import logs
from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.metrics import PREFIX, render
from amplitude_intercom.engine.sources import start_sources
from amplitude_intercom.transports.contract import Intake
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import alerting, relaying, simulation, virtual
from support.alerting import Monitor, rule_of
from support.simulation import API_KEY, event
from support.virtual import in_virtual_time

EVERY_S = 30.0
MINUTE_S = 60.0
HOUR_S = 3_600.0
USERS = [f"user-{n}" for n in range(20)]

NOT_READY = "AmplitudeIntercomNotReady"
TOKEN_REFUSED = "AmplitudeIntercomTokenRefused"
ENDPOINT_OUT = "AmplitudeIntercomEndpointOut"
BACKLOG_OLD = "AmplitudeIntercomBacklogOld"
SPOOL_NEARLY_FULL = "AmplitudeIntercomSpoolNearlyFull"
DISK_NEARLY_FULL = "AmplitudeIntercomDiskNearlyFull"
DEAD_LETTERS = "AmplitudeIntercomDeadLetters"
RELAY_LOSES = "AmplitudeIntercomRelayLoses"
MANY_PARKED_USERS = "AmplitudeIntercomManyParkedUsers"
STOPPED = "AmplitudeIntercomStopped"
LOG_LINES_LOST = "AmplitudeIntercomLogLinesLost"


class Watch:
    """A monitor beside an engine. The disk of the machine is none of the simulation's."""

    def __init__(self) -> None:
        self.monitor = Monitor([rule_of(table) for table in alerting.tables()])
        self.disk_free_bytes = 50e9

    async def scrape(self, engine: Engine | None) -> None:
        """Take the metrics of now; without an engine there is no answer."""
        now_s = virtual.current().wall_s()
        if engine is None:
            self.monitor.scrape(now_s, None)
            return
        text = render(await engine.status(), ready=engine.overview.ready).decode()
        name = f"{PREFIX}disk_free_bytes"
        text = re.sub(rf"^{name} .*$", f"{name} {self.disk_free_bytes}", text, flags=re.MULTILINE)
        self.monitor.scrape(now_s, text)

    async def run(self, engine: Engine | None, for_s: float) -> None:
        """Scrape for so long."""
        for _ in range(int(for_s / EVERY_S)):
            await anyio.sleep(EVERY_S)
            await self.scrape(engine)

    @property
    def fired(self) -> set[str]:
        """The alerts that have fired so far."""
        return set(self.monitor.said)

    def summary(self, alert: str) -> str:
        """Return what the only alert of a rule says."""
        [said] = self.monitor.said[alert]
        return said


def workspace(users: Iterable[str] = USERS, **more: Any) -> Sandbox:
    local = simulation.sandbox(**more)
    for user in users:
        local.add_contact(external_id=user)
    return local


async def visits(engine: Engine, every_s: float, text: str = "") -> None:
    """Let one user after the other send an event, for ever; one that is refused is sent again."""
    n = 0
    while True:
        visit = event(USERS[n % len(USERS)], n, event_properties={"n": n, "text": text})
        try:
            await engine.submit([visit], api_key=API_KEY)
            n += 1
        except Refused:
            pass
        await anyio.sleep(every_s)


@asynccontextmanager
async def visited(engine: Engine, every_s: float = 20.0, text: str = "") -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(visits, engine, every_s, text)
        yield
        tasks.cancel_scope.cancel()


@in_virtual_time
async def test_nothing_fires_on_an_ordinary_day(tmp_path: Path) -> None:
    watch, local = Watch(), workspace()
    async with simulation.engine(tmp_path, local) as engine, visited(engine):
        await watch.run(engine, HOUR_S)
        # Somebody signs up a moment after the first event, and Intercom has a bad minute.
        await engine.submit([event("new-user", 1)], api_key=API_KEY)
        await watch.run(engine, 5 * MINUTE_S)
        local.add_contact(external_id="new-user")
        local.faults.append(Fault("status", 503, start_s=4_000, end_s=4_060))
        local.faults.append(Fault("status", 429, start_s=4_200, end_s=4_215))
        await watch.run(engine, HOUR_S)
    assert watch.fired == set()


@in_virtual_time
async def test_a_daemon_that_is_down_fires_though_it_has_no_metrics(tmp_path: Path) -> None:
    watch = Watch()
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, 10 * MINUTE_S)
    await watch.run(None, 2 * MINUTE_S)
    assert watch.fired == set()
    await watch.run(None, MINUTE_S)
    assert watch.monitor.firing == {NOT_READY}
    assert watch.summary(NOT_READY).startswith("The daemon daemon:8711 is down")
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, MINUTE_S)
        assert watch.monitor.firing == set()


@in_virtual_time
async def test_a_daemon_that_nobody_scrapes_any_more_fires(tmp_path: Path) -> None:
    watch = Watch()
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, 10 * MINUTE_S)
    await watch.run(None, 25 * HOUR_S)
    assert watch.monitor.firing == {NOT_READY}


@in_virtual_time
async def test_a_refused_token_fires_and_says_which(tmp_path: Path) -> None:
    watch, local = Watch(), workspace()
    async with simulation.engine(tmp_path, local) as engine, visited(engine):
        await watch.run(engine, 10 * MINUTE_S)
        local.faults.append(Fault("status", 401, end_s=HOUR_S))
        await watch.run(engine, 5 * MINUTE_S)
        assert watch.fired == {TOKEN_REFUSED}
        await watch.run(engine, HOUR_S)
        assert watch.fired == {TOKEN_REFUSED, BACKLOG_OLD}
        assert watch.monitor.firing == set()
    assert "api.intercom.io#1" in watch.summary(TOKEN_REFUSED)


@in_virtual_time
async def test_an_outage_fires_and_then_the_backlog_that_it_makes(tmp_path: Path) -> None:
    watch, local = Watch(), workspace()
    async with simulation.engine(tmp_path, local) as engine, visited(engine):
        await watch.run(engine, 10 * MINUTE_S)
        local.faults.append(Fault("status", 503, path="/events", end_s=2 * HOUR_S))
        await watch.run(engine, 15 * MINUTE_S)
        assert watch.fired == {ENDPOINT_OUT}
        await watch.run(engine, 30 * MINUTE_S)
        assert watch.monitor.firing == {ENDPOINT_OUT, BACKLOG_OLD}
        await watch.run(engine, 2 * HOUR_S)
        assert watch.monitor.firing == set()
    assert watch.summary(BACKLOG_OLD).startswith("Events of sync simulated wait")


@in_virtual_time
async def test_an_outage_of_amplitude_fires_for_its_relay(tmp_path: Path) -> None:
    watch = Watch()
    local = relaying.amplitude(faults=[Fault("status", 503)])
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(10):
            await relaying.take_in(engine, relaying.request([relaying.event(f"d{n}", n)]))
            await watch.run(engine, 2 * MINUTE_S)
    assert watch.fired == {ENDPOINT_OUT}
    assert "Calls of amplitude have no answer" in watch.summary(ENDPOINT_OUT)


@in_virtual_time
async def test_a_spool_fires_before_it_refuses_anything(tmp_path: Path) -> None:
    watch = Watch()
    local = workspace(faults=[Fault("status", 503)])
    top = {"spool": {"max_bytes": 10_000_000, "reserve_bytes": 0}}
    async with (
        simulation.engine(tmp_path, local, top=top) as engine,
        visited(engine, every_s=5.0, text="x" * 10_000),
    ):
        while SPOOL_NEARLY_FULL not in watch.fired:
            await watch.run(engine, EVERY_S)
        assert NOT_READY not in watch.fired
        was_ready = engine.overview.ready
        await watch.run(engine, HOUR_S)
        assert was_ready
        assert not engine.overview.ready
    assert {NOT_READY, SPOOL_NEARLY_FULL} <= watch.monitor.firing


@pytest.mark.parametrize(("free_bytes", "falls_by_bytes"), [(0.9e9, 0.0), (20e9, 50e6)])
@in_virtual_time
async def test_a_disk_that_is_nearly_full_fires_and_one_that_fills_up(
    tmp_path: Path, free_bytes: float, falls_by_bytes: float
) -> None:
    watch = Watch()
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, HOUR_S)
        assert watch.fired == set()
        watch.disk_free_bytes = free_bytes
        for _ in range(180):
            await watch.run(engine, EVERY_S)
            watch.disk_free_bytes -= falls_by_bytes
    assert watch.fired == {DISK_NEARLY_FULL}


@in_virtual_time
async def test_dead_letters_fire_when_they_come_and_not_for_being_there(tmp_path: Path) -> None:
    watch, local = Watch(), workspace([*USERS, "reader"])
    local.faults.append(Fault("status", 422, path="/events", contains="poison"))
    poison = [event("reader", n, event_type="poison") for n in range(2)]
    async with simulation.engine(tmp_path, local) as engine, visited(engine):
        await watch.run(engine, 20 * MINUTE_S)
        for bad in poison:
            await engine.submit([bad], api_key=API_KEY)
            await watch.run(engine, MINUTE_S)
            assert watch.monitor.firing == {DEAD_LETTERS}
            await watch.run(engine, 20 * MINUTE_S)
            assert watch.monitor.firing == set()
    await watch.run(None, MINUTE_S)
    async with simulation.engine(tmp_path, local) as engine, visited(engine):
        for _ in range(60):
            await watch.run(engine, EVERY_S)
            assert watch.monitor.firing == set()
    assert re.fullmatch(r"Sync simulated has new dead letters: \w+\.", watch.summary(DEAD_LETTERS))


@in_virtual_time
async def test_a_relay_fires_with_the_first_events_that_it_loses(tmp_path: Path) -> None:
    watch = Watch()
    local = relaying.amplitude(faults=[Fault("status", 503)])
    top = {"spool": {"max_bytes": 1_000_000}}
    async with relaying.engine(tmp_path, local, top=top) as engine:
        await watch.run(engine, 20 * MINUTE_S)
        for n in range(100):
            lost = relaying.event("d", n, text="x" * 10_000)
            await relaying.take_in(engine, relaying.request([lost]))
        await watch.run(engine, MINUTE_S)
        assert RELAY_LOSES in watch.monitor.firing
        await watch.run(engine, HOUR_S)
        assert RELAY_LOSES not in watch.monitor.firing
    assert watch.summary(RELAY_LOSES).startswith("Relay amplitude drops")


@in_virtual_time
async def test_a_crowd_of_parked_users_fires_long_before_it_is_dead(tmp_path: Path) -> None:
    watch = Watch()
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, MINUTE_S)
        unknown = [event(f"nobody-{n}", n) for n in range(1_050)]
        await engine.submit(unknown, api_key=API_KEY)
        await watch.run(engine, 40 * MINUTE_S)
    assert watch.fired == {MANY_PARKED_USERS}


class Faulty:
    """A source that runs for some seconds, then faults."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s

    async def run(self, intake: Intake) -> None:
        await anyio.sleep(self._after_s)
        raise RuntimeError("unforeseen")


@pytest.mark.parametrize("after_s", [0.0, 10.0, 70.0])
@in_virtual_time
async def test_a_source_that_is_stopped_again_and_again_fires(
    tmp_path: Path, after_s: float
) -> None:
    watch = Watch()
    async with (
        simulation.engine(tmp_path, workspace()) as engine,
        anyio.create_task_group() as tasks,
    ):
        await start_sources({"faulty": Faulty(after_s)}, engine.intake, engine.sources, tasks)
        await watch.run(engine, 30 * MINUTE_S)
        tasks.cancel_scope.cancel()
    assert watch.fired == {STOPPED}
    assert watch.summary(STOPPED) == "A fault of the program keeps faulty from running."


@in_virtual_time
async def test_lost_lines_of_the_log_fire_and_no_longer_than_they_are_lost(tmp_path: Path) -> None:
    watch = Watch()
    async with simulation.engine(tmp_path, workspace()) as engine:
        await watch.run(engine, 10 * MINUTE_S)
        assert watch.fired == set()
        logs._writer.lose(3)
        await watch.run(engine, MINUTE_S)
        assert watch.monitor.firing == {LOG_LINES_LOST}
        await watch.run(engine, HOUR_S)
        assert watch.monitor.firing == set()
    assert watch.summary(LOG_LINES_LOST).startswith("The daemon daemon:8711 could not write")
