"""The open admin port: what it answers, whom it knows, what it writes down."""

from __future__ import annotations

import asyncio
import io
import json
import re
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from amplitude_intercom.engine.console.guard import HEADERS
from amplitude_intercom.engine.console.sessions import ATTEMPTS, ATTEMPTS_S, IDLE_S
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin
from support.admin_port import READ_TOKEN, SPOKEN, TOKEN, AdminPort, admin, serving

BEARER = {"Authorization": f"Bearer {TOKEN}"}
READER = {"Authorization": f"Bearer {READ_TOKEN}"}
OWN = {"Sec-Fetch-Site": "same-origin"}
DISCARD = "/api/v1/syncs/e2e/jobs"


class Clock:
    """A clock that is set by hand."""

    s = 0.0

    def __call__(self) -> float:
        return self.s


class Answer:
    """An answer that has been read."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(port: AdminPort, method: str, path: str, **more: Any) -> Answer:
    """Ask by a client that keeps no cookies."""
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.request(method, port.url + path, allow_redirects=False, **more) as answer,
    ):
        return Answer(answer.status, answer.headers, await answer.read())


async def signed_in(port: AdminPort, token: str = TOKEN, **headers: str) -> dict[str, str]:
    """Sign in; return the header with the cookie."""
    answer = await ask(
        port, "POST", "/api/v1/session", json={"token": token}, headers=OWN | headers
    )
    assert answer.status == 200, answer.body
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


# --- every answer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/api/status", 200),
        ("GET", "/", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("PUT", "/api/v1/status", 405),
        ("PUT", "/api/status", 405),
        ("POST", DISCARD, 415),
        ("GET", "/api/v1/faults/spool", 503),
        ("GET", "/api/v1/faults/own", 500),
        ("GET", "/api/faults/own", 500),
        ("GET", "/api/faults/redirect", 302),
        ("GET", "/help/problems/read_only", 200),
        ("GET", "/help/problems/none", 404),
    ],
)
async def test_every_answer_has_the_headers_of_the_console(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with serving(admin(), tmp_path) as port:
        answer = await ask(port, method, path, headers=BEARER)
        refused = await ask(port, method, path, headers={"Host": "evil.example"})
    assert answer.status == status
    for one in (answer, refused):
        assert {name: one.headers.get(name) for name in HEADERS} == HEADERS
        own = path == "/" and one is answer
        is_help = path == "/help/problems/read_only"
        stored = "private, no-cache" if own or is_help else "no-store"
        assert one.headers["Cache-Control"] == stored
    assert b"\x1b" not in answer.body


def test_the_policy_allows_nothing_that_is_inline_or_foreign() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("require-trusted-types-for 'script'; trusted-types console")
    assert not re.search(r"unsafe|\*|https?:|data:|blob:", policy)


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/api/v1/nowhere", "not_found", 404),
        ("/api/v1/faults/missing?x%1b", "not_found", 404),
        ("/api/v1/faults/spool", "unavailable", 503),
        ("/api/v1/faults/own", "internal", 500),
        ("/api/v1/faults/problem", "changed_meanwhile", 412),
    ],
)
async def test_a_refusal_of_the_api_is_a_problem_with_a_page_of_help(
    tmp_path: Path, path: str, kind: str, status: int
) -> None:
    async with serving(admin(), tmp_path) as port:
        with capture_logs():
            answer = await ask(port, "GET", path, headers=BEARER)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert (answer.status, answer.json["status"]) == (status, status)
        assert answer.json["type"] == f"/help/problems/{kind}"
        assert answer.json["instance"] == path.partition("?")[0]
        help_page = await ask(port, "GET", answer.json["type"])
    assert help_page.status == 200
    assert answer.json["title"] in help_page.body.decode()


async def test_a_refusal_of_a_method_names_those_that_are_there(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        answer = await ask(port, "PUT", "/api/v1/status", headers=BEARER)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
    assert answer.json["type"] == "/help/problems/method_not_allowed"


async def test_a_header_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        for name, value in (("Origin", "http://a"), ("Sec-Fetch-Site", "same-origin")):
            twice = [*BEARER.items(), (name, value), (name, value)]
            assert (await ask(port, "GET", "/api/status", headers=twice)).status == 400


# --- tokens -----------------------------------------------------------------------------


async def test_a_token_is_a_bearer_s_and_nothing_else(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        for said, status in {
            f"Bearer {TOKEN}": 200,
            f"bearer  {TOKEN}": 200,
            f"Bearer {READ_TOKEN}": 200,
            TOKEN: 401,
            f"Basic {TOKEN}": 401,
            f"Bearer {TOKEN}x": 401,
            "Bearer": 401,
        }.items():
            answer = await ask(port, "GET", "/api/v1/status", headers={"Authorization": said})
            assert answer.status == status, said
            assert (answer.headers.get("WWW-Authenticate") == "Bearer") == (status == 401)
            assert TOKEN.encode() not in answer.body


async def test_a_reader_may_look_and_not_change(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        preview = "/api/v1/syncs/e2e/preview"
        for method, path, status in (
            ("GET", "/api/status", 200),
            ("GET", "/metrics", 200),
            ("GET", "/api/v1/audit", 200),
            ("POST", preview, 200),
            ("POST", DISCARD, 403),
            ("PUT", "/api/v1/settings/file", 403),
        ):
            answer = await ask(port, method, path, json={}, headers=READER)
            assert answer.status == status, path
        who = (await ask(port, "GET", "/api/v1/session", headers=READER)).json
        assert who == {"who": "read token", "may_change": False}
        assert await port.audited() == []


# --- sessions ---------------------------------------------------------------------------


async def test_signing_in_gives_a_cookie_that_no_script_and_no_other_site_has(
    tmp_path: Path,
) -> None:
    async with serving(admin(), tmp_path) as port:
        answer = await ask(
            port, "POST", "/api/v1/session", json={"token": f" {TOKEN}\n"}, headers=OWN
        )
        assert answer.json == {"who": "admin token", "may_change": True}
        (name, cookie), *rest = SimpleCookie(answer.headers["Set-Cookie"]).items()
        assert not rest
        assert name == f"console-{port.host.rpartition(':')[2]}"
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
        assert (cookie["secure"], cookie["domain"], cookie["max-age"]) == ("", "", "")
        session = {"Cookie": f"{name}={cookie.value}"}
        assert (await ask(port, "GET", "/api/v1/status", headers=session)).body == SPOKEN
        who = (await ask(port, "GET", "/api/v1/session", headers=session | OWN)).json
        assert who == {"who": "session of admin token", "may_change": True}


async def test_behind_a_proxy_with_tls_the_cookie_is_secure_and_of_this_host_alone(
    tmp_path: Path,
) -> None:
    proxied = {"X-Forwarded-Proto": "https", "Host": "console.example"}
    settings = admin(hosts=["console.example"], scheme_header="X-Forwarded-Proto")
    async with serving(settings, tmp_path) as port:
        answer = await ask(
            port, "POST", "/api/v1/session", json={"token": TOKEN}, headers=OWN | proxied
        )
        ((name, cookie),) = SimpleCookie(answer.headers["Set-Cookie"]).items()
        assert name.startswith("__Host-console-")
        assert (cookie["secure"], cookie["path"], cookie["domain"]) == (True, "/", "")
        session = {"Cookie": f"{name}={cookie.value}"}
        for more, status in (
            (proxied, 200),
            (proxied | {"X-Forwarded-Proto": "https, http"}, 401),
            ({}, 401),
        ):
            assert (await ask(port, "GET", "/api/status", headers=session | more)).status == status
        origin = {"Origin": "https://console.example"}
        out = await ask(port, "DELETE", "/api/v1/session", headers=OWN | proxied | session)
        assert out.headers["Set-Cookie"].startswith(f"{name}=")
        assert "Secure" in out.headers["Set-Cookie"], "else the browser keeps the cookie"
        answer = await ask(
            port, "POST", "/api/v1/session", json={"token": TOKEN}, headers=OWN | proxied
        )
        ((name, cookie),) = SimpleCookie(answer.headers["Set-Cookie"]).items()
        session = {"Cookie": f"{name}={cookie.value}"}
        changed = await ask(port, "POST", DISCARD, json={}, headers=session | proxied | origin)
        assert changed.status == 200
    async with serving(admin(hosts=["console.example"]), tmp_path) as port:
        answer = await ask(
            port, "POST", "/api/v1/session", json={"token": TOKEN}, headers=OWN | proxied
        )
        assert "Secure" not in answer.headers["Set-Cookie"]


async def test_a_cookie_changes_nothing_without_the_browser_s_word(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        session = await signed_in(port)
        for headers, status in (
            (OWN, 200),
            ({"Origin": port.url}, 200),
            ({}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "none"}, 403),
            ({"Origin": port.url.replace("http", "https")}, 403),
            ({"Origin": "null"}, 403),
        ):
            answer = await ask(port, "POST", DISCARD, json={}, headers=session | headers)
            assert answer.status == status, headers
        form = await ask(port, "POST", "/toggle", data={"on": "1"}, headers=session | OWN)
        assert form.status == 200


async def test_a_stranger_s_cookies_beside_the_right_one_change_nothing(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        right = (await signed_in(port))["Cookie"]
        name = right.partition("=")[0]
        tossed = f"{name}=other; x; =; ;{name}=; {right}; {name}=another"
        assert (await ask(port, "GET", "/api/status", headers={"Cookie": tossed})).status == 200
        for wrong in (f"{name}=", f"{name}", f"x{right}", ";" * 5_000, f"{name}={'x' * 5_000}"):
            answer = await ask(port, "GET", "/api/status", headers={"Cookie": wrong})
            assert answer.status == 401, wrong[:40]


async def test_a_session_ends_by_signing_out_by_idleness_and_with_its_token(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with serving(admin(), tmp_path, clock) as port:
        first, second = await signed_in(port), await signed_in(port)
        out = await ask(port, "DELETE", "/api/v1/session", headers=first | OWN)
        assert (out.status, "expires=Thu, 01 Jan 1970" in out.headers["Set-Cookie"]) == (204, True)
        assert (await ask(port, "GET", "/api/status", headers=first)).status == 401
        assert (await ask(port, "GET", "/api/status", headers=second)).status == 200
        clock.s += IDLE_S
        assert (await ask(port, "GET", "/api/status", headers=second)).status == 401
        third, reader = await signed_in(port), await signed_in(port, READ_TOKEN)
        port.access.follow(admin(token=Secret("another-secret")))
        assert len(port.access.sessions) == 1
        assert (await ask(port, "GET", "/api/status", headers=third)).status == 401
        assert (await ask(port, "GET", "/api/status", headers=reader)).status == 200
        assert (await ask(port, "POST", DISCARD, json={}, headers=reader | OWN)).status == 403


async def test_signing_in_again_ends_the_former_session(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        first = await signed_in(port)
        second = await signed_in(port, **first)
        assert (await ask(port, "GET", "/api/status", headers=first)).status == 401
        assert (await ask(port, "GET", "/api/status", headers=second)).status == 200
        assert len(port.access.sessions) == 1


async def test_a_session_is_of_the_address_that_the_trusted_proxy_names(tmp_path: Path) -> None:
    async with serving(admin(ip_header="X-Forwarded-For"), tmp_path) as port:
        session = await signed_in(port, **{"X-Forwarded-For": "evil, 10.0.0.1"})
        for said, status in {"10.0.0.1": 200, "10.0.0.2": 401, "10.0.0.1, 10.0.0.2": 401}.items():
            headers = session | {"X-Forwarded-For": said}
            assert (await ask(port, "GET", "/api/status", headers=headers)).status == status


async def test_signing_in_can_be_tried_five_times_a_minute_and_is_written_down(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with serving(admin(), tmp_path, clock) as port:
        for n in range(ATTEMPTS):
            answer = await ask(
                port, "POST", "/api/v1/session", json={"token": f"wrong-{n}"}, headers=OWN
            )
            assert (answer.status, "Set-Cookie" in answer.headers) == (401, False)
        answer = await ask(port, "POST", "/api/v1/session", json={"token": TOKEN}, headers=OWN)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        assert (await ask(port, "GET", "/api/status", headers=BEARER)).status == 200
        clock.s += ATTEMPTS_S
        await signed_in(port)
        refused = [("nobody", "sign-in refused", "wrong token")] * ATTEMPTS
        refused.append(("nobody", "sign-in refused", "too many attempts"))
        assert await port.audited() == [*refused, ("admin token", "signed in", "")]
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "wrong-" not in text
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"a": ' * 2_000, 422),
        (b"\xff", 400),
        (b"{}", 422),
        (b"[]", 422),
        (b'{"token": 1}', 422),
        (b'{"token": "x", "more": 1}', 422),
        (b'{"token": "' + b"x" * 20_000 + b'"}', 413),
        (b'{"token": "' + b"x" * 2_000_000 + b'"}', 413),
        (b'{"token": "\\ud800"}', 400),
        (b'{"token": ""}', 401),
    ],
)
async def test_a_body_that_is_no_sign_in_is_refused_in_words(
    tmp_path: Path, body: bytes, status: int
) -> None:
    async with serving(admin(), tmp_path) as port:
        headers = OWN | {"Content-Type": "application/json"}
        answer = await ask(port, "POST", "/api/v1/session", data=io.BytesIO(body), headers=headers)
    assert (answer.status, answer.json["status"]) == (status, status)


async def test_without_a_token_nobody_signs_in_and_everybody_is_loopback(tmp_path: Path) -> None:
    async with serving(Admin(listen="127.0.0.1:0"), tmp_path) as port:
        answer = await ask(port, "POST", "/api/v1/session", json={"token": ""})
        assert answer.status == 409
        who = (await ask(port, "GET", "/api/v1/session")).json
        assert who == {"who": "loopback", "may_change": True}


# --- the audit --------------------------------------------------------------------------


async def test_each_change_is_written_down_with_who_made_it(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        session = await signed_in(port) | OWN
        await ask(port, "POST", DISCARD, json={}, headers=BEARER)
        await ask(port, "POST", "/api/v1/syncs/e2e/preview", json={}, headers=BEARER)
        await ask(port, "GET", "/api/status", headers=BEARER)
        await ask(port, "PUT", "/api/v1/settings/file", json={}, headers=session)
        for kind in ("problem", "answered"):  # neither has changed anything
            await ask(port, "POST", f"/api/v1/faults/{kind}", json={}, headers=session)
        await ask(port, "POST", DISCARD, json={}, headers=READER)
        await ask(port, "DELETE", "/api/v1/session", headers=session)
        assert await port.audited() == [
            ("admin token", "signed in", ""),
            ("admin token", "POST /api/v1/syncs/{sync}/jobs", DISCARD),
            ("session of admin token", "settings saved", "the whole file"),
            ("session of admin token", "signed out", ""),
        ]
        page = (await ask(port, "GET", "/api/v1/audit?limit=2", headers=READER)).json
        assert [one["action"] for one in page["entries"]] == ["signed out", "settings saved"]
        assert page["entries"][1]["versions"] == {"before": "abc", "after": "def"}
        assert page["entries"][1]["peer"] == "127.0.0.1"
        older = f"/api/v1/audit?limit=2&before={page['before']}"
        rest = (await ask(port, "GET", older, headers=READER)).json
        assert [one["id"] for one in rest["entries"]] == [2, 1]
        assert rest["before"] is None


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "limit=", "before=-1", "before=9e99", "before=٣"]
)
async def test_an_impossible_page_of_the_audit_is_refused(tmp_path: Path, query: str) -> None:
    async with serving(admin(), tmp_path) as port:
        answer = await ask(port, "GET", f"/api/v1/audit?{query}", headers=BEARER)
    assert answer.status == 422
    assert [one["pointer"] for one in answer.json["errors"]] == [f"/{query.partition('=')[0]}"]


async def test_an_audit_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    async with serving(admin(), tmp_path) as port:
        with capture_logs():
            changed = await ask(port, "POST", DISCARD, json={}, headers=BEARER)
            answer = await ask(port, "GET", "/api/v1/audit", headers=BEARER)
            await asyncio.sleep(0)
    assert changed.status == 200
    assert (answer.status, answer.json["type"]) == (503, "/help/problems/unavailable")


# --- settings that change ---------------------------------------------------------------


async def test_other_settings_hold_for_the_next_request(tmp_path: Path) -> None:
    async with serving(admin(), tmp_path) as port:
        named = {"Host": "console.example", **BEARER}
        assert (await ask(port, "GET", "/api/status", headers=named)).status == 403
        port.access.follow(admin(hosts=["console.example"], listen="127.0.0.1:1"))
        assert (await ask(port, "GET", "/api/status", headers=named)).status == 200
        port.access.follow(Admin())
        assert (await ask(port, "GET", "/api/status")).status == 200
        port.access.follow(None)
        assert (await ask(port, "GET", "/api/status")).status == 200


async def test_no_change_of_settings_opens_a_port_beyond_loopback_to_everybody(
    tmp_path: Path,
) -> None:
    async with serving(admin(listen="0.0.0.0:0"), tmp_path) as port:
        with capture_logs() as lines:
            port.access.follow(Admin(listen="127.0.0.1:8711", hosts=["console.example"]))
        assert [line["event"] for line in lines] == [
            "the admin port keeps its tokens until a restart"
        ]
        here = {"Host": port.host.replace("0.0.0.0", "127.0.0.1")}
        assert (await ask(port, "GET", "/api/status", headers=here)).status == 401
        assert (await ask(port, "GET", "/api/status", headers=here | BEARER)).status == 200
