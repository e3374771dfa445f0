"""People of the console's API, at a real port: one by any key, parked ones tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import bury, console

KEYS = [
    "mira-okafor",
    "a/b/c/d",
    "../..",
    ".....",
    "{user}",
    "line\nbreak",
    "%2F%2F",
    "é ü ñ ö",
    "?q=1#x",
]


async def test_a_person_is_found_by_whatever_key_it_has(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        for key in KEYS:
            await bury(api.engine, 1, user=key)
        for key in KEYS:
            path = quote(key, safe="").replace(".", "%2E")
            state = await api.get(f"/syncs/e2e/people/{path}")
            assert (state["user"], sum(state["dead_letters"].values())) == (key, 1), key
        assert (await api.get("/syncs/e2e/people/nobody"))["dead_letters"] == {}
        assert (await api.ask("GET", "/syncs/none/people/mira-okafor")).status == 404


async def test_parked_users_are_tried_again_and_the_audit_knows(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    users = [f"late-{n}" for n in range(3)]
    retry = "/syncs/e2e/parked/retry"
    async with console(tmp_path, local) as api:
        await api.engine.submit([process.event(u, 1) for u in users], api_key=process.API_KEY)
        while len(await api.pages("/syncs/e2e/parked")) < len(users):
            await asyncio.sleep(0)
        for user in users:
            local.add_contact(external_id=user)
        assert (await api.ask("POST", retry, {})).json == {"users": 0}
        said = await api.ask("POST", retry, {"users": users[:1]})
        assert (said.status, said.json) == (200, {"users": 1})
        assert (await api.ask("POST", retry, {"every": True})).json["users"] in (2, 3)
        await api.engine.settled()
        assert len(local.events) == len(users)
        assert [what for _, what in await api.audited()][1] == "1 of e2e"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"everybody": True}, 422),
        ({"users": "late-1"}, 422),
        ({"users": ["late-1"] * 1_001}, 422),
        ({"reason": 1}, 422),
    ],
)
async def test_a_retry_that_cannot_be_meant_is_refused(
    tmp_path: Path, body: dict[str, object], status: int
) -> None:
    async with console(tmp_path) as api:
        said = await api.ask("POST", "/syncs/e2e/parked/retry", body)
        assert said.status == status
        assert (await api.ask("POST", "/syncs/none/parked/retry", {"every": True})).status == 404


async def test_what_is_left_of_a_sync_is_moved_and_dropped(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        for path, body in (
            ("/spool/drop", {"old": "e2e"}),  # it is in the settings
            ("/spool/drop", {"old": "never-there"}),
            ("/spool/move", {"old": "never-there", "new": "e2e"}),
        ):
            assert (await api.ask("POST", path, body)).status == 409, path
        await api.engine.spool.do(lambda store: store.takers.id_for("gone"))
        moved = await api.ask("POST", "/spool/move", {"old": "gone", "new": "e2e"})
        assert (moved.status, moved.json) == (200, {"records": 0})
        dropped = await api.ask("POST", "/spool/drop", {"old": "gone"})
        assert (dropped.status, dropped.json) == (200, {"records": 0})
        actions = [action for action, _ in await api.audited()]
        assert actions == ["left records moved", "left records dropped"]
