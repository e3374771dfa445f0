"""Checks of syncs in the console's API, at a real port."""

from __future__ import annotations

import asyncio
import json
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process
from support.console import Console, console, opened

CHECK = "/syncs/e2e/check"


async def checked(api: Console, path: str = CHECK, body: Any = None) -> Any:
    said = await api.ask("POST", path, body)
    assert said.status == 200, said
    assert process.TOKEN not in json.dumps(said.json)
    return said.json


def errors(report: Any) -> list[tuple[str, str]]:
    return [(one["key"], one["text"]) for one in report["findings"] if one["level"] == "error"]


def asked(local: Sandbox) -> list[str]:
    """Return the calls that ask a workspace for itself."""
    calls = [f"{entry.method} {entry.path}" for entry in local.journal]
    return [call for call in calls if call in ("GET /me", "GET /data_attributes?model=contact")]


async def delivered(api: Console) -> None:
    """Have the workspace be asked for, and an event sent."""
    identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
    await api.engine.submit([identify], api_key=process.API_KEY)
    await api.engine.settled()


async def test_a_check_tells_findings_and_the_workspace(tmp_path: Path) -> None:
    local = Sandbox(attributes={"seats": "integer"})
    async with console(tmp_path, local) as api:
        report = await checked(api)
        (workspace,) = await api.pages("/workspaces")
        assert (report["sync"], report["ok"]) == ("e2e", False)
        assert errors(report) == [
            ("sync[0].users.properties[0]", "the workspace has no attribute `plan`")
        ]
        assert ("sync[0].intercom.access_token", "warning") in {
            (one["key"], one["level"]) for one in report["findings"]
        }
        assert (report["workspace"]["id"], report["workspace"]["attributes"]) == (
            workspace["id"],
            1,
        )
        assert report["workspace"]["code"] != ""
        form = (await api.get("/syncs/e2e/settings"))["settings"]
        form["users"]["properties"] = ["seats"]
        given = await checked(api, CHECK, {"settings": form})
        assert (given["ok"], errors(given)) == (True, [])
        assert await api.audited() == [("sync checked", "e2e")] * 2


