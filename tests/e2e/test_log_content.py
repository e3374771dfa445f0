"""What became of an event can be found in the log of the real process, by sync and user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process


def found(log: list[dict[str, Any]], event: str, **where: Any) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event and {**line, **where} == line]


async def test_every_settling_is_in_the_log_by_sync_and_user_at_its_level(tmp_path: Path) -> None:
    local = Sandbox(faults=[Fault("status", 400, contains="Poison")])
    local.add_contact(external_id="mira-okafor")
    top = {"log": {"level": "debug"}}
    events = {"select": [{"types": ["Purchase", "Poison"]}]}
    async with serve(local) as url:
        config = process.settings(tmp_path, url, top=top, events=events)
        async with process.daemon(config) as daemon:
            post = f"{daemon.http}/2/httpapi"
            await process.upload(post, [process.event("mira-okafor", 1, "Poison")])
            await daemon.settled()
            await process.upload(
                post,
                [
                    process.event("mira-okafor", 2),
                    process.event("mira-okafor", 3, "Page Viewed"),
                    process.event("mira-okafor", 2),
                ],
            )
            await daemon.settled()
            await process.upload(post, [process.event("nobody-knows", 4)])
            while not (await daemon.status())["parked_users"]:
                pass
        log = daemon.log
    mira, nobody = ({"sync": "e2e", "user": user} for user in ("mira-okafor", "nobody-knows"))
    poison = {**mira, "event_type": "Poison"}
    bought = {**mira, "event_type": "Purchase"}
    assert found(log, "dead letter", level="warning", reason="refused", status=400, **poison)
    assert found(log, "delivered", level="debug", **bought)
    assert found(log, "dropped", level="debug", reason="duplicate", **bought)
    viewed = {**mira, "event_type": "Page Viewed"}
    assert found(log, "dropped", level="debug", reason="not_selected", **viewed)
    assert found(log, "user parked", level="info", reason="user_not_found", **nobody)
    assert found(log, "batch taken in", level="debug", syncs=["e2e"], kept=1)
    assert found(log, "call made", level="debug", call="POST /events", outcome=202, **mira)
    assert found(log, "call made", level="debug", call="POST /events", outcome=404, **nobody)
    [asked] = found(log, "call made", level="debug", call="GET /me")
    assert "user" not in asked  # no user's call
