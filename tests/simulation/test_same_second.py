"""Many events of one user and second: each is sent once, in order, and none before its second."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

BUSY = "busy-user"
OTHERS = ["ann-user", "bob-user", "cid-user"]
ONE_AT_A_TIME = {"access_token": "simulated-token", "max_in_flight": 1}


def now_ms() -> int:
    return virtual.current().wall_ms()


def of_this_second(user: str, count: int, **more: Any) -> list[dict[str, Any]]:
    time_ms = now_ms()
    return [simulation.event(user, n, time=time_ms, **more) for n in range(count)]


def a_sandbox(**more: Any) -> Sandbox:
    local = simulation.sandbox(**more)
    for user in (BUSY, *OTHERS):
        local.add_contact(external_id=user)
    return local


def sent(local: Sandbox) -> dict[str, list[tuple[int, int]]]:
    """Return by user each event that was taken, once: its number and its second."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for entry in local.journal:
        if entry.path == "/events" and entry.status == 202:
            body = msgspec.json.decode(entry.body)
            assert entry.at_s >= body["created_at"], "left before its second had begun"
            n = body["metadata"]["n"]
            assert found[body["user_id"]].setdefault(n, body["created_at"]) == body["created_at"]
    return {user: list(seconds.items()) for user, seconds in found.items()}


async def submit(engine: Engine, events: list[dict[str, Any]]) -> None:
    await engine.submit(events, api_key=simulation.API_KEY)


async def keep_others_busy(engine: Engine, sent_at_s: dict[tuple[str, int], float]) -> None:
    """Send an event of each other user every half second."""
    for n in range(100_000):
        for user in OTHERS:
            sent_at_s[user, n] = now_ms() / 1000
        await submit(engine, [simulation.event(user, n) for user in OTHERS])
        await anyio.sleep(0.5)


@pytest.mark.parametrize("seed", range(4))
@in_virtual_time
async def test_two_hundred_events_of_one_second_delay_nobody_else_and_survive_restarts(
    tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    accepted_s: dict[tuple[str, int], float] = {}

    local = a_sandbox(seed=seed, latency_s=(0.002, 0.02))
    await anyio.sleep(dice.random())
    for life in range(3):
        async with simulation.engine(tmp_path, local, seed, intercom=ONE_AT_A_TIME) as engine:
            if life == 0:
                await submit(engine, of_this_second(BUSY, 200))
            if life < 2:
                await anyio.sleep(dice.uniform(1, 25))
                engine.cancel()
            else:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(keep_others_busy, engine, accepted_s)
                    await anyio.sleep(70)
                    tasks.cancel_scope.cancel()
                with anyio.fail_after(60):
                    await engine.settled()
                [status] = (await engine.status()).syncs
                assert status.delivered == status.received
                assert status.dead == 0
    by_user = sent(local)
    numbers, seconds = zip(*by_user[BUSY], strict=True)
    assert list(numbers) == list(range(200))
    first = seconds[0]
    assert list(seconds) == [*range(first, first + 61), *[first] * 139]
    for entry in local.journal:
        body = msgspec.json.decode(entry.body) if entry.path == "/events" else {}
        if body.get("user_id") in OTHERS:
            delay_s = entry.at_s - accepted_s[body["user_id"], body["metadata"]["n"]]
            assert delay_s < 1, "somebody else's second held it up"


@in_virtual_time
async def test_an_event_without_a_free_second_is_counted(tmp_path: Path) -> None:
    local = a_sandbox()
    shift = {"same_second_shift_s": 2}
    async with simulation.engine(tmp_path, local, delivery=shift) as engine:
        await submit(engine, of_this_second(BUSY, 5))
        await engine.settled()
        [status] = (await engine.status()).syncs
        assert status.adjusted == {"same_second": 2}
    seconds = [second for _, second in sent(local)[BUSY]]
    assert seconds == [seconds[0] + shift for shift in (0, 1, 2, 0, 0)]


@in_virtual_time
async def test_a_retry_of_an_event_without_insert_id_has_the_same_second(tmp_path: Path) -> None:
    local = a_sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        event = of_this_second(BUSY, 1, insert_id=None)
        await submit(engine, event)
        await submit(engine, event)
        await engine.settled()
        assert (await engine.status()).syncs[0].delivered == 2
    assert len(local.events) == 1, "Intercom takes them for one"


@in_virtual_time
async def test_events_of_a_moment_long_past_wait_for_nothing(tmp_path: Path) -> None:
    local = a_sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        past = [simulation.event(BUSY, n, time=1_700_000_000_000) for n in range(50)]
        await submit(engine, past)
        with anyio.fail_after(2):
            await engine.settled()
    assert len({second for _, second in sent(local)[BUSY]}) == 50


@in_virtual_time
async def test_an_update_in_an_event_that_waits_is_applied_once(tmp_path: Path) -> None:
    local = a_sandbox()
    users = {"properties": ["visits"], "trigger": "any_update"}
    async with simulation.engine(tmp_path, local, users=users) as engine:
        await submit(engine, of_this_second(BUSY, 8, user_properties={"$add": {"visits": 1}}))
        with anyio.fail_after(60):
            await engine.settled()
    [contact] = [contact for contact in local.contacts.values() if contact.external_id == BUSY]
    assert contact.custom_attributes == {"visits": 8}
    assert [n for n, _ in sent(local)[BUSY]] == list(range(8))


@in_virtual_time
async def test_a_failing_event_between_events_of_one_second_keeps_the_order(tmp_path: Path) -> None:
    failing = Fault("status", 500, contains='"n":3}', end_s=600)
    local = a_sandbox(faults=[failing])
    async with simulation.engine(tmp_path, local, intercom=ONE_AT_A_TIME) as engine:
        others = [simulation.event(user, n) for n in range(5) for user in OTHERS]
        await submit(engine, of_this_second(BUSY, 8) + others)
        await engine.settled()
    by_user = sent(local)
    assert [n for n, _ in by_user[BUSY]] == list(range(8))
    assert len({second for _, second in by_user[BUSY]}) == 8


@in_virtual_time
async def test_values_that_are_changed_count_once_however_often_their_event_is_put_back(
    tmp_path: Path,
) -> None:
    local = a_sandbox()
    async with simulation.engine(tmp_path, local, intercom=ONE_AT_A_TIME) as engine:
        time_ms = now_ms()
        events = [
            simulation.event(BUSY, n, time=time_ms, event_properties={"n": f"{n}\x00"})
            for n in range(50)
        ]
        await submit(engine, events)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert status.delivered == 50
    assert status.adjusted == {"characters_cleaned": 50}
