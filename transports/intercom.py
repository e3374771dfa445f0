"""Intercom's REST API as values: requests, answers, and the meaning of an answer.

Pure. ``intercom_client`` carries the requests over HTTPS, ``transports.sandbox`` answers them
in-process. The texts of Intercom's errors are parsed here and in no other module. The engine
decides the consequence of an answer: retry, pace, dead letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import msgspec

VERSION: Final = "2.14"
"""``Intercom-Version`` sent with each call: the one that official SDKs are generated from.

Left out, the version set in the app's Developer Hub would decide (Intercom-OpenAPI 2.16)."""

BASE_URLS: Final[Mapping[str, str]] = {
    "us": "https://api.intercom.io",
    "eu": "https://api.eu.intercom.io",
    "au": "https://api.au.intercom.io",
}
"""Regional hosts (Intercom-OpenAPI 2.16, ``servers``)."""

MAX_CONTACT_FIELDS: Final = 1_000
"""Fields, or custom attributes, of a contact; a workspace has 250 of these (Intercom's help)."""

SEARCH: Final = "/contacts/search"

MAX_CONTACT_ID: Final = 64
"""Longest contact id that is believed; Intercom's have 24 hexadecimal digits (recordings)."""


class Request(msgspec.Struct, frozen=True):
    """One call: ``path`` begins with a slash, ``body`` is JSON bytes or None."""

    method: str
    path: str
    body: bytes | None = None


MAX_SAID: Final = 2_048
"""Characters of an error's message that are kept: dead letters, logs and pages show them."""


class Answer(msgspec.Struct, frozen=True, dict=True):
    """An answer. ``headers`` has lower-case names, or compares them without case.

    Each view of the body is decoded once, and only in part, so that long lists cost no memory.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def error_list(self) -> ErrorList | None:
        """The listed errors, or None where the body is no such list."""
        return _decode(_error_list, self.body)

    @cached_property
    def is_list(self) -> bool:
        """Whether the body calls itself a list."""
        found = _decode(_typed, self.body)
        return found is not None and found.type == "list"

    @cached_property
    def listed(self) -> list[msgspec.Raw]:
        """The first two of the listed contacts."""
        found = _decode(_list, self.body) if self.is_list else None
        pair = found.data if found is not None else _Pair()
        return [raw for raw in (pair.first, pair.second) if raw is not _NULL]

    @cached_property
    def contact(self) -> dict[str, Any]:
        """The contact of the body, or the first of a list, or an empty one.

        It has the values of the contact and of its custom attributes, without nested objects:
        no value of a contact is one.
        """
        body = next(iter(self.listed), b"") if self.is_list else self.body
        found = _decode(_object, body) or {}
        custom = found.get("custom_attributes")
        kept = _values_of(found)
        if isinstance(custom, dict):
            kept["custom_attributes"] = custom = _values_of(custom)
        elif custom is not None:
            return {}
        return kept if max(len(kept), len(custom or ())) <= MAX_CONTACT_FIELDS else {}


class Wire(Protocol):
    """Anything that carries a request to an Intercom and brings its answer."""

    async def send(self, request: Request) -> Answer:
        """Return the answer, of any status.

        Raises:
            NoAnswer: no whole answer came.
        """
        ...


class ApiError(msgspec.Struct, frozen=True):
    """The first error of an answer; empty strings where the answer does not say."""

    code: str = ""
    message: str = ""
    request_id: str = ""
    field: str = ""


class RateHeaders(msgspec.Struct, frozen=True):
    """``X-RateLimit-*`` as sent: calls a window, calls left, Unix second of the window's end."""

    limit: int | None
    remaining: int | None
    reset_at_s: int | None


def send_event(body: bytes) -> Request:
    """``POST /events``: 202 with an empty body, 404 for an unknown contact."""
    return Request("POST", "/events", body)


def list_events(external_id: str) -> Request:
    """``GET /events``: a contact's events of the last 90 days (API description 2.16)."""
    return Request("GET", f"/events?type=user&user_id={quote(external_id, safe='')}")


def create_contact(body: bytes) -> Request:
    """``POST /contacts``: strict, a match answers 409 and names the other contact."""
    return Request("POST", "/contacts", body)


def find_contact(external_id: str) -> Request:
    """``GET /contacts/find_by_external_id/{external_id}``: 404 when there is none, 410 when merged
    (API description, since 2.13)."""
    return Request("GET", f"/contacts/find_by_external_id/{quote(external_id, safe='')}")


