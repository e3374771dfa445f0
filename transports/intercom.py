"""A typed client of Intercom's REST API. It sends one request and returns one answer.

No policy lives here: no retry, no pace, no meaning of a status. Whoever has a ``send`` of this
shape is a wire to Intercom; ``transports.sandbox`` has another one, without sockets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, Self
from urllib.parse import quote

import aiohttp
import msgspec

from transports.errors import NoAnswer

VERSION: Final = "2.14"
"""``Intercom-Version`` sent with each call: the one that official SDKs are generated from.

Left out, the version set in the app's Developer Hub would decide (Intercom-OpenAPI 2.16)."""

BASE_URLS: Final[Mapping[str, str]] = {
    "us": "https://api.intercom.io",
    "eu": "https://api.eu.intercom.io",
    "au": "https://api.au.intercom.io",
}
"""Regional hosts (Intercom-OpenAPI 2.16, ``servers``)."""

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""An answer longer than this counts as cut off: no documented answer comes near it."""


class Request(msgspec.Struct, frozen=True):
    """One call: ``path`` begins with a slash, ``body`` is JSON bytes or None."""

    method: str
    path: str
    body: bytes | None = None


class Answer(msgspec.Struct, frozen=True):
    """What came back. ``headers`` has lower-case names, or compares them without case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire(Protocol):
    """Anything that carries a request to an Intercom and brings its answer."""

    async def send(self, request: Request) -> Answer:
        """Return the answer, whatever its status.

        Raises:
            NoAnswer: no whole answer came.
        """
        ...


class ApiError(msgspec.Struct, frozen=True):
    """The first error of an answer; empty strings where the answer does not say."""

    code: str = ""
    message: str = ""
    request_id: str = ""


class RateHeaders(msgspec.Struct, frozen=True):
    """``X-RateLimit-*`` as sent: calls a window, calls left, Unix second of the window's end."""

    limit: int | None
    remaining: int | None
    reset_at_s: int | None


def send_event(body: bytes) -> Request:
    """``POST /events``: 202 with an empty body, 404 for an unknown contact."""
    return Request("POST", "/events", body)


def create_contact(body: bytes) -> Request:
    """``POST /contacts``: strict, a match answers 409 and names the other contact."""
    return Request("POST", "/contacts", body)


def update_contact(contact_id: str, body: bytes) -> Request:
    """``PUT /contacts/{id}``: partial, what is left out stays."""
    return Request("PUT", f"/contacts/{quote(contact_id, safe='')}", body)


def get_contact(contact_id: str) -> Request:
    """``GET /contacts/{id}``: 404 when archived or deleted, 410 when merged."""
    return Request("GET", f"/contacts/{quote(contact_id, safe='')}")


def unarchive_contact(contact_id: str) -> Request:
    """``POST /contacts/{id}/unarchive``."""
    return Request("POST", f"/contacts/{quote(contact_id, safe='')}/unarchive", b"{}")


def list_attributes() -> Request:
    """``GET /data_attributes``: those of contacts, standard and custom, without pages."""
    return Request("GET", "/data_attributes?model=contact")


def create_attribute(name: str, data_type: str) -> Request:
    """``POST /data_attributes``: a custom attribute of contacts."""
    body = {"name": name, "model": "contact", "data_type": data_type}
    return Request("POST", "/data_attributes", msgspec.json.encode(body))


def me() -> Request:
    """``GET /me``: the cheapest check of a token."""
    return Request("GET", "/me")


class _Error(msgspec.Struct):
    code: str | None = None
    type: str | None = None  # older answers name the code so (intercom-ruby)
    message: str | None = None


class _ErrorList(msgspec.Struct):
    request_id: str | None = None
    errors: list[_Error] = []


_error_list = msgspec.json.Decoder(_ErrorList)


def parse_error(answer: Answer) -> ApiError:
    """Return what an answer says is wrong; never fails, whatever the body holds.

    Proxies answer HTML, and a body can be ``null`` or empty (intercom-ruby #52, #568).
    """
    header_id = answer.headers.get("x-request-id", "")
    try:
        parsed = _error_list.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ApiError(request_id=header_id)
    first = parsed.errors[0] if parsed.errors else _Error()
    return ApiError(
        code=first.code or first.type or "",
        message=first.message or "",
        request_id=parsed.request_id or header_id,
    )


def parse_rate(headers: Mapping[str, str]) -> RateHeaders:
    """Return the rate headers; None for each one that is absent or not a whole number."""
    return RateHeaders(
        _whole(headers.get("x-ratelimit-limit")),
        _whole(headers.get("x-ratelimit-remaining")),
        _whole(headers.get("x-ratelimit-reset")),
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


_ID_IN_TEXT = re.compile(r"id=([0-9a-zA-Z]+)")
_ID_IN_LINK = re.compile(r"/contacts/([0-9a-zA-Z]+)>")


def named_contact(message: str) -> str | None:
    """Return the contact id that a 409's text names (reference "Create a contact")."""
    match = _ID_IN_TEXT.search(message)
    return match[1] if match else None


def merged_into(answer: Answer) -> str | None:
    """Return the id that a 410's ``Link: </contacts/{id}>; rel="canonical"`` names."""
    match = _ID_IN_LINK.search(answer.headers.get("link", ""))
    return match[1] if match else None


class IntercomClient:
    """The wire over HTTPS: one pool of connections, one token, one base URL.

    The token goes into the session's headers and nowhere else; ``repr`` shows the address only.
    """

    def __init__(
        self, base_url: str, access_token: str, *, timeout_s: float, connections: int
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={
                "Authorization": f"Bearer {access_token}",
                "Accept": "application/json",
                "Intercom-Version": VERSION,
                "User-Agent": "amplitude-intercom",
            },
        )

    def __repr__(self) -> str:
        return f"IntercomClient({self._base_url})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def send(self, request: Request) -> Answer:
        """Send one request and read the whole answer. Redirects are not followed.

        Raises:
            NoAnswer: the connection failed, the time-out passed, or the answer was cut off.
        """
        headers = {"Content-Type": "application/json"} if request.body is not None else None
        try:
            async with self._session.request(
                request.method,
                self._base_url + request.path,
                data=request.body,
                headers=headers,
                allow_redirects=False,
            ) as response:
                body = await _read_bounded(response)
                return Answer(response.status, response.headers, body)
        except TimeoutError as error:
            raise NoAnswer("timeout") from error
        except aiohttp.ClientConnectorError as error:
            raise NoAnswer("refused", type(error.os_error).__name__) from error
        except aiohttp.ClientPayloadError as error:
            raise NoAnswer("incomplete") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer("reset", type(error).__name__) from error


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = await response.content.read(MAX_ANSWER_BYTES)
    while not response.content.at_eof():
        more = await response.content.read(MAX_ANSWER_BYTES)
        body += more
        if len(body) > MAX_ANSWER_BYTES:
            raise NoAnswer("incomplete", f"answer longer than {MAX_ANSWER_BYTES} bytes")
    return body


def decode_json(answer: Answer) -> dict[str, Any]:
    """Return an answer's JSON object, or an empty one when it has none."""
    try:
        decoded = msgspec.json.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
