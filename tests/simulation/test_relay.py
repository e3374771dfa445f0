"""A relay against a local Amplitude, in virtual time: what is accepted arrives, once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import AmplitudeInProcess
from support import relaying, virtual
from support.relaying import RELAY, by_device, event, request, take_in
from support.virtual import in_virtual_time


async def relayed(engine: Engine, within_s: float = 3_600.0) -> None:
    with anyio.fail_after(within_s):
        await engine.relayed()


def counters(engine: Engine) -> dict[str, int]:
    found = engine.relays[RELAY].spool.counters
    return {name: n for name, n in found.items() if n and not name.startswith("bytes:")}


@in_virtual_time
async def test_requests_arrive_as_they_came_and_in_order(tmp_path: Path) -> None:
    local = relaying.amplitude()
    wire = AmplitudeInProcess(local)
    async with relaying.engine(tmp_path, local, wire=wire) as engine:
        batches = [request([event("d1", 2 * n), event("d2", 2 * n + 1)]) for n in range(50)]
        for batch in batches:
            await take_in(engine, batch)
        await relayed(engine)
        assert counters(engine) == {"received": 100, "delivered": 100}
    assert [sent.body for sent in wire.sent] == [b.original.body for b in batches if b.original]
    assert by_device(local.events) == {
        "d1": [f"d1/{2 * n}" for n in range(50)],
        "d2": [f"d2/{2 * n + 1}" for n in range(50)],
    }


OUTAGES: Sequence[dict[str, Any]] = (
    {"kind": "status", "status": 503},
    {"kind": "html", "status": 502},
    {"kind": "reset"},
    {"kind": "hang"},
    {"kind": "half"},
)


@pytest.mark.parametrize("fault", OUTAGES, ids=lambda fault: fault["kind"])
@in_virtual_time
async def test_ten_minutes_of_outage_cost_nothing_but_time(
    tmp_path: Path, fault: dict[str, Any]
) -> None:
    local = relaying.amplitude(faults=[Fault(**fault, end_s=600.0)])
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(300):
            await take_in(engine, request([event(f"d{n % 7}", n)]))
            await anyio.sleep(1.0)
        assert engine.relays[RELAY].health == "outage"
        await anyio.sleep(320.0)
        await relayed(engine, within_s=90.0)
        assert counters(engine) == {"received": 300, "delivered": 300}
    for device, ids in by_device(local.events).items():
        assert ids == [f"{device}/{n}" for n in range(300) if f"d{n % 7}" == device]


@in_virtual_time
async def test_the_times_of_events_are_right_after_an_outage(tmp_path: Path) -> None:
    local = relaying.amplitude(faults=[Fault(kind="status", status=503, end_s=600.0)])
    async with relaying.engine(tmp_path, local) as engine:
        now_ms = virtual.current().wall_ms()
        sent_at = "2027-01-15T08:00:00.000Z"
        await take_in(engine, request([event("d1", 0, time=now_ms)], client_upload_time=sent_at))
        await relayed(engine)
    [stored] = local.events
    assert stored.time_ms == now_ms


@in_virtual_time
async def test_a_device_that_is_throttled_holds_up_nobody_else(tmp_path: Path) -> None:
    local = relaying.amplitude(events_per_s={"/2/httpapi": 3.0})
    async with relaying.engine(tmp_path, local) as engine:
        began_s = virtual.current().time()
        for n in range(20):
            crowd = [event(f"d{n}-{k}", k) for k in range(20)]
            await take_in(engine, request([event("hot", n), *crowd]))
        await anyio.sleep(10.0)
        others = [e for e in local.events if e.device != "hot"]
        assert len(others) == 400
        await relayed(engine)
        assert virtual.current().time() - began_s > 60.0
        assert counters(engine) == {"received": 420, "delivered": 420}
    assert by_device(local.events)["hot"] == [f"hot/{n}" for n in range(20)]


@in_virtual_time
async def test_silenced_devices_become_dead_letters_and_the_others_arrive(tmp_path: Path) -> None:
    local = relaying.amplitude()
    local.silenced = {"d3", "d5"}
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(10):
            await take_in(engine, request([event(f"d{k}", n) for k in range(8)]))
        await relayed(engine)
        counted = counters(engine)
        assert (counted["delivered"], counted["dead:amplitude_refused"]) == (60, 20)
        letters = await engine.upkeep.dead_letters(RELAY, DeadLetterQuery())
    assert {letter.user_key for letter in letters} == {"user-of-d3", "user-of-d5"}
    assert {letter.event_type for letter in letters} == {"Purchase"}
    assert by_device(local.events)["d4"] == [f"d4/{n}" for n in range(10)]


@in_virtual_time
async def test_a_request_that_a_firewall_refuses_costs_its_one_event(tmp_path: Path) -> None:
    """Thirty poison events in a crowd of requests: each is found by halving, and dies alone."""

    local = relaying.amplitude(faults=[Fault(kind="html", status=403, contains="poison")])
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(60):
            crowd = [event(f"d{n}-{k}", n) for k in range(20)]
            if n % 2:
                crowd[7] = event(f"d{n}-7", n, event_type="poison")
            await take_in(engine, request(crowd))
        for n in range(600):  # others are taken meanwhile, for an hour
            await take_in(engine, request([event("steady", n)]))
            await anyio.sleep(6.0)
        await relayed(engine)
        counted = counters(engine)
        assert counted["dead:amplitude_failing"] == 30
        assert counted["delivered"] == 60 * 20 - 30 + 600
    assert by_device(local.events)["steady"] == [f"steady/{n}" for n in range(600)]


@in_virtual_time
async def test_an_api_key_that_is_refused_waits_and_others_do_not(tmp_path: Path) -> None:
    projects = {"good": "secret"}
    local = relaying.amplitude(projects=projects)
    async with relaying.engine(tmp_path, local, amplitude_api_keys=["*"]) as engine:
        for n in range(40):
            await take_in(engine, request([event("d", n)], key="bad" if n % 2 else "good"))
        await anyio.sleep(30.0)
        assert len(local.events) == 20
        relay = engine.relays[RELAY]
        assert relay.health == "invalid_key"
        assert list(relay.refused_keys) == ["bad"]
        projects["bad"] = "found again"
        await relayed(engine)
        assert relay.health == "well"
    keys = [(e.api_key, e.event["insert_id"]) for e in local.events if e.api_key == "bad"]
    assert keys == [("bad", f"d/{n}") for n in range(1, 40, 2)]


@in_virtual_time
async def test_a_key_that_stays_refused_ends_as_dead_letters(tmp_path: Path) -> None:
    local = relaying.amplitude(projects={"good": "secret"})
    async with relaying.engine(tmp_path, local, amplitude_api_keys=["*"]) as engine:
        for n in range(40):
            await take_in(engine, request([event("d", n)], key=f"made-up-{n % 4}"))
        await relayed(engine, within_s=5 * 3_600.0)
        assert counters(engine)["dead:invalid_api_key"] == 40


@in_virtual_time
async def test_health_says_that_nothing_is_answered_from_the_first_failure_on(
    tmp_path: Path,
) -> None:
    local = relaying.amplitude(faults=[Fault(kind="status", status=401, end_s=60.0)])
    async with relaying.engine(tmp_path, local) as engine:
        relay = engine.relays[RELAY]
        assert relay.health == "well"
        await take_in(engine, request([event("d", 0)]))
        await anyio.sleep(1.0)
        assert (relay.health, relay.said) == ("failing", "Fault")
        [status] = (await engine.status()).relays
        assert (status.health, status.pending, status.calls) == ("failing", 1, {"401": 1})
        await relayed(engine)
        assert (relay.health, relay.said) == ("well", "")


def test_a_dead_letter_is_logged_with_its_reason(tmp_path: Path) -> None:
    @in_virtual_time
    async def main() -> None:
        local = relaying.amplitude()
        local.silenced = {"d"}
        async with relaying.engine(tmp_path, local) as engine:
            await take_in(engine, request([event("d", 0)]))
            await relayed(engine)

    with capture_logs() as logged:
        main()
    [line] = [line for line in logged if line["event"] == "dead letter"]
    assert (line["relay"], line["event_type"], line["user"]) == (
        "amplitude",
        "Purchase",
        "user-of-d",
    )


@in_virtual_time
async def test_a_full_relay_drops_its_oldest_and_counts_them(tmp_path: Path) -> None:
    local = relaying.amplitude(faults=[Fault(kind="status", status=503, end_s=600.0)])
    top = {"spool": {"max_bytes": 1_000_000}}
    async with relaying.engine(tmp_path, local, top=top) as engine:
        for n in range(300):
            await take_in(engine, request([event("d", n, text="x" * 10_000)]))
        waiting = engine.relays[RELAY].spool.counters
        assert waiting["bytes:inbox"] <= 500_000
        dropped = waiting["dropped:relay_overflow"]
        assert 240 <= dropped < 260
        await relayed(engine)
        counted = counters(engine)
        assert counted["delivered"] + dropped == 300
    ids = by_device(local.events)["d"]
    assert ids == [f"d/{n}" for n in range(300 - len(ids), 300)]


@pytest.mark.parametrize("status", [429, 503])
@in_virtual_time
async def test_a_host_that_has_to_be_left_alone_is_so_after_a_reload(
    tmp_path: Path, status: int
) -> None:
    """A plain 429 names a pause, and an outage lets one probe at a time through."""
    local = relaying.amplitude(faults=[Fault(kind="status", status=status, end_s=20)])
    loop = virtual.current()
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(40):
            await take_in(engine, request([event(f"d{n}", n)]))
        await anyio.sleep(5.0)
        health = engine.relays[RELAY].health
        assert health == ("busy" if status == 429 else "outage")
        for connections in range(10, 20):
            await engine.reload(relaying.settings(tmp_path, connections=connections))
            await anyio.sleep(0.1)
            assert engine.relays[RELAY].health == health
        calls = len([one for one in local.journal if one.at_s - virtual.EPOCH_S > 5.0])
        assert calls <= 2
        elsewhere = relaying.settings(tmp_path, base_url="https://elsewhere.example")
        await engine.reload(elsewhere)
        assert engine.relays[RELAY].health == "well"
        await relayed(engine)
    assert loop.now_s < 60
    assert sorted(by_device(local.events)) == sorted(f"d{n}" for n in range(40))


@in_virtual_time
async def test_a_device_that_is_throttled_stays_so_through_reloads(tmp_path: Path) -> None:
    """Each reload tried all devices at once, in the order of their requests: now none early."""
    local = relaying.amplitude(events_per_s={"/2/httpapi": 3.0})
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(200):
            await take_in(engine, request([event("hot", n)]))
        for connections in range(10, 40):
            await engine.reload(relaying.settings(tmp_path, connections=connections))
            await anyio.sleep(0.2)
        refused = [one for one in local.journal if one.status == 429]
        assert len(refused) <= 3
        await relayed(engine)
    assert by_device(local.events)["hot"] == [f"hot/{n}" for n in range(200)]
