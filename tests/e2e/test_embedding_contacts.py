"""Contacts in an engine that keeps its spool in threads, as programs embed it: in real time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.engine.config import from_table
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.in_process import InProcess
from amplitude_intercom.transports.sandbox.sandbox import Sandbox

USERS = [f"user-{n:02}" for n in range(40)]


def identify(user: str, n: int, **operations: Any) -> dict[str, Any]:
    return {
        "event_type": "$identify",
        "user_id": user,
        "insert_id": f"{user}-{n}",
        "user_properties": {f"${name}": argument for name, argument in operations.items()},
    }


async def test_a_crowd_is_counted_once_and_an_attribute_that_is_not_there_is_left_out(
    tmp_path: Path,
) -> None:
    """The list of attributes cannot be had, so that refusals teach which are there."""
    no_list = Fault("status", status=403, path="/data_attributes")
    local = Sandbox(access_token="a-token", attributes={"visits": "integer"}, faults=[no_list])
    settings = from_table(
        {
            "data_dir": str(tmp_path),
            "sync": [
                {
                    "name": "production",
                    "amplitude_api_keys": ["a-key"],
                    "intercom": {"access_token": "a-token"},
                    "users": {"properties": ["plan", "visits"]},
                }
            ],
        }
    )
    async with Engine(settings, wire=lambda _: InProcess(local)) as engine:
        for n in range(3):
            crowd = [identify(user, n, set={"plan": f"p{n}"}, add={"visits": 1}) for user in USERS]
            await engine.submit(crowd, sync="production")
            await engine.settled()
        [status] = (await engine.status()).syncs
    found = {c.external_id: c.custom_attributes for c in local.contacts.values()}
    assert found == {user: {"visits": 3} for user in USERS}
    assert (status.dead, status.pending) == (0, 0)
    assert status.adjusted["unknown_attribute"] > 0
