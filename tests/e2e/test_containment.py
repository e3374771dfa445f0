"""Poisonous values through the real process: each costs itself, in crowds and after restarts."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

WELL = [f"well-user-{n}" for n in range(20)]
CROWD = [f"poison-user-{n}" for n in range(20)]
HUGE = "9" * 321
HUGER = "7" * 4_300

USERS: dict[str, Any] = {
    "properties": ["signed_up_at", "renewed_at", "visits", "plan", "tags", "seats"],
    "trigger": "any_update",
}


def poison(user: str, n: int) -> str:
    """Return the JSON of an identify in which every selected property is hostile."""
    properties = [
        f'"$set": {{"signed_up_at": {HUGE}, "renewed_at": {HUGE}, "plan": "\\u0000\\u001b[2J"}}',
        f'"$add": {{"visits": {HUGER}}}',
        f'"$append": {{"tags": {"[" * 30}1{"]" * 30}}}',
        f'"$setOnce": {{"seats": {HUGER}}}',
    ]
    event = {"user_id": user, "event_type": "$identify", "insert_id": f"{user}-{n}"}
    return f'{json.dumps(event)[:-1]}, "user_properties": {{{", ".join(properties)}}}}}'


def body(*events: str) -> bytes:
    return f'{{"api_key": "{process.API_KEY}", "events": [{", ".join(events)}]}}'.encode()


async def test_values_beyond_any_range_end_neither_the_process_nor_other_users_events(
    tmp_path: Path,
) -> None:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    for user in [*WELL, *CROWD]:
        local.add_contact(external_id=user)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, users=USERS)
        async with process.daemon(config) as daemon:
            for n in range(2):
                mixed = [
                    event
                    for well, bad in zip(WELL, CROWD, strict=True)
                    for event in (json.dumps(process.event(well, n)), poison(bad, n))
                ]
                status, answer = await process.post(f"{daemon.http}/2/httpapi", body(*mixed))
                assert (status, answer["code"]) == (200, 200)
            await daemon.settled()
        async with process.daemon(config) as daemon:  # and again, with all that is remembered
            status, _ = await process.post(f"{daemon.http}/2/httpapi", body(poison(CROWD[0], 9)))
            assert status == 200
            after = await daemon.settled()
            assert not [line for line in daemon.log if line["level"] == "error"]
    assert after["dead_by_reason"].get("internal", 0) == 0
    assert after["stopped"] == ""
    assert len(local.events) == 2 * len(WELL)


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("unknown_user", ["park", "drop", "dead_letter", "create"])
async def test_pages_of_a_proxy_are_an_outage_and_no_verdict(
    tmp_path: Path, status: int, unknown_user: str
) -> None:
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    for user in WELL:
        local.add_contact(external_id=user)
    local.faults.append(Fault("html", status=status))
    async with serve(local) as url:
        events = {"select": [{"types": ["*"]}], "metadata": ["n"], "unknown_user": unknown_user}
        config = process.settings(tmp_path, url, events=events)
        async with process.daemon(config) as daemon:
            sent = [process.event(user, 1) for user in WELL]
            assert (await process.upload(f"{daemon.http}/2/httpapi", sent))[0] == 200
            while not any("does not answer" in line["event"] for line in daemon.log):
                await process.moment(0.05)
            before = await daemon.status()
            local.faults.clear()
            after = await daemon.settled()
            begun = [line for line in daemon.log if "does not answer" in line["event"]]
            ended = [line for line in daemon.log if "answers again" in line["event"]]
    assert (before["delivered"], before["dead"], before["pending"]) == (0, 0, len(WELL))
    assert (after["delivered"], after["dead"], after["dropped"]) == (len(WELL), 0, {})
    assert (len(begun), len(ended)) == (1, 1)
    assert "not Intercom's" in begun[0]["cause"]
    assert "e2e" in begun[0]["intercom"]


async def test_a_killed_daemon_starts_again_with_its_backlog(tmp_path: Path) -> None:
    """A record that ended the process would end it again at each start."""
    local = Sandbox(open_attributes=True, limit_per_minute=6_000_000)
    async with serve(local) as url:
        config = process.settings(tmp_path, url, users=USERS)
        daemon = await process.start(config)
        sent = body(*(poison(user, 1) for user in CROWD))
        assert (await process.post(f"{daemon.http}/2/httpapi", sent))[0] == 200
        await daemon.end(signal.SIGKILL)
        async with process.daemon(config) as second:
            after = await second.settled()
    assert after["received"] == len(CROWD)
    assert after["dead_by_reason"].get("internal", 0) == 0
