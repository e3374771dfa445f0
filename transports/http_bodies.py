"""Reading the body of an HTTP request within bounds of bytes, memory and decompression."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

import aiohttp
from aiohttp import web

from amplitude_intercom.transports import inflate
from amplitude_intercom.transports.forms import header_text
from amplitude_intercom.transports.inflate import Inflate
from amplitude_intercom.transports.limits import HeldBody
from amplitude_intercom.transports.upload_answers import NOT_JSON, TOO_LARGE, BadUpload

MAX_MEMBERS: Final = 1_024
"""Members of a packed body. bgzip, which makes the most, makes 320 of the largest body."""

CLIENT_GONE: Final = BadUpload(499, "Client closed the connection")
"""Counted, but read by no client."""

_GZIP_MAGIC: Final = b"\x1f\x8b"
_WINDOW_BITS: Final = {"gzip": inflate.GZIP, "x-gzip": inflate.GZIP, "deflate": inflate.ANY}


class UnreadableBody(Exception):
    """A body that is too large, cut off, or not in the encoding that its headers name."""

    def __init__(self, refusal: BadUpload) -> None:
        super().__init__(refusal.error)
        self.refusal = refusal


async def say_continue(request: web.BaseRequest) -> None:
    """Ask for a body that its client holds back until it is asked for (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp would take this for the beginning of an answer


async def read_body(request: web.BaseRequest, max_bytes: int, held: HeldBody) -> bytes:
    """Return a body, inflated, of which little more than ``max_bytes`` ever exist.

    A body that begins as gzip is gzip even without a header: no body in use begins like that.

    Raises:
        UnreadableBody: too large, cut off, in an unknown encoding, or not in the named one.
    """
    stream = _stream_of(request)
    body = bytearray()
    came_bytes = 0
    try:
        async for chunk in request.content.iter_any():
            if not came_bytes and stream is None and chunk.startswith(_GZIP_MAGIC):
                stream = _inflate("gzip")
            came_bytes += len(chunk)
            if came_bytes > max_bytes:
                raise UnreadableBody(TOO_LARGE)
            for piece in stream.feed(chunk) if stream else (chunk,):
                body += piece
                if len(body) > max_bytes:
                    raise UnreadableBody(TOO_LARGE)
                if len(body) > held.size:
                    await held.grow(len(body))
                if stream:
                    # A small chunk may become any number of pieces: others have a turn between.
                    await asyncio.sleep(0)
    except (aiohttp.ClientPayloadError, web.RequestPayloadError, zlib.error):
        raise UnreadableBody(NOT_JSON) from None
    except OSError:
        raise UnreadableBody(CLIENT_GONE) from None
    if stream and not stream.whole:
        raise UnreadableBody(NOT_JSON)
    return bytes(body)


def _stream_of(request: web.BaseRequest) -> Inflate | None:
    """Return the decompressor for the encoding that a request names.

    Raises:
        UnreadableBody: the encoding is not known here.
    """
    named = header_text(request.headers.get("Content-Encoding", "")).strip().lower()
    encoding = named or "identity"
    if encoding == "identity":
        return None
    if encoding not in _WINDOW_BITS:
        raise UnreadableBody(BadUpload(415, f"Unsupported content encoding: {encoding[:32]}"))
    return _inflate(encoding)


def _inflate(encoding: str) -> Inflate:
    return Inflate(_WINDOW_BITS[encoding], MAX_MEMBERS)
