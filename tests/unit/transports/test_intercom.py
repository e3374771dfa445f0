"""What Intercom's answers say, and what the client makes of broken ones."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from amplitude_intercom.transports import intercom
from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.intercom import (
    MAX_CONTACT_FIELDS,
    VERSION,
    Answer,
    ApiError,
    ListedEvent,
    RateHeaders,
    Request,
    create_attribute,
    decode_json,
    get_contact,
    is_error_list,
    is_intercoms,
    list_attributes,
    list_events,
    me,
    merged_into,
    named_contact,
    parse_error,
    parse_events,
    parse_rate,
    send_event,
)
from amplitude_intercom.transports.intercom_client import (
    MAX_ANSWER_BYTES,
    MAX_LIST_BYTES,
    IntercomClient,
)

TOKEN = "canary-token-91bc"
DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000


def answer(body: bytes = b"", status: int = 400, **headers: str) -> Answer:
    return Answer(status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


# --- parsing ----------------------------------------------------------------------------


def test_the_first_error_of_a_list_counts() -> None:
    body = b'{"type":"error.list","request_id":"r","errors":[{"code":"c","message":"m"},{}]}'
    assert parse_error(answer(body, x_request_id="h")) == ApiError("c", "m", "r")
    old = b'{"errors":[{"type":"t"}]}'
    assert parse_error(answer(old, x_request_id="h")) == ApiError("t", "", "h")


@pytest.mark.parametrize(
    "body", [b"", b"null", b"<html>", b'{"errors":null}', b'{"errors":[]}', b"\xff", b"[]", DEEP]
)
def test_no_body_is_too_strange_to_parse(body: bytes) -> None:
    assert parse_error(answer(body, x_request_id="h")) == ApiError(request_id="h")


@pytest.mark.parametrize(
    "body",
    [
        b'{"errors":[{"code":"%b"}]}',
        b'{"errors":[{"message":"%b"}]}',
        b'{"request_id":"%b","type":"error.list"}',
    ],
)
def test_no_more_of_an_errors_text_is_kept_than_is_shown(body: bytes) -> None:
    said = parse_error(answer(body % (b"x" * 2_048 + b"y")))
    assert said.code + said.message + said.request_id == "x" * 2_048


@pytest.mark.parametrize("body", [b"", b"null", b"<html>", b"[]", b"\xff", DEEP])
def test_a_body_that_is_no_object_decodes_to_an_empty_one(body: bytes) -> None:
    assert decode_json(answer(body)) == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("166", 166),
        ("0", 0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("9" * 99, None),
    ],
)
def test_rate_headers_are_whole_numbers_or_none(text: str, number: int | None) -> None:
    headers = dict.fromkeys(
        ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"), text
    )
    assert parse_rate(headers) == RateHeaders(number, number, number)
    assert parse_rate({}) == RateHeaders(None, None, None)


def test_the_contact_that_a_conflict_names_is_found() -> None:
    message = "A contact matching those details already exists with id=5f7f0d217289f8d5f4262080"
    assert named_contact(message) == "5f7f0d217289f8d5f4262080"
    assert named_contact("Conflict") is None


def test_the_contact_that_another_was_merged_into_is_found() -> None:
    assert merged_into(answer(link='</contacts/abc123>; rel="canonical"')) == "abc123"
    assert merged_into(answer()) is None


def test_an_id_cannot_leave_its_place_in_a_path() -> None:
    assert get_contact("a/../b?c").path == "/contacts/a%2F..%2Fb%3Fc"


# --- the client -------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client_of(
    handler: Handler, timeout_s: float = 10.0, renewed: Callable[[], str] | None = None
) -> AsyncIterator[IntercomClient]:
    """A client of a server on a port of this machine."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with IntercomClient(
        f"http://127.0.0.1:{port}/", TOKEN, timeout_s=timeout_s, connections=2, renewed=renewed
    ) as client:
        yield client
    await runner.cleanup()


