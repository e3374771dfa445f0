"""What is counted by the minute stands in the minute in which it happened."""

from __future__ import annotations

from pathlib import Path

import anyio

from amplitude_intercom.engine.spool.minute_reads import counted
from amplitude_intercom.engine.spool.tally import calls_of
from amplitude_intercom.transports.sandbox.faults import Fault
from support import simulation
from support.simulation import API_KEY, event
from support.virtual import current, in_virtual_time


@in_virtual_time
async def test_the_calls_of_an_outage_are_counted_while_it_lasts(tmp_path: Path) -> None:
    """Nothing is delivered in it that could take them along."""
    local = simulation.sandbox()
    users = [f"user-{n}" for n in range(30)]
    for user in users:
        local.add_contact(external_id=user)
    local.faults.append(Fault("status", 503, path="/events"))
    async with simulation.engine(tmp_path, local) as running:
        await running.submit([event(user, 1) for user in users], api_key=API_KEY)
        await anyio.sleep(600)
        end = int(current().wall_ms() // 60_000) + 1
        taker = running.streams["simulated"].spool.taker
        found = await running.spool.look(lambda store: counted(store, taker, end - 60, end))
        made = sum(call.path == "/events" for call in local.journal)
    failed = {at: n for at, counts in found.items() if (n := sum(calls_of(counts).values()))}
    assert len(failed) >= 8
    assert sum(failed.values()) >= made - 1  # the last one may not be written yet
