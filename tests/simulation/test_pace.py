"""Ten simulated minutes of backlog: the whole allowance, and not a call more."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine.gate import Gate
from amplitude_intercom.transports.intercom import send_event
from amplitude_intercom.transports.sandbox import Fault, InProcess, Sandbox
from support import simulation, virtual

MINUTES = 10
FOREIGN_S = 240


async def backlog(local: Sandbox, seconds: float) -> Gate:
    """Call for a while, as many lanes as there may be calls out, each with a user of its own."""
    loop = virtual.current()
    gate = Gate(
        InProcess(local),
        requests_per_minute=10_000,
        max_in_flight=400,
        now_s=loop.wall_s,
        jitter=random.Random(7).random,
    )

    async def lane(user: str) -> None:
        second = 1_700_000_000
        while True:
            second += 1
            body = b'{"event_name":"a","created_at":%d,"user_id":"%s"}' % (second, user.encode())
            await gate.call(send_event(body), user)

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            for n in range(512):
                local.add_contact(external_id=f"user-{n}")
                tasks.start_soon(lane, f"user-{n}")
    return gate


@pytest.mark.parametrize(
    ("latency_s", "offset_s", "minutes"),
    [(0.3, 3.7, MINUTES), (0.02, 0.0, 3), (0.02, 3.7, 3), (2.0, 0.0, 3), (2.0, 3.7, 3)],
)
def test_a_backlog_uses_at_least_99_percent_and_is_never_refused(
    latency_s: float, offset_s: float, minutes: int
) -> None:
    async def scenario() -> None:
        local = simulation.sandbox(latency_s=latency_s, window_offset_s=offset_s)
        gate = await backlog(local, minutes * 60)
        assert local.throttled == 0
        assert local.most_calls_in(10.0) <= local.limit
        assert len(local.journal) >= 0.99 * minutes * 10_000
        assert gate.in_flight <= 400

    virtual.run(scenario)


def test_after_an_outage_the_pace_is_full_again_within_a_window_and_nobody_is_refused() -> None:
    async def scenario() -> None:
        faults = [Fault("status", 503, start_s=60, end_s=180)]
        local = simulation.sandbox(latency_s=0.3, faults=faults)
        await backlog(local, 220)
        at_s = [entry.at_s - virtual.EPOCH_S for entry in local.journal]
        probes = [t for t in at_s if 75 <= t < 180]
        assert 105 / 10 <= len(probes) <= 105 / 5 + 1  # at most one for each back-off
        answered = next(t for t in at_s if t >= 180)
        assert answered <= 191
        assert sum(answered + 10 <= t < answered + 20 for t in at_s) >= 0.99 * local.limit
        assert local.throttled == 0
        assert local.most_calls_in(10.0) <= local.limit

    virtual.run(scenario)


def test_answers_that_overtake_each_other_change_nothing() -> None:
    async def scenario() -> None:
        local = simulation.sandbox(latency_s=(0.05, 0.5))
        await backlog(local, 120)
        assert local.throttled == 0
        assert len(local.journal) >= 0.99 * 20_000

    virtual.run(scenario)


@pytest.mark.parametrize("headers", ["absent", "constant"])
def test_headers_that_tell_nothing_change_nothing(headers: str) -> None:
    async def scenario() -> None:
        local = simulation.sandbox(latency_s=0.3, headers=headers)
        await backlog(local, 60)
        assert local.throttled == 0
        assert len(local.journal) >= 0.99 * 10_000

    virtual.run(scenario)


Share = Callable[[float], float]

FOREIGN: dict[str, Share] = {
    "steps": lambda at_s: (0.0, 0.6, 0.2, 0.4)[int(at_s // 45) % 4],
    "waves": lambda at_s: 0.3 + 0.3 * math.sin(at_s / 20),
    "steady": lambda at_s: 0.5,
    "comes and goes": lambda at_s: 0.6 if at_s % 120 > 60 else 0.0,
}


@pytest.mark.parametrize("offset_s", [0.0, 3.7])
@pytest.mark.parametrize("name", FOREIGN)
def test_beside_another_client_what_is_left_is_used_and_hardly_a_call_refused(
    name: str, offset_s: float
) -> None:
    share = FOREIGN[name]

    async def scenario() -> None:
        local = simulation.sandbox(latency_s=0.3, window_offset_s=offset_s)
        loop = virtual.current()
        foreign = 0

        async def other_client() -> None:
            nonlocal foreign
            owed = 0.0
            while True:
                await anyio.sleep(0.1)
                owed += share(loop.now_s) * local.limit / 100
                taken, owed = int(owed), owed - int(owed)
                foreign += taken
                local.foreign_calls(taken)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other_client)
            await backlog(local, FOREIGN_S)
            tasks.cancel_scope.cancel()
        ours = [entry for entry in local.journal if entry.status != 429]
        left = FOREIGN_S / 10 * local.limit - foreign
        assert len(ours) >= 0.95 * left
        assert local.throttled <= 0.005 * len(local.journal)

    virtual.run(scenario)


def test_syncs_with_one_token_share_one_budget(tmp_path: Any) -> None:
    async def scenario() -> None:
        local = simulation.sandbox(limit_per_minute=600)
        async with simulation.engine(tmp_path, local, twice=True) as engine:
            gates = {id(pipeline.gate) for pipeline in engine.pipelines.values()}
            assert (len(engine.pipelines), len(gates)) == (2, 1)
            for name in engine.pipelines:
                events = [simulation.event(f"{name}-{n}", n) for n in range(300)]
                for event in events:
                    local.add_contact(external_id=event["user_id"])
                await engine.submit(events, sync=name)
            await anyio.sleep(30)
            assert local.throttled == 0
            assert local.most_calls_in(10.0) <= local.limit
            assert len(local.journal) >= 0.97 * 300

    virtual.run(scenario)
