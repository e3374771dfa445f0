"""Changes of workspaces in the console's API, at a real port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import Console, console


async def at_work(api: Console, *event_types: str, first: int = 2) -> str:
    """Have events be delivered; return the path of the workspace."""
    identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
    events = [process.event("mira-okafor", n, name) for n, name in enumerate(event_types, first)]
    await api.engine.submit([identify, *events], api_key=process.API_KEY)
    await api.engine.settled()
    (workspace,) = await api.pages("/workspaces")
    return f"/workspaces/{workspace['id']}"


def creations(local: Sandbox) -> list[Any]:
    made = [entry for entry in local.journal if entry.path == "/data_attributes"]
    return [json.loads(entry.body or b"null") for entry in made if entry.method == "POST"]


async def test_an_attribute_is_created_once_and_known_at_once(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = await at_work(api)
        body = {"name": "Größe €", "data_type": "float"}
        said = await api.ask("POST", f"{path}/attributes", body)
        assert (said.status, said.headers["Location"]) == (201, f"/api/v1{path}/attributes")
        assert said.json == {**body, "options": [], "used_by": []}
        assert creations(local) == [{**body, "model": "contact"}]
        listed = await api.get(f"{path}/attributes")
        assert [one["name"] for one in listed["items"]] == ["Größe €", "plan"]
        assert (await api.ask("POST", f"{path}/attributes", body)).status == 409
        assert len(creations(local)) == 1, "what is known to be there costs no call"
        name = path.rpartition("/")[2]
        assert await api.audited() == [("attribute created", f"Größe € (float) in {name}")]


async def test_of_a_crowd_that_creates_one_attribute_one_does(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = await at_work(api)
        body = {"name": "seats", "data_type": "integer"}
        said = await asyncio.gather(
            *(api.ask("POST", f"{path}/attributes", body) for _ in range(8))
        )
        assert sorted(one.status for one in said) == [201, *[409] * 7]
        assert len(await api.audited()) == 1


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (Fault("status", 503, path="/data_attributes"), 503, "whether it was created is not known"),
        (Fault("reset", path="/data_attributes"), 503, "whether it was created is not known"),
        (Fault("status", 403, path="/data_attributes"), 409, "Intercom answers 403"),
        (Fault("status", 429, path="/data_attributes"), 503, "answered 429"),
        (Fault("html", path="/data_attributes"), 503, "whether it was created is not known"),
    ],
)
async def test_an_attribute_that_is_not_created_is_refused_in_words(
    tmp_path: Path, fault: Fault, status: int, said: str
) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = await at_work(api)
        local.faults.append(fault)
        body = {"name": "seats", "data_type": "integer"}
        answer = await api.ask("POST", f"{path}/attributes", body)
        assert (answer.status, said in answer.json["detail"]) == (status, True), answer
        assert await api.audited() == []


async def test_hostile_attributes_and_names_are_refused(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = await at_work(api)
        bodies: list[tuple[Any, int]] = [
            ({"name": "a.b$c", "data_type": "string"}, 422),
            ({"name": "", "data_type": "string"}, 422),
            ({"name": "x" * 191, "data_type": "string"}, 422),
            ({"name": "x", "data_type": "datetime"}, 422),
            ({"name": "email", "data_type": "string"}, 409),
            ({"name": "plan", "data_type": "string"}, 409),
            ({}, 422),
        ]
        for body, status in bodies:
            said = await api.ask("POST", f"{path}/attributes", body)
            assert said.status == status, said
        assert (await api.ask("POST", "/workspaces/none/attributes", bodies[0][0])).status == 404
        assert local.token_revoked is False
        for name in ("never sent", "%00", "..", "{x}", "x" * 5_000):
            said = await api.ask("DELETE", f"{path}/event-names/{quote(name, safe='%')}")
            assert said.status == 404, name
        assert (await api.ask("DELETE", "/workspaces/none/event-names/x")).status == 404
        assert await api.audited() == []


async def test_a_forgotten_event_name_counts_no_more_until_it_is_sent_again(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = await at_work(api, "Signed Up", "50%/{x} a?b#c", "Paid")
        names = [one["name"] for one in await api.pages(f"{path}/event-names")]
        assert len(names) == 3
        for count, name in ((2, "SIGNED UP"), (1, next(one for one in names if "50" in one))):
            said = await api.ask("DELETE", f"{path}/event-names/{quote(name, safe='')}")
            assert (said.status, said.json["name"]) == (200, name.lower()), said
            assert (said.json["count"], said.json["limit"]) == (count, 120)
            assert "Intercom itself counts" in said.json["means"]
            assert (
                await api.ask("DELETE", f"{path}/event-names/{quote(name, safe='')}")
            ).status == 404
        assert [one["name"] for one in await api.pages(f"{path}/event-names")] == ["paid"]
        await at_work(api, "Signed Up", first=9)
        names = [one["name"] for one in await api.pages(f"{path}/event-names")]
        assert names == ["paid", "signed up"]
        assert [action for action, _ in await api.audited()] == ["event name forgotten"] * 2
