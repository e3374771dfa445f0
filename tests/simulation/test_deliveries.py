"""What reaches Intercom, and in which order, when things are well and when they are not."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation, virtual
from support.virtual import in_virtual_time

ONE_AT_A_TIME = {"access_token": "simulated-token", "max_in_flight": 1}


def _posted(local: Sandbox, path: str = "/events") -> list[tuple[int, dict[str, Any]]]:
    return [
        (entry.status, msgspec.json.decode(entry.body))
        for entry in local.journal
        if entry.method == "POST" and entry.path == path
    ]


async def _account(engine: Any) -> dict[str, int]:
    [status] = (await engine.status()).syncs
    counted = status.delivered + sum(status.dropped.values()) + status.dead + status.pending
    assert status.received == counted
    return {"received": status.received, "delivered": status.delivered, "dead": status.dead}


@pytest.mark.parametrize("seed", range(20))
def test_every_event_is_settled_once_and_in_order_through_random_faults(
    tmp_path: Path, seed: int
) -> None:
    """Random users, faults and crashes; the sandbox's own journal is what is checked."""
    dice = random.Random(seed)
    users = [f"user-{n:03}" for n in range(dice.randint(1, 40))]
    faults = [
        Fault(
            "status",
            dice.choice([500, 502, 503, 429, 401]),
            1.0,
            start,
            start + dice.uniform(1, 40),
        )
        for start in [dice.uniform(0, 30)]
    ] + [Fault(dice.choice(["hang", "reset", "half", "html"]), share=0.05, end_s=60.0)]

    @in_virtual_time
    async def scenario() -> None:
        local = simulation.sandbox(seed=seed, latency_s=(0.05, 0.5), faults=faults)
        for user in users:
            if dice.random() < 0.7:
                local.add_contact(external_id=user)
        expected: dict[str, list[int]] = defaultdict(list)
        n = 0
        for _ in range(dice.randint(1, 3)):
            async with simulation.engine(tmp_path, local, seed) as engine:
                for _ in range(dice.randint(1, 6)):
                    batch = []
                    for _ in range(dice.randint(1, 60)):
                        n += 1
                        user = dice.choice(users)
                        if not expected[user]:
                            batch.append(
                                simulation.identify(user, n + 10**6, {"$set": {"plan": "x"}})
                            )
                        expected[user].append(n)
                        batch.append(simulation.event(user, n))
                    await engine.submit(batch, api_key=simulation.API_KEY)
                    await anyio.sleep(dice.uniform(0, 5))
                engine.cancel()  # a crash, as far as the spool can tell
        async with simulation.engine(tmp_path, local, seed) as engine:
            with anyio.fail_after(6 * 3600):
                await engine.settled()
            assert await _account(engine) == {
                "received": n + len([u for u in users if expected[u]]),
                "delivered": n + len([u for u in users if expected[u]]),
                "dead": 0,
            }
        _check(local, expected)

    scenario()


def _check(local: Sandbox, expected: dict[str, list[int]]) -> None:
    by_contact = defaultdict(list)
    for stored in local.events:
        by_contact[stored.contact_id].append(stored.metadata["n"])
    arrived = {local.contacts[c].external_id: order for c, order in by_contact.items()}
    assert arrived == {user: order for user, order in expected.items() if order}
    assert local.most_calls_in(10.0) <= local.limit
    bodies = defaultdict(set)
    for _, body in _posted(local):
        bodies[body["user_id"], body["metadata"]["n"]].add(msgspec.json.encode(body))
    assert all(len(seen) == 1 for seen in bodies.values())  # a retry is byte-identical


@in_virtual_time
async def test_users_behind_a_parked_user_flow_on(tmp_path: Path) -> None:
    """The first of three users fails for an hour; one call may be out at a time."""

    failing = Fault("status", 500, contains="parked-user", end_s=3600)
    local = simulation.sandbox(faults=[failing], latency_s=0.05)
    users = ["parked-user", "second-user", "third-user"]
    for user in users:
        local.add_contact(external_id=user)
    async with simulation.engine(tmp_path, local, intercom=ONE_AT_A_TIME) as engine:
        batch = [simulation.event(user, n) for n in range(40) for user in users]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(10)
        assert len(local.events) == 80
        await anyio.sleep(3600)
        await engine.settled()
    by_contact = [e.metadata["n"] for e in local.events][80:]
    assert by_contact == list(range(40))


