"""Parked users are tried again on request: those that are meant, once each, at the usual pace."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.spool.wakeups import ParkedChoice
from amplitude_intercom.engine.upkeep import SLICE_OF_USERS
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation
from support.simulation import API_KEY, event
from support.virtual import current, in_virtual_time

SYNC = "simulated"
LATE = 3_600


async def park(running: Engine, users: list[str]) -> None:
    """Have an hour of tries fail, so that the next one is far away."""
    await running.submit([event(user, 1) for user in users], api_key=API_KEY)
    await anyio.sleep(LATE)
    assert (await running.status()).syncs[0].parked_users == {"user_not_found": len(users)}


@in_virtual_time
async def test_a_crowd_that_has_arrived_meanwhile_is_delivered_on_request(tmp_path: Path) -> None:
    local = simulation.sandbox()
    users = [f"late-{n}" for n in range(2 * SLICE_OF_USERS + 100)]
    async with simulation.engine(tmp_path, local) as running:
        await park(running, users)
        for user in users:
            local.add_contact(external_id=user)
        before_s = current().time()
        assert await running.upkeep.retry_parked(SYNC, ParkedChoice()) == len(users)
        await running.settled()
        took_s = current().time() - before_s
    assert len(local.events) == len(users)
    # Each costs a call; Intercom takes 10,000 in a minute.
    assert took_s < 60


@pytest.mark.parametrize(
    ("choice", "tried"),
    [
        (ParkedChoice(["late-1", "late-2", "nobody"]), 2),
        (ParkedChoice(["late-1"], "user_not_found"), 1),
        (ParkedChoice(["late-1"], "refused"), 0),
        (ParkedChoice(None, "refused"), 0),
        (ParkedChoice([]), 0),
    ],
)
@in_virtual_time
async def test_nobody_else_is_tried(tmp_path: Path, choice: ParkedChoice, tried: int) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as running:
        await park(running, [f"late-{n}" for n in range(5)])
        before = len(local.journal)
        assert await running.upkeep.retry_parked(SYNC, choice) == tried
        await anyio.sleep(1)
        assert len(local.journal) - before == tried


@in_virtual_time
async def test_an_outage_is_not_met_by_all_who_are_tried_again(tmp_path: Path) -> None:
    """Users parked before an outage wait for their endpoint, as all others do."""
    local: Sandbox = simulation.sandbox()
    users = [f"late-{n}" for n in range(300)]
    async with simulation.engine(tmp_path, local) as running:
        await park(running, users)
        for user in users:
            local.add_contact(external_id=user)
        local.faults.append(Fault("status", 503))
        await running.upkeep.retry_parked(SYNC, ParkedChoice())
        await anyio.sleep(2)  # those that had left before the first answer
        before = len(local.journal)
        await anyio.sleep(120)
        assert 1 <= len(local.journal) - before < 40
        local.faults.clear()
        await running.upkeep.retry_parked(SYNC, ParkedChoice())
        await running.settled()
        assert (await running.status()).syncs[0].dead == 0
    assert len(local.events) == len(users)
