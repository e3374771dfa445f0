"""Reading answers within bounds, and why a call has none: for clients of any outside interface."""

from __future__ import annotations

import os
import ssl
from typing import Final

import aiohttp

from amplitude_intercom.transports.errors import NoAnswer
from amplitude_intercom.transports.inflate import ANY, RAW, Inflate
from amplitude_intercom.transports.reasons import NoAnswerCause

PIECE_BYTES: Final = 16_384
"""Unpacked bytes of an answer in one step."""

MAX_MEMBERS: Final = 64
"""Members of a packed answer; each server makes one."""

ZLIB_METHOD: Final = 8
"""Low bits of the first byte of a zlib stream (RFC 1950, 2.2)."""

ABOUT_THE_REQUEST: Final = (ValueError, TypeError, OverflowError)
"""Errors of a request that can never be made: the request itself is at fault.

All others are about the moment, so they are no verdict on a record. That includes the errors of
aiohttp and of the system, though some of them are a ``ValueError`` as well: catch these first."""

_PACKINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})


def cause_of(error: Exception) -> NoAnswerCause:
    """Return the cause, as ``NoAnswer`` names it, of a call that failed with an error."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return NoAnswerCause.UNRESOLVED
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return NoAnswerCause.UNTRUSTED
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return NoAnswerCause.REFUSED
    is_cut = isinstance(error, aiohttp.ClientPayloadError)
    return NoAnswerCause.INCOMPLETE if is_cut else NoAnswerCause.RESET


def detail_of(error: Exception) -> str:
    """Return the operating system's words for an error: they hold neither token nor body."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)[:200]
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ""  # the system's words differ, and add nothing to the cause
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, ssl.SSLError):
        return str(getattr(inner, "reason", None) or "")[:200]  # its number is OpenSSL's
    number = getattr(inner, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(inner).__name__


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return a body, unpacked, of which little more than ``max_bytes`` ever exist.

    Raises:
        NoAnswer: it is longer, or not whole.
    """
    packing = response.headers.get("Content-Encoding", "").strip().lower()
    stream: Inflate | None = None
    body, came_bytes = bytearray(), 0
    async for chunk in response.content.iter_any():
        if packing in _PACKINGS and not came_bytes:
            stream = Inflate(_window_bits(packing, chunk), MAX_MEMBERS, PIECE_BYTES)
        came_bytes += len(chunk)
        for piece in stream.feed(chunk) if stream else (chunk,):
            body += piece
            if len(body) > max_bytes:
                break
        if max(came_bytes, len(body)) > max_bytes:
            raise NoAnswer(NoAnswerCause.INCOMPLETE, f"answer longer than {max_bytes} bytes")
    if stream and not stream.whole:
        raise NoAnswer(NoAnswerCause.INCOMPLETE, f"its {packing[:16]} ends too early")
    return bytes(body)


def _window_bits(packing: str, start: bytes) -> int:
    """Return how to unpack: some servers send ``deflate`` without the header it should have."""
    return RAW if packing == "deflate" and start[0] & 0x0F != ZLIB_METHOD else ANY
