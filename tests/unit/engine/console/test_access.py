"""Who may do what at the admin port: a table of requests."""

from __future__ import annotations

from typing import Any, Final

import pytest

from amplitude_intercom.engine.console.access import (
    AccessRules,
    Credential,
    RequestFacts,
    decide,
)
from amplitude_intercom.engine.console.problems import Problem
from amplitude_intercom.engine.setting_types import Secret
from amplitude_intercom.engine.settings import Admin

TOKEN: Final = Secret("admin-secret")
ADMIN: Final = Credential("admin token", may_change=True)
READER: Final = Credential("read token", may_change=False)
SIGNED_IN: Final = Credential("session of admin token", may_change=True)
READER_SIGNED_IN: Final = Credential("session of read token", may_change=False)

LOOPBACK: Final = AccessRules.of(Admin())
WITH_TOKEN: Final = AccessRules.of(Admin(token=TOKEN, hosts=["Console.Example.com", "müller.de"]))
EVERYWHERE: Final = AccessRules.of(Admin(listen="0.0.0.0:8711", token=TOKEN))
EVERYWHERE_6: Final = AccessRules.of(Admin(listen="[::]:8711", token=TOKEN))
AT_AN_ADDRESS: Final = AccessRules.of(Admin(listen="10.1.2.3:8711", token=TOKEN))
AT_A_NAME: Final = AccessRules.of(Admin(listen="ops.example:8711", token=TOKEN))

OWN: Final = {"fetch_site": "same-origin"}
JSON: Final = {"media_type": "application/json"}
BEARER: Final = {"bearer_given": True, "bearer": ADMIN}
READING: Final = {"bearer_given": True, "bearer": READER}
WRONG: Final = {"bearer_given": True}
COOKIE: Final = {"session": SIGNED_IN}
DISCARD: Final = {"method": "POST", "path": "/api/v1/syncs/e2e/jobs", **JSON}
PREVIEW: Final = {"method": "POST", "path": "/api/v1/syncs/e2e/preview", **JSON}
PUT: Final = {"method": "PUT", "path": "/api/v1/syncs/e2e/settings", **JSON}
SIGN_IN: Final = {"method": "POST", "path": "/api/v1/session", **JSON}
SIGN_OUT: Final = {"method": "DELETE", "path": "/api/v1/session"}
FORM: Final = {"method": "POST", "path": "/syncs/e2e/toggle"}


