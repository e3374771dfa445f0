"""The admin port of the real process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import aiohttp
from yarl import URL

from amplitude_intercom.engine.metrics import PREFIX
from amplitude_intercom.transports.sandbox.sandbox import Sandbox
from amplitude_intercom.transports.sandbox.server import serve
from support import process


async def test_health_readiness_metrics_and_status_tell_the_same_story(tmp_path: Path) -> None:
    local = Sandbox(open_attributes=True)
    async with (
        serve(local) as url,
        process.daemon(process.settings(tmp_path, url)) as daemon,
        aiohttp.ClientSession(daemon.admin) as session,
    ):
        identify = process.event("mira-okafor", 1, "$identify", user_properties={"plan": "pro"})
        events = [identify, *(process.event("mira-okafor", n) for n in range(2, 6))]
        await process.upload(f"{daemon.http}/2/httpapi", [*events, events[-1]])
        status = await daemon.settled()
        async with session.get("/healthz") as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")
        async with session.get("/readyz") as answer:
            assert (answer.status, (await answer.json())["ready"]) == (200, True)
        async with session.get("/metrics") as answer:
            metrics = await answer.text()
    assert (status["received"], status["delivered"], status["dropped"]) == (6, 5, {"duplicate": 1})
    assert f'{PREFIX}events_delivered_total{{sync="e2e"}} 5.0' in metrics
    accepted = 'door="/2/httpapi",status="200"} 1.0'
    assert f'{PREFIX}http_requests_total{{source="http",{accepted}' in metrics
    assert f'{PREFIX}http_request_seconds_count{{source="http"}} 1\n' in metrics
    assert f'{PREFIX}http_held_bytes{{source="http"}} 0.0\n' in metrics
    assert f'{PREFIX}loop_lag_seconds_bucket{{le="+Inf"}} ' in metrics
    dropped = f'{PREFIX}events_dropped_total{{reason="duplicate",sync="e2e"}} 1.0'
    assert dropped in re.sub(r'{sync="e2e",reason="(\w+)"}', r'{reason="\1",sync="e2e"}', metrics)


async def test_commands_ask_the_daemon_while_it_holds_the_spools(tmp_path: Path) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9", events={"enabled": False})
    async with process.daemon(config) as daemon:
        await process.upload(f"{daemon.http}/2/httpapi", [process.event("mira-okafor", 1)])
        port = daemon.admin.rpartition(":")[2]
        text = config.read_text(encoding="utf-8")
        config.write_text(
            text.replace(
                '[admin]\nlisten = "127.0.0.1:0"', f'[admin]\nlisten = "127.0.0.1:{port}"'
            ),
            encoding="utf-8",
        )
        code, out, err = await process.run("status", "-c", str(config), "--json")
        assert code == 0, err
        assert json.loads(out)["syncs"][0]["dropped"] == {"events_disabled": 1}
        code, out, _ = await process.run("dead-letters", "list", "-c", str(config), "--json")
        assert (code, json.loads(out)) == (0, [])
        code, out, _ = await process.run("dead-letters", "replay", "-c", str(config), "--json")
        assert (code, json.loads(out)["counts"]) == (0, {})


async def test_a_token_guards_everything_but_health(tmp_path: Path) -> None:
    top = {"admin": {"listen": "127.0.0.1:0", "token": "admin-secret"}}
    config = process.settings(tmp_path, "http://127.0.0.1:9", top=top)
    async with (
        process.daemon(config) as daemon,
        aiohttp.ClientSession(daemon.admin) as session,
    ):
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        async with session.get("/api/status") as answer:
            assert answer.status == 401
        headers = {"Authorization": "Bearer admin-secret"}
        async with session.get("/api/status", headers=headers) as answer:
            assert answer.status == 200


async def test_without_a_token_other_host_names_and_plain_forms_are_refused(
    tmp_path: Path,
) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    async with (
        process.daemon(config) as daemon,
        aiohttp.ClientSession(daemon.admin) as session,
    ):
        async with session.get("/api/status", headers={"Host": "evil.example.com"}) as answer:
            assert answer.status == 403
        async with session.post("/api/v1/syncs/e2e/jobs", data={"a": "b"}) as answer:
            assert answer.status == 415


async def test_refusals_are_in_the_metrics_the_log_and_in_status(tmp_path: Path) -> None:
    config = process.settings(tmp_path, "http://127.0.0.1:9")
    async with process.daemon(config) as daemon:
        port = daemon.admin.rpartition(":")[2]
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{port}"), encoding="utf-8")
        typo = b'{"api_key": "typo", "events": [{"user_id": "mira-okafor", "event_type": "A"}]}'
        for body in (typo, typo, b"{not json"):
            status, _ = await process.post(f"{daemon.http}/2/httpapi", body)
            assert status == 400
        async with (
            aiohttp.ClientSession(daemon.admin) as session,
            session.get("/metrics") as answer,
        ):
            metrics = await answer.text()
        code, out, err = await process.run("status", "-c", str(config))
        assert code == 0, err
    name = f"{PREFIX}http_refusals_total"
    assert f'{name}{{door="/2/httpapi",reason="unknown_key"}} 2.0' in metrics
    assert f'{name}{{door="/2/httpapi",reason="invalid_json"}} 1.0' in metrics
    shown = [" ".join(line.split()) for line in out.splitlines()]
    assert "/2/httpapi 2 unknown_key" in shown
    assert "unknown key 2 typo: no sync takes this API key" in shown
    lines = [entry["event"] for entry in daemon.log if "refused a request" in entry["event"]]
    assert len(lines) == 2


async def test_an_impossible_query_is_refused_in_words_and_without_controls(
    tmp_path: Path,
) -> None:
    queries = ["after=1", "cursor=1", "cursor=-1", "cursor=%1b", f"since_ms={2**63}"]
    queries += [f"until_ms={-(2**63) - 1}", f"ids={2**63}", "ids=x", "reason=%1b%5b31mX", "%1b=1"]
    async with (
        process.daemon(process.settings(tmp_path, "http://127.0.0.1:9")) as daemon,
        aiohttp.ClientSession(daemon.admin) as session,
    ):
        for query in queries:
            path = URL(f"/api/v1/syncs/e2e/dead-letters?{query}", encoded=True)
            async with session.get(path) as answer:
                assert (answer.status, "\x1b" in await answer.text()) == (422, False), query
        for name in ("%1b%5b31mX/dead-letters", "e2e/%1b%5b31mX"):
            async with session.get(URL(f"/api/v1/syncs/{name}", encoded=True)) as answer:
                assert (answer.status, "\x1b" in await answer.text()) == (404, False)
    assert not [entry for entry in daemon.log if entry["level"] == "error"]
