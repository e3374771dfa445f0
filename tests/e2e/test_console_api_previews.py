"""Previews of events and dead letters in the console's API, at a real port."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amplitude_intercom.engine.console.api_v1.event_previews import MOST_EVENTS
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from support import process
from support.console import Console, bury, console

PREVIEW = "/syncs/e2e/preview"


async def previewed(api: Console, body: Any) -> Any:
    said = await api.ask("POST", PREVIEW, body)
    assert said.status == 200, said
    return said.json


def calls(item: Any) -> list[tuple[str, str, Any]]:
    return [
        (one["method"], one["path"], json.loads(one["body"]["text"])) for one in item["requests"]
    ]


def ageless(message: str) -> str:
    """Return a message without the age of an event: the command was asked a second before."""
    return re.sub(r"\b\d+ s before", "some s before", message)


async def test_a_preview_says_what_the_command_prints(tmp_path: Path) -> None:
    events: list[Any] = [
        process.event("mira-okafor", 1, time=1_790_000_000_000),
        process.event("mira-okafor", 2, user_properties={"plan": "pro", "age": 3}),
        process.event("mira-okafor", 3, "$identify", user_properties={"$add": {"plan": 1}}),
        process.event("", 4),
        {"user_id": "mira-okafor"},
        {"event_type": "[Amplitude] x", "user_id": "mira-okafor", "time": "soon"},
        process.event("mira-okafor", 5, event_properties={"n": "x" * 9_000, "amount": [1]}),
        process.event("mira-okafor", 6, time=1_000),
        process.event("mira-okafor", 7, "$groupidentify"),
        [1],
        None,
        7,
        "text",
        {"events": []},
    ]
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    lines = "\n".join(map(json.dumps, events)).encode()
    code, out, err = await process.run("preview", "-", "-c", str(config), stdin=lines)
    assert code == 0, err
    printed = [json.loads(line) for line in out.splitlines()]
    async with console(tmp_path) as api:
        said = await previewed(api, {"events": events})
        assert (said["knows_attributes"], len(said["items"])) == (False, len(events))
        for item, line in zip(said["items"], printed, strict=True):
            assert (item["verdict"], item["reason"]) == (line["verdict"], line["reason"])
            assert ageless(item["message"]) == ageless(line.get("message", ""))
            assert item["adjustments"] == line.get("adjustments", [])
            made = [(one["method"], one["path"], one["body"]) for one in line["requests"]]
            assert calls(item) == made
            assert (item["means"] != "") == (item["verdict"] != "send")
        assert {item["verdict"] for item in said["items"]} == {"send", "drop", "reject"}
        assert await api.audited() == []
        assert (await api.get("/syncs/e2e"))["received"] == 0


async def test_digits_and_the_order_of_keys_are_those_that_would_be_sent(tmp_path: Path) -> None:
    event = (
        b'{"events":[{"user_id":"u","event_type":"Paid","time":1790000000000,'
        b'"event_properties":{"n":9007199254740993,"amount":1.10}}]}'
    )
    async with console(tmp_path) as api:
        said = await api.ask("POST", PREVIEW, data=event)
        (call,) = said.json["items"][0]["requests"]
        assert "9007199254740993" in call["body"]["text"]


async def test_given_settings_are_tried_and_kept_nowhere(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        before = (tmp_path / "settings.toml").read_bytes()
        form = (await api.get("/syncs/e2e/settings"))["settings"]
        form["events"]["select"] = [{"types": ["Other"]}]
        body = {"events": [process.event("mira-okafor", 1)], "settings": form}
        (item,) = (await previewed(api, body))["items"]
        assert (item["verdict"], item["reason"]) == ("drop", "not_selected")
        (item,) = (await previewed(api, {"events": body["events"]}))["items"]
        assert item["verdict"] == "send"
        assert (tmp_path / "settings.toml").read_bytes() == before


async def test_a_filtered_event_says_which_clause_has_not_held(tmp_path: Path) -> None:
    where = [{"property": "event.amount", "op": ">=", "values": [100]}]
    select = [{"types": ["Other"]}, {"types": ["Purchase"], "where": where}]
    small = process.event("mira-okafor", 1, "Purchase", event_properties={"amount": 9})
    none = process.event("mira-okafor", 2, "Purchase", event_properties={})
    large = process.event("mira-okafor", 3, "Purchase", event_properties={"amount": 100})
    async with console(tmp_path, events={"select": select}) as api:
        items = (await previewed(api, {"events": [small, none, large]}))["items"]
        api.access.follow(msgspec.structs.replace(api.access.settings, hide_values=True))
        (hidden,) = (await previewed(api, {"events": [small]}))["items"]
    assert [item["reason"] for item in items] == ["filtered_out", "filtered_out", ""]
    clauses = [item["selectors"][1]["where"][0] for item in [*items, hidden]]
    found = [(["9"], False), ([], False), (["100"], True), (["***"], False)]
    assert [(clause["found"], clause["held"]) for clause in clauses] == found
    assert {clause["property"] for clause in clauses} == {"event.amount"}
    assert [item["selectors"][0]["has_type"] for item in items] == [False] * 3


async def test_the_attributes_of_a_workspace_at_work_are_known(tmp_path: Path) -> None:
    async with console(tmp_path, Sandbox(attributes={"seats": "integer"})) as api:
        identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
        await api.engine.submit([identify], api_key=process.API_KEY)
        await api.engine.settled()
        said = await previewed(api, {"events": [identify]})
        assert said["knows_attributes"]
        assert said["items"][0]["adjustments"] != []


async def test_a_reader_previews_and_does_not_check(tmp_path: Path) -> None:
    top = {
        "admin": {"listen": "127.0.0.1:0", "token": "may-change", "read_token": "may-look"},
    }
    body = {"events": [process.event("mira-okafor", 1)]}
    async with console(tmp_path, top=top) as api:
        reader = "Bearer may-look"
        said = await api.ask("POST", PREVIEW, body, Authorization=reader)
        assert (said.status, said.json["items"][0]["verdict"]) == (200, "send")
        said = await api.ask("POST", "/syncs/e2e/check", {}, Authorization=reader)
        assert said.status == 403
        assert (await api.ask("POST", PREVIEW, body)).status == 401
        assert await api.audited() == []


async def test_hidden_values_are_in_no_preview(tmp_path: Path) -> None:
    secret = "canary-value"
    event = process.event(
        "late-user", 1, time=1_000, user_properties={"plan": secret, "$add": {"plan": secret}}
    )
    async with console(tmp_path) as api:
        await api.engine.submit([event], api_key=process.API_KEY)
        await api.engine.settled()
        (found,) = await api.pages("/syncs/e2e/dead-letters")
        api.access.follow(msgspec.structs.replace(api.access.settings, hide_values=True))
        recent = {**event, "time": 1_790_000_000_000}
        said = await previewed(api, {"events": [recent, {**recent, "$add": 1}]})
        letter = await api.get(f"/syncs/e2e/dead-letters/{found['id']}/preview")
        assert secret not in json.dumps([said, letter])
        assert {one["body"] for item in said["items"] for one in item["requests"]} == {None}


async def test_a_dead_letter_tells_what_its_replay_would_do_now(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        await bury(api.engine, 1)
        (found,) = await api.pages("/syncs/e2e/dead-letters")
        path = f"/syncs/e2e/dead-letters/{found['id']}/preview"
        said = await api.get(path)
        assert (said["verdict"], said["reason"]) == ("reject", "too_old")
        assert said["means"] != ""
        form = (await api.get("/syncs/e2e/settings"))["settings"]
        form["events"]["select"] = [{"types": ["Nothing"]}]
        version = (await api.get("/settings/file"))["version"]
        saved = await api.ask(
            "PUT", "/syncs/e2e/settings", {"settings": form}, If_Match=f'"{version}"'
        )
        assert saved.status == 200
        assert (await api.get(path))["reason"] == "not_selected"
        assert (await api.get("/syncs/e2e"))["dead"] == 1, "nothing was replayed"
        for other in ("0", "x", str(2**63)):
            said = await api.ask("GET", f"/syncs/e2e/dead-letters/{other}/preview")
            assert said.status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"events": {}}, 422),
        ({"events": [{}] * (MOST_EVENTS + 1)}, 422),
        ({"events": [], "x": 1}, 422),
        ({"events": [], "settings": {"name": "another"}}, 409),
        ({"events": [], "settings": {"events": None}}, 422),
        ({"events": []}, 200),
        ({"events": [{}] * MOST_EVENTS}, 200),
    ],
)
async def test_a_preview_has_bounds(tmp_path: Path, body: Any, status: int) -> None:
    async with console(tmp_path) as api:
        assert (await api.ask("POST", PREVIEW, body)).status == status
        assert (await api.ask("POST", "/syncs/nobody/preview", {"events": []})).status == 404


async def test_a_crowd_of_large_previews_keeps_nobody_waiting_for_long(tmp_path: Path) -> None:
    nested = {"n": {"a": ["x" * 100] * 80}, "amount": list(range(1_000))}
    events = [process.event(f"user-{n}", n, event_properties=nested) for n in range(60)]
    async with console(tmp_path) as api:
        crowd = [asyncio.create_task(previewed(api, {"events": events})) for _ in range(12)]
        waited_s = []
        while not all(one.done() for one in crowd):
            began_s = time.monotonic()
            await api.get("/session")
            waited_s.append(time.monotonic() - began_s)
        assert {len((await one)["items"]) for one in crowd} == {len(events)}
        assert max(waited_s) < 2.0