async def cause_of(client: IntercomClient, request: Request) -> str:
    with pytest.raises(NoAnswer) as caught:
        await client.send(request)
    assert TOKEN not in f"{caught.value} {caught.value!r} {client!r}"
    return caught.value.cause


async def test_a_request_carries_token_version_and_exactly_its_bytes() -> None:
    seen: list[tuple[str, str, str, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append(
            (
                request.path,
                headers["Authorization"],
                headers["Intercom-Version"],
                await request.read(),
            )
        )
        return web.Response(status=202, headers={"X-RateLimit-Limit": "166"})

    async with client_of(handler) as client:
        got = await client.send(send_event(b'{ "a" :1}'))
    assert (got.status, got.body, got.headers["x-ratelimit-limit"]) == (202, b"", "166")
    assert seen == [("/events", f"Bearer {TOKEN}", VERSION, b'{ "a" :1}')]


@pytest.mark.parametrize("status", [200, 302, 404, 429, 502])
async def test_every_status_is_an_answer_html_or_not(status: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        page = "<html>proxy</html>"
        headers = {"Location": "/elsewhere"}
        return web.Response(status=status, text=page, content_type="text/html", headers=headers)

    async with client_of(handler) as client:
        got = await client.send(me())
    assert (got.status, got.body) == (status, b"<html>proxy</html>")
    assert (parse_error(got), decode_json(got)) == (ApiError(), {})


async def test_a_refused_connection_is_called_so() -> None:
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with IntercomClient(url, TOKEN, timeout_s=10.0, connections=1) as client:
            assert await cause_of(client, me()) == "refused"


async def test_a_server_that_hangs_is_timed_out() -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with client_of(handler, timeout_s=0.05) as client:
        assert await cause_of(client, me()) == "timeout"


async def test_an_answer_that_is_cut_off_is_incomplete() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"id":')
        assert request.transport is not None
        request.transport.close()
        return response

    async with client_of(handler) as client:
        assert await cause_of(client, me()) == "incomplete"


class Faulty(IntercomClient):
    """A client that cannot make a call, for a reason that is set."""

    fault: Exception

    async def _exchange(self, request: Request) -> Answer:
        raise self.fault


@pytest.fixture
async def faulty() -> AsyncIterator[Faulty]:
    async with Faulty("http://127.0.0.1:9", TOKEN, timeout_s=1.0, connections=1) as client:
        yield client


UNFORESEEN = [
    RuntimeError(f"can't start new thread {TOKEN}"),
    MemoryError(),
    KeyError(TOKEN),
    RecursionError(),
    AssertionError(),
]


@pytest.mark.parametrize("fault", UNFORESEEN, ids=repr)
async def test_an_error_that_nobody_foresaw_is_no_answer(faulty: Faulty, fault: Exception) -> None:
    faulty.fault = fault
    assert await cause_of(faulty, send_event(b"{}")) == "unforeseen"


@pytest.mark.parametrize(
    "fault", [ValueError(), TypeError(), OverflowError(), UnicodeEncodeError("utf-8", "", 0, 1, "")]
)
async def test_an_error_about_the_request_itself_stays_one(
    faulty: Faulty, fault: Exception
) -> None:
    faulty.fault = fault
    with pytest.raises(type(fault)):
        await faulty.send(send_event(b"{}"))


async def test_an_error_of_the_system_is_about_no_request_though_it_is_a_value_error(
    faulty: Faulty,
) -> None:
    faulty.fault = ssl.SSLCertVerificationError("certificate verify failed")
    assert isinstance(faulty.fault, ValueError)
    assert await cause_of(faulty, send_event(b"{}")) == "untrusted"


async def test_unforeseen_errors_are_logged_once_a_second_without_quoted_data(
    faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.fault = UNFORESEEN[0]
    for _ in range(100):
        await cause_of(faulty, send_event(b"{}"))
    [line] = caplog.messages
    assert "RuntimeError" in line
    assert "in _exchange" in line
    assert TOKEN not in line


async def test_a_connection_that_ends_without_an_answer_is_a_reset() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with client_of(handler) as client:
        assert await cause_of(client, send_event(b"{}")) == "reset"


async def test_a_token_that_is_refused_is_fetched_again_for_the_next_calls() -> None:
    fetched = 0

    def renewed() -> str:
        nonlocal fetched
        fetched += 1
        return "another-token"

    async def handler(request: web.Request) -> web.Response:
        right = request.headers["Authorization"] == "Bearer another-token"
        return web.Response(status=200 if right else 401)

    async with client_of(handler, renewed=renewed) as client:
        while (await client.send(me())).status == 401:
            pass
    assert fetched == 1


async def test_a_token_that_stays_wrong_is_fetched_at_most_once_a_second() -> None:
    fetched = 0

    def renewed() -> str:
        nonlocal fetched
        fetched += 1
        raise OSError("the file is gone")

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=401)

    async with client_of(handler, renewed=renewed) as client:
        started_s = asyncio.get_running_loop().time()
        for _ in range(50):
            assert (await client.send(me())).status == 401
        seconds = asyncio.get_running_loop().time() - started_s
    assert 1 <= fetched <= 1 + seconds


@pytest.mark.parametrize("request_id", ["1", "{}", "null", "[]"])
def test_an_error_list_with_an_odd_request_id_is_one(request_id: str) -> None:
    said = f'{{"type":"error.list","request_id":{request_id},"errors":[{{"code":"not_found"}}]}}'
    answer = Answer(404, {"x-request-id": "r-1"}, said.encode())
    assert is_error_list(answer)
    assert (parse_error(answer).code, parse_error(answer).request_id) == ("not_found", "r-1")


async def test_deflate_is_unpacked_with_and_without_the_header_that_it_should_have() -> None:
    for bits in (15, -15):
        packer = zlib.compressobj(wbits=bits)
        body = packer.compress(b'{"app":{}}') + packer.flush()

        async def handler(_: web.Request, body: bytes = body) -> web.Response:
            return web.Response(body=body, headers={"Content-Encoding": "deflate"})

        async with client_of(handler) as client:
            assert (await client.send(me())).body == b'{"app":{}}'


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("request_", "most"),
    [
        (me(), MAX_ANSWER_BYTES),
        (send_event(b"{}"), MAX_ANSWER_BYTES),
        (get_contact("a"), MAX_ANSWER_BYTES),
        (create_attribute("plan", "string"), MAX_ANSWER_BYTES),
        (list_attributes(), MAX_LIST_BYTES),
    ],
)
async def test_the_length_of_an_answer_is_bounded_by_its_purpose(
    request_: Request, most: int, packed: bool
) -> None:
    too_much = 0

    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=b"x" * (most + too_much))
        if packed:
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async with client_of(handler) as client:
        assert len((await client.send(request_)).body) == most
        too_much = 1
        assert await cause_of(client, request_) == "incomplete"


@pytest.mark.parametrize(
    "packed", [gzip.compress(bytes(60_000_000), mtime=0), gzip.compress(b"{}", mtime=0)[:-1]]
)
async def test_an_answer_that_swells_or_is_not_whole_costs_no_memory_and_is_none(
    packed: bytes,
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    async with client_of(handler) as client:
        tracemalloc.start()
        assert await cause_of(client, me()) == "incomplete"
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 10 * MAX_ANSWER_BYTES


MANY = b"[" + b"[]," * 80_000 + b"[]]"


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (send_event(b"{}"), 404, b'{"type":"error.list","errors":%b}' % MANY),
        (send_event(b"{}"), 404, b'{"type":"error.list","errors":[{}],"x":%b}' % MANY),
        (me(), 200, b'{"app":{"x":%b}}' % MANY),
        (list_attributes(), 200, b'{"data":%b}' % MANY),
    ],
)
def test_the_check_of_an_answers_sender_decodes_nothing_else(
    request_: Request, status: int, body: bytes
) -> None:
    got = answer(body, status)
    tracemalloc.start()
    assert is_intercoms(request_, got)
    parse_error(got)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 * len(body)


