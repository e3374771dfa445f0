"""What the mapping makes of any event, Intercom takes; and ``preview`` says it beforehand."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.delivery.workspace_attributes import KnownAttributes, Listed
from amplitude_intercom.engine.previewing import Preview
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import simulation
from support.events import ATTRIBUTES, STYLES, random_event, sync_table
from support.virtual import in_virtual_time

IGNORED = ("name", "amplitude_api_keys", "intercom")


def settings(style: dict[str, Any]) -> dict[str, Any]:
    table = sync_table("external_id", style, limit=10)
    table["events"]["unknown_user"] = "drop"
    # An owner has to be a teammate: that no mapping can know.
    users = table["users"]
    users["properties"] = [p for p in users["properties"] if "owner_id" not in p]
    return {key: value for key, value in table.items() if key not in IGNORED}


def workspace() -> Sandbox:
    attributes = ATTRIBUTES | {"currency": "string"}
    return simulation.sandbox(
        open_attributes=False,
        attributes=attributes,
        limit_per_minute=1_000_000,
    )


@in_virtual_time
async def test_ten_thousand_events_of_any_shape_are_taken_without_one_refusal(
    tmp_path: Path,
) -> None:
    dice = random.Random(1)

    local = workspace()
    users = [f"user-{n}" for n in range(500)]
    for user in users:
        local.add_contact(external_id=user)
    async with simulation.engine(tmp_path, local, **settings(STYLES[0])) as engine:
        for start in range(0, 10_000, 500):
            some = [random_event(dice, users[n % 500], n) for n in range(start, start + 500)]
            await engine.submit(some, api_key=simulation.API_KEY)
            await engine.settled()
        [status] = (await engine.status()).syncs
    assert [e for e in local.journal if e.status not in (200, 202, 409)] == []
    assert len(local.events) > 7_000
    assert (status.received, status.dead) == (10_000, 0)
    assert {"text_cut", "flattened", "array_joined", "type_mismatch"} <= status.adjusted.keys()


@pytest.mark.parametrize("style", STYLES)
@in_virtual_time
async def test_preview_shows_the_requests_that_are_made(
    tmp_path: Path, style: dict[str, Any]
) -> None:
    dice = random.Random(str(style))
    events = {f"user-{n}": random_event(dice, f"user-{n}", n) for n in range(200)}

    local = workspace()
    async with simulation.engine(tmp_path, local, **settings(style)) as engine:
        await engine.submit(list(events.values()), api_key=simulation.API_KEY)
        await engine.settled()
    listed = [Listed(n, t["data_type"], custom=True) for n, t in local.attributes.items()]
    table = {"name": "a", "intercom": {"access_token": "t"}, **settings(style)}
    preview = Preview(from_table({"sync": [table]}).sync[0], KnownAttributes(listed))
    made: dict[str, list[Any]] = defaultdict(list)
    for entry in simulation.made(local):
        body = json.loads(entry.body)
        made[body.get("user_id") or body.get("external_id")].append((entry.path, body))
    for user, event in events.items():
        shown = preview.of(event)
        assert shown.verdict == "send"
        foretold = [(r.path, json.loads(r.body or b"null")) for r in shown.requests]
        assert made[user] == foretold
