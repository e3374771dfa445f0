"""What is outlived is forgotten while the engine runs, whatever else cannot be."""

from __future__ import annotations

from pathlib import Path

import anyio

from amplitude_intercom.engine import DeadLetterQuery
from amplitude_intercom.engine.spool.spool import TIDY_EVERY_S
from amplitude_intercom.engine.spool.store import Store
from amplitude_intercom.transports.contract import Batch
from support import simulation
from support.virtual import in_virtual_time

SYNC = "simulated"


@in_virtual_time
async def test_a_kind_that_cannot_be_forgotten_holds_up_no_other_and_no_engine(
    tmp_path: Path,
) -> None:
    """The table of insert ids is gone; dead letters are forgotten nevertheless."""

    def harm(store: Store) -> None:
        store.db.execute("ALTER TABLE insert_ids RENAME TO harmed")
        store.db.execute("UPDATE dead_letters SET last_failed_at_ms = 0")

    async with simulation.engine(tmp_path, simulation.sandbox()) as running:
        raw = b'{"event_type": "Purchase", "user_id": "unknown"}'
        ticket = await running.intake.send(Batch(None, [raw], sync=SYNC, origin="pipe"))
        assert (await ticket.wait()).dead == 1
        await running.spool.do(harm)
        for _ in range(3):
            await anyio.sleep(TIDY_EVERY_S)
        assert await running.upkeep.dead_letters(SYNC, DeadLetterQuery(every=True)) == []
        assert running.streams[SYNC].spool.counters["dropped:expired_letter"] == 1
