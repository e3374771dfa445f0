"""The endpoints of the HTTP source: methods, limits and decoding for each path. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from amplitude_intercom.transports import forms, uploads
from amplitude_intercom.transports.forms import header_text
from amplitude_intercom.transports.openapi import describe
from amplitude_intercom.transports.upload_answers import BadUpload, Takes
from amplitude_intercom.transports.uploads import Upload

HTTP_V2_BYTES: Final = 1_000_000
BATCH_BYTES: Final = 20_000_000
"""Amplitude's own limits for one request: of HTTP V2, and of Batch (their pages)."""


class RequestParts(msgspec.Struct):
    """A request after reading: inflated body, fields of the query, headers, client's address."""

    method: str
    body: bytes
    query: Mapping[str, str]
    query_text: str
    headers: Mapping[str, str]
    peer: str

    @property
    def content_type(self) -> str:
        """The whole header."""
        return header_text(self.headers.get("Content-Type", ""))


class HttpEndpoint(msgspec.Struct, frozen=True):
    """A path's methods, its limit of bytes, and its way to decode a request."""

    methods: frozenset[str]
    max_bytes: int
    decode: Callable[[RequestParts, Takes], Upload | BadUpload]
    key_of: Callable[[Mapping[str, str], Mapping[str, str]], str] | None = None
    """The API key, where headers and query alone tell it."""


_DecodeForm = Callable[[Mapping[str, str], Takes], Upload | BadUpload]


def _form_endpoint(decode: _DecodeForm) -> HttpEndpoint:
    def decode_parts(parts: RequestParts, takes: Takes) -> Upload | BadUpload:
        return _with_form(parts, takes, decode)

    return HttpEndpoint(frozenset({"POST", "GET"}), HTTP_V2_BYTES, decode_parts)


def _with_form(parts: RequestParts, takes: Takes, decode: _DecodeForm) -> Upload | BadUpload:
    try:
        form = forms.read_form(parts.body, parts.content_type)
        return decode({**parts.query, **form}, takes)
    except ValueError:
        return BadUpload(400, "Invalid form", missing_field="body")


def _upload(parts: RequestParts, takes: Takes) -> Upload | BadUpload:
    return uploads.decode_upload(parts.body, takes)


def _root(parts: RequestParts, takes: Takes) -> Upload | BadUpload:
    """Return the old SDKs' form, or the JSON of a new SDK that was given a bare host."""
    if uploads.first_byte(parts.body[:1_024]) == b"{":
        return _upload(parts, takes)
    return _with_form(parts, takes, uploads.decode_legacy_form)


def _webhook_key(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """Return a webhook's API key, from one of its own headers or from the address."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return header_text(bearer or headers.get("X-Api-Key", "") or query.get("api_key", ""))


def _webhook(parts: RequestParts, takes: Takes) -> Upload | BadUpload:
    return uploads.decode_webhook(parts.body, _webhook_key(parts.headers, parts.query), takes)


WEBHOOK: Final = "/webhook"
_POST: Final = frozenset({"POST"})
ENDPOINTS: Final = {
    "/2/httpapi": HttpEndpoint(_POST, HTTP_V2_BYTES, _upload),
    "/batch": HttpEndpoint(_POST, BATCH_BYTES, _upload),
    "/httpapi": _form_endpoint(uploads.decode_event_form),
    "/identify": _form_endpoint(uploads.decode_identify_form),
    "/groupidentify": _form_endpoint(uploads.decode_group_identify_form),
    "/": HttpEndpoint(frozenset({"POST", "GET"}), HTTP_V2_BYTES, _root),
    WEBHOOK: HttpEndpoint(_POST, BATCH_BYTES, _webhook, _webhook_key),
}
"""Amplitude's ingestion endpoints, and the target of its webhook stream."""

PAGES: Final[Mapping[str, Callable[[], object]]] = {
    "/openapi.json": describe,
    "/healthz": lambda: {"code": 200, "status": "ok"},
}
"""Paths for reading only: the description of the endpoints, and a check for load balancers."""


def methods_of(path: str) -> frozenset[str]:
    """Return the methods of an endpoint, or of a page."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        return frozenset({"GET", "HEAD"})
    return endpoint.methods | {"HEAD", "OPTIONS"}
