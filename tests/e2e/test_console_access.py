"""The admin port of the real process: pages of elsewhere, sessions, reloads, the audit."""

from __future__ import annotations

import json
import signal
import socket
import stat
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomli_w
from aiohttp.abc import AbstractResolver, ResolveResult

from support import process

NOWHERE = "http://127.0.0.1:9"
TOKEN = "admin-secret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OWN = {"Sec-Fetch-Site": "same-origin"}
COMPACT = "/api/v1/spool/compact"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
TEXT = {"Content-Type": "text/plain"}


class Rebound(AbstractResolver):
    """A name server that answers every name with this machine's address."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        return None


def change(config: Path, **admin: Any) -> None:
    """Change keys of ``[admin]`` in a settings file; None takes one away."""
    table = tomllib.loads(config.read_text(encoding="utf-8"))
    table["admin"] = {k: v for k, v in (table["admin"] | admin).items() if v is not None}
    config.write_text(tomli_w.dumps(table), encoding="utf-8")


async def reloaded(daemon: process.Daemon, count: int = 1) -> dict[str, Any]:
    """Ask for a reload; return what the daemon says of it, once it is done."""
    daemon.process.send_signal(signal.SIGHUP)
    said: list[dict[str, Any]] = []
    while len(said) < count:
        await process.moment(0.01)
        said = [entry for entry in daemon.log if entry["event"].startswith("settings ")]
    return said[-1]


@pytest.fixture
async def config(tmp_path: Path) -> Path:
    top = {"admin": {"listen": "127.0.0.1:0", "token": TOKEN}}
    return process.settings(tmp_path, NOWHERE, top=top)


@pytest.fixture
async def daemon(config: Path) -> AsyncIterator[process.Daemon]:
    async with process.daemon(config) as running:
        yield running


@pytest.fixture
async def browser(daemon: process.Daemon) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that is signed in; like a browser it sends the cookie to every port of the host."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(daemon.admin, cookie_jar=jar) as session:
        async with session.post("/api/v1/session", json={"token": TOKEN}, headers=OWN) as answer:
            assert answer.status == 200
        yield session


async def status(
    session: aiohttp.ClientSession, method: str, path: str, headers: Mapping[str, str] = {}
) -> int:
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    async with session.request(method, path, data=body, headers=headers) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
        return answer.status


def audited(config: Path) -> list[tuple[str, str]]:
    lines = (config.parent / "data" / "audit.jsonl").read_text().splitlines()
    return [(one["who"], one["action"]) for one in map(json.loads, lines)]


# --- pages of elsewhere: what a browser was seen to send for them -----------------------


@pytest.mark.parametrize(
    "site",
    [
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {},  # a browser too old to say it
    ],
)
async def test_a_page_on_another_port_gets_nothing_although_the_cookie_comes_along(
    daemon: process.Daemon,
    browser: aiohttp.ClientSession,
    config: Path,
    site: dict[str, str],
) -> None:
    other = daemon.http.replace("127.0.0.1", "127.0.0.1" if site else "localhost")
    of_page = {"Origin": other, **site}
    assert await status(browser, "GET", "/api/status") == 200
    for kind in (FORM, TEXT, JSON, {"Content-Type": "multipart/form-data; boundary=x"}):
        assert await status(browser, "POST", COMPACT, of_page | kind) == 403
        assert await status(browser, "POST", "/api/v1/session", of_page | kind) == 403
    for method in ("PUT", "PATCH", "DELETE"):
        assert await status(browser, method, "/api/v1/session", of_page | JSON) == 403
    for path in ("/api/status", "/metrics", "/api/v1/audit", "/api/v1/session"):
        assert await status(browser, "GET", path, of_page) == 403
        if site:  # an image, a script: no Origin
            assert await status(browser, "GET", path, site) == 403
    asks = of_page | {"Access-Control-Request-Method": "POST"}
    async with browser.options(COMPACT, headers=asks) as answer:
        assert not any(name.startswith("Access-Control-") for name in answer.headers)
    assert audited(config) == [("admin token", "signed in")]


async def test_a_form_without_any_word_of_the_browser_changes_nothing(
    browser: aiohttp.ClientSession, config: Path
) -> None:
    for kind in (FORM, TEXT, JSON):
        assert await status(browser, "POST", COMPACT, kind) == 403
    assert audited(config) == [("admin token", "signed in")]
    assert await status(browser, "POST", COMPACT, JSON | OWN) == 200
    assert audited(config)[1][0] == "session of admin token"


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_name_that_is_rebound_to_this_machine_reaches_nothing(
    config: Path, token: str | None
) -> None:
    change(config, token=token)
    connector = aiohttp.TCPConnector(resolver=Rebound())
    async with (
        process.daemon(config) as daemon,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        port = daemon.admin.rpartition(":")[2]
        page = f"http://rebound.example:{port}"
        own = {"Origin": page, **OWN, **JSON}  # to the browser it is one origin
        for headers in (own, own | BEARER):
            assert await status(session, "GET", f"{page}/api/status", headers) == 403
            assert await status(session, "POST", page + COMPACT, headers) == 403
        assert await status(session, "GET", f"{page}/healthz") == 200
    assert not (config.parent / "data" / "audit.jsonl").exists()


async def test_a_program_without_a_token_may_change_as_before(tmp_path: Path) -> None:
    config = process.settings(tmp_path, NOWHERE)
    async with process.daemon(config) as daemon, aiohttp.ClientSession(daemon.admin) as session:
        assert await status(session, "POST", COMPACT, JSON) == 200
        assert await status(session, "POST", COMPACT, TEXT) == 415
    assert [who for who, _ in audited(config)] == ["loopback"]


# --- settings and tokens that change ----------------------------------------------------


async def test_a_reload_replaces_tokens_and_hosts_and_ends_sessions(
    daemon: process.Daemon, browser: aiohttp.ClientSession, config: Path
) -> None:
    change(config, token="another-secret", read_token=TOKEN, hosts=["console.example"])
    assert "needs_restart" not in await reloaded(daemon)
    assert await status(browser, "GET", "/api/status") == 401
    async with aiohttp.ClientSession(daemon.admin) as session:
        assert await status(session, "GET", "/api/status", BEARER) == 200
        assert await status(session, "POST", COMPACT, BEARER | JSON) == 403
        now = {"Authorization": "Bearer another-secret", "Host": "console.example"}
        assert await status(session, "POST", COMPACT, now | JSON) == 200
    change(config, listen=f"127.0.0.1:{process.free_port()}")
    assert (await reloaded(daemon, 2))["needs_restart"] == ["admin"]
    async with aiohttp.ClientSession(daemon.admin) as session:
        assert await status(session, "GET", "/api/status", now) == 200


async def test_a_reload_that_is_refused_leaves_everybody_in(
    daemon: process.Daemon, browser: aiohttp.ClientSession, config: Path
) -> None:
    change(config, token=TOKEN, read_token=TOKEN)
    assert "admin.read_token" in (await reloaded(daemon))["cause"]
    assert await status(browser, "GET", "/api/status") == 200


async def test_a_token_s_file_that_changes_holds_at_once_and_needs_no_reload(
    config: Path,
) -> None:
    file = config.parent / "token"
    file.write_text("first")
    change(config, token="file:token")
    async with process.daemon(config) as daemon, aiohttp.ClientSession(daemon.admin) as session:
        first, second = ({"Authorization": f"Bearer {one}"} for one in ("first", "second"))
        assert await status(session, "GET", "/api/status", first) == 200
        file.write_text("second")
        assert await status(session, "GET", "/api/status", second) == 200
        assert await status(session, "GET", "/api/status", first) == 401


# --- the audit --------------------------------------------------------------------------


async def test_the_audit_is_there_after_a_kill_and_goes_on(config: Path) -> None:
    running = await process.start(config)
    async with aiohttp.ClientSession(running.admin) as session:
        assert await status(session, "POST", COMPACT, BEARER | JSON) == 200
    await running.end(signal.SIGKILL)
    assert [who for who, _ in audited(config)] == ["admin token"]
    mode = (config.parent / "data" / "audit.jsonl").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    async with process.daemon(config) as daemon, aiohttp.ClientSession(daemon.admin) as session:
        assert await status(session, "POST", COMPACT, BEARER | JSON) == 200
        async with session.get("/api/v1/audit", headers=BEARER) as answer:
            page = await answer.json()
        assert [(one["id"], one["action"]) for one in page["entries"]] == [
            (2, "spool compacted"),
            (1, "spool compacted"),
        ]
        told = [entry for entry in daemon.log if entry["event"] == "audit"]
        assert [(entry["who"], entry["peer"]) for entry in told] == [("admin token", "127.0.0.1")]
