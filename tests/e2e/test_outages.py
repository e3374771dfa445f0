"""The scenarios' shortest forms: the real process, real sockets, an Intercom that is not well."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

USERS = [f"user-{n:02}" for n in range(12)]
OUTAGES = {
    "500": [Fault("status", 500, end_s=2.5)],
    "502 with HTML": [Fault("html", 502, end_s=2.5)],
    "refused": [Fault("refuse", end_s=2.5)],
    "reset": [Fault("reset", end_s=2.5)],
    "half answers": [Fault("half", end_s=2.5)],
    "hanging answers": [Fault("hang", end_s=2.5)],
    "429": [Fault("status", 429, share=0.3, end_s=2.5)],
    "revoked token": [Fault("status", 401, end_s=2.5)],
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_an_outage_loses_nothing_and_deliveries_resume_by_themselves(
    name: str, tmp_path: Path
) -> None:
    local = Sandbox(faults=OUTAGES[name], limit_per_minute=6_000)
    for user in USERS:
        local.add_contact(external_id=user)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, intercom=_intercom(url))
        async with process.daemon(config) as daemon:
            for n in range(5):
                events = [process.event(user, n) for user in USERS]
                status, _ = await process.upload(f"{daemon.http}/2/httpapi", events)
                assert status == 200
            settled = await daemon.settled()
    assert (settled["delivered"], settled["dead"]) == (60, 0)
    taken: dict[str, list[int]] = {user: [] for user in USERS}
    for stored in local.events:
        taken[str(local.contacts[stored.contact_id].external_id)].append(stored.metadata["n"])
    assert all(order == list(range(5)) for order in taken.values())


def _intercom(url: str) -> dict[str, object]:
    return {"access_token": process.TOKEN, "base_url": url, "timeout_s": 1.0}


async def test_a_poison_event_ends_as_a_dead_letter_and_can_be_replayed_when_it_is_mended(
    tmp_path: Path,
) -> None:
    local = Sandbox(faults=[Fault("status", 500, contains='"n":3}')])
    for user in USERS:
        local.add_contact(external_id=user)
    delivery = {"retry_attempts": 3, "retry_window_s": 1.5}
    async with serve(local) as url:
        config = process.settings(tmp_path, url, delivery=delivery)
        async with process.daemon(config) as daemon:
            events = [process.event(USERS[n % 12], n) for n in range(48)]
            await process.upload(f"{daemon.http}/2/httpapi", events)
            sent = 48
            while not (await daemon.status())["dead"]:  # that others go on proves whose fault it is
                more = [process.event(USERS[sent % 3], sent)]
                await process.upload(f"{daemon.http}/2/httpapi", more)
                sent += 1
            settled = await daemon.settled()
            assert settled["dead_by_reason"] == {"user_failing": 1}
            assert len(local.events) == sent - 1
            local.faults.clear()
        code, out, _ = await process.run("dead-letters", "replay", "-c", str(config), "--json")
        assert (code, msgspec.json.decode(out)["counts"]) == (0, {"replayed": 1})
        code, _, _ = await process.run("forward", "-c", str(config), "--max-wait", "60")
        assert code == 0
    assert sorted(e.metadata["n"] for e in local.events) == list(range(sent))