def search_contacts(email: str) -> Request:
    """``POST /contacts/search``: users with an e-mail, two at most. One that was created some
    minutes ago may be missing (API description, "Search contacts"). ``email``: in lower case."""
    users = {"field": "role", "operator": "=", "value": "user"}
    of_them = {"field": "email", "operator": "=", "value": email}
    query = {"operator": "AND", "value": [users, of_them]}
    body = {"query": query, "pagination": {"per_page": 2}}
    return Request("POST", SEARCH, msgspec.json.encode(body))


def update_contact(contact_id: str, body: bytes) -> Request:
    """``PUT /contacts/{id}``: partial, other fields stay."""
    return Request("PUT", f"/contacts/{quote(contact_id, safe='')}", body)


def get_contact(contact_id: str) -> Request:
    """``GET /contacts/{id}``: 404 when archived or deleted, 410 when merged."""
    return Request("GET", f"/contacts/{quote(contact_id, safe='')}")


def archive_contact(contact_id: str) -> Request:
    """``POST /contacts/{id}/archive``: 200 as well where it is archived already (recordings)."""
    return Request("POST", f"/contacts/{quote(contact_id, safe='')}/archive", b"{}")


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


_NULL: Final = msgspec.Raw(b"null")


class _Error(msgspec.Struct):
    code: str | None = None
    type: str | None = None  # older answers name the code so (intercom-ruby)
    message: str | None = None
    field: str | None = None


class _Errors(msgspec.Struct, array_like=True):
    """An array; only its first element is decoded."""

    first: msgspec.Raw = _NULL


class _Pair(msgspec.Struct, array_like=True):
    """An array; only its first two elements are decoded."""

    first: msgspec.Raw = _NULL
    second: msgspec.Raw = _NULL


class _Typed(msgspec.Struct):
    type: str


class _ListedContacts(msgspec.Struct):
    data: _Pair


class ErrorList(msgspec.Struct):
    """The needed fields of an error as Intercom gives it."""

    type: str | None = None
    request_id: msgspec.Raw = _NULL
    errors: _Errors | None = None


class _Something(msgspec.Struct):
    """Any JSON object; its content is skipped."""


class _Array(msgspec.Struct, array_like=True):
    """Any JSON array; its content is skipped."""


class _App(msgspec.Struct):
    id_code: Any = None


class _Me(msgspec.Struct):
    app: _App


class ListedEvent(msgspec.Struct, frozen=True):
    """An event as ``GET /events`` lists it; ``created_at`` in Unix seconds."""

    event_name: str
    created_at: int


class _ListedEvents(msgspec.Struct):
    events: list[ListedEvent]


class _Events(msgspec.Struct):
    events: _Array


class _Attributes(msgspec.Struct):
    data: _Array


class _Attribute(msgspec.Struct):
    name: str


_T = TypeVar("_T")
_error = msgspec.json.Decoder(_Error)
_typed = msgspec.json.Decoder(_Typed)
_error_list = msgspec.json.Decoder(ErrorList)
_list = msgspec.json.Decoder(_ListedContacts)
_object = msgspec.json.Decoder(dict[str, Any])
_text = msgspec.json.Decoder(str | None)
_me = msgspec.json.Decoder(_Me)
_listed_events = msgspec.json.Decoder(_ListedEvents)
_events = msgspec.json.Decoder(_Events)
_attributes = msgspec.json.Decoder(_Attributes)
_attribute = msgspec.json.Decoder(_Attribute)


