"""Forms, as Amplitude's older endpoints take them: urlencoded, multipart, spelled as JSON. Pure."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Final

import msgspec

MAX_FIELDS: Final = 32
"""Fields of a form; Amplitude's have up to five."""


def read_form(body: bytes, content_type: str) -> dict[str, str]:
    """Return the fields of a form in a body, urlencoded or multipart; JSON of an object too.

    ``content_type``: the header, whole.

    Raises:
        ValueError: it is no form, or has more fields than any of Amplitude's.
    """
    if not body:
        return {}
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _read_multipart(body, content_type)
    if kind == "application/json":
        return _read_json_form(body)
    pairs = urllib.parse.parse_qsl(
        body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS
    )
    return dict(pairs)


def _read_json_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form that came as JSON: strings as they are, other values as JSON."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if len(fields) > MAX_FIELDS:
            raise ValueError("too many fields")
        return {
            name: msgspec.json.decode(value) if bytes(value[:1]) == b'"' else value.decode()
            for name, value in ((n, bytes(v)) for n, v in fields.items())
        }
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_FIELD_NAME: Final = re.compile(rb'[;\s]name=(?:"([^"]{1,64})"|([^\s;"]{1,64}))', re.IGNORECASE)
MAX_PART_HEADER_BYTES: Final = 1_024


def _read_multipart(body: bytes, content_type: str) -> dict[str, str]:
    """Return the fields of a multipart form (RFC 7578), without parts that are no fields."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise ValueError("no boundary")
    mark = b"\r\n--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    _, *pieces = (b"\r\n" + body).split(mark, MAX_FIELDS + 1)
    if len(pieces) > MAX_FIELDS:
        raise ValueError("too many fields")
    fields: dict[str, str] = {}
    for piece in pieces:
        head, _, content = piece.partition(b"\r\n\r\n")
        name = _FIELD_NAME.search(head) if len(head) <= MAX_PART_HEADER_BYTES else None
        if name is not None:
            fields[(name[1] or name[2]).decode("utf-8", "replace")] = content.decode(
                "utf-8", "replace"
            )
    return fields


def legacy_checksum(form: Mapping[str, str]) -> str:
    """Return the ``checksum`` of the old SDKs' form: the MD5 of ``v``, ``client``, ``e`` and
    ``upload_time`` (requests of amplitude-js 8.21.10)."""
    signed = "".join(form.get(name, "") for name in ("v", "client", "e", "upload_time"))
    return hashlib.md5(signed.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()


def header_text(header: str) -> str:
    """Return a header as valid text: aiohttp gives undecodable bytes as halves of surrogates."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
