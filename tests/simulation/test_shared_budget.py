"""Syncs with the same access token: one gate, one budget."""

from __future__ import annotations

from typing import Any

import anyio

from support import simulation
from support.virtual import in_virtual_time


@in_virtual_time
async def test_syncs_with_one_token_share_one_budget(tmp_path: Any) -> None:
    local = simulation.sandbox(limit_per_minute=600)
    async with simulation.engine(tmp_path, local, twice=True) as engine:
        gates = {id(pipeline.gate) for pipeline in engine.streams.values()}
        assert (len(engine.streams), len(gates)) == (2, 1)
        for name in engine.streams:
            events = [simulation.event(f"{name}-{n}", n) for n in range(300)]
            for event in events:
                local.add_contact(external_id=event["user_id"])
            await engine.submit(events, sync=name)
        await anyio.sleep(32)  # the first answer is waited for
        assert local.throttled == 0
        assert local.most_calls_in(10.0) <= local.limit
        assert len(local.journal) >= 0.97 * 300
