"""Clocks that jump: nobody waits longer for it, and Intercom gets no call too many."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from support import simulation, virtual
from support.simulation import made
from support.virtual import in_virtual_time

HOUR_S = 3600.0
JUMP_AT_S = 12.0
WINDOW_S = 10.0
USERS = 400


@pytest.mark.parametrize(
    ("jump_s", "suspended"),
    [(HOUR_S, False), (-HOUR_S, False), (5.0, False), (-5.0, False), (HOUR_S, True), (5.0, True)],
)
@in_virtual_time
async def test_under_a_backlog_a_jump_costs_no_window_and_no_call_too_many(
    tmp_path: Path, measured: Callable[[str], None], jump_s: float, suspended: bool
) -> None:
    """Suspended, the machine's own clock stands still while everybody else's goes on."""
    local = None

    loop = virtual.current()
    world = loop.wall_s if suspended else lambda: virtual.EPOCH_S + loop.now_s
    local = simulation.sandbox(now=world, latency_s=0.2, limit_per_minute=3_000)
    for n in range(USERS):
        local.add_contact(external_id=f"user-{n}")
    async with simulation.engine(tmp_path, local) as engine:
        for n in range(4):
            events = [simulation.event(f"user-{u}", n) for u in range(USERS)]
            await engine.submit(events, api_key=simulation.API_KEY)
        loop.call_at(JUMP_AT_S, lambda: setattr(loop, "wall_offset_s", jump_s))
        await engine.settled()
    assert local is not None
    jumped_at_s = virtual.EPOCH_S + JUMP_AT_S
    longest_s = max(
        after - before - (jump_s if suspended and before < jumped_at_s <= after else 0.0)
        for before, after in itertools.pairwise(entry.at_s for entry in made(local))
    )
    most = local.most_calls_in(WINDOW_S)
    assert len(local.events) == 4 * USERS
    assert local.throttled == 0
    assert most <= local.limit
    assert longest_s <= WINDOW_S + 0.5
    how = "suspended for" if suspended else "clock set by"
    measured(
        f"{how} {jump_s:+.0f} s: longest stall {longest_s:.1f} s, {most} calls in 10 s at most"
    )


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, -24 * HOUR_S])
@in_virtual_time
async def test_a_parked_user_wakes_when_it_was_meant_to(tmp_path: Path, jump_s: float) -> None:
    loop = virtual.current()
    local = simulation.sandbox(now=lambda: virtual.EPOCH_S + loop.now_s)
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([simulation.event("late-user", 1)], api_key=simulation.API_KEY)
        while not (await engine.status()).syncs[0].parked_users:
            await simulation.a_moment()
        loop.wall_offset_s = jump_s
        local.add_contact(external_id="late-user")
        with anyio.fail_after(15 * 60):  # its first back-offs
            await engine.settled()
    assert [event.metadata["n"] for event in local.events] == [1]
    assert len(made(local)) <= 6