@in_virtual_time
async def test_a_replayed_record_goes_behind_its_users_waiting_ones(tmp_path: Path) -> None:
    poison = Fault("status", 422, contains='"n":0}')
    local = simulation.sandbox(faults=[poison], latency_s=0.05)
    local.add_contact(external_id="mira-okafor")
    async with simulation.engine(tmp_path, local) as engine:
        first, *others = [simulation.event("mira-okafor", n) for n in range(5)]
        await engine.submit([first], api_key=simulation.API_KEY)
        await engine.settled()
        local.faults.clear()
        await engine.submit(others, api_key=simulation.API_KEY)
        await engine.upkeep.replay("simulated", DeadLetterQuery(reason="refused"))
        await engine.settled()
    assert [e.metadata["n"] for e in local.events] == [1, 2, 3, 4, 0]


@in_virtual_time
async def test_an_unknown_user_is_parked_and_delivered_when_it_appears(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="somebody-else")
    async with simulation.engine(tmp_path, local) as engine:
        batch = [simulation.event("late-comer", n) for n in range(5)]
        others = [simulation.event("somebody-else", n) for n in range(50)]
        await engine.submit(batch + others, api_key=simulation.API_KEY)
        await anyio.sleep(3)
        assert len(local.events) == 50  # nobody else waited
        await anyio.sleep(600)
        assert len([1 for status, _ in _posted(local) if status == 404]) <= 6  # probes, not events
        local.add_contact(external_id="late-comer")
        await engine.settled()
    assert [e.metadata["n"] for e in local.events][50:] == [0, 1, 2, 3, 4]


