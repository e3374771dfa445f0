"""A source that faults is started again by itself; the engine and the other sources go on."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from amplitude_intercom.engine.errors import SettingsError
from amplitude_intercom.engine.metrics import render
from amplitude_intercom.engine.sources import start_sources
from amplitude_intercom.engine.status import SourceStatus
from amplitude_intercom.transports.contract import Intake, batch_of
from amplitude_intercom.transports.errors import Refused
from amplitude_intercom.transports.reasons import RefusalReason
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

SYNC = "simulated"


class Flaky:
    """Hands one event over each time it runs, then faults, the first ``faults`` times."""

    def __init__(self, faults: int, user: str, fault: Exception) -> None:
        self.runs = 0
        self._faults = faults
        self._user = user
        self._fault = fault

    async def run(self, intake: Intake) -> None:
        self.runs += 1
        event = simulation.event(self._user, self.runs)
        ticket = await intake.send(batch_of([simulation.encode(event)], sync=SYNC))
        await ticket.wait()
        if self.runs <= self._faults:
            raise self._fault


class Unable:
    """Cannot even begin."""

    async def run(self, intake: Intake) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere")


class AtTheEnd:
    """Is refused because the engine drains."""

    async def run(self, intake: Intake) -> None:
        raise Refused(RefusalReason.DRAINING)


def users() -> Sandbox:
    local = simulation.sandbox()
    for user in ("flaky-user", "well-user"):
        local.add_contact(external_id=user)
    return local


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("unforeseen"),
        OSError(5, "Input/output error"),
        Refused(RefusalReason.SPOOL_FULL),
    ],
)
@in_virtual_time
async def test_a_source_that_faults_is_started_again_and_others_do_not_notice(
    tmp_path: Path, fault: Exception
) -> None:
    local = users()
    async with simulation.engine(tmp_path, local) as running:
        flaky, well = Flaky(4, "flaky-user", fault), Flaky(0, "well-user", fault)
        async with anyio.create_task_group() as tasks:
            await start_sources(
                {"flaky": flaky, "well": well}, running.intake, running.sources, tasks
            )
        await running.settled()
        assert (flaky.runs, well.runs) == (5, 1)
        assert virtual.current().now_s == pytest.approx(1 + 2 + 4 + 8, abs=1)
    assert len(local.events) == 6


@in_virtual_time
async def test_a_source_that_stands_is_told_by_status_readyz_and_metrics(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, users()) as running:
        flaky, well = (Flaky(n, "flaky-user", RuntimeError("unforeseen")) for n in (1, 0))
        async with anyio.create_task_group() as tasks:
            await start_sources(
                {"flaky": flaky, "well": well}, running.intake, running.sources, tasks
            )
            await anyio.sleep(0.5)
            stands = await running.status()
            told = (dict(running.overview.stopped_sources), running.overview.ready)
        again = await running.status()
    fault = "RuntimeError: unforeseen"
    assert told == ({"flaky": fault}, True)
    assert running.overview.stopped_sources == {}
    assert stands.sources == [SourceStatus("flaky", fault, 1), SourceStatus("well", "", 0)]
    assert again.sources == [SourceStatus("flaky", "", 1), SourceStatus("well", "", 0)]
    for status, value in ((stands, b"1.0"), (again, b"0.0")):
        lines = render(status, ready=True).splitlines()
        assert b'amplitude_intercom_source_stopped{source="flaky"} ' + value in lines
        assert b'amplitude_intercom_source_faults_total{source="flaky"} 1.0' in lines


@in_virtual_time
async def test_a_source_that_cannot_begin_is_a_wrong_setting(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, users()) as running:
        with pytest.raises(ExceptionGroup) as raised:
            async with anyio.create_task_group() as tasks:
                await start_sources({"folder": Unable()}, running.intake, running.sources, tasks)
        [error] = raised.value.exceptions
        assert isinstance(error, SettingsError)
        assert "sources.folder: /nowhere: No such file" in str(error)


@in_virtual_time
async def test_a_source_that_is_refused_because_the_engine_drains_has_ended(tmp_path: Path) -> None:
    async with simulation.engine(tmp_path, users()) as running:
        async with anyio.create_task_group() as tasks:
            await start_sources({"last": AtTheEnd()}, running.intake, running.sources, tasks)
        assert virtual.current().now_s < 1


class ForNobody:
    """Says that its events are for a sync that is not there."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, intake: Intake) -> None:
        self.runs += 1
        await intake.send(batch_of([b"{}"], sync="no such sync"))


@in_virtual_time
async def test_a_source_that_names_a_wrong_sync_stops_nothing_but_itself(tmp_path: Path) -> None:
    async with (
        simulation.engine(tmp_path, users()) as running,
        anyio.create_task_group() as tasks,
    ):
        source = ForNobody()
        await start_sources({"nobody's": source}, running.intake, running.sources, tasks)
        await anyio.sleep(10)
        assert source.runs == 4
        assert "no such sync" in running.overview.stopped_sources["nobody's"]
        assert running.overview.ready
        tasks.cancel_scope.cancel()


@in_virtual_time
async def test_a_source_that_waits_to_hand_over_in_a_drain_is_refused(tmp_path: Path) -> None:
    answers: list[str] = []
    event = simulation.encode(simulation.event("well-user", 1))

    async def bring() -> None:
        try:
            ticket = await running.intake.send(batch_of([event] * 100, sync=SYNC))
            await ticket.wait()
            answers.append("stored")
        except Refused as refused:
            answers.append(refused.reason)

    async with (
        simulation.engine(tmp_path, users()) as running,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(200):
            tasks.start_soon(bring)
        await anyio.lowlevel.checkpoint()
        running.drain()
    assert set(answers) <= {"stored", "draining"}
    assert len(answers) == 200
    assert "draining" in answers
