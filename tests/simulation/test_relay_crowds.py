"""A relay in crowds and mixtures: what one request, device, key or fault must not do to others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from amplitude_intercom.engine.relay.keys import MOST_KEYS
from amplitude_intercom.engine.spool.letters import DeadLetterQuery
from amplitude_intercom.transports.contract import Original
from amplitude_intercom.transports.intercom import Answer
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import AmplitudeInProcess
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from support import relaying, virtual
from support.relaying import RELAY, by_device, event, request, take_in
from support.virtual import in_virtual_time


class Answering(AmplitudeInProcess):
    """Answers some requests itself."""

    def __init__(self, local: LocalAmplitude, **answers: Answer | Exception) -> None:
        super().__init__(local)
        self.answers = answers

    async def send(self, request: Original) -> Answer:
        for text, answer in self.answers.items():
            if text.encode() in request.body:
                await anyio.sleep(0.1)
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return await super().send(request)


@in_virtual_time
async def test_an_outage_charges_nobody_that_failed_before_it(tmp_path: Path) -> None:
    """Some fail while others are taken, then all for hours; nobody has an attempt less for that."""

    flaky = Fault(kind="status", status=503, share=0.4, end_s=5.0)
    down = Fault(kind="status", status=503, start_s=5.0, end_s=4 * 3_600.0)
    local = relaying.amplitude(faults=[flaky, down])
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(40):
            await take_in(engine, request([event(f"d{n}", n)]))
            await anyio.sleep(0.1)
        with anyio.fail_after(5 * 3_600):
            await engine.relayed()
        counters = engine.relays[RELAY].spool.counters
        assert (counters["delivered"], counters["dead"]) == (40, 0)


@in_virtual_time
async def test_a_busy_device_does_not_keep_others_waiting(tmp_path: Path) -> None:
    local = relaying.amplitude(latency_s=0.2)
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(1_000):
            await take_in(engine, request([event("busy", n)]))
        await take_in(engine, request([event("other", 1)]))
        with anyio.fail_after(30):
            while not any(stored.device == "other" for stored in local.events):
                await anyio.sleep(0.1)
        await engine.relayed()
    assert by_device(local.events)["busy"] == [f"busy/{n}" for n in range(1_000)]


@in_virtual_time
async def test_hundreds_of_throttled_devices_do_not_keep_a_new_one_waiting(tmp_path: Path) -> None:
    local = relaying.amplitude()
    throttled = {"code": 429, "error": "Too many requests", "throttled_events": [0]}
    wire = Answering(local, hot=Answer(429, {}, json.dumps(throttled).encode()))
    async with relaying.engine(tmp_path, local, wire=wire) as engine:
        for n in range(300):
            await take_in(engine, request([event(f"hot{n}", n)]))
        await anyio.sleep(60.0)
        for n in range(10):
            await take_in(engine, request([event(f"new{n}", n)]))
        with anyio.fail_after(20):
            while len(local.events) < 10:
                await anyio.sleep(0.1)
        wire.answers.clear()
        with anyio.fail_after(120):
            await engine.relayed()
        assert engine.relays[RELAY].spool.counters["delivered"] == 310


@in_virtual_time
async def test_an_unforeseen_fault_costs_one_request_which_can_be_replayed(tmp_path: Path) -> None:
    local = relaying.amplitude()
    wire = Answering(local, cursed=ValueError("nobody foresaw this"))
    async with relaying.engine(tmp_path, local, wire=wire) as engine:
        for n in range(9):
            kind = "cursed" if n == 4 else "Viewed"
            await take_in(engine, request([event("d", n, event_type=kind)]))
        await engine.relayed()
        [letter] = await engine.upkeep.dead_letters(RELAY, DeadLetterQuery())
        assert (letter.reason, letter.event_type) == ("internal", "cursed")
        assert "nobody foresaw this" in letter.message
        wire.answers.clear()
        assert await engine.upkeep.replay(RELAY, DeadLetterQuery(every=True)) == {"replayed": 1}
        await engine.relayed()
    assert len(local.events) == 9


@in_virtual_time
async def test_a_replay_keeps_the_time_and_the_address_of_its_event(tmp_path: Path) -> None:
    local = relaying.amplitude()
    local.silenced = {"d"}
    async with relaying.engine(tmp_path, local) as engine:
        now_ms = virtual.current().wall_ms()
        sent_at = "2027-01-15T08:00:00.000Z"
        about = {"time": now_ms, "ip": "$remote"}
        await take_in(engine, request([event("d", 0, **about)], client_upload_time=sent_at))
        await engine.relayed()
        await anyio.sleep(6 * 3_600)
        local.silenced.clear()
        await engine.upkeep.replay(RELAY, DeadLetterQuery(every=True))
        await engine.relayed()
    [stored] = local.events
    assert stored.time_ms == now_ms
    assert stored.event["ip"] == "203.0.113.7"


@in_virtual_time
async def test_a_request_beyond_the_share_costs_itself_only(tmp_path: Path) -> None:
    local = relaying.amplitude(faults=[Fault(kind="status", status=503, end_s=60.0)])
    top = {"spool": {"max_bytes": 1_000_000}}
    async with relaying.engine(tmp_path, local, top=top) as engine:
        for n in range(30):
            await take_in(engine, request([event("d", n)]))
        large = [event("d", 100 + n, text="x" * 60_000) for n in range(10)]
        await take_in(engine, request(large))
        await engine.relayed()
        counters = engine.relays[RELAY].spool.counters
        assert (counters["delivered"], counters["dropped:relay_overflow"]) == (30, 10)


@in_virtual_time
async def test_an_amplitude_that_refuses_everything_is_waited_for(tmp_path: Path) -> None:
    """A wrong path, say: twenty dead letters tell of it, and not five hundred."""

    local = relaying.amplitude()
    refusal = Answer(400, {}, b'{"code":400,"error":"Invalid request path"}')
    wire = Answering(local, insert_id=refusal)
    async with relaying.engine(tmp_path, local, wire=wire) as engine:
        for n in range(500):
            await take_in(engine, request([event(f"d{n % 50}", n)]))
        await anyio.sleep(600.0)
        relay = engine.relays[RELAY]
        assert relay.spool.counters["dead"] == 20
        assert relay.health == "outage"
        assert relay.said == "refuses everything: Invalid request path"
        wire.answers.clear()
        with anyio.fail_after(300):
            await engine.relayed()
        assert relay.spool.counters["delivered"] == 480
        assert await engine.upkeep.replay(RELAY, DeadLetterQuery(every=True)) == {"replayed": 20}
        await engine.relayed()
        assert relay.spool.counters["delivered"] == 500


@in_virtual_time
async def test_the_first_wait_for_a_refused_key_is_a_minute_however_many_were_out(
    tmp_path: Path,
) -> None:
    projects: dict[str, str] = {}
    local = relaying.amplitude(projects=projects, latency_s=0.2)
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(100):
            await take_in(engine, request([event(f"d{n}", n)]))
        await anyio.sleep(10.0)
        assert list(engine.relays[RELAY].refused_keys) == [relaying.KEY]
        assert len(local.journal) <= 64
        projects[relaying.KEY] = "secret"
        with anyio.fail_after(70):
            await engine.relayed()


@in_virtual_time
async def test_keys_that_strangers_make_up_are_forgotten(tmp_path: Path) -> None:
    local = relaying.amplitude(projects={"good": "secret"})
    async with relaying.engine(tmp_path, local, amplitude_api_keys=["*"]) as engine:
        for n in range(150):
            await take_in(engine, request([event("d", n)], key=f"stranger-{n}"))
        await take_in(engine, request([event("d", 0)], key="good"))
        await anyio.sleep(60.0)
        assert [stored.api_key for stored in local.events] == ["good"]
        with anyio.fail_after(5 * 3_600):
            await engine.relayed()
        relay = engine.relays[RELAY]
        assert relay.spool.counters["dead:invalid_api_key"] == 150
        await anyio.sleep(700.0)
        assert relay.refused_keys == {}
        assert relay.held == 0


@in_virtual_time
async def test_no_more_keys_than_a_thousand_are_waited_for(tmp_path: Path) -> None:
    local = relaying.amplitude(projects={"good": "secret"})
    async with relaying.engine(tmp_path, local, amplitude_api_keys=["*"]) as engine:
        for n in range(MOST_KEYS + 50):
            await take_in(engine, request([event("d", n)], key=f"stranger-{n}"))
        await take_in(engine, request([event("d", 0)], key="good"))
        await anyio.sleep(30.0)
        assert [stored.api_key for stored in local.events] == ["good"]
        relay = engine.relays[RELAY]
        assert relay.spool.counters["dead:invalid_api_key"] == 50
        assert len(relay.refused_keys) == MOST_KEYS


@pytest.mark.parametrize("answer", [b"ok", b"", b'{"error":"of a proxy"}', b"<html></html>"])
@in_virtual_time
async def test_a_200_that_is_not_amplitudes_delivers_nothing(tmp_path: Path, answer: bytes) -> None:
    local = relaying.amplitude()
    wire = Answering(local, insert_id=Answer(200, {}, answer))
    async with relaying.engine(tmp_path, local, wire=wire) as engine:
        await take_in(engine, request([event("d", 0)]))
        await anyio.sleep(60.0)
        assert engine.relays[RELAY].spool.counters["pending"] == 1
        wire.answers.clear()
        with anyio.fail_after(120):
            await engine.relayed()
    assert len(local.events) == 1


@in_virtual_time
async def test_halves_of_a_request_that_is_too_large_keep_each_devices_order(
    tmp_path: Path,
) -> None:
    local = relaying.amplitude()

    class Narrow(AmplitudeInProcess):
        async def send(self, request: Original) -> Answer:
            if len(request.body) > 1_000:
                return Answer(413, {}, b"<html></html>")
            return await super().send(request)

    async with relaying.engine(tmp_path, local, wire=Narrow(local)) as engine:
        for n in range(4):
            events: list[dict[str, Any]] = [event(f"d{k % 3}", 20 * n + k) for k in range(20)]
            events[7] = event("d1", 20 * n + 7, text="x" * 2_000)
            await take_in(engine, request(events))
        with anyio.fail_after(300):
            await engine.relayed()
        counters = engine.relays[RELAY].spool.counters
        assert (counters["delivered"], counters["dead:too_large"]) == (76, 4)
    for device, ids in by_device(local.events).items():
        assert ids == sorted(ids, key=lambda id_: int(id_.partition("/")[2])), device


@in_virtual_time
async def test_hundreds_of_poison_requests_before_anything_was_taken_hold_nobody_up_for_long(
    tmp_path: Path,
) -> None:
    local = relaying.amplitude(faults=[Fault(kind="html", status=403, contains="poison")])
    async with relaying.engine(tmp_path, local) as engine:
        for n in range(200):
            await take_in(engine, request([event(f"p{n}", n, event_type="poison")]))
        for n in range(10):
            await take_in(engine, request([event(f"g{n}", n)]))
        with anyio.fail_after(120):
            while len(local.events) < 10:
                await anyio.sleep(1.0)


@in_virtual_time
async def test_a_plain_429_that_one_request_gets_again_and_again_is_its_own(tmp_path: Path) -> None:
    local = relaying.amplitude(faults=[Fault(kind="status", status=429, contains="poison")])
    async with relaying.engine(tmp_path, local) as engine:
        await take_in(engine, request([event("p", 0, event_type="poison")]))
        for n in range(600):
            await take_in(engine, request([event(f"g{n}", n)]))
            await anyio.sleep(1.0)
        assert len(local.events) >= 590
