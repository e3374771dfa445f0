"""Whatever comes to the HTTP source, it answers in JSON; and 200 means "in the spool"."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from amplitude_intercom.engine.app import Engine
from amplitude_intercom.transports.http_endpoints import ENDPOINTS
from amplitude_intercom.transports.openapi import SUCCESS
from support.serving import CONTINUE, serving, speak

QUICK = settings(
    max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.text(max_size=8)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    "event_type user_id device_id insert_id $insert_id uuid time event_time timestamp groups"
    " user_properties event_properties group_type group_value session_id library".split()
)
IDS = st.sampled_from(["user-1", "user-2", "anonymous", "u", "", None, 5])
EVENTS = st.dictionaries(NAMES, JSON, max_size=4) | st.fixed_dictionaries(
    {"event_type": TEXT | st.sampled_from(["$identify", "$groupidentify"]), "user_id": IDS},
    optional={"time": st.integers() | JSON, "user_properties": JSON, "insert_id": TEXT},
)
MANY = EVENTS | st.lists(EVENTS, max_size=4) | JSON
FIELDS = st.sampled_from(["api_key", "client", "event", "identification", "e", "v", "checksum"])


def dumps(value: Any) -> str:
    return json.dumps(value)  # NaN and half surrogate pairs included


UPLOADS = st.fixed_dictionaries(
    {"api_key": st.just("key") | JSON, "events": st.lists(EVENTS, max_size=4) | JSON},
    optional={"options": st.fixed_dictionaries({"min_id_length": st.integers() | JSON}) | JSON},
).map(lambda upload: dumps(upload).encode())
FORMS = st.dictionaries(FIELDS, TEXT | MANY.map(dumps), max_size=4) | st.fixed_dictionaries(
    {
        "api_key": st.just("key"),
        "client": st.just("key"),
        "event": MANY.map(dumps),
        "identification": MANY.map(dumps),
        "e": MANY.map(dumps),
    }
)
URLENCODED = FORMS.map(lambda form: urllib.parse.urlencode(form, errors="replace").encode())
MULTIPART = FORMS.map(
    lambda form: (
        b"".join(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode(
                "utf-8", "replace"
            )
            for name, value in form.items()
        )
        + b"--x--\r\n"
    )
)
ANY_BODY = UPLOADS | URLENCODED | MULTIPART | MANY.map(lambda m: dumps(m).encode()) | st.binary()
OBJECTS = st.none() | st.dictionaries(TEXT, JSON, max_size=3)
GOOD = st.fixed_dictionaries(
    {"event_type": st.text(min_size=1, max_size=8), "user_id": st.just("user-1")},
    optional={"time": st.integers(0), "user_properties": OBJECTS, "event_properties": OBJECTS},
).filter(lambda event: json.dumps(event).isascii())
GOOD_UPLOADS = st.lists(GOOD, min_size=1, max_size=4).map(
    lambda events: dumps({"api_key": "key", "events": events}).encode()
)
GOOD_FORMS = GOOD.map(dumps).map(
    lambda e: urllib.parse.urlencode(
        {"api_key": "key", "client": "key", "event": e, "identification": e, "e": e}
    ).encode()
)
FORM_PATHS = ["/", "/httpapi", "/identify", "/groupidentify"]
FITTING = st.tuples(st.sampled_from(["/2/httpapi", "/batch"]), GOOD_UPLOADS) | st.tuples(
    st.sampled_from(FORM_PATHS), GOOD_FORMS
)
REQUESTS = (
    FITTING
    | st.tuples(st.just("/webhook?api_key=key"), ANY_BODY)
    | st.tuples(
        st.builds(
            "{}{}".format,
            st.sampled_from(sorted(ENDPOINTS)),
            st.sampled_from(["", "?api_key=key", "?api_key=key&event=%7B%7D&x=%ff%00", "?%%%"]),
        ),
        ANY_BODY | ANY_BODY.map(gzip.compress) | ANY_BODY.map(lambda b: gzip.compress(b)[:-2]),
    )
)
HEADERS = st.lists(
    st.sampled_from(
        [
            "Content-Type: application/json",
            "Content-Type: application/x-www-form-urlencoded",
            "Content-Type: multipart/form-data; boundary=x",
            "Content-Type: multipart/form-data",
            "Content-Type: text/plain;charset=UTF-8",
            "Content-Encoding: gzip",
            "Content-Encoding: br",
            "Authorization: Bearer key",
            "Authorization: \x80\xff",
            "X-Api-Key: \xff",
            "Authorization: Bearer \xff",
            "Content-Encoding: \xff",
            "Origin: \xff",
            "X-Api-Key: key",
            "Origin: null",
            "Expect: 100-continue",
            "Cookie: a=b",
        ]
    ),
    max_size=3,
    unique_by=lambda header: header.partition(":")[0],
)


class Server:
    """A source and an engine on a loop of their own, asked one request after the other."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self._closing = asyncio.Event()
        self._task = self.runner.get_loop().create_task(self._serve(folder))
        self.runner.run(self._started())

    async def _serve(self, folder: Path) -> None:
        quick: dict[str, Any] = {
            "body_timeout_s": 0.2,
            "idle_timeout_s": 0.2,
        }  # for what is never finished
        async with serving(folder, **quick) as (source, self.engine):
            self.address = await source.listening()
            await self._closing.wait()

    async def _started(self) -> None:
        while not hasattr(self, "address") and not self._task.done():
            await asyncio.sleep(0)

    def ask(self, said: bytes) -> bytes:
        async def main() -> bytes:
            async with asyncio.timeout(10):
                return await speak(self.address, said)

        return self.runner.run(main())

    def received(self) -> int:
        return received(self.engine)

    def close(self) -> None:
        async def main() -> None:
            self._closing.set()
            await self._task

        self.runner.run(main())
        self.runner.close()