@in_virtual_time
async def test_an_identify_that_comes_later_frees_an_unknown_user_at_once(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit(
            [simulation.event("mira", n) | {"user_id": "mira-o"} for n in range(3)],
            api_key=simulation.API_KEY,
        )
        await anyio.sleep(60)
        await engine.submit(
            [simulation.identify("mira-o", 9, {"$set": {"plan": "pro"}})],
            api_key=simulation.API_KEY,
        )
        with anyio.fail_after(2):
            await engine.settled()
    assert [e.metadata["n"] for e in local.events] == [0, 1, 2]


@in_virtual_time
async def test_a_user_that_never_appears_ends_in_the_dead_letters_after_the_window(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        batch = [simulation.event("nobody-there", n) for n in range(20)]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(3.5 * 3600)
        assert (await _account(engine))["dead"] == 0
        with anyio.fail_after(2 * 3600):
            await engine.settled()
        [status] = (await engine.status()).syncs
        assert status.dead_by_reason == {"user_not_found": 20}
    assert len(_posted(local)) <= 12  # one probe for each back-off, not one for each event


@in_virtual_time
async def test_known_contacts_are_remembered_across_restarts_and_unchanged_ones_not_written(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    known = local.add_contact(external_id="known-user")
    for n, plan in enumerate(["free", "free", "pro"]):
        async with simulation.engine(tmp_path, local) as engine:
            for user in ("known-user", "new-user"):
                identify = simulation.identify(user, n, {"$set": {"plan": plan}})
                await engine.submit([identify], api_key=simulation.API_KEY)
            await engine.settled()
    calls = [(e.method, e.status) for e in local.journal if e.contact_id in ("", known)]
    assert calls.count(("POST", 409)) == 1
    # Adopt, create; no call for "free" again; two updates.
    assert len(simulation.made(local)) == 2 + 1 + 2
    assert {c.custom_attributes["plan"] for c in local.contacts.values()} == {"pro"}


@in_virtual_time
async def test_an_unset_property_is_cleared_in_intercom(tmp_path: Path) -> None:
    local = simulation.sandbox()
    contact = local.add_contact(external_id="mira-okafor", custom_attributes={"plan": "pro"})
    async with simulation.engine(tmp_path, local) as engine:
        identify = simulation.identify("mira-okafor", 1, {"$unset": {"plan": "-"}})
        await engine.submit([identify], api_key=simulation.API_KEY)
        await engine.settled()
    assert local.contacts[contact].custom_attributes == {"plan": None}


@in_virtual_time
async def test_set_once_does_not_overwrite_a_contacts_value(tmp_path: Path) -> None:
    local = simulation.sandbox()
    contact = local.add_contact(external_id="mira-okafor", custom_attributes={"plan": "pro"})
    async with simulation.engine(tmp_path, local) as engine:
        once = {"$setOnce": {"plan": "free", "visits": 1}, "$add": {"visits": 2}}
        await engine.submit(
            [simulation.identify("mira-okafor", 1, once)], api_key=simulation.API_KEY
        )
        await engine.settled()
    assert local.contacts[contact].custom_attributes == {"plan": "pro", "visits": 3}


@in_virtual_time
async def test_plain_user_properties_of_an_identify_are_set(tmp_path: Path) -> None:
    local = simulation.sandbox()
    async with simulation.engine(tmp_path, local) as engine:
        plain = {"plan": "pro", "not selected": True}
        await engine.submit(
            [simulation.identify("mira-okafor", 1, plain)], api_key=simulation.API_KEY
        )
        await engine.settled()
    [contact] = local.contacts.values()
    assert contact.custom_attributes == {"plan": "pro"}


@in_virtual_time
async def test_a_revoked_token_stops_deliveries_and_they_resume_by_themselves(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox(access_token="token")
    local.add_contact(external_id="mira-okafor")
    local.token_revoked = True
    async with simulation.engine(tmp_path, local) as engine:
        batch = [simulation.event("mira-okafor", n) for n in range(30)]
        await engine.submit(batch, api_key=simulation.API_KEY)
        await anyio.sleep(3600)
        [status] = (await engine.status()).syncs
        assert status.intercom is not None
        assert (status.intercom.health, status.pending) == ("unauthorized", 30)
        assert len(local.journal) < 800  # probes, seconds apart
        local.token_revoked = False
        with anyio.fail_after(61):  # the longest pause between two looks
            await engine.settled()
    assert [e.metadata["n"] for e in local.events] == list(range(30))


@in_virtual_time
async def test_a_poison_event_ends_as_a_dead_letter_and_the_rest_flows(tmp_path: Path) -> None:
    poison = Fault("status", 500, contains='"n":13}')
    local = simulation.sandbox(faults=[poison], latency_s=0.1)
    users = [f"user-{n:02}" for n in range(20)]
    for user in users:
        local.add_contact(external_id=user)
    async with simulation.engine(tmp_path, local) as engine:
        for n in range(100):
            await engine.submit([simulation.event(users[n % 20], n)], api_key=simulation.API_KEY)
        for n in range(100, 150):  # that others go on is what proves whose fault it is
            await anyio.sleep(360)
            await engine.submit([simulation.event(users[n % 7], n)], api_key=simulation.API_KEY)
        await engine.settled()
        [status] = (await engine.status()).syncs
    assert status.dead_by_reason == {"user_failing": 1}
    assert sorted(e.metadata["n"] for e in local.events) == [n for n in range(150) if n != 13]


@in_virtual_time
async def test_a_backlog_uses_the_allowance_and_never_more(tmp_path: Path) -> None:
    local = simulation.sandbox(latency_s=0.3)
    users = [f"user-{n:04}" for n in range(2_000)]
    for user in users:
        local.add_contact(external_id=user)
    async with simulation.engine(tmp_path, local) as engine:
        batch = [simulation.event(user, n) for n in range(7) for user in users]
        for start in range(0, len(batch), 1_000):
            await engine.submit(batch[start : start + 1_000], api_key=simulation.API_KEY)
        began = virtual.current().now_s
        await anyio.sleep(5)  # until the limit is known
        began, before = virtual.current().now_s, len(local.journal)
        await anyio.sleep(60)
        calls = len(local.journal) - before
        assert virtual.current().now_s - began == pytest.approx(60)
    assert local.throttled == 0
    assert local.most_calls_in(10.0) <= local.limit
    assert calls >= 0.99 * 10_000
