"""Crowds that fail, in their shortest forms: the real process, real sockets."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

WELL = [f"well-{n:02}" for n in range(20)]
POISON = [f"poison-{n:02}" for n in range(30)]
IN_TIME_S = 60.0

FAULTS = {
    "500": Fault("status", 500, contains="poison"),
    "403": Fault("status", 403, contains="poison"),
    "HTML 200": Fault("html", 200, contains="poison"),
    "HTML 404": Fault("html", 404, contains="poison"),
    "reset": Fault("reset", contains="poison", done=False),
    "hang": Fault("hang", contains="poison", done=False),
}


def workspace(*faults: Fault) -> Sandbox:
    local = Sandbox(faults=list(faults), open_attributes=True)
    for user in (*WELL, *POISON):
        local.add_contact(external_id=user)
    return local


def intercom(url: str) -> dict[str, object]:
    return {"access_token": process.TOKEN, "base_url": url, "timeout_s": 2.0}


@pytest.mark.parametrize("name", FAULTS)
async def test_thirty_poison_users_delay_nobody_and_lose_nothing(name: str, tmp_path: Path) -> None:
    local = workspace(FAULTS[name])
    async with serve(local) as url:
        config = process.settings(tmp_path, url, intercom=intercom(url))
        async with process.daemon(config) as daemon:
            await process.upload(
                f"{daemon.http}/2/httpapi", [process.event(user, 0) for user in POISON]
            )
            with anyio.fail_after(IN_TIME_S):
                for n in range(1, 6):
                    await process.upload(
                        f"{daemon.http}/2/httpapi", [process.event(user, n) for user in WELL]
                    )
                while (status := await daemon.status())["delivered"] < 5 * len(WELL):
                    await process.moment(0.05)
            assert (status["dead"], status["pending"]) == (0, len(POISON))
            local.faults.clear()
            settled = await daemon.settled()
    assert (settled["delivered"], settled["dead"]) == (5 * len(WELL) + len(POISON), 0)


async def test_an_endpoint_that_is_out_keeps_no_other_from_going_on(tmp_path: Path) -> None:
    local = workspace(Fault("status", 503, path="/events"))
    async with serve(local) as url:
        config = process.settings(
            tmp_path, url, intercom=intercom(url), users={"properties": ["plan"]}
        )
        async with process.daemon(config) as daemon:
            await process.upload(
                f"{daemon.http}/2/httpapi", [process.event(user, 0) for user in POISON]
            )
            identifies = [
                process.event(user, 1, "$identify", user_properties={"$set": {"plan": "pro"}})
                for user in WELL
            ]
            await process.upload(f"{daemon.http}/2/httpapi", identifies)
            with anyio.fail_after(IN_TIME_S):
                while sum("plan" in c.custom_attributes for c in local.contacts.values()) < 20:
                    await process.moment(0.05)
            local.faults.clear()
            settled = await daemon.settled()
    assert (settled["delivered"], settled["dead"]) == (len(WELL) + len(POISON), 0)