ERROR = b'{"type":"error.list","errors":[{"code":"x"}]}'
PAGE = b"<html>"
EVENT = send_event(b"{}")
CONTACT = get_contact("a")
SEARCH = intercom.search_contacts("m@x.io")
FOUND = b'{"type":"list","data":[%b]}'
LIST = list_attributes()
ATTRIBUTE = create_attribute("plan", "string")
EVENTS = list_events("u-1")


@pytest.mark.parametrize(
    ("request_", "status", "body", "is_theirs"),
    [
        (EVENT, 202, b"", True),
        (EVENT, 202, b" \r\n", True),
        (EVENT, 202, PAGE, False),
        (EVENT, 202, b"{}", False),
        (EVENT, 200, b"", False),
        (EVENT, 204, b"", False),
        (EVENTS, 200, b'{"events":[]}', True),
        (EVENTS, 200, b'{"events":{}}', False),
        (EVENTS, 200, PAGE, False),
        (EVENTS, 202, b"", False),
        (CONTACT, 200, b'{"id":"5f"}', True),
        (CONTACT, 200, b'{"id":"%b"}' % (b"5" * 64), True),
        (CONTACT, 200, b'{"id":"%b"}' % (b"5" * 65), False),
        (CONTACT, 200, b'{"id":""}', False),
        (CONTACT, 200, b'{"id":5}', False),
        (CONTACT, 200, b"{}", False),
        (CONTACT, 200, b"", False),
        (CONTACT, 200, PAGE, False),
        (CONTACT, 200, FOUND % b'{"id":"5"}', False),
        (SEARCH, 200, FOUND % b"", True),
        (SEARCH, 200, FOUND % b'{"id":"5"}', True),
        (SEARCH, 200, FOUND % b'{"id":"5"},{"id":"6"},7', True),
        (SEARCH, 200, FOUND % b"5", False),
        (SEARCH, 200, FOUND % b"null", False),
        (SEARCH, 200, b'{"type":"list","data":{}}', False),
        (SEARCH, 200, b'{"data":[]}', False),
        (SEARCH, 200, b'{"id":"5"}', False),
        (SEARCH, 200, PAGE, False),
        (LIST, 200, b'{"data":[]}', True),
        (LIST, 200, b'{"data":{}}', False),
        (LIST, 200, b"[]", False),
        (LIST, 200, PAGE, False),
        (ATTRIBUTE, 200, b'{"name":"plan"}', True),
        (ATTRIBUTE, 200, b'{"name":5}', False),
        (ATTRIBUTE, 200, b'{"app":{}}', False),
        (me(), 200, b'{"app":{}}', True),
        (me(), 200, b'{"app":null}', False),
        (me(), 200, b'{"data":[]}', False),
        (me(), 200, PAGE, False),
        *[(EVENT, status, ERROR, True) for status in (400, 404, 409, 410, 422)],
        *[(EVENT, status, PAGE, False) for status in (400, 404, 407, 409, 410, 422)],
        *[(EVENT, status, PAGE, True) for status in (401, 403, 408, 429, 500, 502, 599)],
        *[(EVENT, status, b"", True) for status in (401, 403, 408, 429, 500, 503)],
        *[(EVENT, status, ERROR, False) for status in (101, 199, 300, 302, 304)],
    ],
)
def test_an_answer_is_intercoms_where_the_api_describes_it_for_the_call(
    request_: Request, status: int, body: bytes, is_theirs: bool
) -> None:
    assert is_intercoms(request_, answer(body, status)) is is_theirs


