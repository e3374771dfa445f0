"""``check`` and ``preview --live`` ask the workspace, and say what will not work."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from amplitude_intercom.engine.config import from_table
from amplitude_intercom.engine.findings.workspace_findings import token_findings
from amplitude_intercom.transports.intercom import Answer
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process

EVENT = json.dumps(process.event("mira-okafor", 1)).encode()


async def check(config: Path, *more: str, stdin: bytes = b"") -> tuple[int, list[tuple[str, str]]]:
    code, out, err = await process.run("check", "-c", str(config), "--json", *more, stdin=stdin)
    assert out, err
    [sync] = json.loads(out)["syncs"]
    assert json.loads(out)["ok"] is (code == 0)
    return code, [(finding["level"], finding["text"]) for finding in sync["findings"]]


async def test_settings_that_fit_their_workspace_are_good(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"}, access_token=process.TOKEN)
    select = {"select": [{"types": ["Purchase"]}]}
    (tmp_path / "token").write_text(process.TOKEN, "utf-8")
    event = process.event("mira-okafor", 1, user_properties={"plan": "pro", "email": "m@x.example"})
    async with serve(local) as url:
        token = {"access_token": "file:token"}
        config = process.settings(tmp_path, url, events=select, intercom_more=token)
        assert await check(config, "-", stdin=json.dumps(event).encode()) == (0, [])
        code, out, _ = await process.run("check", "-c", str(config))
    assert (code, out.splitlines()[-1]) == (0, "the settings are good")
    assert {entry.method for entry in local.journal} == {"GET"}


async def test_what_is_written_twice_or_openly_is_a_warning(tmp_path: Path) -> None:
    config = process.settings(
        tmp_path, "http://127.0.0.1:9", intercom_more={"region": "us"}, events={"metadata": []}
    )
    code, out, err = await process.run("check", "-c", str(config), "--offline")
    assert code == 0, err
    assert "warning: sync[0].intercom.access_token: it is spelled out" in out
    assert "warning: sync[0].intercom.region: `base_url` is used instead" in out
    assert process.TOKEN not in out


async def test_settings_from_a_pipe_are_checked_as_those_of_a_file(tmp_path: Path) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9", intercom_more={"region": "us"})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = asyncio.create_task(asyncio.to_thread(pipe.write_bytes, config.read_bytes()))
    code, out, err = await process.run("check", "-c", str(pipe), "--offline")
    await writing
    assert code == 0, err
    assert "warning: sync[0].intercom.region: `base_url` is used instead" in out


async def test_attributes_that_the_workspace_lacks_are_named(tmp_path: Path) -> None:
    local = Sandbox(attributes={"Plan": "string"})
    async with serve(local) as url:
        code, found = await check(process.settings(tmp_path, url))
        assert code == 1
        assert ("error", "the workspace has no attribute `plan`; there is `Plan`") in found
        users = {"properties": ["plan"], "create_missing_attributes": True}
        code, found = await check(process.settings(tmp_path, url, users=users))
    assert (code, found[-1]) == (0, ("warning", "`plan` does not exist and will be created"))


async def test_a_token_that_is_wrong_and_an_intercom_that_is_away_are_named(tmp_path: Path) -> None:
    local = Sandbox(access_token="another-token")
    async with serve(local) as url:
        code, found = await check(process.settings(tmp_path, url))
    assert code == 1
    assert ("error", "Intercom answers 401: Access Token Invalid") in found
    code, found = await check(process.settings(tmp_path, url))
    assert code == 1
    assert found[-1][1].startswith(f"{url} does not answer: nothing listens there")
    code, found = await check(process.settings(tmp_path, url), "--offline")
    assert code == 0


async def test_a_sample_shows_the_effect_of_the_settings_on_real_events(tmp_path: Path) -> None:
    lines = [
        EVENT,
        json.dumps({"event_type": "Purchase", "device_id": "device-1"}).encode(),
        json.dumps(process.event("mira-okafor", 2, event_properties={"n": "x" * 300})).encode(),
        b"not json",
    ]
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    code, found = await check(config, "--offline", "-", stdin=b"\n".join(lines))
    texts = {text for _, text in found}
    assert code == 0
    assert "1 of 4 events of the sample have no `user_id`: they are dropped" in texts
    dead = (
        "1 of 4 events of the sample would be dead letters: invalid_json (a line that is not JSON"
    )
    assert any(text.startswith(dead) for text in texts)
    assert "metadata.n: cut from 300 to 255 characters (1×)" in texts
    by_email = process.settings(tmp_path, "http://127.0.0.1:9", mapping={"from": "user.email"})
    code, found = await check(by_email, "--offline", "-", stdin=EVENT)
    assert code == 1
    assert (
        "error",
        "none of 1 events of the sample has a `user.email` to find a contact by",
    ) in found


@pytest.mark.parametrize(("region", "findings"), [("US", 0), ("EU", 1)])
def test_a_token_of_another_region_is_named(region: str, findings: int) -> None:
    table: dict[str, Any] = {"name": "a", "intercom": {"access_token": "t", "region": "us"}}
    [sync] = from_table({"sync": [table]}).sync
    body = json.dumps({"app": {"region": region}}).encode()
    found = list(token_findings(sync, Answer(200, {}, body)))
    assert [f.text for f in found] == ["`us`, but the workspace is in `eu`"][:findings]


async def test_a_mistaken_selection_is_pointed_out(tmp_path: Path) -> None:
    where = [{"property": "amount", "op": ">=", "values": [100]}]
    select = {"select": [{"types": ["Purchase"], "where": where}]}
    config = process.settings(tmp_path, "http://127.0.0.1:9", events=select)
    _, found = await check(config, "--offline", "-", stdin=EVENT)
    texts = [text for _, text in found]
    asked = "`amount` is no field of an event itself; is it `event.amount` or `user.amount`?"
    assert asked in texts
    assert "1 of 1 events of the sample are dropped: filtered_out: `Purchase` 1×" in texts


async def test_preview_asks_for_the_attributes_only_where_it_is_told_to(tmp_path: Path) -> None:
    local = Sandbox(attributes={"email": "string"})
    identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
    async with serve(local) as url:
        config = process.settings(tmp_path, url)
        line = json.dumps(identify).encode()
        for more, custom in (((), {"plan": "pro"}), (("--live",), None)):
            arguments = ("preview", "-c", str(config), *more, "-")
            _, out, _ = await process.run(*arguments, stdin=b"\n" + line)
            shown = json.loads(out)
            assert (shown["line"], shown["verdict"]) == (2, "send")
            assert shown["requests"][0]["body"].get("custom_attributes") == custom
    left_out = "custom_attributes.plan: left out, the workspace has no such attribute"
    assert shown["adjustments"] == [left_out]
    assert local.calls == 1
    code, _, err = await process.run(*arguments, stdin=line)
    assert (code, "Intercom does not answer" in err) == (1, True)
