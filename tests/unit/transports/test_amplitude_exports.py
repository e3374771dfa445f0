"""The client of the Export API: which hours it asks for, and what an answer means."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from amplitude_intercom.transports.amplitude_exports import (
    LONGEST_RETRY_AFTER_S,
    ExportClient,
    ExportDelayed,
    ExportTooLarge,
    KeysRefused,
    Span,
    consequence,
    is_foreign,
    last_whole_hour,
    parse_hour,
    parse_retry_after,
    say_of,
    show_hour,
)
from amplitude_intercom.transports.intercom import Request
from amplitude_intercom.transports.sandbox.faults import Fault
from amplitude_intercom.transports.sandbox.local_amplitude import LocalAmplitude
from amplitude_intercom.transports.sandbox.server import serve_amplitude, serve_application

KEY, SECRET = "an-api-key", "canary-secret-key"
AT_S = 1_700_000_000.0
HOUR = parse_hour("2023-11-14T22")


def local(events: int = 1, **more: Any) -> LocalAmplitude:
    amplitude = LocalAmplitude(now=lambda: AT_S, projects={KEY: SECRET}, events_per_s={}, **more)
    some = [
        {"event_type": "Paid", "user_id": "mira-okafor", "insert_id": str(n)} for n in range(events)
    ]
    body = json.dumps({"api_key": KEY, "events": some}).encode()
    amplitude.handle(Request("POST", "/batch", body), {})
    return amplitude


@asynccontextmanager
async def connected(
    amplitude: LocalAmplitude, *, secret: str = SECRET, **more: Any
) -> AsyncIterator[ExportClient]:
    async with (
        serve_amplitude(amplitude) as url,
        ExportClient(url, KEY, secret, now_s=lambda: AT_S, **more) as client,
    ):
        yield client


# --- hours --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["20231114T22", "2023-11-14T22"])
def test_an_hour_is_written_as_the_api_does_or_as_people_do(text: str) -> None:
    assert parse_hour(text) == AT_S // 3600
    assert show_hour(parse_hour(text)) == "2023-11-14T22"


def test_a_day_begins_and_ends_a_span() -> None:
    span = Span(parse_hour("2023-11-14"), parse_hour("2023-11-14", ends=True))
    assert (str(span), span.hours) == ("20231114T00-20231114T23", 24)
    assert Span.read(str(span)) == span


@pytest.mark.parametrize(
    "text", ["", "2023", "2023-11-14T24", "2023-11-31", "2023-1-4", "20231114", "2023-11-14T22:00"]
)
def test_an_invalid_hour_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 2024-05-14T09"):
        parse_hour(text)


def test_an_hour_is_whole_two_hours_after_its_end() -> None:
    span = Span(HOUR, HOUR)
    assert last_whole_hour(span.whole_at_s) == HOUR
    assert last_whole_hour(span.whole_at_s - 1) == HOUR - 1


# --- answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ExportTooLarge),
        (413, ExportTooLarge),
        (504, ExportTooLarge),
        (401, KeysRefused),
        (403, KeysRefused),
        (302, ExportDelayed),
        (429, ExportDelayed),
        (500, ExportDelayed),
        (503, ExportDelayed),
    ],
)
def test_each_status_has_one_consequence(status: int, kind: type[Exception]) -> None:
    error = consequence(status, "because")
    assert type(error) is kind
    assert f"{status}: because" in str(error)


def test_only_an_answer_that_took_too_long_may_pass_by_itself() -> None:
    found = [consequence(status, "") for status in (400, 504)]
    assert [isinstance(e, ExportTooLarge) and e.can_pass for e in found] == [False, True]


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("7", 7.0),
        ("9" * 400, LONGEST_RETRY_AFTER_S),
        (formatdate(AT_S + 9, usegmt=True), 9.0),
        (formatdate(AT_S - 9, usegmt=True), 0.0),
    ],
)
def test_a_wait_that_is_asked_for_has_a_bound(text: str | None, wait_s: float | None) -> None:
    assert parse_retry_after(text, AT_S) == wait_s


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"code": 400, "error": "too\\nlarge"}', "too large"),
        (b"Raw data files were not found.\n", "Raw data files were not found."),
        (b" <html><body>Bad Gateway</body></html>", ""),
        (b"\xff" * 900, "\ufffd" * 200),
        (b"", ""),
    ],
)
def test_an_error_says_one_short_line_and_a_page_none(body: bytes, said: str) -> None:
    assert say_of(body) == said


@pytest.mark.parametrize(
    ("body", "foreign"),
    [
        (b'{"code": 404, "error": "Raw data files not found"}', False),
        (b"Raw data files were not found.\n", False),
        (b"", False),
        (b" <html><body>nginx</body></html>", True),
        (b'{"type":"error.list","errors":[{"code":"not_found"}]}', True),
    ],
)
def test_only_amplitudes_own_404_says_that_there_is_nothing(body: bytes, foreign: bool) -> None:
    assert is_foreign(body) is foreign


# --- the client ---------------------------------------------------------------------------


async def test_an_export_is_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    came: list[int] = []
    async with connected(local(3)) as client:
        assert await client.fetch(Span(HOUR, HOUR), tmp_path / "a.zip", came.append)
    [path] = tmp_path.iterdir()
    assert zipfile.ZipFile(path).namelist() == ["100/100_2023-11-14_22#0.json.gz"]
    found = path.stat()
    assert (sum(came), found.st_mtime, found.st_mode & 0o77) == (found.st_size, AT_S, 0)


async def test_hours_without_events_leave_no_file(tmp_path: Path) -> None:
    amplitude = local()
    async with connected(amplitude) as client:
        assert not await client.fetch(Span(HOUR + 1, HOUR + 3), tmp_path / "a.zip")
    assert amplitude.journal[-1].path == "/api/2/export?start=20231114T23&end=20231115T01"
    assert not list(tmp_path.iterdir())


def fault(kind: Any, status: int = 500) -> dict[str, Any]:
    return {"faults": [Fault(kind, status=status, path="/api/2/export")]}


@pytest.mark.parametrize(
    ("of_server", "of_client", "kind", "said"),
    [
        (fault("html", 200), {}, ExportDelayed, "no ZIP"),
        (fault("half"), {}, ExportDelayed, "cut off"),
        (fault("reset"), {}, ExportDelayed, "the connection broke"),
        (fault("hang"), {"timeout_s": 0.05}, ExportDelayed, "in time"),
        (fault("status", 502), {}, ExportDelayed, "502: Fault"),
        ({"most_exported": 0}, {}, ExportTooLarge, "400: Exported data is too large"),
        ({}, {"max_bytes": 100}, ExportTooLarge, "longer than max_bytes, 100"),
        ({}, {"secret": "another"}, KeysRefused, "401: Unauthorized"),
    ],
)
async def test_an_answer_that_is_no_export_leaves_no_file(
    tmp_path: Path,
    of_server: dict[str, Any],
    of_client: dict[str, Any],
    kind: type[Exception],
    said: str,
) -> None:
    async with connected(local(**of_server), **of_client) as client:
        with pytest.raises(kind, match=said):
            await client.fetch(Span(HOUR, HOUR), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


@asynccontextmanager
async def answering(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> AsyncIterator[ExportClient]:
    """A client of a server that answers everything so, in chunks: it does not say how long."""

    async def respond(http: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(http)
        for at in range(0, len(body), 50):
            await response.write(body[at : at + 50])
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    async with (
        serve_application(app, "127.0.0.1", 0) as url,
        ExportClient(url, KEY, SECRET, max_bytes=100, now_s=lambda: AT_S) as client,
    ):
        yield client


async def test_an_error_keeps_the_keys_to_itself_and_says_when_to_come_again(
    tmp_path: Path,
) -> None:
    text = f"{KEY} and {SECRET} ask too often".encode()
    async with answering(429, text, {"Retry-After": "7"}) as client:
        with pytest.raises(ExportDelayed, match=r"429: \*\*\* and \*\*\* ask too often") as found:
            await client.fetch(Span(HOUR, HOUR), tmp_path / "a.zip")
        assert KEY not in repr(client)
    assert found.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"PK\3\4" + bytes(9_000), ExportTooLarge, "longer than max_bytes, 100"),
        (b"PK\3\4" + bytes(90), ExportDelayed, "no whole ZIP"),
        (b"", ExportDelayed, "is empty"),
    ],
    ids=["endless", "damaged", "empty"],
)
async def test_a_body_without_a_length_is_bounded_and_looked_at(
    tmp_path: Path, body: bytes, kind: type[Exception], said: str
) -> None:
    async with answering(200, body) as client:
        with pytest.raises(kind, match=said):
            await client.fetch(Span(HOUR, HOUR), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


async def test_a_disk_that_fails_is_named_and_no_fault_of_amplitude(tmp_path: Path) -> None:
    async with connected(local()) as client:
        with pytest.raises(OSError, match="No such file") as found:
            await client.fetch(Span(HOUR, HOUR), tmp_path / "gone" / "a.zip")
    assert found.value.filename == str(tmp_path / "gone" / "a.part")