def test_a_search_gives_its_first_contact_and_whether_there_are_more() -> None:
    one = answer(FOUND % b'{"id":"5","email":"m@x.io"}', 200)
    assert (len(one.listed), one.contact) == (1, {"id": "5", "email": "m@x.io"})
    many = answer(FOUND % b",".join([b'{"id":"5"}'] * 9), 200)
    assert len(many.listed) == 2
    assert not answer(FOUND % b"", 200).listed


def test_listed_events_are_read_where_there_are_any() -> None:
    one = b'{"type":"event","event_name":"a","created_at":7,"metadata":{}}'
    assert parse_events(answer(b'{"events":[%b]}' % one, 200)) == [ListedEvent("a", 7)]
    assert not parse_events(answer(b'{"events":[{"name":"a","count":7}]}', 200))
    assert not parse_events(answer(ERROR, 404))


def test_a_contact_keeps_only_the_fields_that_are_read() -> None:
    body = b'{"id":"a","email":"m@x.io","tags":%b,"custom_attributes":{"n":1,"o":%b}}'
    got = answer(body % (MANY, MANY), 200)
    assert is_intercoms(get_contact("a"), got)
    attributes = {"n": 1}
    assert got.contact == {"id": "a", "email": "m@x.io", "custom_attributes": attributes}
    assert got.contact is got.contact
    many = b",".join(b'"a%d":0' % n for n in range(MAX_CONTACT_FIELDS + 1))
    for absurd in (b'{"id":"a",%b}', b'{"id":"a","custom_attributes":{%b}}'):
        assert not is_intercoms(get_contact("a"), answer(absurd % many, 200))


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (b'{"type":"error.list","errors":[{"code":"x"}]}', True),
        (b'{"type":"error.list","errors":[{"code":5}]}', True),
        (b'{"type":"error.list","errors":["x"]}', True),
        (b'{"type":"error.list","errors":[]}', False),
        (b'{"type":"error.list","errors":null}', False),
        (b'{"type":"error.list","errors":{}}', False),
        (b'{"type":5,"errors":[{}]}', False),
        (b'{"errors":[{}]}', False),
        (b"[]", False),
        (b"<html>", False),
        (DEEP, False),
    ],
)
def test_an_error_list_is_one_with_an_error_in_it(body: bytes, is_one: bool) -> None:
    assert is_error_list(answer(body)) is is_one