def received(engine: Engine) -> int:
    [pipeline] = engine.streams.values()
    return pipeline.spool.counters["received"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("fuzz"))
    yield running
    running.close()


def check(server: Server, caplog: pytest.LogCaptureFixture, request: bytes) -> None:
    before = server.received()
    answer = server.ask(request)
    head, _, body = answer.removeprefix(CONTINUE).partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    event(f"answered {status}")
    assert status != 500
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    stored = server.received() - before
    if body == SUCCESS.encode():  # the old SDKs compare with it
        assert (status, stored > 0) == (200, True)
        return
    said = json.loads(body)
    assert said["code"] == status
    assert stored == (said["events_ingested"] if status == 200 else 0)


@QUICK
@given(REQUESTS, HEADERS, st.booleans())
@example(("/identify", b"--x\r\n\r\n--x"), ["Content-Type: multipart/form-data; boundary=x"], False)
def test_any_body_with_any_headers_is_answered_in_json_and_200_means_stored(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    request_: tuple[str, bytes],
    headers: list[str],
    chunked: bool,
) -> None:
    path, body = request_
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked and body else body
    if chunked and not body:
        sent = b"0\r\n\r\n"
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", length])
    head = "\r\n".join([head, *headers])
    check(server, caplog, head.encode("latin-1") + b"\r\n\r\n" + sent)


@QUICK
@given(
    st.sampled_from(["GET", "PUT", "BREW", "get", "\x00"]),
    st.text(st.characters(max_codepoint=0x17F), max_size=20),
    st.lists(st.text(st.characters(max_codepoint=0x17F), max_size=20), max_size=3),
)
def test_any_request_line_with_any_header_lines_is_answered_in_json(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    headers: list[str],
) -> None:
    lines = [f"{method} /{path} HTTP/1.1", "Connection: close", *headers]
    request = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"
    answer = server.ask(request)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"application/json" in head
        assert "openapi" in json.loads(body) or json.loads(body)["code"] in range(400, 500)
