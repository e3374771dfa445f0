"""What a status says: parked users apart, ages, what survives a restart, one token counted once."""

from __future__ import annotations

import re
from pathlib import Path

import anyio

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.metrics import render
from amplitude_intercom.engine.spool.user_state import UserState
from amplitude_intercom.engine.status import SyncStatus
from amplitude_intercom.transports.sandbox.faults import Fault
from support import simulation
from support.simulation import API_KEY, event, identify
from support.virtual import in_virtual_time


@in_virtual_time
async def test_a_parked_user_does_not_pin_the_age_of_the_backlog(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(3_600)
        await engine.submit([event("known-user", 1)], api_key=API_KEY)
        await anyio.sleep(5)
        [sync] = (await engine.status()).syncs
        assert (sync.pending, sync.parked_users) == (1, {"user_not_found": 1})
        assert sync.oldest_pending_s is None
        assert sync.oldest_parked_s is not None
        assert 3_600 < sync.oldest_parked_s < 3_610
        assert sync.last_delivery_s is not None
        assert 0 < sync.last_delivery_s < 10
        state = await engine.upkeep.user("simulated", "nobody-here")
        check_parked(state)


def check_parked(state: UserState) -> None:
    assert state.parked is not None
    assert state.parked.reason == "user_not_found"
    assert state.parked.failures > 1
    assert state.waiting.types == {"Purchase": 1}
    assert state.contact is None


@in_virtual_time
async def test_a_backlog_in_an_outage_has_an_age_though_its_user_is_crowded(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="busy-user")
    async with simulation.engine(tmp_path, local) as engine:
        local.faults.append(Fault("status", 503))
        events = [event("busy-user", n) for n in range(200)]
        await engine.submit(events, api_key=API_KEY)
        await anyio.sleep(60)
        [sync] = (await engine.status()).syncs
        assert sync.pending == 200
        assert sync.oldest_pending_s is not None
        assert 60 <= sync.oldest_pending_s < 61
        assert (await engine.upkeep.user("simulated", "busy-user")).waiting.records == 200


@in_virtual_time
async def test_adjustments_and_the_last_delivery_survive_a_restart(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    long = event("known-user", 1, event_properties={"n": "x" * 300})
    mismatch = identify("known-user", 2, {"email": "no e-mail", "plan": ["a", {"b": 1}]})
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([long, mismatch], api_key=API_KEY)
        await engine.settled()
        before = (await status_of(engine)).adjusted
    assert before["text_cut"] == 1
    await anyio.sleep(100)
    async with simulation.engine(tmp_path, local) as engine:
        status = await status_of(engine)
        assert status.adjusted == before
        assert status.last_delivery_s is not None
        assert 100 <= status.last_delivery_s < 110
        again = event("known-user", 3, event_properties={"n": "x" * 300})
        await engine.submit([again], api_key=API_KEY)
        await engine.settled()
        assert (await status_of(engine)).adjusted["text_cut"] == 2


async def status_of(engine: Engine) -> SyncStatus:
    [sync] = (await engine.status()).syncs
    return sync


@in_virtual_time
async def test_two_syncs_with_one_token_show_their_calls_once(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    async with simulation.engine(tmp_path, local, twice=True) as engine:
        await engine.submit([event("known-user", 1)], api_key=API_KEY)
        await engine.settled()
        text = render(await engine.status(), ready=engine.overview.ready).decode()
    calls = re.findall(r"calls_total{(.*POST /events.*)} (.*)", text)
    assert [float(count) for _, count in calls] == [len(simulation.made(local))]
    assert 'intercom="api.intercom.io#1"' in calls[0][0]
    assert len(re.findall(r"^amplitude_intercom_sync_info{", text, re.MULTILINE)) == 2
    assert "simulated-token" not in text


@in_virtual_time
async def test_rates_are_those_of_the_last_ten_minutes_and_survive_a_restart(
    tmp_path: Path,
) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([event("known-user", n) for n in range(60)], api_key=API_KEY)
        await engine.settled()
        status = await status_of(engine)
        assert (status.received_per_s, status.delivered_per_s) == (0.1, 0.1)
    async with simulation.engine(tmp_path, local) as engine:
        await anyio.sleep(300)
        await engine.submit([event("nobody-here", n) for n in range(60)], api_key=API_KEY)
        status = await status_of(engine)
        assert (status.received_per_s, status.delivered_per_s) == (0.2, 0.1)
        await anyio.sleep(400)
        status = await status_of(engine)
        assert (status.received_per_s, status.delivered_per_s) == (0.1, 0.0)


@in_virtual_time
async def test_a_rate_is_that_of_its_own_sync(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    second = {"amplitude_api_keys": ["another-key"]}
    async with simulation.engine(tmp_path, local, second=second) as engine:
        await engine.submit([event("known-user", n) for n in range(6)], api_key="another-key")
        first, another = (await engine.status()).syncs
    assert (first.received_per_s, another.received_per_s) == (0.0, 0.01)


@in_virtual_time
async def test_retries_are_counted_and_what_intercom_says_is_left(tmp_path: Path) -> None:
    local = simulation.sandbox()
    local.add_contact(external_id="known-user")
    async with simulation.engine(tmp_path, local) as engine:
        await engine.submit([event("known-user", 1)], api_key=API_KEY)
        await engine.settled()
        [sync] = (await engine.status()).syncs
        assert sync.intercom is not None
        left = sync.intercom.remaining
        assert (sync.retries, left is not None and 0 < left < sync.intercom.limit) == (0, True)
        await engine.submit([event("nobody-here", 1)], api_key=API_KEY)
        await anyio.sleep(3_600)
        [sync] = (await engine.status()).syncs
        tries = [one for one in local.journal if one.path == "/events" and one.status == 404]
        assert sync.retries == len(tries) - 1 > 0
        text = render(await engine.status(), ready=True).decode()
    assert f'amplitude_intercom_retries_total{{sync="simulated"}} {sync.retries}' in text
    assert re.search(r'amplitude_intercom_rate_remaining\{intercom="api.intercom.io#1"\} \d+', text)