def refusal(status: int, message: str, code: str = "parameter_invalid") -> Answer:
    error = {"type": "error.list", "errors": [{"code": code, "message": message}]}
    return Answer(status, {}, json.dumps(error).encode())


def test_the_refused_field_is_read_from_known_sentences_alone() -> None:
    unknown = refusal(400, "Custom attribute 'plan's end' does not exist")
    assert intercom.unknown_attribute(unknown) == "plan's end"
    assert intercom.unknown_attribute(refusal(422, "Custom attribute 'plan' does not exist")) == ""
    assert intercom.unknown_attribute(refusal(400, "Custom attribute 'plan' is no string")) == ""
    owner = refusal(400, "The owner specified is not a member of the workspace")
    assert intercom.is_nobodys_owner(owner)
    assert intercom.unknown_attribute(owner) == ""
    ambiguous = refusal(409, "Multiple existing users match this email address", "conflict")
    assert intercom.says_ambiguous(ambiguous)
    assert not intercom.says_ambiguous(refusal(404, "Multiple existing users match", "not_found"))
    assert intercom.says_too_many_names(
        refusal(422, "Cannot have more than 120 active event names", "422")
    )
    assert intercom.says_too_many_names(refusal(422, "", "custom_data_limit_reached"))
    assert intercom.says_archived(refusal(409, "An archived contact matches, id=5f"))
    assert not any(
        said(refusal(400, "Something else"))
        for said in (intercom.is_nobodys_owner, intercom.says_ambiguous, intercom.says_archived)
    )
