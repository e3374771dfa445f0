"""What ``check`` finds in a workspace's answers."""

from __future__ import annotations

import pytest

from amplitude_intercom.engine.findings.workspace_findings import clock_findings, token_findings
from amplitude_intercom.transports.intercom import Answer
from support.findings import settings


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        (200, "text/html", b"<html>", "not as Intercom does: 200 text/html"),
        (200, "application/json", b"{}", "not as Intercom does: 200 application/json"),
        (200, "application/json", b'{"app": null}', "not as Intercom does"),
        (200, "application/json", b'["app"]', "not as Intercom does"),
        (204, "", b"", "not as Intercom does: 204 no content type"),
        (302, "text/html; charset=x", b"", "not as Intercom does: 302 text/html"),
        (403, "text/html", b"<html>", "not as Intercom does: 403 text/html"),
        (404, "text/html", b"<html>", "not as Intercom does: 404 text/html"),
        (
            401,
            "application/json",
            b'{"type": "error.list", "errors": [{"code": "unauthorized", "message": "no"}]}',
            "Intercom answers 401: no",
        ),
    ],
)
def test_an_answer_of_somebody_between_is_no_good_sign(
    status: int, kind: str, body: bytes, said: str
) -> None:
    [one] = settings().sync
    [finding] = token_findings(one, Answer(status, {"content-type": kind}, body))
    assert finding.level == "error"
    assert said in finding.text


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", ""),
        ("Tue, 14 Nov 2023 22:12:25 GMT", ""),
        ("Tue, 14 Nov 2023 22:12:10 GMT", "70 s ahead of Intercom's"),
        ("Wed, 15 Nov 2023 22:13:20 GMT", "24 h behind Intercom's"),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_a_clock_that_is_off_is_named(date: str, said: str) -> None:
    found = [*clock_findings(Answer(200, {"date": date}, b""), 1_700_000_000.0)]
    assert len(found) == bool(said)
    assert all(said in finding.text for finding in found)