def answer(rules: AccessRules, **facts: Any) -> str:
    """Return whoever is allowed, or the status and the type of the refusal."""
    request = {"method": "GET", "path": "/api/status", "host": "127.0.0.1:8711", **facts}
    found = decide(RequestFacts(**request), rules)
    if isinstance(found, Problem):
        return f"{found.status} {found.kind}"
    assert isinstance(found, Credential)
    return found.who + ("" if found.may_change else ", reading")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "loopback"),
        ({"path": "/metrics"}, "loopback"),
        ({"path": "/"}, "loopback"),
        # A program that sends neither header, as curl does.
        (DISCARD, "loopback"),
        (PUT, "loopback"),
        ({"method": "DELETE", "path": "/api/v1/jobs/7"}, "loopback"),
        # The port's own page.
        (OWN, "loopback"),
        ({**DISCARD, **OWN}, "loopback"),
        ({**FORM, **OWN, "media_type": "application/x-www-form-urlencoded"}, "loopback"),
        ({**DISCARD, "origin": "http://127.0.0.1:8711"}, "loopback"),
        # A person's own request: the address bar.
        ({"fetch_site": "none"}, "loopback"),
        ({**DISCARD, "fetch_site": "none"}, "403 other_origin"),
        # Pages of elsewhere.
        ({"fetch_site": "cross-site"}, "403 other_origin"),
        ({"fetch_site": "same-site"}, "403 other_origin"),
        ({"fetch_site": "anything"}, "403 other_origin"),
        ({"fetch_site": ""}, "403 other_origin"),
        ({"path": "/metrics", "fetch_site": "same-site"}, "403 other_origin"),
        ({"path": "/api/v1/syncs/e2e/live", "fetch_site": "same-site"}, "403 other_origin"),
        ({**DISCARD, "fetch_site": "same-site"}, "403 other_origin"),
        ({**FORM, "fetch_site": "same-site"}, "403 other_origin"),
        ({**FORM, "fetch_site": "cross-site"}, "403 other_origin"),
        ({"origin": "https://evil.example"}, "403 other_origin"),
        ({"origin": "null"}, "403 other_origin"),
        ({"origin": "http://127.0.0.1:9999"}, "403 other_origin"),
        ({"origin": "https://127.0.0.1:8711"}, "403 other_origin"),
        ({**DISCARD, "origin": "http://localhost:8711"}, "403 other_origin"),
        ({**DISCARD, "origin": ""}, "403 other_origin"),
        # A link of elsewhere opens a page, not data.
        ({"path": "/", "fetch_site": "cross-site"}, "loopback"),
        # Sec-Fetch-Site decides where both are there: a proxy may have changed Host.
        ({**DISCARD, **OWN, "origin": "https://console.example"}, "loopback"),
        (
            {**DISCARD, "fetch_site": "same-site", "origin": "http://127.0.0.1:8711"},
            "403 other_origin",
        ),
        # Plain forms of a browser that sends no header.
        ({**DISCARD, "media_type": "text/plain"}, "415 wrong_media_type"),
        ({**DISCARD, "media_type": "multipart/form-data"}, "415 wrong_media_type"),
        ({**DISCARD, "media_type": ""}, "415 wrong_media_type"),
        ({**FORM, "media_type": "application/x-www-form-urlencoded"}, "415 wrong_media_type"),
        ({**DISCARD, **OWN, "media_type": "text/plain"}, "415 wrong_media_type"),
        # Health is for everybody, under any name.
        (
            {"path": "/healthz", "host": "evil.example", "fetch_site": "cross-site"},
            "nobody, reading",
        ),
        ({"path": "/readyz", "host": ""}, "nobody, reading"),
        ({"path": "/healthz/x", "host": "evil.example"}, "403 other_host"),
        ({"path": "/help/problems/other_host", "host": "evil.example"}, "nobody, reading"),
        ({"path": "/help/problems/x", "method": "POST", "host": "a.example"}, "403 other_host"),
        # A token that none is set for counts for nothing.
        (WRONG, "loopback"),
    ],
)
def test_without_a_token_this_machine_may_and_no_page_of_elsewhere(
    facts: dict[str, Any], expected: str
) -> None:
    assert answer(LOOPBACK, **facts) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "401 unauthorized"),
        (OWN, "401 unauthorized"),
        ({"path": "/"}, "401 unauthorized"),
        (DISCARD, "401 unauthorized"),
        (WRONG, "401 unauthorized"),
        ({**WRONG, **COOKIE}, "401 unauthorized"),
        # A program.
        (BEARER, "admin token"),
        ({**BEARER, **DISCARD}, "admin token"),
        ({**BEARER, **PUT}, "admin token"),
        ({**BEARER, **DISCARD, "media_type": "text/plain"}, "415 wrong_media_type"),
        ({**BEARER, **DISCARD, "fetch_site": "cross-site"}, "403 other_origin"),
        ({**BEARER, **DISCARD, "origin": "https://evil.example"}, "403 other_origin"),
        # A reader.
        (READING, "read token, reading"),
        ({**READING, **PREVIEW}, "read token, reading"),
        ({**READING, **PREVIEW, "path": "/api/v1/settings/preview"}, "403 read_only"),
        ({**READING, **PREVIEW, "path": "/api/v1/syncs/e2e/preview/"}, "403 read_only"),
        ({**READING, **PREVIEW, "path": "/api/v1/syncs/a%2Fpreview"}, "403 read_only"),
        ({**READING, **PREVIEW, "method": "PUT"}, "403 read_only"),
        ({**READING, **DISCARD}, "403 read_only"),
        ({**READING, **PUT}, "403 read_only"),
        ({**READING, "method": "DELETE", "path": "/api/v1/syncs/e2e"}, "403 read_only"),
        ({**READING, "method": "PROPFIND"}, "403 read_only"),
        # A browser that is signed in.
        (COOKIE, "session of admin token"),
        ({**COOKIE, **OWN}, "session of admin token"),
        ({**COOKIE, **OWN, **DISCARD}, "session of admin token"),
        ({**COOKIE, **DISCARD, "origin": "http://127.0.0.1:8711"}, "session of admin token"),
        ({**COOKIE, **DISCARD}, "403 other_origin"),
        ({**COOKIE, **PUT}, "403 other_origin"),
        ({**COOKIE, **DISCARD, "fetch_site": "same-site"}, "403 other_origin"),
        ({**COOKIE, "fetch_site": "same-site"}, "403 other_origin"),
        ({**COOKIE, "host": "evil.example"}, "403 other_host"),
        ({"session": READER_SIGNED_IN, **OWN}, "session of read token, reading"),
        ({"session": READER_SIGNED_IN, **OWN, **DISCARD}, "403 read_only"),
        # Signing in and out.
        ({**SIGN_IN, **OWN}, "nobody, reading"),
        ({**SIGN_IN, "origin": "http://127.0.0.1:8711"}, "nobody, reading"),
        (SIGN_IN, "403 other_origin"),
        ({**SIGN_IN, "fetch_site": "same-site"}, "403 other_origin"),
        ({**SIGN_IN, **OWN, "media_type": "text/plain"}, "415 wrong_media_type"),
        ({**SIGN_IN, **OWN, "host": "evil.example"}, "403 other_host"),
        (SIGN_OUT, "401 unauthorized"),
        ({**SIGN_OUT, **OWN, "session": READER_SIGNED_IN}, "session of read token, reading"),
        ({**SIGN_IN, "method": "GET", **OWN}, "401 unauthorized"),
        # Behind a proxy with TLS.
        (
            {**COOKIE, **DISCARD, "host": "console.example.com", "scheme": "https"}
            | {"origin": "https://console.example.com"},
            "session of admin token",
        ),
        (
            {**COOKIE, **DISCARD, "host": "console.example.com", "scheme": "http"}
            | {"origin": "https://console.example.com"},
            "403 other_origin",
        ),
    ],
)
def test_with_a_token_somebody_is_known_and_a_cookie_alone_changes_nothing(
    facts: dict[str, Any], expected: str
) -> None:
    assert answer(WITH_TOKEN, **facts) == expected


