"""Questions to workspaces: bounded in time and in calls, whatever Intercom does."""

from __future__ import annotations

import asyncio
import random

import pytest

from amplitude_intercom.engine.clients import client_of
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.console.api_v1.workspace_questions import (
    FRESH_S,
    MOST_S,
    Heard,
    WorkspaceQuestions,
)
from amplitude_intercom.engine.delivery.gate import Gate
from amplitude_intercom.engine.settings import Settings, Sync
from amplitude_intercom.transports.intercom import me
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import virtual
from support.virtual import in_virtual_time


def settings() -> Settings:
    return from_table({"sync": [{"name": "a", "intercom": {"access_token": "t"}}]})


def sandbox(*faults: Fault) -> Sandbox:
    return Sandbox(now=virtual.current().wall_s, faults=faults, attributes={"plan": "string"})


class Questions:
    """Questions to the workspace of one sync, whose token is at work."""

    def __init__(self, local: Sandbox) -> None:
        self.local = local
        self.settings = settings()
        self.gate = Gate(
            InProcess(local),
            requests_per_minute=10_000,
            max_in_flight=20,
            now_s=virtual.current().wall_s,
            jitter=random.Random(1).random,
        )
        self.questions = WorkspaceQuestions(
            self._gate_of, lambda: self.settings, virtual.current().wall_s
        )

    def _gate_of(self, sync: Sync) -> Gate:
        return self.gate

    async def ask(self) -> Heard:
        return await self.questions.ask(self.settings.sync[0])

    async def silence(self) -> str:
        """Ask; return why there is no answer."""
        found = (await self.ask()).said.silence
        assert found is not None
        return f"{found.level} {found.key}: {found.text}"


@in_virtual_time
async def test_an_answer_counts_for_a_while_and_is_asked_again_then() -> None:
    asked = Questions(sandbox())
    heard = await asyncio.gather(*(asked.ask() for _ in range(50)))
    assert {one.said.listed is not None for one in heard} == {True}
    assert len(asked.local.journal) == 2
    await asyncio.sleep(FRESH_S)
    await asked.ask()
    assert len(asked.local.journal) == 4


@in_virtual_time
async def test_an_intercom_that_hangs_is_waited_for_no_longer_than_a_person_waits() -> None:
    asked = Questions(sandbox(Fault("hang")))
    began_s = asyncio.get_running_loop().time()
    said = await asyncio.gather(*(asked.silence() for _ in range(20)))
    took_s = asyncio.get_running_loop().time() - began_s
    assert set(said) == {
        f"error intercom: Intercom (us) does not answer: no answer within {MOST_S:g} s"
    }
    assert took_s == pytest.approx(MOST_S, abs=0.1), "a crowd waits together, not in a row"
    assert asked.gate.in_flight == 0


@in_virtual_time
async def test_a_pause_after_a_429_is_no_fault_of_the_settings() -> None:
    asked = Questions(sandbox(Fault("status", 429)))
    expected = "warning intercom: Intercom has answered 429: it is asked again once its window is"
    assert (await asked.silence()).startswith(expected)
    calls = len(asked.local.journal)
    await asyncio.sleep(FRESH_S)
    assert (await asked.silence()).startswith(expected)
    assert len(asked.local.journal) == calls, "nothing leaves while it lasts"


@in_virtual_time
async def test_a_gate_that_was_closed_for_a_reload_is_not_asked() -> None:
    asked = Questions(sandbox())
    asked.gate.close()
    assert await asked.silence() == (
        "warning intercom: not asked: the deliveries of the token just end"
    )
    assert asked.local.journal == []


@in_virtual_time
async def test_a_refused_token_is_said_by_the_answer_that_refused_it_first() -> None:
    asked = Questions(sandbox())
    asked.local.token_revoked = True
    first = await asked.silence()
    assert first.startswith("error intercom.access_token: Intercom answers 401: ")
    await asyncio.sleep(FRESH_S)
    calls = len(asked.local.journal)
    assert await asked.silence() == first
    assert len(asked.local.journal) == calls


@in_virtual_time
async def test_a_list_that_has_no_answer_leaves_what_the_token_said() -> None:
    asked = Questions(sandbox(Fault("reset", path="/data_attributes")))
    heard = await asked.ask()
    assert heard.said.me is not None
    assert heard.said.silence is not None
    assert heard.said.listed is None


@in_virtual_time
async def test_whoever_gives_up_leaves_the_question_to_the_others() -> None:
    asked = Questions(sandbox(Fault("hang", end_s=3.0)))
    impatient = asyncio.create_task(asked.ask())
    patient = asyncio.create_task(asked.ask())
    await asyncio.sleep(5.0)
    impatient.cancel()
    assert (await patient).said.listed is not None
    assert impatient.cancelled()


@in_virtual_time
async def test_an_allowance_that_others_use_is_said_and_not_taken_for_an_outage() -> None:
    asked = Questions(sandbox())
    deliveries = [asyncio.create_task(asked.gate.call(me())) for _ in range(40)]
    await asyncio.sleep(0)  # one call a second leaves before the limit is known, and each waits
    asked.local.faults.append(Fault("hang"))
    assert await asked.silence() == (
        "warning intercom: not asked within 10 s: the allowance of the token is used by others"
    )
    for delivery in deliveries:
        delivery.cancel()
    await asyncio.wait(deliveries)


async def test_a_client_that_a_reload_closes_meanwhile_is_a_finding() -> None:
    local = Sandbox(faults=[Fault("hang")])
    async with serve(local) as url:
        table = {"name": "a", "intercom": {"access_token": "t", "base_url": url}}
        running = from_table({"sync": [table]})
        [sync] = running.sync
        async with client_of(sync.intercom) as client:
            gate = Gate(client, requests_per_minute=10_000, max_in_flight=20)
            questions = WorkspaceQuestions(lambda _: gate, lambda: running, lambda: 0.0)
            asking = asyncio.create_task(questions.ask(sync))
            while not local.journal:
                await asyncio.sleep(0)
        said = (await asking).said
    assert said.silence is not None
    assert said.silence.text.startswith(f"{url} does not answer: ")
    assert gate.in_flight == 0