def _decode(decoder: msgspec.json.Decoder[_T], body: bytes | msgspec.Raw) -> _T | None:
    """Return a decoded body, or None where it is no JSON or of another type."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _values_of(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not isinstance(value, list | dict)}


def parse_error(answer: Answer) -> ApiError:
    """Return the first error of an answer, for any body.

    Proxies answer HTML, and a body can be ``null`` or empty (intercom-ruby #52, #568).
    """
    header_id = answer.headers.get("x-request-id", "")
    listed = answer.error_list or ErrorList()
    raw = listed.errors.first if listed.errors else _NULL
    first = _decode(_error, raw) or _Error()
    return ApiError(
        code=as_text(first.code or first.type or ""),
        message=as_text(first.message or ""),
        request_id=as_text(_decode(_text, listed.request_id) or header_id),
        field=as_text(first.field or ""),
    )


def parse_events(answer: Answer) -> list[ListedEvent]:
    """Return the events of ``GET /events``; none where the answer has none that can be read."""
    found = _decode(_listed_events, answer.body) if answer.status == 200 else None
    return found.events if found else []


def as_text(said: str) -> str:
    """Return a text of an answer, with bounded length: header bytes need not be UTF-8."""
    return said[:MAX_SAID].encode("utf-8", "backslashreplace").decode()


def parse_rate(headers: Mapping[str, str]) -> RateHeaders:
    """Return the rate headers; None for each one that is absent or not a whole number."""
    return RateHeaders(
        _whole(headers.get("x-ratelimit-limit")),
        _whole(headers.get("x-ratelimit-remaining")),
        _whole(headers.get("x-ratelimit-reset")),
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None


# --- the meaning of its sentences ---------------------------------------------------------

_UNKNOWN_ATTRIBUTE: Final = "Custom attribute '"
_NOBODYS_OWNER: Final = "The owner specified is not a member of the workspace"


def unknown_attribute(answer: Answer) -> str:
    """Return the custom attribute that a 400 says does not exist, or nothing (reference "Create a
    contact")."""
    message = parse_error(answer).message if answer.status == 400 else ""
    name, quote, said = message.removeprefix(_UNKNOWN_ATTRIBUTE).rpartition("'")
    is_unknown = message.startswith(_UNKNOWN_ATTRIBUTE) and "does not exist" in said
    return name if quote and is_unknown else ""


def says_attribute_is_there(answer: Answer) -> bool:
    """Return whether a 400 to the creation of an attribute says that there is one of this name (API
    description, ``POST /data_attributes``)."""
    return answer.status == 400 and parse_error(answer).message.startswith("You already have")


def is_nobodys_owner(answer: Answer) -> bool:
    """Return whether a 400 says that ``owner_id`` is no teammate's (the same reference)."""
    return answer.status == 400 and parse_error(answer).message == _NOBODYS_OWNER


def says_ambiguous(answer: Answer) -> bool:
    """Return whether several contacts share the e-mail of an event (intercom-node #96)."""
    message = parse_error(answer).message.lower()
    return answer.status in (400, 409) and "multiple existing users" in message


def says_too_many_names(answer: Answer) -> bool:
    """Return whether the workspace takes no further event name (neo4j-contrib/training-v3 #56;
    intercom-ruby knows the code)."""
    said = parse_error(answer)
    return "active event names" in said.message or said.code == "custom_data_limit_reached"


def says_archived(answer: Answer) -> bool:
    """Return whether a 409 is about a contact that is archived (reference "Create a contact")."""
    return "archived" in parse_error(answer).message.lower()


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


def workspace_of(answer: Answer) -> str:
    """Return the id of the app that ``GET /me`` names (API description); empty: it has none."""
    found = _decode(_me, answer.body)
    code = found.app.id_code if found else None
    return as_text(code) if isinstance(code, str) else ""


# --- Intercom's own answers ---------------------------------------------------------------


def is_intercoms(request: Request, answer: Answer) -> bool:
    """Return whether an answer is one that the API describes for this call.

    Between here and Intercom are proxies, portals and sorry pages, which answer 200 or 404 as well:
    those say nothing about the call. A success has the body of the API description (2.16), an error
    is an ``error.list``. 401, 403, 408, 429 and 5xx count from any sender: they are about the
    token, the budget or an outage, and are charged to no record.
    """
    if 200 <= answer.status < 300:
        return _is_success(request, answer)
    if 400 <= answer.status < 500 and answer.status not in (401, 403, 408, 429):
        return is_error_list(answer)
    return answer.status >= 400


def _is_success(request: Request, answer: Answer) -> bool:
    resource = request.path.partition("?")[0].strip("/").partition("/")[0]
    if resource == "events" and request.method == "GET":
        return _decode(_events, answer.body) is not None
    if resource == "events":
        return answer.status == 202 and not answer.body.strip()
    if request.path == SEARCH and answer.is_list and not answer.listed:
        return _decode(_list, answer.body) is not None
    if resource == "contacts":
        is_asked_for = answer.is_list is (request.path == SEARCH)
        return is_asked_for and 0 < len(_id_of(answer.contact)) <= MAX_CONTACT_ID
    if resource == "data_attributes":
        decoders: tuple[msgspec.json.Decoder[Any], ...] = (_attributes, _attribute)
    else:
        decoders = (_me,)
    return any(_decode(decoder, answer.body) is not None for decoder in decoders)


def _id_of(contact: Mapping[str, Any]) -> str:
    contact_id = contact.get("id")
    return contact_id if isinstance(contact_id, str) else ""


def is_error_list(answer: Answer) -> bool:
    """Return whether an answer is an error as Intercom gives it, with at least one error."""
    found = answer.error_list
    return (
        found is not None
        and found.type == "error.list"
        and found.errors is not None
        and found.errors.first is not _NULL
    )


def decode_json(answer: Answer) -> dict[str, Any]:
    """Return an answer's JSON object, or an empty one when it has none."""
    return _decode(_object, answer.body) or {}