async def test_a_crowd_that_checks_costs_two_calls_of_the_allowance(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with console(tmp_path, local) as api:
        await delivered(api)
        before = len(asked(local))
        reports = await asyncio.gather(*(checked(api) for _ in range(30)))
        assert {report["workspace"]["code"] for report in reports} == {
            reports[0]["workspace"]["code"]
        }
        assert len(asked(local)) - before == 2
        (workspace,) = await api.pages("/workspaces")
        assert (await api.get(f"/workspaces/{workspace['id']}/budget"))["sent"] == len(
            local.journal
        )


async def test_two_syncs_of_one_token_are_one_question(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    path = process.settings(tmp_path, "http://127.0.0.1:9")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    other = {**table["sync"][0], "name": "other", "users": {"properties": ["seats"]}}
    table["sync"].append(other)
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    async with opened(path, local) as api:
        await delivered(api)
        before = len(asked(local))
        first, second = await asyncio.gather(checked(api), checked(api, "/syncs/other/check"))
        assert len(asked(local)) - before == 2
        assert errors(first) == []
        assert errors(second) == [
            ("sync[1].users.properties[0]", "the workspace has no attribute `seats`")
        ]
        shared = [one for one in first["findings"] if one["key"] == "sync"]
        assert len(shared) == 1
        assert "sent twice" in shared[0]["text"]


async def test_an_outage_is_a_finding(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        local.faults.append(Fault("status", 503, path="/me"))
        [(key, text)] = errors(await checked(api))
        assert (key, text) == (
            "sync[0].intercom",
            "http://127.0.0.1:9 does not answer: 503: Sorry, the API service is temporarily"
            " unavailable",
        )
        assert errors(await checked(api)) == [(key, text)], "what was heard counts for a while"


async def test_a_revoked_token_is_named_and_stands_for_all_checks(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"}, access_token=process.TOKEN)
    async with console(tmp_path, local) as api:
        local.token_revoked = True
        reports = await asyncio.gather(*(checked(api) for _ in range(5)))
        for report in reports:
            [(key, text)] = errors(report)
            assert key == "sync[0].intercom.access_token"
            assert text.startswith("Intercom answers 401: ")
            assert report["workspace"] is None
        (workspace,) = await api.pages("/workspaces")
        assert workspace["gate"]["health"] == "unauthorized"


async def test_a_token_that_is_not_at_work_has_a_client_of_its_own(tmp_path: Path) -> None:
    at_work, other = Sandbox(open_attributes=True), Sandbox(attributes={"plan": "string"})
    async with serve(other) as url:
        path = process.settings(tmp_path, url, enabled=False)
        async with opened(path, at_work) as api:
            report = await checked(api)
            assert (errors(report), report["workspace"]["id"]) == ([], None)
            assert asked(other) == ["GET /me", "GET /data_attributes?model=contact"]
            assert at_work.journal == []
            form = (await api.get("/syncs/e2e/settings"))["settings"]
            form["intercom"]["access_token"] = "typed-token"
            report = await checked(api, CHECK, {"settings": form})
            assert (errors(report), len(asked(other))) == ([], 4)
            assert "typed-token" not in json.dumps(report)
            assert not [one for one in report["findings"] if "spelled out" in one["text"]]
            new = {"intercom": {"access_token": "typed-token", "base_url": url}}
            report = await checked(api, "/syncs/new/check", {"settings": new})
            assert report["sync"] == "new"
            assert "sync[1].events.select" in {one["key"] for one in report["findings"]}


async def test_no_address_of_a_visitors_choice_is_asked(tmp_path: Path) -> None:
    stranger = Sandbox()
    async with serve(stranger) as url, console(tmp_path) as api:
        new = {"intercom": {"access_token": "typed-token", "base_url": url}}
        report = await checked(api, "/syncs/new/check", {"settings": new})
        found = {(one["key"], one["text"]) for one in report["findings"]}
        assert (
            "sync[1].intercom.base_url",
            "this address is not asked before the settings with it are saved",
        ) in found
        assert stranger.journal == []
        form = (await api.get("/syncs/e2e/settings"))["settings"]
        form["intercom"]["base_url"] = url
        said = await api.ask("POST", CHECK, {"settings": form})
        assert (said.status, said.pointers) == (422, ["/sync/0/intercom/access_token"])


async def test_a_check_during_reloads_is_answered(tmp_path: Path) -> None:
    local = Sandbox(attributes={"plan": "string"})
    async with console(tmp_path, local) as api:
        path = tmp_path / "settings.toml"
        text = path.read_text(encoding="utf-8")
        for number in range(6):
            path.write_text(
                text.replace(
                    'name = "e2e"', f'name = "e2e"\nenabled = {"true" if number % 2 else "false"}'
                ),
                encoding="utf-8",
            )
            reloaded, report = await asyncio.gather(
                api.ask("POST", "/settings/reload"), checked(api)
            )
            assert reloaded.status == 200
            assert report["sync"] == "e2e"


async def test_a_check_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    async with console(tmp_path) as api:
        form = (await api.get("/syncs/e2e/settings"))["settings"]
        hostile: list[tuple[str, Any, int]] = [
            ("/syncs/nobody/check", {}, 404),
            (CHECK, {"settings": {"name": "another"}}, 409),
            (CHECK, {"settings": None, "x": 1}, 422),
            (CHECK, {"settings": {**form, "events": {"select": None}}}, 422),
            (CHECK, {"settings": {**form, "nothing": 1}}, 422),
            (CHECK, {"settings": []}, 422),
        ]
        for path, body, status in hostile:
            said = await api.ask("POST", path, body)
            assert said.status == status, (body, said)
        wrong = {**form, "intercom": {**form["intercom"], "access_token": "a\r\nb: c"}}
        said = await api.ask("POST", CHECK, {"settings": wrong})
        assert said.status == 422, said
        assert "b: c" not in json.dumps(said.json)
        (tmp_path / "settings.toml").write_text("not toml", encoding="utf-8")
        assert (await api.ask("POST", CHECK)).status == 422