@pytest.mark.parametrize(
    ("rules", "served", "refused"),
    [
        (
            LOOPBACK,
            "localhost localhost:1 LOCALHOST:8711 localhost. 127.0.0.1 127.8.8.8:1 [::1]:8711",
            "- evil.example 127.0.0.1.evil.example localhost.evil.example 10.1.2.3 0.0.0.0:8711"
            " [::] 127.1 2130706433 evil@127.0.0.1 127.0.0.1:8711@evil 127.0.0.1:x 127.0.0.1/x"
            " 127.0.0.1, ::1 [::1 localhost..",
        ),
        (WITH_TOKEN, "console.example.com console.EXAMPLE.com:443 xn--mller-kva.de", "example.com"),
        (EVERYWHERE, "10.1.2.3:8711 [2001:db8::1]:8711 127.0.0.1", "0.0.0.0 evil.example [::]"),
        (EVERYWHERE_6, "10.1.2.3:8711 [2001:db8::1]:8711 localhost", "evil.example 0.0.0.0"),
        (AT_AN_ADDRESS, "10.1.2.3:8711 10.1.2.3 127.0.0.1", "10.1.2.4 evil.example"),
        (AT_A_NAME, "ops.example ops.example:8711", "ops.example.evil 10.1.2.3"),
    ],
)
def test_a_host_is_served_that_is_the_port_s_own(
    rules: AccessRules, served: str, refused: str
) -> None:
    for host in served.split():
        assert rules.serves(host), host
    for host in ["", " ", "x" * 10_000, *refused.split(" ")]:
        assert not rules.serves(host), host


@pytest.mark.parametrize("rules", [LOOPBACK, WITH_TOKEN, EVERYWHERE])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("site", ["same-site", "cross-site", "none"])
@pytest.mark.parametrize("who", [{}, COOKIE, BEARER])
def test_no_change_comes_from_a_page_of_elsewhere_whoever_is_known(
    rules: AccessRules, method: str, site: str, who: dict[str, Any]
) -> None:
    for path in ("/api/v1/session", "/api/v1/settings/file", "/syncs/e2e/toggle"):
        facts = {"method": method, "path": path, "fetch_site": site, **JSON, **who}
        assert answer(rules, **facts) == "403 other_origin"
