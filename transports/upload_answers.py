"""Amplitude's answers to an upload, and the clients' reactions that they rely on. Pure.

Clients decide by the answer which events they send again (behaviour of the Python and Node SDKs):

- They drop the events that are listed as bad, and send the rest again. So an upload with some bad
  events is refused as a whole, and **every** bad index is listed.
- A 400 with ``missing_field``, or with ``Invalid API key:`` and the key, makes them give up. They
  send any other again, up to twelve times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

MAX_KEY_SHOWN: Final = 128
INVALID_KEY: Final = "Invalid API key: "
MAX_KEY_LENGTH: Final = 1_024
"""Characters of an API key; Amplitude's have 32."""

Takes = Callable[[str], bool]
"""Whether any taker wants the events of an API key."""


class BadUpload(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refusal in Amplitude's words (HTTP V2 page). Encodes as the answer's body."""

    code: int
    error: str
    missing_field: str | None = None
    events_with_invalid_fields: dict[str, list[int]] = {}
    events_with_missing_fields: dict[str, list[int]] = {}
    events_with_invalid_id_lengths: dict[str, list[int]] = {}
    eps_threshold: int = 0
    throttled_devices: dict[str, int] = {}
    throttled_users: dict[str, int] = {}
    throttled_events: list[int] = []


class GoodUpload(msgspec.Struct, frozen=True):
    """Success in Amplitude's words; clients look for ``code`` in it."""

    code: int
    events_ingested: int
    payload_size_bytes: int
    server_upload_time: int


TOO_LARGE: Final = BadUpload(413, "Payload too large")
NOT_JSON: Final = BadUpload(400, "Invalid JSON request body", missing_field="body")
NO_BODY: Final = BadUpload(400, "Missing request body", missing_field="body")


def missing_field(field: str) -> BadUpload:
    return BadUpload(400, "Request missing required field", missing_field=field)


def unknown_key(api_key: str) -> BadUpload:
    """Return the refusal on which both SDKs give up: they look for the colon."""
    shown = api_key[:MAX_KEY_SHOWN].encode(errors="replace").decode()
    return BadUpload(400, f"{INVALID_KEY}{shown}")


def refuse_key(field: str, api_key: str | None, takes: Takes) -> BadUpload | None:
    """Return the refusal of a request without a known API key, or None; ``field`` is its name."""
    if not api_key:
        return missing_field(field)
    return None if len(api_key) <= MAX_KEY_LENGTH and takes(api_key) else unknown_key(api_key)
